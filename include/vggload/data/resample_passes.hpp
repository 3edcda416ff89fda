// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace vggload::detail {

/// Weights are whole numbers of 2^-resampling_bits, as Pillow's for 8-bit images: eight bits are the pixel's, one the
/// sign's, and one remains for filters whose weights are partly negative.
inline constexpr int resampling_bits = 32 - 8 - 2;

/// Which pixels of a row (or column) make each pixel of the result's, and their weights.
struct resampling_weights {
  std::int32_t* first;   // of each pixel of the result
  std::int32_t* count;   // likewise
  std::int32_t* values;  // `most` places for each pixel of the result
  std::size_t most;
};

/// A weighted sum of bytes, which begins with a half, as a byte.
[[nodiscard]] constexpr std::uint8_t resampled_byte(std::int32_t sum) noexcept {
  return static_cast<std::uint8_t>(std::clamp(sum >> resampling_bits, 0, 255));
}

inline constexpr std::int32_t resampling_half = std::int32_t{1} << (resampling_bits - 1);

/// Bytes behind a row that the vector code may read, and write.
inline constexpr std::size_t row_padding = 4;

/// Makes a row of `width` pixels from a row. Both have `row_padding` bytes behind them.
inline void resample_row(const std::uint8_t* row, std::size_t channels,
                         const resampling_weights& weights, std::size_t width,
                         std::uint8_t* into) noexcept {
  for (std::size_t x = 0; x < width; ++x) {
    const std::int32_t* const values = weights.values + x * weights.most;
    const std::uint8_t* const from = row + static_cast<std::size_t>(weights.first[x]) * channels;
    const auto taps = static_cast<std::size_t>(weights.count[x]);
    for (std::size_t channel = 0; channel < channels; ++channel) {
      std::int32_t sum = resampling_half;
      for (std::size_t tap = 0; tap < taps; ++tap)
        sum += from[tap * channels + channel] * values[tap];
      into[x * channels + channel] = resampled_byte(sum);
    }
  }
}

/// Makes a row of `bytes` bytes as the weighted sum of `taps` rows, which lie `row_bytes` apart.
inline void resample_column(const std::uint8_t* rows, std::size_t row_bytes,
                            const std::int32_t* values, std::size_t taps, std::size_t bytes,
                            std::uint8_t* into) noexcept {
  for (std::size_t x = 0; x < bytes; ++x) {
    std::int32_t sum = resampling_half;
    for (std::size_t tap = 0; tap < taps; ++tap) sum += rows[tap * row_bytes + x] * values[tap];
    into[x] = resampled_byte(sum);
  }
}

/// The two at one level of instructions.
struct resampling_passes {
  decltype(&resample_row) row;
  decltype(&resample_column) column;
};

}  // namespace vggload::detail
