// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "open_any.hpp"

#include <string>

#include <hdf5.h>

#include <vggload/io/gguf_reader.hpp>
#include <vggload/io/hdf5_reader.hpp>
#include <vggload/io/keras_reader.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/io/onnx_reader.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/sharded_safetensors_reader.hpp>
#include <vggload/io/torch_reader.hpp>
#include <vggload/load/checkpoint.hpp>

namespace command {

vggload::checkpoint open_any(const std::string& path) {
  // Else libhdf5 may complain, when the process ends, that it cannot close a damaged file.
  H5dont_atexit();
  using readers =
      vggload::reader_list<vggload::torch_zip_reader, vggload::torch_legacy_reader,
                           vggload::keras_reader, vggload::npy_reader, vggload::npz_reader,
                           vggload::gguf_reader, vggload::onnx_reader, vggload::hdf5_reader,
                           vggload::safetensors_reader, vggload::sharded_safetensors_reader>;
  return vggload::open_checkpoint<readers>(path);
}

}  // namespace command
