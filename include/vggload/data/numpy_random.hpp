// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <vggload/data/exact_arithmetic.hpp>

namespace vggload {

/// NumPy's global generator (`np.random.seed`, `RandomState`), number for number. Its stream is frozen (NEP 19). Not
/// for several threads at once.
class numpy_random {
 public:
  /// As `np.random.seed(seed)`. NumPy seeds with the same recurrence as the standard does.
  explicit numpy_random(std::uint32_t seed) : engine_(seed) {}

  /// `np.random.random()`: in [0, 1), a multiple of 2^-53, from two numbers of the generator.
  [[nodiscard]] double unit() {
    const auto high = static_cast<std::uint64_t>(engine_()) >> 5U;
    const auto low = static_cast<std::uint64_t>(engine_()) >> 6U;
    return static_cast<double>((high << 26U) | low) * 0x1p-53;
  }

  /// `np.random.uniform(low, high)`.
  [[nodiscard]] double uniform(double low, double high) {
    return detail::exact::sum(low,
                              detail::exact::product(detail::exact::difference(high, low), unit()));
  }

  /// `np.random.permutation(count)`: a Fisher-Yates shuffle from the end, whose bounded numbers are
  /// drawn under the smallest mask of ones until one is small enough.
  [[nodiscard]] std::vector<std::uint32_t> permutation(std::uint32_t count) {
    std::vector<std::uint32_t> order(count);
    std::iota(order.begin(), order.end(), std::uint32_t{0});
    for (std::uint32_t last = count; last-- > 1;) std::swap(order[last], order[up_to(last)]);
    return order;
  }

 private:
  [[nodiscard]] std::uint32_t up_to(std::uint32_t largest) {
    std::uint32_t mask = largest;
    for (const unsigned shift : {1U, 2U, 4U, 8U, 16U}) mask |= mask >> shift;
    for (;;) {
      const std::uint32_t drawn = static_cast<std::uint32_t>(engine_()) & mask;
      if (drawn <= largest) return drawn;
    }
  }

  std::mt19937 engine_;
};

}  // namespace vggload
