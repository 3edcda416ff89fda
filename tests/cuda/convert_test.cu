// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What only a GPU can show: that its instructions give the library's bits, for every FP32 value,
// and that launches do what the walks of walk_test.cu do. Built twice, the second time with
// --use_fast_math. Without a GPU it says SKIPPED and exits with 77.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "device_memory.cuh"
#include "support.hpp"

using namespace vggload;

namespace {

constexpr cudaStream_t default_stream = nullptr;

/// As `expected_conversion`, by all processors.
template <class To>
tensor_health expect(const std::vector<float>& values, std::vector<To>& results) {
  const std::size_t parts = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t size = (values.size() + parts - 1) / parts;
  std::vector<tensor_health> healths(parts);
  std::vector<std::thread> threads;
  results.resize(values.size());
  for (std::size_t part = 0; part < parts; ++part) {
    threads.emplace_back([&, part] {
      const std::size_t begin = std::min(values.size(), part * size);
      detail::measure_scalar<float, To>(reinterpret_cast<const std::byte*>(values.data() + begin),
                                        reinterpret_cast<std::byte*>(results.data() + begin),
                                        std::min(size, values.size() - begin), healths[part]);
    });
  }
  tensor_health all;
  for (std::size_t part = 0; part < parts; ++part) {
    threads[part].join();
    all += healths[part];
  }
  return all;
}

tensor_health health_in(const device_memory<cuda::health_accumulator>& accumulator) {
  return cuda::to_health(accumulator.get()[0]);
}

}  // namespace

TEST_CASE_TEMPLATE("all 2^32 values", To, float16, bfloat16) {
  constexpr std::size_t chunk = std::size_t{1} << 24U;
  device_memory<float> source(chunk);
  device_memory<To> destination(chunk);
  device_memory<cuda::health_accumulator> accumulator(1);
  std::vector<float> values(chunk);
  std::vector<To> expected;
  for (std::uint64_t first = 0; first < std::uint64_t{1} << 32U; first += chunk) {
    for (std::size_t i = 0; i < chunk; ++i) {
      values[i] = std::bit_cast<float>(static_cast<std::uint32_t>(first + i));
    }
    const tensor_health health = expect(values, expected);
    source.set(values.data(), chunk);
    CAPTURE(first);
    destination.fill(0xA5);
    cuda::convert(source.data(), destination.data(), chunk, default_stream);
    REQUIRE(destination.get() == expected);
    destination.fill(0xA5);
    accumulator.fill(0);
    cuda::convert_and_measure(source.data(), destination.data(), chunk, accumulator.data(),
                              default_stream);
    REQUIRE(destination.get() == expected);
    REQUIRE(health_in(accumulator) == health);
    // The same element by element: no start has both at multiples of 16 bytes.
    destination.fill(0xA5);
    accumulator.fill(0);
    cuda::convert_and_measure(source.data() + 1, destination.data(), chunk - 1, accumulator.data(),
                              default_stream);
    const std::vector<To> shifted = destination.get();
    REQUIRE(std::equal(expected.begin() + 1, expected.end(), shifted.begin()));
    REQUIRE(health_in(accumulator).nan + (values[0] != values[0] ? 1 : 0) == health.nan);
  }
}

TEST_CASE_TEMPLATE("values as weights have them", To, float16, bfloat16) {
  for (const float deviation : {1e-6F, 1e-4F, 0.02F, 1.0F, 3e4F}) {
    const std::vector<float> values = common_values(3'000'001, deviation);
    std::vector<To> expected;
    const tensor_health health = expect(values, expected);
    device_memory<float> source(values.size());
    device_memory<To> destination(values.size());
    device_memory<cuda::health_accumulator> accumulator(1);
    source.set(values.data(), values.size());
    accumulator.fill(0);
    cuda::convert_and_measure(source.data(), destination.data(), values.size(), accumulator.data(),
                              default_stream);
    CHECK(destination.get() == expected);
    CHECK(health_in(accumulator) == health);
    // A second conversion adds to the first.
    cuda::convert_and_measure(source.data(), destination.data(), values.size(), accumulator.data(),
                              default_stream);
    tensor_health twice = health;
    twice += health;
    CHECK(health_in(accumulator) == twice);
  }
}

TEST_CASE_TEMPLATE("any count and alignment, and nothing beside it", To, float16, bfloat16) {
  const std::vector<float> critical = critical_values();
  device_memory<float> source(critical.size() + 8);
  device_memory<To> destination(critical.size() + 16);
  device_memory<cuda::health_accumulator> accumulator(1);
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
  for (const std::size_t count : {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{9},
                                  std::size_t{2047}, std::size_t{2049}, critical.size()}) {
    const std::vector<float> values(critical.end() - static_cast<std::ptrdiff_t>(count),
                                    critical.end());
    const expected_conversion<To> expected(values);
    for (std::size_t from = 0; from < 8; ++from) {
      cuda::check(
          cudaMemcpy(source.data() + from, values.data(), 4 * count, cudaMemcpyHostToDevice),
          "cudaMemcpy");
      for (std::size_t to = 0; to < 8; ++to) {
        destination.fill(0xA5);
        accumulator.fill(0);
        cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        cuda::convert_and_measure(source.data() + from, destination.data() + to, count,
                                  accumulator.data(), stream);
        cuda::check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        const std::vector<To> all = destination.get();
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(to);
        const auto end = begin + static_cast<std::ptrdiff_t>(count);
        const auto untouched = [](To value) { return value.bits == 0xA5A5; };
        REQUIRE(std::equal(begin, end, expected.results.begin()));
        REQUIRE(std::all_of(all.begin(), begin, untouched));
        REQUIRE(std::all_of(end, all.end(), untouched));
        REQUIRE(health_in(accumulator) == expected.health);
      }
    }
  }
  cuda::check(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

TEST_CASE_TEMPLATE("transpositions", To, float16, bfloat16) {
  const std::vector<float> critical = critical_values();
  std::vector<cuda::hwio_shape> shapes = transposed_shapes();
  shapes.push_back({3, 3, 512, 512});
  shapes.push_back({1, 1, 4097, 1001});
  for (const cuda::hwio_shape& shape : shapes) {
    const std::size_t count = cuda::detail::count_elements(shape);
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = critical[i * 7919 % critical.size()];
    const expected_conversion<To> expected(transposed(shape, values));
    device_memory<float> source(count);
    device_memory<To> destination(count);
    device_memory<cuda::health_accumulator> accumulator(1);
    source.set(values.data(), count);
    destination.fill(0xA5);
    cuda::transpose(shape, source.data(), destination.data(), default_stream);
    CHECK(destination.get() == expected.results);
    destination.fill(0xA5);
    accumulator.fill(0);
    cuda::transpose_and_measure(shape, source.data(), destination.data(), accumulator.data(),
                                default_stream);
    CHECK(destination.get() == expected.results);
    CHECK(health_in(accumulator) == expected.health);
  }
}

TEST_CASE("a refused call leaves no error behind") {
  void* memory = nullptr;
  CHECK_THROWS_AS(cuda::check(cudaMalloc(&memory, ~std::size_t{0} / 2), "cudaMalloc"),
                  out_of_memory);
  CHECK(cudaGetLastError() == cudaSuccess);
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
