// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Conversions with 64-bit Arm's vector instructions, which every such processor has. All take any
// alignment and any count, and follow the rule in scalar.hpp bit for bit.

#if defined(__aarch64__)

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include <vggload/convert/scalar.hpp>
#include <vggload/core/float16.hpp>

namespace vggload::detail::neon {

/// FPCR as a conversion needs it, and as it was again at the end: rounding to nearest even,
/// subnormals, NaNs with their payload, IEEE's half precision, nothing that traps (Arm ARM, C5.2.8).
class floating_point_mode {
 public:
  floating_point_mode() noexcept {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    if (before_ != 0) set(0);
  }
  floating_point_mode(const floating_point_mode&) = delete;
  floating_point_mode& operator=(const floating_point_mode&) = delete;
  ~floating_point_mode() {
    if (before_ != 0) set(before_);
  }

 private:
  static void set(std::uint64_t value) noexcept {
    asm volatile("msr fpcr, %0" : : "r"(value) : "memory");
  }

  std::uint64_t before_ = 0;
};

/// Elements at a time.
inline constexpr std::size_t step = 8;

/// Eight elements as FP32; the smaller types are so without loss.
struct lanes {
  float32x4_t low;
  float32x4_t high;
};

template <class T>
[[nodiscard]] T load_bits(const std::byte* from) noexcept {
  T bits;
  std::memcpy(&bits, from, sizeof(T));
  return bits;
}

[[nodiscard]] inline uint32x4_t is_nan(uint32x4_t bits) noexcept {
  return vcgtq_u32(vandq_u32(bits, vdupq_n_u32(0x7FFFFFFF)), vdupq_n_u32(0x7F800000));
}

/// NaNs are made quiet.
[[nodiscard]] inline float32x4_t widen_bf16(uint16x4_t values) noexcept {
  const uint32x4_t bits = vshll_n_u16(values, 16);
  return vreinterpretq_f32_u32(vorrq_u32(bits, vandq_u32(is_nan(bits), vdupq_n_u32(0x00400000))));
}

/// bfloat16 from the upper half of each lane: half of the last place kept is added, or a little less
/// where that place is even already; a NaN is made quiet.
[[nodiscard]] inline uint16x4_t narrow_bf16(float32x4_t values) noexcept {
  const uint32x4_t bits = vreinterpretq_u32_f32(values);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd);
  const uint32x4_t quieted = vorrq_u32(bits, vdupq_n_u32(0x00400000));
  return vshrn_n_u32(vbslq_u32(is_nan(bits), quieted, rounded), 16);
}

template <class From, class To>
[[nodiscard]] lanes load(const std::byte* from) noexcept {
  if constexpr (std::same_as<From, float>) {
    return {load_bits<float32x4_t>(from), load_bits<float32x4_t>(from + 16)};
  } else if constexpr (std::same_as<From, double>) {
    // FCVTXN rounds to odd: the next rounding, to 22 bits or less, gives what one would have given.
    const auto narrow = [](const std::byte* pair) {
      const auto values = load_bits<float64x2_t>(pair);
      return std::same_as<To, float> ? vcvt_f32_f64(values) : vcvtx_f32_f64(values);
    };
    return {vcombine_f32(narrow(from), narrow(from + 16)),
            vcombine_f32(narrow(from + 32), narrow(from + 48))};
  } else if constexpr (std::same_as<From, float16>) {
    return {vcvt_f32_f16(load_bits<float16x4_t>(from)),
            vcvt_f32_f16(load_bits<float16x4_t>(from + 8))};
  } else {
    return {widen_bf16(load_bits<uint16x4_t>(from)), widen_bf16(load_bits<uint16x4_t>(from + 8))};
  }
}

/// Writes eight elements; gives the largest magnitude of each lane up to now in To's bits.
template <class To>
[[nodiscard]] uint32x4_t store(lanes values, std::byte* to, uint32x4_t most) noexcept {
  if constexpr (sizeof(To) == 2) {
    uint16x8_t bits;
    if constexpr (std::same_as<To, float16>) {
      bits = vcombine_u16(vreinterpret_u16_f16(vcvt_f16_f32(values.low)),
                          vreinterpret_u16_f16(vcvt_f16_f32(values.high)));
    } else {
      bits = vcombine_u16(narrow_bf16(values.low), narrow_bf16(values.high));
    }
    std::memcpy(to, &bits, sizeof(bits));
    return vreinterpretq_u32_u16(
        vmaxq_u16(vreinterpretq_u16_u32(most), vandq_u16(bits, vdupq_n_u16(0x7FFF))));
  } else if constexpr (std::same_as<To, float>) {
    std::memcpy(to, &values, sizeof(values));
    const auto magnitude = [](float32x4_t value) {
      return vandq_u32(vreinterpretq_u32_f32(value), vdupq_n_u32(0x7FFFFFFF));
    };
    return vmaxq_u32(most, vmaxq_u32(magnitude(values.low), magnitude(values.high)));
  } else {
    const std::array<float64x2_t, 4> wide{
        vcvt_f64_f32(vget_low_f32(values.low)), vcvt_high_f64_f32(values.low),
        vcvt_f64_f32(vget_low_f32(values.high)), vcvt_high_f64_f32(values.high)};
    std::memcpy(to, wide.data(), sizeof(wide));
    return most;
  }
}

template <class To>
[[nodiscard]] bool exceeds(uint32x4_t most) noexcept {
  if constexpr (sizeof(To) == 2) {
    return vmaxvq_u16(vreinterpretq_u16_u32(most)) >= infinity_bits<To>;
  } else if constexpr (std::same_as<To, float>) {
    return vmaxvq_u32(most) >= infinity_bits<To>;
  } else {
    return false;
  }
}

/// Not inlined, so that no instruction leaves the scope of the mode that it needs.
template <class From, class To>
[[gnu::noinline]] bool convert_steps(const std::byte* source, std::byte* destination,
                                     std::size_t count) noexcept {
  uint32x4_t most = vdupq_n_u32(0);
  std::size_t i = 0;
  for (; i + step <= count; i += step) {
    most = store<To>(load<From, To>(source + i * sizeof(From)), destination + i * sizeof(To), most);
  }
  if (const std::size_t rest = count - i; rest > 0) {
    std::array<std::byte, step * sizeof(From)> in{};
    std::array<std::byte, step * sizeof(To)> out;
    std::memcpy(in.data(), source + i * sizeof(From), rest * sizeof(From));
    most = store<To>(load<From, To>(in.data()), out.data(), most);
    std::memcpy(destination + i * sizeof(To), out.data(), rest * sizeof(To));
  }
  return can_overflow<From, To> && exceeds<To>(most);
}

/// As `conversion` (convert.hpp) wants it.
template <class From, class To>
bool convert(const std::byte* source, std::byte* destination, std::size_t count) noexcept {
  const floating_point_mode mode;
  return convert_steps<From, To>(source, destination, count);
}

}  // namespace vggload::detail::neon

#endif
