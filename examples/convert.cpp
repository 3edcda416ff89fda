// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Converts a checkpoint of any readable format to a safetensors file, window by window.

#include <map>
#include <optional>
#include <string>

#include "command.hpp"
#include "open_any.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/convert_checkpoint.hpp>
#include <vggload/vgg16/convert_layout.hpp>
#include <vggload/vgg16/names.hpp>

int main(int argc, char** argv) try {
  CLI::App app(
      "Writes a checkpoint's tensors to a safetensors file, floating ones as another type.");
  std::string in;
  std::string out;
  std::optional<vggload::dtype> type = vggload::dtype::f16;
  unsigned threads = 0;
  const std::map<std::string, std::optional<vggload::dtype>> types{{"f32", vggload::dtype::f32},
                                                                   {"f16", vggload::dtype::f16},
                                                                   {"bf16", vggload::dtype::bf16},
                                                                   {"keep", std::nullopt}};
  std::string type_name = "f16";
  app.add_option(
         "IN", in,
         "A checkpoint: safetensors or its shards' index, PyTorch, Keras, HDF5, NumPy, ONNX, GGUF")
      ->required();
  app.add_option("OUT", out, "The safetensors file to write")->required();
  app.add_option("--dtype", type_name, "f32, f16 (default), bf16, or keep")
      ->check(CLI::IsMember(types))
      ->type_name("TYPE");
  const std::map<std::string, vggload::vgg16::weight_layout> layouts{
      {"torch", vggload::vgg16::weight_layout::torch},
      {"keras", vggload::vgg16::weight_layout::keras}};
  std::string layout_name;
  app.add_option("--layout", layout_name,
                 "Of a VGG16: its weights in the layout, and under the names, of torch or keras")
      ->check(CLI::IsMember(layouts))
      ->type_name("LAYOUT");
  command::add_threads(app, threads);
  return command::run(app, argc, argv, in, [&] {
    type = types.at(type_name);
    const vggload::checkpoint source = command::open_any(in);
    command::interruption interrupted;
    command::progress_bar bar("converting");
    const auto options = command::stream_options(threads, interrupted, bar);
    if (layout_name.empty()) {
      vggload::convert_checkpoint(source, out, type, options);
    } else {
      vggload::vgg16::convert_layout(source, out, layouts.at(layout_name), type, options);
    }
  });
} catch (...) {
  return command::report_error("convert");
}
