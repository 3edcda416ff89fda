// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// load_to_device.hpp, where the project is built without CUDA.

#include <string>

#include "load_to_device.hpp"

#include <vggload/core/error.hpp>
#include <vggload/cuda/load_vgg16.hpp>
#include <vggload/load/checkpoint.hpp>

namespace command {

void open_device(const std::string& file) {
  throw vggload::error(vggload::printable(file) + ": no CUDA device: built without CUDA");
}

device_load load_to_device(const vggload::checkpoint& file,
                           const vggload::cuda::device_load_options& /*options*/) {
  throw vggload::error(vggload::printable(file.path()) + ": no CUDA device: built without CUDA");
}

}  // namespace command
