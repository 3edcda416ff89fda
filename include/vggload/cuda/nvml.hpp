// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What the NVIDIA driver says of the GPUs and of who holds their memory, by its library NVML. The
// library is loaded at run time; no header of CUDA is needed, and no CUDA context is made, which
// would itself take hundreds of MiB of what is asked about.
//
// The types and numbers are those of NVIDIA's NVML API reference (docs.nvidia.com/deploy/nvml-api).

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <vggload/cuda/shared_library.hpp>

namespace vggload::cuda {

/// The name of NVML, which comes with the driver and not with the CUDA toolkit.
inline constexpr const char* nvml_library = "libnvidia-ml.so.1";

/// A process that holds memory of a GPU.
struct nvml_process {
  std::uint64_t pid = 0;               // as the driver counts: in a container it may be the host's
  std::optional<std::string> name;     // of its program; nothing: no such process is visible here
  std::optional<std::uint64_t> bytes;  // nothing: the driver withholds them
  bool compute = false;                // has a CUDA context
  bool graphics = false;               // draws
  bool mps = false;                    // is a client of CUDA's multi-process service
};

/// What the driver says of one GPU. Texts are as it gave them, not fit for a terminal.
struct nvml_gpu {
  std::string name;        // "NVIDIA H100 80GB HBM3"
  std::string pci_bus_id;  // "00000000:17:00.0"

  std::optional<std::uint64_t> total;  // bytes, all four
  std::optional<std::uint64_t> used;
  std::optional<std::uint64_t> free;
  std::optional<std::uint64_t> reserved;  // for the driver itself; nothing: they are among `used`

  std::vector<nvml_process> processes;
  /// Bytes that are neither free nor reserved nor of a process whose bytes are known.
  std::optional<std::uint64_t> unaccounted;

  std::vector<std::string> withheld;  // what could not be found out, and why
};

/// What the driver says. Of what is not known there is a line in `withheld`.
struct nvml_answer {
  std::string driver_release;       // "580.65.06"; empty: there is no driver, or it does not say
  std::optional<int> cuda_version;  // that the driver supports: 13000 is 13.0
  std::vector<nvml_gpu> gpus;
  std::vector<std::string> withheld;  // of the driver as a whole
};

namespace detail {

/// The name of a process's program, 15 bytes of it; nothing where no such process is visible.
[[nodiscard]] inline std::optional<std::string> process_name(std::uint64_t pid) {
  std::array<char, 32> path{"/proc/"};
  constexpr std::size_t digits = 6;
  char* const end = std::to_chars(path.data() + digits, path.data() + digits + 20, pid).ptr;
  std::memcpy(end, "/comm", sizeof "/comm");
  const int descriptor = ::open(path.data(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return std::nullopt;
  std::array<char, 64> text;
  const ::ssize_t size = ::read(descriptor, text.data(), text.size());
  ::close(descriptor);
  if (size <= 0) return std::nullopt;
  const std::string_view line(text.data(), static_cast<std::size_t>(size));
  return std::string(line.substr(0, line.find('\n')));
}

/// NVML, started. All calls return; how long they take is the driver's: a hung one hangs its
/// caller, and no thread could end it. Bounded are the number of calls and the bytes that are
/// allocated for what they give, whatever the driver counts.
class nvml {
 public:
  /// More GPUs than one machine has.
  static constexpr unsigned most_gpus = 1024;
  /// More processes than one GPU serves; a list of them has 256 KiB.
  static constexpr unsigned most_processes = 1U << 14U;
  /// How often a list is asked for whose length changes in between.
  static constexpr int most_attempts = 5;

  explicit nvml(const char* library) : library_(library) {
    if (!library_) {
      reason_ = library_.reason();
      return;
    }
    const int code = call<int()>("nvmlInit_v2");
    started_ = code == success;
    if (!started_) reason_ = refusal("nvmlInit_v2", code);
  }
  nvml(const nvml&) = delete;
  nvml& operator=(const nvml&) = delete;
  ~nvml() {
    if (started_) (void)call<int()>("nvmlShutdown");
  }

  [[nodiscard]] bool started() const noexcept { return started_; }
  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }

  /// Of the driver as a whole.
  void ask_driver(nvml_answer& answer) const {
    std::array<char, 80> release{};
    const int release_code = call<int(char*, unsigned)>(
        "nvmlSystemGetDriverVersion", release.data(), static_cast<unsigned>(release.size()));
    if (release_code == success) {
      answer.driver_release = text(release);
    } else {
      answer.withheld.push_back(refusal("nvmlSystemGetDriverVersion", release_code));
    }
    int version = 0;
    const int version_code = call<int(int*)>("nvmlSystemGetCudaDriverVersion_v2", &version);
    if (version_code == success) {
      answer.cuda_version = version;
    } else {
      answer.withheld.push_back(refusal("nvmlSystemGetCudaDriverVersion_v2", version_code));
    }
  }

  void ask_all_gpus(nvml_answer& answer) const {
    unsigned count = 0;
    const int count_code = call<int(unsigned*)>("nvmlDeviceGetCount_v2", &count);
    if (count_code != success) {
      answer.withheld.push_back(refusal("nvmlDeviceGetCount_v2", count_code));
      return;
    }
    if (count > most_gpus) {
      answer.withheld.push_back("nvmlDeviceGetCount_v2: counts " + std::to_string(count) +
                                " GPUs, which is absurd");
      return;
    }
    for (unsigned i = 0; i < count; ++i) {
      device handle = nullptr;
      const int code = call<int(unsigned, device*)>("nvmlDeviceGetHandleByIndex_v2", i, &handle);
      if (code == success) {
        answer.gpus.push_back(ask_gpu(handle));
      } else {
        answer.withheld.push_back("GPU " + std::to_string(i) + ": " +
                                  refusal("nvmlDeviceGetHandleByIndex_v2", code));
      }
    }
  }

  /// NVML counts the GPUs otherwise than CUDA does; the bus id is the same for both.
  void ask_gpu_at(const std::string& pci_bus_id, nvml_answer& answer) const {
    device handle = nullptr;
    const int code = call<int(const char*, device*)>("nvmlDeviceGetHandleByPciBusId_v2",
                                                     pci_bus_id.c_str(), &handle);
    if (code == success) {
      answer.gpus.push_back(ask_gpu(handle));
    } else {
      answer.withheld.push_back("GPU " + pci_bus_id + ": " +
                                refusal("nvmlDeviceGetHandleByPciBusId_v2", code));
    }
  }

 private:
  using device = void*;

  struct pci_info {  // nvmlPciInfo_t
    std::array<char, 16> legacy_bus_id;
    unsigned domain;
    unsigned bus;
    unsigned device;
    unsigned device_id;
    unsigned subsystem_id;
    std::array<char, 32> bus_id;
  };
  static_assert(sizeof(pci_info) == 68);

  struct memory_info {  // nvmlMemory_t
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
  };

  struct memory_info_v2 {  // nvmlMemory_v2_t
    unsigned version;
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
  };
  static_assert(sizeof(memory_info_v2) == 40);

  /// nvmlProcessInfo_v1_t, of the functions without a suffix. What the same functions with _v2 and
  /// _v3 write has had other sizes in other drivers.
  struct process_info {
    unsigned pid;
    unsigned long long bytes;
  };
  static_assert(sizeof(process_info) == 16 && offsetof(process_info, bytes) == 8);

  static constexpr int success = 0;
  static constexpr int insufficient_size = 7;
  static constexpr int no_such_function = -1;  // ours: NVML's codes are not negative
  static constexpr unsigned long long not_available = ~0ULL;

  template <class Signature, class... Arguments>
  int call(const char* name, Arguments... arguments) const noexcept {
    auto* const function = library_.function<Signature>(name);
    return function != nullptr ? function(arguments...) : no_such_function;
  }

  [[nodiscard]] static std::string refusal(const char* function, int code) {
    std::string line(function);
    if (code == no_such_function) return line += ": the driver's library has no such function";
    constexpr std::array<std::pair<int, std::string_view>, 13> meanings{{
        {1, "not initialised"},
        {2, "invalid argument"},
        {3, "not supported"},
        {4, "no permission"},
        {6, "not found"},
        {insufficient_size, "insufficient size"},
        {9, "the driver is not loaded"},
        {10, "timeout"},
        {12, "library not found"},
        {13, "function not found"},
        {15, "the GPU is lost"},
        {17, "the system refuses access to the GPU"},
        {18, "the library is of another version than the driver in the kernel"},
    }};
    (line += ": NVML error ") += std::to_string(code);
    const auto* const meaning =
        std::ranges::find(meanings, code, &std::pair<int, std::string_view>::first);
    if (meaning != meanings.end()) ((line += " (") += meaning->second) += ')';
    return line;
  }

  /// What stands in a buffer, which need not be terminated.
  template <std::size_t Size>
  [[nodiscard]] static std::string text(const std::array<char, Size>& buffer) {
    return {buffer.data(), ::strnlen(buffer.data(), buffer.size())};
  }

  [[nodiscard]] nvml_gpu ask_gpu(device handle) const {
    nvml_gpu gpu;
    std::array<char, 96> name{};
    const int name_code = call<int(device, char*, unsigned)>(
        "nvmlDeviceGetName", handle, name.data(), static_cast<unsigned>(name.size()));
    if (name_code == success) {
      gpu.name = text(name);
    } else {
      gpu.withheld.push_back(refusal("nvmlDeviceGetName", name_code));
    }
    pci_info pci{};
    const int pci_code = call<int(device, pci_info*)>("nvmlDeviceGetPciInfo_v3", handle, &pci);
    if (pci_code == success) {
      gpu.pci_bus_id = text(pci.bus_id);
    } else {
      gpu.withheld.push_back(refusal("nvmlDeviceGetPciInfo_v3", pci_code));
    }
    ask_memory(handle, gpu);
    add_processes("nvmlDeviceGetComputeRunningProcesses", handle, &nvml_process::compute, gpu);
    add_processes("nvmlDeviceGetGraphicsRunningProcesses", handle, &nvml_process::graphics, gpu);
    add_processes("nvmlDeviceGetMPSComputeRunningProcesses", handle, &nvml_process::mps, gpu);
    account(gpu);
    return gpu;
  }

  void ask_memory(device handle, nvml_gpu& gpu) const {
    // nvidia-smi shows what this function calls used. The older one adds what is reserved.
    memory_info_v2 memory{};
    memory.version = sizeof memory | 2U << 24U;
    int code = call<int(device, memory_info_v2*)>("nvmlDeviceGetMemoryInfo_v2", handle, &memory);
    const bool tells_reserved = code == success;
    if (!tells_reserved) {
      memory_info older{};
      code = call<int(device, memory_info*)>("nvmlDeviceGetMemoryInfo", handle, &older);
      memory = {.version = 0,
                .total = older.total,
                .reserved = 0,
                .free = older.free,
                .used = older.used};
    }
    if (code != success) {
      gpu.withheld.push_back(refusal("nvmlDeviceGetMemoryInfo", code));
      return;
    }
    if (memory.total == not_available || memory.free > memory.total || memory.used > memory.total ||
        memory.reserved > memory.total) {
      gpu.withheld.push_back("nvmlDeviceGetMemoryInfo: gives " + std::to_string(memory.total) +
                             " bytes in all, " + std::to_string(memory.used) + " used, " +
                             std::to_string(memory.free) + " free and " +
                             std::to_string(memory.reserved) + " reserved, which is absurd");
      return;
    }
    gpu.total = memory.total;
    gpu.used = memory.used;
    gpu.free = memory.free;
    if (tells_reserved) gpu.reserved = memory.reserved;
  }

  /// Adds the processes of one of the driver's lists, which have some of them in common.
  void add_processes(const char* list, device handle, bool nvml_process::*kind,
                     nvml_gpu& gpu) const {
    std::vector<process_info> entries(64);
    for (int attempt = 0; attempt < most_attempts; ++attempt) {
      auto count = static_cast<unsigned>(entries.size());
      const int code =
          call<int(device, unsigned*, process_info*)>(list, handle, &count, entries.data());
      if (code != success && code != insufficient_size) {
        gpu.withheld.push_back(refusal(list, code));
        return;
      }
      if (count > most_processes || (code == success && count > entries.size())) {
        gpu.withheld.push_back(std::string(list) + ": counts " + std::to_string(count) +
                               " processes, which is absurd");
        return;
      }
      if (code == success) {
        entries.resize(count);
        for (const process_info& entry : entries) add_process(entry, kind, gpu);
        return;
      }
      // By the next call there may be more.
      entries.resize(2 * std::max<std::size_t>(count, entries.size()) + 5);
    }
    gpu.withheld.push_back(std::string(list) + ": has no room in " +
                           std::to_string(entries.size()) + " entries, after " +
                           std::to_string(most_attempts) + " attempts");
  }

  static void add_process(const process_info& entry, bool nvml_process::*kind, nvml_gpu& gpu) {
    auto process = std::ranges::find_if(gpu.processes, [&](const nvml_process& one) {
      return one.pid == entry.pid && !(one.*kind);
    });
    if (process == gpu.processes.end()) {
      gpu.processes.push_back({entry.pid, process_name(entry.pid), std::nullopt});
      process = gpu.processes.end() - 1;
    }
    (*process).*kind = true;
    // Of a process in two lists each gives all its bytes.
    if (entry.bytes != not_available) {
      process->bytes = std::max<std::uint64_t>(process->bytes.value_or(0), entry.bytes);
    }
  }

  /// Says what of the memory in use no process accounts for.
  static void account(nvml_gpu& gpu) {
    if (!gpu.total || !gpu.free) return;
    // Some drivers count what is reserved among what is used; this is the same for all.
    std::uint64_t rest = *gpu.total - *gpu.free;
    rest -= std::min(rest, gpu.reserved.value_or(0));
    for (const nvml_process& process : gpu.processes) {
      rest -= std::min(rest, process.bytes.value_or(0));
    }
    gpu.unaccounted = rest;
    if (rest == 0) return;
    std::string line = std::to_string(rest) + " bytes in use are of no process that is listed";
    if (!gpu.reserved) line += "; the driver's own are among them";
    if (gpu.processes.empty()) {
      line += "; in a container the driver may keep back the processes outside";
    }
    gpu.withheld.push_back(std::move(line));
  }

  shared_library library_;
  bool started_ = false;
  std::string reason_;
};

}  // namespace detail

/// Asks the driver for all GPUs. Throws nothing but std::bad_alloc: what cannot be found out is in
/// `withheld`, which is where it says that there is no driver, too.
[[nodiscard]] inline nvml_answer query_gpus(const char* library = nvml_library) {
  nvml_answer answer;
  const detail::nvml nvml(library);
  if (nvml.started()) {
    nvml.ask_driver(answer);
    nvml.ask_all_gpus(answer);
  } else {
    answer.withheld.push_back(nvml.reason());
  }
  return answer;
}

/// The same of the one GPU at `pci_bus_id`, as cudaDeviceGetPCIBusId gives it, and nothing of the
/// driver's versions.
[[nodiscard]] inline nvml_answer query_gpu(const std::string& pci_bus_id,
                                           const char* library = nvml_library) {
  nvml_answer answer;
  const detail::nvml nvml(library);
  if (nvml.started()) {
    nvml.ask_gpu_at(pci_bus_id, answer);
  } else {
    answer.withheld.push_back(nvml.reason());
  }
  return answer;
}

}  // namespace vggload::cuda
