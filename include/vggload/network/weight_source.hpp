// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/file_read_ahead.hpp>
#include <vggload/load/stream.hpp>

namespace vggload::network::detail {

using vggload::detail::for_each_overflow;
using vggload::detail::make_finite;
using vggload::detail::naming_tensor;
using vggload::detail::overflow_text;

/// A tensor's elements as FP32, in the order in which they lie: those of a view, or of a file that is read whenever
/// some are wanted. The view's bytes, or the file, must live as long.
class weight_source {
 public:
  explicit weight_source(const tensor_view& view) noexcept
      : dims_(view.shape()),
        order_(view.order()),
        type_(view.dtype()),
        bytes_(view.bytes()),
        element_(bits_of(type_) / 8),
        widen_(find_conversion(type_, dtype::f32)) {
    if (type_ == dtype::f32 && tensor_view::is_aligned_for(bytes_.data(), dtype::f32)) {
      values_ = reinterpret_cast<const float*>(bytes_.data());
    }
  }

  /// A tensor of a file, which is shown with the shape `dims` and whose elements are rounded to `stored` first. It comes
  /// next in `ahead`, which must live as long. Throws `unsupported_error` where it cannot be read in parts.
  weight_source(const checkpoint& file, std::size_t tensor, shape dims, dtype stored,
                overflow_policy overflow, file_read_ahead& ahead)
      : dims_(std::move(dims)),
        order_(file.tensors()[tensor].order),
        type_(stored),
        file_(&file),
        tensor_(tensor),
        overflow_(overflow) {
    const tensor_info& info = file.tensors()[tensor];
    if (info.sequential || is_permuted(info)) {
      throw unsupported_error(printable(file.path()) + ": tensor " + in_quotes(info.name) +
                              (info.sequential ? " is compressed or in chunks"
                                               : " has its axes in an order of its own") +
                              ": it cannot be used window by window; convert the file first");
    }
    element_ = bits_of(info.dtype) / 8;
    // To a wider type nothing is rounded.
    const bool rounds = info.dtype != stored && bits_of(stored) <= bits_of(info.dtype);
    if (rounds) round_ = find_conversion(info.dtype, stored);
    widen_ = find_conversion(rounds ? stored : info.dtype, dtype::f32);
    if (rounds && round_ == nullptr) widen_ = nullptr;
    reads_in_place_ = !rounds && info.dtype == dtype::f32;
    ahead_ = &ahead;
    place_ = ahead.append(file, tensor);
  }

  [[nodiscard]] const shape& dims() const noexcept { return dims_; }
  [[nodiscard]] element_order order() const noexcept { return order_; }
  /// Of the elements before they are widened.
  [[nodiscard]] dtype type() const noexcept { return type_; }
  /// Whether they can be widened to FP32.
  [[nodiscard]] bool is_readable() const noexcept { return widen_ != nullptr; }
  /// All elements, where they lie in memory as FP32, and aligned; nullptr otherwise.
  [[nodiscard]] const float* values() const noexcept { return values_; }

  /// `count` elements from the one at `first` on: where they are, or brought to `room` by way of `staging`, which holds
  /// some elements of any type. Throws `io_error` with the tensor's name, and `overflow_error`.
  [[nodiscard]] const float* get(std::uint64_t first, std::size_t count, float* room,
                                 std::span<std::byte> staging) const {
    if (values_ != nullptr) return values_ + first;
    auto* const widened = reinterpret_cast<std::byte*>(room);
    if (file_ == nullptr) {
      (void)widen_(bytes_.data() + first * element_, widened, count);
    } else if (reads_in_place_) {
      read(first, {widened, count * sizeof(float)});
    } else {
      const std::size_t at_once = staging.size() / element_;
      for (std::size_t done = 0; done < count; done += at_once) {
        const std::size_t some = std::min(at_once, count - done);
        const auto window = staging.first(some * element_);
        read(first + done, window);
        if (round_ != nullptr && round_(window.data(), window.data(), some) &&
            overflow_ != overflow_policy::keep) {
          treat_overflow(first + done, some, window, widened + done * sizeof(float));
        }
        (void)widen_(staging.data(), widened + done * sizeof(float), some);
      }
    }
    return room;
  }

 private:
  /// Rounds a window once more, with its source at hand: it may have overflowed. `room`: where the results fit.
  void treat_overflow(std::uint64_t first, std::size_t count, std::span<std::byte> window,
                      std::byte* room) const {
    const tensor_info& info = file_->tensors()[tensor_];
    read(first, window);
    (void)round_(window.data(), room, count);
    for_each_overflow(
        info.dtype, type_, window.data(), room, count,
        [&, this](std::size_t i, double value, std::byte* place) {
          if (overflow_ == overflow_policy::refuse) {
            throw overflow_error(overflow_text(file_->path(), info, first + i, value, type_));
          }
          make_finite(type_, place);
        });
    std::copy_n(room, count * bits_of(type_) / 8, window.data());
  }

  void read(std::uint64_t first, std::span<std::byte> to) const {
    naming_tensor(file_->tensors()[tensor_],
                  [&, this] { file_->read(tensor_, first * element_, to); });
    ahead_->advance(place_ + first * element_ + to.size());
  }

  shape dims_;
  element_order order_;
  dtype type_;
  std::span<const std::byte> bytes_;
  const float* values_ = nullptr;
  const checkpoint* file_ = nullptr;
  std::size_t tensor_ = 0;
  file_read_ahead* ahead_ = nullptr;
  std::uint64_t place_ = 0;  // of the tensor, in what is read ahead
  overflow_policy overflow_ = overflow_policy::keep;
  std::size_t element_ = 0;  // bytes of one, where it is read
  conversion round_ = nullptr;
  conversion widen_ = nullptr;
  bool reads_in_place_ = false;
};

}  // namespace vggload::network::detail
