// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include <vggload/convert/convert.hpp>
#include <vggload/network/kernels_x86.hpp>
#include <vggload/network/winograd.hpp>

namespace vggload::network::detail {

/// What the forward pass is made of, for one instruction set. `panel`: how many outputs of a layer lie side by side
/// where they are multiplied, a divisor of 32.
struct kernels {
  std::size_t panel;

  /// `products` [rows, panel] = `inputs` [rows, count], with `stride` from row to row, times `weights` [count, panel].
  /// Each product is one sum in the order of `count`, whatever the number of rows.
  void (*multiply)(const float* inputs, std::size_t stride, std::size_t rows, std::size_t count,
                   const float* weights, float* products) noexcept;

  // winograd.hpp
  void (*transform_input)(const std::array<const float*, 16>& patch, std::size_t channels,
                          float* planes, std::size_t plane) noexcept;
  void (*transform_weights)(const float* taps, std::size_t channels, float* planes,
                            std::size_t plane) noexcept;
  void (*transform_output)(const output_tile& tile) noexcept;
  void (*finish_row)(const float* products, const float* bias, float* output) noexcept;

  /// `sums` [images, 4] += the dot products of `images` rows of inputs and four rows of weights, `count` values of each,
  /// a multiple of 16; `stride` and `input_stride` from row to row.
  void (*add_dots)(const float* weights, std::size_t stride, const float* inputs,
                   std::size_t input_stride, std::size_t images, std::size_t count,
                   float* sums) noexcept;
  /// `outputs` [count] += for one row after the other `factors[row]` times the row of `weights`, which lie `stride`
  /// apart.
  void (*add_scaled_rows)(const float* weights, std::size_t stride, const float* factors,
                          std::size_t rows, std::size_t count, float* outputs) noexcept;
};

/// For every processor; as fast as a compiler makes it.
struct portable_kernels {
  static constexpr std::size_t panel = 8;
  static constexpr std::size_t most_rows = 4;

  static void multiply(const float* inputs, std::size_t stride, std::size_t rows, std::size_t count,
                       const float* weights, float* products) noexcept {
    std::size_t first = 0;
    for (; first + most_rows <= rows; first += most_rows) {
      multiply_block<most_rows>(inputs + first * stride, stride, count, weights,
                                products + first * panel);
    }
    for (; first < rows; ++first) {
      multiply_block<1>(inputs + first * stride, stride, count, weights, products + first * panel);
    }
  }

  static void transform_input(const std::array<const float*, 16>& patch, std::size_t channels,
                              float* planes, std::size_t plane) noexcept {
    detail::transform_input(patch, channels, planes, plane);
  }
  static void transform_weights(const float* taps, std::size_t channels, float* planes,
                                std::size_t plane) noexcept {
    detail::transform_weights<panel>(taps, channels, planes, plane);
  }
  static void transform_output(const output_tile& tile) noexcept {
    detail::transform_output<panel>(tile);
  }
  static void finish_row(const float* products, const float* bias, float* output) noexcept {
    detail::finish_row<panel>(products, bias, output);
  }

  static void add_dots(const float* weights, std::size_t stride, const float* inputs,
                       std::size_t input_stride, std::size_t images, std::size_t count,
                       float* sums) noexcept {
    for (std::size_t image = 0; image < images; ++image) {
      for (std::size_t row = 0; row < 4; ++row) {
        const float* const w = weights + row * stride;
        const float* const x = inputs + image * input_stride;
        std::array<float, 8> parts{};
        for (std::size_t k = 0; k < count; k += parts.size()) {
          for (std::size_t lane = 0; lane < parts.size(); ++lane) {
            parts[lane] += w[k + lane] * x[k + lane];
          }
        }
        sums[4 * image + row] += ((parts[0] + parts[4]) + (parts[2] + parts[6])) +
                                 ((parts[1] + parts[5]) + (parts[3] + parts[7]));
      }
    }
  }
  static void add_scaled_rows(const float* weights, std::size_t stride, const float* factors,
                              std::size_t rows, std::size_t count, float* outputs) noexcept {
    for (std::size_t row = 0; row < rows; ++row) {
      VGGLOAD_INDEPENDENT
      for (std::size_t i = 0; i < count; ++i)
        outputs[i] += factors[row] * weights[row * stride + i];
    }
  }

 private:
  template <std::size_t Rows>
  static void multiply_block(const float* inputs, std::size_t stride, std::size_t count,
                             const float* weights, float* products) noexcept {
    std::array<std::array<float, panel>, Rows> sums{};
    for (std::size_t k = 0; k < count; ++k) {
      for (std::size_t r = 0; r < Rows; ++r) {
        for (std::size_t lane = 0; lane < panel; ++lane) {
          sums[r][lane] += inputs[r * stride + k] * weights[k * panel + lane];
        }
      }
    }
    for (std::size_t r = 0; r < Rows; ++r) std::copy_n(sums[r].data(), panel, products + r * panel);
  }
};

template <class Kernels>
[[nodiscard]] constexpr kernels table_of() noexcept {
  return {Kernels::panel,
          &Kernels::multiply,
          &Kernels::transform_input,
          &Kernels::transform_weights,
          &Kernels::transform_output,
          &Kernels::finish_row,
          &Kernels::add_dots,
          &Kernels::add_scaled_rows};
}

/// The fastest at a level that the processor offers. Levels differ in how sums are rounded.
[[nodiscard]] inline kernels find_kernels(
    [[maybe_unused]] simd_level level = available_simd_level()) noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (level >= simd_level::avx512) return table_of<avx512_kernels>();
  if (level >= simd_level::avx2) return table_of<avx2_kernels>();
#endif
  return table_of<portable_kernels>();
}

}  // namespace vggload::network::detail
