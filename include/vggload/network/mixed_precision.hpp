// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>

namespace vggload::network {

/// The types that a head is trained in, by one name as Keras has it (`keras.mixed_precision`).
///
/// - `f32`: all is FP32.
/// - `mixed_float16`, `mixed_bfloat16`: activations, their gradients, the gradients of weights and the
///   copies of the weights that products read have 16 bits. Products are summed up in FP32 and rounded
///   once. The weights that the optimizer changes (the masters) and its state are FP32, and so are
///   the logits and the loss. With float16 the loss is scaled, so that small gradients are not lost.
enum class precision_policy : std::uint8_t { f32, mixed_float16, mixed_bfloat16 };

namespace detail {

inline constexpr std::array<std::string_view, 3> precision_policy_names{"f32", "mixed_float16",
                                                                        "mixed_bfloat16"};

}  // namespace detail

[[nodiscard]] constexpr std::string_view name_of(precision_policy policy) noexcept {
  return detail::precision_policy_names[static_cast<std::size_t>(policy)];
}

/// The policy of that name; nothing where there is none.
[[nodiscard]] constexpr std::optional<precision_policy> precision_policy_from_name(
    std::string_view name) noexcept {
  for (std::size_t i = 0; i < detail::precision_policy_names.size(); ++i) {
    if (detail::precision_policy_names[i] == name) return static_cast<precision_policy>(i);
  }
  return std::nullopt;
}

/// The type of activations, gradients, and of the weights that products read.
[[nodiscard]] constexpr dtype compute_type(precision_policy policy) noexcept {
  if (policy == precision_policy::f32) return dtype::f32;
  return policy == precision_policy::mixed_float16 ? dtype::f16 : dtype::bf16;
}

/// How the factor on the loss is chosen. The numbers of Keras' `LossScaleOptimizer`.
struct loss_scale_options {
  double initial = 32768;             // 2^15
  std::uint64_t growth_steps = 2000;  // in a row with finite gradients; then it is doubled
  friend bool operator==(const loss_scale_options&, const loss_scale_options&) = default;
};

/// The factor on the loss, a power of two where `initial` is one: doubled after many steps in which all
/// gradients were finite, halved where one was not (whose step is skipped). It stays between 1, as
/// TensorFlow's did, and 2^126, so that its inverse is a normal FP32 number.
class loss_scale {
 public:
  /// Throws `error` where the initial factor is not between 1 and 2^126, or there are 0 steps.
  explicit loss_scale(const loss_scale_options& options = {})
      : growth_steps_(options.growth_steps), value_(options.initial) {
    if (!(options.initial >= smallest && options.initial <= largest)) {
      throw error("loss scale: it cannot begin at " + std::to_string(options.initial) +
                  ", only at 1 to 2^126");
    }
    if (growth_steps_ == 0) throw error("loss scale: it cannot grow after 0 steps");
  }

  [[nodiscard]] double value() const noexcept { return value_; }
  /// Steps in a row that had finite gradients, since the factor changed.
  [[nodiscard]] std::uint64_t finite_steps() const noexcept { return finite_steps_; }

  /// Goes on from where another one was. Throws `error` where none can be there.
  void restore(double value, std::uint64_t finite_steps) {
    if (!(value >= smallest && value <= largest) || finite_steps >= growth_steps_) {
      throw error("loss scale: it cannot be " + std::to_string(value) + " after " +
                  std::to_string(finite_steps) + " finite steps");
    }
    value_ = value;
    finite_steps_ = finite_steps;
  }

  /// After each step: whether all gradients were finite.
  void update(bool finite) noexcept {
    if (!finite) {
      value_ = std::max(value_ / 2, smallest);
      finite_steps_ = 0;
    } else if (++finite_steps_ == growth_steps_) {
      value_ = std::min(value_ * 2, largest);
      finite_steps_ = 0;
    }
  }

 private:
  static constexpr double smallest = 1;
  static constexpr double largest = 0x1p126;

  std::uint64_t growth_steps_;
  double value_;
  std::uint64_t finite_steps_ = 0;
};

}  // namespace vggload::network
