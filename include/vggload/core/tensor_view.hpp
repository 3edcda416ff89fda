// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>

namespace vggload {

/// A dense, read-only tensor whose bytes belong to somebody else (a mapped file, an
/// arena): never owns, never copies, and is valid as long as those bytes are.
class tensor_view {
 public:
  tensor_view() = default;

  /// `bytes` holds exactly the elements of `dims`, in `order`. Throws `error` with the two numbers
  /// where it does not.
  tensor_view(vggload::dtype type, vggload::shape dims, std::span<const std::byte> bytes,
              element_order order = element_order::row_major)
      : dtype_(type), order_(order), shape_(std::move(dims)), bytes_(bytes) {
    if (bytes_of(dtype_, shape_) != bytes_.size()) {
      throw error("a view of " + std::to_string(bytes_.size()) + " bytes cannot show " +
                  std::string(name_of(dtype_)) + " " + to_string(shape_));
    }
  }

  [[nodiscard]] vggload::dtype dtype() const noexcept { return dtype_; }
  [[nodiscard]] const vggload::shape& shape() const noexcept { return shape_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// A row-major [in, out] matrix is a column-major [out, in] one: a layout that a file has is kept
  /// and told here, not copied into another.
  [[nodiscard]] element_order order() const noexcept { return order_; }

  /// The elements, in `order()`. Throws `error` where the tensor is not of this type, or where its first byte is
  /// not aligned for it, as some files have it (`vgg16::load_options::aligned` copies such tensors).
  template <tensor_element T>
  [[nodiscard]] std::span<const T> values() const {
    if (dtype_ != dtype_of<T>) {
      throw error("a view of " + std::string(name_of(dtype_)) + " elements was asked for " +
                  std::string(name_of(dtype_of<T>)) + " ones");
    }
    if (!is_aligned_for(bytes_.data(), dtype_)) {
      throw error("a view of " + std::string(name_of(dtype_)) +
                  " elements is not aligned for them");
    }
    return {reinterpret_cast<const T*>(bytes_.data()), bytes_.size() / sizeof(T)};
  }

  /// Whether elements of the type may be accessed in place at this address.
  [[nodiscard]] static bool is_aligned_for(const std::byte* address, vggload::dtype type) noexcept {
    const std::uintptr_t alignment = bits_of(type) < 8 ? 1 : bits_of(type) / 8;
    return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
  }

 private:
  vggload::dtype dtype_ = vggload::dtype::f32;
  element_order order_ = element_order::row_major;
  vggload::shape shape_{0};
  std::span<const std::byte> bytes_;
};

}  // namespace vggload
