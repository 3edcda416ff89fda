// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Arithmetic whose every result is rounded as IEEE 754 says, whatever the flags of the consumer:
// GCC fuses a product and a sum where the target has an instruction for it (-ffp-contract=fast is
// its default), and -ffast-math reorders, divides by multiplying and keeps sums in other ways. It
// does so with vector intrinsics too, which are plain operators inside. So each result passes through an empty
// assembly statement, which costs no instruction: what comes out is unknown to the compiler.
// Divisions and roots, of which there are approximate ones, are written as the instruction.

#include <cmath>
#include <cstring>
#include <type_traits>

namespace vggload::detail::exact {

/// Four floats in one of the registers that every x86-64 and 64-bit Arm has.
using quad = float __attribute__((vector_size(16)));

/// The same value (a float, a double or a vector of them), of which the compiler knows nothing.
template <class T>
[[nodiscard, gnu::always_inline]] inline T opaque(T value) noexcept {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  volatile T kept = value;
  value = kept;
#endif
  return value;
}

template <class T>
[[nodiscard, gnu::always_inline]] inline T sum(T a, std::type_identity_t<T> b) noexcept {
  return opaque<T>(a + b);
}

template <class T>
[[nodiscard, gnu::always_inline]] inline T difference(T a, std::type_identity_t<T> b) noexcept {
  return opaque<T>(a - b);
}

template <class T>
[[nodiscard, gnu::always_inline]] inline T product(T a, std::type_identity_t<T> b) noexcept {
  return opaque<T>(a * b);
}

template <class T>
[[nodiscard, gnu::always_inline]] inline T quotient(T a, std::type_identity_t<T> b) noexcept {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, float>) {
    asm("divss {%1, %0|%0, %1}" : "+x"(a) : "x"(b));
  } else if constexpr (std::is_same_v<T, double>) {
    asm("divsd {%1, %0|%0, %1}" : "+x"(a) : "x"(b));
  } else {
    asm("divps {%1, %0|%0, %1}" : "+x"(a) : "x"(b));
  }
  return a;
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<T, float>) {
    asm("fdiv %s0, %s0, %s1" : "+w"(a) : "w"(b));
  } else if constexpr (std::is_same_v<T, double>) {
    asm("fdiv %d0, %d0, %d1" : "+w"(a) : "w"(b));
  } else {
    asm("fdiv %0.4s, %0.4s, %1.4s" : "+w"(a) : "w"(b));
  }
  return a;
#else
  return opaque<T>(opaque(a) / opaque<T>(b));
#endif
}

[[nodiscard, gnu::always_inline]] inline float square_root(float a) noexcept {
#if defined(__x86_64__)
  asm("sqrtss {%0, %0|%0, %0}" : "+x"(a));
  return a;
#elif defined(__aarch64__)
  asm("fsqrt %s0, %s0" : "+w"(a));
  return a;
#else
  return opaque(std::sqrt(opaque(a)));
#endif
}

/// a * b + c with one rounding, where that is what is wanted.
[[nodiscard]] inline double fused(double a, double b, double c) noexcept {
  return opaque(std::fma(opaque(a), opaque(b), opaque(c)));
}

[[nodiscard, gnu::always_inline]] inline quad load_quad(const float* from) noexcept {
  quad values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

[[nodiscard, gnu::always_inline]] inline quad quad_of(float value) noexcept {
  return quad{value, value, value, value};
}

[[gnu::always_inline]] inline void store_quad(float* to, quad values) noexcept {
  std::memcpy(to, &values, sizeof(values));
}

}  // namespace vggload::detail::exact
