// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/data/random.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/network/head.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/optimizer.hpp>
#include <vggload/network/trainer.hpp>

namespace vggload::network {

namespace detail {

/// Tells whether bytes changed; no protection against those who mean to change them.
class checksum {
 public:
  void add(std::span<const std::byte> bytes) noexcept {
    while (!bytes.empty()) {
      const auto word = bytes.first(std::min(bytes.size(), sizeof(std::uint64_t)));
      std::uint64_t value = 0;
      std::memcpy(&value, word.data(), word.size());
      state_ = counter_random::mix(state_ ^ value);
      bytes = bytes.subspan(word.size());
    }
  }
  void add(std::string_view text) noexcept {
    add(std::as_bytes(std::span(text)));
    state_ = counter_random::mix(state_ ^ text.size());
  }
  [[nodiscard]] std::string text() const { return std::to_string(state_); }

 private:
  std::uint64_t state_ = 0;
};

/// A tensor of a training and where its values are. `Value` is float or const float.
template <class Value>
struct training_tensor {
  tensor_info info;
  std::span<Value> values;
};

[[nodiscard]] inline std::span<const float> values_of(const head& model, std::size_t parameter) {
  return model.values(parameter);
}
[[nodiscard]] inline std::span<float> values_of(head& model, std::size_t parameter) {
  return model.mutable_values(parameter);
}

/// All but the history, in the file's order. `Head` is head or const head.
template <class Head>
[[nodiscard]] auto training_tensors(Head& model) {
  using value = std::conditional_t<std::is_const_v<Head>, const float, float>;
  std::vector<training_tensor<value>> tensors;
  const auto add = [&](const std::string& name, const head_parameter& parameter,
                       std::span<value> values) {
    tensors.push_back({{name, dtype::f32, parameter.shape, values.size_bytes()}, values});
  };
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const head_parameter& parameter = model.parameters()[i];
    add(parameter.name, parameter, values_of(model, i));
    if (!parameter.trained) continue;
    for (std::size_t k = 0; k < model.options().optimizer_state; ++k) {
      add(parameter.name + ".state_" + std::to_string(k + 1), parameter,
          model.optimizer_state(i, k));
    }
    if (model.options().keeps_best) add(parameter.name + ".best", parameter, model.best_values(i));
  }
  return tensors;
}

[[nodiscard]] inline tensor_info history_info(std::uint64_t epochs) {
  return {"history", dtype::f64, {epochs, 4}, epochs * 4 * sizeof(double)};
}

/// What has to be the same where a training goes on.
[[nodiscard]] inline std::vector<metadata_entry> training_identity(
    const trainer& model, std::span<const metadata_entry> context) {
  const training_options& options = model.options();
  std::vector<metadata_entry> entries{{"format", "vggload training 1"},
                                      {"features", to_string(options.features)},
                                      {"layers", to_string(std::span(options.layers))},
                                      {"policy", std::string(name_of(options.policy))},
                                      {"optimizer", to_string(options.optimizer)},
                                      {"seed", std::to_string(options.seed)},
                                      {"keeps_best", options.keeps_best ? "yes" : "no"}};
  if (options.policy == precision_policy::mixed_float16) {
    entries.emplace_back("loss_scale",
                         "initial=" + exact_text(options.loss_scale.initial) +
                             " growth_steps=" + std::to_string(options.loss_scale.growth_steps));
  }
  for (const auto& [key, value] : context) entries.emplace_back("context." + key, value);
  return entries;
}

/// The numbers of a training's metadata, by name, to be written or read.
template <class Visit>
void visit_progress(training_progress& progress, double& scale, std::uint64_t& finite_steps,
                    std::uint64_t& best_epoch, std::uint64_t& stopped_early, const Visit& visit) {
  visit("epoch", progress.epoch);
  visit("batch", progress.batch);
  visit("sequence_seed", progress.sequence_seed);
  visit("steps", progress.steps);
  visit("updates", progress.updates);
  visit("loss_sum", progress.sums.loss);
  visit("correct", progress.sums.correct);
  visit("images", progress.sums.images);
  visit("best_epoch", best_epoch);
  visit("stopped_early", stopped_early);
  visit("scale", scale);
  visit("finite_steps", finite_steps);
}

inline constexpr std::uint64_t no_epoch = std::numeric_limits<std::uint64_t>::max();
inline constexpr double no_metric = -1;  // neither a loss nor an accuracy; both can be a NaN

/// Reads a checkpoint in two passes: the first looks whether all is right and changes nothing.
class training_reader {
 public:
  training_reader(trainer& model, const std::string& path, std::span<const metadata_entry> context)
      : model_(model), file_(input_file(path)), tensors_(training_tensors(model.head())) {
    check_identity(training_identity(model, context));
    read_progress();
    check_tensors();
    check_bytes();
  }

  void load() {
    std::vector<double> history(progress_.history.size() * 4);
    file_.read(0, 0, std::as_writable_bytes(std::span(history)));
    for (std::size_t i = 0; i < progress_.history.size(); ++i) {
      const auto row = std::span(history).subspan(i * 4, 4);
      const auto metric = [](double value) {
        return value == no_metric ? std::nullopt : std::optional(value);
      };
      progress_.history[i] = {row[0], row[1], metric(row[2]), metric(row[3])};
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      file_.read(i + 1, 0, std::as_writable_bytes(tensors_[i].values));
    }
    model_.head().round_weights();
    model_.loss_scale() = scale_;
    model_.progress() = std::move(progress_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": " + what);
  }

  [[nodiscard]] const std::string* find(std::string_view key) const {
    const auto found = std::ranges::find(file_.metadata(), key, &metadata_entry::first);
    return found == file_.metadata().end() ? nullptr : &found->second;
  }

  void check_identity(const std::vector<metadata_entry>& wanted) const {
    const std::string* const format = find("format");
    if (format == nullptr || !format->starts_with("vggload training")) {
      fail("this is no checkpoint of a training");
    }
    for (const auto& [key, value] : wanted) {
      const std::string* const found = find(key);
      if (found == nullptr) fail("the checkpoint does not say its " + in_quotes(key));
      if (*found == value) continue;
      throw error(printable(file_.path()) +
                  ": the checkpoint is of another training: " + in_quotes(key) + " is " +
                  in_quotes(*found) + " there and " + in_quotes(value) + " here");
    }
  }

  template <class Number>
  void read_number(const char* key, Number& number) const {
    const std::string* const text = find(key);
    if (text == nullptr) fail("the checkpoint does not say its " + in_quotes(key));
    const auto read = std::from_chars(text->data(), text->data() + text->size(), number);
    if (read.ec != std::errc{} || read.ptr != text->data() + text->size()) {
      fail("its " + in_quotes(key) + " is " + in_quotes(*text) + ", which is no number");
    }
  }

  void read_progress() {
    double scale = 0;
    std::uint64_t finite_steps = 0;
    std::uint64_t best_epoch = 0;
    std::uint64_t stopped_early = 0;
    visit_progress(progress_, scale, finite_steps, best_epoch, stopped_early,
                   [this](const char* key, auto& number) { read_number(key, number); });
    if (best_epoch != no_epoch) progress_.best_epoch = best_epoch;
    progress_.stopped_early = stopped_early != 0;
    if (best_epoch != no_epoch && best_epoch >= progress_.epoch) {
      fail("its best epoch, " + std::to_string(best_epoch) + ", is none of the " +
           std::to_string(progress_.epoch) + " that it has");
    }
    try {
      scale_.restore(scale, finite_steps);
    } catch (const error& e) {
      fail(e.what());
    }
  }

  void check_tensors() {
    const std::span<const tensor_info> found = file_.tensors();
    if (found.size() != tensors_.size() + 1) {
      fail("it has " + std::to_string(found.size()) + " tensors, not " +
           std::to_string(tensors_.size() + 1));
    }
    for (std::size_t i = 0; i < found.size(); ++i) {
      const tensor_info wanted = i == 0 ? history_info(progress_.epoch) : tensors_[i - 1].info;
      if (found[i].name == wanted.name && found[i].dtype == wanted.dtype &&
          found[i].shape == wanted.shape) {
        continue;
      }
      const auto describe = [](const tensor_info& info) {
        return in_quotes(info.name) + ", " + std::string(name_of(info.dtype)) + " " +
               to_string(info.shape);
      };
      fail("tensor " + std::to_string(i) + " is " + describe(found[i]) + ", not " +
           describe(wanted));
    }
    // As many as the file really has.
    progress_.history.resize(static_cast<std::size_t>(progress_.epoch));
  }

  void check_bytes() const {
    checksum sum;
    for (const auto& [key, value] : file_.metadata()) {
      if (key == "checksum") continue;
      sum.add(key);
      sum.add(value);
    }
    std::array<std::byte, 65536> window;
    for (std::size_t i = 0; i < file_.tensors().size(); ++i) {
      const std::uint64_t bytes = file_.tensors()[i].bytes;
      for (std::uint64_t offset = 0; offset < bytes; offset += window.size()) {
        const auto part = std::span(window).first(
            static_cast<std::size_t>(std::min<std::uint64_t>(window.size(), bytes - offset)));
        file_.read(i, offset, part);
        sum.add(part);
      }
    }
    const std::string* const said = find("checksum");
    if (said == nullptr || *said != sum.text()) {
      fail("the checkpoint is damaged: its checksum is " + sum.text() + ", and it says " +
           (said == nullptr ? "none" : in_quotes(*said)));
    }
  }

  trainer& model_;
  safetensors_reader file_;
  std::vector<training_tensor<float>> tensors_;
  training_progress progress_;
  network::loss_scale scale_{model_.options().loss_scale};
};

}  // namespace detail

/// Writes all that a training needs to go on to one safetensors file, which is replaced whole: weights
/// and the optimizer's state as FP32 tensors, history ([epochs, 4]: loss, accuracy, val_loss,
/// val_accuracy, -1 where there is none) as F64, options and progress as metadata. `context`: what
/// belongs to the training beyond its options (the images' folder, the base's weights); compared when it
/// is resumed. Allocates names and numbers, no tensor. Throws `io_error`.
inline void save_training(const trainer& model, const std::string& path,
                          std::span<const metadata_entry> context = {}) {
  const auto tensors = detail::training_tensors(model.head());
  std::vector<metadata_entry> metadata = detail::training_identity(model, context);
  training_progress progress = model.progress();
  double scale = model.loss_scale().value();
  std::uint64_t finite_steps = model.loss_scale().finite_steps();
  std::uint64_t best_epoch = progress.best_epoch.value_or(detail::no_epoch);
  std::uint64_t stopped_early = progress.stopped_early ? 1 : 0;
  detail::visit_progress(progress, scale, finite_steps, best_epoch, stopped_early,
                         [&](const char* key, auto number) {
                           std::string text;
                           if constexpr (std::is_same_v<decltype(number), double>) {
                             text = detail::exact_text(number);
                           } else {
                             text = std::to_string(number);
                           }
                           metadata.emplace_back(key, std::move(text));
                         });
  std::vector<double> history;
  for (const epoch_metrics& epoch : progress.history) {
    history.insert(history.end(),
                   {epoch.loss, epoch.accuracy, epoch.val_loss.value_or(detail::no_metric),
                    epoch.val_accuracy.value_or(detail::no_metric)});
  }
  detail::checksum sum;
  for (const auto& [key, value] : metadata) {
    sum.add(key);
    sum.add(value);
  }
  sum.add(std::as_bytes(std::span(history)));
  std::vector<tensor_info> infos{detail::history_info(progress.history.size())};
  for (const auto& tensor : tensors) {
    sum.add(std::as_bytes(tensor.values));
    infos.push_back(tensor.info);
  }
  metadata.emplace_back("checksum", sum.text());
  safetensors_writer file(path, infos, metadata);
  file.write_data(file.data_offset(0), std::as_bytes(std::span(history)));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    file.write_data(file.data_offset(i + 1), std::as_bytes(tensors[i].values));
  }
  file.commit();
}

/// Makes a trainer, which was made with the same options, what the one was that was saved; from there it
/// goes on to the same bits. Throws `io_error`, `format_error` where the file is no checkpoint or is
/// damaged, and `error` where it is of other options or another context, with what differs; the trainer
/// is unchanged then, unless the file could be read once and not twice.
inline void resume_training(trainer& model, const std::string& path,
                            std::span<const metadata_entry> context = {}) {
  detail::training_reader(model, path, context).load();
}

}  // namespace vggload::network
