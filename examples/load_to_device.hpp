// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <vggload/core/tensor_view.hpp>
#include <vggload/cuda/load_vgg16.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/vgg16/names.hpp>

namespace command {

/// A VGG16 on a GPU, for a command that knows nothing of CUDA.
struct device_load {
  std::string device;  // its name
  vggload::vgg16::weight_layout layout;
  std::uint64_t parameters;
  vggload::cuda::device_load_report report;
  /// Copies tensor after tensor back, weight and bias by turns, and shows each. Keeps the weights on
  /// the GPU as long as it lives.
  std::function<void(const std::function<void(const vggload::tensor_view&)>&)> read_back;
};

/// Makes the GPU ready. Throws `vggload::error` "FILE: no CUDA device: <CUDA's words>" where none can
/// be used; `file` is what was to be loaded.
void open_device(const std::string& file);

/// Loads to the GPU. Throws what `vggload::cuda::load_vgg16` throws, with the file's name.
[[nodiscard]] device_load load_to_device(const vggload::checkpoint& file,
                                         const vggload::cuda::device_load_options& options);

}  // namespace command
