// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <vggload/convert/scalar.hpp>

namespace vggload {

/// What the values of a tensor are, and what a conversion made of them. The counts are exact, and
/// all of it is the same for any order in which parts are measured and merged, any number of
/// threads and any instruction set.
struct tensor_health {
  // Of the source, as TensorFlow's FULL_HEALTH counts (tensorflow/core/protobuf/debug_event.proto):
  // these six add up to `numel`.
  std::uint64_t numel = 0;
  std::uint64_t neg_inf = 0;
  std::uint64_t pos_inf = 0;
  std::uint64_t nan = 0;
  std::uint64_t neg = 0;   // finite, below zero
  std::uint64_t zero = 0;  // of either sign
  std::uint64_t pos = 0;   // finite, above zero
  // Of the conversion.
  std::uint64_t overflowed = 0;        // finite, and the result infinite (before it is saturated)
  std::uint64_t flushed_to_zero = 0;   // not zero, and the result is
  std::uint64_t became_subnormal = 0;  // normal, and the result is subnormal
  /// The largest |x| of the finite values of the source; 0 where there is none.
  double max_abs = 0;
  /// The largest |y - x| / |x| of a source x and its result y, those left out that overflowed or were
  /// flushed to zero; rounded up to FP32's precision. At most 1/2047 for normal results in FP16, up
  /// to 1 for subnormal ones.
  double max_relative_error = 0;

  /// Merges the health of another part of the same tensor.
  constexpr tensor_health& operator+=(const tensor_health& other) noexcept {
    numel += other.numel;
    neg_inf += other.neg_inf;
    pos_inf += other.pos_inf;
    nan += other.nan;
    neg += other.neg;
    zero += other.zero;
    pos += other.pos;
    overflowed += other.overflowed;
    flushed_to_zero += other.flushed_to_zero;
    became_subnormal += other.became_subnormal;
    raise(max_abs, other.max_abs);
    raise(max_relative_error, other.max_relative_error);
    return *this;
  }
  friend constexpr bool operator==(const tensor_health&, const tensor_health&) = default;

  /// Raises `most`, which is not negative, to `value` where that is larger. As integers: a mode in
  /// which subnormal numbers are taken for zero does not matter then.
  static constexpr void raise(double& most, double value) noexcept {
    if (std::bit_cast<std::uint64_t>(value) > std::bit_cast<std::uint64_t>(most)) most = value;
  }
};

namespace detail {

/// numerator / denominator, rounded up to 24 bits, digit by digit: no flag of a compiler and no
/// rounding mode reaches it. numerator <= denominator < 2^62, denominator > 0.
[[nodiscard]] constexpr double divide_rounding_up(std::uint64_t numerator,
                                                  std::uint64_t denominator) noexcept {
  if (numerator == 0) return 0;
  std::uint64_t quotient = numerator / denominator;
  std::uint64_t rest = numerator % denominator;
  int exponent = 0;
  while (quotient < std::uint64_t{1} << 23U) {
    rest <<= 1U;
    quotient <<= 1U;
    --exponent;
    if (rest >= denominator) {
      rest -= denominator;
      ++quotient;
    }
  }
  if (rest != 0) ++quotient;
  const auto scale = static_cast<std::uint64_t>(exponent + binary64_format::bias)
                     << static_cast<unsigned>(binary64_format::fraction_bits);
  return static_cast<double>(quotient) * std::bit_cast<double>(scale);
}

static_assert(divide_rounding_up(1, 2) == 0.5);
static_assert(divide_rounding_up(1, 3) == 0x1.555556p-2);  // 0x1.5555555...p-2
static_assert(divide_rounding_up(3, 3) == 1);

/// The type in which a conversion is measured: it holds every value of the source and, where it is
/// not the target itself, every value of the target.
template <class From>
using measured_type = std::conditional_t<std::is_same_v<From, double>, double, float>;

/// The bits of T's smallest normal number in format Wide.
template <class Wide, class T>
inline constexpr auto smallest_normal_bits = [] {
  using narrow_format = typename format_of_type<T>::type;
  using wide_format = typename format_of_type<Wide>::type;
  return convert_bits<narrow_format, wide_format>(static_cast<typename narrow_format::bits_type>(
      std::uint64_t{1} << narrow_format::fraction_bits));
}();
/// All that they hold is normal in Wide.
template <class Wide, finite_float8 T>
inline constexpr auto smallest_normal_bits<Wide, T> = smallest_normal_bits<Wide, Wide>;

/// The distance of two numbers of one sign in units of x's last place, and x's significand in the
/// same units: their quotient is the relative error. Correct where y is x rounded to a coarser grid
/// of binary numbers: then none of the two lies beyond the other's binade, but on its border.
template <class Bits>
struct relative_error_parts {
  Bits distance;
  Bits significand;
};

template <class Format>
[[nodiscard]] constexpr auto relative_error_of(typename Format::bits_type x,
                                               typename Format::bits_type y) noexcept {
  using bits = typename Format::bits_type;
  constexpr bits hidden = bits{1} << static_cast<unsigned>(Format::fraction_bits);
  constexpr bits sign = bits{1} << static_cast<unsigned>(Format::width - 1);
  const bits fraction = x & (hidden - 1);
  const bool normal = (x & ~sign) >= hidden;
  return relative_error_parts<bits>{x > y ? x - y : y - x, normal ? fraction | hidden : fraction};
}

/// Raises `most` to the relative error where that is larger.
template <class Bits>
constexpr void raise_relative_error(double& most, relative_error_parts<Bits> parts) noexcept {
  const auto distance = static_cast<double>(parts.distance);
  const auto significand = static_cast<double>(parts.significand);
  if constexpr (sizeof(Bits) == 4) {
    // Products of two times 24 bits are exact: so is the comparison.
    if (distance <= most * significand) return;
  } else {
    if (distance < most * significand * (1 - 0x1p-50)) return;
  }
  tensor_health::raise(most, divide_rounding_up(parts.distance, parts.significand));
}

/// Counts one value: `x` is the source and `y` what its conversion from From to To gave, both as bits
/// of Wide, which holds every value of From.
template <class Wide, class From, class To>
constexpr void measure_element(typename format_of_type<Wide>::type::bits_type x,
                               typename format_of_type<Wide>::type::bits_type y,
                               tensor_health& health) noexcept {
  using format = typename format_of_type<Wide>::type;
  using bits = typename format::bits_type;
  constexpr bits sign = bits{1} << static_cast<unsigned>(format::width - 1);
  constexpr bits infinity = bits{format::max_exponent}
                            << static_cast<unsigned>(format::fraction_bits);
  ++health.numel;
  const bits magnitude = x & ~sign;
  const bool negative = (x & sign) != 0;
  if (magnitude >= infinity) {
    ++(magnitude > infinity ? health.nan : negative ? health.neg_inf : health.pos_inf);
    return;
  }
  if (magnitude == 0) {
    ++health.zero;
    return;
  }
  ++(negative ? health.neg : health.pos);
  tensor_health::raise(health.max_abs,
                       std::bit_cast<double>(convert_bits<format, binary64_format>(magnitude)));
  const bits result = y & ~sign;
  if (result >= infinity) {
    ++health.overflowed;
  } else if (result == 0) {
    ++health.flushed_to_zero;
  } else {
    if (result < smallest_normal_bits<Wide, To> && magnitude >= smallest_normal_bits<Wide, From>) {
      ++health.became_subnormal;
    }
    raise_relative_error(health.max_relative_error, relative_error_of<format>(x, y));
  }
}

/// As `measured_conversion` (convert.hpp) wants it.
template <convertible_float From, convertible_float To>
void measure_scalar(const std::byte* source, std::byte* destination, std::size_t count,
                    tensor_health& health) noexcept {
  using wide = measured_type<From>;
  using bits = typename format_of_type<wide>::type::bits_type;
  // A wider result is the same number.
  using narrow = std::conditional_t<(sizeof(To) > sizeof(wide)), wide, To>;
  for (std::size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, source + i * sizeof(From), sizeof(From));
    To converted;
    if constexpr (std::is_same_v<From, To>) {
      converted = value;  // a signalling NaN too
    } else {
      converted = convert_to<To>(value);
    }
    std::memcpy(destination + i * sizeof(To), &converted, sizeof(To));
    measure_element<wide, From, narrow>(std::bit_cast<bits>(convert_to<wide>(value)),
                                        std::bit_cast<bits>(convert_to<wide>(converted)), health);
  }
}

}  // namespace detail

}  // namespace vggload
