// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "load_to_device.hpp"

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include <vggload/core/error.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/cuda/error.hpp>
#include <vggload/cuda/load_vgg16.cuh>
#include <vggload/cuda/runtime_device.cuh>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace command {

namespace {

/// Runs `action`; CUDA's errors come out with the file's name.
template <class Action>
decltype(auto) naming_file(const std::string& file, Action&& action) {
  try {
    return action();
  } catch (const vggload::cuda::cuda_error& e) {
    throw vggload::error(vggload::printable(file) + ": " + e.what());
  }
}

}  // namespace

void open_device(const std::string& file) {
  int devices = 0;
  // Where there is no driver it is an error, and so it is where there is no device.
  const cudaError_t code = cudaGetDeviceCount(&devices);
  if (code != cudaSuccess) {
    throw vggload::error(vggload::printable(file) +
                         ": no CUDA device: " + cudaGetErrorString(code));
  }
  vggload::detail::naming_out_of_memory(file, "making CUDA's context", [&] {
    naming_file(file, [] { static_cast<void>(vggload::cuda::runtime_device()); });
  });
}

device_load load_to_device(const vggload::checkpoint& file,
                           const vggload::cuda::device_load_options& options) {
  return naming_file(file.path(), [&] {
    const vggload::cuda::runtime_device device;
    const auto model =
        std::make_shared<const vggload::cuda::device_model<vggload::cuda::device_resource>>(
            vggload::cuda::load_vgg16(file, options, device));
    std::uint64_t parameters = 0;
    for (const auto& layer : model->layers()) parameters += layer.spec.parameters();
    const auto read_back = [device, model, path = file.path()](
                               const std::function<void(const vggload::tensor_view&)>& show) {
      const auto read = [&](const vggload::cuda::device_tensor& tensor) {
        std::vector<std::byte> bytes(tensor.bytes.size());
        naming_file(path, [&] { device.copy_to_host(bytes, tensor.bytes.data()); });
        show(vggload::tensor_view(tensor.dtype, tensor.shape, bytes, tensor.order));
      };
      for (const auto& layer : model->layers()) {
        read(layer.weight);
        read(layer.bias);
      }
    };
    return device_load{device.name(), model->layout(), parameters, model->report(), read_back};
  });
}

}  // namespace command
