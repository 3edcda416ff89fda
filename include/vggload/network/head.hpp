// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
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
#include <vggload/data/random.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/number_buffer.hpp>
#include <vggload/network/product.hpp>

namespace vggload::network {

/// What a head is, and what it needs memory for.
struct head_options {
  /// Of one image: [height, width, channels], as VGG16 without its top gives them, or [values].
  shape features = {};
  /// The last one is `dense(classes)`, whose outputs are the logits.
  std::vector<head_layer> layers = {};
  /// Images that are worked on at once, at most.
  std::size_t max_batch = 32;
  precision_policy policy = precision_policy::f32;
  /// FP32 values that the optimizer keeps for each weight (`state_values`).
  std::size_t optimizer_state = 0;
  /// Whether there is room for a second set of weights, see `remember_weights`.
  bool keeps_best = false;
  /// Of the first weights and of dropout.
  std::uint64_t seed = 0;
};

/// Weights that a layer has, or numbers like them.
struct head_parameter {
  std::string name;  // "dense_1.kernel": the first dense layer's
  vggload::shape shape;
  bool trained;  // normalization's are not
};

/// Whether activations are kept for gradients.
enum class head_pass : bool { inference, training };

/// What a piece of a head's memory is, and how much.
struct head_piece {
  std::string name;
  std::string layer;
  memory_role role;
  std::uint64_t bytes;
};

/// The memory of a head, in full.
struct head_footprint {
  std::vector<head_piece> pieces;
  std::uint64_t total_bytes = 0;  // of the arena: the pieces, each begun at a multiple of 64

  /// Of all pieces of that role.
  [[nodiscard]] std::uint64_t bytes(memory_role role) const noexcept {
    std::uint64_t sum = 0;
    for (const head_piece& piece : pieces) {
      if (piece.role == role) sum += piece.bytes;
    }
    return sum;
  }
};

namespace detail {

/// Where things are in a head's memory: indices into the pieces of its footprint.
class head_layout {
 public:
  static constexpr std::size_t none = SIZE_MAX;

  struct parameter {
    head_parameter info;
    std::size_t elements = 0;
    std::size_t values = none;    // FP32
    std::size_t rounded = none;   // what products read, where it is not the values
    std::size_t gradient = none;  // of the compute type
    std::size_t state = none;     // the first of the optimizer's
    std::size_t best = none;
  };

  struct step {
    head_layer layer;
    std::string name;
    std::size_t inputs = 0;  // values of an image
    std::size_t outputs = 0;
    std::size_t channels = 0;      // of the input
    std::size_t parameter = none;  // the first one
    std::size_t output = none;     // where the outputs lie
    std::size_t tile_rows = 0;     // rows of the kernel in a tile
  };

  /// Throws `error` for layers that do not fit together, and for sizes beyond memory.
  explicit head_layout(const head_options& options) : options_(options) {
    check();
    std::optional<std::uint64_t> features = options.features.elements();
    if (!features || options.features.rank() == 0 || *features == 0) {
      fail("features of the shape " + to_string(options.features) + " cannot be");
    }
    vggload::shape current = options.features;
    bool rounded = compute() == dtype::f32;
    for (const head_layer& layer : options.layers) append(layer, current, rounded);
    if (steps.empty() || steps.back().layer.kind != head_layer_kind::dense ||
        steps.back().layer.activation != activation::linear) {
      fail("the last layer has to be dense(classes) without an activation, not " +
           (steps.empty() ? "none" : to_string(steps.back().layer)));
    }
    add_buffers();
  }

  std::vector<step> steps;
  std::vector<parameter> parameters;
  head_footprint footprint;
  std::size_t first_dense = none;
  std::size_t rounded_features = none;  // where they are not the caller's
  std::size_t logit_gradients = none;
  std::array<std::size_t, 2> deltas{none, none};
  std::size_t weight_tile = none;
  std::size_t input_tile = none;
  std::size_t sums = none;

 private:
  /// A tile of a 16-bit kernel has this many values at most, but one row: 1 MiB, as in the forward pass.
  static constexpr std::size_t tile_values = std::size_t{1} << 18U;

  [[noreturn]] static void fail(const std::string& what) { throw error("head: " + what); }

  void check() const {
    if (options_.max_batch == 0) fail("a batch of 0 images cannot be");
    for (std::size_t i = 0; i < options_.layers.size(); ++i) {
      const head_layer& layer = options_.layers[i];
      const auto subject = [&] {
        return "layer " + std::to_string(i + 1) + ", " + to_string(layer) + ": ";
      };
      if (layer.kind == head_layer_kind::dense && layer.units == 0) {
        fail(subject() + "it has no units");
      }
      if (layer.kind == head_layer_kind::dropout && !(layer.rate >= 0 && layer.rate < 1)) {
        fail(subject() + "the rate is not from 0 to less than 1");
      }
      if (layer.kind == head_layer_kind::normalization && !(layer.limit > 0)) {
        fail(subject() + "the limit is not above 0");
      }
    }
  }

  [[nodiscard]] dtype compute() const noexcept { return compute_type(options_.policy); }
  [[nodiscard]] std::uint64_t compute_bytes() const noexcept { return bits_of(compute()) / 8; }
  [[nodiscard]] bool is_mixed() const noexcept { return compute() != dtype::f32; }

  [[nodiscard]] static std::uint64_t product(std::initializer_list<std::uint64_t> factors) {
    std::uint64_t result = 1;
    for (const std::uint64_t factor : factors) {
      const auto next = checked_multiply(result, factor);
      // Half the addresses: so that sums of a few do not wrap.
      if (!next || *next > std::numeric_limits<std::size_t>::max() / 2) {
        fail("its sizes do not fit into memory");
      }
      result = *next;
    }
    return result;
  }

  /// Returns the piece's index.
  std::size_t add(std::string name, const std::string& layer, memory_role role,
                  std::uint64_t bytes) {
    footprint.pieces.push_back({std::move(name), layer, role, bytes});
    const auto aligned = checked_align_up(bytes, arena<host_resource>::default_alignment);
    const auto total = aligned ? checked_add(footprint.total_bytes, *aligned) : std::nullopt;
    if (!total) fail("its sizes do not fit into memory");
    footprint.total_bytes = *total;
    return footprint.pieces.size() - 1;
  }

  void add_parameter(const std::string& layer, const char* what, vggload::shape dims,
                     bool trained) {
    parameter added;
    added.info = {layer + what, std::move(dims), trained};
    // A size that is too large for a number is too large for memory, too.
    const std::uint64_t elements = product({added.info.shape.elements().value_or(UINT64_MAX)});
    const std::uint64_t bytes = product({elements, sizeof(float)});
    const std::string& name = added.info.name;
    added.elements = static_cast<std::size_t>(elements);
    const bool has_masters = trained && is_mixed();
    added.values =
        add(name, layer, has_masters ? memory_role::masters : memory_role::weights, bytes);
    if (has_masters) {
      added.rounded = add(name, layer, memory_role::weights, elements * compute_bytes());
    }
    if (trained) {
      added.gradient = add(name, layer, memory_role::gradients, elements * compute_bytes());
      for (std::size_t i = 0; i < options_.optimizer_state; ++i) {
        const std::size_t piece =
            add(name + ".state_" + std::to_string(i + 1), layer, memory_role::optimizer, bytes);
        if (i == 0) added.state = piece;
      }
      if (options_.keeps_best) {
        added.best = add(name + ".best", layer, memory_role::weights, bytes);
      }
    }
    parameters.push_back(std::move(added));
  }

  /// `current` becomes the shape behind the layer, `rounded` tells whether its values are of the compute
  /// type.
  void append(const head_layer& layer, vggload::shape& current, bool& rounded) {
    step added;
    added.layer = layer;
    const std::uint64_t inputs = product({current.elements().value_or(UINT64_MAX)});
    const std::uint64_t channels = current[current.rank() - 1];
    const auto subject = [&, this] {
      return "layer " + std::to_string(steps.size() + 1) + ", " + to_string(layer) + ": ";
    };
    const auto number = [&, this] {
      return 1 + std::ranges::count(steps, layer.kind,
                                    [](const step& other) { return other.layer.kind; });
    };
    bool writes = true;
    switch (layer.kind) {
      case head_layer_kind::flatten:
        current = {inputs};
        writes = false;
        added.name = "flatten";
        break;
      case head_layer_kind::global_average_pool:
        if (current.rank() < 2) {
          fail(subject() + "its input has the shape " + to_string(current) +
               ", without a height and a width");
        }
        current = {channels};
        added.name = "global_average_pool";
        break;
      case head_layer_kind::normalization:
        if (first_dense != none) fail(subject() + "it has to come before the first dense layer");
        if (number() > 1) fail(subject() + "there is one before");
        added.name = "normalization";
        added.parameter = parameters.size();
        add_parameter(added.name, ".mean", {channels}, false);
        add_parameter(added.name, ".deviation", {channels}, false);
        break;
      case head_layer_kind::dropout: added.name = "dropout_" + std::to_string(number()); break;
      case head_layer_kind::dense:
        if (current.rank() != 1) {
          fail(subject() + "its input has the shape " + to_string(current) +
               "; flatten or global_average_pool has to come before");
        }
        added.name = "dense_" + std::to_string(number());
        if (first_dense == none) {
          first_dense = steps.size();
          if (!rounded) {
            rounded_features = add("features", added.name, memory_role::activations,
                                   product({options_.max_batch, inputs, compute_bytes()}));
          }
        }
        added.parameter = parameters.size();
        add_parameter(added.name, ".kernel", {inputs, layer.units}, true);
        add_parameter(added.name, ".bias", {layer.units}, true);
        added.tile_rows = static_cast<std::size_t>(inputs);
        if (is_mixed()) {
          added.tile_rows = static_cast<std::size_t>(
              std::clamp<std::uint64_t>(tile_values / layer.units, 1, inputs));
        }
        current = {layer.units};
        break;
    }
    added.inputs = static_cast<std::size_t>(inputs);
    added.channels = static_cast<std::size_t>(channels);
    added.outputs = static_cast<std::size_t>(current.elements().value());
    if (writes) {
      // The logits are FP32.
      const bool last = steps.size() + 1 == options_.layers.size();
      added.output =
          add(last ? "logits" : added.name, added.name, memory_role::activations,
              product({options_.max_batch, added.outputs, last ? sizeof(float) : compute_bytes()}));
      rounded = true;
    }
    steps.push_back(std::move(added));
  }

  void add_buffers() {
    const step& last = steps.back();
    logit_gradients = add("logits", last.name, memory_role::gradients,
                          product({options_.max_batch, last.outputs, sizeof(float)}));
    // Gradients by activations, in turn in one of two buffers; FP32 ones of the logits are the caller's.
    std::array<std::uint64_t, 2> widths{is_mixed() ? last.outputs : 0, 0};
    std::size_t tile = 0;
    std::size_t columns = 0;
    std::size_t outputs = 0;
    std::size_t delta = 0;
    for (std::size_t i = steps.size(); i-- > first_dense;) {
      const step& each = steps[i];
      if (each.layer.kind != head_layer_kind::dense) continue;
      tile = std::max(tile, each.tile_rows * each.outputs);
      columns = std::max(columns, each.tile_rows);
      outputs = std::max(outputs, each.outputs);
      if (i == first_dense) break;
      delta = 1 - delta;
      widths[delta] = std::max<std::uint64_t>(widths[delta], each.inputs);
    }
    for (std::size_t i = 0; i < widths.size(); ++i) {
      if (widths[i] == 0) continue;
      deltas[i] =
          add("gradients by activations " + std::to_string(i + 1), {}, memory_role::gradients,
              product({options_.max_batch, widths[i], compute_bytes()}));
    }
    if (!is_mixed()) return;
    weight_tile = add("weight tile", {}, memory_role::workspace, tile * sizeof(float));
    input_tile = add("input tile", {}, memory_role::workspace,
                     product({options_.max_batch, columns, sizeof(float)}));
    sums = add("sums", {}, memory_role::workspace,
               product({options_.max_batch, outputs, sizeof(float)}));
  }

  const head_options& options_;
};

}  // namespace detail

/// What a head of these options takes; nothing is allocated for it. Throws `error` where the layers do not
/// fit together, with the layer, and where the sizes are beyond memory.
[[nodiscard]] inline head_footprint plan_head(const head_options& options) {
  return detail::head_layout(options).footprint;
}

/// Layers that are trained on features: forward, backward, and the weights. Weights, gradients, the
/// optimizer's state, activations and workspace are one arena of exactly the bytes of `plan_head`; a step
/// allocates nothing beside. What comes out depends on the options, the weights and the input alone, on processors
/// that round alike. One call at a time. Moves and copies: neither.
class head {
 public:
  /// Draws the first weights. Throws what `plan_head` throws, and `out_of_memory`.
  explicit head(head_options options, std::shared_ptr<memory_ledger> ledger = nullptr)
      : options_(std::move(options)), layout_(options_) {
    memory_ = vggload::detail::naming_out_of_memory("head", "allocating", [&, this] {
      return arena<host_resource>(static_cast<std::size_t>(layout_.footprint.total_bytes), {},
                                  std::move(ledger), "head");
    });
    for (const head_piece& piece : layout_.footprint.pieces) {
      pieces_.push_back(memory_.allocate({piece.name, piece.layer, piece.role},
                                         static_cast<std::size_t>(piece.bytes)));
      // Nothing that is read is undefined: the optimizer's state begins at 0.
      std::ranges::fill(pieces_.back(), std::byte{0});
    }
    for (const detail::head_layout::parameter& each : layout_.parameters) {
      infos_.push_back(each.info);
    }
    inputs_.resize(layout_.steps.size());
    initialise();
  }
  head(const head&) = delete;
  head& operator=(const head&) = delete;
  ~head() = default;

  [[nodiscard]] const head_options& options() const noexcept { return options_; }
  [[nodiscard]] const head_footprint& footprint() const noexcept { return layout_.footprint; }
  /// The arena, all of which is given out.
  [[nodiscard]] const arena<host_resource>& memory() const noexcept { return memory_; }
  /// Values of an image.
  [[nodiscard]] std::size_t features() const noexcept { return layout_.steps.front().inputs; }
  [[nodiscard]] std::size_t classes() const noexcept { return layout_.steps.back().outputs; }

  /// In the order of the layers, each one's kernel before its bias.
  [[nodiscard]] std::span<const head_parameter> parameters() const noexcept { return infos_; }
  /// The FP32 values of one of `parameters`, row-major.
  [[nodiscard]] std::span<const float> values(std::size_t parameter) const noexcept {
    return floats(layout_.parameters[parameter].values);
  }
  /// The same, to be changed; `round_weights` makes the change known to the next pass.
  [[nodiscard]] std::span<float> mutable_values(std::size_t parameter) noexcept {
    return floats(layout_.parameters[parameter].values);
  }
  void round_weights() noexcept {
    for (const detail::head_layout::parameter& each : layout_.parameters) {
      round(each, 0, each.elements);
    }
  }
  /// Throws `error` where there are not as many.
  void set_values(std::size_t parameter, std::span<const float> values) {
    const detail::head_layout::parameter& each = layout_.parameters[parameter];
    if (values.size() != each.elements) {
      throw error("head: " + in_quotes(each.info.name) + " has " + std::to_string(each.elements) +
                  " values, not " + std::to_string(values.size()));
    }
    std::ranges::copy(values, floats(each.values).begin());
    round(each, 0, each.elements);
  }
  /// The gradient that the last `backward` gave, in FP32. `out` has the parameter's size, which is
  /// trained.
  void read_gradient(std::size_t parameter, std::span<float> out) const noexcept {
    const number_view gradients = compute(layout_.parameters[parameter].gradient);
    gradients.read(0, out);
  }
  /// One of the optimizer's values for each weight of a parameter that is trained.
  [[nodiscard]] std::span<const float> optimizer_state(std::size_t parameter,
                                                       std::size_t number) const noexcept {
    return floats(layout_.parameters[parameter].state + number);
  }
  [[nodiscard]] std::span<float> optimizer_state(std::size_t parameter,
                                                 std::size_t number) noexcept {
    return floats(layout_.parameters[parameter].state + number);
  }
  /// The remembered weights of a parameter that is trained; empty without room for them.
  [[nodiscard]] std::span<const float> best_values(std::size_t parameter) const noexcept {
    return floats(layout_.parameters[parameter].best);
  }
  [[nodiscard]] std::span<float> best_values(std::size_t parameter) noexcept {
    return floats(layout_.parameters[parameter].best);
  }

  /// The logits, [images, classes], which stay until the next call. `features`: [images, ...], row-major; after a
  /// pass for training they have to stay until `backward`. `step`: dropout's masks depend on it, the
  /// seed and the place alone. Throws `error` where there are no images, more than `max_batch`, or not
  /// as many features.
  std::span<const float> forward(std::span<const float> features, std::size_t images,
                                 head_pass pass = head_pass::inference, std::uint64_t step = 0) {
    check_images(features.size(), images);
    images_ = pass == head_pass::training ? images : 0;
    step_ = step;
    number_view current(features);
    for (std::size_t i = 0; i < layout_.steps.size(); ++i) {
      const detail::head_layout::step& each = layout_.steps[i];
      switch (each.layer.kind) {
        case head_layer_kind::flatten: break;
        case head_layer_kind::global_average_pool: current = pool(each, current, images); break;
        case head_layer_kind::normalization: current = normalise(each, current, images); break;
        case head_layer_kind::dropout:
          if (pass == head_pass::training) current = drop(i, current, images);
          break;
        case head_layer_kind::dense:
          if (current.type() != compute_type(options_.policy)) {
            current = round_features(current, images * each.inputs);
          }
          inputs_[i] = current;
          current = multiply_dense(i, current, images);
          break;
      }
    }
    return floats(layout_.steps.back().output).first(images * classes());
  }

  /// Of the normalization layer's input. Throws `error` where the head has no such layer.
  [[nodiscard]] std::size_t normalized_channels() const {
    return layout_.steps[normalization_step()].channels;
  }
  /// Calls action(values) for each pixel of the normalization layer's input, with its channels. Throws
  /// `error` as `forward`, and where the head has no such layer.
  template <class Action>
  void visit_normalization_inputs(std::span<const float> features, std::size_t images,
                                  const Action& action) const {
    const std::size_t last = normalization_step();
    check_images(features.size(), images);
    number_view current(features);
    for (std::size_t i = 0; i < last; ++i) {
      const detail::head_layout::step& each = layout_.steps[i];
      if (each.layer.kind == head_layer_kind::global_average_pool) {
        current = pool(each, current, images);
      }
    }
    const detail::head_layout::step& each = layout_.steps[last];
    std::vector<float> pixel(each.channels);
    for (std::size_t i = 0; i < images * (each.inputs / each.channels); ++i) {
      current.read(i * each.channels, pixel);
      action(std::span<const float>(pixel));
    }
  }
  /// The numbers of the normalization layer, one for each channel. Throws `error` where there are not as
  /// many, or the head has no such layer.
  void set_normalization(std::span<const float> means, std::span<const float> deviations) {
    const std::size_t parameter = layout_.steps[normalization_step()].parameter;
    set_values(parameter, means);
    set_values(parameter + 1, deviations);
  }

  /// Room for gradients by logits, [max_batch, classes], for the caller's use.
  [[nodiscard]] std::span<float> logit_gradients() noexcept {
    return floats(layout_.logit_gradients);
  }

  /// All gradients, from those by the logits of the last `forward`, which was one for training. What they are
  /// multiplied by, all are. Returns whether all are finite in a type of 16 bits; FP32 ones are not
  /// looked at. Throws `error` where there was no such pass, or where the sizes disagree.
  bool backward(std::span<const float> logit_gradients) {
    if (images_ == 0) throw error("head: there are no gradients without a pass for training");
    if (logit_gradients.size() != images_ * classes()) {
      throw error("head: " + std::to_string(images_) + " images have " +
                  std::to_string(images_ * classes()) + " gradients by logits, not " +
                  std::to_string(logit_gradients.size()));
    }
    bool finite = true;
    number_view delta(logit_gradients);
    std::size_t buffer = 0;
    if (is_mixed()) {
      finite &= compute(layout_.deltas[0]).write(0, logit_gradients);
      delta = compute(layout_.deltas[0]);
    }
    for (std::size_t i = layout_.steps.size(); i-- > layout_.first_dense;) {
      const detail::head_layout::step& each = layout_.steps[i];
      if (each.layer.kind == head_layer_kind::dropout) {
        drop_values(i, delta, compute(layout_.deltas[buffer]), images_);
      }
      if (each.layer.kind != head_layer_kind::dense) continue;
      if (each.layer.activation == activation::relu) {
        pass_where_positive(each, compute(layout_.deltas[buffer]));
      }
      const row_matrix<const float> errors =
          delta.matrix(0, images_, each.outputs, each.outputs, floats(layout_.sums));
      finite &= weight_gradients(i, errors);
      if (i == layout_.first_dense) break;  // nothing before it is trained
      buffer = 1 - buffer;
      finite &= input_gradients(each, errors, compute(layout_.deltas[buffer]));
      delta = compute(layout_.deltas[buffer]);
    }
    return finite;
  }

  /// Calls step(values, gradients, state) for all that is trained, block by block, and rounds the values
  /// for the next pass. The gradients are those of `backward` times `factor`; `state` are the optimizer's
  /// spans.
  template <class Step>
  void update(const Step& step, float factor = 1) {
    std::array<float, 4096> gradients;
    std::array<std::span<float>, 4> state;
    for (const detail::head_layout::parameter& each : layout_.parameters) {
      if (!each.info.trained) continue;
      const number_view source = compute(each.gradient);
      for (std::size_t first = 0; first < each.elements; first += gradients.size()) {
        const std::size_t count = std::min(gradients.size(), each.elements - first);
        source.read(first, std::span(gradients).first(count));
        if (factor != 1) {
          for (std::size_t i = 0; i < count; ++i) gradients[i] *= factor;
        }
        for (std::size_t i = 0; i < options_.optimizer_state; ++i) {
          state[i] = floats(each.state + i).subspan(first, count);
        }
        step(floats(each.values).subspan(first, count),
             std::span<const float>(gradients).first(count),
             std::span<const std::span<float>>(state).first(options_.optimizer_state));
        round(each, first, count);
      }
    }
  }

  /// Copies what is trained to where `keeps_best` has made room.
  void remember_weights() noexcept {
    for (const detail::head_layout::parameter& each : layout_.parameters) {
      if (each.best != none) std::ranges::copy(pieces_[each.values], pieces_[each.best].begin());
    }
  }
  /// The weights become what was remembered.
  void recall_weights() noexcept {
    for (const detail::head_layout::parameter& each : layout_.parameters) {
      if (each.best == none) continue;
      std::ranges::copy(pieces_[each.best], pieces_[each.values].begin());
      round(each, 0, each.elements);
    }
  }

 private:
  static constexpr std::size_t none = detail::head_layout::none;

  [[nodiscard]] bool is_mixed() const noexcept { return options_.policy != precision_policy::f32; }

  [[nodiscard]] std::span<float> floats(std::size_t piece) const noexcept {
    if (piece == none) return {};
    return {reinterpret_cast<float*>(pieces_[piece].data()), pieces_[piece].size() / sizeof(float)};
  }
  [[nodiscard]] number_buffer compute(std::size_t piece) const noexcept {
    return {compute_type(options_.policy), pieces_[piece].data()};
  }
  /// What products read of a parameter that is trained.
  [[nodiscard]] number_view weights(std::size_t parameter) const noexcept {
    const detail::head_layout::parameter& each = layout_.parameters[parameter];
    return compute(each.rounded == none ? each.values : each.rounded);
  }

  void round(const detail::head_layout::parameter& each, std::size_t first,
             std::size_t count) const noexcept {
    if (each.rounded == none) return;
    (void)compute(each.rounded).write(first, floats(each.values).subspan(first, count));
  }

  [[nodiscard]] std::size_t normalization_step() const {
    const auto found =
        std::ranges::find(layout_.steps, head_layer_kind::normalization,
                          [](const detail::head_layout::step& each) { return each.layer.kind; });
    if (found == layout_.steps.end()) throw error("head: it has no normalization layer");
    return static_cast<std::size_t>(found - layout_.steps.begin());
  }

  void initialise() {
    for (const detail::head_layout::step& each : layout_.steps) {
      if (each.layer.kind == head_layer_kind::normalization) {
        std::ranges::fill(floats(layout_.parameters[each.parameter + 1].values), 1.0F);
      }
      if (each.layer.kind != head_layer_kind::dense) continue;
      const detail::head_layout::parameter& kernel = layout_.parameters[each.parameter];
      const double limit = std::sqrt(6 / static_cast<double>(each.inputs + each.outputs));
      const std::span<float> values = floats(kernel.values);
      for (std::size_t i = 0; i < values.size(); ++i) {
        counter_random random(options_.seed, each.parameter, i);
        values[i] = static_cast<float>(random.uniform(-limit, limit));
      }
      round(kernel, 0, values.size());
    }
  }

  void check_images(std::size_t values, std::size_t images) const {
    if (images == 0 || images > options_.max_batch) {
      throw error("head: a batch of " + std::to_string(images) + " images, where 1 to " +
                  std::to_string(options_.max_batch) + " were planned");
    }
    if (values != images * features()) {
      throw error("head: " + std::to_string(images) + " images have " +
                  std::to_string(images * features()) + " features, not " + std::to_string(values));
    }
  }

  /// Calls action(values, first) for numbers that were read, and writes what it makes of them.
  template <class Action>
  static void transform(const number_view& from, const number_buffer& to, std::size_t first,
                        std::size_t count, const Action& action) {
    std::array<float, 1024> values;
    for (std::size_t done = 0; done < count; done += values.size()) {
      const auto block = std::span(values).first(std::min(values.size(), count - done));
      from.read(first + done, block);
      action(block, done);
      (void)to.write(first + done, block);
    }
  }

  [[nodiscard]] number_view round_features(const number_view& features, std::size_t count) const {
    const number_buffer rounded = compute(layout_.rounded_features);
    transform(features, rounded, 0, count, [](std::span<float>, std::size_t) {});
    return rounded;
  }

  [[nodiscard]] number_view pool(const detail::head_layout::step& each, const number_view& input,
                                 std::size_t images) const {
    const number_buffer output = compute(each.output);
    const std::size_t pixels = each.inputs / each.channels;
    std::array<float, 1024> sums;
    std::array<float, 1024> values;
    for (std::size_t image = 0; image < images; ++image) {
      for (std::size_t first = 0; first < each.channels; first += sums.size()) {
        const std::size_t count = std::min(sums.size(), each.channels - first);
        std::ranges::fill(std::span(sums).first(count), 0.0F);
        for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
          input.read(image * each.inputs + pixel * each.channels + first,
                     std::span(values).first(count));
          for (std::size_t i = 0; i < count; ++i) sums[i] += values[i];
        }
        for (std::size_t i = 0; i < count; ++i) sums[i] /= static_cast<float>(pixels);
        (void)output.write(image * each.channels + first, std::span(sums).first(count));
      }
    }
    return output;
  }

  [[nodiscard]] number_view normalise(const detail::head_layout::step& each,
                                      const number_view& input, std::size_t images) const {
    const number_buffer output = compute(each.output);
    const std::span<const float> means = floats(layout_.parameters[each.parameter].values);
    const std::span<const float> deviations = floats(layout_.parameters[each.parameter + 1].values);
    const auto limit = static_cast<float>(each.layer.limit);
    const std::size_t pixels = images * (each.inputs / each.channels);
    for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
      transform(input, output, pixel * each.channels, each.channels,
                [&](std::span<float> values, std::size_t first) {
                  for (std::size_t i = 0; i < values.size(); ++i) {
                    values[i] = std::clamp((values[i] - means[first + i]) / deviations[first + i],
                                           -limit, limit);
                  }
                });
    }
    return output;
  }

  [[nodiscard]] number_view drop(std::size_t i, const number_view& input,
                                 std::size_t images) const {
    const number_buffer output = compute(layout_.steps[i].output);
    drop_values(i, input, output, images);
    return output;
  }

  /// Of values, and likewise of their gradients.
  void drop_values(std::size_t i, const number_view& input, const number_buffer& output,
                   std::size_t images) const {
    const detail::head_layout::step& each = layout_.steps[i];
    constexpr std::uint64_t for_dropout = 0x64726F706F7574;  // apart from what initialises
    const std::uint64_t seed = counter_random::mix(options_.seed ^ for_dropout) + i;
    const auto kept = static_cast<float>(1 / (1 - each.layer.rate));
    transform(input, output, 0, images * each.outputs,
              [&, this](std::span<float> values, std::size_t first) {
                for (std::size_t k = 0; k < values.size(); ++k) {
                  const bool dropped =
                      counter_random(seed, step_, first + k).unit() < each.layer.rate;
                  values[k] = dropped ? 0.0F : values[k] * kept;
                }
              });
  }

  [[nodiscard]] number_view multiply_dense(std::size_t i, const number_view& input,
                                           std::size_t images) const {
    const detail::head_layout::step& each = layout_.steps[i];
    const bool last = i + 1 == layout_.steps.size();
    const number_buffer output(last ? dtype::f32 : compute_type(options_.policy),
                               pieces_[each.output].data());
    const row_matrix<float> sums =
        output.room(0, images, each.outputs, each.outputs, floats(layout_.sums));
    const std::span<float> tile = floats(layout_.weight_tile);
    const number_view kernel = weights(each.parameter);
    for (std::size_t first = 0; first < each.inputs; first += each.tile_rows) {
      const std::size_t count = std::min(each.tile_rows, each.inputs - first);
      multiply(input.matrix(first, images, count, each.inputs, floats(layout_.input_tile)),
               kernel.matrix(first * each.outputs, count, each.outputs, each.outputs, tile), sums,
               first == 0 ? product_result::replaced : product_result::added_to);
    }
    const float* const bias =
        weights(each.parameter + 1).matrix(0, 1, each.outputs, each.outputs, tile).values;
    const bool relu = each.layer.activation == activation::relu;
    for (std::size_t image = 0; image < images; ++image) {
      float* const row = sums.values + image * each.outputs;
      for (std::size_t k = 0; k < each.outputs; ++k) {
        const float value = row[k] + bias[k];
        row[k] = relu && value < 0 ? 0.0F : value;  // a NaN stays
      }
    }
    (void)output.write(0, sums, each.outputs);
    return output;
  }

  /// Gradients become 0 where ReLU's output is not positive. The integer that a number's bits are is
  /// positive where the number is.
  void pass_where_positive(const detail::head_layout::step& each,
                           const number_buffer& delta) const {
    const std::size_t count = images_ * each.outputs;
    const std::byte* const outputs = pieces_[each.output].data();
    if (is_mixed()) {
      pass_where_positive<std::int16_t>(outputs, delta.data(), count);
    } else {
      pass_where_positive<std::int32_t>(outputs, delta.data(), count);
    }
  }
  template <class Bits>
  static void pass_where_positive(const std::byte* outputs, std::byte* delta, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      Bits output;
      std::memcpy(&output, outputs + i * sizeof(Bits), sizeof(Bits));
      if (output <= 0) std::memset(delta + i * sizeof(Bits), 0, sizeof(Bits));
    }
  }

  /// Of kernel and bias, from those by the layer's outputs.
  [[nodiscard]] bool weight_gradients(std::size_t i, const row_matrix<const float>& errors) const {
    const detail::head_layout::step& each = layout_.steps[i];
    const std::span<float> tile = floats(layout_.weight_tile);
    const number_buffer kernel = compute(layout_.parameters[each.parameter].gradient);
    bool finite = true;
    for (std::size_t first = 0; first < each.inputs; first += each.tile_rows) {
      const std::size_t count = std::min(each.tile_rows, each.inputs - first);
      const row_matrix<float> room =
          kernel.room(first * each.outputs, count, each.outputs, each.outputs, tile);
      multiply_first_transposed(
          inputs_[i].matrix(first, images_, count, each.inputs, floats(layout_.input_tile)), errors,
          room);
      finite &= kernel.write(first * each.outputs, room, each.outputs);
    }
    const number_buffer bias = compute(layout_.parameters[each.parameter + 1].gradient);
    const row_matrix<float> sums = bias.room(0, 1, each.outputs, each.outputs, tile);
    std::copy_n(errors.values, each.outputs, sums.values);
    for (std::size_t image = 1; image < images_; ++image) {
      for (std::size_t k = 0; k < each.outputs; ++k) {
        sums.values[k] += errors.values[image * errors.stride + k];
      }
    }
    return bias.write(0, sums, each.outputs) && finite;
  }

  /// By the layer's inputs, from those by its outputs.
  [[nodiscard]] bool input_gradients(const detail::head_layout::step& each,
                                     const row_matrix<const float>& errors,
                                     const number_buffer& to) const {
    const number_view kernel = weights(each.parameter);
    bool finite = true;
    for (std::size_t first = 0; first < each.inputs; first += each.tile_rows) {
      const std::size_t count = std::min(each.tile_rows, each.inputs - first);
      const row_matrix<float> room =
          to.room(first, images_, count, each.inputs, floats(layout_.input_tile));
      multiply_second_transposed(errors,
                                 kernel.matrix(first * each.outputs, count, each.outputs,
                                               each.outputs, floats(layout_.weight_tile)),
                                 room);
      finite &= to.write(first, room, each.inputs);
    }
    return finite;
  }

  head_options options_;
  detail::head_layout layout_;
  arena<host_resource> memory_{0};
  std::vector<std::span<std::byte>> pieces_;
  std::vector<head_parameter> infos_;
  std::vector<number_view> inputs_;  // of dense layers, in the last pass
  std::size_t images_ = 0;           // of the last pass, if it was for training
  std::uint64_t step_ = 0;
};

}  // namespace vggload::network
