// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>
#include <vector>

namespace test {

/// FP32 bit patterns that a stride over all of them leaves out: around each rounding border of both
/// 16-bit types, in every binade.
inline std::vector<std::uint32_t> critical_patterns() {
  std::vector<std::uint32_t> patterns;
  for (std::uint32_t exponent = 0; exponent < 512; ++exponent) {
    const std::uint32_t base = exponent << 23U;
    for (unsigned bit = 0; bit < 23; ++bit) {
      for (const std::uint32_t around : {0U, 1U, ~0U}) {
        patterns.push_back((base | 1U << bit) + around);
        patterns.push_back((base | 3U << bit) + around);
        patterns.push_back((base | (0x7FFFFFU >> bit << bit)) + around);
      }
    }
  }
  return patterns;
}

}  // namespace test
