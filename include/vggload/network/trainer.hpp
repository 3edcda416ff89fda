// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/head.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/loss.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/optimizer.hpp>

namespace vggload::network {

/// A head and how it is trained.
struct training_options {
  /// Of one image: [height, width, channels], as VGG16 without its top gives them, or [values].
  shape features = {};
  /// The last one is `dense(classes)`, whose outputs are the logits.
  std::vector<head_layer> layers = {};
  /// Images that are worked on at once, at most.
  std::size_t max_batch = 32;
  precision_policy policy = precision_policy::f32;
  optimizer_options optimizer = {};
  /// Of `mixed_float16`.
  loss_scale_options loss_scale = {};
  /// Whether the weights of the best epoch are kept, beside those that are trained
  /// (`fit_options::restore_best_weights`).
  bool keeps_best = false;
  /// Of the first weights and of dropout.
  std::uint64_t seed = 0;
  /// Where the memory is entered, if anywhere.
  std::shared_ptr<memory_ledger> ledger = {};
};

/// What a head has to be for this.
[[nodiscard]] inline head_options head_options_of(const training_options& options) {
  return {.features = options.features,
          .layers = options.layers,
          .max_batch = options.max_batch,
          .policy = options.policy,
          .optimizer_state = state_values(options.optimizer),
          .keeps_best = options.keeps_best,
          .seed = options.seed};
}

/// What the training takes: all of it but the batches, exactly. Throws as `plan_head`.
[[nodiscard]] inline head_footprint plan_training(const training_options& options) {
  return plan_head(head_options_of(options));
}

/// How an epoch went: means over its images, as Keras' history has them.
struct epoch_metrics {
  double loss = 0;  // while training: with dropout, and with the weights of each batch's turn
  double accuracy = 0;
  std::optional<double> val_loss = {};  // none without validation
  std::optional<double> val_accuracy = {};
  friend bool operator==(const epoch_metrics&, const epoch_metrics&) = default;
};

/// Sums over images.
struct metric_sums {
  double loss = 0;
  std::uint64_t correct = 0;
  std::uint64_t images = 0;

  void add(const batch_loss& batch, std::size_t count) noexcept {
    loss += batch.sum;
    correct += batch.correct;
    images += count;
  }
  [[nodiscard]] double mean_loss() const noexcept {
    return images == 0 ? 0 : loss / static_cast<double>(images);
  }
  [[nodiscard]] double accuracy() const noexcept {
    return images == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(images);
  }
  friend bool operator==(const metric_sums&, const metric_sums&) = default;
};

/// How far a training has come. With the weights and the optimizer's state, all that is needed to go on
/// as if it had not been interrupted.
struct training_progress {
  std::uint64_t epoch = 0;          // the current one, the first is 0
  std::uint64_t batch = 0;          // the next one in it
  std::uint64_t sequence_seed = 0;  // of the training sequence, see `sequence_state`
  std::uint64_t steps = 0;          // batches of all epochs
  std::uint64_t updates = 0;        // steps that were not skipped
  metric_sums sums = {};            // of the current epoch
  std::vector<epoch_metrics> history = {};
  std::optional<std::uint64_t> best_epoch = {};  // with the lowest validation loss
  bool stopped_early = false;
};

/// What became of one batch.
struct step_result {
  batch_loss loss;
  bool updated;  // false where the loss scale was too large for the gradients
};

/// Trains a head batch by batch: forward, loss, backward, update. Owns all memory that it needs, which is
/// that of `plan_training`. Moves and copies: neither.
class trainer {
 public:
  /// Throws `error` where the options cannot be, and `out_of_memory`.
  explicit trainer(training_options options)
      : options_((check(options.optimizer), std::move(options))),
        scale_(options_.loss_scale),
        head_(head_options_of(options_), options_.ledger) {}
  trainer(const trainer&) = delete;
  trainer& operator=(const trainer&) = delete;
  ~trainer() = default;

  [[nodiscard]] const training_options& options() const noexcept { return options_; }
  [[nodiscard]] network::head& head() noexcept { return head_; }
  [[nodiscard]] const network::head& head() const noexcept { return head_; }
  [[nodiscard]] network::loss_scale& loss_scale() noexcept { return scale_; }
  [[nodiscard]] const network::loss_scale& loss_scale() const noexcept { return scale_; }
  /// Kept by `step` (steps and updates) and `fit` (the rest).
  [[nodiscard]] training_progress& progress() noexcept { return progress_; }
  [[nodiscard]] const training_progress& progress() const noexcept { return progress_; }

  /// One step. `features`: [images, ...], `labels`: [images, classes], FP32, row-major. Throws `error`
  /// where the sizes disagree, where a label is no share, and where the loss is not finite, which no
  /// further step would mend; nothing is updated then.
  step_result step(std::span<const float> features, std::span<const float> labels,
                   std::size_t images) {
    const std::span<const float> logits =
        head_.forward(features, images, head_pass::training, progress_.steps);
    const bool scaled = options_.policy == precision_policy::mixed_float16;
    const double factor = scaled ? scale_.value() : 1;
    const std::span<float> gradients = head_.logit_gradients().first(logits.size());
    step_result result{softmax_cross_entropy(logits, labels, head_.classes(), gradients, factor),
                       true};
    if (!std::isfinite(result.loss.sum)) {
      throw error(
          "training: the loss of step " + std::to_string(progress_.steps + 1) +
          " is not finite; a lower learning rate may help" +
          (scaled ? ", or another policy: values beyond 65504 do not fit into float16" : ""));
    }
    const bool finite = head_.backward(gradients);
    result.updated = finite || !scaled;
    if (result.updated) {
      head_.update(optimizer_step(options_.optimizer, progress_.updates + 1),
                   static_cast<float>(1 / factor));
      ++progress_.updates;
    }
    if (scaled) scale_.update(finite);
    ++progress_.steps;
    return result;
  }

  /// What the predictions are worth, without dropout; nothing is changed. Throws as `step`, but takes
  /// any loss.
  batch_loss evaluate(std::span<const float> features, std::span<const float> labels,
                      std::size_t images) {
    return softmax_cross_entropy(head_.forward(features, images), labels, head_.classes());
  }

 private:
  training_options options_;
  network::loss_scale scale_;
  network::head head_;
  training_progress progress_;
};

}  // namespace vggload::network
