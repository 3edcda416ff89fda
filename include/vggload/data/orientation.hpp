// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include <vggload/core/checked.hpp>
#include <vggload/data/decoded_rows.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload::detail {

/// Numbers within bytes from a file, in either order.
class image_bytes {
 public:
  explicit image_bytes(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
  [[nodiscard]] bool has(std::uint64_t offset, std::uint64_t count) const noexcept {
    return in_bounds(offset, count, bytes_.size());
  }
  /// `offset` and what is read must be within.
  [[nodiscard]] std::uint8_t u8(std::size_t offset) const noexcept {
    return static_cast<std::uint8_t>(bytes_[offset]);
  }
  [[nodiscard]] std::uint32_t little(std::size_t offset, std::size_t count) const noexcept {
    std::uint32_t value = 0;
    for (std::size_t i = count; i-- > 0;) value = value << 8U | u8(offset + i);
    return value;
  }
  [[nodiscard]] std::uint32_t big(std::size_t offset, std::size_t count) const noexcept {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < count; ++i) value = value << 8U | u8(offset + i);
    return value;
  }
  [[nodiscard]] bool starts_with(std::string_view text, std::size_t offset = 0) const noexcept {
    return has(offset, text.size()) &&
           std::memcmp(bytes_.data() + offset, text.data(), text.size()) == 0;
  }
  [[nodiscard]] image_bytes part(std::size_t offset, std::size_t count) const noexcept {
    return image_bytes(bytes_.subspan(offset, count));
  }
  [[nodiscard]] const std::uint8_t* data() const noexcept {
    return reinterpret_cast<const std::uint8_t*>(bytes_.data());
  }

 private:
  std::span<const std::byte> bytes_;
};

/// The orientation, 1 to 8, that EXIF data ask for (tag 0x0112 of the first directory); 1 where they do
/// not, or are damaged. `exif` begins at the TIFF header ("Exif Version 2.32", CIPA DC-008, 4.5 and 4.6.4).
[[nodiscard]] inline unsigned orientation_of(image_bytes exif) noexcept {
  const bool little = exif.starts_with({"II*\0", 4});
  if (!exif.has(0, 8) || (!little && !exif.starts_with({"MM\0*", 4}))) return 1;
  const auto number = [exif, little](std::size_t offset, std::size_t count) {
    return little ? exif.little(offset, count) : exif.big(offset, count);
  };
  const std::size_t directory = number(4, 4);
  if (!exif.has(directory, 2)) return 1;
  const std::size_t entries = number(directory, 2);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + i * 12;
    if (!exif.has(entry, 12)) return 1;
    if (number(entry, 2) != 0x0112) continue;
    const bool is_short = number(entry + 2, 2) == 3 && number(entry + 4, 4) == 1;
    const std::uint32_t value = is_short ? number(entry + 8, 2) : 1;
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

/// Whether an orientation exchanges height and width.
[[nodiscard]] constexpr bool is_transposed(unsigned orientation) noexcept {
  return orientation >= 5;
}

/// The image as `orientation` asks to show it, in a new piece of `memory`; for 1 the image itself.
[[nodiscard]] inline image_view oriented(const image_view& image, unsigned orientation,
                                         scratch& memory) {
  if (orientation == 1) return image;
  const bool transposed = is_transposed(orientation);
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const image_size size =
      transposed ? image_size{image.width, image.height} : image_size{image.height, image.width};
  const decoded_rows rows(size, image.channels, memory);
  for (std::size_t y = 0; y < size.height; ++y) {
    for (std::size_t x = 0; x < size.width; ++x) {
      const std::size_t column = transposed ? y : x;
      const std::size_t line = transposed ? x : y;
      std::copy_n(image.row(from_bottom ? image.height - 1 - line : line) +
                      (from_right ? image.width - 1 - column : column) * image.channels,
                  image.channels, rows.row(y) + x * image.channels);
    }
  }
  return rows.view();
}

}  // namespace vggload::detail
