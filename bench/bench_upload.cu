// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Loads a VGG16 checkpoint to the GPU against what the bus can do: plain copies of 16 MiB from
// pinned memory, in turns with the loads, so that all meet the same machine. The page cache should
// have the file: run it twice, or read the file before. Prints medians. Without a GPU it says so.
//
//   bench_upload FILE [ROUNDS [THREADS]]

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include <vggload/core/dtype.hpp>
#include <vggload/cuda/error.hpp>
#include <vggload/cuda/load_vgg16.cuh>
#include <vggload/cuda/resources.hpp>
#include <vggload/cuda/runtime_device.cuh>
#include <vggload/cuda/stream.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/arena.hpp>

using namespace vggload;

namespace {

constexpr double bar = 0.9;  // of the bus

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What copies of the ring's size alone reach, in bytes per second.
class bus {
 public:
  bus() : from_(bytes, cuda::pinned_resource()), to_(bytes, cuda::device_resource()) {}

  [[nodiscard]] double bytes_per_second() {
    constexpr int copies = 32;  // 512 MiB, about what FP32 weights are
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < copies; ++i) {
      cuda::check(cudaMemcpyAsync(to_.block().data(), from_.block().data(), bytes,
                                  cudaMemcpyHostToDevice, order_.get()),
                  "cudaMemcpyAsync");
    }
    cuda::check(cudaStreamSynchronize(order_.get()), "cudaStreamSynchronize");
    return copies * static_cast<double>(bytes) / seconds_since(start);
  }

 private:
  static constexpr std::size_t bytes = preferred_ring_bytes;
  arena<cuda::pinned_resource> from_;
  arena<cuda::device_resource> to_;
  cuda::cuda_stream order_;
};

struct contestant {
  cuda::upload_conversion conversion;
  std::vector<double> uploads{};      // bytes over the bus, per second
  std::vector<double> seconds{};      // of the upload
  std::vector<double> all_seconds{};  // with everything that the load allocates
  std::vector<double> pin_ms{};
  std::string last_conversion{};
};

void measure(const std::string& path, int rounds, unsigned threads) {
  const cuda::runtime_device device;
  const checkpoint file = open_checkpoint(path);
  std::printf("%s; %s, medians of %d rounds\n", device.name().c_str(), path.c_str(), rounds);
  bus wire;
  std::vector<double> bus_speeds;
  std::array<contestant, 3> contestants{contestant{cuda::upload_conversion::on_device},
                                        contestant{cuda::upload_conversion::while_staging},
                                        contestant{cuda::upload_conversion::by_measurement}};
  constexpr int unmeasured_rounds = 2;
  for (int round = -unmeasured_rounds; round < rounds; ++round) {
    const double speed = wire.bytes_per_second();
    if (round >= 0) bus_speeds.push_back(speed);
    for (contestant& each : contestants) {
      const auto model =
          cuda::load_vgg16(file, {.load = {.threads = threads}, .conversion = each.conversion});
      if (round < 0) continue;
      const auto& report = model.report();
      each.uploads.push_back(static_cast<double>(report.uploaded_bytes) / report.upload_seconds);
      each.seconds.push_back(report.upload_seconds);
      each.all_seconds.push_back(report.seconds);
      each.pin_ms.push_back(report.pin_ms);
      each.last_conversion = name_of(report.conversion);
    }
  }
  const double floor = median(bus_speeds);
  std::printf("the bus, pinned copies alone   %7.2f GB/s\n", floor / 1e9);
  for (const contestant& each : contestants) {
    const double speed = median(each.uploads);
    std::printf(
        "%-8s (%s)  upload %7.2f GB/s, %.3f of the bus, %7.2f ms; load %7.2f ms, of which %.2f to "
        "pin\n",
        std::string(name_of(each.conversion)).c_str(), each.last_conversion.c_str(), speed / 1e9,
        speed / floor, median(each.seconds) * 1e3, median(each.all_seconds) * 1e3,
        median(each.pin_ms));
  }
  std::printf("the bar: %.2f of the bus\n", bar);
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU: nothing is measured");
    return 0;
  }
  if (argc < 2) {
    std::fputs("usage: bench_upload FILE [ROUNDS [THREADS]]\n", stderr);
    return 2;
  }
  try {
    measure(argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 11,
            argc > 3 ? static_cast<unsigned>(std::max(0, std::atoi(argv[3]))) : 0);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_upload: %s\n", e.what());
    return 1;
  }
}
