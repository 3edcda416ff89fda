// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <vggload/core/float16.hpp>

namespace vggload {

/// The type of a tensor's elements: all types that safetensors can hold, so that any of its files
/// can be listed, and `opaque`, elements that can be named but not read (quantised blocks, pickled
/// objects).
enum class dtype : std::uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
  opaque,
};

namespace detail {

struct dtype_traits {
  std::string_view name;
  std::uint8_t bits;
  bool floating;
};

// In the order of `dtype`. Names and widths: `Dtype` of the safetensors crate.
inline constexpr std::array<dtype_traits, 23> dtype_table{{
    {"BOOL", 8, false},   {"F4", 4, true},          {"F6_E2M3", 6, true},     {"F6_E3M2", 6, true},
    {"U8", 8, false},     {"I8", 8, false},         {"F8_E5M2", 8, true},     {"F8_E4M3", 8, true},
    {"F8_E8M0", 8, true}, {"F8_E4M3FNUZ", 8, true}, {"F8_E5M2FNUZ", 8, true}, {"I16", 16, false},
    {"U16", 16, false},   {"F16", 16, true},        {"BF16", 16, true},       {"I32", 32, false},
    {"U32", 32, false},   {"F32", 32, true},        {"C64", 64, false},       {"F64", 64, true},
    {"I64", 64, false},   {"U64", 64, false},       {"", 0, false},
}};

}  // namespace detail

/// The spelling that safetensors uses: "F32", "BF16", "I64", ...; empty for `opaque`.
[[nodiscard]] constexpr std::string_view name_of(dtype type) noexcept {
  return detail::dtype_table[static_cast<std::size_t>(type)].name;
}

/// Bits of one element; 4 and 6 exist, so a tensor's bytes are `elements * bits / 8`. 0 for `opaque`.
[[nodiscard]] constexpr unsigned bits_of(dtype type) noexcept {
  return detail::dtype_table[static_cast<std::size_t>(type)].bits;
}

/// Whether the elements are real floating-point numbers: what a conversion of a checkpoint changes.
[[nodiscard]] constexpr bool is_floating(dtype type) noexcept {
  return detail::dtype_table[static_cast<std::size_t>(type)].floating;
}

/// The dtype with this (safetensors) name; nothing for an unknown one.
[[nodiscard]] constexpr std::optional<dtype> dtype_from_name(std::string_view name) noexcept {
  for (std::size_t i = 0; i < static_cast<std::size_t>(dtype::opaque); ++i) {
    if (detail::dtype_table[i].name == name) return static_cast<dtype>(i);
  }
  return std::nullopt;
}

namespace detail {

template <class T>
inline constexpr std::optional<dtype> dtype_of_type = std::nullopt;
template <>
inline constexpr std::optional<dtype> dtype_of_type<float16> = dtype::f16;
template <>
inline constexpr std::optional<dtype> dtype_of_type<bfloat16> = dtype::bf16;
template <>
inline constexpr std::optional<dtype> dtype_of_type<float> = dtype::f32;
template <>
inline constexpr std::optional<dtype> dtype_of_type<double> = dtype::f64;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::int8_t> = dtype::i8;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::uint8_t> = dtype::u8;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::int16_t> = dtype::i16;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::uint16_t> = dtype::u16;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::int32_t> = dtype::i32;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::uint32_t> = dtype::u32;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::int64_t> = dtype::i64;
template <>
inline constexpr std::optional<dtype> dtype_of_type<std::uint64_t> = dtype::u64;

}  // namespace detail

/// A C++ type whose objects are the elements of some dtype. (`bool` is not: a file may hold bytes
/// other than 0 and 1.)
template <class T>
concept tensor_element = detail::dtype_of_type<T>
.has_value();

/// The dtype whose elements are objects of type T.
template <tensor_element T>
inline constexpr dtype dtype_of = *detail::dtype_of_type<T>;

}  // namespace vggload
