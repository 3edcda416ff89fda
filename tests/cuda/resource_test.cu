// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What resource_test shows over a fake driver, over a real one. Without a GPU it says SKIPPED and
// exits with 77.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include <cuda_runtime.h>

#include <vggload/cuda/resources.hpp>

#include "../support/resource_conformance.hpp"

using namespace vggload;

namespace {

std::size_t free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

/// Memory of the device, or that it reaches: looked at through copies.
struct device_fixture {
  void fill(void* address, std::size_t bytes, std::uint8_t byte) const {
    if (bytes == 0) return;
    cuda::check(cudaMemset(address, byte, bytes), "cudaMemset");
  }
  bool holds(const void* address, std::size_t bytes, std::uint8_t byte) const {
    if (bytes == 0) return true;
    std::vector<std::uint8_t> values(bytes);
    cuda::check(cudaMemcpy(values.data(), address, bytes, cudaMemcpyDefault), "cudaMemcpy");
    return std::all_of(values.begin(), values.end(),
                       [byte](std::uint8_t one) { return one == byte; });
  }
  void check_all_given_back() const {
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    CHECK(cudaGetLastError() == cudaSuccess);
  }
  /// More than a device has, less than what CUDA's own arithmetic could wrap at.
  std::vector<std::size_t> refused{std::size_t{1} << 44U};
};

struct malloc_fixture : device_fixture {
  cuda::device_resource resource;
  std::size_t alignments = 256;
};

struct pinned_fixture : device_fixture {
  cuda::pinned_resource resource;
  std::size_t alignments = 4096;
};

struct stream {
  stream() { cuda::check(cudaStreamCreate(&handle), "cudaStreamCreate"); }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() { static_cast<void>(cudaStreamDestroy(handle)); }
  cudaStream_t handle = nullptr;
};

struct async_fixture : device_fixture {
  stream order;
  cuda::async_device_resource resource{order.handle};
  std::size_t alignments = 256;

  // Work of the suite is on the default stream, which waits for this one's and the other way about.
};

struct virtual_fixture : device_fixture {
  cuda::virtual_device_resource resource;
  std::size_t alignments = granularity();
  std::size_t reserved = std::size_t{1} << 40U;
  bool is_bounded = true;

  static std::size_t granularity() {
    int device = 0;
    std::size_t bytes = 0;
    cuda::check(cudaGetDevice(&device), "cudaGetDevice");
    cuda::check(cuda::runtime_api().get_granularity(bytes, device),
                "cuMemGetAllocationGranularity");
    return bytes;
  }
};

/// Whether the resource says that there is no GPU, in the way of an error.
template <class Resource>
bool refuses(Resource resource) {
  try {
    static_cast<void>(resource.allocate(1, 1));
  } catch (const cuda::cuda_error&) {
    return true;
  }
  return false;
}

__global__ void increment(int* value) { ++*value; }

}  // namespace

TEST_CASE_TEMPLATE_INVOKE(test::every_resource, malloc_fixture, pinned_fixture, async_fixture,
                          virtual_fixture);
TEST_CASE_TEMPLATE_INVOKE(test::every_reserving_resource, virtual_fixture);

TEST_CASE("a kernel and the host meet in pinned memory, at one address") {
  arena<cuda::pinned_resource> memory(64);
  auto* const value = reinterpret_cast<int*>(memory.allocate("value", sizeof(int)).data());
  *value = 41;
  increment<<<1, 1>>>(value);
  cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  CHECK(*value == 42);
}

TEST_CASE("the device has it all back") {
  constexpr std::size_t size = std::size_t{256} << 20U;
  const std::size_t before = free_bytes();
  {
    arena<cuda::device_resource> memory(size);
    CHECK(free_bytes() + size <= before);
  }
  CHECK(free_bytes() == before);
  {
    arena<cuda::virtual_device_resource> memory(std::size_t{1} << 40U);
    CHECK(free_bytes() == before);
    (void)memory.allocate("first", size / 2);
    (void)memory.allocate("second", size / 2);
    CHECK(free_bytes() + size <= before);
    // Any thread may give it back.
    std::thread([moved = std::move(memory)] {}).join();
  }
  CHECK(free_bytes() == before);
}

TEST_CASE("what is allocated in the order of a stream is given back in it, while work is pending") {
  stream order;
  cuda::async_device_resource resource(order.handle);
  for (int round = 0; round < 100; ++round) {
    auto* const value = static_cast<int*>(resource.allocate(sizeof(int), alignof(int)));
    cuda::check(cudaMemsetAsync(value, 0, sizeof(int), order.handle), "cudaMemsetAsync");
    increment<<<1, 1, 0, order.handle>>>(value);
    resource.deallocate(value, sizeof(int), alignof(int));
  }
  CHECK_NOTHROW(resource.synchronize());
}

int main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    if (!refuses(cuda::device_resource()) || !refuses(cuda::pinned_resource()) ||
        !refuses(cuda::async_device_resource(nullptr)) ||
        !refuses(cuda::virtual_device_resource())) {
      std::printf("without a GPU, a resource gives memory or another error\n");
      return 1;
    }
    std::printf("SKIPPED: no GPU (%s)\n", cudaGetErrorString(found));
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
