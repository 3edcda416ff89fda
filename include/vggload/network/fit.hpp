// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/head.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/trainer.hpp>

namespace vggload::network {

/// A batch of features with labels: `features()` [size(), ...] and `labels()` [size(), classes], both
/// FP32 and row-major.
template <class B>
concept labelled_features = requires(const B& batch) {
  { batch.features() } -> std::convertible_to<std::span<const float>>;
  { batch.labels() } -> std::convertible_to<std::span<const float>>;
  { batch.size() } -> std::convertible_to<std::size_t>;
};

/// What is read ahead, as `prefetch` gives it: `next()` is a value or nullptr once at each epoch's end,
/// `state()` where it is.
template <class S>
concept read_ahead = requires(S& values, const S& fixed) {
  typename S::value_type;
  { values.next() } -> std::same_as<typename S::value_type*>;
  { fixed.state() } -> std::same_as<sequence_state>;
  { fixed.size() } -> std::convertible_to<std::size_t>;
};

/// Where `fit` gets its batches: a sequence of them, read by the calling thread, or one that is read
/// ahead.
template <class S>
concept feature_source = (sequence<S> || read_ahead<S>)&&labelled_features<sequence_value_t<S>>;

/// Where a training stands after a batch.
struct batch_report {
  std::uint64_t epoch;    // the first is 0
  std::uint64_t batch;    // batches of the epoch that are done
  std::uint64_t batches;  // of the epoch, in all
  metric_sums sums;       // over the epoch so far
  double loss_scale;      // 1 where there is none
  bool updated;           // false where this step was skipped, see `step_result`
};

/// After an epoch.
struct epoch_report {
  std::uint64_t epoch;  // the first is 0
  epoch_metrics metrics;
  bool best;  // whether no epoch before had as low a validation loss
};

struct fit_options {
  /// In all: a training that was resumed goes on to the same number.
  std::uint64_t epochs = 1;
  /// Ends after so many epochs in a row that do not lower the best validation loss; 0: never.
  std::uint64_t patience = 0;
  /// By how much the validation loss has to be lower to count.
  double min_delta = 0;
  /// At the end the weights become those of the epoch with the lowest validation loss. Needs
  /// `training_options::keeps_best`.
  bool restore_best_weights = false;
  /// Ends between two batches; the training can be resumed.
  std::stop_token stop = {};
  /// Called after each batch and epoch, if there is something to call. The trainer's progress is what it
  /// is to go on from: a checkpoint may be written there.
  std::function<void(const batch_report&)> on_batch = {};
  std::function<void(const epoch_report&)> on_epoch = {};
};

/// Why `fit` ended.
enum class fit_end : std::uint8_t { finished, stopped_early, interrupted };

namespace detail {

/// Goes through the epochs of a feature source from a given batch on.
template <class S>
class epoch_reader;

template <sequence S>
class epoch_reader<S> {
 public:
  epoch_reader(S& values, std::shared_ptr<memory_ledger> ledger, std::string_view name)
      : values_(values),
        memory_(vggload::detail::value_place<S>::bytes(values), {}, std::move(ledger), name),
        place_(std::as_const(values), memory_) {}

  [[nodiscard]] std::uint64_t seed() const { return state_of(std::as_const(values_)).seed; }
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(values_.size()); }
  /// The next one of the epoch.
  [[nodiscard]] std::uint64_t batch() const noexcept { return next_; }

  void begin(std::uint64_t epoch, std::uint64_t batch) {
    if constexpr (epoch_sequence<S>) {
      values_.set_epoch(epoch);
    } else {
      for (; epochs_ < epoch; ++epochs_) values_.on_epoch_end();
    }
    epoch_ = epoch;
    next_ = batch;
    if (batch > size()) {
      throw error("fit: the training is behind batch " + std::to_string(batch) +
                  " of an epoch, its sequence has " + std::to_string(size()));
    }
  }

  /// A whole epoch.
  void begin_validation(std::uint64_t epoch) {
    if constexpr (epoch_sequence<S>) values_.set_epoch(epoch);
    epoch_ = epoch;
    next_ = 0;
  }

  /// nullptr at the epoch's end.
  [[nodiscard]] sequence_value_t<S>* next() {
    while (next_ < size()) {
      place_.clear();
      if (read_element(std::as_const(values_), epoch_, static_cast<std::size_t>(next_++),
                       place_.get())) {
        return &place_.get();
      }
    }
    values_.on_epoch_end();
    ++epochs_;
    return nullptr;
  }

 private:
  S& values_;
  arena<host_resource> memory_;
  vggload::detail::value_place<S> place_;
  std::uint64_t epoch_ = 0;
  std::uint64_t next_ = 0;
  // That ended, where the sequence does not know it itself.
  std::uint64_t epochs_ = state_of(std::as_const(values_)).epoch;
};

template <read_ahead S>
class epoch_reader<S> {
 public:
  epoch_reader(S& values, const std::shared_ptr<memory_ledger>& /*ledger*/,
               std::string_view /*name*/)
      : values_(values) {}

  [[nodiscard]] std::uint64_t seed() const { return values_.state().seed; }
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(values_.size()); }
  [[nodiscard]] std::uint64_t batch() const { return values_.state().batch; }

  void begin(std::uint64_t epoch, std::uint64_t batch) {
    const sequence_state state = values_.state();
    ended_ = batch == size() && state.epoch == epoch + 1 && state.batch == 0;
    if (ended_ || (state.epoch == epoch && state.batch == batch)) return;
    throw error("fit: the training goes on at epoch " + std::to_string(epoch) + ", batch " +
                std::to_string(batch) + ", and its batches at epoch " +
                std::to_string(state.epoch) + ", batch " + std::to_string(state.batch));
  }

  /// A whole epoch, behind what is left of one that was interrupted.
  void begin_validation(std::uint64_t /*epoch*/) {
    if (values_.state().batch == 0) return;
    while (values_.next() != nullptr) continue;
  }

  [[nodiscard]] sequence_value_t<S>* next() { return ended_ ? nullptr : values_.next(); }

 private:
  S& values_;
  bool ended_ = false;
};

/// Sums over an epoch of validation; nothing where it was interrupted.
template <class Reader>
[[nodiscard]] std::optional<metric_sums> validate(trainer& model, Reader& batches,
                                                  std::uint64_t epoch,
                                                  const std::stop_token& stop) {
  metric_sums sums;
  batches.begin_validation(epoch);
  while (true) {
    if (stop.stop_requested()) return std::nullopt;
    const auto* const batch = batches.next();
    if (batch == nullptr) break;
    const auto images = static_cast<std::size_t>(batch->size());
    if (images == 0) continue;
    sums.add(model.evaluate(batch->features(), batch->labels(), images), images);
  }
  if (sums.images == 0) throw error("fit: there is nothing to validate with");
  return sums;
}

/// Ends an epoch in the training's books. Returns whether it is the best so far.
inline bool end_epoch(trainer& model, const epoch_metrics& metrics, const fit_options& options) {
  training_progress& progress = model.progress();
  const auto best_loss = [&] { return *progress.history[*progress.best_epoch].val_loss; };
  const bool best =
      metrics.val_loss && (progress.best_epoch ? *metrics.val_loss < best_loss() - options.min_delta
                                               : std::isfinite(*metrics.val_loss));
  progress.history.push_back(metrics);
  if (best) {
    progress.best_epoch = progress.epoch;
    model.head().remember_weights();
  }
  ++progress.epoch;
  progress.batch = 0;
  progress.sums = {};
  const std::uint64_t since =
      progress.best_epoch ? progress.epoch - 1 - *progress.best_epoch : progress.epoch;
  progress.stopped_early = options.patience > 0 && since >= options.patience;
  return best;
}

/// `validation`: a reader, or nullptr.
template <class Training, class Validation>
fit_end run_fit(trainer& model, Training& training, Validation* validation,
                const fit_options& options) {
  training_progress& progress = model.progress();
  const bool scaled = model.options().policy == precision_policy::mixed_float16;
  if (progress.steps > 0 && progress.sequence_seed != training.seed()) {
    throw error("fit: the training began with batches of the seed " +
                std::to_string(progress.sequence_seed) + ", these have the seed " +
                std::to_string(training.seed()));
  }
  progress.sequence_seed = training.seed();
  while (progress.epoch < options.epochs && !progress.stopped_early) {
    const std::size_t batches = training.size();
    training.begin(progress.epoch, progress.batch);
    while (true) {
      if (options.stop.stop_requested()) return fit_end::interrupted;
      const auto* const batch = training.next();
      if (batch == nullptr) break;
      const auto images = static_cast<std::size_t>(batch->size());
      if (images == 0) continue;  // all were skipped
      const step_result result = model.step(batch->features(), batch->labels(), images);
      progress.sums.add(result.loss, images);
      progress.batch = training.batch();
      if (!options.on_batch) continue;
      options.on_batch({progress.epoch, progress.batch, batches, progress.sums,
                        scaled ? model.loss_scale().value() : 1, result.updated});
    }
    progress.batch = batches;
    if (progress.sums.images == 0) throw error("fit: there is nothing to train with");
    epoch_metrics metrics{progress.sums.mean_loss(), progress.sums.accuracy()};
    if (validation != nullptr) {
      const auto sums = validate(model, *validation, progress.epoch, options.stop);
      if (!sums) return fit_end::interrupted;
      metrics.val_loss = sums->mean_loss();
      metrics.val_accuracy = sums->accuracy();
    }
    const std::uint64_t epoch = progress.epoch;
    const bool best = end_epoch(model, metrics, options);
    if (options.on_epoch) options.on_epoch({epoch, metrics, best});
  }
  if (options.restore_best_weights && progress.best_epoch) model.head().recall_weights();
  return progress.stopped_early ? fit_end::stopped_early : fit_end::finished;
}

}  // namespace detail

/// Trains for epochs of `training`, and measures the loss of `validation`, a whole epoch of it, after each.
/// Begins where the trainer's progress is: at the first batch, or where it was interrupted or a checkpoint
/// was written, and then goes on as if there had been no interruption. The history is in the trainer's
/// progress.
///
/// Batches that are read ahead have to be there, too (`resume_from(...)` before `prefetch`). A sequence
/// that does not know its epochs has to be as it was before the first; `on_epoch_end` is called for those
/// that were. Validation has to be the same in each epoch. Batches of 0 images, which lost all of theirs,
/// are passed over.
///
/// Throws what the sequences throw, what `trainer::step` throws, and `error` where an epoch has no images,
/// where the training is of a sequence with another seed or fewer batches, and for patience or best weights without
/// what they need; the progress is then that behind the last batch that was trained.
template <class Training, class Validation>
requires(feature_source<std::remove_cvref_t<Training>>&&
             feature_source<std::remove_cvref_t<Validation>>) fit_end
    fit(trainer& model, Training&& training, Validation&& validation,
        const fit_options& options = {}) {
  if (options.restore_best_weights && !model.options().keeps_best) {
    throw error("fit: the best weights cannot be restored, there is no room for them");
  }
  const std::shared_ptr<memory_ledger>& ledger = model.options().ledger;
  detail::epoch_reader<std::remove_cvref_t<Training>> train(training, ledger, "training batch");
  detail::epoch_reader<std::remove_cvref_t<Validation>> validate(validation, ledger,
                                                                 "validation batch");
  return detail::run_fit(model, train, &validate, options);
}

/// The same without validation.
template <class Training>
requires(feature_source<std::remove_cvref_t<Training>>) fit_end
    fit(trainer& model, Training&& training, const fit_options& options = {}) {
  if (options.patience > 0 || options.restore_best_weights) {
    throw error("fit: what epoch is the best shows in validation only");
  }
  using reader = detail::epoch_reader<std::remove_cvref_t<Training>>;
  reader train(training, model.options().ledger, "training batch");
  return detail::run_fit(model, train, static_cast<reader*>(nullptr), options);
}

/// Measures mean and deviation of what the head's `normalization` layer gets, over the current epoch of
/// a sequence, which stays in it. A channel that does not vary gets the deviation 1. In double, one pass
/// (Welford's). Throws what the sequence throws, and `error` where the head has no such layer or the sequence no
/// images.
template <sequence S>
requires(labelled_features<sequence_value_t<S>>) void adapt_normalization(head& model,
                                                                          const S& batches) {
  arena<host_resource> memory(vggload::detail::value_place<S>::bytes(batches));
  vggload::detail::value_place<S> place(batches, memory);
  std::vector<double> means(model.normalized_channels());
  std::vector<double> squares(means.size());  // of differences from the mean
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(batches.size()); ++i) {
    place.clear();
    if (!read_element(batches, i, place.get())) continue;
    const sequence_value_t<S>& batch = place.get();
    if (batch.size() == 0) continue;
    model.visit_normalization_inputs(batch.features(), static_cast<std::size_t>(batch.size()),
                                     [&](std::span<const float> pixel) {
                                       const double share = 1 / static_cast<double>(++count);
                                       for (std::size_t c = 0; c < pixel.size(); ++c) {
                                         const double difference = double{pixel[c]} - means[c];
                                         means[c] += difference * share;
                                         squares[c] += difference * (double{pixel[c]} - means[c]);
                                       }
                                     });
  }
  if (count == 0) throw error("adapt_normalization: there are no images");
  std::vector<float> mean(means.begin(), means.end());
  std::vector<float> deviation;
  for (std::size_t c = 0; c < means.size(); ++c) {
    const double measured = std::sqrt(squares[c] / static_cast<double>(count));
    // What is left by rounding is no variation.
    deviation.push_back(static_cast<float>(measured > 1e-6 * std::abs(means[c]) ? measured : 1));
  }
  model.set_normalization(mean, deviation);
}

}  // namespace vggload::network
