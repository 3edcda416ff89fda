// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>

#include <vggload/data/random.hpp>

namespace vggload {

/// A random order of the numbers below `size` that takes no memory: each place is computed by itself,
/// in time that does not depend on the size. It is a function of (seed, epoch, size) and nothing else.
///
/// A Feistel network permutes the numbers of 2b bits: of the halves (left, right) a round makes (right,
/// left ^ f(right)), which can be undone whatever f is (Luby and Rackoff, 1988); f is
/// `counter_random::mix` with a key for each round. 2b is as few bits as `size` needs, so that a number
/// that lies beyond it can be permuted once more until one does not, fewer than four times on average
/// (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Halves have at
/// least 4 bits: on fewer, a network reaches only some of the permutations.
class random_permutation {
 public:
  constexpr random_permutation(std::uint64_t seed, std::uint64_t epoch, std::uint64_t size) noexcept
      : half_bits_(
            (std::max<unsigned>(8, static_cast<unsigned>(std::bit_width(size > 0 ? size - 1 : 0))) +
             1) /
            2),
        size_(size) {
    // Numbers that no image draws: there is none of this index.
    counter_random random(seed, epoch, std::numeric_limits<std::uint64_t>::max());
    for (std::uint64_t& key : keys_) key = random.bits();
  }

  /// Which number stands at place `i`, below `size`.
  [[nodiscard]] constexpr std::uint64_t operator()(std::uint64_t i) const noexcept {
    do {
      i = permuted(i);
    } while (i >= size_);
    return i;
  }

 private:
  [[nodiscard]] constexpr std::uint64_t permuted(std::uint64_t i) const noexcept {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = i >> half_bits_;
    std::uint64_t right = i & mask;
    for (const std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (counter_random::mix(right ^ key) & mask);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  std::array<std::uint64_t, 8> keys_{};
  unsigned half_bits_;  // at most 32
  std::uint64_t size_;
};

}  // namespace vggload
