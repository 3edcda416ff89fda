// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include <vggload/convert/health.hpp>
#include <vggload/convert/neon.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/convert/x86.hpp>
#include <vggload/convert/x86_measure.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/float16.hpp>

namespace vggload {

/// Converts `count` elements from `source` to `destination` by the rule in convert/scalar.hpp. Any
/// alignment. The ranges do not overlap, except that a conversion to a type of the same or a
/// smaller size may have `destination == source`. Returns whether a finite value may have become
/// infinite: true where a result is infinite or a NaN and the conversion is one that can overflow;
/// overflow.hpp finds out.
using conversion = bool (*)(const std::byte* source, std::byte* destination,
                            std::size_t count) noexcept;

/// The same, and counts in the same pass what the values are and what was lost (health.hpp). What is
/// counted is added to `health`.
using measured_conversion = void (*)(const std::byte* source, std::byte* destination,
                                     std::size_t count, tensor_health& health) noexcept;

/// The instruction sets that conversions are written for. Each of x86's includes those of x86 before
/// it.
enum class simd_level { scalar, neon, avx2, avx512, avx512_bf16 };

/// The best that this processor offers.
[[nodiscard]] inline simd_level available_simd_level() noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  // Asked once: in a virtual machine each question is a trip to the hypervisor.
  static const simd_level level = detail::x86::has_avx512_bf16()         ? simd_level::avx512_bf16
                                  : detail::x86::has_avx512()            ? simd_level::avx512
                                  : detail::x86::has_avx2_fma_and_f16c() ? simd_level::avx2
                                                                         : simd_level::scalar;
  return level;
#elif defined(__aarch64__)
  return simd_level::neon;
#else
  return simd_level::scalar;
#endif
}

namespace detail {

template <class T>
bool copy_elements(const std::byte* source, std::byte* destination, std::size_t count) noexcept {
  if (source != destination && count != 0) std::memcpy(destination, source, count * sizeof(T));
  return false;
}

/// Calls `action` with the storage type of a dtype that can be converted, as std::type_identity.
/// Gives what it gives, and a default for the other types.
template <class Action>
constexpr auto with_float_type(dtype type, Action&& action)
    -> decltype(action(std::type_identity<float>())) {
  switch (type) {
    case dtype::f8_e5m2: return action(std::type_identity<float8_e5m2>());
    case dtype::f8_e4m3: return action(std::type_identity<float8_e4m3>());
    case dtype::f8_e8m0: return action(std::type_identity<float8_e8m0>());
    case dtype::f8_e4m3fnuz: return action(std::type_identity<float8_e4m3fnuz>());
    case dtype::f8_e5m2fnuz: return action(std::type_identity<float8_e5m2fnuz>());
    case dtype::f16: return action(std::type_identity<float16>());
    case dtype::bf16: return action(std::type_identity<bfloat16>());
    case dtype::f32: return action(std::type_identity<float>());
    case dtype::f64: return action(std::type_identity<double>());
    default: return decltype(action(std::type_identity<float>()))();
  }
}

template <class From, class To>
[[nodiscard]] conversion choose_conversion([[maybe_unused]] simd_level level) noexcept {
  if constexpr (sizeof(To) == 1) {
    return nullptr;
  } else if constexpr (std::is_same_v<From, To>) {
    return &copy_elements<From>;
  } else {
    if constexpr (sizeof(From) > 1) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
      if constexpr (std::is_same_v<To, bfloat16>) {
        if (level >= simd_level::avx512_bf16) return &x86::convert<x86::avx512_bf16, From, To>;
      }
      if (level >= simd_level::avx512) return &x86::convert<x86::avx512, From, To>;
      if (level >= simd_level::avx2) return &x86::convert<x86::avx2, From, To>;
#elif defined(__aarch64__)
      if (level >= simd_level::neon) return &neon::convert<From, To>;
#endif
    }
    return &convert_scalar<From, To>;
  }
}

template <class From, class To>
[[nodiscard]] measured_conversion choose_measured([[maybe_unused]] simd_level level) noexcept {
  if constexpr (sizeof(To) == 1) {
    return std::is_same_v<From, To> ? &measure_scalar<From, From> : nullptr;
  } else {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if constexpr (sizeof(From) == 2 || sizeof(From) == 4) {
      if (level >= simd_level::avx512) return &x86::measure<x86::avx512_measuring, From, To>;
      if (level >= simd_level::avx2) return &x86::measure<x86::avx2_measuring, From, To>;
    } else if constexpr (std::is_same_v<From, double>) {
      if (level >= simd_level::avx512) return &x86::measure_f64<x86::avx512_f64_measuring, To>;
      if (level >= simd_level::avx2) return &x86::measure_f64<x86::avx2_f64_measuring, To>;
    }
#endif
    return &measure_scalar<From, To>;
  }
}

}  // namespace detail

/// The fastest conversion between two types at a level that the processor offers; nullptr where
/// there is none: one can convert to f16, bf16, f32 and f64, and from these and the 8-bit types,
/// but not the smaller ones. All levels give the same bits. Between equal types of the four the
/// bytes are copied.
[[nodiscard]] inline conversion find_conversion(
    dtype from, dtype to, simd_level level = available_simd_level()) noexcept {
  return detail::with_float_type(from, [&]<class From>(std::type_identity<From>) {
    return detail::with_float_type(to, [&]<class To>(std::type_identity<To>) {
      return detail::choose_conversion<From, To>(level);
    });
  });
}

/// The same with counting: there is one wherever there is a conversion, and one of each 8-bit type to
/// itself. Between equal types the bytes are copied, and source and destination may be the same. All
/// levels count the same.
[[nodiscard]] inline measured_conversion find_measured_conversion(
    dtype from, dtype to, simd_level level = available_simd_level()) noexcept {
  return detail::with_float_type(from, [&]<class From>(std::type_identity<From>) {
    return detail::with_float_type(to, [&]<class To>(std::type_identity<To>) {
      return detail::choose_measured<From, To>(level);
    });
  });
}

}  // namespace vggload
