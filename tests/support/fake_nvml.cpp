// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A libnvidia-ml.so.1 for tests, of a machine with two GPUs. The environment's FAKE_NVML is what is
// wrong with it. Its types are written down from NVIDIA's reference, not taken from the library
// that is tested.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <unistd.h>

namespace {

constexpr int success = 0;
constexpr int not_found = 6;
constexpr int insufficient_size = 7;
constexpr int unknown_error = 999;
constexpr std::uint64_t not_available = UINT64_MAX;

struct process_info {
  std::uint32_t pid;
  std::uint32_t padding;
  std::uint64_t bytes;
};

struct memory_info {
  std::uint64_t total;
  std::uint64_t free;
  std::uint64_t used;
};

struct memory_info_v2 {
  std::uint32_t version;
  std::uint32_t padding;
  std::uint64_t total;
  std::uint64_t reserved;
  std::uint64_t free;
  std::uint64_t used;
};

int first_gpu = 0;
int second_gpu = 1;
int starts = 0;  // not yet followed by a shutdown

bool wrong(const char* what) {
  const char* const is = std::getenv("FAKE_NVML");
  return is != nullptr && std::strcmp(is, what) == 0;
}

int give_text(const char* text, char* buffer, unsigned size) {
  if (wrong("unterminated")) {
    std::memset(buffer, 'x', size);
    return success;
  }
  if (std::strlen(text) >= size) return insufficient_size;
  std::strcpy(buffer, text);
  return success;
}

/// As NVML gives a list: the count goes in as the room and comes out as what there is.
int give_list(const process_info* list, unsigned size, unsigned* count, process_info* infos) {
  const unsigned room = *count;
  if (wrong("no permission")) return 4;
  if (wrong("never enough room")) {
    *count = room + 1;
    return insufficient_size;
  }
  if (wrong("never enough room and no count")) {
    *count = 0;
    return insufficient_size;
  }
  if (wrong("absurd count") || wrong("absurd count as success")) {
    *count = 0xFFFFFFFFU;
    return wrong("absurd count") ? insufficient_size : success;
  }
  if (wrong("more than there is room for")) {
    *count = room + 1;
    return success;
  }
  if (wrong("nobody is shown")) size = 0;
  *count = size;
  if (size > room) return insufficient_size;
  std::copy_n(list, size, infos);
  for (unsigned i = 0; i < size && wrong("no bytes"); ++i) infos[i].bytes = not_available;
  return success;
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  if (wrong("driver not loaded")) return 9;
  if (wrong("other version")) return 18;
  ++starts;
  return success;
}

int nvmlShutdown() {
  --starts;
  return success;
}

/// For the tests only.
int fake_nvml_starts() { return starts; }

int nvmlSystemGetDriverVersion(char* version, unsigned size) {
  return give_text("580.65.06", version, size);
}

int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 13000;
  return success;
}

int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = wrong("absurd number of GPUs") ? 0xFFFFFFFFU : 2;
  return success;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index > 1) return 2;
  if (index == 1 && wrong("second GPU is lost")) return 15;
  *device = index == 0 ? &first_gpu : &second_gpu;
  return success;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, void** device) {
  if (std::strcmp(bus_id, "0000:17:00.0") == 0 || std::strcmp(bus_id, "00000000:17:00.0") == 0) {
    *device = &first_gpu;
    return success;
  }
  if (std::strcmp(bus_id, "0000:65:00.0") == 0) {
    *device = &second_gpu;
    return success;
  }
  return not_found;
}

int nvmlDeviceGetName(void* /*device*/, char* name, unsigned size) {
  return give_text("NVIDIA H100 80GB HBM3", name, size);
}

/// 68 bytes: an old id of 16, five numbers of 4, an id of 32.
int nvmlDeviceGetPciInfo_v3(void* device, char* pci) {
  std::memset(pci, 0, 68);
  give_text(device == &first_gpu ? "0000:17:00.0" : "0000:65:00.0", pci, 16);
  return give_text(device == &first_gpu ? "00000000:17:00.0" : "00000000:65:00.0", pci + 36, 32);
}

int nvmlDeviceGetMemoryInfo_v2(void* device, memory_info_v2* memory) {
  if (memory->version != 0x02000028) return 25;
  if (wrong("no memory") || wrong("old driver")) return unknown_error;
  memory->total = 85'000'000'000;
  memory->reserved = 500'000'000;
  memory->used = device == &first_gpu ? 64'500'000'000 : 0;
  memory->free = memory->total - memory->reserved - memory->used;
  if (wrong("absurd memory")) memory->free = memory->total + 1;
  if (wrong("memory is not available")) memory->total = not_available;
  return success;
}

int nvmlDeviceGetMemoryInfo(void* device, memory_info* memory) {
  if (wrong("no memory")) return unknown_error;
  memory->total = 85'000'000'000;
  memory->used = device == &first_gpu ? 65'000'000'000 : 500'000'000;
  memory->free = memory->total - memory->used;
  return success;
}

int nvmlDeviceGetComputeRunningProcesses(void* device, unsigned* count, process_info* infos) {
  if (wrong("many processes")) {
    static process_info many[300];
    for (unsigned i = 0; i < 300; ++i) many[i] = {2'000'000'000 + i, 0, 1'000'000};
    return give_list(many, 300, count, infos);
  }
  if (device == &second_gpu) return give_list(nullptr, 0, count, infos);
  // Linux gives no process such numbers, so that nobody has a name but the caller.
  const auto own = static_cast<std::uint32_t>(getpid());
  const process_info list[]{{wrong("caller is not listed") ? 2'000'000'003 : own, 0, 1'600'000'000},
                            {2'000'000'001, 0, 60'000'000'000}};
  return give_list(list, 2, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses(void* device, unsigned* count, process_info* infos) {
  if (device == &second_gpu) return give_list(nullptr, 0, count, infos);
  const process_info list[]{{2'000'000'001, 0, 60'000'000'000}, {2'000'000'002, 0, 400'000'000}};
  return give_list(list, 2, count, infos);
}

int nvmlDeviceGetMPSComputeRunningProcesses(void* /*device*/, unsigned* count,
                                            process_info* infos) {
  return give_list(nullptr, 0, count, infos);
}

}  // extern "C"
