// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <vggload/network/optimizer.hpp>

namespace vggload::network {

enum class head_layer_kind : std::uint8_t {
  flatten,
  global_average_pool,
  normalization,
  dense,
  dropout,
};

enum class activation : std::uint8_t { linear, relu };

/// A layer of a head; made by the functions below.
struct head_layer {
  head_layer_kind kind = head_layer_kind::flatten;
  std::uint64_t units = 0;  // of `dense`
  network::activation activation = network::activation::linear;
  double rate = 0;                                         // of `dropout`
  double limit = std::numeric_limits<double>::infinity();  // of `normalization`
  friend bool operator==(const head_layer&, const head_layer&) = default;
};

/// All features of an image in one row, in the order [height, width, channels] as Keras' Flatten has
/// it; nothing is moved.
[[nodiscard]] constexpr head_layer flatten() noexcept { return {}; }

/// Each channel's mean over height and width.
[[nodiscard]] constexpr head_layer global_average_pool() noexcept {
  return {.kind = head_layer_kind::global_average_pool};
}

/// (x - mean) / deviation with two numbers for each channel that are measured before training (Keras'
/// `Normalization` with `adapt`; see `adapt_normalization`) and do not change in it. Only in front of the
/// first dense layer. What is further than `limit` from 0 then becomes it: a channel that was hardly ever active when it
/// was measured has so small a deviation that an image in which it is has values of hundreds.
[[nodiscard]] constexpr head_layer normalization(
    double limit = std::numeric_limits<double>::infinity()) noexcept {
  return {.kind = head_layer_kind::normalization, .limit = limit};
}

/// activation(x W + b) with W [inputs, units] as Keras has it. W begins uniform in ±sqrt(6 / (inputs +
/// units)), b at 0: Keras' `glorot_uniform` and `zeros`.
[[nodiscard]] constexpr head_layer dense(std::uint64_t units,
                                         activation function = activation::linear) noexcept {
  return {.kind = head_layer_kind::dense, .units = units, .activation = function};
}

/// In training each value is 0 with this probability, and else divided by 1 - rate; nothing otherwise.
[[nodiscard]] constexpr head_layer dropout(double rate) noexcept {
  return {.kind = head_layer_kind::dropout, .rate = rate};
}

/// "dense(256, relu)"; equal for equal layers.
[[nodiscard]] inline std::string to_string(const head_layer& layer) {
  switch (layer.kind) {
    case head_layer_kind::flatten: return "flatten";
    case head_layer_kind::global_average_pool: return "global_average_pool";
    case head_layer_kind::normalization:
      return std::isinf(layer.limit) ? "normalization"
                                     : "normalization(" + detail::exact_text(layer.limit) + ")";
    case head_layer_kind::dense:
      return "dense(" + std::to_string(layer.units) +
             (layer.activation == activation::relu ? ", relu)" : ")");
    case head_layer_kind::dropout: return "dropout(" + detail::exact_text(layer.rate) + ")";
  }
  return {};
}

/// "global_average_pool, dense(256, relu), dense(2)".
[[nodiscard]] inline std::string to_string(std::span<const head_layer> layers) {
  std::string text;
  for (const head_layer& layer : layers) {
    if (!text.empty()) text += ", ";
    text += to_string(layer);
  }
  return text;
}

}  // namespace vggload::network
