// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>

#include <vggload/core/dtype.hpp>

#include "other_conversions.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {

namespace {

template <class From, class To>
void plain_loop(const std::byte* source, std::byte* destination, std::size_t count) {
  const auto* const in = reinterpret_cast<const From*>(source);
  auto* const out = reinterpret_cast<To*>(destination);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<To>(in[i]);
}

void round_bits(const std::byte* source, std::byte* destination, std::size_t count) {
  const auto* const in = reinterpret_cast<const std::uint32_t*>(source);
  auto* const out = reinterpret_cast<std::uint16_t*>(destination);
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = static_cast<std::uint16_t>((in[i] + 0x7FFFU + (in[i] >> 16U & 1U)) >> 16U);
  }
}

#if defined(__AVX512F__)
void bare_f16(const std::byte* source, std::byte* destination, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(destination + 2 * i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(source + 4 * i), 0));
  }
}
void bare_f32(const std::byte* source, std::byte* destination, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 16) {
    _mm512_storeu_ps(
        destination + 4 * i,
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 2 * i))));
  }
}
#elif defined(__F16C__)
void bare_f16(const std::byte* source, std::byte* destination, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 8) {
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(destination + 2 * i),
        _mm256_cvtps_ph(_mm256_loadu_ps(reinterpret_cast<const float*>(source) + i), 0));
  }
}
void bare_f32(const std::byte* source, std::byte* destination, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 8) {
    _mm256_storeu_ps(
        reinterpret_cast<float*>(destination) + i,
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i))));
  }
}
#endif
#if defined(__AVX512BF16__)
void bare_bf16(const std::byte* source, std::byte* destination, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 32) {
    const __m512bh converted =
        _mm512_cvtne2ps_pbh(_mm512_loadu_ps(source + 4 * i + 64), _mm512_loadu_ps(source + 4 * i));
    _mm512_storeu_si512(destination + 2 * i, reinterpret_cast<const __m512i&>(converted));
  }
}
#endif

}  // namespace

conversion_function find_plain_loop(vggload::dtype from, vggload::dtype to) {
  using vggload::dtype;
#if defined(__FLT16_MANT_DIG__)
  if (from == dtype::f32 && to == dtype::f16) return &plain_loop<float, _Float16>;
  if (from == dtype::f16 && to == dtype::f32) return &plain_loop<_Float16, float>;
#endif
  if (from == dtype::f32 && to == dtype::bf16) return &round_bits;
  if (from == dtype::f32 && to == dtype::f64) return &plain_loop<float, double>;
  if (from == dtype::f64 && to == dtype::f32) return &plain_loop<double, float>;
  return nullptr;
}

conversion_function find_bare_loop([[maybe_unused]] vggload::dtype from,
                                   [[maybe_unused]] vggload::dtype to) {
  using vggload::dtype;
#if defined(__AVX512F__) || defined(__F16C__)
  if (from == dtype::f32 && to == dtype::f16) return &bare_f16;
  if (from == dtype::f16 && to == dtype::f32) return &bare_f32;
#endif
#if defined(__AVX512BF16__)
  if (from == dtype::f32 && to == dtype::bf16) return &bare_bf16;
#endif
  return nullptr;
}

}  // namespace bench
