// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What conversions should give, found in another way than the library does it.

#include <bit>
#include <cstdint>

namespace test {

#if defined(__FLT16_MANT_DIG__)  // clang before 15 has no FP16 on x86
/// The compiler's own FP16: on x86 its support library's conversions, as no instruction of the
/// baseline does it, on 64-bit Arm the processor's.
#if defined(__aarch64__)
using compiler_f16 = __fp16;
#else
using compiler_f16 = _Float16;
#endif

inline std::uint16_t reference_f16(float value) {
  return std::bit_cast<std::uint16_t>(static_cast<compiler_f16>(value));
}
inline std::uint16_t reference_f16(double value) {
  return std::bit_cast<std::uint16_t>(static_cast<compiler_f16>(value));
}
#endif

/// By the definition of rounding to nearest: which of the two neighbours is less far away, as double
/// computes it without an error.
inline std::uint16_t reference_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t sign = bits >> 16U & 0x8000U;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x40U | magnitude >> 16U);
  if (magnitude == 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7F80U);
  const std::uint32_t below = magnitude >> 16U;
  const auto widened = [](std::uint32_t upper) -> double {
    if (upper == 0x7F80U) return 0x1p128;  // where infinity begins
    return std::bit_cast<float>(upper << 16U);
  };
  const double exact = std::bit_cast<float>(magnitude);
  const double down = exact - widened(below);
  const double up = widened(below + 1) - exact;
  const bool rounds_up = up < down || (up == down && below % 2 == 1);
  return static_cast<std::uint16_t>(sign | (rounds_up ? below + 1 : below));
}

}  // namespace test
