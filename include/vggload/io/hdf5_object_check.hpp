// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>

namespace vggload::detail {

/// The part of a file that is an HDF5 file.
struct hdf5_place {
  std::uint64_t offset;
  std::uint64_t bytes;
};

/// A name for each class of types, by its number.
[[nodiscard]] inline std::string hdf5_class_name(std::size_t kind) {
  constexpr std::array<std::string_view, 12> names{"integer",  "float",  "time",     "string",
                                                   "bitfield", "opaque", "compound", "reference",
                                                   "enum",     "vlen",   "array",    "complex"};
  return std::string(kind < names.size() ? names[kind] : "unknown");
}

/// What an object's header says of it, for those that libhdf5 is too old for.
struct hdf5_description {
  bool too_new = false;     // libhdf5 cannot open it
  bool is_dataset = false;  // and no type with a name
  std::vector<std::uint64_t> dims = {};
  bool has_no_place = false;  // for elements: H5S_NULL
  std::string type = {};      // "F32", "BOOL", "compound"
  bool is_number = false;
  bool is_external = false;
  bool is_virtual = false;
  /// Of all elements, where they lie in one piece as they are.
  std::optional<hdf5_place> place = {};
};

/// A look at an object's header before libhdf5 opens the object: up to 1.12 it copies what numbers
/// in there claim and divides by them, and even 1.14 follows a list of free places for ever. Checks
/// those that were seen to end a process; the rest is for libhdf5 to judge. Format: "HDF5 File
/// Format Specification 3.0", IV.A.
class hdf5_object_check {
 public:
  /// `place` begins with the signature; `newest_layout` and `newest_type` are the last versions of
  /// the messages on a dataset's layout and type that libhdf5 knows (what it does not know it
  /// refuses, but leaks memory).
  hdf5_object_check(const mapped_file& file, hdf5_place place, unsigned newest_layout,
                    unsigned newest_type)
      : file_(file), place_(place), newest_layout_(newest_layout), newest_type_(newest_type) {}

  /// The address of the root group's header; none where offsets and lengths are not of 8 bytes, as
  /// all writers of today have them and all else here takes for granted.
  [[nodiscard]] std::optional<std::uint64_t> root() const {
    constexpr std::size_t most_bytes = 76;
    const auto bytes = bytes_at(0, std::min<std::uint64_t>(most_bytes, place_.bytes));
    if (bytes.size() < 48) return std::nullopt;
    const auto version = std::to_integer<unsigned>(bytes[8]);
    const std::size_t sizes_at = version < 2 ? 13 : 9;
    if (bytes[sizes_at] != std::byte{8} || bytes[sizes_at + 1] != std::byte{8}) return std::nullopt;
    const std::size_t root_at = version == 0 ? 64 : version == 1 ? 68 : 36;
    return body(std::span(bytes).subspan(std::min(root_at, bytes.size()))).number(8);
  }

  /// Whether libhdf5 may be shown the object with a header at this address. Throws `io_error`.
  [[nodiscard]] bool is_sound(std::uint64_t address, std::uint64_t& bytes_left) const {
    return describe(address, bytes_left).has_value();
  }

  /// Nothing where `is_sound` is false. What is `too_new` libhdf5 need not be shown. Takes what it
  /// reads off `bytes_left`, which is 0 where that was not enough. Throws `io_error`.
  [[nodiscard]] std::optional<hdf5_description> describe(std::uint64_t address,
                                                         std::uint64_t& bytes_left) const {
    object found;
    found.bytes_left = &bytes_left;
    if (!check_header(address, found)) return std::nullopt;
    // A chunk has the elements' size as one more axis.
    if (found.chunk_rank && found.rank && *found.chunk_rank != *found.rank + 1) return std::nullopt;
    if (found.named_type && !check_header(*found.named_type, found)) return std::nullopt;
    // libhdf5 takes the elements' size for the fill value's.
    if (found.fill_bytes && found.fill_bytes != found.type_bytes) return std::nullopt;
    if (found.names && !check_names(*found.names)) return std::nullopt;
    return std::move(found.description);
  }

  /// The texts of an object's attribute `name`, or of `name`0, `name`1, ... into which Keras splits
  /// what is longer than a header's message may be. Nothing where there is no such attribute, or it
  /// is not a list of texts, or its parts are not all there. Attributes outside the object's header
  /// (more than 8, in files that are not of HDF5's oldest form) are not looked for. Takes what it
  /// reads off `bytes_left`, and gives up where that is not enough. Throws `io_error`.
  [[nodiscard]] std::optional<std::vector<std::string>> texts(std::uint64_t address,
                                                              std::string_view name,
                                                              std::uint64_t& bytes_left) const {
    object found;
    found.bytes_left = &bytes_left;
    found.texts = text_lists{name, &bytes_left, {}, {}, {}, {}};
    if (!check_header(address, found)) return std::nullopt;
    auto& parts = found.texts->parts;
    if (parts.empty()) return std::nullopt;
    std::ranges::sort(parts, {}, &text_lists::part::number);
    if (parts.front().number != text_lists::whole) {
      for (std::size_t i = 0; i < parts.size(); ++i) {
        if (parts[i].number != static_cast<std::int64_t>(i)) return std::nullopt;
      }
    } else if (parts.size() > 1) {
      return std::nullopt;
    }
    std::vector<std::string> all;
    for (auto& part : parts) {
      if (!part.texts) return std::nullopt;
      std::ranges::move(*part.texts, std::back_inserter(all));
    }
    return all;
  }

 private:
  /// Where a block has its messages, and a message its parts.
  struct message_layout {
    std::size_t header_bytes;
    std::size_t block_head;  // bytes of a further block before its first message
    std::size_t block_tail;  // and behind its last one
    bool small_type;         // one byte, not two
  };
  struct block {
    std::uint64_t address;
    std::uint64_t bytes;
  };
  /// Attributes that are looked for.
  struct text_lists {
    static constexpr std::int64_t whole = -1;
    struct part {
      std::int64_t number;
      std::optional<std::vector<std::string>> texts;  // none where they are none
    };
    std::string_view name;
    std::uint64_t* bytes_left;
    std::vector<part> parts;
    // The heap that was last read, where texts of any length are.
    std::optional<std::uint64_t> heap_address;
    std::vector<std::byte> heap;
    std::vector<std::span<const std::byte>> heap_objects;
  };
  /// What is gathered from all messages of an object.
  struct object {
    hdf5_description description = {};
    std::uint64_t* bytes_left = nullptr;
    std::span<const std::byte> block = {};  // the one that is looked at, and where it is
    std::uint64_t block_address = 0;
    std::optional<text_lists> texts = {};
    std::optional<std::uint64_t> rank = {};
    std::optional<std::uint64_t> chunk_rank = {};
    std::optional<std::uint64_t> type_bytes = {};  // of an element
    std::optional<std::uint64_t> named_type = {};  // address of its header
    std::optional<std::uint64_t> fill_bytes = {};  // of what stands for elements never written
    std::optional<std::uint64_t> names = {};       // address of the heap with a group's names
  };

  /// A message's body, taken from its start on.
  class body {
   public:
    explicit body(std::span<const std::byte> bytes) : left_(bytes) {}
    [[nodiscard]] bool has(std::uint64_t bytes) const { return bytes <= left_.size(); }
    [[nodiscard]] std::span<const std::byte> left() const { return left_; }
    /// False where fewer are left.
    bool skip(std::uint64_t bytes) {
      if (!has(bytes)) return false;
      left_ = left_.subspan(static_cast<std::size_t>(bytes));
      return true;
    }
    /// The next little-endian number of up to 8 bytes, if it is there.
    std::optional<std::uint64_t> number(std::size_t bytes) {
      if (!has(bytes)) return std::nullopt;
      std::uint64_t value = 0;
      std::memcpy(&value, left_.data(), bytes);
      skip(bytes);
      return value;
    }

   private:
    std::span<const std::byte> left_;
  };

  /// Empty where they are not in the file.
  [[nodiscard]] std::vector<std::byte> bytes_at(std::uint64_t address, std::uint64_t count) const {
    if (!in_bounds(address, count, place_.bytes)) return {};
    std::vector<std::byte> bytes(static_cast<std::size_t>(count));
    file_.read_at(place_.offset + address, bytes);
    return bytes;
  }

  [[nodiscard]] bool check_header(std::uint64_t address, object& found) const {
    const auto start = bytes_at(address, 16);
    if (start.empty()) return false;
    if (text_of(std::span(start).first(4)) == "OHDR") return check_version_2(address, start, found);
    if (start[0] != std::byte{1}) return false;
    const std::uint32_t bytes = little_endian_reader(start).u32(8);
    return check_blocks({address + 16, bytes}, message_layout{8, 0, 0, false}, found);
  }

  [[nodiscard]] bool check_version_2(std::uint64_t address, std::span<const std::byte> start,
                                     object& found) const {
    constexpr unsigned with_order = 0x04;
    constexpr unsigned with_limits = 0x10;
    constexpr unsigned with_times = 0x20;
    const auto flags = std::to_integer<unsigned>(start[5]);
    const std::uint64_t size_at =
        address + 6 + ((flags & with_times) != 0 ? 16 : 0) + ((flags & with_limits) != 0 ? 4 : 0);
    const std::size_t size_bytes = std::size_t{1} << (flags & 3U);
    const auto size = body(bytes_at(size_at, size_bytes)).number(size_bytes);
    const std::size_t header_bytes = (flags & with_order) != 0 ? 6 : 4;
    return size && check_blocks({size_at + size_bytes, *size},
                                message_layout{header_bytes, 4, 4, true}, found);
  }

  [[nodiscard]] bool check_blocks(block first, const message_layout& layout, object& found) const {
    // A message has at most 64 KiB, and Keras writes three lists of names.
    std::uint64_t bytes_left = std::uint64_t{4} << 20U;
    std::vector<block> blocks{first};
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].bytes > bytes_left) return false;
      bytes_left -= blocks[i].bytes;
      if (!take(blocks[i].bytes, *found.bytes_left)) return false;
      const auto bytes = bytes_at(blocks[i].address, blocks[i].bytes);
      std::span<const std::byte> messages = bytes;
      found.block = bytes;
      found.block_address = blocks[i].address;
      if (i > 0) {
        if (messages.size() < layout.block_head + layout.block_tail) return false;
        messages = messages.subspan(layout.block_head);
        messages = messages.first(messages.size() - layout.block_tail);
      }
      if (!check_messages(messages, layout, found, blocks)) return false;
    }
    return true;
  }

  [[nodiscard]] bool check_messages(std::span<const std::byte> messages,
                                    const message_layout& layout, object& found,
                                    std::vector<block>& blocks) const {
    constexpr unsigned shared_flag = 2;
    constexpr unsigned further_block = 0x10;
    while (messages.size() >= layout.header_bytes) {
      const little_endian_reader header(messages);
      const unsigned type =
          layout.small_type ? std::to_integer<unsigned>(messages[0]) : header.u16(0);
      const std::size_t bytes = layout.small_type ? header.u16(1) : header.u16(2);
      const auto flags = std::to_integer<unsigned>(messages[layout.small_type ? 3 : 4]);
      messages = messages.subspan(layout.header_bytes);
      if (bytes > messages.size()) return false;
      body message(messages.first(bytes));
      if ((flags & shared_flag) != 0) {
        if (!check_shared(type, message, found)) return false;
      } else if (type == further_block) {
        const auto address = message.number(8);
        const auto size = message.number(8);
        if (!size) return false;
        blocks.push_back({*address, *size});
      } else if (!check_message(type, message, found)) {
        return false;
      }
      messages = messages.subspan(bytes);
    }
    return true;
  }

  /// A message that is elsewhere. Types that have a name are; no writer has others without being
  /// asked to.
  [[nodiscard]] static bool check_shared(unsigned type, body message, object& found) {
    constexpr std::array must_be_here{0x01U, 0x04U, 0x05U, 0x06U, 0x08U, 0x10U, 0x11U};
    if (std::ranges::find(must_be_here, type) != must_be_here.end()) return false;
    constexpr unsigned element_type = 0x03;
    if (type != element_type) return true;
    const auto version = message.number(1);
    return message.skip(version == 1U ? 7 : 1) && set(found.named_type, message.number(8));
  }

  [[nodiscard]] bool check_message(unsigned type, body message, object& found) const {
    switch (type) {
      case 0x01: return check_space(message, found);
      case 0x03: return check_type(message, found);
      case 0x04: return check_sized(message, found.fill_bytes);
      case 0x05: return check_fill_value(message, found);
      case 0x06: return check_link(message);
      case 0x07: found.description.is_external = true; return true;
      case 0x08: return check_layout(message, found);
      case 0x0B: return check_filters(message);
      case 0x0C:
        if (found.texts) add_texts(message, *found.texts);
        return true;
      case 0x11:
        // Behind where its links are.
        return message.skip(8) && set(found.names, message.number(8));
      default: return true;
    }
  }

  [[nodiscard]] static bool check_space(body message, object& found) {
    const auto version = message.number(1);
    if (!set(found.rank, message.number(1)) || !message.skip(1)) return false;
    hdf5_description& description = found.description;
    description.dims.clear();
    if (version == 1U) {
      if (!message.skip(5)) return false;
    } else {
      constexpr unsigned no_place = 2;
      description.has_no_place = message.number(1) == no_place;
    }
    constexpr std::uint64_t max_rank = 32;
    // What does not fit is for libhdf5 to refuse.
    if (*found.rank > max_rank || !message.has(8 * *found.rank)) return true;
    for (std::uint64_t i = 0; i < *found.rank; ++i) {
      description.dims.push_back(*message.number(8));
    }
    return true;
  }

  /// An enumeration's values are copied whole. Of the other types, no trouble was seen.
  [[nodiscard]] bool check_type(body message, object& found) const {
    constexpr unsigned enumeration = 8;
    const auto head = message.number(4);
    const auto size = message.number(4);
    if (!set(found.type_bytes, size)) return false;
    const std::uint64_t version = *head >> 4U & 0x0FU;
    const std::uint64_t count = *head >> 8U & 0xFFFFU;
    found.description.too_new = found.description.too_new || version > newest_type_;
    name_type(*head, *size, message, found.description);
    if ((*head & 0x0FU) != enumeration) return true;
    const auto base = message.number(4);
    const auto base_bytes = message.number(4);
    constexpr unsigned integer = 0;
    if (!base_bytes || (*base & 0x0FU) != integer || *base_bytes != *size) return false;
    if (!message.skip(4)) return false;  // the integer's offset and precision
    const std::string members("FALSE\0TRUE\0\0\1", 13);
    // As h5py writes a bool from version 3 on.
    if (version >= 3 && count == 2 && *size == 1 && message.has(members.size()) &&
        text_of(message.left().first(members.size())) == members) {
      found.description.type = "BOOL";
      found.description.is_number = true;
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto end = std::ranges::find(message.left(), std::byte{0});
      const auto name_bytes = static_cast<std::uint64_t>(end - message.left().begin()) + 1;
      // Before version 3 names fill a multiple of 8 bytes.
      if (!message.skip(version < 3 ? (name_bytes + 7) / 8 * 8 : name_bytes)) return false;
    }
    return message.has(count * *base_bytes);
  }

  static void name_type(std::uint64_t head, std::uint64_t size, body properties,
                        hdf5_description& description) {
    constexpr unsigned integer = 0;
    constexpr unsigned floating = 1;
    const auto kind = static_cast<std::size_t>(head & 0x0FU);
    description.is_number = kind == integer || kind == floating;
    description.type = hdf5_class_name(kind);
    if (!description.is_number || size > 8) return;
    const std::string bits = std::to_string(8 * size);
    if (kind == integer) {
      constexpr std::uint64_t with_sign = 0x0800;
      description.type = ((head & with_sign) != 0 ? "I" : "U") + bits;
    } else {
      // Behind offset, precision and the exponent's place.
      const auto exponent_bits = properties.skip(5) ? properties.number(1) : std::nullopt;
      description.type = (size == 2 && exponent_bits == 8U ? "BF" : "F") + bits;
    }
  }

  /// False without a value, or if an earlier message had another.
  [[nodiscard]] static bool set(std::optional<std::uint64_t>& value,
                                std::optional<std::uint64_t> found) {
    if (!found || (value && value != found)) return false;
    value = found;
    return true;
  }

  /// A length of 4 bytes, which is set unless it is 0 or undefined, and as many bytes.
  [[nodiscard]] static bool check_sized(body message, std::optional<std::uint64_t>& bytes) {
    const auto size = message.number(4);
    constexpr std::uint64_t undefined = 0xFFFFFFFFU;
    if (!size || *size == 0 || *size == undefined) return size.has_value();
    return message.has(*size) && set(bytes, size);
  }

  [[nodiscard]] static bool check_fill_value(body message, object& found) {
    const auto version = message.number(1);
    if (version == 3U) {
      const auto flags = message.number(1);
      return flags && ((*flags & 0x20U) == 0 || check_sized(message, found.fill_bytes));
    }
    if (!message.skip(2)) return false;  // when space is taken, and when it is filled
    const auto defined = message.number(1);
    return defined && ((version == 2U && *defined == 0) || check_sized(message, found.fill_bytes));
  }

  /// A group whose links are not all understood is given up in the middle.
  [[nodiscard]] static bool check_link(body message) {
    const auto version = message.number(1);
    const auto flags = message.number(1);
    if (version != 1U || !flags || *flags > 0x1FU) return false;
    std::uint64_t type = 0;
    if ((*flags & 0x08U) != 0) {
      const auto given = message.number(1);
      if (!given) return false;
      type = *given;
    }
    if ((*flags & 0x04U) != 0 && !message.skip(8)) return false;  // order of creation
    if ((*flags & 0x10U) != 0) {
      const auto character_set = message.number(1);
      if (!character_set || *character_set > 1) return false;
    }
    const auto name_bytes = message.number(std::size_t{1} << (*flags & 3U));
    if (!name_bytes || *name_bytes == 0 || !message.skip(*name_bytes)) return false;
    if (type == 0) return message.has(8);
    const auto value_bytes = message.number(2);
    return (type == 1 || type >= 64) && value_bytes && *value_bytes > 0 &&
           message.has(*value_bytes);
  }

  [[nodiscard]] bool check_layout(body message, object& found) const {
    constexpr unsigned compact = 0;
    constexpr unsigned chunked = 2;
    const auto version = message.number(1);
    hdf5_description& description = found.description;
    description.is_dataset = true;
    if (version > newest_layout_) {
      description.too_new = true;
      return true;
    }
    std::optional<std::uint64_t> rank;
    std::optional<std::uint64_t> kind;
    std::uint64_t dim_bytes = 4;
    if (version < 3U) {
      rank = message.number(1);
      kind = message.number(1);
      if (!message.skip(kind == compact ? 5 : 13)) return false;
    } else {
      kind = message.number(1);
      if (kind == compact) {
        const auto size = message.number(2);
        if (!size || !message.has(*size)) return false;
        const auto skipped = message.left().data() - found.block.data();
        description.place = {found.block_address + static_cast<std::uint64_t>(skipped), *size};
        return true;
      }
      description.is_virtual = kind == 3U;
      if (kind != chunked) {
        const auto address = message.number(8);
        const auto size = message.number(8);
        if (kind == 1U && size) description.place = {*address, *size};
        return kind.has_value();
      }
      if (version > 3U && !message.skip(1)) return false;  // flags
      rank = message.number(1);
      if (version == 3U) {
        if (!message.skip(8)) return false;
      } else {
        dim_bytes = message.number(1).value_or(0);
      }
    }
    constexpr std::uint64_t max_rank = 33;
    if (!rank || *rank > max_rank || dim_bytes < 1 || dim_bytes > 8) return false;
    if (kind == chunked && !set(found.chunk_rank, rank)) return false;
    for (std::uint64_t i = 0; i < *rank; ++i) {
      const auto dim = message.number(static_cast<std::size_t>(dim_bytes));
      if (!dim || (kind == chunked && *dim == 0)) return false;
    }
    std::optional<std::uint64_t> stored;
    return kind != compact || check_sized(message, stored);
  }

  /// The end of a filter's name is looked for behind its message.
  [[nodiscard]] static bool check_filters(body message) {
    constexpr std::uint64_t first_with_name = 256;
    const auto version = message.number(1);
    const auto count = message.number(1);
    if (!count || (version == 1U && !message.skip(6))) return false;
    for (std::uint64_t i = 0; i < *count; ++i) {
      const auto filter = message.number(2);
      const bool named = version == 1U || filter >= first_with_name;
      const auto name_bytes = named ? message.number(2) : 0;
      if (!name_bytes || !message.skip(2)) return false;  // its flags
      const auto value_count = message.number(2);
      if (!value_count || !message.has(*name_bytes)) return false;
      const auto name = message.left().first(static_cast<std::size_t>(*name_bytes));
      if (!name.empty() && std::ranges::find(name, std::byte{0}) == name.end()) return false;
      message.skip(name.size());
      // Version 1 fills multiples of 8 bytes.
      const std::uint64_t words = *value_count + (version == 1U ? *value_count % 2 : 0);
      if (!message.skip(4 * words)) return false;
    }
    return true;
  }

  [[nodiscard]] static bool take(std::uint64_t bytes, std::uint64_t& bytes_left) {
    const bool enough = bytes <= bytes_left;
    bytes_left = enough ? bytes_left - bytes : 0;
    return enough;
  }

  /// An attribute: its name, a type, a shape and the elements, IV.A.2.m.
  void add_texts(body message, text_lists& lists) const {
    const auto version = message.number(1);
    const auto flags = message.number(1);
    const auto name_bytes = message.number(2);
    const auto type_bytes = message.number(2);
    const auto space_bytes = message.number(2);
    if (!space_bytes || version < 1U || version > 3U) return;
    if (version == 3U && !message.skip(1)) return;  // the name's character set
    const auto next = [&](std::uint64_t bytes) -> std::optional<body> {
      if (!message.has(bytes)) return std::nullopt;
      const body part(message.left().first(static_cast<std::size_t>(bytes)));
      // Version 1 fills multiples of 8 bytes.
      message.skip(std::min<std::uint64_t>(version == 1U ? (bytes + 7) / 8 * 8 : bytes,
                                           message.left().size()));
      return part;
    };
    const auto name = next(*name_bytes);
    if (!name) return;
    const std::string text = text_of(name->left());
    std::string_view suffix(text.c_str());
    if (!suffix.starts_with(lists.name)) return;
    suffix.remove_prefix(lists.name.size());
    text_lists::part part{text_lists::whole, {}};
    if (!suffix.empty()) {
      const auto end = suffix.data() + suffix.size();
      const auto [rest, error] = std::from_chars(suffix.data(), end, part.number);
      if (error != std::errc() || rest != end || part.number < 0) return;
    }
    const auto type = next(*type_bytes);
    const auto space = next(*space_bytes);
    // Types and shapes that are elsewhere have no place in such a list.
    if (type && space && (version == 1U || flags == 0U)) {
      part.texts = read_texts(*type, *space, message, lists);
    }
    lists.parts.push_back(std::move(part));
  }

  [[nodiscard]] std::optional<std::vector<std::string>> read_texts(body type, body space, body data,
                                                                   text_lists& lists) const {
    constexpr std::uint64_t most_texts = 32'768;
    const auto version = space.number(1);
    const auto rank = space.number(1);
    if (!rank || *rank > 1 || !space.skip(version == 1U ? 5 : 1)) return std::nullopt;
    constexpr unsigned no_element = 2;  // in version 2
    const bool is_null = version == 2U && space.number(1) == no_element;
    if (version != 2U && !space.skip(1)) return std::nullopt;
    const auto count = *rank == 0 ? std::optional<std::uint64_t>(is_null ? 0 : 1) : space.number(8);
    if (!count || *count > most_texts) return std::nullopt;
    std::vector<std::string> texts;
    // What has no element has any type: a list that is empty, Python's [], is one of float64.
    if (*count == 0) return texts;

    constexpr unsigned string = 3;
    constexpr unsigned any_length = 9;
    constexpr unsigned filled_with_blanks = 2;
    const auto head = type.number(4);
    const auto size = type.number(4);
    if (!size || *size == 0) return std::nullopt;
    const std::uint64_t kind = *head & 0x0FU;
    const std::uint64_t filling = *head >> 8U & 0x0FU;
    if (*size > data.left().size() / *count) return std::nullopt;
    // Of any length: the text's length and where it is, in a heap.
    if (kind != string && (kind != any_length || filling != 1 || *size != 16)) return std::nullopt;
    for (std::uint64_t i = 0; i < *count; ++i) {
      std::string text;
      if (kind == string) {
        text = text_of(data.left().first(static_cast<std::size_t>(*size)));
        text.resize(std::min(text.find('\0'), text.size()));
        if (filling == filled_with_blanks) text.resize(text.find_last_not_of(' ') + 1);
        data.skip(*size);
      } else {
        const auto bytes = data.number(4);
        const auto heap = data.number(8);
        const auto index = data.number(4);
        const auto stored = heap_object(*heap, *index, lists);
        if (*bytes > stored.size() || !take(*bytes, *lists.bytes_left)) return std::nullopt;
        text = text_of(stored.first(static_cast<std::size_t>(*bytes)));
        text.resize(std::min(text.find('\0'), text.size()));
      }
      texts.push_back(std::move(text));
    }
    return texts;
  }

  /// A text in a global heap, III.E; empty where there is none.
  [[nodiscard]] std::span<const std::byte> heap_object(std::uint64_t address, std::uint64_t index,
                                                       text_lists& lists) const {
    if (lists.heap_address != address) {
      lists.heap_address.reset();
      lists.heap_objects.clear();
      const auto head = bytes_at(address, 16);
      if (head.empty() || text_of(std::span(head).first(4)) != "GCOL") return {};
      const std::uint64_t bytes = little_endian_reader(head).u64(8);
      if (!take(bytes, *lists.bytes_left)) return {};
      lists.heap = bytes_at(address, bytes);
      lists.heap_address = address;
      body objects(lists.heap);
      if (!objects.skip(16)) return {};
      while (objects.has(16)) {
        const auto number = objects.number(2);
        objects.skip(6);
        const auto size = objects.number(8);
        // The free rest has no number.
        if (*number == 0 || !objects.has(*size)) break;
        if (lists.heap_objects.size() <= *number) {
          lists.heap_objects.resize(static_cast<std::size_t>(*number) + 1);
        }
        lists.heap_objects[static_cast<std::size_t>(*number)] =
            objects.left().first(static_cast<std::size_t>(*size));
        objects.skip(std::min<std::uint64_t>((*size + 7) / 8 * 8, objects.left().size()));
      }
    }
    if (index >= lists.heap_objects.size()) return {};
    return lists.heap_objects[static_cast<std::size_t>(index)];
  }

  /// A heap's free places are a list in it; one that does not end fills the memory.
  [[nodiscard]] bool check_names(std::uint64_t address) const {
    constexpr std::uint64_t end = 1;
    const auto head = bytes_at(address, 32);
    if (head.empty()) return false;
    const little_endian_reader heap(head);
    const std::uint64_t bytes = heap.u64(8);
    constexpr std::uint64_t most_bytes = std::uint64_t{8} << 20U;
    if (text_of(std::span(head).first(4)) != "HEAP" || bytes > most_bytes) return false;
    const auto names = bytes_at(heap.u64(24), bytes);
    std::uint64_t free = heap.u64(16);
    for (std::uint64_t left = bytes / 16; free != end; --left) {
      if (left == 0 || !in_bounds(free, 16, names.size())) return false;
      free = little_endian_reader(std::span(names).subspan(static_cast<std::size_t>(free))).u64(0);
    }
    return true;
  }

  const mapped_file& file_;
  hdf5_place place_;
  unsigned newest_layout_;
  unsigned newest_type_;
};

}  // namespace vggload::detail
