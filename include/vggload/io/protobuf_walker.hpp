// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <protozero/exception.hpp>
#include <protozero/types.hpp>
#include <protozero/varint.hpp>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/file_window.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/little_endian.hpp>

namespace vggload::detail {

/// One field of a protobuf message: what its tag says, and where in the file its value lies.
struct protobuf_field {
  std::uint32_t number;
  protozero::pbf_wire_type type;
  std::uint64_t value;  // of a varint
  std::uint64_t begin;  // of the value, behind the length of one that has a length
  std::uint64_t end;

  [[nodiscard]] std::uint64_t bytes() const noexcept { return end - begin; }
};

/// Walks messages in the protobuf wire format where they lie in a file: a field's value is read
/// only if somebody wants it, so a payload of any size costs nothing. (`protozero::pbf_reader`
/// wants the whole message in memory, or in a mapping, which must not be touched; and takes lengths
/// of up to 32 bits only.) Format: https://protobuf.dev/programming-guides/encoding.
///
/// A message is walked so, any number of them at a time:
///
///   for (std::uint64_t position = begin; position < end;) {
///     const protobuf_field field = walker.next(position, end);
///     ...
///   }
///
/// All positions are offsets in the file, in which the messages must lie. Throws `format_error` for
/// what is no message, and `io_error`.
class protobuf_walker {
 public:
  /// `window_bytes` are read at a time; at least 10, what a varint can have.
  protobuf_walker(const input_file& file, std::size_t window_bytes)
      : file_(&file), window_bytes_(window_bytes), window_(file, window_bytes) {}

  /// The field at `position` of a message that ends at `end`, and moves on behind it.
  [[nodiscard]] protobuf_field next(std::uint64_t& position, std::uint64_t end) {
    using protozero::pbf_wire_type;
    const std::uint64_t start = position;
    const std::uint64_t tag = varint(position, end);
    if (tag > UINT32_MAX || tag >> 3U == 0) {
      fail(start, "no field begins with the number " + std::to_string(tag));
    }
    protobuf_field field{static_cast<std::uint32_t>(tag >> 3U),
                         static_cast<pbf_wire_type>(tag & 7U), 0, position, position};
    std::uint64_t bytes = 0;
    switch (field.type) {
      case pbf_wire_type::varint:
        field.value = varint(position, end);
        field.end = position;
        return field;
      case pbf_wire_type::fixed32: bytes = 4; break;
      case pbf_wire_type::fixed64: bytes = 8; break;
      case pbf_wire_type::length_delimited:
        bytes = varint(position, end);
        field.begin = position;
        break;
      default:
        fail(start, "field " + std::to_string(field.number) + " has the unknown wire type " +
                        std::to_string(tag & 7U));
    }
    if (!in_bounds(position, bytes, end)) {
      fail(start, "field " + std::to_string(field.number) + " has " + std::to_string(bytes) +
                      " bytes, but only " + std::to_string(end - position) + " are left");
    }
    position += bytes;
    field.end = position;
    return field;
  }

  /// The varint at `position`, which ends before `end`; moves on behind it.
  [[nodiscard]] std::uint64_t varint(std::uint64_t& position, std::uint64_t end) {
    std::uint64_t value = 0;
    varints(position, end, 1, [&value](std::uint64_t found) { value = found; });
    return value;
  }

  /// Calls `on_number(value)` for the varints from `position` on, at least one and at most `most`,
  /// as many as the window has; moves on behind them. Returns how many.
  template <class OnNumber>
  std::uint64_t varints(std::uint64_t& position, std::uint64_t end, std::uint64_t most,
                        OnNumber&& on_number) {
    const std::uint64_t left = end - position;
    const auto bytes = window_.from(
        position, static_cast<std::size_t>(std::min<std::uint64_t>(longest_varint, left)));
    const char* const begin = reinterpret_cast<const char*>(bytes.data());
    const char* const stop = begin + std::min<std::uint64_t>(bytes.size(), left);
    const char* at = begin;
    std::uint64_t count = 0;
    try {
      do {
        on_number(protozero::decode_varint(&at, stop));
        ++count;
      } while (count < most && static_cast<std::size_t>(stop - at) >= longest_varint);
    } catch (const protozero::exception&) {
      fail(position + static_cast<std::uint64_t>(at - begin),
           "a number that has no end within its message, or more than 10 bytes");
    }
    position += static_cast<std::uint64_t>(at - begin);
    return count;
  }

  /// The number at `position` in little-endian bytes, which end before `end`; moves on behind it.
  template <std::unsigned_integral T>
  [[nodiscard]] T fixed(std::uint64_t& position, std::uint64_t end) {
    if (!in_bounds(position, sizeof(T), end)) fail(position, "a number that is cut");
    const T value = load_little_endian<T>(window_.from(position, sizeof(T)));
    position += sizeof(T);
    return value;
  }

  /// The text of a field; the caller has checked its length.
  [[nodiscard]] std::string text(const protobuf_field& field) {
    const auto count = static_cast<std::size_t>(field.bytes());
    if (count <= window_bytes_) return text_of(window_.from(field.begin, count).first(count));
    std::string out(count, '\0');
    file_->read_at(field.begin, std::as_writable_bytes(std::span(out)));
    return out;
  }

 private:
  static constexpr std::size_t longest_varint = protozero::max_varint_length;

  [[noreturn]] void fail(std::uint64_t position, const std::string& what) const {
    throw format_error(printable(file_->path()) + ": at byte " + std::to_string(position) + ": " +
                       what);
  }

  const input_file* file_;
  std::size_t window_bytes_;
  file_window window_;
};

}  // namespace vggload::detail
