// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/vgg16/layers.hpp>

namespace vggload::vgg16 {

/// What the network is run for.
enum class pass_mode : std::uint8_t {
  inference,  // the forward pass alone
  frozen,     // training of the three dense layers on a base that stays as it is
  training,   // training of all layers
};

/// How weights are updated. Momentum keeps one FP32 value for each weight that is trained, Adam two.
enum class optimizer_kind : std::uint8_t { sgd, momentum, adam };

/// "inference", "frozen", "training".
[[nodiscard]] constexpr std::string_view name_of(pass_mode mode) noexcept {
  if (mode == pass_mode::inference) return "inference";
  return mode == pass_mode::frozen ? "frozen" : "training";
}

/// "sgd", "momentum", "adam".
[[nodiscard]] constexpr std::string_view name_of(optimizer_kind optimizer) noexcept {
  if (optimizer == optimizer_kind::sgd) return "sgd";
  return optimizer == optimizer_kind::momentum ? "momentum" : "adam";
}

struct plan_options {
  /// The type of the weights in memory: f32, f16 or bf16.
  dtype storage = dtype::f32;
  /// The type of activations and of their gradients: one of the same three; none: as `storage`.
  std::optional<dtype> compute = {};
  pass_mode mode = pass_mode::inference;
  optimizer_kind optimizer = optimizer_kind::sgd;
  std::uint64_t batch = 1;
  /// Of the input, in pixels: 224 and 224 with the top, at least 32 without, for it is halved five
  /// times.
  std::uint64_t height = 224;
  std::uint64_t width = 224;
  bool include_top = true;
  /// Outputs of the last layer, up to a million. Means nothing without the top.
  std::uint32_t classes = 1000;
  /// That run the pass; each works in memory of its own.
  unsigned threads = 1;

  [[nodiscard]] constexpr dtype compute_type() const noexcept { return compute.value_or(storage); }
};

/// What one layer takes. All but the workspace adds up over the layers; the activations add up to
/// the total's where every output is kept (training).
struct layer_footprint {
  std::string_view name;  // as Keras calls it
  /// [batch, height, width, channels], or [batch, features] of a dense layer.
  shape output_shape;
  std::uint64_t parameters = 0;
  std::uint64_t weight_bytes = 0;
  std::uint64_t bias_bytes = 0;
  std::uint64_t masters_bytes = 0;
  std::uint64_t activation_bytes = 0;  // the whole output
  std::uint64_t gradients_bytes = 0;
  std::uint64_t optimizer_bytes = 0;
  /// Of the workspace, which all layers use in turn.
  std::uint64_t workspace_bytes = 0;
};

/// What the network takes, in bytes.
struct footprint {
  std::uint64_t parameters = 0;
  /// `parameters` of the storage type, biases included.
  std::uint64_t weights_bytes = 0;
  /// An FP32 copy of what is trained, where the storage type has 16 bits: small updates would be
  /// rounded away there (Micikevicius et al., "Mixed Precision Training", 2018).
  std::uint64_t masters_bytes = 0;
  /// Of the compute type. Inference and frozen base: the two buffers that the pass needs at once, the
  /// largest sum of a step's input and output; a step is a convolution with the pooling that follows it, or a dense
  /// layer, since ReLU works in place and flattening takes no further memory. The backward pass of a frozen base's top
  /// keeps what it reads in the same two buffers, which it does not fill. Training: the outputs of
  /// all layers and poolings, which the backward pass reads.
  std::uint64_t activations_bytes = 0;
  /// FP32, of what is trained: nothing, the dense layers (frozen), or everything (training).
  std::uint64_t gradients_bytes = 0;
  /// FP32, of what is trained: see `optimizer_kind`.
  std::uint64_t optimizer_bytes = 0;
  /// What the pass needs beyond: the two below; in training two buffers with the gradients of
  /// a step's input and output, and the input, which the first layer's gradient reads; where the
  /// compute type has 16 bits and something is trained, the 16-bit gradients of the largest trained
  /// layer, scaled against underflow, on their way to FP32.
  std::uint64_t workspace_bytes = 0;
  /// Part of the workspace: a piece of a convolution's weight, transformed.
  std::uint64_t weight_tile_bytes = 0;
  /// Part of the workspace: what all threads work in.
  std::uint64_t thread_tiles_bytes = 0;
  /// The sum of the six kinds: weights, masters, activations, gradients, optimizer, workspace.
  std::uint64_t total_bytes = 0;
  /// The 13 convolutions and 5 poolings and, with the top, the 3 dense layers, in network order.
  std::vector<layer_footprint> layers;

  [[nodiscard]] bool fits(std::uint64_t budget_bytes) const noexcept {
    return total_bytes <= budget_bytes;
  }
};

/// Most elements of the tile with transformed weights: 4 MiB as FP32, and what keeps planes apart in the caches
/// (network/weight_matrix.hpp). Of 512 inputs those of 128 outputs.
inline constexpr std::uint64_t weight_tile_elements = (std::uint64_t{1} << 20U) + (1U << 13U);
/// Most tiles of 2x2 outputs that a thread makes at a time.
inline constexpr std::uint64_t tiles_at_once = 28;
/// Elements that a thread works in: 16 planes of its tiles' 512 channels, with 16 between, and of 32 products.
inline constexpr std::uint64_t thread_tile_elements = 16 * tiles_at_once * (512 + 16 + 32);

/// Elements of the tile that a convolution fills.
[[nodiscard]] constexpr std::uint64_t weight_tile_of(const layer& spec) noexcept {
  return std::min(weight_tile_elements,
                  spec.outputs / 32 * (16 * (std::uint64_t{spec.inputs} * 32 + 16) + 32));
}

namespace detail {

struct exceeds_64_bits {};

[[nodiscard]] inline std::uint64_t add(std::uint64_t a, std::uint64_t b) {
  const auto sum = checked_add(a, b);
  if (!sum) throw exceeds_64_bits();
  return *sum;
}

[[nodiscard]] inline std::uint64_t multiply(std::uint64_t a, std::uint64_t b) {
  const auto product = checked_multiply(a, b);
  if (!product) throw exceeds_64_bits();
  return *product;
}

[[nodiscard]] inline std::string size_text(std::uint64_t height, std::uint64_t width) {
  return std::to_string(height) + "x" + std::to_string(width);
}

[[nodiscard]] constexpr bool is_plannable(dtype type) noexcept {
  return type == dtype::f32 || type == dtype::f16 || type == dtype::bf16;
}

inline void check_options(const plan_options& options) {
  for (const dtype type : {options.storage, options.compute_type()}) {
    if (!is_plannable(type)) {
      throw unsupported_error("VGG16: a footprint is of F32, F16 or BF16, not " +
                              std::string(name_of(type)));
    }
  }
  if (options.batch == 0) throw unsupported_error("VGG16: a batch of 0 images");
  const std::string size = size_text(options.height, options.width);
  if (options.include_top && (options.height != 224 || options.width != 224)) {
    throw unsupported_error("VGG16: with the top the input is 224x224, not " + size);
  }
  if (options.height < 32 || options.width < 32) {
    throw unsupported_error("VGG16: the input is at least 32x32, not " + size);
  }
  // So many that a frozen base's top fits into the two buffers of the activations.
  if (options.include_top && (options.classes == 0 || options.classes > 1'000'000)) {
    throw unsupported_error("VGG16: 1 to 1000000 classes, not " + std::to_string(options.classes));
  }
}

/// A step of the forward pass: a layer or, without one, a pooling.
struct pass_step {
  std::string_view name;
  std::optional<layer> spec;
  shape output;
  std::uint64_t inputs;   // elements of the whole batch
  std::uint64_t outputs;  // likewise
};

/// All steps in order. Throws `exceeds_64_bits`.
[[nodiscard]] inline std::vector<pass_step> steps_of(const plan_options& options) {
  std::vector<pass_step> steps;
  std::uint64_t height = options.height;
  std::uint64_t width = options.width;
  std::uint64_t elements =
      multiply(multiply(multiply(options.batch, options.height), options.width), 3);
  const auto append = [&](std::string_view name, const std::optional<layer>& spec, shape output) {
    const auto outputs = output.elements();
    if (!outputs) throw exceeds_64_bits();
    steps.push_back({name, spec, std::move(output), std::exchange(elements, *outputs), *outputs});
  };
  std::size_t block = 0;
  for (std::size_t i = 0; i < layer_count(options.include_top); ++i) {
    layer spec = layers[i];
    if (i + 1 == layers.size()) spec.outputs = options.classes;
    if (spec.kind == layer_kind::dense) {
      append(spec.name, spec, {options.batch, spec.outputs});
      continue;
    }
    append(spec.name, spec, {options.batch, height, width, spec.outputs});
    if (is_pooled(i)) {
      height /= 2;
      width /= 2;
      append(pool_names[block++], std::nullopt, {options.batch, height, width, spec.outputs});
    }
  }
  return steps;
}

[[nodiscard]] constexpr bool is_trained(layer_kind kind, pass_mode mode) noexcept {
  return mode == pass_mode::training || (mode == pass_mode::frozen && kind == layer_kind::dense);
}

/// FP32 values that the optimizer keeps for each weight.
[[nodiscard]] constexpr std::uint64_t state_values(optimizer_kind optimizer) noexcept {
  if (optimizer == optimizer_kind::sgd) return 0;
  return optimizer == optimizer_kind::momentum ? 1 : 2;
}

/// The parts of the workspace. What one step needs of it, or, by `grow_to`, what all need in turn.
struct workspace {
  std::uint64_t weight_tile = 0;
  std::uint64_t thread_tiles = 0;
  std::uint64_t output_gradients = 0;
  std::uint64_t input = 0;
  std::uint64_t scaled_gradients = 0;

  void grow_to(const workspace& other) noexcept {
    weight_tile = std::max(weight_tile, other.weight_tile);
    thread_tiles = std::max(thread_tiles, other.thread_tiles);
    output_gradients = std::max(output_gradients, other.output_gradients);
    input = std::max(input, other.input);
    scaled_gradients = std::max(scaled_gradients, other.scaled_gradients);
  }
  [[nodiscard]] std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const auto part : {weight_tile, thread_tiles, output_gradients, input, scaled_gradients}) {
      sum = add(sum, part);
    }
    return sum;
  }
};

[[nodiscard]] inline workspace workspace_of(const plan_options& options, const pass_step& step,
                                            bool first) {
  const std::uint64_t compute = bits_of(options.compute_type()) / 8;
  workspace needed;
  if (options.mode == pass_mode::training) {
    needed.output_gradients = multiply(add(step.inputs, step.outputs), compute);
    if (first) needed.input = multiply(step.inputs, compute);
  }
  if (!step.spec) return needed;
  const layer& spec = *step.spec;
  if (spec.kind == layer_kind::conv) needed.weight_tile = weight_tile_of(spec) * compute;
  needed.thread_tiles = multiply(options.threads, thread_tile_elements * compute);
  if (is_trained(spec.kind, options.mode) && compute == 2) {
    needed.scaled_gradients = spec.parameters() * compute;
  }
  return needed;
}

/// Elements of the two buffers that an inference needs at once. Throws `exceeds_64_bits`.
[[nodiscard]] inline std::uint64_t two_buffers(std::span<const pass_step> steps) {
  std::uint64_t most = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i].spec) continue;  // a pooling is part of the layer before
    const bool pooled = i + 1 < steps.size() && !steps[i + 1].spec;
    most = std::max(most, add(steps[i].inputs, steps[i + (pooled ? 1 : 0)].outputs));
  }
  return most;
}

/// Throws `exceeds_64_bits`.
[[nodiscard]] inline footprint sum_up(const plan_options& options) {
  const std::uint64_t storage = bits_of(options.storage) / 8;
  const std::uint64_t compute = bits_of(options.compute_type()) / 8;
  footprint sum;
  workspace shared;
  const std::vector<pass_step> steps = steps_of(options);
  for (const pass_step& step : steps) {
    layer_footprint row{.name = step.name, .output_shape = step.output};
    row.activation_bytes = multiply(step.outputs, compute);
    if (step.spec) {
      row.parameters = step.spec->parameters();
      row.weight_bytes = step.spec->weights() * storage;
      row.bias_bytes = step.spec->outputs * storage;
      if (is_trained(step.spec->kind, options.mode)) {
        row.masters_bytes = storage == 2 ? row.parameters * 4 : 0;
        row.gradients_bytes = row.parameters * 4;
        row.optimizer_bytes = row.parameters * 4 * state_values(options.optimizer);
      }
    }
    const workspace needed = workspace_of(options, step, sum.layers.empty());
    row.workspace_bytes = needed.bytes();
    shared.grow_to(needed);

    sum.parameters += row.parameters;
    sum.weights_bytes += row.weight_bytes + row.bias_bytes;
    sum.masters_bytes += row.masters_bytes;
    sum.gradients_bytes += row.gradients_bytes;
    sum.optimizer_bytes += row.optimizer_bytes;
    if (options.mode == pass_mode::training) {
      sum.activations_bytes = add(sum.activations_bytes, row.activation_bytes);
    }
    sum.layers.push_back(std::move(row));
  }
  if (options.mode != pass_mode::training) {
    sum.activations_bytes = multiply(two_buffers(steps), compute);
  }
  sum.weight_tile_bytes = shared.weight_tile;
  sum.thread_tiles_bytes = shared.thread_tiles;
  sum.workspace_bytes = shared.bytes();
  for (const auto part : {sum.weights_bytes, sum.masters_bytes, sum.activations_bytes,
                          sum.gradients_bytes, sum.optimizer_bytes, sum.workspace_bytes}) {
    sum.total_bytes = add(sum.total_bytes, part);
  }
  return sum;
}

}  // namespace detail

/// What a VGG16 takes, by arithmetic alone: nothing is allocated and no device is asked. Throws
/// `unsupported_error` for options outside of their bounds, and where a size exceeds 64 bits.
[[nodiscard]] inline footprint plan(const plan_options& options) {
  detail::check_options(options);
  try {
    return detail::sum_up(options);
  } catch (const detail::exceeds_64_bits&) {
    throw unsupported_error("VGG16: the bytes of a batch of " + std::to_string(options.batch) +
                            " images of " + detail::size_text(options.height, options.width) +
                            " exceed 64 bits");
  }
}

/// The largest batch that fits into the budget, whatever `options.batch` is; 0 where not even one
/// image does. Throws what `plan` throws for one image.
[[nodiscard]] inline std::uint64_t max_batch(plan_options options, std::uint64_t budget_bytes) {
  options.batch = 1;
  const footprint one = plan(options);
  if (!one.fits(budget_bytes)) return 0;
  const auto fits = [&](std::uint64_t batch) {
    options.batch = batch;
    try {
      return detail::sum_up(options).fits(budget_bytes);
    } catch (const detail::exceeds_64_bits&) {
      return false;
    }
  };
  // Activations grow with the batch, so a larger one cannot fit.
  std::uint64_t largest = 1;
  std::uint64_t above = budget_bytes / one.activations_bytes + 1;
  while (above - largest > 1) {
    const std::uint64_t middle = largest + (above - largest) / 2;
    (fits(middle) ? largest : above) = middle;
  }
  return largest;
}

/// A change that makes a plan smaller.
struct advice {
  std::string change;  // "dtype f16", "batch 12", "no top", "frozen base", or several, with ", "
  plan_options options;
  std::uint64_t total_bytes;
  bool fits;
};

namespace detail {

enum class saving { half_precision, smaller_batch, no_top, frozen_base };

/// The plan with these changes. The batch comes last: it is the largest that fits with the others,
/// or 1, and stays where it fits as it is.
[[nodiscard]] inline advice change_plan(plan_options options, std::uint64_t budget_bytes,
                                        const std::vector<saving>& savings) {
  const std::uint64_t batch = options.batch;
  const auto makes = [&](saving wanted) {
    return std::ranges::find(savings, wanted) != savings.end();
  };
  if (makes(saving::half_precision)) {
    options.storage = dtype::f16;
  }
  if (makes(saving::no_top)) options.include_top = false;
  if (makes(saving::frozen_base)) options.mode = pass_mode::frozen;
  if (makes(saving::smaller_batch)) {
    options.batch = std::min(batch, std::max<std::uint64_t>(max_batch(options, budget_bytes), 1));
  }
  std::string text;
  const auto name = [&](const std::string& change) {
    if (!text.empty()) text += ", ";
    text += change;
  };
  if (makes(saving::half_precision)) name("dtype f16");
  if (options.batch != batch) name("batch " + std::to_string(options.batch));
  if (makes(saving::no_top)) name("no top");
  if (makes(saving::frozen_base)) name("frozen base");
  const footprint changed = plan(options);
  return {std::move(text), options, changed.total_bytes, changed.fits(budget_bytes)};
}

}  // namespace detail

/// What to change so that the plan fits into the budget; empty where it does. First each change by
/// itself that applies and makes the plan smaller, from the cheapest on: FP16 (where the weights are
/// FP32; with masters it may be larger), the largest batch that fits or 1 (where it is larger), no top, a
/// frozen base (where all is trained). Where none of them is enough, behind them one combination: of
/// those that fit the one whose dearest change is the cheapest, and so on; where none fits the
/// smallest. Throws what `plan` throws.
[[nodiscard]] inline std::vector<advice> advise(const plan_options& options,
                                                std::uint64_t budget_bytes) {
  const footprint now = plan(options);
  if (now.fits(budget_bytes)) return {};
  std::vector<detail::saving> savings;
  if (options.storage == dtype::f32) savings.push_back(detail::saving::half_precision);
  if (options.batch > 1) savings.push_back(detail::saving::smaller_batch);
  if (options.include_top) savings.push_back(detail::saving::no_top);
  if (options.mode == pass_mode::training) savings.push_back(detail::saving::frozen_base);

  std::vector<advice> found;
  for (const detail::saving saving : savings) {
    advice change = detail::change_plan(options, budget_bytes, {saving});
    if (change.total_bytes < now.total_bytes) found.push_back(std::move(change));
  }
  if (std::ranges::any_of(found, &advice::fits)) return found;
  // As numbers, sets of changes are in the order of what they cost: the dearest has the highest bit.
  std::optional<advice> best;
  for (unsigned set = 1; set < 1U << savings.size(); ++set) {
    if (std::has_single_bit(set)) continue;
    std::vector<detail::saving> changes;
    for (std::size_t i = 0; i < savings.size(); ++i) {
      if ((set >> i & 1U) != 0) changes.push_back(savings[i]);
    }
    advice change = detail::change_plan(options, budget_bytes, changes);
    if (change.fits || !best || change.total_bytes < best->total_bytes) best = std::move(change);
    if (best->fits) break;
  }
  if (best && best->total_bytes < now.total_bytes) found.push_back(std::move(*best));
  return found;
}

}  // namespace vggload::vgg16
