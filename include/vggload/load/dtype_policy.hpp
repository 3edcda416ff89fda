// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include <vggload/core/dtype.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

/// Which type each tensor is stored in, and which one arithmetic with it uses: one type for all, and
/// FP32 for those that need its precision (biases, the last layer). What Keras calls a mixed policy.
///
///     dtype_policy(dtype::f16).keep_fp32([](std::string_view name) { return name.ends_with("bias"); })
class dtype_policy {
 public:
  /// `storage`: of floating-point tensors; nothing: each keeps its own. Other tensors always do.
  /// `compute`: sums of products lose less in FP32 than their factors lose in 16 bits.
  // NOLINTNEXTLINE(google-explicit-constructor): a dtype is the simplest policy
  dtype_policy(std::optional<dtype> storage, dtype compute = dtype::f32) noexcept
      : storage_(storage), compute_(compute) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  dtype_policy(std::nullopt_t keep, dtype compute = dtype::f32) noexcept
      : dtype_policy(std::optional<dtype>(keep), compute) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  dtype_policy(dtype storage, dtype compute = dtype::f32) noexcept
      : dtype_policy(std::optional(storage), compute) {}

  /// Floating-point tensors whose name in the file fulfils this are stored, and computed with, as
  /// FP32. Of several calls any may hold.
  [[nodiscard]] dtype_policy keep_fp32(std::function<bool(std::string_view name)> holds) const {
    dtype_policy policy = *this;
    if (keeps_) {
      holds = [first = keeps_, second = std::move(holds)](std::string_view name) {
        return first(name) || second(name);
      };
    }
    policy.keeps_ = std::move(holds);
    return policy;
  }

  /// The same exceptions from another type.
  [[nodiscard]] dtype_policy with_storage(std::optional<dtype> storage) const {
    dtype_policy policy = *this;
    policy.storage_ = storage;
    return policy;
  }

  /// The type of most floating-point tensors; nothing: each keeps its own.
  [[nodiscard]] std::optional<dtype> storage() const noexcept { return storage_; }
  [[nodiscard]] bool keeps_fp32(const tensor_info& tensor) const {
    return is_floating(tensor.dtype) && keeps_ && keeps_(tensor.name);
  }
  [[nodiscard]] dtype storage_of(const tensor_info& tensor) const {
    if (!is_floating(tensor.dtype)) return tensor.dtype;
    return keeps_fp32(tensor) ? dtype::f32 : storage_.value_or(tensor.dtype);
  }
  [[nodiscard]] dtype compute_of(const tensor_info& tensor) const {
    return keeps_fp32(tensor) ? dtype::f32 : compute_;
  }

 private:
  std::optional<dtype> storage_;
  dtype compute_;
  std::function<bool(std::string_view)> keeps_;
};

}  // namespace vggload
