// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>

namespace vggload {

/// Height and width in pixels.
struct image_size {
  std::size_t height = 0;
  std::size_t width = 0;
  friend bool operator==(const image_size&, const image_size&) = default;
};

/// Decoded pixels that belong to somebody else: rows from top to bottom, pixels from left to right,
/// the channels of a pixel beside each other (grey; red, green, blue; the same and alpha), a byte each.
struct image_view {
  const std::uint8_t* pixels = nullptr;
  std::size_t height = 0;
  std::size_t width = 0;
  std::size_t channels = 0;   // 1, 3 or 4
  std::size_t row_bytes = 0;  // from one row to the next, at least width * channels

  [[nodiscard]] const std::uint8_t* row(std::size_t y) const noexcept {
    return pixels + y * row_bytes;
  }
  [[nodiscard]] image_size size() const noexcept { return {height, width}; }
};

/// Where the channels of a batch stand: behind the pixels (Keras) or before them (torch).
enum class image_layout { nhwc, nchw };

/// What one image of a batch looks like in memory: dense, in `layout`, each value a `type` of f32, f16 or
/// bf16.
struct sample_format {
  std::size_t height = 224;
  std::size_t width = 224;
  std::size_t channels = 3;
  dtype type = dtype::f32;
  image_layout layout = image_layout::nhwc;

  [[nodiscard]] std::size_t values() const noexcept { return height * width * channels; }
  [[nodiscard]] std::size_t bytes() const noexcept { return values() * bits_of(type) / 8; }
  /// Of a batch of `count` such images.
  [[nodiscard]] vggload::shape shape(std::size_t count) const {
    if (layout == image_layout::nchw) return {count, channels, height, width};
    return {count, height, width, channels};
  }
  friend bool operator==(const sample_format&, const sample_format&) = default;
};

}  // namespace vggload
