// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Needs Eigen (component network).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include <Eigen/Core>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>

namespace vggload {

namespace detail {

template <class T>
struct eigen_element {
  using stored = T;
};
// The same bits under another name.
template <>
struct eigen_element<Eigen::half> {
  using stored = float16;
};
template <>
struct eigen_element<Eigen::bfloat16> {
  using stored = bfloat16;
};
static_assert(sizeof(Eigen::half) == 2 && alignof(Eigen::half) == alignof(float16));
static_assert(sizeof(Eigen::bfloat16) == 2 && alignof(Eigen::bfloat16) == alignof(bfloat16));

}  // namespace detail

/// A type that Eigen computes with and that a tensor's elements can be looked at as: numbers, `Eigen::half` for F16
/// and `Eigen::bfloat16` for BF16.
template <class T>
concept eigen_scalar =
    tensor_element<typename detail::eigen_element<T>::stored> && !std::is_same_v<T, float16> &&
    !std::is_same_v<T, bfloat16>;

/// Whether rows or columns of a matrix lie whole in memory; Eigen's `RowMajor` and `ColMajor`.
template <class T, int Order>
using const_matrix_map = Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Order>>;
template <class T>
using const_vector_map = Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, 1>>;

namespace detail {

template <eigen_scalar T>
[[nodiscard]] const T* eigen_data(const tensor_view& view) {
  return reinterpret_cast<const T*>(view.values<typename eigen_element<T>::stored>().data());
}

/// The product of some of a view's dims as Eigen counts.
[[nodiscard]] inline Eigen::Index eigen_size(const tensor_view& view, std::size_t first,
                                             std::size_t count) {
  std::optional<std::uint64_t> size = 1;
  for (const std::uint64_t dim : view.shape().dims().subspan(first, count)) {
    if (size) size = checked_multiply(*size, dim);
  }
  // A tensor without elements may have any dims beside the one that is zero.
  if (!size || *size > static_cast<std::uint64_t>(std::numeric_limits<Eigen::Index>::max())) {
    throw error("a view of " + to_string(view.shape()) + " is too large for Eigen");
  }
  return static_cast<Eigen::Index>(*size);
}

/// Elements of at most one axis follow each other alike in both orders.
[[nodiscard]] inline bool has_order(const tensor_view& view, element_order order) {
  return view.order() == order || std::ranges::count_if(view.shape().dims(), [](std::uint64_t dim) {
                                    return dim != 1;
                                  }) <= 1;
}

}  // namespace detail

/// A tensor of rank 1, such as a bias, as a vector. Looks at the tensor's memory: nothing is copied, and the map is valid
/// as long as that. Throws `error` where rank or type differ, or the elements are not aligned for their type.
template <eigen_scalar T>
[[nodiscard]] const_vector_map<T> map_vector(const tensor_view& view) {
  if (view.shape().rank() != 1) {
    throw error("a view of " + to_string(view.shape()) + " was asked for a vector");
  }
  const T* const data = detail::eigen_data<T>(view);
  return {data, detail::eigen_size(view, 0, 1)};
}

/// A tensor as a matrix in whose memory nothing is moved: the first `row_axes` axes are its rows, all others its columns.
/// So a kernel [3, 3, in, out] of Keras becomes with 3 the matrix [9 in, out] that im2col multiplies by, and one [out, in,
/// 3, 3] of PyTorch becomes with 1 the matrix [out, 9 in]. `Order` is how the tensor's elements lie, row-major in all
/// files but those that NumPy or Julia wrote in Fortran's order, where several axes that become one are counted with the
/// first one running fastest. Looks at the tensor's memory, and is valid as long as that. Throws `error` where the tensor
/// is of another type or order, or has no axis for rows or none for columns, or its elements are not aligned for their
/// type.
template <eigen_scalar T, int Order = Eigen::RowMajor>
[[nodiscard]] const_matrix_map<T, Order> map_matrix(const tensor_view& view,
                                                    std::size_t row_axes = 1) {
  constexpr bool rows_first = Order == Eigen::RowMajor;
  static_assert(rows_first || Order == Eigen::ColMajor);
  const std::size_t rank = view.shape().rank();
  if (row_axes == 0 || row_axes >= rank) {
    throw error("a view of " + to_string(view.shape()) + " was asked for a matrix with " +
                std::to_string(row_axes) + " axes as rows");
  }
  if (!detail::has_order(view,
                         rows_first ? element_order::row_major : element_order::column_major)) {
    throw error("a view of " + to_string(view.shape()) + " was asked for a " +
                (rows_first ? "row-major" : "column-major") + " matrix, and is " +
                (rows_first ? "column-major" : "row-major"));
  }
  const T* const data = detail::eigen_data<T>(view);
  return {data, detail::eigen_size(view, 0, row_axes),
          detail::eigen_size(view, row_axes, rank - row_axes)};
}

/// Calls `use` with the tensor's `map_matrix` in whichever order it has, and returns what that returns, for both orders
/// the same type.
template <eigen_scalar T, class Use>
decltype(auto) with_matrix(const tensor_view& view, Use&& use, std::size_t row_axes = 1) {
  if (view.order() == element_order::row_major) {
    return std::forward<Use>(use)(map_matrix<T, Eigen::RowMajor>(view, row_axes));
  }
  return std::forward<Use>(use)(map_matrix<T, Eigen::ColMajor>(view, row_axes));
}

}  // namespace vggload
