// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Who holds the GPUs' memory, and whether CUDA's driver, its runtime and cuDNN fit together. Makes
// no CUDA context, and takes no memory of a GPU itself.

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "command.hpp"

#include <vggload/core/error.hpp>
#include <vggload/cuda/nvml.hpp>
#include <vggload/cuda/versions.hpp>

namespace {

using nlohmann::ordered_json;
using vggload::cuda::cuda_version_text;
using vggload::cuda::cudnn_version_text;
using vggload::cuda::nvml_answer;
using vggload::cuda::nvml_gpu;
using vggload::cuda::nvml_process;

/// As nvidia-smi has it: "C+G".
std::string type_of(const nvml_process& process) {
  std::string type;
  if (process.mps) type += "M+";
  if (process.compute) type += "C+";
  if (process.graphics) type += "G+";
  type.pop_back();  // it is in one list at least
  return type;
}

template <class Value>
ordered_json or_null(const std::optional<Value>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json or_null(const std::string& text) {
  return text.empty() ? ordered_json(nullptr) : ordered_json(text);
}

template <class Number, class Text>
ordered_json text_or_null(const std::optional<Number>& version, Text&& text) {
  return version ? ordered_json(text(*version)) : ordered_json(nullptr);
}

ordered_json json_of(const nvml_gpu& gpu) {
  auto processes = ordered_json::array();
  for (const nvml_process& process : gpu.processes) {
    processes.push_back({{"pid", process.pid},
                         {"name", or_null(process.name)},
                         {"type", type_of(process)},
                         {"bytes", or_null(process.bytes)}});
  }
  return {{"name", or_null(gpu.name)},         {"pci_bus_id", or_null(gpu.pci_bus_id)},
          {"total_bytes", or_null(gpu.total)}, {"used_bytes", or_null(gpu.used)},
          {"free_bytes", or_null(gpu.free)},   {"reserved_bytes", or_null(gpu.reserved)},
          {"processes", std::move(processes)}, {"unaccounted_bytes", or_null(gpu.unaccounted)},
          {"withheld", gpu.withheld}};
}

void print_json(const nvml_answer& answer, const std::string& reason,
                const vggload::cuda::cuda_versions& versions,
                const vggload::cuda::version_judgement& judgement) {
  ordered_json report{{"driver", or_null(answer.driver_release)}};
  if (answer.driver_release.empty()) report["reason"] = reason;
  report["gpus"] = ordered_json::array();
  for (const nvml_gpu& gpu : answer.gpus) report["gpus"].push_back(json_of(gpu));
  report["withheld"] = answer.withheld;
  report["versions"] = {{"driver_cuda", text_or_null(versions.driver, cuda_version_text)},
                        {"runtime", text_or_null(versions.runtime, cuda_version_text)},
                        {"cudnn", text_or_null(versions.cudnn, cudnn_version_text)},
                        {"cudnn_cuda", text_or_null(versions.cudnn_cuda, cuda_version_text)},
                        {"not_found", versions.not_found}};
  report["verdict"] = name_of(judgement.verdict);
  report["reasons"] = judgement.reasons;
  // What a driver says need not be UTF-8.
  const auto text = report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
}

/// A line "  LABEL   BYTES  MiB": bytes as elsewhere, MiB as nvidia-smi has them.
void print_bytes(const std::string& label, const std::optional<std::uint64_t>& bytes) {
  if (!bytes) {
    std::printf("  %-46s %18s\n", label.c_str(), "not known");
    return;
  }
  std::printf("  %-46s %18s %8s MiB\n", label.c_str(), command::grouped(*bytes).c_str(),
              command::grouped(*bytes >> 20U).c_str());
}

void print_lines(std::string_view prefix, const std::vector<std::string>& lines) {
  for (const std::string& line : lines) {
    std::printf("%s%s\n", std::string(prefix).c_str(), vggload::printable(line).c_str());
  }
}

void print_gpu(const nvml_gpu& gpu) {
  std::printf("GPU %s %s\n", vggload::printable(gpu.pci_bus_id).c_str(),
              vggload::printable(gpu.name).c_str());
  print_bytes("in all", gpu.total);
  print_bytes("used", gpu.used);
  print_bytes("free", gpu.free);
  print_bytes("reserved for the driver", gpu.reserved);
  for (const nvml_process& process : gpu.processes) {
    const std::string name =
        process.name ? vggload::printable(*process.name) : "(not visible here)";
    print_bytes("process " + std::to_string(process.pid) + ' ' + type_of(process) + ' ' + name,
                process.bytes);
  }
  print_lines("  not known: ", gpu.withheld);
}

void print_text(const nvml_answer& answer, const std::string& reason,
                const vggload::cuda::cuda_versions& versions,
                const vggload::cuda::version_judgement& judgement) {
  if (answer.driver_release.empty() && answer.gpus.empty()) {
    std::printf("no driver: %s\n", vggload::printable(reason).c_str());
  } else {
    std::printf("driver %s\n", answer.driver_release.empty()
                                   ? "of unknown release"
                                   : vggload::printable(answer.driver_release).c_str());
    print_lines("not known: ", answer.withheld);
  }
  for (const nvml_gpu& gpu : answer.gpus) print_gpu(gpu);
  const auto row = [](const char* label, const std::string& version) {
    std::printf("%-20s %s\n", label, version.c_str());
  };
  if (versions.driver) row("CUDA of the driver", cuda_version_text(*versions.driver));
  if (versions.runtime) row("CUDA runtime", cuda_version_text(*versions.runtime));
  if (versions.cudnn) row("cuDNN", cudnn_version_text(*versions.cudnn));
  if (versions.cudnn_cuda) row("CUDA of cuDNN", cuda_version_text(*versions.cudnn_cuda));
  print_lines("not found: ", versions.not_found);
  std::printf("verdict: %s\n", std::string(name_of(judgement.verdict)).c_str());
  print_lines("  ", judgement.reasons);
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app(
      "Shows who holds the memory of the GPUs, and whether the versions of the driver, CUDA and "
      "cuDNN fit together.");
  bool json = false;
  app.add_flag("--json", json, "As JSON");
  return command::run(app, argc, argv, "gpu_report", [&] {
    const nvml_answer answer = vggload::cuda::query_gpus();
    // Where the driver does not even say its name, the first line is why.
    const std::string reason = answer.withheld.empty() ? "" : answer.withheld.front();
    const auto versions = vggload::cuda::find_cuda_versions(answer.driver_release);
    const auto judgement = vggload::cuda::judge(versions);
    if (json) {
      print_json(answer, reason, versions, judgement);
    } else {
      print_text(answer, reason, versions, judgement);
    }
  });
} catch (...) {
  return command::report_error("gpu_report");
}
