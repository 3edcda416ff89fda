// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The conversion kernels against the device's own copy: FP32 data of the size of VGG16's largest
// tensor, in turns with cudaMemcpyAsync from device to device, so that clocks and heat meet both
// alike. Prints medians, bytes read and written per second, and the ratio. Without a GPU it says
// so.
//
//   bench_cuda [ROUNDS]

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <random>
#include <vector>

#include <cuda_runtime.h>

#include <vggload/cuda/convert.cuh>

using namespace vggload;

namespace {

constexpr std::size_t elements = 102'760'448;  // fc1.weight
constexpr double bar = 0.9;                    // of the copy's bytes per second, health counted

template <class T>
T* allocate(std::size_t count) {
  T* memory = nullptr;
  cuda::check(cudaMalloc(&memory, count * sizeof(T)), "cudaMalloc");
  return memory;
}

struct contestant {
  const char* name;
  double bytes;  // read and written
  std::function<void(cudaStream_t)> run;
  std::vector<float> milliseconds{};

  [[nodiscard]] double gigabytes_per_second() {
    const auto middle = milliseconds.begin() + static_cast<std::ptrdiff_t>(milliseconds.size() / 2);
    std::nth_element(milliseconds.begin(), middle, milliseconds.end());
    return bytes / 1e6 / double{*middle};
  }
};

void measure(int rounds) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s, %d multiprocessors; %zu elements, medians of %d rounds\n", properties.name,
              properties.multiProcessorCount, elements, rounds);

  // Freed by the end of the process.
  float* const source = allocate<float>(elements);
  float* const copy = allocate<float>(elements);
  auto* const half = allocate<float16>(elements);
  auto* const brain = allocate<bfloat16>(elements);
  auto* const health = allocate<cuda::health_accumulator>(1);
  cuda::check(cudaMemset(health, 0, sizeof *health), "cudaMemset");
  {
    // Weights' magnitudes: about one in a hundred becomes subnormal in FP16, none is rare.
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.005F);
    std::vector<float> values(elements);
    for (std::size_t i = 0; i < std::size_t{1} << 20U; ++i) values[i] = normal(random);
    for (std::size_t i = std::size_t{1} << 20U; i < elements; ++i) {
      values[i] = values[(i * 7) % (std::size_t{1} << 20U)];
    }
    cuda::check(cudaMemcpy(source, values.data(), elements * sizeof(float), cudaMemcpyHostToDevice),
                "cudaMemcpy");
  }
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  cuda::check(cudaEventCreate(&start), "cudaEventCreate");
  cuda::check(cudaEventCreate(&stop), "cudaEventCreate");

  constexpr double converted_bytes = 6.0 * elements;
  std::array<contestant, 5> contestants{
      contestant{"copy, device to device", 8.0 * elements,
                 [&](cudaStream_t on) {
                   cuda::check(cudaMemcpyAsync(copy, source, elements * sizeof(float),
                                               cudaMemcpyDeviceToDevice, on),
                               "cudaMemcpyAsync");
                 }},
      contestant{"FP32 to FP16", converted_bytes,
                 [&](cudaStream_t on) { cuda::convert(source, half, elements, on); }},
      contestant{
          "FP32 to FP16, health", converted_bytes,
          [&](cudaStream_t on) { cuda::convert_and_measure(source, half, elements, health, on); }},
      contestant{"FP32 to BF16", converted_bytes,
                 [&](cudaStream_t on) { cuda::convert(source, brain, elements, on); }},
      contestant{"FP32 to BF16, health", converted_bytes, [&](cudaStream_t on) {
                   cuda::convert_and_measure(source, brain, elements, health, on);
                 }}};
  constexpr int unmeasured_rounds = 3;
  for (int round = -unmeasured_rounds; round < rounds; ++round) {
    for (contestant& each : contestants) {
      cuda::check(cudaEventRecord(start, stream), "cudaEventRecord");
      each.run(stream);
      cuda::check(cudaEventRecord(stop, stream), "cudaEventRecord");
      cuda::check(cudaEventSynchronize(stop), "cudaEventSynchronize");
      float milliseconds = 0;
      cuda::check(cudaEventElapsedTime(&milliseconds, start, stop), "cudaEventElapsedTime");
      if (round >= 0) each.milliseconds.push_back(milliseconds);
    }
  }
  const double floor = contestants[0].gigabytes_per_second();
  for (contestant& each : contestants) {
    const double speed = each.gigabytes_per_second();
    std::printf("%-24s %8.1f GB/s  %.3f of the copy\n", each.name, speed, speed / floor);
  }
  std::printf("the bar: %.2f of the copy, health counted\n", bar);
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU: nothing is measured");
    return 0;
  }
  try {
    measure(argc > 1 ? std::max(1, std::atoi(argv[1])) : 31);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_cuda: %s\n", e.what());
    return 1;
  }
}
