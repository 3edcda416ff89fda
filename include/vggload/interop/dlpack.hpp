// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Needs DLPack's header (component dlpack), of any version.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <dlpack/dlpack.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// Gives a DLPack tensor back by its own deleter.
struct dlpack_deleter {
  template <class Managed>
  void operator()(Managed* tensor) const noexcept {
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
  }
};

/// A tensor on its way to another library. `release()` hands it over: whoever takes it calls its deleter, once, when
/// nothing uses the memory any more.
using dlpack_tensor = std::unique_ptr<DLManagedTensor, dlpack_deleter>;
#ifdef DLPACK_MAJOR_VERSION
/// As it is since DLPack 1.0, where it can say that it is read-only.
using dlpack_versioned_tensor = std::unique_ptr<DLManagedTensorVersioned, dlpack_deleter>;
#endif

namespace detail {

[[nodiscard]] inline DLDataType dlpack_type(dtype type) {
  const auto make = [type](DLDataTypeCode code) {
    return DLDataType{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits_of(type)), 1};
  };
  switch (type) {
    case dtype::f16:
    case dtype::f32:
    case dtype::f64: return make(kDLFloat);
    case dtype::bf16: return make(kDLBfloat);
    case dtype::i8:
    case dtype::i16:
    case dtype::i32:
    case dtype::i64: return make(kDLInt);
    case dtype::u8:
    case dtype::u16:
    case dtype::u32:
    case dtype::u64: return make(kDLUInt);
    case dtype::c64: return make(kDLComplex);
    default:
      throw unsupported_error("DLPack: elements of " + std::string(name_of(type)) +
                              " are not handed to other libraries");
  }
}

/// What a DLPack tensor refers to, and itself. `Managed`: DLManagedTensor, or the versioned one.
template <class Managed, class Owner>
struct dlpack_holder {
  Owner owner;
  std::vector<std::int64_t> dims;
  std::vector<std::int64_t> strides;  // in elements
  Managed tensor{};

  static void destroy(Managed* tensor) noexcept {
    delete static_cast<dlpack_holder*>(tensor->manager_ctx);
  }
};

template <class Managed, class Owner>
[[nodiscard]] std::unique_ptr<Managed, dlpack_deleter> make_dlpack(dtype type, const shape& dims,
                                                                   element_order order,
                                                                   const std::byte* data,
                                                                   Owner owner, DLDevice device) {
  using holder = dlpack_holder<Managed, Owner>;
  constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const DLDataType element = dlpack_type(type);
  if (!tensor_view::is_aligned_for(data, type)) {
    throw error("DLPack: a tensor of " + std::string(name_of(type)) + " " + to_string(dims) +
                " is not aligned for its elements");
  }
  auto made = std::unique_ptr<holder>(new holder{std::move(owner), {}, {}, {}});
  for (const std::uint64_t dim : dims.dims()) {
    if (dim > most) throw error("DLPack: the axes of " + to_string(dims) + " are too long");
    made->dims.push_back(static_cast<std::int64_t>(dim));
  }
  made->strides.resize(dims.rank());
  // A tensor without elements may have axes whose product is beyond 64 bits; its strides mean nothing.
  std::uint64_t stride = 1;
  for (std::size_t i = 0; i < dims.rank(); ++i) {
    const std::size_t axis = order == element_order::row_major ? dims.rank() - 1 - i : i;
    made->strides[axis] = static_cast<std::int64_t>(stride & most);
    stride *= dims[axis];
  }
  DLTensor& tensor = made->tensor.dl_tensor;
  // DLPack has no constant data. What may not be written shows in the versioned tensor's flags.
  tensor.data = const_cast<std::byte*>(data);
  tensor.device = device;
  tensor.ndim = static_cast<std::int32_t>(dims.rank());
  tensor.dtype = element;
  tensor.shape = made->dims.data();
  tensor.strides = made->strides.data();
  made->tensor.manager_ctx = made.get();
  made->tensor.deleter = &holder::destroy;
  return std::unique_ptr<Managed, dlpack_deleter>(&made.release()->tensor);
}

}  // namespace detail

/// A tensor for PyTorch, NumPy, CuPy, JAX and others, without a copy: the pointer is the one of the memory where it lies.
/// `owner` is what keeps that memory, a `std::shared_ptr` to a model or arena, a `checkpoint`, or the model itself, moved
/// in; it lives in the tensor until that is deleted. The elements' order is in the strides. The memory must not be
/// written, which this kind of tensor cannot tell: a mapped file answers with SIGSEGV (NumPy takes all such tensors as
/// read-only, PyTorch none). Throws `unsupported_error` where DLPack has no such elements, `error` where they are not
/// aligned.
template <class Owner>
[[nodiscard]] dlpack_tensor to_dlpack(const tensor_view& view, Owner owner) {
  return detail::make_dlpack<DLManagedTensor>(view.dtype(), view.shape(), view.order(),
                                              view.bytes().data(), std::move(owner), {kDLCPU, 0});
}

/// The same of memory on a GPU, such as a `cuda::device_tensor`'s, which is the CUDA device `device`. What wrote it has to
/// be done. Throws `error` as well where `bytes` are not the tensor's.
template <class Owner>
[[nodiscard]] dlpack_tensor to_dlpack(dtype type, const shape& dims, element_order order,
                                      memory_span<memory_access::device> bytes, int device,
                                      Owner owner) {
  if (bytes_of(type, dims) != bytes.size()) {
    throw error("DLPack: " + std::to_string(bytes.size()) + " bytes are not " +
                std::string(name_of(type)) + " " + to_string(dims));
  }
  return detail::make_dlpack<DLManagedTensor>(type, dims, order, bytes.data(), std::move(owner),
                                              {kDLCUDA, device});
}

#ifdef DLPACK_MAJOR_VERSION

/// As `to_dlpack`, and says that it is read-only. DLPack's header has it from 1.0 on.
template <class Owner>
[[nodiscard]] dlpack_versioned_tensor to_dlpack_versioned(const tensor_view& view, Owner owner) {
  auto made = detail::make_dlpack<DLManagedTensorVersioned>(
      view.dtype(), view.shape(), view.order(), view.bytes().data(), std::move(owner), {kDLCPU, 0});
  made->version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  made->flags = DLPACK_FLAG_BITMASK_READ_ONLY;
  return made;
}

#endif

}  // namespace vggload
