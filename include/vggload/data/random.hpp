// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>

namespace vggload {

/// Random numbers that depend on what they are for and on nothing else: those of (seed, epoch, index) are
/// the same whichever thread asks, in whichever order. The generator is SplitMix64 (Steele, Lea and Flood,
/// "Fast splittable pseudorandom number generators", 2014), begun at a hash of the three.
class counter_random {
 public:
  constexpr counter_random(std::uint64_t seed, std::uint64_t epoch, std::uint64_t index) noexcept
      : state_(mix(mix(mix(seed) + epoch) + index)) {}

  /// 64 random bits.
  [[nodiscard]] constexpr std::uint64_t bits() noexcept { return mix(state_ += increment); }
  /// Uniform in [0, 1), a multiple of 2^-53.
  [[nodiscard]] constexpr double unit() noexcept {
    return static_cast<double>(bits() >> 11U) * 0x1p-53;
  }
  /// Uniform in [low, high).
  [[nodiscard]] constexpr double uniform(double low, double high) noexcept {
    return low + (high - low) * unit();
  }

  /// The generator's finaliser: a bijection that spreads each bit over all.
  [[nodiscard]] static constexpr std::uint64_t mix(std::uint64_t value) noexcept {
    value += increment;
    value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
    value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
    return value ^ (value >> 31U);
  }

 private:
  static constexpr std::uint64_t increment = 0x9E3779B97F4A7C15U;
  std::uint64_t state_;
};

}  // namespace vggload
