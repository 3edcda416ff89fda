// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Loaded tensors as Eigen's matrices.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>
#include <Eigen/Core>

#include "../support/message_of.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/interop/eigen.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>

using test::message_of;
using vggload::dtype;
using vggload::element_order;
using vggload::map_matrix;
using vggload::map_vector;
using vggload::tensor_view;

namespace {

template <class T, std::size_t Size>
tensor_view view_of(const std::array<T, Size>& values, dtype type, const vggload::shape& dims,
                    element_order order = element_order::row_major) {
  return {type, dims, std::as_bytes(std::span(values)), order};
}

constexpr std::array<float, 6> six{1, 2, 3, 4, 5, 6};

static_assert(vggload::eigen_scalar<Eigen::half> && vggload::eigen_scalar<Eigen::bfloat16>);
static_assert(vggload::eigen_scalar<float> && vggload::eigen_scalar<std::int64_t>);
// Eigen cannot compute with the library's storage types.
static_assert(!vggload::eigen_scalar<vggload::float16> && !vggload::eigen_scalar<bool>);

}  // namespace

TEST_CASE("a matrix is where its tensor is, in either order") {
  const auto rows = map_matrix<float>(view_of(six, dtype::f32, {2, 3}));
  CHECK(rows.data() == six.data());
  CHECK(rows.rows() == 2);
  CHECK(rows.cols() == 3);
  CHECK(rows(0, 2) == 3);
  CHECK(rows(1, 0) == 4);

  const tensor_view fortran = view_of(six, dtype::f32, {2, 3}, element_order::column_major);
  const auto columns = map_matrix<float, Eigen::ColMajor>(fortran);
  CHECK(columns.data() == six.data());
  CHECK(columns.rows() == 2);
  CHECK(columns.cols() == 3);
  CHECK(columns(1, 0) == 2);
  CHECK(columns(0, 2) == 5);

  // What products read of it lies side by side, so that they need no copy.
  static_assert(decltype(rows)::InnerStrideAtCompileTime == 1);
  static_assert(decltype(columns)::InnerStrideAtCompileTime == 1);
  const Eigen::Vector3f one_two_three(1, 2, 3);
  CHECK((rows * one_two_three).eval() == Eigen::Vector2f(14, 32));
  CHECK((columns * one_two_three).eval() == Eigen::Vector2f(22, 28));
}

TEST_CASE("axes become rows and columns as they follow each other in memory") {
  std::array<float, 24> values;
  for (std::size_t i = 0; i < values.size(); ++i) values.at(i) = static_cast<float>(i);
  const vggload::shape dims{2, 3, 4};
  const tensor_view row_major = view_of(values, dtype::f32, dims);
  const auto first = map_matrix<float>(row_major);
  CHECK(first.rows() == 2);
  CHECK(first.cols() == 12);
  CHECK(first(1, 5) == 17);  // [1, 1, 1]
  const auto two = map_matrix<float>(row_major, 2);
  CHECK(two.rows() == 6);
  CHECK(two.cols() == 4);
  CHECK(two(4, 1) == 17);
  // Element [1, 1, 1] of this is at 1 + 2 * (1 + 3 * 1).
  const tensor_view column_major = view_of(values, dtype::f32, dims, element_order::column_major);
  CHECK(map_matrix<float, Eigen::ColMajor>(column_major, 1)(1, 1 + 3 * 1) == 9);
  CHECK(map_matrix<float, Eigen::ColMajor>(column_major, 2)(1 + 2 * 1, 1) == 9);
}

TEST_CASE("16-bit elements are Eigen's, bit for bit") {
  // 1.5, -2, the smallest subnormal.
  const std::array<std::uint16_t, 3> half_bits{0x3E00, 0xC000, 0x0001};
  const auto halves = map_vector<Eigen::half>(view_of(half_bits, dtype::f16, {3}));
  CHECK(static_cast<const void*>(halves.data()) == half_bits.data());
  CHECK(static_cast<float>(halves[0]) == 1.5F);
  CHECK(static_cast<float>(halves[1]) == -2.0F);
  CHECK(static_cast<float>(halves[2]) == 0x1p-24F);
  const std::array<std::uint16_t, 2> brain_bits{0x3FC0, 0xC000};  // 1.5, -2
  const auto brains = map_vector<Eigen::bfloat16>(view_of(brain_bits, dtype::bf16, {2}));
  CHECK(static_cast<float>(brains[0]) == 1.5F);
  CHECK(static_cast<float>(brains[1]) == -2.0F);
}

TEST_CASE("whoever does not care gets the order that there is") {
  for (const element_order order : {element_order::row_major, element_order::column_major}) {
    const tensor_view view = view_of(six, dtype::f32, {2, 3}, order);
    const float corner =
        vggload::with_matrix<float>(view, [](const auto& matrix) { return matrix(0, 1); });
    CHECK(corner == (order == element_order::row_major ? 2 : 3));
  }
  // One row or one column has both.
  const auto row = map_matrix<float>(view_of(six, dtype::f32, {1, 6}, element_order::column_major));
  CHECK(row(0, 4) == 5);
  const auto column = map_matrix<float, Eigen::ColMajor>(view_of(six, dtype::f32, {6, 1}));
  CHECK(column(4, 0) == 5);
}

TEST_CASE("a matrix in Fortran's order that NumPy wrote") {
  const auto file = vggload::open_checkpoint(FIXTURES "/numpy/fortran_matrix.npy");
  const vggload::tensor_info& info = file.tensors().front();
  const auto bytes = file.view(0);
  REQUIRE(bytes);
  REQUIRE(info.order == element_order::column_major);
  const tensor_view view(info.dtype, info.shape, *bytes, info.order);
  REQUIRE(info.dtype == dtype::f32);
  const auto matrix = map_matrix<float, Eigen::ColMajor>(view);
  CHECK(static_cast<std::uint64_t>(matrix.rows()) == info.shape[0]);
  CHECK(static_cast<std::uint64_t>(matrix.cols()) == info.shape[1]);
  CHECK(static_cast<const void*>(matrix.data()) == bytes->data());
}

TEST_CASE("what a map cannot show is refused") {
  const tensor_view view = view_of(six, dtype::f32, {2, 3});
  CHECK(message_of<vggload::error>([&] { (void)map_matrix<double>(view); }) ==
        "a view of F32 elements was asked for F64 ones");
  CHECK(message_of<vggload::error>([&] { (void)map_matrix<Eigen::half>(view); }) ==
        "a view of F32 elements was asked for F16 ones");
  CHECK(message_of<vggload::error>([&] { (void)map_matrix<float, Eigen::ColMajor>(view); }) ==
        "a view of [2, 3] was asked for a column-major matrix, and is row-major");
  CHECK(message_of<vggload::error>([&] {
          (void)map_matrix<float>(view_of(six, dtype::f32, {2, 3}, element_order::column_major));
        }) == "a view of [2, 3] was asked for a row-major matrix, and is column-major");
  CHECK(message_of<vggload::error>([&] { (void)map_matrix<float>(view, 0); }) ==
        "a view of [2, 3] was asked for a matrix with 0 axes as rows");
  CHECK(message_of<vggload::error>([&] { (void)map_matrix<float>(view, 2); }) ==
        "a view of [2, 3] was asked for a matrix with 2 axes as rows");
  CHECK(message_of<vggload::error>([&] { (void)map_vector<float>(view); }) ==
        "a view of [2, 3] was asked for a vector");
  // One byte off.
  alignas(4) std::array<std::byte, 9> bytes{};
  const tensor_view unaligned(dtype::f32, {2}, std::span(bytes).subspan(1));
  CHECK(message_of<vggload::error>([&] { (void)map_vector<float>(unaligned); }) ==
        "a view of F32 elements is not aligned for them");
  // No elements, but axes that are longer than Eigen can count.
  const std::uint64_t huge = std::uint64_t{1} << 63U;
  const tensor_view empty(dtype::f32, {0, huge}, {});
  CHECK(message_of<vggload::error>([&] { (void)map_matrix<float>(empty); }) ==
        "a view of [0, 9223372036854775808] is too large for Eigen");
  const tensor_view none(dtype::f32, {0, 3}, {});
  CHECK(map_matrix<float>(none).size() == 0);
}
