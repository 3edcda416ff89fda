// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Conversions with x86's vector instructions that count in the same pass (health.hpp). What is usual
// in a lane, a finite number whose result is neither zero nor infinite, is counted in registers;
// lanes with anything else, and those whose relative error is the largest so far, go to the scalar
// code one by one. So there is one definition of every count.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <immintrin.h>

#include <vggload/convert/health.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/convert/x86.hpp>
#include <vggload/core/float16.hpp>

#define VGGLOAD_AVX2 __attribute__((target("avx2,fma,f16c,popcnt")))
#define VGGLOAD_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")))

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace vggload::detail::x86 {

/// Which results are usual: their sources are then counted in registers.
template <class To>
struct usual_results;
template <>
struct usual_results<float16> {
  static constexpr std::uint16_t from = 1;  // not zero
  static constexpr std::uint16_t subnormal_below = 0x0400;
};
/// From which result on no relative error exceeds `most`, where that is beyond what normal results
/// have: a subnormal result of n units is half a unit away from its source at most, which is no
/// smaller than n - 1/2 units. 0: there is no such result.
template <class To>
[[nodiscard]] inline std::uint16_t no_larger_error_from(float most) noexcept {
  constexpr float most_of_normal = 0x1p-11F;
  if constexpr (std::same_as<To, float16>) {
    if (most >= most_of_normal) return static_cast<std::uint16_t>(std::ceil(0.5 + 0.5 / most));
  }
  return 0;
}

/// Below 2^-64 a product in the comparison of errors could become subnormal, and not be exact.
template <>
struct usual_results<bfloat16> {
  static constexpr std::uint16_t from = (127 - 64) << 7U;
};
/// Without a loss: finite and not zero; the bits of FP32.
template <>
struct usual_results<float> {
  static constexpr std::uint32_t from = 1;
};

/// Counts lanes that are not usual one by one, and raises the largest relative error where a usual
/// one exceeds it; returns that error.
template <class From, class To, std::size_t Lanes>
[[gnu::noinline]] float measure_lanes(const std::array<std::uint32_t, Lanes>& x,
                                      const std::array<std::uint32_t, Lanes>& y,
                                      std::uint32_t unusual, std::uint32_t exceeding,
                                      tensor_health& health) noexcept {
  for (std::uint32_t lanes = unusual; lanes != 0; lanes &= lanes - 1) {
    const auto lane = static_cast<std::size_t>(std::countr_zero(lanes));
    measure_element<float, From, To>(x[lane], y[lane], health);
  }
  for (std::uint32_t lanes = exceeding; lanes != 0; lanes &= lanes - 1) {
    const auto lane = static_cast<std::size_t>(std::countr_zero(lanes));
    raise_relative_error(health.max_relative_error,
                         relative_error_of<binary32_format>(x[lane], y[lane]));
  }
  return static_cast<float>(health.max_relative_error);  // exact: it has 24 bits
}

/// Lanes by what they hold.
struct lane_classes {
  std::uint32_t zero;
  std::uint32_t infinite;
  std::uint32_t nan;
  std::uint32_t flushed;
  std::uint32_t overflowed;
  std::uint32_t negative;  // of any class
};

/// `most`: the largest magnitude of what was lost, as bits.
inline void add_classes(const lane_classes& lanes, std::uint32_t most,
                        tensor_health& health) noexcept {
  const auto count = [](std::uint32_t of) { return static_cast<unsigned>(std::popcount(of)); };
  const std::uint32_t lost = lanes.flushed | lanes.overflowed;
  health.numel += count(lanes.zero | lanes.infinite | lanes.nan | lost);
  health.zero += count(lanes.zero);
  health.nan += count(lanes.nan);
  health.neg_inf += count(lanes.infinite & lanes.negative);
  health.pos_inf += count(lanes.infinite & ~lanes.negative);
  health.neg += count(lost & lanes.negative);
  health.pos += count(lost & ~lanes.negative);
  health.flushed_to_zero += count(lanes.flushed);
  health.overflowed += count(lanes.overflowed);
  if (most > 0) {
    tensor_health::raise(health.max_abs, std::bit_cast<double>(
                                             convert_bits<binary32_format, binary64_format>(most)));
  }
}

[[nodiscard]] inline tensor_health usual_health(std::uint64_t usual, std::uint64_t neg,
                                                std::uint64_t subnormal,
                                                std::uint32_t most) noexcept {
  tensor_health health;
  health.numel = usual;
  health.neg = neg;
  health.pos = usual - neg;
  health.became_subnormal = subnormal;
  health.max_abs = std::bit_cast<double>(convert_bits<binary32_format, binary64_format>(most));
  return health;
}

/// A mask as a number. GCC 12 may spill one of 8 bits as a byte and take back four: what the others
/// are is its register's then.
template <class Mask>
[[gnu::always_inline]] inline std::uint32_t number_of(Mask mask) noexcept {
  asm("" : "+r"(mask));
  return mask;
}

/// Asks for what is read some 4 KiB later. Counting fills the processor's window of instructions with
/// so few loads that memory would wait for it.
template <std::size_t Bytes>
[[gnu::always_inline]] inline void prefetch(const std::byte* from) noexcept {
  for (std::size_t line = 0; line < Bytes; line += 64) {
    __builtin_prefetch(from + 4096 + line);
  }
}

struct avx2_measuring : avx2 {
  /// Of usual elements, and what lanes compare with.
  struct counts {
    std::uint64_t unusual;  // those that are not
    std::uint64_t neg;
    std::uint64_t subnormal;
    __m256i most;  // the largest magnitudes of FP32, as bits
    __m256 error;  // the largest relative error
  };

  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i magnitude_of(__m256 x) noexcept {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
  }
  [[gnu::always_inline]] VGGLOAD_AVX2 static std::uint32_t lanes_of(__m256i mask) noexcept {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
  }
  [[gnu::always_inline]] VGGLOAD_AVX2 static std::uint32_t lanes_of(__m256i low,
                                                                    __m256i high) noexcept {
    return lanes_of(low) | lanes_of(high) << 8U;
  }

  /// As FP32; of NaNs only that they are ones.
  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX2 static lanes widen_result(__m256i narrow) noexcept {
    if constexpr (std::same_as<To, float16>) {
      return load_lanes<float16>(narrow);
    } else {
      return {_mm256_castsi256_ps(
                  _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(narrow)), 16)),
              _mm256_castsi256_ps(_mm256_slli_epi32(
                  _mm256_cvtepu16_epi32(_mm256_extracti128_si256(narrow, 1)), 16))};
    }
  }

  /// Counts what nothing is left to compute of, many lanes at once; gives the rest of the lanes.
  [[gnu::always_inline]] VGGLOAD_AVX2 static std::uint32_t count_classes(
      __m256 x, __m256 y, std::uint32_t unusual, tensor_health& health) noexcept {
    const __m256i none = _mm256_setzero_si256();
    const __m256i infinity = _mm256_set1_epi32(infinity_bits<float>);
    const __m256i magnitude = magnitude_of(x);
    const __m256i result = magnitude_of(y);
    const std::uint32_t zero = unusual & lanes_of(_mm256_cmpeq_epi32(magnitude, none));
    const std::uint32_t infinite = unusual & lanes_of(_mm256_cmpeq_epi32(magnitude, infinity));
    const std::uint32_t nan = unusual & lanes_of(_mm256_cmpgt_epi32(magnitude, infinity));
    const std::uint32_t finite = unusual & ~(zero | infinite | nan);
    const std::uint32_t flushed = finite & lanes_of(_mm256_cmpeq_epi32(result, none));
    const std::uint32_t overflowed = finite & lanes_of(_mm256_cmpeq_epi32(result, infinity));
    const std::uint32_t lost = flushed | overflowed;
    std::uint32_t most = 0;
    if (lost != 0) {
      std::array<std::uint32_t, 8> all;
      std::memcpy(all.data(), &magnitude, sizeof(magnitude));
      for (std::uint32_t left = lost; left != 0; left &= left - 1) {
        most = std::max(most, all[static_cast<std::size_t>(std::countr_zero(left))]);
      }
    }
    add_classes({zero, infinite, nan, flushed, overflowed, lanes_of(_mm256_castps_si256(x))}, most,
                health);
    return finite & ~lost;
  }

  /// What is not usual among 16 elements.
  template <class From, class To>
  [[gnu::noinline]] VGGLOAD_AVX2 static float count_unusual(__m256 x_low, __m256 x_high,
                                                            __m256 y_low, __m256 y_high,
                                                            std::uint32_t unusual,
                                                            std::uint32_t exceeding,
                                                            tensor_health& health) noexcept {
    exceeding &= ~unusual;
    const __m256i none = _mm256_setzero_si256();
    const std::uint32_t zeros = lanes_of(_mm256_cmpeq_epi32(magnitude_of(x_low), none),
                                         _mm256_cmpeq_epi32(magnitude_of(x_high), none));
    if ((unusual & ~zeros) == 0 && exceeding == 0) {  // as of pruned weights: often
      const auto count = static_cast<unsigned>(std::popcount(zeros));
      health.zero += count;
      health.numel += count;
      return static_cast<float>(health.max_relative_error);
    }
    unusual = count_classes(x_low, y_low, unusual & 0xFFU, health) |
              count_classes(x_high, y_high, unusual >> 8U, health) << 8U;
    if ((unusual | exceeding) == 0) return static_cast<float>(health.max_relative_error);
    std::array<std::uint32_t, 16> x;
    std::array<std::uint32_t, 16> y;
    std::memcpy(x.data(), &x_low, sizeof(x_low));
    std::memcpy(x.data() + 8, &x_high, sizeof(x_high));
    std::memcpy(y.data(), &y_low, sizeof(y_low));
    std::memcpy(y.data() + 8, &y_high, sizeof(y_high));
    return measure_lanes<From, To>(x, y, unusual, exceeding, health);
  }

  /// What a relative error that is larger than all before has above it; one rounding, at the end,
  /// which keeps the sign: the comparison is exact.
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i excess(__m256 x, __m256 y, __m256i magnitude,
                                                            __m256 error) noexcept {
    const __m256 distance = _mm256_castsi256_ps(magnitude_of(_mm256_sub_ps(y, x)));
    return _mm256_castps_si256(_mm256_fnmadd_ps(error, _mm256_castsi256_ps(magnitude), distance));
  }

  /// 16 elements and their results in a 16-bit type.
  template <class From, class To>
  [[gnu::always_inline]] VGGLOAD_AVX2 static void count_narrow(lanes x, __m256i narrow, counts& c,
                                                               tensor_health& health) noexcept {
    using usual = usual_results<To>;
    const __m256i result = _mm256_and_si256(narrow, _mm256_set1_epi16(0x7FFF));
    const __m256i unusual =
        _mm256_or_si256(_mm256_cmpgt_epi16(_mm256_set1_epi16(usual::from), result),
                        _mm256_cmpgt_epi16(result, _mm256_set1_epi16(infinity_bits<To> - 1)));
    const lanes y = widen_result<To>(narrow);
    __m256i low = magnitude_of(x.low);
    __m256i high = magnitude_of(x.high);
    const __m256i low_excess = excess(x.low, y.low, low, c.error);
    const __m256i high_excess = excess(x.high, y.high, high, c.error);
    const __m256i none = _mm256_setzero_si256();
    const __m256i exceeding = _mm256_cmpgt_epi32(_mm256_max_epi32(low_excess, high_excess), none);
    const __m256i any = _mm256_or_si256(unusual, exceeding);
    if (_mm256_testz_si256(any, any) == 0) [[unlikely]] {
      // Each lane's 16 bits become 32.
      const __m256i low_unusual = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(unusual));
      const __m256i high_unusual = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(unusual, 1));
      const std::uint32_t lanes = lanes_of(low_unusual, high_unusual);
      c.unusual += static_cast<unsigned>(std::popcount(lanes));
      c.error = _mm256_set1_ps(count_unusual<From, To>(
          x.low, x.high, y.low, y.high, lanes,
          lanes_of(_mm256_cmpgt_epi32(low_excess, none), _mm256_cmpgt_epi32(high_excess, none)),
          health));
      low = _mm256_andnot_si256(low_unusual, low);
      high = _mm256_andnot_si256(high_unusual, high);
    }
    // Two bits for each lane.
    const auto two_bits = [](int mask) {
      return static_cast<unsigned>(std::popcount(static_cast<unsigned>(mask))) / 2;
    };
    const __m256i negative = _mm256_srai_epi16(narrow, 15);
    c.neg += two_bits(_mm256_movemask_epi8(_mm256_andnot_si256(unusual, negative)));
    if constexpr (std::same_as<To, float16>) {
      const __m256i subnormal =
          _mm256_cmpgt_epi16(_mm256_set1_epi16(usual::subnormal_below), result);
      c.subnormal += two_bits(_mm256_movemask_epi8(_mm256_andnot_si256(unusual, subnormal)));
    }
    c.most = _mm256_max_epi32(c.most, _mm256_max_epi32(low, high));
  }

  /// 16 elements that lose nothing.
  template <class From>
  [[gnu::always_inline]] VGGLOAD_AVX2 static void count_exact(lanes x, counts& c,
                                                              tensor_health& health) noexcept {
    using usual = usual_results<float>;
    __m256i low = magnitude_of(x.low);
    __m256i high = magnitude_of(x.high);
    const __m256i least = _mm256_set1_epi32(usual::from);
    const __m256i most = _mm256_set1_epi32(infinity_bits<float> - 1);
    const __m256i low_unusual =
        _mm256_or_si256(_mm256_cmpgt_epi32(least, low), _mm256_cmpgt_epi32(low, most));
    const __m256i high_unusual =
        _mm256_or_si256(_mm256_cmpgt_epi32(least, high), _mm256_cmpgt_epi32(high, most));
    const __m256i any = _mm256_or_si256(low_unusual, high_unusual);
    const std::uint32_t negative =
        lanes_of(_mm256_castps_si256(x.low), _mm256_castps_si256(x.high));
    std::uint32_t lanes = 0;
    if (_mm256_testz_si256(any, any) == 0) [[unlikely]] {
      lanes = lanes_of(low_unusual, high_unusual);
      c.unusual += static_cast<unsigned>(std::popcount(lanes));
      count_unusual<From, float>(x.low, x.high, x.low, x.high, lanes, 0, health);
      low = _mm256_andnot_si256(low_unusual, low);
      high = _mm256_andnot_si256(high_unusual, high);
    }
    c.neg += static_cast<unsigned>(std::popcount(negative & ~lanes));
    c.most = _mm256_max_epi32(c.most, _mm256_max_epi32(low, high));
  }

  template <class From, class To, bool Stream>
  [[gnu::noinline]] VGGLOAD_AVX2 static void measure(const std::byte* source,
                                                     std::byte* destination, std::size_t count,
                                                     tensor_health& health) noexcept {
    counts c{};
    c.error = _mm256_set1_ps(static_cast<float>(health.max_relative_error));
    std::size_t i = 0;
    for (; i + step <= count; i += step) {
      if constexpr (Stream) prefetch<step * sizeof(From)>(source + i * sizeof(From));
      const lanes values = load<From, To>(source + i * sizeof(From));
      std::byte* const to = destination + i * sizeof(To);
      if constexpr (sizeof(To) == 2) {
        const __m256i bits = narrow<To>(values);
        store_bits<Stream>(to, bits);
        count_narrow<From, To>(values, bits, c, health);
      } else {
        store<To, Stream>(values, to, _mm256_setzero_si256());
        count_exact<From>(values, c, health);
      }
    }
    if constexpr (Stream) _mm_sfence();
    const auto most = std::bit_cast<std::array<std::uint32_t, 8>>(c.most);
    health += usual_health(i - c.unusual, c.neg, c.subnormal, *std::ranges::max_element(most));
    measure_scalar<From, To>(source + i * sizeof(From), destination + i * sizeof(To), count - i,
                             health);
  }
};

/// As `avx2_measuring`, with 32 elements.
struct avx512_measuring : avx512 {
  struct counts {
    __m512 most_low;  // the largest magnitudes
    __m512 most_high;
    __m512 error;        // the largest relative error, in each lane
    __m512i usual_from;  // smaller 16-bit results are not usual
    std::uint64_t unusual;
    std::uint64_t neg;
    std::uint64_t subnormal;
    float largest_error;
  };

  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i magnitude_of(__m512 x) noexcept {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  }
  [[gnu::always_inline]] VGGLOAD_AVX512 static std::uint32_t lanes_of(__mmask16 low,
                                                                      __mmask16 high) noexcept {
    return number_of(low) | number_of(high) << 16U;
  }

  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX512 static lanes widen_result(__m512i narrow) noexcept {
    if constexpr (std::same_as<To, float16>) {
      return load_lanes<float16>(narrow);
    } else {
      return {_mm512_castsi512_ps(
                  _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(narrow)), 16)),
              _mm512_castsi512_ps(_mm512_slli_epi32(
                  _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(narrow, 1)), 16))};
    }
  }

  /// As in `avx2_measuring`.
  [[gnu::always_inline]] VGGLOAD_AVX512 static __mmask16 count_classes(
      __m512 x, __m512 y, __mmask16 unusual, tensor_health& health) noexcept {
    const __m512i infinity = _mm512_set1_epi32(infinity_bits<float>);
    const __m512i magnitude = magnitude_of(x);
    const __m512i result = magnitude_of(y);
    const std::uint32_t lanes = number_of(unusual);
    const std::uint32_t zero = lanes & number_of(_mm512_testn_epi32_mask(magnitude, magnitude));
    const std::uint32_t infinite = lanes & number_of(_mm512_cmpeq_epi32_mask(magnitude, infinity));
    const std::uint32_t nan = lanes & number_of(_mm512_cmpgt_epi32_mask(magnitude, infinity));
    const std::uint32_t finite = lanes & ~(zero | infinite | nan);
    const std::uint32_t flushed = finite & number_of(_mm512_testn_epi32_mask(result, result));
    const std::uint32_t overflowed = finite & number_of(_mm512_cmpeq_epi32_mask(result, infinity));
    const std::uint32_t lost = flushed | overflowed;
    const std::uint32_t most =
        lost == 0 ? 0 : _mm512_mask_reduce_max_epu32(static_cast<__mmask16>(lost), magnitude);
    add_classes({zero, infinite, nan, flushed, overflowed,
                 number_of(_mm512_movepi32_mask(_mm512_castps_si512(x)))},
                most, health);
    return static_cast<__mmask16>(finite & ~lost);
  }

  template <class From, class To>
  [[gnu::noinline]] VGGLOAD_AVX512 static float count_unusual(__m512 x_low, __m512 x_high,
                                                              __m512 y_low, __m512 y_high,
                                                              std::uint32_t unusual,
                                                              std::uint32_t exceeding,
                                                              tensor_health& health) noexcept {
    exceeding &= ~unusual;
    const __m512i low = magnitude_of(x_low);
    const __m512i high = magnitude_of(x_high);
    const std::uint32_t zeros =
        lanes_of(_mm512_testn_epi32_mask(low, low), _mm512_testn_epi32_mask(high, high));
    if ((unusual & ~zeros) == 0 && exceeding == 0) {
      const auto count = static_cast<unsigned>(std::popcount(zeros));
      health.zero += count;
      health.numel += count;
      return static_cast<float>(health.max_relative_error);
    }
    unusual =
        lanes_of(count_classes(x_low, y_low, static_cast<__mmask16>(unusual), health),
                 count_classes(x_high, y_high, static_cast<__mmask16>(unusual >> 16U), health));
    if ((unusual | exceeding) == 0) return static_cast<float>(health.max_relative_error);
    std::array<std::uint32_t, 32> x;
    std::array<std::uint32_t, 32> y;
    std::memcpy(x.data(), &x_low, sizeof(x_low));
    std::memcpy(x.data() + 16, &x_high, sizeof(x_high));
    std::memcpy(y.data(), &y_low, sizeof(y_low));
    std::memcpy(y.data() + 16, &y_high, sizeof(y_high));
    return measure_lanes<From, To>(x, y, unusual, exceeding, health);
  }

  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i excess(__m512 x, __m512 y, __m512i magnitude,
                                                              __m512 error) noexcept {
    const __m512 distance = _mm512_castsi512_ps(magnitude_of(_mm512_sub_ps(y, x)));
    return _mm512_castps_si512(_mm512_fnmadd_ps(error, _mm512_castsi512_ps(magnitude), distance));
  }

  /// Of numbers, lane by lane, in one instruction.
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512 largest_magnitude(__m512 a,
                                                                        __m512 b) noexcept {
    return _mm512_range_ps(a, b, 0b1011);  // of the magnitudes the larger, without its sign
  }

  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX512 static void set_error(counts& c, float error) noexcept {
    c.largest_error = error;
    c.error = _mm512_set1_ps(error);
    c.usual_from = _mm512_set1_epi16(
        static_cast<short>(std::max(usual_results<To>::from, no_larger_error_from<To>(error))));
  }

  /// `ErrorsKnown`: no usual result has a relative error above the largest so far.
  template <class From, class To, bool ErrorsKnown>
  [[gnu::always_inline]] VGGLOAD_AVX512 static void count_narrow(lanes x, __m512i narrow, counts& c,
                                                                 tensor_health& health) noexcept {
    const __m512i result = _mm512_and_si512(narrow, _mm512_set1_epi16(0x7FFF));
    const std::uint32_t unusual = _mm512_cmpge_epu16_mask(
        _mm512_sub_epi16(result, c.usual_from),
        _mm512_sub_epi16(_mm512_set1_epi16(infinity_bits<To>), c.usual_from));
    std::uint32_t negative = number_of(_mm512_movepi16_mask(narrow));
    std::uint32_t subnormal = 0;
    if constexpr (std::same_as<To, float16>) {
      subnormal = number_of(
          _mm512_cmplt_epu16_mask(result, _mm512_set1_epi16(usual_results<To>::subnormal_below)));
    }
    const __m512i none = _mm512_setzero_si512();
    __m512i low_excess = none;
    __m512i high_excess = none;
    std::uint32_t exceeding = 0;
    if constexpr (!ErrorsKnown) {
      const lanes y = widen_result<To>(narrow);
      low_excess = excess(x.low, y.low, magnitude_of(x.low), c.error);
      high_excess = excess(x.high, y.high, magnitude_of(x.high), c.error);
      exceeding =
          number_of(_mm512_cmpgt_epi32_mask(_mm512_max_epi32(low_excess, high_excess), none));
    }
    if ((unusual | exceeding) != 0) [[unlikely]] {
      c.unusual += static_cast<unsigned>(std::popcount(unusual));
      const lanes y = widen_result<To>(narrow);
      const float error =
          count_unusual<From, To>(x.low, x.high, y.low, y.high, unusual,
                                  lanes_of(_mm512_cmpgt_epi32_mask(low_excess, none),
                                           _mm512_cmpgt_epi32_mask(high_excess, none)),
                                  health);
      if (error > c.largest_error) set_error<To>(c, error);
      negative &= ~unusual;
      subnormal &= ~unusual;
      x.low = _mm512_maskz_mov_ps(static_cast<__mmask16>(~unusual), x.low);
      x.high = _mm512_maskz_mov_ps(static_cast<__mmask16>(~unusual >> 16U), x.high);
    }
    c.neg += static_cast<unsigned>(std::popcount(negative));
    c.subnormal += static_cast<unsigned>(std::popcount(subnormal));
    c.most_low = largest_magnitude(c.most_low, x.low);
    c.most_high = largest_magnitude(c.most_high, x.high);
  }

  template <class From>
  [[gnu::always_inline]] VGGLOAD_AVX512 static void count_exact(lanes x, counts& c,
                                                                tensor_health& health) noexcept {
    using usual = usual_results<float>;
    const __m512i low = magnitude_of(x.low);
    const __m512i high = magnitude_of(x.high);
    const __m512i least = _mm512_set1_epi32(usual::from);
    const __m512i range = _mm512_set1_epi32(infinity_bits<float> - usual::from);
    const std::uint32_t unusual =
        lanes_of(_mm512_cmpge_epu32_mask(_mm512_sub_epi32(low, least), range),
                 _mm512_cmpge_epu32_mask(_mm512_sub_epi32(high, least), range));
    if (unusual != 0) [[unlikely]] {
      c.unusual += static_cast<unsigned>(std::popcount(unusual));
      count_unusual<From, float>(x.low, x.high, x.low, x.high, unusual, 0, health);
      x.low = _mm512_maskz_mov_ps(static_cast<__mmask16>(~unusual), x.low);
      x.high = _mm512_maskz_mov_ps(static_cast<__mmask16>(~unusual >> 16U), x.high);
    }
    const std::uint32_t negative = lanes_of(_mm512_movepi32_mask(_mm512_castps_si512(x.low)),
                                            _mm512_movepi32_mask(_mm512_castps_si512(x.high)));
    c.neg += static_cast<unsigned>(std::popcount(negative & ~unusual));
    c.most_low = largest_magnitude(c.most_low, x.low);
    c.most_high = largest_magnitude(c.most_high, x.high);
  }

  template <class From, class To, bool Stream, bool ErrorsKnown>
  [[gnu::always_inline]] VGGLOAD_AVX512 static void measure_step(const std::byte* from,
                                                                 std::byte* to, counts& c,
                                                                 tensor_health& health) noexcept {
    if constexpr (Stream) prefetch<step * sizeof(From)>(from);
    const lanes values = load<From, To>(from);
    if constexpr (sizeof(To) == 2) {
      const __m512i bits = narrow<To>(values);
      store_bits<Stream>(to, bits);
      count_narrow<From, To, ErrorsKnown>(values, bits, c, health);
    } else {
      store<To, Stream>(values, to, _mm512_setzero_si512());
      count_exact<From>(values, c, health);
    }
  }

  template <class From, class To, bool Stream>
  [[gnu::noinline]] VGGLOAD_AVX512 static void measure(const std::byte* source,
                                                       std::byte* destination, std::size_t count,
                                                       tensor_health& health) noexcept {
    counts c{};
    if constexpr (sizeof(To) == 2) set_error<To>(c, static_cast<float>(health.max_relative_error));
    std::size_t i = 0;
    while (i + step <= count && no_larger_error_from<To>(c.largest_error) == 0) {
      measure_step<From, To, Stream, false>(source + i * sizeof(From), destination + i * sizeof(To),
                                            c, health);
      i += step;
    }
    if constexpr (std::same_as<To, float16>) {
      for (; i + step <= count; i += step) {
        measure_step<From, To, Stream, true>(source + i * sizeof(From),
                                             destination + i * sizeof(To), c, health);
      }
    }
    if constexpr (Stream) _mm_sfence();
    const auto most =
        std::bit_cast<std::array<std::uint32_t, 16>>(largest_magnitude(c.most_low, c.most_high));
    health += usual_health(i - c.unusual, c.neg, c.subnormal, *std::ranges::max_element(most));
    measure_scalar<From, To>(source + i * sizeof(From), destination + i * sizeof(To), count - i,
                             health);
  }
};

// ---- from FP64 ---------------------------------------------------------------------------------

/// The bits, as FP64, of the smallest result that is usual.
template <class To>
inline constexpr std::uint64_t usual_f64_from = [] {
  if constexpr (std::same_as<To, double>) {
    return std::uint64_t{1};
  } else if constexpr (std::same_as<To, float>) {
    return smallest_normal_bits<double, float>;
  } else {
    return convert_bits<typename format_of_type<To>::type, binary64_format>(
        usual_results<To>::from);
  }
}();

/// As `measure_lanes`.
template <class To, std::size_t Lanes>
[[gnu::noinline]] double measure_f64_lanes(const std::array<std::uint64_t, Lanes>& x,
                                           const std::array<std::uint64_t, Lanes>& y,
                                           unsigned unusual, unsigned exceeding,
                                           tensor_health& health) noexcept {
  for (unsigned lanes = unusual | exceeding; lanes != 0; lanes &= lanes - 1) {
    const auto lane = static_cast<std::size_t>(std::countr_zero(lanes));
    if ((unusual >> lane & 1U) != 0) {
      measure_element<double, double, To>(x[lane], y[lane], health);
    } else {
      raise_relative_error(health.max_relative_error,
                           relative_error_of<binary64_format>(x[lane], y[lane]));
    }
  }
  return health.max_relative_error;
}

/// What was counted of usual elements.
[[nodiscard]] inline tensor_health usual_f64_health(std::uint64_t usual, std::uint64_t neg,
                                                    std::uint64_t subnormal,
                                                    std::uint64_t most) noexcept {
  tensor_health health = usual_health(usual, neg, subnormal, 0);
  health.max_abs = std::bit_cast<double>(most);
  return health;
}

struct avx2_f64_measuring : avx2 {
  /// Four results as FP64.
  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256d widen_f64(const std::byte* from) noexcept {
    if constexpr (std::same_as<To, double>) {
      return _mm256_castsi256_pd(load_bits(from));
    } else if constexpr (std::same_as<To, float>) {
      return _mm256_cvtps_pd(_mm_loadu_ps(reinterpret_cast<const float*>(from)));
    } else {
      const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
      if constexpr (std::same_as<To, float16>) {
        return _mm256_cvtps_pd(_mm_cvtph_ps(bits));
      } else {
        return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16)));
      }
    }
  }

  [[gnu::always_inline]] VGGLOAD_AVX2 static unsigned bits_of_lanes(__m256i lanes) noexcept {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(lanes)));
  }

  /// Counts `count` elements and their results, a multiple of 4.
  template <class To>
  [[gnu::noinline]] VGGLOAD_AVX2 static void count(const std::byte* source,
                                                   const std::byte* results, std::size_t count,
                                                   tensor_health& health) noexcept {
    const __m256i magnitude_mask = _mm256_set1_epi64x(INT64_MAX);
    const __m256i below = _mm256_set1_epi64x(usual_f64_from<To> - 1);
    const __m256i above = _mm256_set1_epi64x(infinity_bits<double> - 1);
    __m256d error = _mm256_set1_pd(health.max_relative_error);
    __m256i most = _mm256_setzero_si256();
    std::uint64_t unusual_count = 0;
    std::uint64_t neg = 0;
    std::uint64_t subnormal = 0;
    for (std::size_t i = 0; i < count; i += 4) {
      const __m256i x = load_bits(source + 8 * i);
      const __m256d y = widen_f64<To>(results + i * sizeof(To));
      const __m256i result = _mm256_and_si256(_mm256_castpd_si256(y), magnitude_mask);
      __m256i magnitude = _mm256_and_si256(x, magnitude_mask);
      const unsigned unusual = (bits_of_lanes(_mm256_cmpgt_epi64(result, below)) ^ 0xFU) |
                               bits_of_lanes(_mm256_cmpgt_epi64(result, above));
      unsigned exceeding = 0;
      if constexpr (!std::same_as<To, double>) {
        const __m256d distance = _mm256_and_pd(_mm256_sub_pd(y, _mm256_castsi256_pd(x)),
                                               _mm256_castsi256_pd(magnitude_mask));
        const __m256d excess = _mm256_fnmadd_pd(error, _mm256_castsi256_pd(magnitude), distance);
        exceeding =
            bits_of_lanes(_mm256_cmpgt_epi64(_mm256_castpd_si256(excess), _mm256_setzero_si256()));
      }
      if ((unusual | exceeding) != 0) [[unlikely]] {
        std::array<std::uint64_t, 4> xs;
        std::array<std::uint64_t, 4> ys;
        std::memcpy(xs.data(), &x, sizeof(x));
        std::memcpy(ys.data(), &y, sizeof(y));
        error = _mm256_set1_pd(measure_f64_lanes<To>(xs, ys, unusual, exceeding, health));
        unusual_count += static_cast<unsigned>(std::popcount(unusual));
        const __m256i usual = _mm256_andnot_si256(_mm256_cmpgt_epi64(result, above),
                                                  _mm256_cmpgt_epi64(result, below));
        magnitude = _mm256_and_si256(magnitude, usual);
      }
      neg += static_cast<unsigned>(std::popcount(bits_of_lanes(x) & ~unusual));
      if constexpr (std::same_as<To, float16>) {
        const __m256i normal =
            _mm256_cmpgt_epi64(result, _mm256_set1_epi64x(smallest_normal_bits<double, To> - 1));
        subnormal +=
            static_cast<unsigned>(std::popcount(~(bits_of_lanes(normal) | unusual) & 0xFU));
      }
      most = _mm256_blendv_epi8(most, magnitude, _mm256_cmpgt_epi64(magnitude, most));
    }
    std::array<std::uint64_t, 4> all;
    std::memcpy(all.data(), &most, sizeof(most));
    health +=
        usual_f64_health(count - unusual_count, neg, subnormal, *std::ranges::max_element(all));
  }
};

struct avx512_f64_measuring : avx512 {
  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512d widen_f64(const std::byte* from) noexcept {
    if constexpr (std::same_as<To, double>) {
      return _mm512_castsi512_pd(load_bits(from));
    } else if constexpr (std::same_as<To, float>) {
      return _mm512_cvtps_pd(_mm256_loadu_ps(reinterpret_cast<const float*>(from)));
    } else {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      if constexpr (std::same_as<To, float16>) {
        return _mm512_cvtps_pd(_mm256_cvtph_ps(bits));
      } else {
        return _mm512_cvtps_pd(
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
      }
    }
  }

  /// As in `avx2_f64_measuring`, a multiple of 8.
  template <class To>
  [[gnu::noinline]] VGGLOAD_AVX512 static void count(const std::byte* source,
                                                     const std::byte* results, std::size_t count,
                                                     tensor_health& health) noexcept {
    const __m512i magnitude_mask = _mm512_set1_epi64(INT64_MAX);
    __m512d error = _mm512_set1_pd(health.max_relative_error);
    __m512i most = _mm512_setzero_si512();
    std::uint64_t unusual_count = 0;
    std::uint64_t neg = 0;
    std::uint64_t subnormal = 0;
    for (std::size_t i = 0; i < count; i += 8) {
      const __m512i x = load_bits(source + 8 * i);
      const __m512d y = widen_f64<To>(results + i * sizeof(To));
      const __m512i result = _mm512_and_si512(_mm512_castpd_si512(y), magnitude_mask);
      __m512i magnitude = _mm512_and_si512(x, magnitude_mask);
      const unsigned unusual = number_of(
          _mm512_cmpge_epu64_mask(_mm512_sub_epi64(result, _mm512_set1_epi64(usual_f64_from<To>)),
                                  _mm512_set1_epi64(infinity_bits<double> - usual_f64_from<To>)));
      unsigned exceeding = 0;
      if constexpr (!std::same_as<To, double>) {
        const __m512d distance = _mm512_castsi512_pd(_mm512_and_si512(
            _mm512_castpd_si512(_mm512_sub_pd(y, _mm512_castsi512_pd(x))), magnitude_mask));
        const __m512d excess = _mm512_fnmadd_pd(error, _mm512_castsi512_pd(magnitude), distance);
        exceeding =
            number_of(_mm512_cmpgt_epi64_mask(_mm512_castpd_si512(excess), _mm512_setzero_si512()));
      }
      if ((unusual | exceeding) != 0) [[unlikely]] {
        std::array<std::uint64_t, 8> xs;
        std::array<std::uint64_t, 8> ys;
        std::memcpy(xs.data(), &x, sizeof(x));
        std::memcpy(ys.data(), &y, sizeof(y));
        error = _mm512_set1_pd(measure_f64_lanes<To>(xs, ys, unusual, exceeding, health));
        unusual_count += static_cast<unsigned>(std::popcount(unusual));
        magnitude = _mm512_maskz_mov_epi64(static_cast<__mmask8>(~unusual), magnitude);
      }
      neg += static_cast<unsigned>(std::popcount(number_of(_mm512_movepi64_mask(x)) & ~unusual));
      if constexpr (std::same_as<To, float16>) {
        const unsigned small = number_of(
            _mm512_cmplt_epu64_mask(result, _mm512_set1_epi64(smallest_normal_bits<double, To>)));
        subnormal += static_cast<unsigned>(std::popcount(small & ~unusual));
      }
      most = _mm512_max_epu64(most, magnitude);
    }
    std::array<std::uint64_t, 8> all;
    std::memcpy(all.data(), &most, sizeof(most));
    health +=
        usual_f64_health(count - unusual_count, neg, subnormal, *std::ranges::max_element(all));
  }
};

/// As `measured_conversion` (convert.hpp) wants it: block by block in the first cache, converted and
/// then counted.
template <class Isa, class To>
void measure_f64(const std::byte* source, std::byte* destination, std::size_t count,
                 tensor_health& health) noexcept {
  constexpr std::size_t block = 512;
  alignas(64) std::array<std::byte, block * sizeof(To)> results;
  std::size_t i = 0;
  for (; i + block <= count; i += block) {
    const std::byte* const from = source + i * sizeof(double);
    prefetch<block * sizeof(double)>(from);
    if constexpr (std::same_as<To, double>) {
      std::memcpy(results.data(), from, results.size());
    } else {
      convert<Isa, double, To>(from, results.data(), block);
    }
    const floating_point_mode mode(floating_point_mode::nearest);
    Isa::template count<To>(from, results.data(), block, health);
    std::memcpy(destination + i * sizeof(To), results.data(), results.size());
  }
  measure_scalar<double, To>(source + i * sizeof(double), destination + i * sizeof(To), count - i,
                             health);
}

/// From is one of the types that FP32 holds.
template <class Isa, class From, class To>
void measure_converted(const std::byte* source, std::byte* destination, std::size_t count,
                       tensor_health& health) noexcept {
  const floating_point_mode mode(floating_point_mode::nearest);
  const bool streams = streams_to<To>(source, destination, count);
  const std::size_t head = streams ? elements_to_border<To>(destination) : 0;
  measure_scalar<From, To>(source, destination, head, health);
  source += head * sizeof(From);
  destination += head * sizeof(To);
  if (streams) {
    Isa::template measure<From, To, true>(source, destination, count - head, health);
  } else {
    Isa::template measure<From, To, false>(source, destination, count - head, health);
  }
}

/// As `measured_conversion` (convert.hpp) wants it.
template <class Isa, class From, class To>
void measure(const std::byte* source, std::byte* destination, std::size_t count,
             tensor_health& health) noexcept {
  if constexpr (std::same_as<From, To> && sizeof(From) == 2) {
    // The bytes are copied, signalling NaNs too; what is counted is counted of a widened copy.
    std::array<float, 1024> widened;
    for (std::size_t i = 0; i < count; i += widened.size()) {
      const std::size_t n = std::min(widened.size(), count - i);
      const std::byte* const block = source + i * sizeof(From);
      measure_converted<Isa, From, float>(block, reinterpret_cast<std::byte*>(widened.data()), n,
                                          health);
      if (source != destination) std::memcpy(destination + i * sizeof(To), block, n * sizeof(To));
    }
  } else {
    measure_converted<Isa, From, To>(source, destination, count, health);
  }
}

}  // namespace vggload::detail::x86

#pragma GCC diagnostic pop

#undef VGGLOAD_AVX2
#undef VGGLOAD_AVX512

#endif
