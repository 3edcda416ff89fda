// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <span>

#include <vggload/convert/convert.hpp>
#include <vggload/data/affine_scalar.hpp>
#include <vggload/data/affine_x86.hpp>

namespace vggload::detail {

template <std::size_t Channels>
void sample_rows(const affine_sampling& sampling, [[maybe_unused]] simd_level level,
                 float* to) noexcept {
  const std::size_t width = sampling.image.width();
  for (std::size_t r = 0; r < sampling.image.height(); ++r, to += width * Channels) {
    std::size_t done = 0;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (level >= simd_level::avx512) {
      done = x86::affine_avx512::sample_row<Channels>(sampling, r, to);
    } else if (level >= simd_level::avx2) {
      done = x86::affine_avx2::sample_row<Channels>(sampling, r, to);
    }
#endif
    sample_row_scalar<Channels>(sampling, r, done, width, to + done * Channels);
  }
}

/// `scipy.ndimage.affine_transform(channel, ..., order=1)` of each channel of an image of at most 32766 pixels each
/// way: into the values [height, width, channels]. All levels give the same bits.
inline void sample_affine(const affine_sampling& sampling, std::size_t channels, simd_level level,
                          std::span<float> into) noexcept {
  if (channels == 1) {
    sample_rows<1>(sampling, level, into.data());
  } else if (channels == 3) {
    sample_rows<3>(sampling, level, into.data());
  } else {
    sample_rows<4>(sampling, level, into.data());
  }
}

}  // namespace vggload::detail
