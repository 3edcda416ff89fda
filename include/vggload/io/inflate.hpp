// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zlib.h>

#include <vggload/core/error.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/zip_archive.hpp>

namespace vggload::detail {

/// Unpacks a deflated member of a zip from its start to its end, once.
class inflate_stream {
 public:
  /// Both must live as long as this does. Throws std::bad_alloc.
  inflate_stream(const mapped_file& file, const zip_member& member)
      : file_(file), member_(member), input_(input_bytes) {
    // Negative: raw deflate, as zip has it.
    if (::inflateInit2(&stream_, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  }
  inflate_stream(const inflate_stream&) = delete;
  inflate_stream& operator=(const inflate_stream&) = delete;
  ~inflate_stream() { ::inflateEnd(&stream_); }

  /// Unpacked bytes that are behind.
  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }

  /// The next bytes, which must not be more than are left. Throws `io_error`, and `format_error`
  /// where they are no deflate, fewer than the zip says, or not those of its CRC-32.
  void read(std::span<std::byte> out) {
    while (!out.empty()) {
      if (stream_.avail_in == 0) refill();
      const std::size_t part = std::min<std::size_t>(out.size(), std::numeric_limits<uInt>::max());
      stream_.next_out = reinterpret_cast<Bytef*>(out.data());
      stream_.avail_out = static_cast<uInt>(part);
      const int code = ::inflate(&stream_, Z_NO_FLUSH);
      const std::size_t got = part - stream_.avail_out;
      if (code == Z_MEM_ERROR) throw std::bad_alloc();
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) {
        fail(std::string("its deflated bytes are damaged: ") +
             (stream_.msg != nullptr ? stream_.msg : "unexpected data"));
      }
      crc32_ = ::crc32_z(crc32_, reinterpret_cast<const Bytef*>(out.data()), got);
      position_ += got;
      out = out.subspan(got);
      const bool stuck = got == 0 && consumed_ == member_.stored_bytes && stream_.avail_in == 0;
      if ((code == Z_STREAM_END || stuck) && position_ < member_.bytes) {
        fail("it unpacks to " + std::to_string(position_) + " bytes, not the " +
             std::to_string(member_.bytes) + " that the zip says");
      }
    }
    if (position_ == member_.bytes && crc32_ != member_.crc32) {
      fail("what it unpacks to does not have the CRC-32 that the zip says");
    }
  }

  /// Goes on to a position that is not behind.
  void skip_to(std::uint64_t position) {
    std::vector<std::byte> scratch(
        static_cast<std::size_t>(std::min<std::uint64_t>(position - position_, input_bytes)));
    while (position_ < position) {
      read(std::span(scratch).first(
          static_cast<std::size_t>(std::min<std::uint64_t>(position - position_, scratch.size()))));
    }
  }

 private:
  static constexpr std::size_t input_bytes = std::size_t{64} << 10U;

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": member " + in_quotes(member_.name) + ": " +
                       what);
  }

  void refill() {
    const auto part = std::span(input_).first(static_cast<std::size_t>(
        std::min<std::uint64_t>(input_.size(), member_.stored_bytes - consumed_)));
    file_.read_at(member_.data_offset + consumed_, part);
    consumed_ += part.size();
    stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
    stream_.avail_in = static_cast<uInt>(part.size());
  }

  const mapped_file& file_;
  const zip_member& member_;
  std::vector<std::byte> input_;
  ::z_stream stream_{};
  std::uint64_t consumed_ = 0;  // of the stored bytes
  std::uint64_t position_ = 0;
  uLong crc32_ = 0;
};

/// A deflated member of a zip as bytes that can be read anywhere: onwards at the price of unpacking
/// what is read, backwards at that of beginning anew. From several threads at once.
class inflated_member {
 public:
  /// Both must live as long as this does.
  inflated_member(const mapped_file& file, const zip_member& member) noexcept
      : file_(file), member_(member) {}

  /// Fills `out` with unpacked bytes from `offset` on, which must be within the member's. Throws
  /// what `inflate_stream` throws.
  void read(std::uint64_t offset, std::span<std::byte> out) {
    std::unique_ptr<inflate_stream> stream = take(offset);
    if (!stream) stream = std::make_unique<inflate_stream>(file_, member_);
    stream->skip_to(offset);
    stream->read(out);
    if (stream->position() < member_.bytes) keep(std::move(stream));
  }

 private:
  /// Streams that wait in the middle: each takes some 100 KiB.
  static constexpr std::size_t most_streams = 4;

  /// The stream with the least way to go, if there is one that is not past.
  [[nodiscard]] std::unique_ptr<inflate_stream> take(std::uint64_t offset) {
    const std::scoped_lock lock(mutex_);
    auto best = streams_.end();
    for (auto it = streams_.begin(); it != streams_.end(); ++it) {
      if ((*it)->position() > offset) continue;
      if (best == streams_.end() || (*it)->position() > (*best)->position()) best = it;
    }
    if (best == streams_.end()) return nullptr;
    auto stream = std::move(*best);
    streams_.erase(best);
    return stream;
  }

  void keep(std::unique_ptr<inflate_stream> stream) {
    const std::scoped_lock lock(mutex_);
    if (streams_.size() == most_streams) streams_.erase(streams_.begin());
    streams_.push_back(std::move(stream));
  }

  const mapped_file& file_;
  const zip_member& member_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<inflate_stream>> streams_;
};

}  // namespace vggload::detail
