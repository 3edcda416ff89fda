// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <unistd.h>

#include <vggload/cuda/nvml.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>

namespace vggload::cuda {

/// What a program knows of a GPU's memory without asking the driver's library.
struct gpu_memory {
  std::string_view pci_bus_id;         // as cudaDeviceGetPCIBusId gives it
  std::optional<std::uint64_t> total;  // as cudaMemGetInfo gives it; nothing: NVML's is taken
  std::optional<std::uint64_t> free;   // likewise
  std::uint64_t allocated = 0;         // by this program on this GPU
};

/// The bytes of device memory that are live in a ledger, all GPUs': of pieces, as blocks may be
/// addresses that no memory is behind yet.
[[nodiscard]] inline std::uint64_t live_device_bytes(const ledger_snapshot& ledger) noexcept {
  std::uint64_t bytes = 0;
  for (const ledger_piece& piece : ledger.pieces) {
    if (piece.live && ledger.blocks[piece.block].kind == memory_kind::device) bytes += piece.bytes;
  }
  return bytes;
}

namespace detail {

/// The part of this process's memory that its program has not allocated.
inline void add_context(memory_report& report, const nvml_gpu& gpu, std::uint64_t allocated) {
  const auto pid = static_cast<std::uint64_t>(::getpid());
  const auto own = std::ranges::find(gpu.processes, pid, &nvml_process::pid);
  std::string why;
  if (own == gpu.processes.end()) {
    why = "the driver lists no process " + std::to_string(pid) +
          "; in a container it may count as the host does, and list this process under another id";
  } else if (!own->bytes) {
    why = "the driver withholds the bytes of this process";
  } else if (*own->bytes < allocated) {
    why = "the driver counts " + std::to_string(*own->bytes) + " bytes for process " +
          std::to_string(pid) + ", which has allocated " + std::to_string(allocated);
  } else {
    report.context_bytes = *own->bytes - allocated;
    return;
  }
  report.withheld.push_back("the CUDA context's own memory: " + why);
}

}  // namespace detail

/// Fills in what a report says of the GPU whose memory is out: place, total, free, the CUDA
/// context's own share (with what the driver loses by rounding the program's allocations up), and
/// the other processes. What NVML withholds is said in the report. Changes nothing else of it.
/// Never throws: where host memory is out, too, the rest stays unsaid.
inline void add_gpu(memory_report& report, const gpu_memory& memory,
                    const char* library = nvml_library) noexcept {
  report.total = memory.total;
  report.free = memory.free;
  try {
    const std::string bus_id(memory.pci_bus_id);
    report.place = "GPU " + bus_id;
    nvml_answer answer = query_gpu(bus_id, library);
    for (std::string& line : answer.withheld) report.withheld.push_back(std::move(line));
    if (answer.gpus.empty()) {
      report.withheld.emplace_back(
          "the CUDA context's own memory and the other processes on the "
          "GPU: the driver's library does not tell");
      return;
    }
    nvml_gpu& gpu = answer.gpus.front();
    if (!gpu.name.empty()) ((report.place += " (") += printable(gpu.name, 96)) += ')';
    if (!report.total) report.total = gpu.total;
    if (!report.free) report.free = gpu.free;
    for (std::string& line : gpu.withheld) report.withheld.push_back(std::move(line));
    detail::add_context(report, gpu, memory.allocated);
    for (nvml_process& process : gpu.processes) {
      if (process.pid == static_cast<std::uint64_t>(::getpid())) continue;
      report.processes.push_back(
          {process.pid, std::move(process.name).value_or(std::string()), process.bytes});
    }
  } catch (...) {
    // An error is on its way already, which this report is about.
    return;
  }
}

}  // namespace vggload::cuda
