// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Loaded tensors for Python, which check_dlpack.py takes by ctypes. The functions that give a tensor give nothing where
// they fail, and `hand_over_error` says why.

#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include <dlpack/dlpack.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/interop/dlpack.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/vgg16/load.hpp>

namespace {

std::string last_error;
std::atomic<long> owners = 0;

/// Keeps what it was made from, and is counted.
template <class T>
std::shared_ptr<T> counted(T&& kept) {
  ++owners;
  return std::shared_ptr<T>(new T(std::move(kept)), [](T* one) {
    delete one;
    --owners;
  });
}

template <class Make>
void* or_nothing(const Make& make) {
  try {
    return make();
  } catch (const std::exception& e) {
    last_error = e.what();
    return nullptr;
  }
}

template <class Owner>
void* hand_over(const vggload::tensor_view& view, Owner owner, bool versioned) {
  if (versioned) {
#ifdef DLPACK_MAJOR_VERSION
    return vggload::to_dlpack_versioned(view, std::move(owner)).release();
#else
    throw vggload::error("this DLPack has no versions");
#endif
  }
  return vggload::to_dlpack(view, std::move(owner)).release();
}

}  // namespace

extern "C" {

/// A tensor of a file, in place.
void* hand_over_mapped(const char* path, const char* tensor, bool versioned) {
  return or_nothing([&] {
    auto file = vggload::open_checkpoint(path);
    const auto index = file.find(tensor);
    if (!index) throw vggload::error("no such tensor");
    const auto bytes = file.view(*index);
    if (!bytes) throw vggload::error("not in place");
    const vggload::tensor_info& info = file.tensors()[*index];
    const vggload::tensor_view view(info.dtype, info.shape, *bytes, info.order);
    return hand_over(view, counted(std::move(file)), versioned);
  });
}

/// A weight of a VGG16, converted to F16.
void* hand_over_weight(const char* path, const char* layer, bool versioned) {
  return or_nothing([&] {
    const auto model = counted(vggload::vgg16::load(path, {.dtype = vggload::dtype::f16}));
    return hand_over(model->weights()[layer].weight, model, versioned);
  });
}

/// What was handed over and not given back.
long hand_over_owners() { return owners; }

const char* hand_over_error() { return last_error.c_str(); }
}
