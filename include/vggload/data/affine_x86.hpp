// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// The rows of affine_scalar.hpp with x86's vector instructions, bit for bit. As in convert/x86.hpp, each
// function carries its instruction set as an attribute, and who calls one has asked the processor before.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include <vggload/data/affine_scalar.hpp>
#include <vggload/data/augmentation.hpp>

#define VGGLOAD_AFFINE_AVX2 __attribute__((target("avx2")))
#define VGGLOAD_AFFINE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2")))

#pragma GCC diagnostic push
// GCC's own macros for some intrinsics convert a signed constant.
#pragma GCC diagnostic ignored "-Wsign-conversion"
#if !defined(__clang__)
// GCC 12 takes its own "undefined" vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
// An array of vectors is one of the plain type: what aliases them does not matter here.
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace vggload::detail::x86 {

/// Maps those of `count` places that are outside, one by one: they are few.
inline void map_places(double* places, std::size_t count, std::size_t pixels,
                       fill_mode fill) noexcept {
  const auto size = static_cast<double>(pixels);
  for (std::size_t i = 0; i < count; ++i) {
    if (places[i] < 0 || places[i] > size - 1) places[i] = map_outside(places[i], size, fill);
  }
}

// ---- AVX2: four pixels at a time -----------------------------------------------------------------

struct affine_avx2 {
  static constexpr std::size_t step = 4;

  /// See exact_arithmetic.hpp.
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static __m256d exact(__m256d value) noexcept {
    asm("" : "+x"(value));
    return value;
  }
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static __m256d sum(__m256d a, __m256d b) noexcept {
    return exact(_mm256_add_pd(a, b));
  }
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static __m256d difference(__m256d a,
                                                                       __m256d b) noexcept {
    return exact(_mm256_sub_pd(a, b));
  }
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static __m256d product(__m256d a, __m256d b) noexcept {
    return exact(_mm256_mul_pd(a, b));
  }

  struct axis_taps {
    __m128i first;
    __m256d first_weight;
    __m256d second_weight;
  };

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static int outside(__m256d place,
                                                                std::size_t pixels) noexcept {
    const __m256d last = _mm256_set1_pd(static_cast<double>(pixels - 1));
    return _mm256_movemask_pd(_mm256_cmp_pd(place, _mm256_setzero_pd(), _CMP_LT_OQ)) |
           _mm256_movemask_pd(_mm256_cmp_pd(place, last, _CMP_GT_OQ));
  }

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static __m256d inside(__m256d place,
                                                                   std::size_t pixels,
                                                                   fill_mode fill) noexcept {
    if (fill == fill_mode::nearest || fill == fill_mode::constant) {
      const __m256d last = _mm256_set1_pd(static_cast<double>(pixels - 1));
      return _mm256_min_pd(_mm256_max_pd(place, _mm256_setzero_pd()), last);
    }
    alignas(32) std::array<double, step> places;
    _mm256_store_pd(places.data(), place);
    map_places(places.data(), step, pixels, fill);
    return _mm256_load_pd(places.data());
  }

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static axis_taps taps(__m256d place,
                                                                   std::size_t pixels) noexcept {
    const __m256d one = _mm256_set1_pd(1);
    const __m256d whole = _mm256_floor_pd(place);
    const __m256d first_weight = difference(one, difference(place, whole));
    const __m128i first =
        _mm_min_epi32(_mm_max_epi32(_mm256_cvttpd_epi32(whole), _mm_set1_epi32(-1)),
                      _mm_set1_epi32(static_cast<int>(pixels) - 1));
    return {first, first_weight, difference(one, first_weight)};
  }

  /// The byte `index` of each half of a lane of 16 bytes, as a double: 2^52 + byte has it in its last bits.
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static __m256d byte_of(__m256i pixels,
                                                                    std::size_t index) noexcept {
    const auto low = static_cast<long long>(index | 0x8080808080808000U);
    const __m256i bytes =
        _mm256_shuffle_epi8(pixels, _mm256_set_epi64x(low + 8, low, low + 8, low));
    const __m256d offset = _mm256_set1_pd(0x1p52);
    return difference(_mm256_castsi256_pd(_mm256_or_si256(bytes, _mm256_castpd_si256(offset))),
                      offset);
  }

  template <std::size_t Channels>
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX2 static void store(
      float* to, const std::array<__m128, Channels>& values) noexcept {
    if constexpr (Channels == 1) {
      _mm_storeu_ps(to, values[0]);
    } else if constexpr (Channels == 3) {
      const __m128 low = _mm_unpacklo_ps(values[0], values[1]);
      const __m128 high = _mm_unpackhi_ps(values[0], values[1]);
      const __m128 blue = values[2];
      const __m128 b0_r1 = _mm_shuffle_ps(blue, low, _MM_SHUFFLE(2, 2, 0, 0));
      const __m128 g1_b1 = _mm_shuffle_ps(low, blue, _MM_SHUFFLE(1, 1, 3, 3));
      const __m128 b2_b3_r3_g3 = _mm_shuffle_ps(blue, high, _MM_SHUFFLE(3, 2, 3, 2));
      _mm_storeu_ps(to, _mm_shuffle_ps(low, b0_r1, _MM_SHUFFLE(2, 0, 1, 0)));
      _mm_storeu_ps(to + 4, _mm_shuffle_ps(g1_b1, high, _MM_SHUFFLE(1, 0, 2, 0)));
      _mm_storeu_ps(to + 8, _mm_shuffle_ps(b2_b3_r3_g3, b2_b3_r3_g3, _MM_SHUFFLE(1, 3, 2, 0)));
    } else {
      const __m128 low_rg = _mm_unpacklo_ps(values[0], values[1]);
      const __m128 high_rg = _mm_unpackhi_ps(values[0], values[1]);
      const __m128 low_ba = _mm_unpacklo_ps(values[2], values[3]);
      const __m128 high_ba = _mm_unpackhi_ps(values[2], values[3]);
      _mm_storeu_ps(to, _mm_movelh_ps(low_rg, low_ba));
      _mm_storeu_ps(to + 4, _mm_movehl_ps(low_ba, low_rg));
      _mm_storeu_ps(to + 8, _mm_movelh_ps(high_rg, high_ba));
      _mm_storeu_ps(to + 12, _mm_movehl_ps(high_ba, high_rg));
    }
  }

  /// As sample_row_scalar, of whole steps; gives how many pixels it wrote.
  template <std::size_t Channels>
  [[gnu::noinline]] VGGLOAD_AFFINE_AVX2 static std::size_t sample_row(
      const affine_sampling& sampling, std::size_t r, float* to) noexcept {
    const bordered_image& image = sampling.image;
    const affine_row starts(sampling.map, r);
    const auto* const base = reinterpret_cast<const long long*>(image.pixels());
    const auto stride = static_cast<int>(image.stride());
    std::size_t c = 0;
    for (; c + step <= image.width(); c += step, to += step * Channels) {
      const __m256d columns =
          sum(_mm256_set1_pd(static_cast<double>(c)), _mm256_set_pd(3, 2, 1, 0));
      __m256d row =
          sum(_mm256_set1_pd(starts.row), product(columns, _mm256_set1_pd(sampling.map.row[1])));
      __m256d column = sum(_mm256_set1_pd(starts.column),
                           product(columns, _mm256_set1_pd(sampling.map.column[1])));
      const int beyond = outside(row, image.height()) | outside(column, image.width());
      if (beyond != 0) {
        row = inside(row, image.height(), sampling.fill);
        column = inside(column, image.width(), sampling.fill);
      }
      const axis_taps down = taps(row, image.height());
      const axis_taps across = taps(column, image.width());
      const __m128i index = _mm_add_epi32(_mm_mullo_epi32(down.first, _mm_set1_epi32(stride)),
                                          _mm_add_epi32(across.first, _mm_set1_epi32(stride + 1)));
      // Two pixels beside each other, of each place.
      const __m256i upper = _mm256_i32gather_epi64(base, index, 4);
      const __m256i lower =
          _mm256_i32gather_epi64(base, _mm_add_epi32(index, _mm_set1_epi32(stride)), 4);
      std::array<__m128, Channels> values;
      for (std::size_t channel = 0; channel < Channels; ++channel) {
        const auto weighted = [&](__m256i pixels, std::size_t byte, __m256d row_weight,
                                  __m256d column_weight) VGGLOAD_AFFINE_AVX2 {
          return product(product(byte_of(pixels, byte), row_weight), column_weight);
        };
        __m256d value = weighted(upper, channel, down.first_weight, across.first_weight);
        value = sum(value, weighted(upper, channel + 4, down.first_weight, across.second_weight));
        value = sum(value, weighted(lower, channel, down.second_weight, across.first_weight));
        value = sum(value, weighted(lower, channel + 4, down.second_weight, across.second_weight));
        values[channel] = _mm256_cvtpd_ps(value);
      }
      if (beyond != 0 && sampling.fill == fill_mode::constant) {
        const __m128i bits = _mm_set_epi32(8, 4, 2, 1);
        const __m128i filled = _mm_cmpeq_epi32(_mm_and_si128(_mm_set1_epi32(beyond), bits), bits);
        for (__m128& value : values) {
          value = _mm_blendv_ps(value, _mm_set1_ps(sampling.fill_value), _mm_castsi128_ps(filled));
        }
      }
      store<Channels>(to, values);
    }
    return c;
  }
};

// ---- AVX-512: eight pixels at a time -------------------------------------------------------------

struct affine_avx512 {
  static constexpr std::size_t step = 8;

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512d exact(__m512d value) noexcept {
    asm("" : "+v"(value));
    return value;
  }
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512d sum(__m512d a, __m512d b) noexcept {
    return exact(_mm512_add_pd(a, b));
  }
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512d difference(__m512d a,
                                                                         __m512d b) noexcept {
    return exact(_mm512_sub_pd(a, b));
  }
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512d product(__m512d a,
                                                                      __m512d b) noexcept {
    return exact(_mm512_mul_pd(a, b));
  }

  struct axis_taps {
    __m256i first;
    __m512d first_weight;
    __m512d second_weight;
  };

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __mmask8 outside(
      __m512d place, std::size_t pixels) noexcept {
    const __m512d last = _mm512_set1_pd(static_cast<double>(pixels - 1));
    const __mmask8 before = _mm512_cmp_pd_mask(place, _mm512_setzero_pd(), _CMP_LT_OQ);
    return static_cast<__mmask8>(before | _mm512_cmp_pd_mask(place, last, _CMP_GT_OQ));
  }

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512d inside(__m512d place,
                                                                     std::size_t pixels,
                                                                     fill_mode fill) noexcept {
    if (fill == fill_mode::nearest || fill == fill_mode::constant) {
      const __m512d last = _mm512_set1_pd(static_cast<double>(pixels - 1));
      return _mm512_min_pd(_mm512_max_pd(place, _mm512_setzero_pd()), last);
    }
    alignas(64) std::array<double, step> places;
    _mm512_store_pd(places.data(), place);
    map_places(places.data(), step, pixels, fill);
    return _mm512_load_pd(places.data());
  }

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static axis_taps taps(__m512d place,
                                                                     std::size_t pixels) noexcept {
    const __m512d one = _mm512_set1_pd(1);
    const __m512d whole = _mm512_roundscale_pd(place, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512d first_weight = difference(one, difference(place, whole));
    const __m256i first =
        _mm256_min_epi32(_mm256_max_epi32(_mm512_cvttpd_epi32(whole), _mm256_set1_epi32(-1)),
                         _mm256_set1_epi32(static_cast<int>(pixels) - 1));
    return {first, first_weight, difference(one, first_weight)};
  }

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512d byte_of(__m512i pixels,
                                                                      std::size_t index) noexcept {
    const auto low = static_cast<long long>(index | 0x8080808080808000U);
    const __m512i selected = _mm512_shuffle_epi8(
        pixels, _mm512_set_epi64(low + 8, low, low + 8, low, low + 8, low, low + 8, low));
    return _mm512_cvtepi64_pd(selected);
  }

  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static __m512 join(__m256 low,
                                                                  __m256 high) noexcept {
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }

  template <std::size_t Channels>
  [[gnu::always_inline]] VGGLOAD_AFFINE_AVX512 static void store(
      float* to, const std::array<__m256, Channels>& values) noexcept {
    if constexpr (Channels == 1) {
      _mm256_storeu_ps(to, values[0]);
    } else if constexpr (Channels == 3) {
      // Red of pixel i is value i of the two vectors, green 8 + i, blue 16 + i.
      const __m512i first =
          _mm512_set_epi32(5, 20, 12, 4, 19, 11, 3, 18, 10, 2, 17, 9, 1, 16, 8, 0);
      const __m512i rest = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 23, 15, 7, 22, 14, 6, 21, 13);
      const __m512 red_green = join(values[0], values[1]);
      const __m512 blue = _mm512_castps256_ps512(values[2]);
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(red_green, first, blue));
      _mm256_storeu_ps(to + 16,
                       _mm512_castps512_ps256(_mm512_permutex2var_ps(red_green, rest, blue)));
    } else {
      const __m512i first =
          _mm512_set_epi32(27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
      const __m512i rest = _mm512_add_epi32(first, _mm512_set1_epi32(4));
      const __m512 red_green = join(values[0], values[1]);
      const __m512 blue_alpha = join(values[2], values[3]);
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(red_green, first, blue_alpha));
      _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(red_green, rest, blue_alpha));
    }
  }

  template <std::size_t Channels>
  [[gnu::noinline]] VGGLOAD_AFFINE_AVX512 static std::size_t sample_row(
      const affine_sampling& sampling, std::size_t r, float* to) noexcept {
    const bordered_image& image = sampling.image;
    const affine_row starts(sampling.map, r);
    const auto stride = static_cast<int>(image.stride());
    std::size_t c = 0;
    for (; c + step <= image.width(); c += step, to += step * Channels) {
      const __m512d columns =
          sum(_mm512_set1_pd(static_cast<double>(c)), _mm512_set_pd(7, 6, 5, 4, 3, 2, 1, 0));
      __m512d row =
          sum(_mm512_set1_pd(starts.row), product(columns, _mm512_set1_pd(sampling.map.row[1])));
      __m512d column = sum(_mm512_set1_pd(starts.column),
                           product(columns, _mm512_set1_pd(sampling.map.column[1])));
      const auto beyond =
          static_cast<__mmask8>(outside(row, image.height()) | outside(column, image.width()));
      if (beyond != 0) {
        row = inside(row, image.height(), sampling.fill);
        column = inside(column, image.width(), sampling.fill);
      }
      const axis_taps down = taps(row, image.height());
      const axis_taps across = taps(column, image.width());
      const __m256i index =
          _mm256_add_epi32(_mm256_mullo_epi32(down.first, _mm256_set1_epi32(stride)),
                           _mm256_add_epi32(across.first, _mm256_set1_epi32(stride + 1)));
      const __m512i upper = _mm512_i32gather_epi64(index, image.pixels(), 4);
      const __m512i lower = _mm512_i32gather_epi64(
          _mm256_add_epi32(index, _mm256_set1_epi32(stride)), image.pixels(), 4);
      std::array<__m256, Channels> values;
      for (std::size_t channel = 0; channel < Channels; ++channel) {
        const auto weighted = [&](__m512i pixels, std::size_t byte, __m512d row_weight,
                                  __m512d column_weight) VGGLOAD_AFFINE_AVX512 {
          return product(product(byte_of(pixels, byte), row_weight), column_weight);
        };
        __m512d value = weighted(upper, channel, down.first_weight, across.first_weight);
        value = sum(value, weighted(upper, channel + 4, down.first_weight, across.second_weight));
        value = sum(value, weighted(lower, channel, down.second_weight, across.first_weight));
        value = sum(value, weighted(lower, channel + 4, down.second_weight, across.second_weight));
        values[channel] = _mm512_cvtpd_ps(value);
      }
      if (beyond != 0 && sampling.fill == fill_mode::constant) {
        for (__m256& value : values) {
          value = _mm256_mask_blend_ps(beyond, value, _mm256_set1_ps(sampling.fill_value));
        }
      }
      store<Channels>(to, values);
    }
    return c;
  }
};

}  // namespace vggload::detail::x86

#pragma GCC diagnostic pop
#undef VGGLOAD_AFFINE_AVX2
#undef VGGLOAD_AFFINE_AVX512

#endif
