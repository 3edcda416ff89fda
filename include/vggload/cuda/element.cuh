// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What the kernels do with one element, a pair and a group of eight. Every function is for host and
// device, so that the tests walk through a launch on the host. Where the two have different means
// (__CUDA_ARCH__), both give the same bits.
//
// No flag of the compiler changes a result. The conversions are one instruction each, which -ftz
// does not reach. Other floating-point arithmetic meets no subnormal FP32 number, neither as an
// operand nor as a result: what is that small goes the way of the integers.

#if !defined(__CUDACC__)
#error "the headers vggload/cuda/*.cuh are for nvcc; vggload/cuda/*.hpp are for every compiler"
#endif
#if __cplusplus < 202002L
#error "vggload needs C++20, of nvcc too: -std=c++20"
#endif

#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <vggload/convert/health.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/cuda/health.hpp>

namespace vggload::cuda {

/// The types that the kernels convert to.
template <class T>
concept narrow_float = std::same_as<T, float16> || std::same_as<T, bfloat16>;

/// The place of a thread in a one-dimensional launch.
struct launch_position {
  unsigned block;
  unsigned thread;
  unsigned blocks;   // of the launch
  unsigned threads;  // of a block

  [[nodiscard]] __host__ __device__ std::size_t index() const noexcept {
    return std::size_t{block} * threads + thread;
  }
  [[nodiscard]] __host__ __device__ std::size_t stride() const noexcept {
    return std::size_t{blocks} * threads;
  }
};

namespace detail {

/// The borders between classes of a 16-bit type's values, as bits without the sign.
template <narrow_float To>
struct narrow_bits {
  using format = typename vggload::detail::format_of_type<To>::type;
  static constexpr unsigned dropped_bits =
      vggload::detail::binary32_format::fraction_bits - format::fraction_bits;
  static constexpr std::uint32_t infinity = std::uint32_t{format::max_exponent}
                                            << format::fraction_bits;
  static constexpr std::uint32_t quiet = std::uint32_t{1} << (format::fraction_bits - 1);
  static constexpr std::uint32_t smallest_normal = std::uint32_t{1} << format::fraction_bits;
  /// The smallest result that `count_group` counts itself. The error of a rounding is 0 or at least
  /// 2^-24 of its source, which for BF16 has to be a normal number in FP32.
  static constexpr std::uint32_t smallest_common = std::same_as<To, float16> ? 1 : (127 - 100) << 7;
};

inline constexpr std::uint32_t sign_of_float = 0x80000000U;
inline constexpr std::uint32_t infinity_of_float = 0x7F800000U;
inline constexpr std::uint32_t hidden_bit_of_float = 0x00800000U;

[[nodiscard]] __host__ __device__ inline std::uint32_t bits_of(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[nodiscard]] __host__ __device__ inline float float_of(std::uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// Two values rounded by the hardware, `low` into the lower half. Follows the library's rule but
/// for NaNs, which all become 0x7FFF.
template <narrow_float To>
[[nodiscard]] __host__ __device__ std::uint32_t round_pair(float low, float high) noexcept {
  std::uint32_t word;
  if constexpr (std::same_as<To, float16>) {
    const __half2 pair = __float22half2_rn(make_float2(low, high));
    std::memcpy(&word, &pair, sizeof word);
  } else {
    const __nv_bfloat162 pair = __float22bfloat162_rn(make_float2(low, high));
    std::memcpy(&word, &pair, sizeof word);
  }
  return word;
}

/// The FP32 number of the same value; `value` is not a NaN.
template <narrow_float To>
[[nodiscard]] __host__ __device__ float widen(std::uint16_t value) noexcept {
  if constexpr (std::same_as<To, float16>) {
    return __half2float(__ushort_as_half(value));
  } else {
    return float_of(std::uint32_t{value} << 16U);
  }
}

/// One value by the library's rule (convert/scalar.hpp), NaNs included.
template <narrow_float To>
[[nodiscard]] __host__ __device__ std::uint16_t narrow(float value) noexcept {
  using target = narrow_bits<To>;
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & ~sign_of_float;
  if (magnitude <= infinity_of_float) {
    return static_cast<std::uint16_t>(round_pair<To>(value, 0.0F) & 0xFFFFU);
  }
  const std::uint32_t payload = (bits & (hidden_bit_of_float - 1)) >> target::dropped_bits;
  return static_cast<std::uint16_t>((bits & sign_of_float) >> 16U | target::infinity |
                                    target::quiet | payload);
}

template <narrow_float To>
[[nodiscard]] __host__ __device__ bool is_nan(std::uint16_t result) noexcept {
  return (result & 0x7FFFU) > narrow_bits<To>::infinity;
}

/// Adds to a number that other threads of the block or the device add to.
template <class Count>
__host__ __device__ void add_atomically(Count& sum, Count part) noexcept {
#if defined(__CUDA_ARCH__)
  atomicAdd(&sum, part);
#else
  sum += part;
#endif
}

/// As `add_atomically`, for the larger of the two.
__host__ __device__ inline void raise_atomically(std::uint32_t& most,
                                                 std::uint32_t value) noexcept {
#if defined(__CUDA_ARCH__)
  atomicMax(&most, value);
#else
  most = most < value ? value : most;
#endif
}

/// Whether distance / magnitude > most, exactly; signs of the first two do not matter.
[[nodiscard]] __host__ __device__ inline bool exceeds(float distance, float magnitude,
                                                      float most) noexcept {
#if defined(__CUDA_ARCH__)
  // The product towards zero is the largest number of 24 bits that does not exceed the true one, so
  // a distance, which has 24 bits too, exceeds both or neither.
  return fabsf(distance) > fabsf(__fmul_rz(magnitude, most));
#else
  // Products of two times 24 bits are exact.
  return std::fabs(double{distance}) > std::fabs(double{magnitude} * double{most});
#endif
}

/// distance / significand, rounded up to 24 bits, for integers below 2^24.
[[nodiscard]] __host__ __device__ inline float divide_rounding_up(
    std::uint32_t distance, std::uint32_t significand) noexcept {
#if defined(__CUDA_ARCH__)
  return __fdiv_ru(static_cast<float>(distance), static_cast<float>(significand));
#else
  return static_cast<float>(vggload::detail::divide_rounding_up(distance, significand));
#endif
}

/// Raises the block's largest relative error to that of the result `y` of `x`, where it is larger.
/// Of integers, so for subnormal numbers too; see `relative_error_of` in convert/health.hpp.
template <narrow_float To>
__host__ __device__ void raise_relative_error(float x, std::uint16_t y,
                                              health_counts<std::uint32_t>& block) noexcept {
  const std::uint32_t source = bits_of(x);
  const std::uint32_t result = bits_of(widen<To>(y));
  const std::uint32_t distance = source > result ? source - result : result - source;
  const std::uint32_t fraction = source & (hidden_bit_of_float - 1);
  const bool normal = (source & ~sign_of_float) >= hidden_bit_of_float;
  const std::uint32_t significand = normal ? fraction | hidden_bit_of_float : fraction;
  const std::uint32_t most = *static_cast<const volatile std::uint32_t*>(&block.max_relative_error);
  if (exceeds(static_cast<float>(distance), static_cast<float>(significand), float_of(most))) {
    raise_atomically(block.max_relative_error, bits_of(divide_rounding_up(distance, significand)));
  }
}

/// Counts one value `x` of any class and its result `y`, as `measure_element` of convert/health.hpp
/// does. `mine` is the thread's; the largest error is shared by the block from the start, because
/// what one thread has seen spares the others the division.
template <narrow_float To>
__host__ __device__ void count_element(float x, std::uint16_t y, health_counts<std::uint32_t>& mine,
                                       health_counts<std::uint32_t>& block) noexcept {
  using target = narrow_bits<To>;
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t magnitude = bits & ~sign_of_float;
  const bool negative = bits != magnitude;
  if (magnitude > infinity_of_float) {
    ++mine.nan;
  } else if (magnitude == infinity_of_float) {
    ++(negative ? mine.neg_inf : mine.pos_inf);
  } else if (magnitude == 0) {
    ++mine.zero;
  } else {
    if (negative) ++mine.neg;
    if (magnitude > mine.max_abs) mine.max_abs = magnitude;
    const std::uint32_t result = y & 0x7FFFU;
    if (result >= target::infinity) {
      ++mine.overflowed;
    } else if (result == 0) {
      ++mine.flushed_to_zero;
    } else {
      if (result < target::smallest_normal && magnitude >= hidden_bit_of_float) {
        ++mine.became_subnormal;
      }
      raise_relative_error<To>(x, y, block);
    }
  }
}

/// Adds what a thread counted to its block's, or what a block counted to the device's, where others
/// do the same.
template <class Sum, class Part>
__host__ __device__ void merge(health_counts<Sum>& sum, const health_counts<Part>& part) noexcept {
  const auto add = [](Sum& to, Sum from) {
    if (from != 0) add_atomically(to, from);
  };
  add(sum.neg_inf, part.neg_inf);
  add(sum.pos_inf, part.pos_inf);
  add(sum.nan, part.nan);
  add(sum.neg, part.neg);
  add(sum.zero, part.zero);
  add(sum.overflowed, part.overflowed);
  add(sum.flushed_to_zero, part.flushed_to_zero);
  add(sum.became_subnormal, part.became_subnormal);
  if (part.max_abs != 0) raise_atomically(sum.max_abs, part.max_abs);
  if (part.max_relative_error != 0) {
    raise_atomically(sum.max_relative_error, part.max_relative_error);
  }
}

/// In the highest bit of each half: whether the other 15 bits of that half of `magnitudes`, whose
/// highest bits are 0, are at least `Bound`. No half carries into the other.
template <std::uint32_t Bound>
[[nodiscard]] __host__ __device__ std::uint32_t at_least(std::uint32_t magnitudes) noexcept {
  static_assert(Bound <= 0x8000);
  return magnitudes + (0x8000 - Bound) * 0x00010001U;
}

inline constexpr std::uint32_t flag_bits = 0x80008000U;

/// How many of the eight halves have their highest bit set.
[[nodiscard]] __host__ __device__ inline std::uint32_t count_flags(std::uint32_t a, std::uint32_t b,
                                                                   std::uint32_t c,
                                                                   std::uint32_t d) noexcept {
  const std::uint32_t flags =
      (a & flag_bits) | (b & flag_bits) >> 1U | (c & flag_bits) >> 2U | (d & flag_bits) >> 3U;
#if defined(__CUDA_ARCH__)
  return static_cast<std::uint32_t>(__popc(flags));
#else
  return static_cast<std::uint32_t>(std::popcount(flags));
#endif
}

}  // namespace detail

}  // namespace vggload::cuda
