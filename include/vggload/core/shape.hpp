// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>

namespace vggload {

/// The number of elements along each axis, slowest first (row-major). Rank 0 is a scalar; an axis
/// of 0 makes the tensor empty. Any rank that memory holds.
class shape {
 public:
  shape() = default;
  shape(std::initializer_list<std::uint64_t> dims) : dims_(dims) {}
  explicit shape(std::vector<std::uint64_t> dims) noexcept : dims_(std::move(dims)) {}

  [[nodiscard]] std::size_t rank() const noexcept { return dims_.size(); }
  [[nodiscard]] std::uint64_t operator[](std::size_t axis) const { return dims_[axis]; }
  [[nodiscard]] std::span<const std::uint64_t> dims() const noexcept { return dims_; }

  /// The product of the dims (1 for a scalar), multiplied from the first on; nothing where an
  /// intermediate product exceeds 64 bits, as the reference implementation of safetensors does.
  [[nodiscard]] std::optional<std::uint64_t> elements() const noexcept {
    std::uint64_t product = 1;
    for (const std::uint64_t dim : dims_) {
      const auto next = checked_multiply(product, dim);
      if (!next) return std::nullopt;
      product = *next;
    }
    return product;
  }

  friend bool operator==(const shape&, const shape&) = default;

 private:
  std::vector<std::uint64_t> dims_;
};

/// For people: "[64, 3, 3, 3]"; "[]" for a scalar. Of more than 16 dims the first are shown, and
/// how many there are: a file may hold millions.
[[nodiscard]] inline std::string to_string(const shape& value) {
  constexpr std::size_t most = 16;
  std::string text = "[";
  for (const std::uint64_t dim : value.dims().first(std::min(most, value.rank()))) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(dim);
  }
  if (value.rank() > most) {
    text += ", ... of ";
    text += std::to_string(value.rank());
  }
  return text += ']';
}

/// How the elements of a dense tensor follow each other: with the last axis running fastest
/// (row-major, C) or the first one (column-major, Fortran).
enum class element_order : std::uint8_t { row_major, column_major };

/// Bytes that a dense tensor occupies; nothing where they exceed 64 bits or are not whole bytes.
[[nodiscard]] inline std::optional<std::uint64_t> bytes_of(dtype type, const shape& dims) noexcept {
  const auto elements = dims.elements();
  if (!elements) return std::nullopt;
  const auto bits = checked_multiply(*elements, bits_of(type));
  if (!bits || *bits % 8 != 0) return std::nullopt;
  return *bits / 8;
}

}  // namespace vggload
