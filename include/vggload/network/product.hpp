// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include <vggload/convert/convert.hpp>
#include <vggload/network/kernels.hpp>

namespace vggload::network {

/// A row-major matrix of FP32 values that belong to somebody else; `stride` values lie between the
/// beginnings of two rows. `Value` is float or const float.
template <class Value>
struct row_matrix {
  Value* values;
  std::size_t rows;
  std::size_t columns;
  std::size_t stride;
};

/// Of FP32 matrices that are multiplied: what becomes of the result's old values.
enum class product_result : std::uint8_t { replaced, added_to };

namespace detail {

/// The parts that a product is made of: what is packed stays in the first two levels of cache.
inline constexpr std::size_t product_rows = 64;
inline constexpr std::size_t product_count = 256;
inline constexpr std::size_t widest_panel = 32;

/// to [columns, rows], `to_stride` from row to row, becomes the transpose of from [rows, columns].
inline void transpose(const float* from, std::size_t from_stride, std::size_t rows,
                      std::size_t columns, float* to, std::size_t to_stride) noexcept {
  // By squares: so that both sides go along their rows for some values.
  constexpr std::size_t side = 16;
  for (std::size_t row = 0; row < rows; row += side) {
    const std::size_t last_row = std::min(rows, row + side);
    for (std::size_t column = 0; column < columns; column += side) {
      const std::size_t last_column = std::min(columns, column + side);
      for (std::size_t c = column; c < last_column; ++c) {
        for (std::size_t r = row; r < last_row; ++r) {
          to[c * to_stride + r] = from[r * from_stride + c];
        }
      }
    }
  }
}

/// Of both factors the parts that meet are packed as the kernel reads them.
template <bool FirstTransposed, bool SecondTransposed>
void multiply_parts(const row_matrix<const float>& a, const row_matrix<const float>& b,
                    const row_matrix<float>& c, product_result result, simd_level level) noexcept {
  const kernels kernel = find_kernels(level);
  const std::size_t panel = kernel.panel;
  const std::size_t count = FirstTransposed ? a.rows : a.columns;
  std::array<float, product_rows * product_count> first;
  std::array<float, product_count * widest_panel> second;
  std::array<float, product_rows * widest_panel> products;
  for (std::size_t k = 0; k < count; k += product_count) {
    const std::size_t some = std::min(product_count, count - k);
    const bool replaces = k == 0 && result == product_result::replaced;
    for (std::size_t row = 0; row < c.rows; row += product_rows) {
      const std::size_t rows = std::min(product_rows, c.rows - row);
      const float* factors = a.values + row * a.stride + k;
      std::size_t stride = a.stride;
      if constexpr (FirstTransposed) {
        transpose(a.values + k * a.stride + row, a.stride, some, rows, first.data(), some);
        factors = first.data();
        stride = some;
      }
      for (std::size_t column = 0; column < c.columns; column += panel) {
        const std::size_t columns = std::min(panel, c.columns - column);
        // What they give is not looked at, but no value that is read is undefined.
        if (columns < panel) std::fill_n(second.begin(), some * panel, 0.0F);
        if constexpr (SecondTransposed) {
          transpose(b.values + column * b.stride + k, b.stride, columns, some, second.data(),
                    panel);
        } else {
          for (std::size_t i = 0; i < some; ++i) {
            std::copy_n(b.values + (k + i) * b.stride + column, columns, &second[i * panel]);
          }
        }
        kernel.multiply(factors, stride, rows, some, second.data(), products.data());
        for (std::size_t r = 0; r < rows; ++r) {
          float* const to = c.values + (row + r) * c.stride + column;
          const float* const from = &products[r * panel];
          if (replaces) {
            std::copy_n(from, columns, to);
          } else {
            for (std::size_t i = 0; i < columns; ++i) to[i] += from[i];
          }
        }
      }
    }
  }
}

}  // namespace detail

// All products of training go through these three. One thread makes each sum, in an order that depends on
// the sizes alone; instruction sets differ in how it is rounded. Nothing is allocated.

/// C = A B, or C += A B.
inline void multiply(const row_matrix<const float>& a, const row_matrix<const float>& b,
                     const row_matrix<float>& c, product_result result = product_result::replaced,
                     simd_level level = available_simd_level()) noexcept {
  detail::multiply_parts<false, false>(a, b, c, result, level);
}

/// C = Aᵀ B, or C += Aᵀ B.
inline void multiply_first_transposed(const row_matrix<const float>& a,
                                      const row_matrix<const float>& b, const row_matrix<float>& c,
                                      product_result result = product_result::replaced,
                                      simd_level level = available_simd_level()) noexcept {
  detail::multiply_parts<true, false>(a, b, c, result, level);
}

/// C = A Bᵀ, or C += A Bᵀ.
inline void multiply_second_transposed(const row_matrix<const float>& a,
                                       const row_matrix<const float>& b, const row_matrix<float>& c,
                                       product_result result = product_result::replaced,
                                       simd_level level = available_simd_level()) noexcept {
  detail::multiply_parts<false, true>(a, b, c, result, level);
}

}  // namespace vggload::network
