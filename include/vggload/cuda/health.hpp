// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstdint>

#include <vggload/convert/health.hpp>

namespace vggload::cuda {

/// What a kernel counts of `tensor_health`, under the same names. `pos` is what is left.
template <class Count>
struct health_counts {
  Count neg_inf;
  Count pos_inf;
  Count nan;
  Count neg;
  Count zero;
  Count overflowed;
  Count flushed_to_zero;
  Count became_subnormal;
  // The bits of non-negative FP32 numbers, which are ordered as the numbers are.
  std::uint32_t max_abs;
  std::uint32_t max_relative_error;
};

/// Where the kernels add up the health of what they convert, in memory of the device. All bytes
/// zero is the empty one, so that cudaMemsetAsync makes it. Any number of conversions may add to
/// one, from several streams at the same time. It is trivial: copied to the host, it is read by
/// `to_health`.
struct health_accumulator {
  unsigned long long numel;
  health_counts<unsigned long long> counts;
};

/// The health that the accumulator, which is in host memory by now, stands for.
[[nodiscard]] constexpr tensor_health to_health(const health_accumulator& accumulator) noexcept {
  const health_counts<unsigned long long>& counts = accumulator.counts;
  tensor_health health;
  health.numel = accumulator.numel;
  health.neg_inf = counts.neg_inf;
  health.pos_inf = counts.pos_inf;
  health.nan = counts.nan;
  health.neg = counts.neg;
  health.zero = counts.zero;
  health.pos =
      accumulator.numel - (counts.neg_inf + counts.pos_inf + counts.nan + counts.neg + counts.zero);
  health.overflowed = counts.overflowed;
  health.flushed_to_zero = counts.flushed_to_zero;
  health.became_subnormal = counts.became_subnormal;
  health.max_abs = std::bit_cast<float>(counts.max_abs);
  health.max_relative_error = std::bit_cast<float>(counts.max_relative_error);
  return health;
}

}  // namespace vggload::cuda
