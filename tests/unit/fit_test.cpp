// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Whole trainings: epochs, validation, early stop, interruption, and going on from a checkpoint.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/error.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/random.hpp>
#include <vggload/data/resume.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/fit.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/trainer.hpp>
#include <vggload/network/training_checkpoint.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload::network;
using test::message_of;
using test::temporary_folder;
using vggload::sequence_state;

namespace {

constexpr std::size_t batch_images = 4;
constexpr std::size_t batches_in_all = 5;
constexpr std::size_t values = 6;

/// Features and labels that are the batch's own.
struct batch {
  std::vector<float> numbers;
  std::vector<float> classes;

  [[nodiscard]] std::span<const float> features() const { return numbers; }
  [[nodiscard]] std::span<const float> labels() const { return classes; }
  [[nodiscard]] std::size_t size() const { return classes.size() / 2; }
};

/// Images of two classes: noise around 0.5 and -0.5, new in each epoch. The last batch is smaller. Knows its
/// epochs, and has a seed.
class noise_sequence {
 public:
  using value_type = batch;

  explicit noise_sequence(std::uint64_t seed = 1, double distance = 0.5)
      : seed_(seed), distance_(distance) {}

  [[nodiscard]] std::size_t size() const { return batches_in_all; }
  [[nodiscard]] batch element(std::uint64_t epoch, std::size_t i) const {
    batch made;
    const std::size_t images = i + 1 == batches_in_all ? 2 : batch_images;
    for (std::size_t image = 0; image < images; ++image) {
      vggload::counter_random random(seed_, epoch, i * batch_images + image);
      const bool second = random.unit() < 0.5;
      made.classes.insert(made.classes.end(), {second ? 0.0F : 1.0F, second ? 1.0F : 0.0F});
      for (std::size_t k = 0; k < values; ++k) {
        const double centre = second ? distance_ : -distance_;
        made.numbers.push_back(static_cast<float>(random.uniform(centre - 1, centre + 1)));
      }
    }
    return made;
  }
  [[nodiscard]] batch operator[](std::size_t i) const { return element(epoch_, i); }
  [[nodiscard]] std::uint64_t epoch() const { return epoch_; }
  [[nodiscard]] std::uint64_t seed() const { return seed_; }
  void set_epoch(std::uint64_t epoch) { epoch_ = epoch; }
  void on_epoch_end() { ++epoch_; }

 private:
  std::uint64_t seed_;
  double distance_;
  std::uint64_t epoch_ = 0;
};
static_assert(vggload::epoch_sequence<noise_sequence> && feature_source<noise_sequence>);

/// The same, but that it does not know its epochs.
class plain_sequence {
 public:
  using value_type = batch;
  [[nodiscard]] std::size_t size() const { return base_.size(); }
  [[nodiscard]] batch operator[](std::size_t i) const { return base_[i]; }
  void on_epoch_end() { base_.on_epoch_end(); }

 private:
  noise_sequence base_;
};
static_assert(!vggload::epoch_sequence<plain_sequence> && feature_source<plain_sequence>);

/// The same for each epoch.
struct fixed_validation : noise_sequence {
  fixed_validation() : noise_sequence(99) {}
  [[nodiscard]] batch element(std::uint64_t /*epoch*/, std::size_t i) const {
    return noise_sequence::element(0, i);
  }
};

/// Batches whose memory is an arena's.
class planned_batch {
 public:
  planned_batch(std::span<float> numbers, std::span<float> classes)
      : numbers_(numbers), classes_(classes) {}
  [[nodiscard]] std::span<const float> features() const { return numbers_.first(size_ * values); }
  [[nodiscard]] std::span<const float> labels() const { return classes_.first(size_ * 2); }
  [[nodiscard]] std::size_t size() const { return size_; }
  void fill(const batch& from) {
    size_ = from.size();
    std::ranges::copy(from.numbers, numbers_.begin());
    std::ranges::copy(from.classes, classes_.begin());
  }

 private:
  std::span<float> numbers_;
  std::span<float> classes_;
  std::size_t size_ = 0;
};

struct planned_storage {
  std::vector<planned_batch> batches;
  planned_batch& operator[](std::size_t i) { return batches[i]; }
};

struct planned_sequence : noise_sequence {
  using value_type = planned_batch;
  static constexpr std::size_t number_bytes = 128;
  static constexpr std::size_t class_bytes = 64;

  [[nodiscard]] auto element(std::uint64_t epoch, std::size_t i) const {
    return [this, epoch, i](planned_batch& to) { to.fill(noise_sequence::element(epoch, i)); };
  }
  [[nodiscard]] auto operator[](std::size_t i) const { return element(epoch(), i); }
  [[nodiscard]] static std::size_t storage_bytes(std::size_t n) {
    return n * (number_bytes + class_bytes);
  }
  template <class Arena>
  [[nodiscard]] planned_storage make_storage(Arena& arena, std::size_t n) const {
    planned_storage storage;
    for (std::size_t i = 0; i < n; ++i) {
      const std::span<std::byte> numbers = arena.allocate("features", number_bytes);
      const std::span<std::byte> classes = arena.allocate("labels", class_bytes);
      storage.batches.emplace_back(
          std::span(reinterpret_cast<float*>(numbers.data()), number_bytes / sizeof(float)),
          std::span(reinterpret_cast<float*>(classes.data()), class_bytes / sizeof(float)));
    }
    return storage;
  }
};
static_assert(vggload::planned_sequence<planned_sequence> && feature_source<planned_sequence>);

training_options options_of(precision_policy policy = precision_policy::f32,
                            optimizer_kind kind = optimizer_kind::adam) {
  return {
      .features = {1, 2, 3},
      .layers = {flatten(), normalization(), dense(8, activation::relu), dropout(0.2), dense(2)},
      .max_batch = batch_images,
      .policy = policy,
      .optimizer = {.kind = kind, .learning_rate = 0.02},
      .loss_scale = {.initial = 0x1p24, .growth_steps = 3},
      .keeps_best = true,
      .seed = 5};
}

/// All bits that a training is.
std::string bits_of(const trainer& model) {
  const temporary_folder folder;
  save_training(model, folder.file("bits"));
  return test::read_file(folder.file("bits"));
}

constexpr std::uint64_t epochs = 4;

/// The training that others are compared with.
std::string uninterrupted(const training_options& options) {
  trainer model(options);
  CHECK(fit(model, noise_sequence(), fixed_validation(), {.epochs = epochs}) == fit_end::finished);
  return bits_of(model);
}

}  // namespace

TEST_CASE("a training learns, and its history is what its batches were") {
  trainer model(options_of());
  noise_sequence training;
  fixed_validation validation;
  adapt_normalization(model.head(), training);
  std::vector<epoch_report> reports;
  std::uint64_t batches = 0;
  fit_options how{.epochs = 30};
  how.on_epoch = [&](const epoch_report& report) { reports.push_back(report); };
  how.on_batch = [&](const batch_report& report) {
    CHECK(report.epoch == batches / batches_in_all);
    CHECK(report.batch == batches % batches_in_all + 1);
    CHECK(report.batches == batches_in_all);
    CHECK(report.sums.images == (report.batch == batches_in_all ? 18 : report.batch * 4));
    CHECK(report.loss_scale == 1);
    CHECK(report.updated);
    ++batches;
  };
  CHECK(fit(model, training, validation, how) == fit_end::finished);
  CHECK(batches == 30 * batches_in_all);
  const auto& history = model.progress().history;
  REQUIRE(history.size() == 30);
  REQUIRE(reports.size() == 30);
  CHECK(history[0].loss > 0.5);
  CHECK(history[29].loss < 0.35);
  CHECK(*history[29].val_loss < 0.3);
  CHECK(*history[29].val_accuracy > 0.9);
  std::uint64_t best = 0;
  for (std::uint64_t epoch = 0; epoch < 30; ++epoch) {
    CHECK(reports[epoch].epoch == epoch);
    CHECK(reports[epoch].metrics == history[epoch]);
    const bool better = epoch == 0 || *history[epoch].val_loss < *history[best].val_loss;
    if (better) best = epoch;
    CHECK(reports[epoch].best == better);
  }
  CHECK(model.progress().best_epoch == best);
  CHECK(training.epoch() == 30);

  // The last validation once more, image by image.
  metric_sums sums;
  for (std::size_t i = 0; i < batches_in_all; ++i) {
    const batch each = validation.element(0, i);
    sums.add(model.evaluate(each.numbers, each.classes, each.size()), each.size());
  }
  CHECK(sums.images == 18);
  CHECK(history[29].val_loss == sums.mean_loss());
  CHECK(history[29].val_accuracy == sums.accuracy());
}

TEST_CASE("a training's loss is the mean over its images, the small last batch included") {
  // Nothing is learnt at the rate 0, nothing dropped: so all images have the first weights' losses.
  training_options options = options_of();
  options.layers = {flatten(), dense(2)};
  options.optimizer.learning_rate = 0;
  trainer model(options);
  double sum = 0;
  const noise_sequence training;
  for (std::size_t i = 0; i < batches_in_all; ++i) {
    const batch each = training.element(0, i);
    for (std::size_t image = 0; image < each.size(); ++image) {
      sum += model
                 .evaluate(std::span(each.numbers).subspan(image * values, values),
                           std::span(each.classes).subspan(image * 2, 2), 1)
                 .sum;
    }
  }
  fit(model, noise_sequence());
  CHECK(model.progress().history[0].loss == doctest::Approx(sum / 18));
  CHECK_FALSE(model.progress().history[0].val_loss);
}

TEST_CASE("normalization makes means 0 and deviations 1") {
  for (const bool before_pooling : {false, true}) {
    training_options options = options_of();
    options.features = {1, 2, 3};
    options.layers = {dense(3)};
    options.layers.insert(
        options.layers.begin(),
        before_pooling ? std::initializer_list<head_layer>{normalization(), global_average_pool()}
                       : std::initializer_list<head_layer>{global_average_pool(), normalization()});
    trainer model(options);
    const noise_sequence training;
    adapt_normalization(model.head(), training);
    // In two passes, in double.
    std::array<std::vector<double>, 3> channels;
    for (std::size_t i = 0; i < batches_in_all; ++i) {
      const std::vector<float> numbers = training.element(0, i).numbers;
      for (std::size_t k = 0; k < numbers.size(); k += values) {
        for (std::size_t c = 0; c < 3; ++c) {
          const double first{numbers[k + c]};
          const double second{numbers[k + 3 + c]};
          if (before_pooling) {
            channels[c].insert(channels[c].end(), {first, second});
          } else {
            channels[c].push_back((first + second) / 2);
          }
        }
      }
    }
    for (std::size_t c = 0; c < 3; ++c) {
      double mean = 0;
      for (const double value : channels[c]) mean += value;
      mean /= static_cast<double>(channels[c].size());
      double variance = 0;
      for (const double value : channels[c]) variance += (value - mean) * (value - mean);
      variance /= static_cast<double>(channels[c].size());
      CHECK(model.head().values(0)[c] == doctest::Approx(mean));
      CHECK(model.head().values(1)[c] == doctest::Approx(std::sqrt(variance)));
    }
    CHECK(training.epoch() == 0);
  }
}

TEST_CASE("a channel that does not vary is not blown up") {
  struct constant {
    using value_type = batch;
    [[nodiscard]] static std::size_t size() { return 3; }
    [[nodiscard]] batch operator[](std::size_t i) const {
      return {{0.1F, 7, static_cast<float>(i)}, {1, 0}};
    }
    void on_epoch_end() {}
  };
  trainer model({.features = {3}, .layers = {normalization(), dense(2)}});
  adapt_normalization(model.head(), constant());
  const auto deviations = model.head().values(1);
  CHECK(deviations[0] == 1);
  CHECK(deviations[1] == 1);
  CHECK(deviations[2] == doctest::Approx(std::sqrt(2.0 / 3)));
  CHECK(model.head().values(0)[0] == 0.1F);
}

TEST_CASE("equal trainings have equal bits, however their batches come") {
  const std::string wanted = uninterrupted(options_of());
  const auto bits = [](auto&& training, auto&& validation) {
    trainer model(options_of());
    fit(model, training, validation, {.epochs = epochs});
    return bits_of(model);
  };
  CHECK(bits(noise_sequence(), fixed_validation()) == wanted);
  CHECK(bits(planned_sequence(), fixed_validation()) == wanted);
  CHECK(bits(noise_sequence() | vggload::prefetch({.workers = 3}),
             fixed_validation() | vggload::prefetch({.workers = 2})) == wanted);
  CHECK(bits(planned_sequence() | vggload::prefetch({.workers = 0}), fixed_validation()) == wanted);
  // Another seed is another training. (This one has none, which the checkpoint says.)
  CHECK(bits(noise_sequence(2), fixed_validation()) != wanted);
  trainer plain(options_of());
  fit(plain, plain_sequence(), fixed_validation(), {.epochs = epochs});
  plain.progress().sequence_seed = 1;
  CHECK(bits_of(plain) == wanted);
}

TEST_CASE("a training that is interrupted at any batch goes on to the same bits") {
  const std::vector<training_options> all{
      options_of(precision_policy::f32, optimizer_kind::sgd),
      options_of(precision_policy::f32, optimizer_kind::momentum),
      options_of(),
      options_of(precision_policy::mixed_float16),
      options_of(precision_policy::mixed_bfloat16, optimizer_kind::momentum),
  };
  const temporary_folder folder;
  const std::string path = folder.file("checkpoint.safetensors");
  for (const training_options& options : all) {
    CAPTURE(to_string(options.optimizer));
    CAPTURE(name_of(options.policy));
    const std::string wanted = uninterrupted(options);
    for (std::uint64_t stop_at = 1; stop_at <= epochs * batches_in_all; ++stop_at) {
      CAPTURE(stop_at);
      {
        trainer model(options);
        std::stop_source stop;
        fit_options how{.epochs = epochs, .stop = stop.get_token()};
        how.on_batch = [&](const batch_report&) {
          if (model.progress().steps != stop_at) return;
          save_training(model, path);
          stop.request_stop();
        };
        REQUIRE(fit(model, noise_sequence(), fixed_validation(), how) == fit_end::interrupted);
      }
      const auto state = [&](const trainer& model) {
        return sequence_state{1, model.progress().epoch, model.progress().batch};
      };
      const auto finish = [&](auto&& with) {
        trainer model(options);
        resume_training(model, path);
        with(model);
        return bits_of(model);
      };
      CHECK(finish([&](trainer& model) {
              fit(model, noise_sequence(), fixed_validation(), {.epochs = epochs});
            }) == wanted);
      if (stop_at % 3 != 0) continue;
      CHECK(finish([&](trainer& model) {
              fit(model,
                  noise_sequence() | vggload::resume_from(state(model)) |
                      vggload::prefetch({.workers = 2}),
                  fixed_validation(), {.epochs = epochs});
            }) == wanted);
      CHECK(finish([&](trainer& model) {
              model.progress().sequence_seed = 0;  // this sequence has none
              fit(model, plain_sequence(), fixed_validation(), {.epochs = epochs});
              model.progress().sequence_seed = 1;
            }) == wanted);
    }
  }
}

TEST_CASE("the same sequences and trainer go on after an interruption, in validation too") {
  const std::string wanted = uninterrupted(options_of());
  /// Asks for the end at the n-th batch of validation.
  struct stopping_validation : fixed_validation {
    [[nodiscard]] batch element(std::uint64_t epoch, std::size_t i) const {
      if (++*count == 8) stop->request_stop();
      return fixed_validation::element(epoch, i);
    }
    [[nodiscard]] batch operator[](std::size_t i) const { return element(0, i); }
    std::shared_ptr<int> count = std::make_shared<int>(0);
    std::stop_source* stop = nullptr;
  };
  const auto interrupted_twice = [&](auto&& training, auto&& adapt) {
    trainer model(options_of());
    std::stop_source in_validation;
    stopping_validation base;
    base.stop = &in_validation;
    auto validation = adapt(base);
    CHECK(fit(model, training, validation, {.epochs = epochs, .stop = in_validation.get_token()}) ==
          fit_end::interrupted);
    CHECK(model.progress().epoch == 1);
    CHECK(model.progress().batch == batches_in_all);
    CHECK(model.progress().history.size() == 1);
    std::stop_source in_training;
    fit_options how{.epochs = epochs, .stop = in_training.get_token()};
    how.on_batch = [&](const batch_report& report) {
      if (report.epoch == 2 && report.batch == 2) in_training.request_stop();
    };
    CHECK(fit(model, training, validation, how) == fit_end::interrupted);
    CHECK(model.progress().epoch == 2);
    CHECK(model.progress().batch == 2);
    CHECK(fit(model, training, validation, {.epochs = epochs}) == fit_end::finished);
    return bits_of(model);
  };
  const auto as_it_is = [](stopping_validation& base) { return base; };
  const auto read_ahead = [](stopping_validation& base) {
    return base | vggload::prefetch({.workers = 0});
  };
  CHECK(interrupted_twice(noise_sequence(), as_it_is) == wanted);
  CHECK(interrupted_twice(noise_sequence() | vggload::prefetch({.workers = 2}), as_it_is) ==
        wanted);
  CHECK(interrupted_twice(noise_sequence() | vggload::prefetch({.workers = 2}), read_ahead) ==
        wanted);
}

TEST_CASE("an epoch's checkpoint goes on to more epochs, as if they had been asked for at once") {
  const temporary_folder folder;
  trainer first(options_of());
  fit_options how{.epochs = 2};
  how.on_epoch = [&](const epoch_report&) { save_training(first, folder.file("checkpoint")); };
  fit(first, noise_sequence(), fixed_validation(), how);
  trainer second(options_of());
  resume_training(second, folder.file("checkpoint"));
  CHECK(second.progress().epoch == 2);
  CHECK(second.progress().batch == 0);
  CHECK(second.progress().history == first.progress().history);
  fit(second, noise_sequence(), fixed_validation(), {.epochs = epochs});
  CHECK(bits_of(second) == uninterrupted(options_of()));
  // What is finished stays as it is.
  CHECK(fit(second, noise_sequence(), fixed_validation(), {.epochs = epochs}) == fit_end::finished);
  CHECK(bits_of(second) == uninterrupted(options_of()));
}

TEST_CASE("early stop after so many epochs without a better one, with the best one's weights") {
  // Noise alone: nothing can be learnt, and what is learnt makes validation worse soon.
  training_options options = options_of();
  options.optimizer.learning_rate = 0.1;
  noise_sequence training(3, 0);
  struct noise_validation : noise_sequence {
    noise_validation() : noise_sequence(4, 0) {}
    [[nodiscard]] batch element(std::uint64_t /*epoch*/, std::size_t i) const {
      return noise_sequence::element(0, i);
    }
  };
  trainer model(options);
  fit_options how{.epochs = 100, .patience = 3, .restore_best_weights = true};
  std::vector<float> best;
  how.on_epoch = [&](const epoch_report& report) {
    if (report.best) best.assign(model.head().values(2).begin(), model.head().values(2).end());
  };
  CHECK(fit(model, training, noise_validation(), how) == fit_end::stopped_early);
  const training_progress& progress = model.progress();
  REQUIRE(progress.best_epoch);
  CHECK(progress.history.size() == *progress.best_epoch + 4);
  CHECK(progress.stopped_early);
  CHECK(std::ranges::equal(model.head().values(2), best));
  for (const epoch_metrics& epoch : progress.history) {
    CHECK(*epoch.val_loss >= *progress.history[*progress.best_epoch].val_loss);
  }
  metric_sums sums;
  for (std::size_t i = 0; i < batches_in_all; ++i) {
    const batch each = noise_validation().element(0, i);
    sums.add(model.evaluate(each.numbers, each.classes, each.size()), each.size());
  }
  CHECK(sums.mean_loss() == *progress.history[*progress.best_epoch].val_loss);

  // It stays stopped, and without patience it is not.
  CHECK(fit(model, training, noise_validation(), {.epochs = 100, .patience = 3}) ==
        fit_end::stopped_early);
  trainer impatient(options);
  CHECK(fit(impatient, training, noise_validation(), {.epochs = 12}) == fit_end::finished);
  CHECK(impatient.progress().history.size() == 12);

  SUBCASE("a difference that is too small does not count") {
    trainer picky(options);
    CHECK(fit(picky, training, noise_validation(),
              {.epochs = 100, .patience = 2, .min_delta = 10}) == fit_end::stopped_early);
    CHECK(picky.progress().best_epoch == 0);
    CHECK(picky.progress().history.size() == 3);
  }
  SUBCASE("and it stops the same when it is resumed on the way") {
    const temporary_folder folder;
    const std::string path = folder.file("checkpoint");
    trainer first(options);
    fit_options shorter{.epochs = *progress.best_epoch + 2, .patience = 3};
    fit(first, training, noise_validation(), shorter);
    save_training(first, path);
    trainer second(options);
    resume_training(second, path);
    CHECK(fit(second, training, noise_validation(),
              {.epochs = 100, .patience = 3, .restore_best_weights = true}) ==
          fit_end::stopped_early);
    CHECK(bits_of(second) == bits_of(model));
  }
}

TEST_CASE("batches that lost all images are passed over, and skipped ones, too") {
  struct gaps : noise_sequence {
    [[nodiscard]] auto element(std::uint64_t epoch, std::size_t i) const {
      return [this, epoch, i](batch& to) {
        to = noise_sequence::element(epoch, i);
        if (i == 1) to = {};
        return i != batches_in_all - 1;  // the last one is skipped
      };
    }
    [[nodiscard]] auto operator[](std::size_t i) const { return element(epoch(), i); }
  };
  trainer model(options_of());
  std::uint64_t images = 0;
  fit_options how{.epochs = 2};
  how.on_batch = [&](const batch_report& report) { images = report.sums.images; };
  fit(model, gaps(), how);
  CHECK(images == 12);
  CHECK(model.progress().steps == 6);
  CHECK(model.progress().history.size() == 2);

  // All of an epoch was given where the last ones were skipped, too, and validation is interrupted.
  struct ending_validation : fixed_validation {
    [[nodiscard]] batch element(std::uint64_t epoch, std::size_t i) const {
      stop->request_stop();
      return fixed_validation::element(epoch, i);
    }
    [[nodiscard]] batch operator[](std::size_t i) const { return element(0, i); }
    std::stop_source* stop = nullptr;
  };
  trainer interrupted(options_of());
  std::stop_source stop;
  ending_validation ending;
  ending.stop = &stop;
  auto read_ahead = gaps() | vggload::prefetch({.workers = 0});
  CHECK(fit(interrupted, read_ahead, ending, {.epochs = 2, .stop = stop.get_token()}) ==
        fit_end::interrupted);
  CHECK(interrupted.progress().batch == batches_in_all);
  CHECK(fit(interrupted, read_ahead, fixed_validation(), {.epochs = 2}) == fit_end::finished);
  CHECK(interrupted.progress().steps == 6);

  struct nothing : noise_sequence {
    [[nodiscard]] static std::size_t size() { return 0; }
  };
  CHECK(message_of<vggload::error>([&] {
          fit(model, nothing(), {.epochs = 3});
        }).find("nothing to train with") != std::string::npos);
  trainer fresh(options_of());
  CHECK(message_of<vggload::error>([&] { fit(fresh, noise_sequence(), nothing()); }) ==
        "fit: there is nothing to validate with");
}

TEST_CASE("what a sequence throws comes out, and the training goes on behind it") {
  struct failing : noise_sequence {
    [[nodiscard]] batch element(std::uint64_t epoch, std::size_t i) const {
      if (epoch == 1 && i == 2 && *broken) throw std::runtime_error("unreadable");
      return noise_sequence::element(epoch, i);
    }
    [[nodiscard]] batch operator[](std::size_t i) const { return element(epoch(), i); }
    std::shared_ptr<bool> broken = std::make_shared<bool>(true);
  };
  trainer model(options_of());
  failing training;
  CHECK(message_of<std::runtime_error>(
            [&] { fit(model, training, fixed_validation(), {.epochs = epochs}); }) == "unreadable");
  CHECK(model.progress().epoch == 1);
  CHECK(model.progress().batch == 2);
  *training.broken = false;
  fit(model, training, fixed_validation(), {.epochs = epochs});
  CHECK(bits_of(model) == uninterrupted(options_of()));
}

TEST_CASE("what does not go together is refused") {
  trainer model(options_of());
  fit(model, noise_sequence(), fixed_validation(), {.epochs = 1});
  const auto refused = [&](auto&& training, const fit_options& how) {
    return message_of<vggload::error>([&] { fit(model, training, fixed_validation(), how); });
  };
  CHECK(refused(noise_sequence(7), {.epochs = 2}) ==
        "fit: the training began with batches of the seed 1, these have the seed 7");
  CHECK(refused(noise_sequence() | vggload::prefetch({.workers = 0}), {.epochs = 2}) ==
        "fit: the training goes on at epoch 1, batch 0, and its batches at epoch 0, batch 0");
  CHECK(message_of<vggload::error>([&] { fit(model, noise_sequence(), {.patience = 1}); }) ==
        "fit: what epoch is the best shows in validation only");
  training_options roomless = options_of();
  roomless.keeps_best = false;
  trainer without(roomless);
  CHECK(message_of<vggload::error>([&] {
          fit(without, noise_sequence(), fixed_validation(), {.restore_best_weights = true});
        }) == "fit: the best weights cannot be restored, there is no room for them");
  model.progress().batch = 9;
  CHECK(refused(noise_sequence(), {.epochs = 2}) ==
        "fit: the training is behind batch 9 of an epoch, its sequence has 5");
}

TEST_CASE("the ledger has the batches, too") {
  training_options options = options_of();
  options.ledger = std::make_shared<vggload::memory_ledger>();
  trainer model(options);
  fit_options how{.epochs = 1};
  std::uint64_t live = 0;
  how.on_batch = [&](const batch_report&) { live = options.ledger->live_bytes(); };
  fit(model, planned_sequence(), planned_sequence(), how);
  std::uint64_t pieces = 0;
  for (const head_piece& piece : plan_training(options).pieces) pieces += piece.bytes;
  CHECK(live == pieces + 2 * (128 + 64));
  CHECK(options.ledger->live_bytes() == pieces);
}

TEST_CASE("a checkpoint is a safetensors file with names, shapes, options and history") {
  const temporary_folder folder;
  const std::string path = folder.file("checkpoint.safetensors");
  training_options options = options_of();
  trainer model(options);
  fit(model, noise_sequence(), fixed_validation(), {.epochs = 2});
  const std::vector<vggload::metadata_entry> context{{"folder", "flowers, 256 images"}};
  save_training(model, path, context);
  const vggload::safetensors_reader file{vggload::input_file(path)};
  std::string names;
  for (const vggload::tensor_info& info : file.tensors()) {
    names += info.name + " " + to_string(info.shape) + "\n";
  }
  CHECK(names ==
        "history [2, 4]\n"
        "normalization.mean [6]\n"
        "normalization.deviation [6]\n"
        "dense_1.kernel [6, 8]\n"
        "dense_1.kernel.state_1 [6, 8]\n"
        "dense_1.kernel.state_2 [6, 8]\n"
        "dense_1.kernel.best [6, 8]\n"
        "dense_1.bias [8]\n"
        "dense_1.bias.state_1 [8]\n"
        "dense_1.bias.state_2 [8]\n"
        "dense_1.bias.best [8]\n"
        "dense_2.kernel [8, 2]\n"
        "dense_2.kernel.state_1 [8, 2]\n"
        "dense_2.kernel.state_2 [8, 2]\n"
        "dense_2.kernel.best [8, 2]\n"
        "dense_2.bias [2]\n"
        "dense_2.bias.state_1 [2]\n"
        "dense_2.bias.state_2 [2]\n"
        "dense_2.bias.best [2]\n");
  std::array<double, 8> history{};
  file.read(0, 0, std::as_writable_bytes(std::span(history)));
  CHECK(history[4] == model.progress().history[1].loss);
  CHECK(history[7] == *model.progress().history[1].val_accuracy);
  const auto metadata = [&](std::string_view key) {
    const auto found = std::ranges::find(file.metadata(), key, &vggload::metadata_entry::first);
    return found == file.metadata().end() ? "none" : found->second;
  };
  CHECK(metadata("layers") == "flatten, normalization, dense(8, relu), dropout(0.2), dense(2)");
  CHECK(metadata("features") == "[1, 2, 3]");
  CHECK(metadata("policy") == "f32");
  CHECK(metadata("epoch") == "2");
  CHECK(metadata("steps") == "10");
  CHECK(metadata("context.folder") == "flowers, 256 images");
  CHECK(folder.count() == 1);
}

TEST_CASE("no validation and one that is no number are kept apart") {
  const temporary_folder folder;
  trainer saved(options_of());
  const double nan = std::nan("");
  saved.progress().history = {{0.5, 0.25}, {0.5, 0.25, nan, 0.75}, {0.5, 0.25, 2.0, 0.0}};
  saved.progress().epoch = 3;
  save_training(saved, folder.file("checkpoint"));
  trainer model(options_of());
  resume_training(model, folder.file("checkpoint"));
  const std::vector<epoch_metrics>& history = model.progress().history;
  REQUIRE(history.size() == 3);
  CHECK(history[0] == epoch_metrics{0.5, 0.25});
  REQUIRE(history[1].val_loss);
  CHECK(std::isnan(*history[1].val_loss));
  CHECK(history[1].val_accuracy == 0.75);
  CHECK(history[2] == epoch_metrics{0.5, 0.25, 2.0, 0.0});
}

TEST_CASE("a checkpoint of another training is refused, with what differs") {
  const temporary_folder folder;
  const std::string path = folder.file("checkpoint");
  const training_options options = options_of(precision_policy::mixed_float16);
  trainer saved(options);
  fit(saved, noise_sequence(), fixed_validation(), {.epochs = 1});
  save_training(saved, path, std::vector<vggload::metadata_entry>{{"folder", "a"}});
  const auto refused = [&](const std::function<void(training_options&)>& change,
                           const std::string& context = "a") {
    training_options other = options;
    change(other);
    trainer model(other);
    const std::string before = bits_of(model);
    std::string message = message_of<vggload::error>([&] {
      resume_training(model, path, std::vector<vggload::metadata_entry>{{"folder", context}});
    });
    CHECK(bits_of(model) == before);
    REQUIRE(message.starts_with(path + ": "));
    return message.substr(path.size() + 2);
  };
  const std::string another = "the checkpoint is of another training: ";
  CHECK(
      refused([](training_options& o) { o.layers[2].units = 9; }) ==
      another +
          "'layers' is 'flatten, normalization, dense(8, relu), dropout(0.2), dense(2)' there and "
          "'flatten, normalization, dense(9, relu), dropout(0.2), dense(2)' here");
  CHECK(refused([](training_options& o) {
          o.features = {2, 1, 3};
        }) == another + "'features' is '[1, 2, 3]' there and '[2, 1, 3]' here");
  CHECK(refused([](training_options& o) { o.seed = 6; }) ==
        another + "'seed' is '5' there and '6' here");
  CHECK(refused([](training_options& o) { o.policy = precision_policy::f32; }) ==
        another + "'policy' is 'mixed_float16' there and 'f32' here");
  CHECK(refused([](training_options& o) { o.keeps_best = false; }) ==
        another + "'keeps_best' is 'yes' there and 'no' here");
  CHECK(refused([](training_options& o) {
          o.optimizer.learning_rate = 0.025;
        }).find("learning_rate=0.02,") != std::string::npos);
  CHECK(refused([](training_options& o) {
          o.loss_scale.growth_steps = 9;
        }).find("growth_steps=3") != std::string::npos);
  CHECK(refused([](training_options&) {}, "b") ==
        another + "'context.folder' is 'a' there and 'b' here");
  trainer model(options);
  CHECK(message_of<vggload::error>([&] {
          resume_training(model, path, std::vector<vggload::metadata_entry>{{"weights", "w"}});
        }) == path + ": the checkpoint does not say its 'context.weights'");
  // How much room there is for a batch makes no difference.
  training_options larger = options;
  larger.max_batch = 64;
  trainer roomy(larger);
  resume_training(roomy, path, std::vector<vggload::metadata_entry>{{"folder", "a"}});
  CHECK(roomy.progress().epoch == 1);
}

TEST_CASE("a damaged checkpoint is refused, whichever byte it is, and changes nothing") {
  const temporary_folder folder;
  const std::string path = folder.file("checkpoint");
  trainer model(options_of());
  fit(model, noise_sequence(), fixed_validation(), {.epochs = 1});
  save_training(model, path);
  const std::string whole = test::read_file(path);
  trainer other(options_of());
  const std::string before = bits_of(other);
  const auto refused = [&](const std::string& bytes) {
    folder.write("damaged", bytes);
    try {
      resume_training(other, folder.file("damaged"));
    } catch (const vggload::error& e) {
      return std::string(e.what()).starts_with(folder.file("damaged") + ": ");
    }
    return false;
  };
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < whole.size(); i += 3) {
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x11);
    if (!refused(bytes)) ++accepted;
  }
  CHECK(accepted == 0);
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    CHECK(refused(whole.substr(0, size)));
  }
  CHECK(bits_of(other) == before);
  const std::string last = whole.substr(0, whole.size() - 1) + static_cast<char>(whole.back() ^ 1);
  folder.write("damaged", last);
  CHECK(message_of<vggload::format_error>([&] {
          resume_training(other, folder.file("damaged"));
        }).find("the checkpoint is damaged: its checksum is ") != std::string::npos);

  // A file of weights is none.
  const std::array<vggload::tensor_info, 1> infos{
      {{"weights", vggload::dtype::f32, {1}, sizeof(float)}}};
  vggload::safetensors_writer weights(folder.file("weights"), infos);
  weights.write_data(0, std::as_bytes(std::span<const float>(std::array{1.0F})));
  weights.commit();
  CHECK(message_of<vggload::format_error>([&] {
          resume_training(other, folder.file("weights"));
        }) == folder.file("weights") + ": this is no checkpoint of a training");
  CHECK_THROWS_AS(resume_training(other, folder.file("absent")), vggload::io_error);
  CHECK_THROWS_AS(save_training(other, folder.file("no/folder")), vggload::io_error);
}
