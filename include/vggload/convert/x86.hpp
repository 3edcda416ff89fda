// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Conversions with x86's vector instructions. Each function carries the instruction set it needs as
// an attribute, so no compiler flag is wanted and none changes it; who calls one has asked the
// processor before (convert.hpp). All take any alignment and any count, and follow the rule in
// scalar.hpp bit for bit. Comparisons are made with integers: a compiler that was told that there
// are no NaNs may not leave them out.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <cpuid.h>
#include <immintrin.h>

#include <vggload/convert/health.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/core/float16.hpp>

#define VGGLOAD_AVX2 __attribute__((target("avx2,fma,f16c")))
#define VGGLOAD_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")))
#define VGGLOAD_AVX512_BF16 \
  __attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")))

// GCC's own macros for some intrinsics convert a signed constant.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#if !defined(__clang__)
// GCC 12 takes its own "undefined" vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace vggload::detail::x86 {

[[nodiscard]] inline bool has_avx2_fma_and_f16c() noexcept {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  // Older compilers' __builtin_cpu_supports does not know f16c. That of avx2 includes whether the
  // operating system saves the registers, and is asked first for that.
  constexpr unsigned f16c_bit = 1U << 29U;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & f16c_bit) != 0;
}

[[nodiscard]] inline bool has_avx512() noexcept {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

[[nodiscard]] inline bool has_avx512_bf16() noexcept {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

/// MXCSR as a conversion needs it, and as it was again at the end: no flushing of subnormals, no
/// exception that traps, and the rounding that is asked for.
class floating_point_mode {
 public:
  static constexpr unsigned nearest = 0x1F80;  // what a process starts with
  static constexpr unsigned toward_zero = 0x7F80;

  explicit floating_point_mode(unsigned wanted) noexcept : before_(_mm_getcsr()) {
    constexpr unsigned sticky = 0x3F;  // which exceptions there were, not what is done about them
    changed_ = (before_ & ~sticky) != wanted;
    if (changed_) _mm_setcsr(wanted);
  }
  floating_point_mode(const floating_point_mode&) = delete;
  floating_point_mode& operator=(const floating_point_mode&) = delete;
  ~floating_point_mode() {
    if (changed_) _mm_setcsr(before_);
  }

 private:
  unsigned before_;
  bool changed_;
};

/// What is larger than this is written past the caches: it would only push out what is there, and
/// be read from memory before it is written. More than a core's share of the last cache.
inline constexpr std::size_t streaming_bytes = std::size_t{8} << 20U;

/// Whether a destination is written past the caches: in vectors, which must lie aligned there.
template <class To>
[[nodiscard]] bool streams_to(const std::byte* source, const std::byte* destination,
                              std::size_t count) noexcept {
  // In place, the lines are in the cache already.
  return count >= streaming_bytes / sizeof(To) && source != destination &&
         reinterpret_cast<std::uintptr_t>(destination) % sizeof(To) == 0;
}

/// The elements before the first one at a border of 64 bytes.
template <class To>
[[nodiscard]] std::size_t elements_to_border(const std::byte* destination) noexcept {
  return (64 - reinterpret_cast<std::uintptr_t>(destination) % 64) % 64 / sizeof(To);
}

/// The last elements, fewer than a step: in memory of a step's size.
template <class From, class To, std::size_t Step>
struct padded {
  padded(const std::byte* source, std::size_t count) noexcept {
    std::memcpy(in.data(), source, count * sizeof(From));
  }
  alignas(64) std::array<std::byte, Step * sizeof(From)> in{};
  alignas(64) std::array<std::byte, Step * sizeof(To)> out;
};

// Rounding is part of the instruction and flushing modes do not reach it (Intel SDM, VCVTPS2PH).
inline constexpr int nearest_even = _MM_FROUND_TO_NEAREST_INT;

// ---- AVX2: 16 elements at a time -----------------------------------------------------------------

struct avx2 {
  static constexpr std::size_t step = 16;

  /// 16 elements as FP32; the smaller types are so without loss.
  struct lanes {
    __m256 low;
    __m256 high;
  };

  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i load_bits(const std::byte* from) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  template <bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX2 static void store_bits(std::byte* to, __m256i bits) noexcept {
    if constexpr (Stream) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
    }
  }

  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i is_nan(__m256i bits) noexcept {
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F800000));
  }

  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256 widen_bf16(__m128i values) noexcept {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16);
    // NaNs are made quiet.
    return _mm256_castsi256_ps(
        _mm256_or_si256(bits, _mm256_and_si256(is_nan(bits), _mm256_set1_epi32(0x00400000))));
  }

  /// Four doubles as FP32. `Odd`: rounded to zero, and the last bit set where that is not exact; the
  /// next rounding, to 22 bits or less, then gives what one rounding would have given (Boldo and
  /// Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
  /// odd", 2008, theorem 3). The mode of rounding is the caller's.
  template <bool Odd>
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m128 narrow_f64(const std::byte* from) noexcept {
    const __m256d values = _mm256_castsi256_pd(load_bits(from));
    const __m128 rounded = _mm256_cvtpd_ps(values);
    if constexpr (!Odd) return rounded;
    const __m256i exact = _mm256_cmpeq_epi64(_mm256_castpd_si256(_mm256_cvtps_pd(rounded)),
                                             _mm256_castpd_si256(values));
    // The lower half of each 64-bit lane.
    const __m128i exact_lanes = _mm256_castsi256_si128(
        _mm256_permutevar8x32_epi32(exact, _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0)));
    return _mm_castsi128_ps(
        _mm_or_si128(_mm_castps_si128(rounded), _mm_andnot_si128(exact_lanes, _mm_set1_epi32(1))));
  }

  template <class From, class To>
  [[gnu::always_inline]] VGGLOAD_AVX2 static lanes load(const std::byte* from) noexcept {
    if constexpr (std::same_as<From, float>) {
      return {_mm256_castsi256_ps(load_bits(from)), _mm256_castsi256_ps(load_bits(from + 32))};
    } else if constexpr (std::same_as<From, double>) {
      constexpr bool odd = !std::same_as<To, float>;
      return {_mm256_set_m128(narrow_f64<odd>(from + 32), narrow_f64<odd>(from)),
              _mm256_set_m128(narrow_f64<odd>(from + 96), narrow_f64<odd>(from + 64))};
    } else {
      return load_lanes<From>(load_bits(from));
    }
  }

  /// 16 elements of a 16-bit type as FP32.
  template <class From>
  [[gnu::always_inline]] VGGLOAD_AVX2 static lanes load_lanes(__m256i bits) noexcept {
    const __m128i low = _mm256_castsi256_si128(bits);
    const __m128i high = _mm256_extracti128_si256(bits, 1);
    if constexpr (std::same_as<From, float16>) {
      return {_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
    } else {
      return {widen_bf16(low), widen_bf16(high)};
    }
  }

  /// bfloat16 in the upper half of each lane, the lower half undefined: half of the last place kept
  /// is added, or a little less where that place is even already; a NaN is made quiet. The carry
  /// reaches infinity by itself.
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i round_bf16(__m256 values) noexcept {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i quieted = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    return _mm256_blendv_epi8(rounded, quieted, is_nan(bits));
  }

  /// 16 elements of a 16-bit type.
  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i narrow(lanes values) noexcept {
    if constexpr (std::same_as<To, float16>) {
      return _mm256_set_m128i(_mm256_cvtps_ph(values.high, nearest_even),
                              _mm256_cvtps_ph(values.low, nearest_even));
    } else {
      // The pack works within 128-bit halves; the permutation puts the four quarters in order.
      return _mm256_permute4x64_epi64(
          _mm256_packus_epi32(_mm256_srli_epi32(round_bf16(values.low), 16),
                              _mm256_srli_epi32(round_bf16(values.high), 16)),
          0b11'01'10'00);
    }
  }

  template <bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX2 static void store_f64(std::byte* to, __m128 values) noexcept {
    store_bits<Stream>(to, _mm256_castpd_si256(_mm256_cvtps_pd(values)));
  }

  /// Writes 16 elements; gives the largest magnitude of each lane up to now in To's bits.
  template <class To, bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i store(lanes values, std::byte* to,
                                                           __m256i most) noexcept {
    if constexpr (sizeof(To) == 2) {
      const __m256i bits = narrow<To>(values);
      store_bits<Stream>(to, bits);
      return _mm256_max_epu16(most, _mm256_and_si256(bits, _mm256_set1_epi16(0x7FFF)));
    } else if constexpr (std::same_as<To, float>) {
      const __m256i low = _mm256_castps_si256(values.low);
      const __m256i high = _mm256_castps_si256(values.high);
      store_bits<Stream>(to, low);
      store_bits<Stream>(to + 32, high);
      const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
      return _mm256_max_epu32(most, _mm256_max_epu32(_mm256_and_si256(low, magnitude),
                                                     _mm256_and_si256(high, magnitude)));
    } else {
      store_f64<Stream>(to, _mm256_castps256_ps128(values.low));
      store_f64<Stream>(to + 32, _mm256_extractf128_ps(values.low, 1));
      store_f64<Stream>(to + 64, _mm256_castps256_ps128(values.high));
      store_f64<Stream>(to + 96, _mm256_extractf128_ps(values.high, 1));
      return most;
    }
  }

  /// Whether a lane of `most` is To's infinity or a NaN.
  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX2 static bool exceeds(__m256i most) noexcept {
    using bits = typename format_of_type<To>::type::bits_type;
    if constexpr (sizeof(To) == 8) return false;
    std::array<bits, 32 / sizeof(bits)> all;
    std::memcpy(all.data(), &most, sizeof(most));
    return *std::ranges::max_element(all) >= infinity_bits<To>;
  }

  /// A step of 16 elements; `most` as of `store`.
  template <class From, class To, bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX2 static __m256i convert_step(const std::byte* from,
                                                                  std::byte* to,
                                                                  __m256i most) noexcept {
    if constexpr (std::same_as<From, float> && std::same_as<To, double>) {
      // Quarters straight from memory: no lanes to take apart.
      for (std::size_t i = 0; i < step; i += 4) {
        store_f64<Stream>(to + 8 * i, _mm_loadu_ps(reinterpret_cast<const float*>(from + 4 * i)));
      }
      return most;
    } else {
      return store<To, Stream>(load<From, To>(from), to, most);
    }
  }

  template <class From, class To, bool Stream>
  [[gnu::noinline]] VGGLOAD_AVX2 static bool convert(const std::byte* source,
                                                     std::byte* destination,
                                                     std::size_t count) noexcept {
    auto most = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + step <= count; i += step) {
      most = convert_step<From, To, Stream>(source + i * sizeof(From), destination + i * sizeof(To),
                                            most);
    }
    if constexpr (Stream) _mm_sfence();
    if (const std::size_t rest = count - i; rest > 0) {
      padded<From, To, step> block(source + i * sizeof(From), rest);
      most = store<To, false>(load<From, To>(block.in.data()), block.out.data(), most);
      std::memcpy(destination + i * sizeof(To), block.out.data(), rest * sizeof(To));
    }
    return can_overflow<From, To> && exceeds<To>(most);
  }
};

// ---- AVX-512: 32 elements at a time --------------------------------------------------------------

struct avx512 {
  static constexpr std::size_t step = 32;

  struct lanes {
    __m512 low;
    __m512 high;
  };

  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i load_bits(const std::byte* from) noexcept {
    return _mm512_loadu_si512(from);
  }
  template <bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX512 static void store_bits(std::byte* to,
                                                               __m512i bits) noexcept {
    if constexpr (Stream) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits);
    } else {
      _mm512_storeu_si512(to, bits);
    }
  }

  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512 widen_bf16(__m256i values) noexcept {
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16);
    return _mm512_castsi512_ps(
        _mm512_mask_or_epi32(bits, is_nan(bits), bits, _mm512_set1_epi32(0x00400000)));
  }

  [[gnu::always_inline]] VGGLOAD_AVX512 static __mmask16 is_nan(__m512i bits) noexcept {
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF));
    return _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7F800000));
  }

  /// Eight doubles as FP32, as in `avx2`; the rounding is in the instruction here.
  template <bool Odd>
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m256 narrow_f64(const std::byte* from) noexcept {
    const __m512d values = _mm512_castsi512_pd(load_bits(from));
    if constexpr (!Odd) {
      return _mm512_cvtpd_ps(values);
    } else {
      const __m256 rounded = _mm512_cvt_roundpd_ps(values, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
      const __mmask8 inexact = _mm512_cmpneq_epi64_mask(
          _mm512_castpd_si512(_mm512_cvtps_pd(rounded)), _mm512_castpd_si512(values));
      const __m256i bits = _mm256_castps_si256(rounded);
      return _mm256_castsi256_ps(_mm256_mask_or_epi32(bits, inexact, bits, _mm256_set1_epi32(1)));
    }
  }

  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512 join(__m256 low, __m256 high) noexcept {
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i join(__m256i low, __m256i high) noexcept {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }

  template <class From, class To>
  [[gnu::always_inline]] VGGLOAD_AVX512 static lanes load(const std::byte* from) noexcept {
    if constexpr (std::same_as<From, float>) {
      return {_mm512_castsi512_ps(load_bits(from)), _mm512_castsi512_ps(load_bits(from + 64))};
    } else if constexpr (std::same_as<From, double>) {
      constexpr bool odd = !std::same_as<To, float>;
      return {join(narrow_f64<odd>(from), narrow_f64<odd>(from + 64)),
              join(narrow_f64<odd>(from + 128), narrow_f64<odd>(from + 192))};
    } else {
      return load_lanes<From>(load_bits(from));
    }
  }

  /// 32 elements of a 16-bit type as FP32.
  template <class From>
  [[gnu::always_inline]] VGGLOAD_AVX512 static lanes load_lanes(__m512i bits) noexcept {
    const __m256i low = _mm512_castsi512_si256(bits);
    const __m256i high = _mm512_extracti64x4_epi64(bits, 1);
    if constexpr (std::same_as<From, float16>) {
      return {_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)};
    } else {
      return {widen_bf16(low), widen_bf16(high)};
    }
  }

  /// As in `avx2`.
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i round_bf16(__m512 values) noexcept {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    return _mm512_mask_or_epi32(rounded, is_nan(bits), bits, _mm512_set1_epi32(0x00400000));
  }

  /// 32 elements of a 16-bit type.
  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i narrow(lanes values) noexcept {
    if constexpr (std::same_as<To, float16>) {
      return join(_mm512_cvtps_ph(values.low, nearest_even),
                  _mm512_cvtps_ph(values.high, nearest_even));
    } else {
      return join(_mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(values.low), 16)),
                  _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(values.high), 16)));
    }
  }

  template <bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX512 static void store_f64(std::byte* to,
                                                              __m256 values) noexcept {
    store_bits<Stream>(to, _mm512_castpd_si512(_mm512_cvtps_pd(values)));
  }

  /// As in `avx2`, of 32 elements.
  template <class To, bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i store(lanes values, std::byte* to,
                                                             __m512i most) noexcept {
    if constexpr (sizeof(To) == 2) {
      return store_narrow<Stream>(narrow<To>(values), to, most);
    } else if constexpr (std::same_as<To, float>) {
      const __m512i low = _mm512_castps_si512(values.low);
      const __m512i high = _mm512_castps_si512(values.high);
      store_bits<Stream>(to, low);
      store_bits<Stream>(to + 64, high);
      const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
      return _mm512_max_epu32(most, _mm512_max_epu32(_mm512_and_si512(low, magnitude),
                                                     _mm512_and_si512(high, magnitude)));
    } else {
      store_f64<Stream>(to, _mm512_castps512_ps256(values.low));
      store_f64<Stream>(to + 64, _mm512_extractf32x8_ps(values.low, 1));
      store_f64<Stream>(to + 128, _mm512_castps512_ps256(values.high));
      store_f64<Stream>(to + 192, _mm512_extractf32x8_ps(values.high, 1));
      return most;
    }
  }
  template <bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i store_narrow(__m512i bits, std::byte* to,
                                                                    __m512i most) noexcept {
    store_bits<Stream>(to, bits);
    return _mm512_max_epu16(most, _mm512_and_si512(bits, _mm512_set1_epi16(0x7FFF)));
  }

  template <class To>
  [[gnu::always_inline]] VGGLOAD_AVX512 static bool exceeds(__m512i most) noexcept {
    if constexpr (sizeof(To) == 2) {
      return _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(infinity_bits<To>)) != 0;
    } else if constexpr (std::same_as<To, float>) {
      return _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(infinity_bits<To>)) != 0;
    } else {
      return false;
    }
  }

  template <class From, class To, bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX512 static __m512i convert_step(const std::byte* from,
                                                                    std::byte* to,
                                                                    __m512i most) noexcept {
    if constexpr (std::same_as<From, float> && std::same_as<To, double>) {
      for (std::size_t i = 0; i < step; i += 8) {
        store_f64<Stream>(to + 8 * i,
                          _mm256_loadu_ps(reinterpret_cast<const float*>(from + 4 * i)));
      }
      return most;
    } else {
      return store<To, Stream>(load<From, To>(from), to, most);
    }
  }

  template <class From, class To, bool Stream>
  [[gnu::noinline]] VGGLOAD_AVX512 static bool convert(const std::byte* source,
                                                       std::byte* destination,
                                                       std::size_t count) noexcept {
    auto most = _mm512_setzero_si512();
    std::size_t i = 0;
    for (; i + step <= count; i += step) {
      most = convert_step<From, To, Stream>(source + i * sizeof(From), destination + i * sizeof(To),
                                            most);
    }
    if constexpr (Stream) _mm_sfence();
    if (const std::size_t rest = count - i; rest > 0) {
      padded<From, To, step> block(source + i * sizeof(From), rest);
      most = store<To, false>(load<From, To>(block.in.data()), block.out.data(), most);
      std::memcpy(destination + i * sizeof(To), block.out.data(), rest * sizeof(To));
    }
    return can_overflow<From, To> && exceeds<To>(most);
  }
};

/// AVX512-BF16's own conversion follows the rule but for subnormals, which it flushes (Intel SDM,
/// VCVTNE2PS2BF16): where there is one, integers do it.
struct avx512_bf16 : avx512 {
  [[gnu::always_inline]] VGGLOAD_AVX512_BF16 static __mmask16 is_subnormal(__m512 values) noexcept {
    constexpr int subnormal = 0x20;
    return _mm512_fpclass_ps_mask(values, subnormal);
  }

  template <class To, bool Stream>
  [[gnu::always_inline]] VGGLOAD_AVX512_BF16 static __m512i store(lanes values, std::byte* to,
                                                                  __m512i most) noexcept {
    if (_kortestz_mask16_u8(is_subnormal(values.low), is_subnormal(values.high)) == 0)
        [[unlikely]] {
      return avx512::store<To, Stream>(values, to, most);
    }
    __m512i bits;
    const __m512bh converted = _mm512_cvtne2ps_pbh(values.high, values.low);
    std::memcpy(&bits, &converted, sizeof(bits));
    return store_narrow<Stream>(bits, to, most);
  }

  template <class From, class To, bool Stream>
  [[gnu::noinline]] VGGLOAD_AVX512_BF16 static bool convert(const std::byte* source,
                                                            std::byte* destination,
                                                            std::size_t count) noexcept {
    auto most = _mm512_setzero_si512();
    std::size_t i = 0;
    for (; i + step <= count; i += step) {
      most = store<To, Stream>(load<From, To>(source + i * sizeof(From)),
                               destination + i * sizeof(To), most);
    }
    if constexpr (Stream) _mm_sfence();
    if (const std::size_t rest = count - i; rest > 0) {
      padded<From, To, step> block(source + i * sizeof(From), rest);
      most = store<To, false>(load<From, To>(block.in.data()), block.out.data(), most);
      std::memcpy(destination + i * sizeof(To), block.out.data(), rest * sizeof(To));
    }
    return can_overflow<From, To> && exceeds<To>(most);
  }
};

/// As `conversion` (convert.hpp) wants it.
template <class Isa, class From, class To>
bool convert(const std::byte* source, std::byte* destination, std::size_t count) noexcept {
  constexpr bool odd = std::same_as<From, double> && !std::same_as<To, float>;
  const floating_point_mode mode(odd ? floating_point_mode::toward_zero
                                     : floating_point_mode::nearest);
  if (!streams_to<To>(source, destination, count)) {
    return Isa::template convert<From, To, false>(source, destination, count);
  }
  const std::size_t head = elements_to_border<To>(destination);
  const bool exceeds = Isa::template convert<From, To, false>(source, destination, head);
  return Isa::template convert<From, To, true>(source + head * sizeof(From),
                                               destination + head * sizeof(To), count - head) ||
         exceeds;
}

}  // namespace vggload::detail::x86

#pragma GCC diagnostic pop

#undef VGGLOAD_AVX2
#undef VGGLOAD_AVX512
#undef VGGLOAD_AVX512_BF16

#endif
