// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/little_endian.hpp>

namespace vggload {

/// A file inside a zip archive, and where its bytes lie.
struct zip_member {
  std::string name;
  std::uint64_t data_offset;   // in the archive's file
  std::uint64_t stored_bytes;  // there
  std::uint64_t bytes;         // when unpacked: equal to `stored_bytes` unless `deflated`
  std::uint32_t crc32;         // of the unpacked bytes
  bool deflated;
};

namespace detail {

inline constexpr std::uint32_t zip_local_signature = 0x04034B50;
inline constexpr std::uint32_t zip_end_signature = 0x06054B50;

/// Reads and checks a zip's directory, for `zip_archive`.
class zip_directory_parser {
 public:
  /// Reads the directory alone.
  explicit zip_directory_parser(const input_file& file) : file_(file), place_(find_directory()) {
    read_directory(read_bytes(place_.offset, place_.bytes));
  }

  /// Compares it with what stands before the members.
  void check_members() {
    read_local_headers();
    check_overlaps();
  }

  [[nodiscard]] std::vector<zip_member> take_members() { return std::move(members_); }
  [[nodiscard]] std::vector<std::size_t> take_order() { return std::move(by_name_); }

 private:
  struct directory_place {
    std::uint64_t offset;
    std::uint64_t bytes;
    std::uint64_t entries;
  };

  static constexpr std::uint32_t entry_signature = 0x02014B50;
  static constexpr std::uint32_t end64_signature = 0x06064B50;
  static constexpr std::uint32_t locator64_signature = 0x07064B50;
  static constexpr std::size_t local_bytes = 30;
  static constexpr std::size_t entry_bytes = 46;
  static constexpr std::size_t end_bytes = 22;
  static constexpr std::size_t end64_bytes = 56;
  static constexpr std::size_t locator64_bytes = 20;
  static constexpr std::uint16_t encrypted_flag = 1U << 0U;
  static constexpr std::uint16_t sizes_follow_flag = 1U << 3U;
  static constexpr std::uint16_t small_marker = 0xFFFF;
  static constexpr std::uint32_t marker = 0xFFFFFFFF;
  /// Far above what any writer of checkpoints needs, and such that what a directory claims takes no
  /// more than 16 MiB before it is refused.
  static constexpr std::uint64_t max_directory_bytes = std::uint64_t{4} << 20U;
  static constexpr std::uint64_t max_entries = 32'768;
  /// What deflate can give for a byte at most: 258 bytes for two bits.
  static constexpr std::uint64_t max_deflate_ratio = 1032;

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": " + what);
  }
  [[noreturn]] void fail(const std::string& member, const std::string& what) const {
    fail("member " + in_quotes(member) + ": " + what);
  }

  [[nodiscard]] std::vector<std::byte> read_bytes(std::uint64_t offset, std::uint64_t count) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(count));
    file_.read_at(offset, bytes);
    return bytes;
  }

  /// From the record at the file's end, behind which only a comment may stand.
  [[nodiscard]] directory_place find_directory() const {
    constexpr std::uint64_t max_comment_bytes = 0xFFFF;
    const std::uint64_t size = file_.size();
    if (size < end_bytes)
      fail("the file has " + std::to_string(size) + " bytes, too few for a zip");
    const std::uint64_t tail_bytes = std::min(size, end_bytes + max_comment_bytes);
    const std::vector<std::byte> tail = read_bytes(size - tail_bytes, tail_bytes);
    for (std::size_t at = tail.size() - end_bytes;; --at) {
      const little_endian_reader end(std::span<const std::byte>(tail).subspan(at));
      if (end.u32(0) == zip_end_signature && at + end_bytes + end.u16(20) == tail.size()) {
        return read_end(end, size - tail_bytes + at);
      }
      if (at == 0) break;
    }
    fail("the zip's directory was not found: the file is cut, or no zip");
  }

  [[nodiscard]] directory_place read_end(const little_endian_reader& end,
                                         std::uint64_t end_offset) const {
    directory_place place{end.u32(16), end.u32(12), end.u16(10)};
    bool one_disk = end.u16(4) == 0 && end.u16(6) == 0 && end.u16(8) == end.u16(10);
    std::uint64_t directory_end = end_offset;
    // PyTorch has the zip64 record always, others where a number does not fit.
    if (end_offset >= locator64_bytes) {
      const auto bytes = read_bytes(end_offset - locator64_bytes, locator64_bytes);
      const little_endian_reader locator(bytes);
      if (locator.u32(0) == locator64_signature) {
        directory_end = locator.u64(8);
        one_disk = one_disk && locator.u32(4) == 0 && locator.u32(16) <= 1;
        const directory_place large = read_end64(directory_end);
        if ((place.offset != marker && place.offset != large.offset) ||
            (place.bytes != marker && place.bytes != large.bytes) ||
            (place.entries != small_marker && place.entries != large.entries)) {
          fail("the zip's two records of its directory differ");
        }
        place = large;
      }
    }
    if (!one_disk) fail("the zip is split over several disks");
    if (place.bytes > max_directory_bytes) {
      fail("the zip's directory is said to have " + std::to_string(place.bytes) +
           " bytes, more than the " + std::to_string(max_directory_bytes) + " that are allowed");
    }
    if (!in_bounds(place.offset, place.bytes, directory_end) ||
        place.offset + place.bytes != directory_end) {
      fail("the zip's directory is said to be " + std::to_string(place.bytes) +
           " bytes from offset " + std::to_string(place.offset) + ", but its end is at " +
           std::to_string(directory_end));
    }
    if (place.entries > place.bytes / entry_bytes) {
      fail("the zip's directory is said to have " + std::to_string(place.entries) +
           " entries, but only " + std::to_string(place.bytes) + " bytes");
    }
    if (place.entries > max_entries) {
      fail("the zip's directory is said to have " + std::to_string(place.entries) +
           " entries, more than the " + std::to_string(max_entries) + " that are allowed");
    }
    return place;
  }

  [[nodiscard]] directory_place read_end64(std::uint64_t offset) const {
    if (!in_bounds(offset, end64_bytes, file_.size())) {
      fail("the zip64 record is said to be at offset " + std::to_string(offset) +
           ", outside the file's " + std::to_string(file_.size()) + " bytes");
    }
    const auto bytes = read_bytes(offset, end64_bytes);
    const little_endian_reader record(bytes);
    if (record.u32(0) != end64_signature) fail("the zip64 record is not where it is said to be");
    return {record.u64(48), record.u64(40), record.u64(32)};
  }

  void read_directory(const std::vector<std::byte>& bytes) {
    std::span<const std::byte> directory = bytes;
    members_.reserve(static_cast<std::size_t>(place_.entries));
    while (members_.size() < place_.entries) {
      if (directory.size() < entry_bytes)
        fail("the zip's directory ends in the middle of an entry");
      const little_endian_reader entry(directory);
      if (entry.u32(0) != entry_signature) fail("the zip's directory has something else in it");
      const std::size_t name_bytes = entry.u16(28);
      const std::size_t extra_bytes = entry.u16(30);
      const std::size_t all_bytes = entry_bytes + name_bytes + extra_bytes + entry.u16(32);
      if (directory.size() < all_bytes) fail("the zip's directory ends in the middle of an entry");
      members_.push_back(read_entry(entry, text_of(directory.subspan(entry_bytes, name_bytes)),
                                    directory.subspan(entry_bytes + name_bytes, extra_bytes)));
      directory = directory.subspan(all_bytes);
    }
    if (!directory.empty()) {
      fail(std::to_string(directory.size()) + " bytes follow the zip's last entry");
    }
    by_name_.resize(members_.size());
    for (std::size_t i = 0; i < by_name_.size(); ++i) by_name_[i] = i;
    const auto name = [this](std::size_t i) -> std::string_view { return members_[i].name; };
    std::ranges::sort(by_name_, {}, name);
    const auto twice = std::ranges::adjacent_find(by_name_, {}, name);
    if (twice != by_name_.end()) fail(members_[*twice].name, "it is in the zip twice");
  }

  /// One entry; `data_offset` is that of its local header yet.
  [[nodiscard]] zip_member read_entry(const little_endian_reader& entry, std::string name,
                                      std::span<const std::byte> extra) const {
    zip_member member{std::move(name), entry.u32(42), entry.u32(20),
                      entry.u32(24),   entry.u32(16), false};
    read_extra64(extra, member.name, {&member.bytes, &member.stored_bytes, &member.data_offset});
    if ((entry.u16(8) & encrypted_flag) != 0) fail(member.name, "it is encrypted");
    const std::uint16_t method = entry.u16(10);
    member.deflated = method == 8;
    if (method != 0 && !member.deflated) {
      fail(member.name, "it is packed by method " + std::to_string(method) +
                            "; only 0 (stored) and 8 (deflated) can be read");
    }
    if (!member.deflated && member.bytes != member.stored_bytes) {
      fail(member.name, "it is stored as it is, but said to take " +
                            std::to_string(member.stored_bytes) + " bytes and to have " +
                            std::to_string(member.bytes));
    }
    if (member.deflated && member.bytes / max_deflate_ratio > member.stored_bytes) {
      fail(member.name, std::to_string(member.stored_bytes) +
                            " deflated bytes cannot unpack to the " + std::to_string(member.bytes) +
                            " that are claimed");
    }
    return member;
  }

  /// The numbers that did not fit into 32 bits stand in an extra field, in this order.
  void read_extra64(std::span<const std::byte> extra, const std::string& name,
                    const std::array<std::uint64_t*, 3>& numbers) const {
    constexpr std::uint16_t zip64_field = 1;
    if (std::ranges::none_of(numbers, [](const std::uint64_t* n) { return *n == marker; })) return;
    while (extra.size() >= 4) {
      const little_endian_reader field(extra);
      const std::size_t bytes = field.u16(2);
      if (extra.size() < 4 + bytes) break;
      if (field.u16(0) == zip64_field) {
        std::span<const std::byte> left = extra.subspan(4, bytes);
        for (std::uint64_t* number : numbers) {
          if (*number != marker) continue;
          if (left.size() < 8) fail(name, "its zip64 field is too short");
          *number = load_little_endian<std::uint64_t>(left);
          left = left.subspan(8);
        }
        return;
      }
      extra = extra.subspan(4 + bytes);
    }
    // Without such a field the numbers mean what they say.
  }

  /// Replaces each member's `data_offset` by that of its bytes.
  void read_local_headers() {
    headers_.reserve(members_.size());
    for (zip_member& member : members_) {
      const std::uint64_t offset = member.data_offset;
      if (!in_bounds(offset, local_bytes, file_.size())) {
        fail(member.name, "its header is said to be at offset " + std::to_string(offset) +
                              ", outside the file's " + std::to_string(file_.size()) + " bytes");
      }
      std::array<std::byte, local_bytes> fixed;
      file_.read_at(offset, fixed);
      const little_endian_reader header(fixed);
      if (header.u32(0) != zip_local_signature) {
        fail(member.name, "no header is at offset " + std::to_string(offset));
      }
      const std::size_t name_bytes = header.u16(26);
      const std::size_t extra_bytes = header.u16(28);
      const std::uint64_t header_bytes = local_bytes + name_bytes + extra_bytes;
      if (!in_bounds(offset, header_bytes, file_.size())) fail(member.name, "its header is cut");
      const auto rest = read_bytes(offset + local_bytes, name_bytes + extra_bytes);
      check_local(member, header, rest, name_bytes);
      member.data_offset = offset + header_bytes;
      if (!in_bounds(member.data_offset, member.stored_bytes, file_.size())) {
        fail(member.name, "its " + std::to_string(member.stored_bytes) + " bytes from offset " +
                              std::to_string(member.data_offset) + " are not in the file's " +
                              std::to_string(file_.size()));
      }
      headers_.push_back(offset);
    }
  }

  void check_local(const zip_member& member, const little_endian_reader& header,
                   std::span<const std::byte> rest, std::size_t name_bytes) const {
    const auto differ = [&, this](const char* what) {
      fail(member.name, std::string("its header and the zip's directory differ in its ") + what);
    };
    if (text_of(rest.first(name_bytes)) != member.name) differ("name");
    if ((header.u16(8) == 8) != member.deflated || (header.u16(8) != 0 && header.u16(8) != 8)) {
      differ("method");
    }
    if ((header.u16(6) & encrypted_flag) != 0) fail(member.name, "it is encrypted");
    std::uint64_t stored_bytes = header.u32(18);
    std::uint64_t bytes = header.u32(22);
    std::uint64_t no_offset = 0;
    read_extra64(rest.subspan(name_bytes), member.name, {&bytes, &stored_bytes, &no_offset});
    // A writer that could not go back left the numbers for behind the bytes, and zeros here.
    const bool may_be_zero = (header.u16(6) & sizes_follow_flag) != 0;
    const auto agrees = [may_be_zero](std::uint64_t local, std::uint64_t central) {
      return local == central || (may_be_zero && local == 0);
    };
    if (!agrees(stored_bytes, member.stored_bytes) || !agrees(bytes, member.bytes)) differ("size");
    if (!agrees(header.u32(14), member.crc32)) differ("CRC-32");
  }

  void check_overlaps() const {
    std::vector<std::size_t> order = by_name_;
    std::ranges::sort(order, {}, [this](std::size_t i) { return headers_[i]; });
    for (std::size_t i = 0; i < order.size(); ++i) {
      const zip_member& member = members_[order[i]];
      const std::uint64_t end = member.data_offset + member.stored_bytes;
      const bool last = i + 1 == order.size();
      if (end > (last ? place_.offset : headers_[order[i + 1]])) {
        fail(member.name,
             "it overlaps " + (last ? "the zip's directory"
                                    : "member " + in_quotes(members_[order[i + 1]].name)));
      }
    }
  }

  const input_file& file_;
  const directory_place place_;
  std::vector<zip_member> members_;
  std::vector<std::uint64_t> headers_;  // offsets of the members' local headers
  std::vector<std::size_t> by_name_;    // indices of `members_`
};

}  // namespace detail

/// The directory of a zip archive, zip64 included; the members' bytes stay where they are. Format:
/// PKWARE's APPNOTE 6.3.10. It takes what writers of checkpoints write and no more: one disk, no
/// encryption, nothing before the first record, methods 0 (stored) and 8 (deflated).
///
/// Refuses (`format_error`) what readers could understand in two ways, since that hides things: two
/// members of one name, records that overlap, a local header that says something else than the
/// directory; and a deflated member that claims more than deflate can give.
class zip_archive {
 public:
  /// Reads the directory and each member's local header; the file is not kept. Throws `io_error` and
  /// `format_error`.
  explicit zip_archive(const input_file& file) {
    detail::zip_directory_parser parser(file);
    parser.check_members();
    members_ = parser.take_members();
    by_name_ = parser.take_order();
  }

  /// In the directory's order; folders ("data/") among them.
  [[nodiscard]] std::span<const zip_member> members() const noexcept { return members_; }

  /// The member of this name, or nullptr. Valid as long as the archive is.
  [[nodiscard]] const zip_member* find(std::string_view name) const noexcept {
    const auto at = std::ranges::lower_bound(
        by_name_, name, {}, [this](std::size_t i) -> std::string_view { return members_[i].name; });
    return at != by_name_.end() && members_[*at].name == name ? &members_[*at] : nullptr;
  }

  /// The members' names by the directory alone, for who only wants to know whose a zip is. Throws as
  /// the constructor does.
  [[nodiscard]] static std::vector<std::string> names(const input_file& file) {
    std::vector<std::string> names;
    for (zip_member& member : detail::zip_directory_parser(file).take_members()) {
      names.push_back(std::move(member.name));
    }
    return names;
  }

  /// Whether a file begins like a zip archive: with a member or, where there is none, the end.
  [[nodiscard]] static bool matches(std::span<const std::byte> head) noexcept {
    if (head.size() < 4) return false;
    const detail::little_endian_reader header(head);
    if (header.u32(0) == detail::zip_end_signature) return true;
    // A safetensors file begins so too if its header has 67,324,752 bytes. There the text stands
    // where a zip has the number of its method, none of which has a second byte.
    constexpr std::size_t method_offset = 8;
    return header.u32(0) == detail::zip_local_signature &&
           (head.size() < method_offset + 2 || header.u16(method_offset) <= 0xFF);
  }

 private:
  std::vector<zip_member> members_;
  std::vector<std::size_t> by_name_;  // indices of `members_`
};

}  // namespace vggload
