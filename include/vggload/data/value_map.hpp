// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include <vggload/core/error.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/exact_arithmetic.hpp>

namespace vggload::detail {

/// value * scale + offset.
struct linear {
  double scale = 1;
  double offset = 0;

  /// `value * factor + summand` of what this one gives.
  [[nodiscard]] linear then(double factor, double summand) const noexcept {
    return {exact::product(scale, factor), exact::sum(exact::product(offset, factor), summand)};
  }
  /// `(value - mean) / deviation` of what this one gives.
  [[nodiscard]] linear standardised(double mean, double deviation) const noexcept {
    return {exact::quotient(scale, deviation),
            exact::quotient(exact::difference(offset, mean), deviation)};
  }
};

/// A normalisation as linear functions of each channel of the result: before what is asked for of each sample, and
/// after it.
struct value_map {
  std::array<std::uint8_t, 4> from{0, 1, 2, 3};  // the source's channel
  std::array<linear, 4> before{};
  std::array<linear, 4> after{};
};

/// ImageNet's means and standard deviations as the weights were trained with them
/// (keras.applications.imagenet_utils).
inline constexpr std::array<double, 3> caffe_means_bgr{103.939, 116.779, 123.68};
inline constexpr std::array<double, 3> torch_means_rgb{0.485, 0.456, 0.406};
inline constexpr std::array<double, 3> torch_deviations_rgb{0.229, 0.224, 0.225};

/// @throws error where something is given for three channels and there are others, or a number makes no sense
[[nodiscard]] inline value_map make_value_map(const normalisation& options, std::size_t channels) {
  const bool of_channels = options.preprocessing == preprocessing::caffe ||
                           options.preprocessing == preprocessing::torch ||
                           options.featurewise_mean || options.featurewise_deviation;
  if (of_channels && channels != 3) {
    throw error("a normalisation of three channels does not fit images of " +
                std::to_string(channels));
  }
  // Compared with numbers, so that -ffast-math does not take it for granted.
  constexpr double most = 1e30;
  bool sensible = std::abs(options.rescale) <= most;
  for (std::size_t i = 0; i < 3; ++i) {
    if (options.featurewise_mean) sensible &= std::abs(options.featurewise_mean->at(i)) <= most;
    if (options.featurewise_deviation) {
      const float deviation = options.featurewise_deviation->at(i);
      sensible &= deviation >= 0 && deviation <= most;
    }
  }
  if (!sensible) {
    throw error("a number of a normalisation is beyond 1e30, or a deviation is negative");
  }
  value_map map;
  for (std::size_t i = 0; i < channels; ++i) {
    linear& before = map.before.at(i);
    switch (options.preprocessing) {
      case preprocessing::none: break;
      case preprocessing::caffe:
        map.from.at(i) = static_cast<std::uint8_t>(2 - i);
        before = before.then(1, -caffe_means_bgr.at(i));
        break;
      case preprocessing::torch:
        before = before.standardised(0, 255).standardised(torch_means_rgb.at(i),
                                                          torch_deviations_rgb.at(i));
        break;
      case preprocessing::tf: before = before.standardised(0, 127.5).then(1, -1); break;
    }
    if (options.rescale != 0) before = before.then(options.rescale, 0);
    linear& after = map.after.at(i);
    if (options.featurewise_mean) after = after.then(1, -double{options.featurewise_mean->at(i)});
    // Keras' guard against a division by zero.
    constexpr double guard = 1e-6;
    if (options.featurewise_deviation) {
      after =
          after.standardised(0, exact::sum(double{options.featurewise_deviation->at(i)}, guard));
    }
  }
  return map;
}

}  // namespace vggload::detail
