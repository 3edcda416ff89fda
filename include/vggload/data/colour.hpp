// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>

namespace vggload {

/// The channels that an image is decoded to.
enum class colour_mode { rgb, rgba, grey };

[[nodiscard]] constexpr std::size_t channels_of(colour_mode mode) noexcept {
  switch (mode) {
    case colour_mode::rgb: return 3;
    case colour_mode::rgba: return 4;
    case colour_mode::grey: return 1;
  }
  return 0;
}

namespace detail {

/// What every kind of pixel in a file is turned into before it becomes a `colour_mode`.
struct pixel {
  std::uint8_t red = 0;
  std::uint8_t green = 0;
  std::uint8_t blue = 0;
  std::uint8_t alpha = 255;
};

// The rules are Pillow's (`Image.convert`), because Keras and torchvision give images as it does.

[[nodiscard]] constexpr pixel grey_pixel(std::uint8_t value, std::uint8_t alpha = 255) noexcept {
  return {value, value, value, alpha};
}

/// ITU-R BT.601's luma in sixteen bits of fraction, rounded; of a grey pixel that grey.
[[nodiscard]] constexpr std::uint8_t luma(pixel colour) noexcept {
  return static_cast<std::uint8_t>(
      (19595U * colour.red + 38470U * colour.green + 7471U * colour.blue + 32768U) >> 16U);
}

/// a * b / 255, rounded to nearest without a division.
[[nodiscard]] constexpr unsigned multiply_255(unsigned a, unsigned b) noexcept {
  const unsigned product = a * b + 128;
  return ((product >> 8U) + product) >> 8U;
}

/// A pixel of a CMYK JPEG as it is stored. Adobe's are stored inverted (255 is no ink), and Pillow takes
/// all for Adobe's, with the marker or without; so the light that is left is a product.
[[nodiscard]] constexpr pixel inverted_cmyk_pixel(std::uint8_t cyan, std::uint8_t magenta,
                                                  std::uint8_t yellow,
                                                  std::uint8_t black) noexcept {
  const unsigned light = black;
  const auto channel = [light](unsigned ink) {
    return static_cast<std::uint8_t>(light - multiply_255(255 - ink, light));
  };
  return {channel(cyan), channel(magenta), channel(yellow), 255};
}

/// Writes `width` pixels, `read(x)` each, to `row`. Alpha is dropped where the mode has none, not
/// blended.
template <class Read>
void write_row(colour_mode mode, std::uint8_t* row, std::size_t width, const Read& read) {
  switch (mode) {
    case colour_mode::rgb:
      for (std::size_t x = 0; x < width; ++x, row += 3) {
        const pixel colour = read(x);
        row[0] = colour.red;
        row[1] = colour.green;
        row[2] = colour.blue;
      }
      break;
    case colour_mode::rgba:
      for (std::size_t x = 0; x < width; ++x, row += 4) {
        const pixel colour = read(x);
        row[0] = colour.red;
        row[1] = colour.green;
        row[2] = colour.blue;
        row[3] = colour.alpha;
      }
      break;
    case colour_mode::grey:
      for (std::size_t x = 0; x < width; ++x) row[x] = luma(read(x));
      break;
  }
}

}  // namespace detail

}  // namespace vggload
