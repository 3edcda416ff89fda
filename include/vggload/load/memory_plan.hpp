// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <thread>

#include <vggload/core/checked.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload {

/// The memory that a load takes: its destination and a window for each thread.
struct memory_plan {
  std::uint64_t destination_bytes = 0;
  unsigned threads = 1;
  std::size_t window_bytes = 0;  // of one thread

  [[nodiscard]] std::uint64_t windows_bytes() const noexcept {
    return std::uint64_t{threads} * window_bytes;
  }
  [[nodiscard]] std::uint64_t total_bytes() const noexcept {
    return destination_bytes + windows_bytes();
  }
};

/// What the plan is made for.
struct memory_demand {
  std::string_view path = {};            // for the message
  std::string_view largest_tensor = {};  // likewise
  std::uint64_t largest_tensor_bytes = 0;
  std::uint64_t destination_bytes = 0;
  /// Whether anything is streamed: with nothing to stream there are no windows and one thread.
  bool streams = true;
};

/// 256 KiB: stays in a core's second-level cache with what it is converted to, and is long enough
/// for a read's fixed cost not to show (docs/benchmarks.md).
inline constexpr std::size_t preferred_window_bytes = std::size_t{256} << 10U;
/// All windows together take no more than this, however many threads there are.
inline constexpr std::size_t most_windows_bytes = std::size_t{4} << 20U;
/// Windows may shrink to this; smaller ones would cost more time than they save memory.
inline constexpr std::size_t smallest_window_bytes = std::size_t{4} << 10U;

/// Fits threads and windows into the limit: first the windows shrink, then the threads get fewer.
/// Where not even the destination and one smallest window fit, throws `out_of_memory` with the
/// numbers; nothing has been allocated or read then. `threads` 0: one for each processor.
[[nodiscard]] inline memory_plan plan_memory(const memory_demand& demand, unsigned threads,
                                             std::optional<std::uint64_t> limit) {
  if (threads == 0) threads = std::max(1U, std::thread::hardware_concurrency());
  memory_plan plan;
  plan.destination_bytes = demand.destination_bytes;
  if (demand.streams) {
    plan.threads = threads;
    plan.window_bytes =
        std::clamp(most_windows_bytes / threads / smallest_window_bytes * smallest_window_bytes,
                   smallest_window_bytes, preferred_window_bytes);
  }
  if (!limit) return plan;
  const std::uint64_t smallest = demand.streams ? smallest_window_bytes : 0;
  if (!in_bounds(plan.destination_bytes, smallest, *limit)) {
    throw out_of_memory(detail::fixed_text()
                            << demand.path << ": the memory limit of " << *limit
                            << " bytes cannot be kept: the destination needs "
                            << plan.destination_bytes << " bytes and a window at least " << smallest
                            << "; the largest tensor, '" << demand.largest_tensor.substr(0, 200)
                            << "', takes " << demand.largest_tensor_bytes,
                        demand.largest_tensor, plan.destination_bytes);
  }
  if (demand.streams) {
    const std::uint64_t left = *limit - plan.destination_bytes;
    plan.threads =
        static_cast<unsigned>(std::min<std::uint64_t>(plan.threads, left / smallest_window_bytes));
    const std::uint64_t each = left / plan.threads / smallest_window_bytes * smallest_window_bytes;
    plan.window_bytes = static_cast<std::size_t>(std::min<std::uint64_t>(plan.window_bytes, each));
  }
  return plan;
}

}  // namespace vggload
