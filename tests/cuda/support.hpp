// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <vggload/convert/health.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/cuda/transpose.cuh>

/// Values that stand for all kinds, none of them the last: around each border of the rounding, in
/// every binade, and NaNs and infinities among them.
inline std::vector<float> critical_values() {
  std::vector<float> values;
  for (std::uint32_t exponent = 0; exponent < 512; ++exponent) {
    const std::uint32_t base = exponent << 23U;
    for (unsigned bit = 0; bit < 23; ++bit) {
      for (const std::uint32_t around : {0U, 1U, ~0U}) {
        values.push_back(std::bit_cast<float>((base | 1U << bit) + around));
        values.push_back(std::bit_cast<float>((base | 3U << bit) + around));
        values.push_back(std::bit_cast<float>((base | (0x7FFFFFU >> bit << bit)) + around));
      }
    }
  }
  return values;
}

/// Values as weights have them: few of them have a small result, and none is rare.
inline std::vector<float> common_values(std::size_t count, float deviation) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) {
    do value = normal(random);
    while (value == 0);
  }
  return values;
}

/// What the host makes of the values, and their health.
template <class To>
struct expected_conversion {
  std::vector<To> results;
  vggload::tensor_health health;

  explicit expected_conversion(const std::vector<float>& values) : results(values.size()) {
    vggload::detail::measure_scalar<float, To>(reinterpret_cast<const std::byte*>(values.data()),
                                               reinterpret_cast<std::byte*>(results.data()),
                                               values.size(), health);
  }
};

/// The values in the order that a transposition brings them to.
inline std::vector<float> transposed(const vggload::cuda::hwio_shape& shape,
                                     const std::vector<float>& values) {
  std::vector<float> out;
  out.reserve(values.size());
  const std::size_t positions = shape.height * shape.width;
  for (std::size_t o = 0; o < shape.out; ++o) {
    for (std::size_t i = 0; i < shape.in; ++i) {
      for (std::size_t p = 0; p < positions; ++p) {
        out.push_back(values[(p * shape.in + i) * shape.out + o]);
      }
    }
  }
  return out;
}

inline const std::vector<vggload::cuda::hwio_shape>& transposed_shapes() {
  static const std::vector<vggload::cuda::hwio_shape> shapes{
      {1, 1, 1, 1},  {3, 3, 3, 64},  {3, 3, 64, 32}, {2, 3, 5, 7},   {1, 1, 70, 33},
      {7, 1, 9, 65}, {1, 9, 31, 31}, {1, 1, 128, 1}, {1, 1, 1, 128}, {5, 5, 1, 3},
      {8, 8, 2, 40}, {11, 13, 3, 2}, {4, 2, 16, 96}};
  return shapes;
}
