// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <vggload/core/error.hpp>
#include <vggload/vgg16/footprint.hpp>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace vggload::network {

using vgg16::optimizer_kind;

/// What is used where nothing else is said: Keras' numbers.
[[nodiscard]] constexpr double default_learning_rate(optimizer_kind kind) noexcept {
  return kind == optimizer_kind::adam ? 0.001 : 0.01;
}

/// How weights are updated; the names and numbers are those of torch.optim.SGD and torch.optim.Adam.
struct optimizer_options {
  optimizer_kind kind = optimizer_kind::adam;
  double learning_rate = default_learning_rate(optimizer_kind::adam);
  double momentum = 0.9;  // of `momentum` only
  double beta1 = 0.9;     // of `adam` only, as what follows
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;  // this times the weight is added to its gradient
  friend bool operator==(const optimizer_options&, const optimizer_options&) = default;
};

/// FP32 values that are kept for each weight: 0, 1 (momentum) or 2 (Adam).
[[nodiscard]] constexpr std::size_t state_values(const optimizer_options& options) noexcept {
  if (options.kind == optimizer_kind::sgd) return 0;
  return options.kind == optimizer_kind::momentum ? 1 : 2;
}

/// Throws `error` where a number is not one that the optimizer can have.
inline void check(const optimizer_options& options) {
  const auto require = [](bool holds, const char* name, double value, const char* range) {
    if (holds) return;
    throw error("optimizer: the " + std::string(name) + " cannot be " + std::to_string(value) +
                ", only " + range);
  };
  const auto not_negative = [](double value) { return value >= 0 && std::isfinite(value); };
  const auto below_one = [](double value) { return value >= 0 && value < 1; };
  require(not_negative(options.learning_rate), "learning rate", options.learning_rate, "0 or more");
  require(not_negative(options.weight_decay), "weight decay", options.weight_decay, "0 or more");
  require(below_one(options.momentum), "momentum", options.momentum, "from 0 to less than 1");
  require(below_one(options.beta1), "beta1", options.beta1, "from 0 to less than 1");
  require(below_one(options.beta2), "beta2", options.beta2, "from 0 to less than 1");
  require(not_negative(options.epsilon), "epsilon", options.epsilon, "0 or more");
}

namespace detail {

/// The shortest text that is read as the same number.
[[nodiscard]] inline std::string exact_text(double value) {
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  return {digits.data(), end};
}

}  // namespace detail

/// All that matters, "adam(learning_rate=0.001, beta1=0.9, ...)"; equal for optimizers that do the same.
[[nodiscard]] inline std::string to_string(const optimizer_options& options) {
  std::string text(name_of(options.kind));
  text += "(learning_rate=" + detail::exact_text(options.learning_rate);
  if (options.kind == optimizer_kind::momentum) {
    text += ", momentum=" + detail::exact_text(options.momentum);
  } else if (options.kind == optimizer_kind::adam) {
    text += ", beta1=" + detail::exact_text(options.beta1);
    text += ", beta2=" + detail::exact_text(options.beta2);
    text += ", epsilon=" + detail::exact_text(options.epsilon);
  }
  return text + ", weight_decay=" + detail::exact_text(options.weight_decay) + ")";
}

/// One step of an optimizer, in the arithmetic of torch.optim (dampening 0, no Nesterov, no AMSGrad):
///
///     g += weight_decay p
///     SGD:   b = momentum b + g;  p -= learning_rate b
///     Adam:  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
///            p -= learning_rate / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
///
/// with numbers that depend on the options and t alone in double, and all that is there for each weight
/// in FP32. State begins at 0.
class optimizer_step {
 public:
  /// `number`: t above, the first is 1.
  optimizer_step(const optimizer_options& options, std::uint64_t number) noexcept
      : kind_(options.kind),
        weight_decay_(static_cast<float>(options.weight_decay)),
        rate_(static_cast<float>(options.learning_rate)),
        momentum_(static_cast<float>(options.momentum)) {
    if (kind_ != optimizer_kind::adam) return;
    const auto t = static_cast<double>(number);
    first_share_ = static_cast<float>(1 - options.beta1);
    second_decay_ = static_cast<float>(options.beta2);
    second_share_ = static_cast<float>(1 - options.beta2);
    rate_ = static_cast<float>(options.learning_rate / (1 - std::pow(options.beta1, t)));
    second_root_ = static_cast<float>(std::sqrt(1 - std::pow(options.beta2, t)));
    epsilon_ = static_cast<float>(options.epsilon);
  }

  /// Updates weights. `state` has `state_values` spans; all spans have the same size.
  void operator()(std::span<float> weights, std::span<const float> gradients,
                  std::span<const std::span<float>> state) const noexcept {
    switch (kind_) {
      case optimizer_kind::sgd: return sgd(weights, gradients);
      case optimizer_kind::momentum: return momentum(weights, gradients, state[0]);
      case optimizer_kind::adam: return adam(weights, gradients, state[0], state[1]);
    }
  }

 private:
  void sgd(std::span<float> weights, std::span<const float> gradients) const noexcept {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] -= rate_ * (gradients[i] + weight_decay_ * weights[i]);
    }
  }

  void momentum(std::span<float> weights, std::span<const float> gradients,
                std::span<float> buffer) const noexcept {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      buffer[i] = momentum_ * buffer[i] + (gradients[i] + weight_decay_ * weights[i]);
      weights[i] -= rate_ * buffer[i];
    }
  }

  void adam(std::span<float> weights, std::span<const float> gradients, std::span<float> first,
            std::span<float> second) const noexcept {
    std::array<float, 512> block;
    for (std::size_t begin = 0; begin < weights.size(); begin += block.size()) {
      const std::size_t count = std::min(block.size(), weights.size() - begin);
      float* const w = weights.data() + begin;
      float* const m = first.data() + begin;
      float* const v = second.data() + begin;
      for (std::size_t i = 0; i < count; ++i) {
        const float gradient = gradients[begin + i] + weight_decay_ * w[i];
        m[i] += first_share_ * (gradient - m[i]);
        v[i] = second_decay_ * v[i] + second_share_ * gradient * gradient;
        block[i] = v[i];
      }
      take_square_roots(std::span(block).first(count));
      for (std::size_t i = 0; i < count; ++i) {
        w[i] -= rate_ * (m[i] / (block[i] / second_root_ + epsilon_));
      }
    }
  }

  static void take_square_roots(std::span<float> values) noexcept {
    std::size_t i = 0;
#if defined(__x86_64__)
    // std::sqrt may set errno, so compilers take one root at a time. Both round rightly.
    for (; i + 4 <= values.size(); i += 4) {
      _mm_storeu_ps(&values[i], _mm_sqrt_ps(_mm_loadu_ps(&values[i])));
    }
#endif
    for (; i < values.size(); ++i) values[i] = std::sqrt(values[i]);
  }

  optimizer_kind kind_;
  float weight_decay_;
  float rate_;
  float momentum_;
  float first_share_ = 0;
  float second_decay_ = 0;
  float second_share_ = 0;
  float second_root_ = 1;
  float epsilon_ = 0;
};

}  // namespace vggload::network
