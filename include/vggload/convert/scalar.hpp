// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <vggload/core/float16.hpp>

namespace vggload {

// One rule for every conversion in the library, in every implementation of it:
// - to the nearest value, ties to the one with an even last bit (IEEE 754 roundTiesToEven), in one
//   step;
// - subnormal results are produced, subnormal sources are seen as what they are;
// - what rounds beyond the largest finite value becomes infinity of its sign;
// - a NaN keeps its sign and the upper bits of its payload, and is made quiet (what x86's VCVTPS2PH
//   does).
//
// Neither MXCSR nor compiler flags change it: the scalar code works on the bits.

namespace detail {

/// A binary floating-point format: the integer that holds it and the widths of its fields (IEEE
/// 754, 3.4).
template <class Bits, int ExponentBits, int FractionBits>
struct binary_format {
  using bits_type = Bits;
  static constexpr int fraction_bits = FractionBits;
  static constexpr int width = 1 + ExponentBits + FractionBits;
  static constexpr int bias = (1 << (ExponentBits - 1)) - 1;
  static constexpr int max_exponent = (1 << ExponentBits) - 1;  // biased: infinities and NaNs
};

using float8_e5m2_format = binary_format<std::uint8_t, 5, 2>;
using binary16_format = binary_format<std::uint16_t, 5, 10>;
using bfloat16_format = binary_format<std::uint16_t, 8, 7>;
using binary32_format = binary_format<std::uint32_t, 8, 23>;
using binary64_format = binary_format<std::uint64_t, 11, 52>;

/// The bits in format To of the value that `source` has in format From, by the rule above.
template <class From, class To>
[[nodiscard]] constexpr typename To::bits_type convert_bits(
    typename From::bits_type source) noexcept {
  constexpr std::uint64_t one = 1;
  const std::uint64_t sign = std::uint64_t{source} >> (From::width - 1);
  const int exponent =
      static_cast<int>(std::uint64_t{source} >> From::fraction_bits) & From::max_exponent;
  std::uint64_t fraction = source & ((one << From::fraction_bits) - 1);
  const auto assemble = [sign](std::uint64_t magnitude) {
    return static_cast<typename To::bits_type>(sign << (To::width - 1) | magnitude);
  };
  constexpr std::uint64_t infinity = std::uint64_t{To::max_exponent} << To::fraction_bits;
  constexpr int narrowing = From::fraction_bits - To::fraction_bits;

  if (exponent == From::max_exponent) {
    if (fraction == 0) return assemble(infinity);
    constexpr std::uint64_t quiet = one << (To::fraction_bits - 1);
    if constexpr (narrowing >= 0) {
      return assemble(infinity | quiet | fraction >> narrowing);
    } else {
      return assemble(infinity | quiet | fraction << -narrowing);
    }
  }
  if (exponent == 0 && fraction == 0) return assemble(0);

  // The value is significand * 2^(scale - From::fraction_bits), with the significand's leading one
  // at bit From::fraction_bits.
  int scale = 1 - From::bias;
  if (exponent == 0) {
    const int shift = From::fraction_bits + 1 - static_cast<int>(std::bit_width(fraction));
    fraction <<= shift;
    scale -= shift;
  } else {
    fraction |= one << From::fraction_bits;
    scale = exponent - From::bias;
  }

  int target_exponent = scale + To::bias;
  if (target_exponent >= To::max_exponent) return assemble(infinity);
  // Bits to drop: those by which the fraction is narrower, and for a subnormal result those by
  // which the value lies below the smallest normal one.
  int drop = narrowing;
  if (target_exponent <= 0) {
    drop += 1 - target_exponent;
    target_exponent = 0;
  }
  if (drop <= 0) {
    // The hidden bit is removed, the exponent put beside it.
    const std::uint64_t widened = fraction << -drop;
    const std::uint64_t hidden = target_exponent == 0 ? 0 : one << To::fraction_bits;
    return assemble((std::uint64_t(target_exponent) << To::fraction_bits) + widened - hidden);
  }
  if (drop > From::fraction_bits + 1) return assemble(0);  // below half of the smallest subnormal
  const std::uint64_t kept = fraction >> drop;
  const std::uint64_t rest = fraction & ((one << drop) - 1);
  const std::uint64_t half = one << (drop - 1);
  const std::uint64_t up = rest > half || (rest == half && (kept & 1U) != 0) ? 1 : 0;
  // A carry out of the fraction raises the exponent, up to infinity, as it should.
  const std::uint64_t hidden = target_exponent == 0 ? 0 : one << To::fraction_bits;
  return assemble((std::uint64_t(target_exponent) << To::fraction_bits) + kept + up - hidden);
}

/// Storage of the 8-bit types; they are sources of conversions only.
struct float8_e5m2 {
  std::uint8_t bits;
};

/// The 8-bit types that are not IEEE's in kind: their highest exponent holds numbers and there is
/// no infinity.
struct float8_e4m3 {
  std::uint8_t bits;
};
struct float8_e4m3fnuz {
  std::uint8_t bits;
};
struct float8_e5m2fnuz {
  std::uint8_t bits;
};
struct float8_e8m0 {
  std::uint8_t bits;
};

template <class T>
concept finite_float8 = std::same_as<T, float8_e4m3> || std::same_as<T, float8_e4m3fnuz> ||
    std::same_as<T, float8_e5m2fnuz> || std::same_as<T, float8_e8m0>;

/// A small number from its fields, as binary32, where it is exact.
template <int FractionBits, int Bias>
[[nodiscard]] constexpr float assemble_float8(std::uint8_t bits) noexcept {
  constexpr unsigned fraction_mask = (1U << FractionBits) - 1;
  const unsigned exponent = (bits & 0x7FU) >> FractionBits;
  const unsigned significand = (bits & fraction_mask) | (exponent == 0 ? 0 : fraction_mask + 1);
  const unsigned scale = (exponent == 0 ? 1 : exponent) + 127 - Bias - FractionBits;
  const float magnitude = static_cast<float>(significand) * std::bit_cast<float>(scale << 23U);
  return (bits & 0x80U) != 0 ? -magnitude : magnitude;
}

inline constexpr float quiet_nan = std::bit_cast<float>(0x7FC00000U);

/// Exponent bias 7; the one NaN of each sign has all other bits set (Micikevicius et al., "FP8
/// Formats for Deep Learning", 2022, table 1).
[[nodiscard]] constexpr float widen(float8_e4m3 value) noexcept {
  if ((value.bits & 0x7FU) != 0x7F) return assemble_float8<3, 7>(value.bits);
  return (value.bits & 0x80U) != 0 ? -quiet_nan : quiet_nan;
}

/// FNUZ: the pattern of the negative zero is the NaN, and the bias is one more (Noune et al.,
/// "8-bit Numerical Formats for Deep Neural Networks", 2022).
[[nodiscard]] constexpr float widen(float8_e4m3fnuz value) noexcept {
  return value.bits == 0x80 ? -quiet_nan : assemble_float8<3, 8>(value.bits);
}
[[nodiscard]] constexpr float widen(float8_e5m2fnuz value) noexcept {
  return value.bits == 0x80 ? -quiet_nan : assemble_float8<2, 16>(value.bits);
}

/// A power of two, 2^(bits - 127); all bits set is the NaN (OCP Microscaling Formats 1.0, 5.4.1).
[[nodiscard]] constexpr float widen(float8_e8m0 value) noexcept {
  if (value.bits == 0xFF) return quiet_nan;
  return std::bit_cast<float>(value.bits == 0 ? 0x00400000U : std::uint32_t{value.bits} << 23U);
}

template <class T>
struct format_of_type;
template <>
struct format_of_type<float8_e5m2> {
  using type = float8_e5m2_format;
};
template <>
struct format_of_type<float16> {
  using type = binary16_format;
};
template <>
struct format_of_type<bfloat16> {
  using type = bfloat16_format;
};
template <>
struct format_of_type<float> {
  using type = binary32_format;
};
template <>
struct format_of_type<double> {
  using type = binary64_format;
};

}  // namespace detail

/// A type of real numbers that the library converts: float16, bfloat16, float, double, and the 8-bit
/// types, from which alone.
template <class T>
concept convertible_float = detail::finite_float8<T> || requires {
  typename detail::format_of_type<T>::type;
};

/// The value in another type, by the rule at the top of this file. Usable in constant expressions.
template <convertible_float To, convertible_float From>
[[nodiscard]] constexpr To convert_to(From value) noexcept {
  if constexpr (detail::finite_float8<From>) {
    // Exact, so the second step is the only rounding.
    return convert_to<To>(detail::widen(value));
  } else {
    using from_format = typename detail::format_of_type<From>::type;
    using to_format = typename detail::format_of_type<To>::type;
    return std::bit_cast<To>(detail::convert_bits<from_format, to_format>(
        std::bit_cast<typename from_format::bits_type>(value)));
  }
}

static_assert(convert_to<float16>(1.0F / 3.0F).bits == 0x3555);
static_assert(convert_to<float16>(65520.0F).bits == 0x7C00);  // half way to 2^16: even is infinity
static_assert(convert_to<float16>(0x1p-25F).bits == 0);       // half of the smallest: even is zero
static_assert(convert_to<bfloat16>(1.0F).bits == 0x3F80);
static_assert(convert_to<float>(float16{0x0001}) == 0x1p-24F);

namespace detail {

/// The bits of To's infinity; larger magnitudes are NaNs.
template <convertible_float To>
inline constexpr auto infinity_bits = [] {
  using format = typename format_of_type<To>::type;
  return static_cast<typename format::bits_type>(std::uint64_t{format::max_exponent}
                                                 << format::fraction_bits);
}();

/// Whether there is a finite value of From that becomes infinite in To.
template <class From, class To>
inline constexpr bool can_overflow = [] {
  using from_format = typename format_of_type<From>::type;
  using to_format = typename format_of_type<To>::type;
  return convert_bits<from_format, to_format>(static_cast<typename from_format::bits_type>(
             infinity_bits<From> - 1)) == infinity_bits<To>;
}();
/// Of these E8M0 alone reaches beyond FP16.
template <finite_float8 From, class To>
inline constexpr bool can_overflow<From, To> =
    std::same_as<From, float8_e8m0>&& std::same_as<To, float16>;

/// `count` elements, one after the other; any alignment. As `conversion` (convert.hpp) wants it.
template <convertible_float From, convertible_float To>
bool convert_scalar(const std::byte* source, std::byte* destination, std::size_t count) noexcept {
  using bits = typename format_of_type<To>::type::bits_type;
  constexpr auto magnitude = static_cast<bits>(static_cast<bits>(~bits{0}) >> 1U);
  bits most = 0;
  for (std::size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, source + i * sizeof(From), sizeof(From));
    const To converted = convert_to<To>(value);
    std::memcpy(destination + i * sizeof(To), &converted, sizeof(To));
    most = std::max(most, static_cast<bits>(std::bit_cast<bits>(converted) & magnitude));
  }
  return can_overflow<From, To> && most >= infinity_bits<To>;
}

}  // namespace detail

}  // namespace vggload
