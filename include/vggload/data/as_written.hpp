// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

namespace vggload::detail {

/// The value itself. A compiler that may fuse, reorder or approximate arithmetic (-ffp-contract, -ffast-math) can't
/// do so across it: what is computed from a few rounded steps is the same whatever the flags.
[[nodiscard]] inline double as_written(double value) noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  asm("" : "+x"(value));
  return value;
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
  asm("" : "+w"(value));
  return value;
#else
  const volatile double kept = value;
  return kept;
#endif
}

}  // namespace vggload::detail
