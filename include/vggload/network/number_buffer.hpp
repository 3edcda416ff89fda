// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <span>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/network/product.hpp>

namespace vggload::network {

/// Numbers of type f32, f16 or bf16 in memory that belongs to somebody else, read as FP32.
class number_view {
 public:
  number_view() = default;
  explicit number_view(std::span<const float> numbers) noexcept
      : data_(std::as_bytes(numbers).data()) {}
  number_view(dtype type, const std::byte* data) noexcept : type_(type), data_(data) {}

  [[nodiscard]] dtype type() const noexcept { return type_; }
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }

  /// `out` becomes the numbers from `first` on.
  void read(std::size_t first, std::span<float> out) const noexcept {
    find_conversion(type_, dtype::f32)(data_ + first * bits_of(type_) / 8,
                                       std::as_writable_bytes(out).data(), out.size());
  }

  /// `rows` x `columns` numbers, the first one `first`: in place where they are FP32, else in `tile`,
  /// which has room for them. A row begins `stride` numbers behind the one before.
  [[nodiscard]] row_matrix<const float> matrix(std::size_t first, std::size_t rows,
                                               std::size_t columns, std::size_t stride,
                                               std::span<float> tile) const noexcept {
    if (type_ == dtype::f32) {
      return {reinterpret_cast<const float*>(data_) + first, rows, columns, stride};
    }
    for (std::size_t row = 0; row < rows; ++row) {
      read(first + row * stride, tile.subspan(row * columns, columns));
    }
    return {tile.data(), rows, columns, columns};
  }

 private:
  dtype type_ = dtype::f32;
  const std::byte* data_ = nullptr;
};

/// The same, and written, too.
class number_buffer {
 public:
  number_buffer(dtype type, std::byte* data) noexcept : type_(type), data_(data) {}

  [[nodiscard]] dtype type() const noexcept { return type_; }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  operator number_view() const noexcept {  // NOLINT(google-explicit-constructor)
    return {type_, data_};
  }

  /// The numbers from `first` on become `values`, rounded. Returns whether all of them are finite where
  /// they have 16 bits, and true for FP32, whose are not looked at.
  [[nodiscard]] bool write(std::size_t first, std::span<const float> values) const noexcept {
    return !find_conversion(dtype::f32, type_)(std::as_bytes(values).data(),
                                               data_ + first * bits_of(type_) / 8, values.size());
  }

  /// Room for a product of `rows` x `columns` from `first` on: in place for FP32, else `tile`, from
  /// which `write` takes it.
  [[nodiscard]] row_matrix<float> room(std::size_t first, std::size_t rows, std::size_t columns,
                                       std::size_t stride, std::span<float> tile) const noexcept {
    if (type_ == dtype::f32) {
      return {reinterpret_cast<float*>(data_) + first, rows, columns, stride};
    }
    return {tile.data(), rows, columns, columns};
  }
  /// Writes what lies in such a room. Returns as the other `write`.
  [[nodiscard]] bool write(std::size_t first, const row_matrix<float>& room,
                           std::size_t stride) const noexcept {
    if (type_ == dtype::f32) return true;
    bool finite = true;
    for (std::size_t row = 0; row < room.rows; ++row) {
      finite &= write(first + row * stride, {room.values + row * room.stride, room.columns});
    }
    return finite;
  }

 private:
  dtype type_;
  std::byte* data_;
};

}  // namespace vggload::network
