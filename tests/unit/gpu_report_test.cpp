// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the driver says of GPUs, through a fake of its library that goes wrong in every way; and
// which versions of CUDA fit together.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <dlfcn.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <vggload/cuda/memory_report.hpp>
#include <vggload/cuda/nvml.hpp>
#include <vggload/cuda/versions.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>

#include "../support/temporary_folder.hpp"

namespace {

/// While it is not negative, the allocations that still pass.
std::atomic<std::int64_t> may_pass = -1;

void* allocate(std::size_t bytes) {
  if (may_pass >= 0 && may_pass-- == 0) {
    may_pass = 0;  // and none after it
    throw std::bad_alloc();
  }
  void* const memory = std::malloc(std::max<std::size_t>(bytes, 1));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

namespace cuda = vggload::cuda;
using vggload::memory_report;

const std::string fake_folder = FAKE_DRIVER;
const std::string fake_nvml = fake_folder + "/libnvidia-ml.so.1";

/// A variable of the environment for as long as this lives.
class variable {
 public:
  variable(const char* name, const std::string& value) : name_(name) {
    ::setenv(name, value.c_str(), 1);  // NOLINT(concurrency-mt-unsafe): there is one thread
  }
  variable(const variable&) = delete;
  variable& operator=(const variable&) = delete;
  ~variable() { ::unsetenv(name_); }  // NOLINT(concurrency-mt-unsafe): there is one thread

 private:
  const char* name_;
};

bool has_line(const std::vector<std::string>& lines, std::string_view part) {
  return std::ranges::any_of(
      lines, [part](const std::string& line) { return line.find(part) != std::string::npos; });
}

/// A report that an error carries already.
memory_report report_of_error() {
  memory_report report;
  report.tensor = "classifier.0.weight";
  report.requested = 205'520'896;
  report.withheld.emplace_back("something else");
  return report;
}

constexpr cuda::gpu_memory first_gpu{.pci_bus_id = "0000:17:00.0",
                                     .total = 84'000'000'000,
                                     .free = 19'000'000'000,
                                     .allocated = 1'000'000'000};

/// What no failure of the driver may take away.
void check_kept(const memory_report& report) {
  CHECK(report.tensor == "classifier.0.weight");
  CHECK(report.requested == 205'520'896);
  CHECK(report.total == 84'000'000'000);
  CHECK(report.free == 19'000'000'000);
  REQUIRE_FALSE(report.withheld.empty());
  CHECK(report.withheld.front() == "something else");
}

memory_report report_with(const std::string& library = fake_nvml) {
  memory_report report = report_of_error();
  cuda::add_gpu(report, first_gpu, library.c_str());
  check_kept(report);
  CHECK(report.place.starts_with("GPU 0000:17:00.0"));
  INFO(to_text(report));
  CHECK(to_text(report).find("asked for by 'classifier.0.weight'") != std::string::npos);
  return report;
}

/// How often the fake was started and not yet shut down.
int starts() {
  void* const library = ::dlopen(fake_nvml.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (library == nullptr) return -1;
  const int count = reinterpret_cast<int (*)()>(::dlsym(library, "fake_nvml_starts"))();
  ::dlclose(library);
  return count;
}

}  // namespace

TEST_CASE("two GPUs, with their memory and who holds it") {
  const cuda::nvml_answer answer = cuda::query_gpus(fake_nvml.c_str());
  CHECK(answer.driver_release == "580.65.06");
  CHECK(answer.cuda_version == 13000);
  CHECK(answer.withheld.empty());
  REQUIRE(answer.gpus.size() == 2);

  const cuda::nvml_gpu& gpu = answer.gpus[0];
  CHECK(gpu.name == "NVIDIA H100 80GB HBM3");
  CHECK(gpu.pci_bus_id == "00000000:17:00.0");
  CHECK(gpu.total == 85'000'000'000);
  CHECK(gpu.used == 64'500'000'000);
  CHECK(gpu.free == 20'000'000'000);
  CHECK(gpu.reserved == 500'000'000);
  REQUIRE(gpu.processes.size() == 3);
  CHECK(gpu.processes[0].pid == static_cast<std::uint64_t>(::getpid()));
  CHECK(gpu.processes[0].name == "gpu_report_test");
  CHECK(gpu.processes[0].bytes == 1'600'000'000);
  CHECK(gpu.processes[0].compute);
  CHECK_FALSE(gpu.processes[0].graphics);
  // In both lists, with the same bytes in both.
  CHECK(gpu.processes[1].pid == 2'000'000'001);
  CHECK_FALSE(gpu.processes[1].name);
  CHECK(gpu.processes[1].bytes == 60'000'000'000);
  CHECK(gpu.processes[1].compute);
  CHECK(gpu.processes[1].graphics);
  CHECK_FALSE(gpu.processes[1].mps);
  CHECK(gpu.processes[2].pid == 2'000'000'002);
  CHECK(gpu.processes[2].graphics);
  CHECK_FALSE(gpu.processes[2].compute);
  // 85 - 20 - 0.5 - 1.6 - 60 - 0.4
  CHECK(gpu.unaccounted == 2'500'000'000);
  REQUIRE(gpu.withheld.size() == 1);
  CHECK(gpu.withheld[0] == "2500000000 bytes in use are of no process that is listed");

  CHECK(answer.gpus[1].pci_bus_id == "00000000:65:00.0");
  CHECK(answer.gpus[1].used == 0);
  CHECK(answer.gpus[1].processes.empty());
  CHECK(answer.gpus[1].unaccounted == 0);
  CHECK(answer.gpus[1].withheld.empty());
}

TEST_CASE("a GPU is found by its bus id") {
  for (const std::string bus_id : {"0000:17:00.0", "00000000:17:00.0"}) {
    const auto answer = cuda::query_gpu(bus_id, fake_nvml.c_str());
    REQUIRE(answer.gpus.size() == 1);
    CHECK(answer.gpus[0].used == 64'500'000'000);
  }
  CHECK(cuda::query_gpu("0000:65:00.0", fake_nvml.c_str()).gpus.at(0).used == 0);
  const auto unknown = cuda::query_gpu("0000:99:00.0", fake_nvml.c_str());
  CHECK(unknown.gpus.empty());
  CHECK(unknown.withheld ==
        std::vector<std::string>{
            "GPU 0000:99:00.0: nvmlDeviceGetHandleByPciBusId_v2: NVML error 6 (not found)"});
}

TEST_CASE("the report names the other processes and the CUDA context's own share") {
  const memory_report report = report_with();
  CHECK(report.place == "GPU 0000:17:00.0 (NVIDIA H100 80GB HBM3)");
  CHECK(report.context_bytes == 600'000'000);  // 1.6e9, of which the program has allocated 1e9
  REQUIRE(report.processes.size() == 2);
  CHECK(report.processes[0].pid == 2'000'000'001);
  CHECK(report.processes[0].bytes == 60'000'000'000);
  CHECK(report.processes[1].pid == 2'000'000'002);
  CHECK(report.processes[1].bytes == 400'000'000);
  CHECK(report.withheld.size() == 2);

  memory_report without_numbers;
  cuda::add_gpu(without_numbers, {.pci_bus_id = "0000:17:00.0", .total = {}, .free = {}},
                fake_nvml.c_str());
  CHECK(without_numbers.total == 85'000'000'000);
  CHECK(without_numbers.free == 20'000'000'000);
  CHECK(without_numbers.context_bytes == 1'600'000'000);
}

TEST_CASE("what the driver refuses is said, and takes nothing of the report away") {
  // Kept, so that the fake's count of starts is.
  void* const kept = ::dlopen(fake_nvml.c_str(), RTLD_NOW | RTLD_LOCAL);
  REQUIRE(kept != nullptr);
  struct failure {
    const char* what;
    const char* said;  // in the report
    bool names_gpu;
    bool lists_others;
  };
  constexpr auto context = "the CUDA context's own memory";
  for (const failure& f : std::vector<failure>{
           {"driver not loaded", "nvmlInit_v2: NVML error 9 (the driver is not loaded)", false,
            false},
           {"other version", "NVML error 18 (the library is of another version", false, false},
           {"driver not loaded", context, false, false},
           {"no permission", "nvmlDeviceGetComputeRunningProcesses: NVML error 4 (no permission)",
            true, false},
           {"no permission", "nvmlDeviceGetMPSComputeRunningProcesses: NVML error 4", true, false},
           {"no permission", context, true, false},
           {"never enough room", "after 5 attempts", true, false},
           {"never enough room and no count", "after 5 attempts", true, false},
           {"absurd count", "counts 4294967295 processes, which is absurd", true, false},
           {"absurd count as success", "counts 4294967295 processes, which is absurd", true, false},
           {"more than there is room for", "counts 65 processes, which is absurd", true, false},
           {"nobody is shown",
            "64500000000 bytes in use are of no process that is listed; in a "
            "container the driver may keep back",
            true, false},
           {"nobody is shown", context, true, false},
           {"no bytes", "the driver withholds the bytes of this process", true, true},
           {"no memory", "nvmlDeviceGetMemoryInfo: NVML error 999", true, true},
           {"absurd memory", "85000000001 free", true, true},
           {"memory is not available", "18446744073709551615 bytes in all", true, true},
           {"caller is not listed", "the driver lists no process", true, true},
           // 85 - 20 - 62 without the reserved 0.5, which an old driver does not tell apart.
           {"old driver",
            "3000000000 bytes in use are of no process that is listed; the driver's "
            "own are among them",
            true, true},
       }) {
    INFO(f.what);
    const variable wrong("FAKE_NVML", f.what);
    const memory_report report = report_with();
    INFO(to_text(report));
    CHECK(has_line(report.withheld, f.said));
    CHECK((report.place.find("H100") != std::string::npos) == f.names_gpu);
    CHECK((report.processes.size() >= 2) == f.lists_others);
    const auto answer = cuda::query_gpus(fake_nvml.c_str());
    CHECK(answer.gpus.size() == (f.names_gpu ? 2 : 0));
    CHECK(starts() == 0);
  }
  ::dlclose(kept);
}

TEST_CASE("a list longer than the room for it is asked for again") {
  const variable wrong("FAKE_NVML", "many processes");
  const auto answer = cuda::query_gpus(fake_nvml.c_str());
  REQUIRE(answer.gpus.size() == 2);
  REQUIRE(answer.gpus[1].processes.size() == 300);
  CHECK(answer.gpus[1].processes[299].pid == 2'000'000'299);
  CHECK(answer.gpus[1].processes[299].bytes == 1'000'000);
}

TEST_CASE("what the driver gives without an end, and GPUs beyond counting") {
  {
    const variable wrong("FAKE_NVML", "unterminated");
    const auto answer = cuda::query_gpus(fake_nvml.c_str());
    CHECK(answer.driver_release == std::string(80, 'x'));
    REQUIRE(answer.gpus.size() == 2);
    CHECK(answer.gpus[0].name == std::string(96, 'x'));
    CHECK(answer.gpus[0].pci_bus_id == std::string(32, 'x'));
    CHECK(report_with().place == "GPU 0000:17:00.0 (" + std::string(96, 'x') + ")");
  }
  {
    const variable wrong("FAKE_NVML", "absurd number of GPUs");
    const auto answer = cuda::query_gpus(fake_nvml.c_str());
    CHECK(answer.gpus.empty());
    CHECK(has_line(answer.withheld, "counts 4294967295 GPUs, which is absurd"));
  }
  {
    const variable wrong("FAKE_NVML", "second GPU is lost");
    const auto answer = cuda::query_gpus(fake_nvml.c_str());
    CHECK(answer.gpus.size() == 1);
    CHECK(has_line(answer.withheld,
                   "GPU 1: nvmlDeviceGetHandleByIndex_v2: NVML error 15 (the GPU is lost)"));
  }
}

TEST_CASE("without the driver's library the report says so") {
  const test::temporary_folder folder;
  const std::string text = folder.write("text.so", "no library");
  for (const std::string& library : {std::string("libnone.so.7"), text}) {
    INFO(library);
    const memory_report report = report_with(library);
    CHECK(report.place == "GPU 0000:17:00.0");
    CHECK(report.processes.empty());
    CHECK_FALSE(report.context_bytes);
    REQUIRE(report.withheld.size() == 3);
    CHECK(report.withheld[1].starts_with(library + ": "));
    const auto answer = cuda::query_gpus(library.c_str());
    CHECK(answer.driver_release.empty());
    CHECK(answer.gpus.empty());
    CHECK(answer.withheld == std::vector<std::string>{report.withheld[1]});
  }
}

TEST_CASE("a function that the library lacks takes away its own part only") {
  struct missing {
    const char* function;
    bool starts;
    bool lists_gpus;
    bool reports_gpu;
  };
  const test::temporary_folder folder;
  int copies = 0;
  for (const missing& m : std::vector<missing>{
           {"nvmlInit_v2", false, false, false},
           {"nvmlShutdown", true, true, true},
           {"nvmlSystemGetDriverVersion", true, true, true},
           {"nvmlSystemGetCudaDriverVersion_v2", true, true, true},
           {"nvmlDeviceGetCount_v2", true, false, true},
           {"nvmlDeviceGetHandleByIndex_v2", true, false, true},
           {"nvmlDeviceGetHandleByPciBusId_v2", true, true, false},
           {"nvmlDeviceGetName", true, true, true},
           {"nvmlDeviceGetPciInfo_v3", true, true, true},
           {"nvmlDeviceGetMemoryInfo_v2", true, true, true},
           {"nvmlDeviceGetMemoryInfo", true, true, true},
           {"nvmlDeviceGetComputeRunningProcesses", true, true, true},
           {"nvmlDeviceGetGraphicsRunningProcesses", true, true, true},
           {"nvmlDeviceGetMPSComputeRunningProcesses", true, true, true},
       }) {
    INFO(m.function);
    // A copy of the fake in whose table of names this one is another.
    std::string bytes = test::read_file(fake_nvml);
    std::string name(1, '\0');
    (name += m.function) += '\0';
    std::size_t found = 0;
    for (std::size_t at = 0; (at = bytes.find(name, at)) != std::string::npos; ++found) {
      bytes[at + 1] = 'x';
    }
    REQUIRE(found > 0);
    const std::string copy = folder.write(std::to_string(copies++) + ".so", bytes);

    const auto answer = cuda::query_gpus(copy.c_str());
    CHECK(answer.gpus.size() == (m.lists_gpus ? 2 : 0));
    const memory_report report = report_with(copy);
    CHECK(report.processes.empty() == !m.reports_gpu);
    std::vector<std::string> said = answer.withheld;
    said.insert(said.end(), report.withheld.begin(), report.withheld.end());
    for (const auto& gpu : answer.gpus) {
      said.insert(said.end(), gpu.withheld.begin(), gpu.withheld.end());
    }
    const std::string line =
        std::string(m.function) + ": the driver's library has no such function";
    // Nobody misses an end, or one way to ask for what the other gives.
    const std::string_view function = m.function;
    const bool needed =
        function != "nvmlShutdown" && !function.starts_with("nvmlDeviceGetMemoryInfo");
    CHECK(has_line(said, line) == needed);
    if (!m.lists_gpus) continue;
    const cuda::nvml_gpu& gpu = answer.gpus[0];
    CHECK((answer.driver_release == "580.65.06") == (function != "nvmlSystemGetDriverVersion"));
    CHECK((gpu.name == "NVIDIA H100 80GB HBM3") == (function != "nvmlDeviceGetName"));
    CHECK((gpu.pci_bus_id == "00000000:17:00.0") == (function != "nvmlDeviceGetPciInfo_v3"));
    CHECK((gpu.used == 64'500'000'000) == (function != "nvmlDeviceGetMemoryInfo_v2"));
    CHECK(gpu.free == 20'000'000'000);
    const bool all_listed = !function.ends_with("RunningProcesses") ||
                            function == "nvmlDeviceGetMPSComputeRunningProcesses";
    CHECK((gpu.processes.size() == 3) == all_listed);
  }
}

TEST_CASE("the context's share is not told where the numbers contradict each other") {
  memory_report report;
  cuda::add_gpu(report,
                {.pci_bus_id = "0000:17:00.0", .total = 1, .free = 1, .allocated = 1'600'000'001},
                fake_nvml.c_str());
  CHECK_FALSE(report.context_bytes);
  CHECK(has_line(report.withheld, "the driver counts 1600000000 bytes for process " +
                                      std::to_string(::getpid()) +
                                      ", which has allocated 1600000001"));
}

TEST_CASE("host memory that is out, too, leaves the report as it was") {
  std::int64_t failures = 0;
  for (bool complete = false; !complete; ++failures) {
    REQUIRE(failures < 1000);
    memory_report report = report_of_error();
    may_pass = failures;
    cuda::add_gpu(report, first_gpu, fake_nvml.c_str());
    may_pass = -1;
    check_kept(report);
    complete = report.processes.size() == 2;
  }
  CHECK(failures > 10);
}

TEST_CASE("a ledger's live device memory is what its pieces hold") {
  vggload::memory_ledger ledger;
  const auto add = [&](vggload::memory_kind kind, std::uint64_t address, std::uint64_t bytes) {
    const std::size_t block = ledger.block_allocated("block", kind, address, 1'000);
    ledger.allocated(block, "piece", 0, bytes);
    return block;
  };
  add(vggload::memory_kind::device, 0x1000, 700);
  const std::size_t freed = add(vggload::memory_kind::device, 0x9000, 1'000);
  add(vggload::memory_kind::pinned, 0x5000, 50);
  add(vggload::memory_kind::device, 0x6000, 7);
  ledger.block_freed(freed);
  CHECK(cuda::live_device_bytes(ledger.snapshot()) == 707);
}
