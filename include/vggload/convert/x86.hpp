// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Conversions with x86's vector instructions. Each function carries the instruction set it needs as
// an attribute, so no compiler flag is wanted and none changes it; who calls one has asked the
// processor before (convert.hpp). All take any alignment and any count, and follow the rule in
// scalar.hpp bit for bit.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cstddef>
#include <cstdint>

#include <cpuid.h>
#include <immintrin.h>

#include <vggload/convert/scalar.hpp>
#include <vggload/core/float16.hpp>

#define VGGLOAD_AVX2 __attribute__((target("avx2,f16c")))
#define VGGLOAD_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,f16c")))

// GCC's own macros for some intrinsics convert a signed constant.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#if !defined(__clang__)
// GCC 12 takes its own "undefined" vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace vggload::detail::x86 {

[[nodiscard]] inline bool has_avx2_and_f16c() noexcept {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  // Older compilers' __builtin_cpu_supports does not know f16c. That of avx2 includes whether the
  // operating system saves the registers, and is asked first for that.
  constexpr unsigned f16c_bit = 1U << 29U;
  return __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 &&
         (ecx & f16c_bit) != 0;
}

[[nodiscard]] inline bool has_avx512() noexcept {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

// Rounding is part of the instruction and flushing modes do not reach it (Intel SDM, VCVTPS2PH).
inline constexpr int nearest_even = _MM_FROUND_TO_NEAREST_INT;

VGGLOAD_AVX2 inline void f32_to_f16_avx2(const std::byte* source, std::byte* destination,
                                         std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 values = _mm256_loadu_ps(reinterpret_cast<const float*>(source + 4 * i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + 2 * i),
                     _mm256_cvtps_ph(values, nearest_even));
  }
  convert_scalar<float, float16>(source + 4 * i, destination + 2 * i, count - i);
}

VGGLOAD_AVX2 inline void f16_to_f32_avx2(const std::byte* source, std::byte* destination,
                                         std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
    _mm256_storeu_ps(reinterpret_cast<float*>(destination + 4 * i), _mm256_cvtph_ps(values));
  }
  convert_scalar<float16, float>(source + 2 * i, destination + 4 * i, count - i);
}

/// bfloat16 in the lower half of each lane: add half of the last place kept, or a little less where
/// the bit above is even already, and shift; a NaN is shifted and made quiet. The carry reaches
/// infinity by itself.
VGGLOAD_AVX2 inline __m256i round_to_bf16_avx2(__m256i bits) noexcept {
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
  const __m256i quieted = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
  const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F800000));
  return _mm256_blendv_epi8(rounded, quieted, is_nan);
}

VGGLOAD_AVX2 inline void f32_to_bf16_avx2(const std::byte* source, std::byte* destination,
                                          std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const auto* from = reinterpret_cast<const __m256i*>(source + 4 * i);
    const __m256i low = round_to_bf16_avx2(_mm256_loadu_si256(from));
    const __m256i high = round_to_bf16_avx2(_mm256_loadu_si256(from + 1));
    // The pack works within 128-bit halves; the permutation puts the four quarters in order.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11'01'10'00);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination + 2 * i), packed);
  }
  convert_scalar<float, bfloat16>(source + 4 * i, destination + 2 * i, count - i);
}

/// Lanes of widened bfloat16 whose NaNs are made quiet.
VGGLOAD_AVX2 inline __m256i widen_bf16_avx2(__m128i values) noexcept {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
  const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F800000));
  return _mm256_or_si256(bits, _mm256_and_si256(is_nan, _mm256_set1_epi32(0x00400000)));
}

VGGLOAD_AVX2 inline void bf16_to_f32_avx2(const std::byte* source, std::byte* destination,
                                          std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination + 4 * i), widen_bf16_avx2(values));
  }
  convert_scalar<bfloat16, float>(source + 2 * i, destination + 4 * i, count - i);
}

/// The lanes of a last, partial vector of 16.
VGGLOAD_AVX512 inline __mmask16 rest_mask(std::size_t count) noexcept {
  return static_cast<__mmask16>((1U << count) - 1U);
}

VGGLOAD_AVX512 inline void f32_to_f16_avx512(const std::byte* source, std::byte* destination,
                                             std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 values = _mm512_loadu_ps(source + 4 * i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination + 2 * i),
                        _mm512_cvtps_ph(values, nearest_even));
  }
  if (const std::size_t rest = count - i; rest > 0) {
    const __m512 values = _mm512_maskz_loadu_ps(rest_mask(rest), source + 4 * i);
    _mm256_mask_storeu_epi16(destination + 2 * i, rest_mask(rest),
                             _mm512_cvtps_ph(values, nearest_even));
  }
}

VGGLOAD_AVX512 inline void f16_to_f32_avx512(const std::byte* source, std::byte* destination,
                                             std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 2 * i));
    _mm512_storeu_ps(destination + 4 * i, _mm512_cvtph_ps(values));
  }
  if (const std::size_t rest = count - i; rest > 0) {
    const __m256i values = _mm256_maskz_loadu_epi16(rest_mask(rest), source + 2 * i);
    _mm512_mask_storeu_ps(destination + 4 * i, rest_mask(rest), _mm512_cvtph_ps(values));
  }
}

/// As `round_to_bf16_avx2`, narrowed.
VGGLOAD_AVX512 inline __m256i round_to_bf16_avx512(__m512i bits) noexcept {
  const __m512i shifted = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(shifted, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF));
  const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7F800000));
  return _mm512_cvtepi32_epi16(
      _mm512_mask_or_epi32(rounded, is_nan, shifted, _mm512_set1_epi32(0x40)));
}

VGGLOAD_AVX512 inline void f32_to_bf16_avx512(const std::byte* source, std::byte* destination,
                                              std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512i bits = _mm512_loadu_si512(source + 4 * i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination + 2 * i),
                        round_to_bf16_avx512(bits));
  }
  if (const std::size_t rest = count - i; rest > 0) {
    const __m512i bits = _mm512_maskz_loadu_epi32(rest_mask(rest), source + 4 * i);
    _mm256_mask_storeu_epi16(destination + 2 * i, rest_mask(rest), round_to_bf16_avx512(bits));
  }
}

}  // namespace vggload::detail::x86

#pragma GCC diagnostic pop

#undef VGGLOAD_AVX2
#undef VGGLOAD_AVX512

#endif
