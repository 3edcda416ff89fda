// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <type_traits>

#include <Eigen/Core>

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
enum class product_result : bool { replaced, added_to };

namespace detail {

template <class Value>
[[nodiscard]] auto as_eigen(const row_matrix<Value>& matrix) {
  using dense = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using mapped = std::conditional_t<std::is_const_v<Value>, const dense, dense>;
  return Eigen::Map<mapped, Eigen::Unaligned, Eigen::OuterStride<>>(
      matrix.values, static_cast<Eigen::Index>(matrix.rows),
      static_cast<Eigen::Index>(matrix.columns),
      Eigen::OuterStride<>(static_cast<Eigen::Index>(matrix.stride)));
}

template <class Product>
void store(const Product& product, const row_matrix<float>& c, product_result result) {
  if (result == product_result::added_to) {
    as_eigen(c).noalias() += product;
  } else {
    as_eigen(c).noalias() = product;
  }
}

}  // namespace detail

// All products of training go through these three. Each sum is made by one thread, in an order that
// depends on the sizes and the processor alone. Eigen packs parts of both factors beside.

/// C = A B, or C += A B.
inline void multiply(const row_matrix<const float>& a, const row_matrix<const float>& b,
                     const row_matrix<float>& c, product_result result = product_result::replaced) {
  detail::store(detail::as_eigen(a) * detail::as_eigen(b), c, result);
}

/// C = Aᵀ B, or C += Aᵀ B.
inline void multiply_first_transposed(const row_matrix<const float>& a,
                                      const row_matrix<const float>& b, const row_matrix<float>& c,
                                      product_result result = product_result::replaced) {
  detail::store(detail::as_eigen(a).transpose() * detail::as_eigen(b), c, result);
}

/// C = A Bᵀ, or C += A Bᵀ.
inline void multiply_second_transposed(const row_matrix<const float>& a,
                                       const row_matrix<const float>& b, const row_matrix<float>& c,
                                       product_result result = product_result::replaced) {
  detail::store(detail::as_eigen(a) * detail::as_eigen(b).transpose(), c, result);
}

}  // namespace vggload::network
