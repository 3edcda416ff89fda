// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include <vggload/convert/scalar.hpp>
#include <vggload/convert/x86.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/float16.hpp>

namespace vggload {

/// Converts `count` elements from `source` to `destination` by the rule in convert/scalar.hpp. Any
/// alignment. The ranges do not overlap, except that a conversion to a type of the same or a
/// smaller size may have `destination == source`.
using conversion = void (*)(const std::byte* source, std::byte* destination,
                            std::size_t count) noexcept;

/// The instruction sets that conversions are written for; each includes those before.
enum class simd_level { scalar, avx2, avx512 };

/// The best that this processor offers.
[[nodiscard]] inline simd_level available_simd_level() noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  // Asked once: in a virtual machine each question is a trip to the hypervisor.
  static const simd_level level = !detail::x86::has_avx2_and_f16c() ? simd_level::scalar
                                  : !detail::x86::has_avx512()      ? simd_level::avx2
                                                                    : simd_level::avx512;
  return level;
#else
  return simd_level::scalar;
#endif
}

namespace detail {

template <class T>
void copy_elements(const std::byte* source, std::byte* destination, std::size_t count) noexcept {
  if (source != destination && count != 0) std::memcpy(destination, source, count * sizeof(T));
}

/// From one 16-bit type to the other, through blocks of FP32 that stay in the first cache. Widening
/// is exact, so there is one rounding.
template <conversion Widen, conversion Narrow>
void convert_through_f32(const std::byte* source, std::byte* destination,
                         std::size_t count) noexcept {
  std::array<float, 512> block;
  auto* const bytes = reinterpret_cast<std::byte*>(block.data());
  for (std::size_t begin = 0; begin < count; begin += block.size()) {
    const std::size_t n = std::min(block.size(), count - begin);
    Widen(source + 2 * begin, bytes, n);
    Narrow(bytes, destination + 2 * begin, n);
  }
}

template <class From>
[[nodiscard]] constexpr conversion scalar_conversion(dtype to) noexcept {
  switch (to) {
    case dtype::f16: return &convert_scalar<From, float16>;
    case dtype::bf16: return &convert_scalar<From, bfloat16>;
    case dtype::f32: return &convert_scalar<From, float>;
    case dtype::f64: return &convert_scalar<From, double>;
    default: return nullptr;
  }
}

[[nodiscard]] inline conversion simd_conversion([[maybe_unused]] dtype from,
                                                [[maybe_unused]] dtype to,
                                                [[maybe_unused]] simd_level level) noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (level >= simd_level::avx512) {
    if (from == dtype::f32 && to == dtype::f16) return &x86::f32_to_f16_avx512;
    if (from == dtype::f32 && to == dtype::bf16) return &x86::f32_to_bf16_avx512;
    if (from == dtype::f16 && to == dtype::f32) return &x86::f16_to_f32_avx512;
    if (from == dtype::f16 && to == dtype::bf16) {
      return &convert_through_f32<&x86::f16_to_f32_avx512, &x86::f32_to_bf16_avx512>;
    }
    if (from == dtype::bf16 && to == dtype::f16) {
      return &convert_through_f32<&x86::bf16_to_f32_avx2, &x86::f32_to_f16_avx512>;
    }
  }
  if (level >= simd_level::avx2) {
    if (from == dtype::f32 && to == dtype::f16) return &x86::f32_to_f16_avx2;
    if (from == dtype::f32 && to == dtype::bf16) return &x86::f32_to_bf16_avx2;
    if (from == dtype::f16 && to == dtype::f32) return &x86::f16_to_f32_avx2;
    if (from == dtype::bf16 && to == dtype::f32) return &x86::bf16_to_f32_avx2;
    if (from == dtype::f16 && to == dtype::bf16) {
      return &convert_through_f32<&x86::f16_to_f32_avx2, &x86::f32_to_bf16_avx2>;
    }
    if (from == dtype::bf16 && to == dtype::f16) {
      return &convert_through_f32<&x86::bf16_to_f32_avx2, &x86::f32_to_f16_avx2>;
    }
  }
#endif
  return nullptr;
}

}  // namespace detail

/// The fastest conversion between two types at a level that the processor offers; nullptr where
/// there is none: one can convert to f16, bf16, f32 and f64, and from these and the 8-bit types,
/// but not the smaller ones. All levels give the same bits. Between equal types of the four the
/// bytes are copied.
[[nodiscard]] inline conversion find_conversion(
    dtype from, dtype to, simd_level level = available_simd_level()) noexcept {
  if (from == to) {
    switch (from) {
      case dtype::f16: return &detail::copy_elements<float16>;
      case dtype::bf16: return &detail::copy_elements<bfloat16>;
      case dtype::f32: return &detail::copy_elements<float>;
      case dtype::f64: return &detail::copy_elements<double>;
      default: return nullptr;
    }
  }
  if (const conversion fast = detail::simd_conversion(from, to, level)) return fast;
  switch (from) {
    case dtype::f8_e5m2: return detail::scalar_conversion<detail::float8_e5m2>(to);
    case dtype::f8_e4m3: return detail::scalar_conversion<detail::float8_e4m3>(to);
    case dtype::f8_e8m0: return detail::scalar_conversion<detail::float8_e8m0>(to);
    case dtype::f8_e4m3fnuz: return detail::scalar_conversion<detail::float8_e4m3fnuz>(to);
    case dtype::f8_e5m2fnuz: return detail::scalar_conversion<detail::float8_e5m2fnuz>(to);
    case dtype::f16: return detail::scalar_conversion<float16>(to);
    case dtype::bf16: return detail::scalar_conversion<bfloat16>(to);
    case dtype::f32: return detail::scalar_conversion<float>(to);
    case dtype::f64: return detail::scalar_conversion<double>(to);
    default: return nullptr;
  }
}

}  // namespace vggload
