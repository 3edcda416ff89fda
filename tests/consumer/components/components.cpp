// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <system_error>

#include <vggload/data/image_decoder.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/interop/dlpack.hpp>
#include <vggload/io/hdf5_reader.hpp>
#include <vggload/io/keras_reader.hpp>
#include <vggload/io/onnx_reader.hpp>
#include <vggload/load/checkpoint.hpp>

int main() {
  vggload::scratch memory;
  try {
    (void)vggload::image_decoder().decode("empty.jpg", {}, {}, memory);
    return 1;
  } catch (const vggload::format_error&) {
    // There is nothing in it.
  }
  using readers =
      vggload::reader_list<vggload::hdf5_reader, vggload::keras_reader, vggload::onnx_reader>;
  try {
    (void)vggload::open_checkpoint<readers>("/nonexistent/vgg16.h5");
  } catch (const vggload::io_error& e) {
    return e.code() == std::errc::no_such_file_or_directory ? 0 : 1;
  }
  return 1;
}
