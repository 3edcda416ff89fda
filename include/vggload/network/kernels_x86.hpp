// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// The forward pass's kernels with x86's vector instructions: see kernels.hpp for what each does. Each function carries
// the instruction set it needs as an attribute; who calls one has asked the processor before.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include <immintrin.h>

#include <vggload/network/winograd.hpp>

#define VGGLOAD_AVX2 __attribute__((target("avx2,fma,f16c")))
#define VGGLOAD_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt")))

#pragma GCC diagnostic push
#if !defined(__clang__)
// GCC 12 takes its own "undefined" vectors for uninitialised ones (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace vggload::network::detail {

/// Calls `block(first, rows)` for parts of `rows` that are as equal as can be, each of at most `Most`.
template <std::size_t Most, class Block>
void for_each_block(std::size_t rows, const Block& block) {
  const std::size_t blocks = (rows + Most - 1) / Most;
  for (std::size_t i = 0; i < blocks; ++i) {
    const std::size_t first = rows * i / blocks;
    block(first, rows * (i + 1) / blocks - first);
  }
}

struct avx512_kernels {
  static constexpr std::size_t panel = 32;
  /// 14 x 2 sums, two vectors of weights and a value of each row in turn: 32 registers.
  static constexpr std::size_t most_rows = 14;

  template <std::size_t Rows>
  VGGLOAD_AVX512 static void multiply_block(const float* inputs, std::size_t stride,
                                            std::size_t count, const float* weights,
                                            float* products) noexcept {
    __m512 sums[Rows][2];  // NOLINT(modernize-avoid-c-arrays): GCC warns of vectors in std::array
#pragma GCC unroll 14
    for (std::size_t r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    // Of every third row: the others are reached with the stride as an index.
    const std::array<const float*, 5> rows{inputs, inputs + 3 * stride, inputs + 6 * stride,
                                           inputs + 9 * stride, inputs + 12 * stride};
    for (std::size_t k = 0; k < count; ++k) {
      const __m512 low = _mm512_loadu_ps(weights);
      const __m512 high = _mm512_loadu_ps(weights + 16);
      weights += panel;
#pragma GCC unroll 14
      for (std::size_t r = 0; r < Rows; ++r) {
        const __m512 value = _mm512_set1_ps(rows[r / 3][r % 3 * stride + k]);
        sums[r][0] = _mm512_fmadd_ps(value, low, sums[r][0]);
        sums[r][1] = _mm512_fmadd_ps(value, high, sums[r][1]);
      }
    }
#pragma GCC unroll 14
    for (std::size_t r = 0; r < Rows; ++r) {
      _mm512_storeu_ps(products + r * panel, sums[r][0]);
      _mm512_storeu_ps(products + r * panel + 16, sums[r][1]);
    }
  }

  static void multiply(const float* inputs, std::size_t stride, std::size_t rows, std::size_t count,
                       const float* weights, float* products) noexcept {
    static constexpr auto blocks = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&multiply_block<I + 1>...};
    }
    (std::make_index_sequence<most_rows>());
    for_each_block<most_rows>(rows, [&](std::size_t first, std::size_t height) {
      blocks[height - 1](inputs + first * stride, stride, count, weights, products + first * panel);
    });
  }

  VGGLOAD_AVX512 static void transform_input(const std::array<const float*, 16>& patch,
                                             std::size_t channels, float* planes,
                                             std::size_t plane) noexcept {
    detail::transform_input(patch, channels, planes, plane);
  }
  VGGLOAD_AVX512 static void transform_weights(const float* taps, std::size_t channels,
                                               float* planes, std::size_t plane) noexcept {
    detail::transform_weights<panel>(taps, channels, planes, plane);
  }
  VGGLOAD_AVX512 static void transform_output(const output_tile& tile) noexcept {
    detail::transform_output<panel>(tile);
  }
  VGGLOAD_AVX512 static void finish_row(const float* products, const float* bias,
                                        float* output) noexcept {
    detail::finish_row<panel>(products, bias, output);
  }

  template <std::size_t Images>
  VGGLOAD_AVX512 static void add_dots_of(const float* weights, std::size_t stride,
                                         const float* inputs, std::size_t input_stride,
                                         std::size_t count, float* sums) noexcept {
    __m512 parts[Images][4];  // NOLINT(modernize-avoid-c-arrays): as above
#pragma GCC unroll 4
    for (std::size_t image = 0; image < Images; ++image) {
#pragma GCC unroll 4
      for (std::size_t r = 0; r < 4; ++r) parts[image][r] = _mm512_setzero_ps();
    }
    for (std::size_t k = 0; k < count; k += 16) {
      const __m512 w0 = _mm512_loadu_ps(weights + k);
      const __m512 w1 = _mm512_loadu_ps(weights + stride + k);
      const __m512 w2 = _mm512_loadu_ps(weights + 2 * stride + k);
      const __m512 w3 = _mm512_loadu_ps(weights + 3 * stride + k);
#pragma GCC unroll 4
      for (std::size_t image = 0; image < Images; ++image) {
        const __m512 x = _mm512_loadu_ps(inputs + image * input_stride + k);
        parts[image][0] = _mm512_fmadd_ps(x, w0, parts[image][0]);
        parts[image][1] = _mm512_fmadd_ps(x, w1, parts[image][1]);
        parts[image][2] = _mm512_fmadd_ps(x, w2, parts[image][2]);
        parts[image][3] = _mm512_fmadd_ps(x, w3, parts[image][3]);
      }
    }
#pragma GCC unroll 4
    for (std::size_t image = 0; image < Images; ++image) {
#pragma GCC unroll 4
      for (std::size_t r = 0; r < 4; ++r) {
        sums[4 * image + r] += _mm512_reduce_add_ps(parts[image][r]);
      }
    }
  }

  static void add_dots(const float* weights, std::size_t stride, const float* inputs,
                       std::size_t input_stride, std::size_t images, std::size_t count,
                       float* sums) noexcept {
    static constexpr std::array blocks{&add_dots_of<1>, &add_dots_of<2>, &add_dots_of<3>,
                                       &add_dots_of<4>};
    for_each_block<4>(images, [&](std::size_t first, std::size_t some) {
      blocks[some - 1](weights, stride, inputs + first * input_stride, input_stride, count,
                       sums + 4 * first);
    });
  }

  VGGLOAD_AVX512 static void add_scaled_rows(const float* weights, std::size_t stride,
                                             const float* factors, std::size_t rows,
                                             std::size_t count, float* outputs) noexcept {
    for (std::size_t i = 0; i < count; i += 16) {
      const auto lanes = static_cast<__mmask16>(count - i < 16 ? (1U << (count - i)) - 1 : 0xFFFFU);
      __m512 sum = _mm512_maskz_loadu_ps(lanes, outputs + i);
      for (std::size_t r = 0; r < rows; ++r) {
        sum = _mm512_fmadd_ps(_mm512_set1_ps(factors[r]),
                              _mm512_maskz_loadu_ps(lanes, weights + r * stride + i), sum);
      }
      _mm512_mask_storeu_ps(outputs + i, lanes, sum);
    }
  }
};

struct avx2_kernels {
  static constexpr std::size_t panel = 16;
  /// 6 x 2 sums, two vectors of weights and a value of each row in turn: 15 registers of 16.
  static constexpr std::size_t most_rows = 6;

  template <std::size_t Rows>
  VGGLOAD_AVX2 static void multiply_block(const float* inputs, std::size_t stride,
                                          std::size_t count, const float* weights,
                                          float* products) noexcept {
    __m256 sums[Rows][2];  // NOLINT(modernize-avoid-c-arrays): GCC warns of vectors in std::array
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    const std::array<const float*, 2> rows{inputs, inputs + 3 * stride};
    for (std::size_t k = 0; k < count; ++k) {
      const __m256 low = _mm256_loadu_ps(weights);
      const __m256 high = _mm256_loadu_ps(weights + 8);
      weights += panel;
#pragma GCC unroll 6
      for (std::size_t r = 0; r < Rows; ++r) {
        const __m256 value = _mm256_set1_ps(rows[r / 3][r % 3 * stride + k]);
        sums[r][0] = _mm256_fmadd_ps(value, low, sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(value, high, sums[r][1]);
      }
    }
#pragma GCC unroll 6
    for (std::size_t r = 0; r < Rows; ++r) {
      _mm256_storeu_ps(products + r * panel, sums[r][0]);
      _mm256_storeu_ps(products + r * panel + 8, sums[r][1]);
    }
  }

  static void multiply(const float* inputs, std::size_t stride, std::size_t rows, std::size_t count,
                       const float* weights, float* products) noexcept {
    static constexpr auto blocks = []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{&multiply_block<I + 1>...};
    }
    (std::make_index_sequence<most_rows>());
    for_each_block<most_rows>(rows, [&](std::size_t first, std::size_t height) {
      blocks[height - 1](inputs + first * stride, stride, count, weights, products + first * panel);
    });
  }

  VGGLOAD_AVX2 static void transform_input(const std::array<const float*, 16>& patch,
                                           std::size_t channels, float* planes,
                                           std::size_t plane) noexcept {
    detail::transform_input(patch, channels, planes, plane);
  }
  VGGLOAD_AVX2 static void transform_weights(const float* taps, std::size_t channels, float* planes,
                                             std::size_t plane) noexcept {
    detail::transform_weights<panel>(taps, channels, planes, plane);
  }
  VGGLOAD_AVX2 static void transform_output(const output_tile& tile) noexcept {
    detail::transform_output<panel>(tile);
  }
  VGGLOAD_AVX2 static void finish_row(const float* products, const float* bias,
                                      float* output) noexcept {
    detail::finish_row<panel>(products, bias, output);
  }

  [[gnu::always_inline]] VGGLOAD_AVX2 static float sum_of(__m256 lanes) noexcept {
    const __m128 quarters =
        _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 halves = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_add_ss(halves, _mm_shuffle_ps(halves, halves, 1)));
  }

  template <std::size_t Images>
  VGGLOAD_AVX2 static void add_dots_of(const float* weights, std::size_t stride,
                                       const float* inputs, std::size_t input_stride,
                                       std::size_t count, float* sums) noexcept {
    __m256 parts[Images][4];  // NOLINT(modernize-avoid-c-arrays): as above
#pragma GCC unroll 2
    for (std::size_t image = 0; image < Images; ++image) {
#pragma GCC unroll 4
      for (std::size_t r = 0; r < 4; ++r) parts[image][r] = _mm256_setzero_ps();
    }
    for (std::size_t k = 0; k < count; k += 8) {
      const __m256 w0 = _mm256_loadu_ps(weights + k);
      const __m256 w1 = _mm256_loadu_ps(weights + stride + k);
      const __m256 w2 = _mm256_loadu_ps(weights + 2 * stride + k);
      const __m256 w3 = _mm256_loadu_ps(weights + 3 * stride + k);
#pragma GCC unroll 2
      for (std::size_t image = 0; image < Images; ++image) {
        const __m256 x = _mm256_loadu_ps(inputs + image * input_stride + k);
        parts[image][0] = _mm256_fmadd_ps(x, w0, parts[image][0]);
        parts[image][1] = _mm256_fmadd_ps(x, w1, parts[image][1]);
        parts[image][2] = _mm256_fmadd_ps(x, w2, parts[image][2]);
        parts[image][3] = _mm256_fmadd_ps(x, w3, parts[image][3]);
      }
    }
#pragma GCC unroll 2
    for (std::size_t image = 0; image < Images; ++image) {
#pragma GCC unroll 4
      for (std::size_t r = 0; r < 4; ++r) sums[4 * image + r] += sum_of(parts[image][r]);
    }
  }

  static void add_dots(const float* weights, std::size_t stride, const float* inputs,
                       std::size_t input_stride, std::size_t images, std::size_t count,
                       float* sums) noexcept {
    for_each_block<2>(images, [&](std::size_t first, std::size_t some) {
      (some == 1 ? &add_dots_of<1> : &add_dots_of<2>)(weights, stride,
                                                      inputs + first * input_stride, input_stride,
                                                      count, sums + 4 * first);
    });
  }

  VGGLOAD_AVX2 static void add_scaled_rows(const float* weights, std::size_t stride,
                                           const float* factors, std::size_t rows,
                                           std::size_t count, float* outputs) noexcept {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) {
      __m256 sum = _mm256_loadu_ps(outputs + i);
      for (std::size_t r = 0; r < rows; ++r) {
        sum = _mm256_fmadd_ps(_mm256_set1_ps(factors[r]), _mm256_loadu_ps(weights + r * stride + i),
                              sum);
      }
      _mm256_storeu_ps(outputs + i, sum);
    }
    for (; i < count; ++i) {
      for (std::size_t r = 0; r < rows; ++r) {
        outputs[i] = _mm_cvtss_f32(_mm_fmadd_ss(
            _mm_set_ss(factors[r]), _mm_set_ss(weights[r * stride + i]), _mm_set_ss(outputs[i])));
      }
    }
  }
};

}  // namespace vggload::network::detail

#pragma GCC diagnostic pop
#undef VGGLOAD_AVX2
#undef VGGLOAD_AVX512

#endif
