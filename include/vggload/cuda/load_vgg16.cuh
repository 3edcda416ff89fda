// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <vggload/cuda/load_vgg16.hpp>
#include <vggload/cuda/resources.hpp>
#include <vggload/cuda/runtime_device.cuh>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload::cuda {

/// Loads VGG16 into memory of the current device (`load_vgg16` in cuda/load_vgg16.hpp).
[[nodiscard]] static inline device_model<device_resource> load_vgg16(
    const checkpoint& source, const device_load_options& options = {}) {
  return vggload::detail::naming_out_of_memory(source.path(), "loading VGG16", [&] {
    return load_vgg16(source, options, runtime_device());
  });
}

}  // namespace vggload::cuda
