// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <vggload/core/error.hpp>

namespace vggload::network {

/// What a batch's predictions are worth.
struct batch_loss {
  double sum = 0;             // of the images' losses: the mean is this by their number
  std::uint64_t correct = 0;  // images whose largest logit is that of their largest label
};

/// Softmax cross-entropy, from logits: of an image with logits x and labels y it is
///
///     - sum of y_i log(softmax(x)_i)  =  sum of y_i (log(sum of exp(x_j - max)) - (x_i - max))
///
/// where nothing overflows. In double. `logits` and `labels`: [images, classes], row-major, FP32; labels are one-hot
/// or shares of classes.
/// `gradients`, where it is not empty, becomes the gradient of the batch's mean loss times `scale`, by the
/// logits: scale (softmax(x)_i sum(y) - y_i) / images.
/// Throws `error` where the sizes disagree, or a label is negative or not finite, with its image.
inline batch_loss softmax_cross_entropy(std::span<const float> logits,
                                        std::span<const float> labels, std::size_t classes,
                                        std::span<float> gradients = {}, double scale = 1) {
  if (classes == 0 || logits.size() % classes != 0 || labels.size() != logits.size() ||
      (!gradients.empty() && gradients.size() != logits.size())) {
    throw error("loss: " + std::to_string(logits.size()) + " logits and " +
                std::to_string(labels.size()) + " labels are not images of " +
                std::to_string(classes) + " classes");
  }
  const std::size_t images = logits.size() / classes;
  const double factor = scale / static_cast<double>(images);
  batch_loss loss;
  for (std::size_t image = 0; image < images; ++image) {
    const auto x = logits.subspan(image * classes, classes);
    const auto y = labels.subspan(image * classes, classes);
    const auto largest = std::ranges::max_element(x);
    double exponentials = 0;
    double label_sum = 0;
    for (std::size_t i = 0; i < classes; ++i) {
      if (!(y[i] >= 0) || !std::isfinite(y[i])) {
        throw error("loss: label " + std::to_string(i) + " of image " + std::to_string(image) +
                    " of the batch is " + std::to_string(y[i]) + ", not a share");
      }
      exponentials += std::exp(double{x[i]} - double{*largest});
      label_sum += double{y[i]};
    }
    const double logarithm = std::log(exponentials);
    for (std::size_t i = 0; i < classes; ++i) {
      // A share of 0 counts nothing, whatever the logit is.
      if (y[i] > 0) loss.sum += double{y[i]} * (logarithm - (double{x[i]} - double{*largest}));
      if (gradients.empty()) continue;
      const double probability = std::exp(double{x[i]} - double{*largest}) / exponentials;
      gradients[image * classes + i] =
          static_cast<float>(factor * (probability * label_sum - double{y[i]}));
    }
    if (largest - x.begin() == std::ranges::max_element(y) - y.begin()) ++loss.correct;
  }
  return loss;
}

}  // namespace vggload::network
