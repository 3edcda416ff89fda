// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Lists the tensors of a checkpoint; with --digest reads them once, window by window.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "open_any.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/load/checkpoint.hpp>

namespace {

void print_json(const vggload::checkpoint& file, const std::vector<std::string>& digests) {
  auto tensors = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < file.tensors().size(); ++i) {
    const auto& info = file.tensors()[i];
    nlohmann::ordered_json entry{{"name", info.name},
                                 {"dtype", dtype_name(info)},
                                 {"shape", nlohmann::json::array()},
                                 {"bytes", info.bytes}};
    for (const std::uint64_t dim : info.shape.dims()) entry["shape"].push_back(dim);
    if (!digests[i].empty()) entry["crc32"] = digests[i];
    tensors.push_back(std::move(entry));
  }
  nlohmann::ordered_json report{{"file", file.path()}, {"format", file.format()}};
  // Which dict of a training checkpoint was taken for its state dict.
  for (const auto& [key, value] : file.metadata()) {
    if (file.format().starts_with("torch") && key == "state_dict") report["state_dict"] = value;
  }
  report["tensors"] = std::move(tensors);
  // A file's name need not be UTF-8.
  const auto text = report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
}

void print_table(const vggload::checkpoint& file, const std::vector<std::string>& digests,
                 bool with_digests) {
  std::size_t name_width = 4;
  std::size_t shape_width = 5;
  std::uint64_t total = 0;
  std::vector<std::string> names;
  std::vector<std::string> shapes;
  for (const auto& info : file.tensors()) {
    names.push_back(vggload::printable(info.name));
    shapes.push_back(to_string(info.shape));
    name_width = std::max(name_width, names.back().size());
    shape_width = std::max(shape_width, shapes.back().size());
    total += info.bytes;
  }
  const auto row = [&](const std::string& name, const std::string& type, const std::string& shape,
                       const std::string& bytes, const std::string& crc) {
    std::printf("%-*s  %-7s  %-*s  %15s  %s\n", static_cast<int>(name_width), name.c_str(),
                type.c_str(), static_cast<int>(shape_width), shape.c_str(), bytes.c_str(),
                crc.c_str());
  };
  std::printf("%s: %s, %zu %s, %s bytes of payload in %s\n",
              vggload::printable(file.path()).c_str(), std::string(file.format()).c_str(),
              names.size(), names.size() == 1 ? "tensor" : "tensors",
              command::grouped(total).c_str(), command::grouped(file.file_bytes()).c_str());
  row("name", "dtype", "shape", "bytes", with_digests ? "crc32" : "");
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto& info = file.tensors()[i];
    row(names[i], std::string(dtype_name(info)), shapes[i], command::grouped(info.bytes),
        digests[i]);
  }
  for (const auto& [key, value] : file.metadata()) {
    std::printf("metadata %s = %s\n", vggload::printable(key).c_str(),
                vggload::printable(value, 200).c_str());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Lists the tensors of a checkpoint in the file's own order.");
  std::string path;
  bool json = false;
  bool with_digests = false;
  app.add_option(
         "FILE", path,
         "A checkpoint: safetensors or its shards' index, PyTorch, Keras, HDF5, NumPy, ONNX, GGUF")
      ->required();
  app.add_flag("--json", json, "As JSON");
  app.add_flag("--digest", with_digests, "With the CRC-32 of each tensor's bytes");
  return command::run(app, argc, argv, path, [&] {
    const vggload::checkpoint file = command::open_any(path);
    // Empty for what cannot be read.
    std::vector<std::string> digests(file.tensors().size());
    if (with_digests) {
      std::vector<std::byte> window(command::digest_window_bytes);
      for (std::size_t i = 0; i < file.tensors().size(); ++i) {
        if (file.tensors()[i].dtype == vggload::dtype::opaque) continue;
        command::crc32 crc;
        crc.update(file, i, window);
        digests[i] = crc.hex();
      }
    }
    if (json) {
      print_json(file, digests);
    } else {
      print_table(file, digests, with_digests);
    }
  });
} catch (...) {
  return command::report_error("inspect");
}
