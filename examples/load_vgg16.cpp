// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The library's main job: loads a VGG16 checkpoint as FP16 (or another type) in bounded memory and
// says what it took.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "load_to_device.hpp"
#include "memory_dump.hpp"
#include "open_any.hpp"
#include "precision.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/cuda/load_vgg16.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/process_memory.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/names.hpp>

namespace {

/// What was loaded, wherever to.
struct loaded_model {
  vggload::checkpoint file;
  vggload::vgg16::weight_layout layout;
  std::uint64_t parameters;
  vggload::vgg16::load_report report;
  std::function<std::string()> digest;  // as JSON tells it; keeps the weights
  /// Nothing: on the host.
  std::optional<command::device_load> on_device = {};
};

/// What the report says beside the library's own `load_report`.
struct measurement {
  double seconds = 0;                        // opening included
  std::optional<std::uint64_t> peak_growth;  // nothing where the system does not tell
};

double gigabytes_per_second(std::uint64_t bytes, double seconds) {
  return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0;
}

/// The CRC-32 over the loaded elements, row-major. Those that views show in the file are read: a file that is
/// made shorter meanwhile is an error then, and no SIGBUS.
std::string digest(const vggload::checkpoint& file, const vggload::vgg16::model<>& model) {
  const auto layers = model.weights().layers();
  const auto bound = vggload::vgg16::bind(file, layers.size() > vggload::vgg16::conv_layers);
  std::vector<std::byte> window(command::digest_window_bytes);
  command::crc32 crc;
  const auto update = [&](std::size_t tensor, const vggload::tensor_view& view) {
    if (file.tensors()[tensor].dtype == view.dtype()) {
      crc.update(file, tensor, window);
    } else {
      crc.update(view, window);
    }
  };
  for (std::size_t i = 0; i < layers.size(); ++i) {
    update(bound.layers[i].weight, layers[i].weight);
    update(bound.layers[i].bias, layers[i].bias);
  }
  return crc.hex();
}

/// The same over what is on the GPU, read back.
std::string digest(const command::device_load& loaded) {
  std::vector<std::byte> window(command::digest_window_bytes);
  command::crc32 crc;
  loaded.read_back([&](const vggload::tensor_view& view) { crc.update(view, window); });
  return crc.hex();
}

loaded_model load_on_host(const vggload::checkpoint& file,
                          const vggload::vgg16::load_options& options) {
  const auto model =
      std::make_shared<const vggload::vgg16::model<>>(vggload::vgg16::load(file, options));
  const auto& weights = model->weights();
  return {file, weights.layout(), weights.parameters(), model->report(),
          [file, model] { return digest(file, *model); }};
}

loaded_model load_on_device(const vggload::checkpoint& file,
                            const vggload::cuda::device_load_options& options) {
  const command::device_load loaded = command::load_to_device(file, options);
  const vggload::vgg16::load_report& report = loaded.report;
  return {file,  loaded.layout, loaded.parameters, report, [loaded] { return digest(loaded); },
          loaded};
}

double upload_gigabytes_per_second(const vggload::cuda::device_load_report& report) {
  return gigabytes_per_second(report.uploaded_bytes, report.upload_seconds);
}

void print_json(const loaded_model& loaded, vggload::dtype type,
                const command::precision_options& precision, const measurement& measured) {
  const auto& [file, layout, parameters, report, digest, on_device] = loaded;
  nlohmann::ordered_json json{
      {"file", file.path()},
      {"format", file.format()},
      {"names", report.family},
      {"layout", name_of(layout)},
      {"dtype", vggload::name_of(type)},
      {"tensors", report.tensors},
      {"parameters", parameters},
      {"classes", report.classes},
      {"threads", report.threads},
      {"seconds", measured.seconds},
      {"gb_per_second", gigabytes_per_second(file.file_bytes(), measured.seconds)},
      {"file_bytes", file.file_bytes()},
      {"destination_bytes", report.destination_bytes},
      {"copied_bytes", report.copied_bytes},
      {"mapped_bytes", report.mapped_bytes},
      {"windows_bytes", report.windows_bytes},
      {"peak_rss_growth_bytes", nullptr},
      {"skipped", report.skipped},
      {"kept_f32", precision.kept(file, report.skipped)},
      {"overflow", vggload::name_of(precision.overflow())},
      {"overflowed", command::precision_options::total(report.overflowed)},
      {"crc32", digest()}};
  if (precision.health()) json["health"] = command::health_json(file, report.measured);
  if (measured.peak_growth) json["peak_rss_growth_bytes"] = *measured.peak_growth;
  if (on_device) {
    const auto& upload = on_device->report;
    json["device"] = on_device->device;
    json["conversion"] = name_of(upload.conversion);
    json["pin_ms"] = upload.pin_ms;
    json["uploaded_bytes"] = upload.uploaded_bytes;
    json["upload_seconds"] = upload.upload_seconds;
    json["upload_gb_per_second"] = upload_gigabytes_per_second(upload);
    json["ring_bytes"] = upload.ring_bytes;
    json["device_window_bytes"] = upload.device_window_bytes;
  }
  const auto text = json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
}

void print_report(const loaded_model& loaded, vggload::dtype type, const measurement& measured) {
  using command::grouped;
  const vggload::checkpoint& file = loaded.file;
  const auto& report = loaded.report;
  const auto row = [](const char* label, const std::string& value, const std::string& note = "") {
    std::printf("  %-20s %15s%s%s\n", label, value.c_str(), note.empty() ? "" : "  ", note.c_str());
  };
  const auto number = [](double value) {
    std::array<char, 32> text;
    std::snprintf(text.data(), text.size(), "%.3f", value);
    return std::string(text.data());
  };
  std::printf("VGG16 from %s\n", vggload::printable(file.path()).c_str());
  row("format", std::string(file.format()),
      std::string(report.family) + " names, " + std::string(name_of(loaded.layout)) + " layout");
  row("tensors", std::to_string(report.tensors),
      grouped(loaded.parameters) + " parameters" +
          (report.classes > 0 ? ", " + grouped(report.classes) + " classes" : ", no top"));
  row("loaded as", std::string(vggload::name_of(type)),
      report.copied_bytes == 0 ? "mapped, nothing to convert"
                               : "by " + std::to_string(report.threads) + " threads");
  row("seconds", number(measured.seconds),
      number(gigabytes_per_second(file.file_bytes(), measured.seconds)) + " GB/s of the file");
  row("bytes in the file", grouped(file.file_bytes()));
  row("at the destination", grouped(report.destination_bytes),
      "+ " + grouped(report.windows_bytes) + " in windows while loading");
  if (measured.peak_growth && !loaded.on_device) {
    const auto extra = static_cast<std::int64_t>(*measured.peak_growth) -
                       static_cast<std::int64_t>(report.destination_bytes);
    std::array<char, 64> note;
    std::snprintf(note.data(), note.size(), "destination %+.2f MiB",
                  static_cast<double>(extra) / (1 << 20));
    row("peak resident growth", grouped(*measured.peak_growth), note.data());
  }
  if (loaded.on_device) {
    const auto& upload = loaded.on_device->report;
    row("on the GPU", "", loaded.on_device->device);
    row("converted", std::string(name_of(upload.conversion)),
        "+ " + grouped(upload.device_window_bytes) + " bytes there while loading");
    row("uploaded", grouped(upload.uploaded_bytes),
        number(upload_gigabytes_per_second(upload)) + " GB/s over the bus");
    row("ms to pin the ring", number(upload.pin_ms), grouped(upload.ring_bytes) + " bytes");
  }
  row("bytes mapped", grouped(report.mapped_bytes));
  row("copies of a weight", report.copied_bytes == 0 ? "0" : "1",
      report.copied_bytes == 0 ? "views into the file" : "the converted one");
  for (const std::string& name : report.skipped) {
    row("skipped", "", vggload::printable(name));
  }
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Loads a VGG16 checkpoint in bounded memory and reports what it took.");
  std::string path;
  bool json = false;
  bool no_top = false;
  std::string type_name = "f16";
  unsigned threads = 0;
  std::optional<std::uint64_t> memory_limit;
  const std::map<std::string, vggload::dtype> types{
      {"f32", vggload::dtype::f32}, {"f16", vggload::dtype::f16}, {"bf16", vggload::dtype::bf16}};
  app.add_option(
         "FILE", path,
         "A checkpoint: safetensors or its shards' index, PyTorch, Keras, HDF5, NumPy, ONNX, GGUF")
      ->required();
  app.add_option("--dtype", type_name, "Type of the loaded weights: f32, f16 (default), or bf16")
      ->check(CLI::IsMember(types))
      ->type_name("TYPE");
  app.add_flag("--no-top", no_top, "Without the three dense layers");
  app.add_option("--memory-limit", memory_limit,
                 "Most memory for destination and windows, e.g. 300MiB")
      ->transform(command::byte_size());
  command::add_threads(app, threads);
  const command::precision_options precision(app);
  command::memory_dump dump(app);
  std::string device = "cpu";
  CLI::Option* const device_option =
      app.add_option("--device", device, "Where to: cpu (default), or cuda, the current GPU")
          ->check(CLI::IsMember({"cpu", "cuda"}))
          ->type_name("DEVICE");
  std::string convert_name = "auto";
  const std::map<std::string, vggload::cuda::upload_conversion> conversions{
      {"device", vggload::cuda::upload_conversion::on_device},
      {"staging", vggload::cuda::upload_conversion::while_staging},
      {"auto", vggload::cuda::upload_conversion::by_measurement}};
  app.add_option("--convert", convert_name,
                 "Where FP32 is converted on the way to a GPU: device, staging (on the host), or "
                 "auto (default), which measures")
      ->check(CLI::IsMember(conversions))
      ->type_name("WHERE")
      ->needs(device_option);
  app.add_flag("--json", json, "The report as JSON");
  return command::run(app, argc, argv, path, [&] {
    const vggload::dtype type = types.at(type_name);
    command::interruption interrupted;
    command::progress_bar bar("loading");
    const auto stream = command::stream_options(threads, interrupted, bar);

    dump.begin();
    vggload::reset_peak_resident();
    const auto before = vggload::read_process_memory();
    const auto start = std::chrono::steady_clock::now();
    const loaded_model loaded = [&] {
      try {
        if (device == "cuda") command::open_device(path);
        const vggload::checkpoint file = command::open_any(path);
        const vggload::vgg16::load_options options{
            .dtype = precision.types(file, type),
            .overflow = precision.overflow(),
            .measure_health = precision.health() || dump.is_wanted(),
            .include_top = !no_top,
            .threads = threads,
            .memory_limit = memory_limit,
            .stop = stream.stop,
            .ledger = dump.ledger(),
            .progress = dump.sampling(stream.progress)};
        if (device == "cpu") return load_on_host(file, options);
        return load_on_device(file, {options, conversions.at(convert_name)});
      } catch (...) {
        dump.write_failure(json);
        throw;
      }
    }();
    const auto& report = loaded.report;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const auto after = vggload::read_process_memory();
    measurement measured{elapsed.count(), std::nullopt};
    if (before && after) measured.peak_growth = after->peak_resident - before->resident;
    bar.clear();
    dump.write(loaded.file, report.measured);
    precision.warn(loaded.file, report.overflowed);
    if (json) {
      print_json(loaded, type, precision, measured);
    } else {
      print_report(loaded, type, measured);
      if (precision.health()) command::print_health(loaded.file, report.measured);
    }
  });
} catch (...) {
  return command::report_error("load_vgg16");
}
