// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Thrust and CUB allocate from an arena of device memory and from a resource. Compiled with each
// CCCL that there is. Without a GPU it says SKIPPED and exits with 77.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdio>
#include <numeric>
#include <vector>

#include <thrust/device_ptr.h>
#include <thrust/execution_policy.h>
#include <thrust/sort.h>
#include <cub/device/device_reduce.cuh>

#include <vggload/cuda/resources.hpp>
#include <vggload/interop/cuda_mr.hpp>

// Not the whole namespace: what nvcc writes for kernels says "cuda" for CCCL's.
using vggload::arena;
using vggload::cuda_memory_allocator;
using vggload::cuda_memory_resource;

namespace {

using device_arena = arena<vggload::cuda::device_resource>;

#if CCCL_VERSION >= 3001000
static_assert(
    ::cuda::mr::resource_with<cuda_memory_resource<device_arena>, ::cuda::mr::device_accessible>);
static_assert(::cuda::mr::resource_with<cuda_memory_resource<vggload::cuda::async_device_resource>,
                                        ::cuda::mr::device_accessible>);
static_assert(::cuda::mr::synchronous_resource_with<
              cuda_memory_resource<vggload::cuda::pinned_resource>, ::cuda::mr::device_accessible,
              ::cuda::mr::host_accessible>);
#else
static_assert(::cuda::mr::async_resource_with<cuda_memory_resource<device_arena>,
                                              ::cuda::mr::device_accessible>);
static_assert(
    ::cuda::mr::async_resource_with<cuda_memory_resource<vggload::cuda::async_device_resource>,
                                    ::cuda::mr::device_accessible>);
static_assert(
    ::cuda::mr::resource_with<cuda_memory_resource<vggload::cuda::pinned_resource>,
                              ::cuda::mr::device_accessible, ::cuda::mr::host_accessible>);
#endif

constexpr std::size_t count = 1'000'000;

/// The numbers from `count` - 1 down to 0, on the device.
int* falling(device_arena& memory) {
  std::vector<int> values(count);
  std::iota(values.rbegin(), values.rend(), 0);
  auto* const place =
      reinterpret_cast<int*>(memory.allocate("numbers", count * sizeof(int)).data());
  vggload::cuda::check(
      cudaMemcpy(place, values.data(), count * sizeof(int), cudaMemcpyHostToDevice), "cudaMemcpy");
  return place;
}

template <class T>
T from_device(const T* place) {
  T value{};
  vggload::cuda::check(cudaMemcpy(&value, place, sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return value;
}

}  // namespace

TEST_CASE("Thrust sorts with temporary memory from an arena") {
  device_arena memory(std::size_t{64} << 20U);
  int* const numbers = falling(memory);
  cuda_memory_allocator<char, device_arena> temporary{cuda_memory_resource(memory, "thrust::sort")};
  const auto begin = thrust::device_pointer_cast(numbers);
  thrust::sort(thrust::cuda::par(temporary).on(nullptr), begin, begin + count);
  CHECK(from_device(numbers) == 0);
  CHECK(from_device(numbers + count - 1) == count - 1);
  REQUIRE(memory.allocations().size() > 1);
  CHECK(memory.allocations()[1].name == "thrust::sort");
}

TEST_CASE("CUB sums with temporary memory from an arena") {
  device_arena memory(std::size_t{64} << 20U);
  const int* const numbers = falling(memory);
  auto* const sum = reinterpret_cast<long long*>(memory.allocate("sum", sizeof(long long)).data());
  cuda_memory_resource resource(memory, "cub::DeviceReduce");
  constexpr auto expected = static_cast<long long>(count * (count - 1) / 2);

  std::size_t bytes = 0;
  vggload::cuda::check(cub::DeviceReduce::Sum(nullptr, bytes, numbers, sum, count),
                       "cub::DeviceReduce::Sum");
  void* const temporary = resource.allocate(bytes);
  vggload::cuda::check(cub::DeviceReduce::Sum(temporary, bytes, numbers, sum, count),
                       "cub::DeviceReduce::Sum");
  CHECK(from_device(sum) == expected);
  CHECK(memory.allocations().back().name == "cub::DeviceReduce");

#if CCCL_VERSION >= 3001000
  // By itself, where CUB knows how.
  vggload::cuda::check(cudaMemset(sum, 0, sizeof(long long)), "cudaMemset");
  const std::size_t pieces = memory.allocations().size();
  const auto environment =
      ::cuda::std::execution::prop{::cuda::mr::__get_memory_resource_t{}, resource};
  vggload::cuda::check(cub::DeviceReduce::Sum(numbers, sum, count, environment),
                       "cub::DeviceReduce::Sum");
  CHECK(from_device(sum) == expected);
  CHECK(memory.allocations().size() > pieces);
#endif
}

int main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU (%s)\n", cudaGetErrorString(found));
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
