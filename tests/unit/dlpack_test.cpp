// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Loaded tensors as DLPack's, as its header describes them. tests/peers hands them to PyTorch and NumPy.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <dlpack/dlpack.h>
#include <doctest/doctest.h>

#include "../support/message_of.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/interop/dlpack.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/resource.hpp>

using test::message_of;
using vggload::dtype;
using vggload::element_order;
using vggload::tensor_view;

namespace {

constexpr std::array<float, 24> values{};

tensor_view view_of(const vggload::shape& dims, element_order order = element_order::row_major) {
  return {dtype::f32, dims, std::as_bytes(std::span(values)), order};
}

std::vector<std::int64_t> numbers(const std::int64_t* first, std::int32_t count) {
  return {first, first + count};
}

}  // namespace

TEST_CASE("a tensor is described, not copied") {
  const auto made = vggload::to_dlpack(view_of({2, 3, 4}), 0);
  const DLTensor& tensor = made->dl_tensor;
  CHECK(tensor.data == static_cast<const void*>(values.data()));
  CHECK(tensor.byte_offset == 0);
  CHECK(tensor.device.device_type == kDLCPU);
  CHECK(tensor.device.device_id == 0);
  CHECK(tensor.dtype.code == kDLFloat);
  CHECK(tensor.dtype.bits == 32);
  CHECK(tensor.dtype.lanes == 1);
  CHECK(numbers(tensor.shape, tensor.ndim) == std::vector<std::int64_t>{2, 3, 4});
  CHECK(numbers(tensor.strides, tensor.ndim) == std::vector<std::int64_t>{12, 4, 1});
  const auto fortran = vggload::to_dlpack(view_of({2, 3, 4}, element_order::column_major), 0);
  CHECK(numbers(fortran->dl_tensor.strides, 3) == std::vector<std::int64_t>{1, 2, 6});
}

TEST_CASE("its owner lives until the deleter is called") {
  auto owner = std::make_shared<int>(7);
  auto made = vggload::to_dlpack(view_of({24}), owner);
  CHECK(owner.use_count() == 2);
  DLManagedTensor* const taken = made.release();
  CHECK(owner.use_count() == 2);
  taken->deleter(taken);
  CHECK(owner.use_count() == 1);
  // Whoever does not hand it over gives it back.
  { const auto kept = vggload::to_dlpack(view_of({24}), owner); }
  CHECK(owner.use_count() == 1);
  // What can only be moved does as well.
  auto only = std::make_unique<int>(7);
  CHECK(vggload::to_dlpack(view_of({24}), std::move(only))->dl_tensor.ndim == 1);
}

TEST_CASE("a mapped file's tensor, with its checkpoint as the owner") {
  vggload::dlpack_tensor made;
  const std::byte* data = nullptr;
  {
    const auto file = vggload::open_checkpoint(FIXTURES "/numpy/fortran_matrix.npy");
    const vggload::tensor_info& info = file.tensors().front();
    const auto bytes = file.view(0);
    REQUIRE(bytes);
    data = bytes->data();
    made = vggload::to_dlpack({info.dtype, info.shape, *bytes, info.order}, file);
  }
  const DLTensor& tensor = made->dl_tensor;
  CHECK(tensor.data == static_cast<const void*>(data));
  CHECK(tensor.strides[0] == 1);
  CHECK(tensor.strides[1] == tensor.shape[0]);
  // Still mapped: the last byte can be read.
  const auto* bytes = static_cast<const volatile unsigned char*>(tensor.data);
  (void)bytes[tensor.shape[0] * tensor.shape[1] * tensor.dtype.bits / 8 - 1];
}

TEST_CASE("types have DLPack's codes") {
  struct known {
    dtype type;
    std::uint8_t code;
    std::uint8_t bits;
  };
  alignas(8) static constexpr std::array<std::byte, 8> one{};
  for (const known& each : {known{dtype::f16, 2, 16},
                            {dtype::f32, 2, 32},
                            {dtype::f64, 2, 64},
                            {dtype::bf16, 4, 16},
                            {dtype::i8, 0, 8},
                            {dtype::i16, 0, 16},
                            {dtype::i32, 0, 32},
                            {dtype::i64, 0, 64},
                            {dtype::u8, 1, 8},
                            {dtype::u16, 1, 16},
                            {dtype::u32, 1, 32},
                            {dtype::u64, 1, 64},
                            {dtype::c64, 5, 64}}) {
    const tensor_view scalar(each.type, {}, std::span(one).first(each.bits / 8U));
    const auto made = vggload::to_dlpack(scalar, 0);
    CHECK(made->dl_tensor.ndim == 0);
    CHECK(made->dl_tensor.dtype.code == each.code);
    CHECK(made->dl_tensor.dtype.bits == each.bits);
    CHECK(made->dl_tensor.dtype.lanes == 1);
  }
  const tensor_view eighth(dtype::f8_e4m3, {1}, std::span(one).first(1));
  CHECK(message_of<vggload::unsupported_error>([&] { (void)vggload::to_dlpack(eighth, 0); }) ==
        "DLPack: elements of F8_E4M3 are not handed to other libraries");
  alignas(4) static constexpr std::array<std::byte, 5> shifted{};
  const tensor_view unaligned(dtype::f32, {1}, std::span(shifted).subspan(1));
  CHECK(message_of<vggload::error>([&] { (void)vggload::to_dlpack(unaligned, 0); }) ==
        "DLPack: a tensor of F32 [1] is not aligned for its elements");
  const tensor_view empty(dtype::f32, {0, std::uint64_t{1} << 63U}, {});
  CHECK(message_of<vggload::error>([&] { (void)vggload::to_dlpack(empty, 0); }) ==
        "DLPack: the axes of [0, 9223372036854775808] are too long");
}

TEST_CASE("memory of a GPU says which") {
  std::array<std::byte, 24> stand_in{};
  const vggload::memory_span<vggload::memory_access::device> bytes(stand_in.data(), 24);
  const auto made = vggload::to_dlpack(dtype::f16, {3, 4}, element_order::row_major, bytes, 5, 0);
  CHECK(made->dl_tensor.device.device_type == kDLCUDA);
  CHECK(made->dl_tensor.device.device_id == 5);
  CHECK(made->dl_tensor.data == static_cast<void*>(stand_in.data()));
  CHECK(message_of<vggload::error>([&] {
          (void)vggload::to_dlpack(dtype::f32, {3, 4}, element_order::row_major, bytes, 5, 0);
        }) == "DLPack: 24 bytes are not F32 [3, 4]");
}
