// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <zlib.h>

namespace test {

/// A number in `size` little-endian bytes.
inline std::string number(std::uint64_t value, unsigned size) {
  std::string bytes;
  for (unsigned i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFFU);
  return bytes;
}

inline std::uint32_t crc32_of(std::string_view bytes) {
  return static_cast<std::uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// Raw deflate of some bytes.
inline std::string deflate(std::string_view bytes) {
  ::z_stream stream{};
  ::deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY);
  std::string out(bytes.size() + bytes.size() / 10 + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  ::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

/// One member of a zip that is put together by hand, each field as a test wants it to lie.
struct zip_record {
  std::string name;
  std::string stored;  // as it stands in the file
  std::uint64_t bytes = stored.size();
  unsigned method = 0;
  unsigned flags = 0;
  std::uint32_t crc32 = crc32_of(stored);
  std::string local_name = name;
  unsigned local_method = method;
  std::uint64_t local_bytes = bytes;
  std::string extra = {};        // of the directory's entry
  std::string local_extra = {};  // of the local header
  std::uint64_t stored_bytes = stored.size();
  std::int64_t header_shift = 0;  // how far off the directory's offset is
};

/// A deflated member.
inline zip_record deflated(std::string name, std::string_view bytes) {
  return {.name = std::move(name),
          .stored = deflate(bytes),
          .bytes = bytes.size(),
          .method = 8,
          .crc32 = crc32_of(bytes)};
}

struct zip_end {
  std::int64_t more_entries = 0;
  std::int64_t directory_shift = 0;
  std::int64_t more_directory_bytes = 0;
  unsigned disk = 0;
  bool zip64 = false;
  bool markers = true;  // with zip64: the short numbers point to the long ones
  int other_bytes = 0;  // without them: how far the two differ
  std::string comment = {};
};

inline std::string zip(const std::vector<zip_record>& records, const zip_end& end = {}) {
  std::string file;
  std::string directory;
  for (const zip_record& r : records) {
    const auto offset =
        static_cast<std::uint64_t>(static_cast<std::int64_t>(file.size()) + r.header_shift);
    const std::string sizes = number(r.crc32, 4) + number(r.stored_bytes, 4);
    file += number(0x04034B50, 4) + number(20, 2) + number(r.flags, 2) + number(r.local_method, 2) +
            number(0, 4) + sizes + number(r.local_bytes, 4) + number(r.local_name.size(), 2) +
            number(r.local_extra.size(), 2) + r.local_name + r.local_extra + r.stored;
    directory += number(0x02014B50, 4) + number(20, 2) + number(20, 2) + number(r.flags, 2) +
                 number(r.method, 2) + number(0, 4) + sizes + number(r.bytes, 4) +
                 number(r.name.size(), 2) + number(r.extra.size(), 2) + number(0, 2) +
                 number(0, 2) + number(0, 2) + number(0, 4) + number(offset, 4) + r.name + r.extra;
  }
  const auto shifted = [](std::size_t value, std::int64_t shift) {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(value) + shift);
  };
  const std::uint64_t entries = shifted(records.size(), end.more_entries);
  const std::uint64_t begin = shifted(file.size(), end.directory_shift);
  const std::uint64_t bytes = shifted(directory.size(), end.more_directory_bytes);
  file += directory;
  if (end.zip64) {
    const std::size_t record = file.size();
    file += number(0x06064B50, 4) + number(44, 8) + number(45, 2) + number(45, 2) + number(0, 4) +
            number(0, 4) + number(entries, 8) + number(entries, 8) + number(bytes, 8) +
            number(begin, 8);
    file += number(0x07064B50, 4) + number(0, 4) + number(record, 8) + number(1, 4);
  }
  const bool markers = end.zip64 && end.markers;
  return file + number(0x06054B50, 4) + number(end.disk, 2) + number(0, 2) +
         number(markers ? 0xFFFF : entries, 2) + number(markers ? 0xFFFF : entries, 2) +
         number(markers ? 0xFFFFFFFF : bytes + static_cast<unsigned>(end.other_bytes), 4) +
         number(markers ? 0xFFFFFFFF : begin, 4) + number(end.comment.size(), 2) + end.comment;
}

}  // namespace test
