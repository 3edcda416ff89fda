// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/core/dtype.hpp>

namespace vggload {

/// What becomes of a finite value that rounds beyond the largest finite value of the type that it is
/// converted to. Infinities of the source stay what they are.
enum class overflow_policy {
  keep,      // infinity of its sign
  saturate,  // the largest finite value of its sign
  refuse,    // an `overflow_error` that names the tensor, the index and the value
};

/// "keep", "saturate", "refuse".
[[nodiscard]] constexpr std::string_view name_of(overflow_policy policy) noexcept {
  return policy == overflow_policy::keep       ? "keep"
         : policy == overflow_policy::saturate ? "saturate"
                                               : "refuse";
}

/// The largest finite value of f16, bf16, f32 or f64; 0 for the others.
[[nodiscard]] constexpr double largest_finite(dtype type) noexcept {
  return detail::with_float_type(type, []<class T>(std::type_identity<T>) -> double {
    if constexpr (sizeof(T) == 1) {
      return 0;
    } else {
      using bits = typename detail::format_of_type<T>::type::bits_type;
      return convert_to<double>(std::bit_cast<T>(static_cast<bits>(detail::infinity_bits<T> - 1)));
    }
  });
}

namespace detail {

/// Calls `action(index, value, result)` for each finite value of `source` whose result is infinite,
/// in order. `value` is the source as double, `result` the place of the result. For what a
/// conversion said may have overflowed: one element at a time.
template <class From, class To, class Action>
void for_each_overflow_of(const std::byte* source, std::byte* destination, std::size_t count,
                          Action&& action) {
  using bits = typename format_of_type<To>::type::bits_type;
  constexpr auto magnitude = static_cast<bits>(static_cast<bits>(~bits{0}) >> 1U);
  for (std::size_t i = 0; i < count; ++i) {
    bits result;
    std::memcpy(&result, destination + i * sizeof(To), sizeof(To));
    if ((result & magnitude) != infinity_bits<To>) continue;
    From value;
    std::memcpy(&value, source + i * sizeof(From), sizeof(From));
    const auto wide = convert_to<double>(value);
    const auto wide_bits = std::bit_cast<std::uint64_t>(wide) << 1U >> 1U;
    if (wide_bits < infinity_bits<double>) action(i, wide, destination + i * sizeof(To));
  }
}

template <class Action>
void for_each_overflow(dtype from, dtype to, const std::byte* source, std::byte* destination,
                       std::size_t count, Action&& action) {
  with_float_type(from, [&]<class From>(std::type_identity<From>) {
    with_float_type(to, [&]<class To>(std::type_identity<To>) {
      if constexpr (sizeof(To) > 1 && !std::is_same_v<From, To>) {
        if constexpr (can_overflow<From, To>) {
          for_each_overflow_of<From, To>(source, destination, count, action);
        }
      }
    });
  });
}

/// An infinity becomes the finite value next to it: in all of these formats one less as an integer.
inline void make_finite(dtype type, std::byte* place) noexcept {
  with_float_type(type, [&]<class T>(std::type_identity<T>) {
    if constexpr (sizeof(T) > 1) {
      typename format_of_type<T>::type::bits_type bits;
      std::memcpy(&bits, place, sizeof(T));
      --bits;
      std::memcpy(place, &bits, sizeof(T));
    }
  });
}

}  // namespace detail

}  // namespace vggload
