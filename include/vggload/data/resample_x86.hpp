// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// The passes of resample_passes.hpp with x86's vector instructions: the same integers. Each function carries the
// instruction set that it needs as an attribute; who calls one has asked the processor before.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include <vggload/data/resample_passes.hpp>

#define VGGLOAD_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace vggload::detail::resample_avx2 {

/// Four bytes as four lanes.
[[gnu::always_inline]] VGGLOAD_AVX2 inline __m128i load_four(const std::uint8_t* from) noexcept {
  std::int32_t bytes = 0;
  std::memcpy(&bytes, from, sizeof(bytes));
  return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
}

/// The lanes' bytes (`resampled_byte`).
[[gnu::always_inline]] VGGLOAD_AVX2 inline std::int32_t four_bytes(__m128i sums) noexcept {
  const __m128i words = _mm_packs_epi32(_mm_srai_epi32(sums, resampling_bits), _mm_setzero_si128());
  return _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
}

/// A pixel of three or four channels in a register; in one of three the next one's first channel stands beside, and
/// is overwritten.
template <std::size_t Channels>
[[gnu::noinline]] VGGLOAD_AVX2 void resample_pixels(const std::uint8_t* row,
                                                    const resampling_weights& weights,
                                                    std::size_t width,
                                                    std::uint8_t* into) noexcept {
  for (std::size_t x = 0; x < width; ++x) {
    const std::int32_t* const values = weights.values + x * weights.most;
    const std::uint8_t* const from = row + static_cast<std::size_t>(weights.first[x]) * Channels;
    const auto taps = static_cast<std::size_t>(weights.count[x]);
    __m128i sums = _mm_set1_epi32(resampling_half);
    for (std::size_t tap = 0; tap < taps; ++tap) {
      sums = _mm_add_epi32(
          sums, _mm_mullo_epi32(load_four(from + tap * Channels), _mm_set1_epi32(values[tap])));
    }
    const std::int32_t pixel = four_bytes(sums);
    std::memcpy(into + x * Channels, &pixel, sizeof(pixel));
  }
}

/// As `detail::resample_row`.
inline void resample_row(const std::uint8_t* row, std::size_t channels,
                         const resampling_weights& weights, std::size_t width,
                         std::uint8_t* into) noexcept {
  switch (channels) {
    case 3: return resample_pixels<3>(row, weights, width, into);
    case 4: return resample_pixels<4>(row, weights, width, into);
    default: return detail::resample_row(row, channels, weights, width, into);
  }
}

/// As `detail::resample_column`.
[[gnu::noinline]] VGGLOAD_AVX2 inline void resample_column(const std::uint8_t* rows,
                                                           std::size_t row_bytes,
                                                           const std::int32_t* values,
                                                           std::size_t taps, std::size_t bytes,
                                                           std::uint8_t* into) noexcept {
  constexpr std::size_t step = 16;
  std::size_t x = 0;
  for (; x + step <= bytes; x += step) {
    __m256i low = _mm256_set1_epi32(resampling_half);
    __m256i high = low;
    for (std::size_t tap = 0; tap < taps; ++tap) {
      const auto* const from = reinterpret_cast<const __m128i*>(rows + tap * row_bytes + x);
      const __m128i sixteen = _mm_loadu_si128(from);
      const __m256i weight = _mm256_set1_epi32(values[tap]);
      low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(sixteen), weight));
      high = _mm256_add_epi32(
          high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(sixteen, 8)), weight));
    }
    low = _mm256_srai_epi32(low, resampling_bits);
    high = _mm256_srai_epi32(high, resampling_bits);
    // Packs work within 128-bit halves; the permutation puts the quarters in order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0b11'01'10'00);
    const __m128i result =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(into + x), result);
  }
  detail::resample_column(rows + x, row_bytes, values, taps, bytes - x, into + x);
}

}  // namespace vggload::detail::resample_avx2

#undef VGGLOAD_AVX2

#endif
