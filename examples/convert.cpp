// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Converts a checkpoint of any readable format to a safetensors file, window by window.

#include <cstdio>
#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "open_any.hpp"
#include "precision.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/convert_checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/vgg16/convert_layout.hpp>
#include <vggload/vgg16/names.hpp>

namespace {

void print_json(const vggload::checkpoint& source, const std::string& out,
                const command::precision_options& precision, const vggload::stream_report& report) {
  nlohmann::ordered_json json{{"file", source.path()},
                              {"output", out},
                              {"threads", report.threads},
                              {"read_bytes", report.read_bytes},
                              {"written_bytes", report.written_bytes},
                              {"overflow", vggload::name_of(precision.overflow())},
                              {"overflowed", command::precision_options::total(report.overflowed)}};
  if (precision.health()) json["health"] = command::health_json(source, report.measured);
  const auto text = json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
}

}  // namespace

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
  const command::precision_options precision(app);
  bool as_json = false;
  app.add_flag("--json", as_json, "Say what was done as JSON");
  return command::run(app, argc, argv, in, [&] {
    type = types.at(type_name);
    const vggload::checkpoint source = command::open_any(in);
    command::interruption interrupted;
    command::progress_bar bar("converting");
    auto options = command::stream_options(threads, interrupted, bar);
    options.overflow = precision.overflow();
    options.measure_health = precision.health();
    const vggload::dtype_policy policy = precision.types(source, type);
    const vggload::stream_report report =
        layout_name.empty()
            ? vggload::convert_checkpoint(source, out, policy, options)
            : vggload::vgg16::convert_layout(source, out, layouts.at(layout_name), policy, options);
    bar.clear();
    precision.warn(source, report.overflowed);
    if (as_json) {
      print_json(source, out, precision, report);
    } else {
      command::print_health(source, report.measured);
    }
  });
} catch (...) {
  return command::report_error("convert");
}
