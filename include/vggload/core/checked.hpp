// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

namespace vggload {

/// Arithmetic for numbers that came from a file: the result, or nothing where it does not fit.
/// Nothing from a file is added up or multiplied in any other way.

[[nodiscard]] constexpr std::optional<std::uint64_t> checked_add(std::uint64_t a,
                                                                 std::uint64_t b) noexcept {
  if (b > std::numeric_limits<std::uint64_t>::max() - a) return std::nullopt;
  return a + b;
}

[[nodiscard]] constexpr std::optional<std::uint64_t> checked_multiply(std::uint64_t a,
                                                                      std::uint64_t b) noexcept {
  if (a != 0 && b > std::numeric_limits<std::uint64_t>::max() / a) return std::nullopt;
  return a * b;
}

/// Whether the `count` bytes from `offset` on lie within `size` bytes. Forms no sum, so cannot
/// wrap.
[[nodiscard]] constexpr bool in_bounds(std::uint64_t offset, std::uint64_t count,
                                       std::uint64_t size) noexcept {
  return offset <= size && count <= size - offset;
}

/// The smallest multiple of `alignment` (a power of two) that is at least `value`, if it fits.
[[nodiscard]] constexpr std::optional<std::uint64_t> checked_align_up(
    std::uint64_t value, std::uint64_t alignment) noexcept {
  const auto sum = checked_add(value, alignment - 1);
  if (!sum) return std::nullopt;
  return *sum & ~(alignment - 1);
}

}  // namespace vggload
