// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// A row of a target, read from a source under an affine map with bilinear interpolation. Two steps: where each
// pixel's four neighbours are and what they weigh (`find_taps`), and their sum (`interpolate`). Positions, weights
// and sums are integers, and the one step in floating point is a fused multiply-add, so that the code here and the
// vector code (bilinear_x86.hpp) agree to the bit.
//
// Positions are rounded to 2^-14 of a pixel and weights to 2^-14: a result is off by less than 1/16 of a grey level.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <vggload/data/affine_map.hpp>
#include <vggload/data/augmentation.hpp>

namespace vggload::detail {

inline constexpr int weight_bits = 14;
inline constexpr std::int32_t whole_weight = std::int32_t{1} << weight_bits;

/// The most pixels in a row or a column of a source: positions in 2^-weight_bits of a pixel fit into 32 bits.
inline constexpr std::size_t max_source_pixels = std::size_t{1} << (31U - weight_bits);

/// Pixels that the vector code makes at a time: buffers have room for whole blocks.
inline constexpr std::size_t pixel_block = 8;

/// What is known of a source when its pixels are read.
struct tap_source {
  std::int64_t width;
  std::int64_t height;
  std::int32_t channels;
  fill_mode fill;
};

/// The neighbours of each pixel of a row: two beside each other in two rows. Arrays of whole blocks.
struct row_taps {
  std::int32_t* line;    // the upper row
  std::int32_t* offset;  // of the left neighbour in both rows, in bytes
  // Weights, of the left neighbour in the lower 16 bits, of the right one in the upper 16.
  std::uint32_t* upper;
  std::uint32_t* lower;
};

/// The nearest position that weights can express, in 2^-weight_bits of a pixel.
[[nodiscard]] constexpr std::int64_t rounded_position(std::int64_t position) noexcept {
  constexpr int dropped = affine_map::fraction_bits - weight_bits;
  return (position + (std::int64_t{1} << (dropped - 1))) >> dropped;
}

/// Whether a rounded position lies beyond the edges, half a pixel beyond the outer pixels' centres.
[[nodiscard]] constexpr bool is_outside(std::int64_t position, std::int64_t pixels) noexcept {
  return position < -whole_weight / 2 || position >= pixels * whole_weight - whole_weight / 2;
}

/// The rounded position within the image that is shown at `position`: between the centres of the first and the
/// last pixel. The image is continued by itself, mirrored or repeated from edge to edge (half a pixel beyond the
/// centres); within that half the outer pixel is what one sees.
[[nodiscard]] constexpr std::int64_t fold(std::int64_t position, std::int64_t pixels,
                                          fill_mode mode) noexcept {
  const std::int64_t last = (pixels - 1) * whole_weight;
  if ((mode == fill_mode::reflect || mode == fill_mode::wrap) && is_outside(position, pixels)) {
    const std::int64_t length = pixels * whole_weight;
    const std::int64_t period = mode == fill_mode::reflect ? 2 * length : length;
    // NOLINTNEXTLINE(clang-analyzer-core.DivideZero): an image has pixels
    std::int64_t from_edge = (position + whole_weight / 2) % period;
    if (from_edge < 0) from_edge += period;
    if (from_edge >= length) from_edge = period - from_edge;
    position = from_edge - whole_weight / 2;
  }
  return std::clamp<std::int64_t>(position, 0, last);
}

/// Writes the taps of one pixel whose folded position is (x, y).
inline void write_tap(std::int32_t x, std::int32_t y, std::int32_t channels, const row_taps& taps,
                      std::size_t i) noexcept {
  constexpr std::int32_t fraction = whole_weight - 1;
  const std::int32_t right = x & fraction;
  const std::int32_t down = y & fraction;
  // The four are not negative, and their sum is exact.
  const std::int32_t both = (right * down + whole_weight / 2) >> weight_bits;
  const auto pair = [](std::int32_t left_weight, std::int32_t right_weight) {
    return static_cast<std::uint32_t>(left_weight) | static_cast<std::uint32_t>(right_weight)
                                                         << 16U;
  };
  taps.line[i] = y >> weight_bits;
  taps.offset[i] = (x >> weight_bits) * channels;
  taps.upper[i] = pair(whole_weight - right - down + both, right - both);
  taps.lower[i] = pair(down - both, both);
}

/// Writes the taps of `count` pixels; `x` and `y` are the first one's position as `map` gives it.
inline void find_taps(const affine_map& map, std::int64_t x, std::int64_t y,
                      const tap_source& source, std::size_t count, const row_taps& taps) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t column = fold(rounded_position(x), source.width, source.fill);
    const std::int64_t line = fold(rounded_position(y), source.height, source.fill);
    write_tap(static_cast<std::int32_t>(column), static_cast<std::int32_t>(line), source.channels,
              taps, i);
    x += map.x_by_column;
    y += map.y_by_column;
  }
}

/// What becomes of a pixel's channels: channel i of the result is made of the source's channel `from[i]`, its sum of
/// weighted bytes times `scale` plus `offset`, no less than `low` and no more than `high`.
struct channel_map {
  std::array<std::uint8_t, 4> from{};
  std::array<float, 4> scale{};
  std::array<float, 4> offset{};
  std::array<float, 4> low{};
  std::array<float, 4> high{};
};

/// Where a row goes: FP32, any alignment.
struct row_target {
  std::byte* values;
  std::size_t channel_stride;  // bytes from a pixel's channel to the next one
  std::size_t pixel_stride;    // and from a pixel to the next one
};

/// The value of a channel whose bytes, weighted, are `sum`.
[[nodiscard]] inline float channel_value(std::int32_t sum, const channel_map& map,
                                         std::size_t channel) noexcept {
  const float value = std::fma(static_cast<float>(sum), map.scale[channel], map.offset[channel]);
  return std::clamp(value, map.low[channel], map.high[channel]);
}

/// Makes `count` pixels from their taps. `rows` has one entry for each row of the source and one more, for the
/// neighbours below the last row, which weigh nothing; the bytes of a right neighbour that weighs nothing can
/// be read, too.
template <std::size_t Channels>
void interpolate(const std::uint8_t* const* rows, const row_taps& taps, const channel_map& map,
                 std::size_t count, const row_target& target) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* const upper = rows[taps.line[i]] + taps.offset[i];
    const std::uint8_t* const lower = rows[taps.line[i] + 1] + taps.offset[i];
    const auto weight = [](std::uint32_t half) {
      return static_cast<std::int32_t>(half & 0xFFFFU);
    };
    for (std::size_t channel = 0; channel < Channels; ++channel) {
      const std::size_t from = map.from[channel];
      const std::int32_t sum = upper[from] * weight(taps.upper[i]) +
                               upper[from + Channels] * weight(taps.upper[i] >> 16U) +
                               lower[from] * weight(taps.lower[i]) +
                               lower[from + Channels] * weight(taps.lower[i] >> 16U);
      const float value = channel_value(sum, map, channel);
      std::memcpy(target.values + i * target.pixel_stride + channel * target.channel_stride, &value,
                  sizeof(value));
    }
  }
}

}  // namespace vggload::detail
