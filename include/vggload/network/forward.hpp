// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/load/file_read_ahead.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/network/kernels.hpp>
#include <vggload/network/streamed_weights.hpp>
#include <vggload/network/weight_matrix.hpp>
#include <vggload/network/weight_source.hpp>
#include <vggload/network/winograd.hpp>
#include <vggload/vgg16/footprint.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>
#include <vggload/vgg16/weights.hpp>

namespace vggload::network {

/// What becomes of the maps of a pass without the top: nothing, or the mean or the maximum of each channel.
enum class global_pooling { none, average, maximum };

/// A layer or pooling that has been computed.
struct layer_progress {
  std::string_view name;  // as Keras calls it
  std::size_t done;       // how many are, this one included
  std::size_t all;
};

/// The threads of a pass that was asked for `wanted`, which its plan has to know. 0: one for each processor.
[[nodiscard]] inline unsigned pass_threads(unsigned wanted) noexcept {
  return wanted == 0 ? std::max(1U, std::thread::hardware_concurrency()) : std::min(wanted, 1024U);
}

struct forward_options {
  std::uint64_t batch = 1;
  /// Of the input, in pixels: 224 and 224 with the top, at least 32 without.
  std::uint64_t height = 224;
  std::uint64_t width = 224;
  /// Probabilities instead of logits. Means nothing without the top.
  bool softmax = false;
  /// Where the pass ends: at a layer or pooling, as Keras calls it ("block4_conv3", "block5_pool", "fc1"); empty: at the
  /// last layer that there is. What follows need not be there.
  std::string_view last_layer = {};
  /// Of the maps with which a pass without dense layers ends.
  global_pooling pooling = global_pooling::none;
  /// 0: one for each processor.
  unsigned threads = 0;
  /// Most bytes that the pass may allocate: activations and workspace.
  std::optional<std::uint64_t> memory_limit = {};
  /// Of streamed weights: how many bytes a thread reads before they are used (load/file_read_ahead.hpp). They lie in the page
  /// cache, not in memory of the pass. 0: none.
  std::uint64_t read_ahead_bytes = std::uint64_t{64} << 20U;
  /// Where the buffers are entered, if anywhere.
  std::shared_ptr<memory_ledger> ledger = {};
  /// Called from the caller's thread. What it throws ends the pass, and comes out of it.
  std::function<void(const layer_progress&)> progress = {};
};

/// VGG16's forward pass on the host, in FP32. It runs on the weights as they are, in either layout, in memory or in a
/// file: none is copied whole. Convolutions are Winograd's F(2x2, 3x3) (winograd.hpp), with bias, ReLU and the pooling
/// behind them in the same step. All that it allocates is one arena, of exactly the activations and the workspace of
/// `vgg16::plan` with `compute` FP32. Results do not depend on the number of threads. Moves and copies: neither.
class forward_pass {
 public:
  /// The weights are looked at, and must outlive this. Throws `error` where they are not VGG16's, or not those up to the
  /// last layer, `unsupported_error` where they cannot be widened, what `vgg16::plan` throws, and `out_of_memory`.
  forward_pass(const vgg16::weights& weights, const forward_options& options)
      : forward_pass(options, weights.layers().size(),
                     [&](std::size_t i, const vgg16::layer& wanted, file_read_ahead&) {
                       const vgg16::layer_view& view = weights.layers()[i];
                       vgg16::layer spec = wanted;
                       if (i + 1 == vgg16::layers.size()) spec.outputs = view.spec.outputs;
                       return detail::weight_matrix(detail::weight_source(view.weight),
                                                    detail::weight_source(view.bias),
                                                    weights.layout(), spec);
                     }) {}

  /// The same with weights that are read in each pass. Throws `unsupported_error` as well where a tensor is compressed or
  /// permuted, which cannot be read in parts. A pass throws `io_error` and `overflow_error`.
  forward_pass(const streamed_weights& weights, const forward_options& options)
      : forward_pass(options, weights.layers().layers.size(),
                     [&](std::size_t i, const vgg16::layer&, file_read_ahead& ahead) {
                       const vgg16::bound_layer& bound = weights.layers().layers[i];
                       return detail::weight_matrix(
                           detail::weight_source(weights.file(), bound.weight, bound.weight_shape,
                                                 weights.weight_type(i), weights.overflow(), ahead),
                           detail::weight_source(weights.file(), bound.bias, bound.bias_shape,
                                                 weights.bias_type(i), weights.overflow(), ahead),
                           weights.layers().layout, bound.spec);
                     }) {}

  forward_pass(const forward_pass&) = delete;
  forward_pass& operator=(const forward_pass&) = delete;
  ~forward_pass() = default;

  /// `images`: [batch, height, width, 3], row-major. Returns the values of `output_shape`, which stay until the next
  /// call. One call at a time. Throws `error` where `images` has another size, `out_of_memory`, and what reading throws.
  [[nodiscard]] std::span<const float> operator()(std::span<const float> images) {
    const std::uint64_t wanted = options_.batch * options_.height * options_.width * 3;
    if (images.size() != wanted) {
      throw error("forward pass: the images have " + std::to_string(images.size()) +
                  " values, not " + std::to_string(wanted) + " for " +
                  std::to_string(options_.batch) + " of " + std::to_string(options_.height) + "x" +
                  std::to_string(options_.width));
    }
    vggload::detail::naming_out_of_memory("forward pass", "running",
                                          [&, this] { run_on_threads(images.data()); });
    return {result_, static_cast<std::size_t>(output_shape_.elements().value())};
  }

  /// [batch, classes] or another dense layer's [batch, features]; [batch, height, width, channels] of maps; [batch,
  /// channels] where they are pooled.
  [[nodiscard]] const shape& output_shape() const noexcept { return output_shape_; }
  /// The arena: activations and workspace, by name.
  [[nodiscard]] const arena<host_resource>& memory() const noexcept { return memory_; }

 private:
  struct map_size {
    std::size_t height;
    std::size_t width;
    std::size_t channels;

    [[nodiscard]] std::size_t values() const noexcept { return height * width * channels; }
  };

  /// A layer, with the pooling behind it.
  struct step {
    detail::weight_matrix matrix;
    bool pooled;
    std::string_view name;  // of what comes out
  };

  /// A thread's part of the pass. All take the same phases, in each what they can get, and meet in between.
  struct worker {
    unsigned number;
    unsigned count;
    detail::workspace memory;
    std::size_t phase = 0;

    /// This worker's part of 0 to `size`, in whole `steps`.
    [[nodiscard]] std::pair<std::size_t, std::size_t> share(std::size_t size,
                                                            std::size_t step = 1) const {
      const std::size_t steps = (size + step - 1) / step;
      return {std::min(size, steps * number / count * step),
              std::min(size, steps * (number + 1) / count * step)};
    }
  };

  /// What the threads of one call share.
  struct run_state {
    explicit run_state(unsigned threads) : barrier(threads) {}

    std::barrier<> barrier;
    std::array<std::atomic<std::size_t>, 2> next{};  // of this phase and the other
    std::atomic<bool> failed = false;
  };

  template <class MakeMatrix>
  forward_pass(const forward_options& options, std::size_t layers, const MakeMatrix& make_matrix)
      : options_(options),
        kernels_(detail::find_kernels()),
        threads_(pass_threads(options.threads)),
        ahead_(options.read_ahead_bytes) {
    if (layers != vgg16::layer_count(true) && layers != vgg16::layer_count(false)) {
      throw error("forward pass: VGG16 has 13 or 16 layers, not " + std::to_string(layers));
    }
    vgg16::plan_options wanted{.compute = dtype::f32,
                               .batch = options.batch,
                               .height = options.height,
                               .width = options.width,
                               .include_top = layers == vgg16::layers.size(),
                               .threads = threads_};
    const std::size_t used = layers_up_to(options.last_layer, layers);
    if (used <= vgg16::conv_layers) wanted.include_top = false;
    for (std::size_t i = 0; i < used; ++i) {
      steps_.push_back({make_matrix(i, vgg16::layers[i], ahead_), false, vgg16::layers[i].name});
    }
    if (wanted.include_top && used == vgg16::layers.size()) {
      wanted.classes = steps_.back().matrix.spec().outputs;
    }
    const vgg16::footprint plan = vgg16::plan(wanted);
    std::vector<vgg16::detail::pass_step> planned = vgg16::detail::steps_of(wanted);
    const auto last =
        std::ranges::find(planned, options.last_layer, &vgg16::detail::pass_step::name);
    if (last != planned.end()) planned.erase(last + 1, planned.end());
    std::size_t layer = 0;
    for (const vgg16::detail::pass_step& each : planned) {
      if (each.spec) {
        ++layer;
      } else {
        steps_[layer - 1].pooled = true;
        steps_[layer - 1].name = each.name;
      }
    }
    output_shape_ = planned.back().output;
    if (options.pooling != global_pooling::none && output_shape_.rank() == 4) {
      output_shape_ = {options.batch, output_shape_[3]};
    }

    const std::uint64_t activations = vgg16::detail::two_buffers(planned) * sizeof(float);
    const std::uint64_t bytes = plan.workspace_bytes + activations;
    if (options.memory_limit && bytes > *options.memory_limit) {
      throw out_of_memory(vggload::detail::fixed_text()
                              << "forward pass: the memory limit of " << *options.memory_limit
                              << " bytes cannot be kept: activations of " << activations
                              << " bytes and a workspace of " << plan.workspace_bytes
                              << " are needed",
                          "activations", bytes);
    }
    memory_ = vggload::detail::naming_out_of_memory("forward pass", "allocating", [&] {
      return arena<host_resource>(static_cast<std::size_t>(bytes), {}, options.ledger,
                                  "forward pass");
    });
    weight_tile_ = take("weight tile", plan.weight_tile_bytes, memory_role::workspace);
    thread_tiles_ = take("thread tiles", plan.thread_tiles_bytes, memory_role::workspace);
    activations_ = take("activations", activations, memory_role::activations);
  }

  /// How many layers there are up to the one with this name.
  [[nodiscard]] static std::size_t layers_up_to(std::string_view name, std::size_t layers) {
    if (name.empty()) return layers;
    for (std::size_t i = 0, pool = 0; i < layers; ++i) {
      if (name == vgg16::layers[i].name) return i + 1;
      if (vgg16::is_pooled(i) && name == vgg16::pool_names[pool++]) return i + 1;
    }
    throw error("forward pass: VGG16" +
                std::string(layers == vgg16::layers.size() ? "" : " without top") +
                " has no layer " + in_quotes(std::string(name)));
  }

  [[nodiscard]] std::span<float> take(std::string_view name, std::uint64_t bytes,
                                      memory_role role) {
    const std::span<std::byte> piece =
        memory_.allocate({name, {}, role}, static_cast<std::size_t>(bytes));
    return {reinterpret_cast<float*>(piece.data()), piece.size() / sizeof(float)};
  }

  void run_on_threads(const float* images) {
    const file_read_ahead::running reading(ahead_);
    run_state state(threads_);
    state_ = &state;
    std::mutex mutex;
    std::exception_ptr failure;
    unsigned count = threads_;
    const auto run = [&, this](unsigned number) {
      try {
        state.barrier.arrive_and_wait();  // until `count` is known
        const std::size_t floats = thread_tiles_.size() / threads_;
        worker self{number, count, {thread_tiles_.subspan(number * floats, floats)}};
        const float* const result = pass(images, self);
        if (number == 0) result_ = result;
      } catch (...) {
        // The others find out at the end of the phase.
        state.failed = true;
        state.barrier.arrive_and_drop();
        const std::scoped_lock lock(mutex);
        failure = std::current_exception();
      }
    };
    {
      std::vector<std::jthread> threads;
      try {
        threads.reserve(threads_ - 1);
        for (unsigned i = 1; i < threads_; ++i) threads.emplace_back(run, i);
      } catch (const std::exception&) {
        // No further thread to be had: those that are there do the work.
        count = static_cast<unsigned>(threads.size()) + 1;
        for (unsigned i = count; i < threads_; ++i) state.barrier.arrive_and_drop();
      }
      run(0);
    }
    if (failure) std::rethrow_exception(failure);
  }

  /// The worker's next piece of work in this phase, of `all`.
  [[nodiscard]] std::optional<std::size_t> next(const worker& self, std::size_t all) {
    const std::size_t piece = state_->next[self.phase % 2].fetch_add(1, std::memory_order_relaxed);
    if (piece >= all || state_->failed) return std::nullopt;
    return piece;
  }

  /// Until all have ended the phase. Nobody uses the other counter then: it is made ready for the next phase but one.
  void meet(worker& self) {
    state_->barrier.arrive_and_wait();
    if (self.number == 0) state_->next[self.phase % 2] = 0;
    ++self.phase;
  }

  /// All steps; returns where the last one's output is.
  const float* pass(const float* input, worker& self) {
    map_size size{static_cast<std::size_t>(options_.height),
                  static_cast<std::size_t>(options_.width), 3};
    const auto batch = static_cast<std::size_t>(options_.batch);
    // A step reads one end of the buffer and writes the other: together they fit.
    bool at_front = true;
    const auto output = [&, this](std::size_t values) {
      float* const place =
          at_front ? activations_.data() : activations_.data() + activations_.size() - values;
      at_front = !at_front;
      return place;
    };
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      const step& each = steps_[i];
      const detail::weight_matrix& matrix = each.matrix;
      if (matrix.spec().kind == vgg16::layer_kind::conv) {
        const std::size_t shrink = each.pooled ? 2 : 1;
        const map_size made{size.height / shrink, size.width / shrink, matrix.outputs()};
        const bool writes_front = at_front;
        float* const maps = output(batch * made.values());
        convolve(each, input, size, maps,
                 free_tile(matrix, i == 0 ? 0 : batch * size.values(), batch * made.values(),
                           writes_front),
                 self);
        size = made;
        input = maps;
      } else {
        if (i == vgg16::conv_layers && matrix.is_torch()) {
          float* const flat = output(batch * matrix.inputs());
          flatten_by_channel(input, size, flat, self);
          input = flat;
        }
        float* const values = output(batch * matrix.outputs());
        const bool last = i + 1 == vgg16::layers.size();
        multiply(matrix, input, values, !last, self);
        if (last && options_.softmax) normalise(values, matrix.outputs(), self);
        input = values;
      }
      if (self.number == 0 && options_.progress) {
        options_.progress({each.name, i + 1, steps_.size()});
      }
    }
    if (options_.pooling != global_pooling::none && steps_.size() <= vgg16::conv_layers) {
      float* const pooled = output(batch * size.channels);
      pool_globally(input, size, pooled, self);
      input = pooled;
    }
    return input;
  }

  /// Where a convolution's weights are packed beside the weight tile. In Keras' layout all outputs lie side by side, and
  /// are read again for each tile: then what is free between input and output helps.
  [[nodiscard]] std::span<float> free_tile(const detail::weight_matrix& matrix,
                                           std::size_t input_values, std::size_t output_values,
                                           bool writes_front) const noexcept {
    if (!matrix.outputs_adjacent()) return {};
    return activations_.subspan(writes_front ? output_values : input_values,
                                activations_.size() - input_values - output_values);
  }

  void convolve(const step& layer, const float* input, const map_size& size, float* output,
                std::span<float> more_memory, worker& self) {
    detail::packed_panels packed(layer.matrix, kernels_, weight_tile_, more_memory);
    const std::size_t all = layer.matrix.outputs() / kernels_.panel;
    for (std::size_t first = 0; first < all; first += packed.most_panels()) {
      const std::size_t panels = std::min(packed.most_panels(), all - first);
      while (const auto part = next(self, packed.parts(panels))) {
        packed.pack(*part, first, panels, self.memory);
      }
      meet(self);
      if (packed.transformed()) {
        convolve_tiles(layer, packed, first, panels, input, size, output, self);
      } else {
        convolve_pixels(packed, panels, input, size, output, self);
      }
      meet(self);
    }
  }

  /// By the definition, for the first layer: too few channels to be worth a transformation.
  void convolve_pixels(const detail::packed_panels& packed, std::size_t panels, const float* input,
                       const map_size& size, float* output, worker& self) {
    constexpr std::size_t at_once = 256;
    constexpr std::size_t taps = 27;
    const std::size_t pixels = static_cast<std::size_t>(options_.batch) * size.height * size.width;
    const std::size_t outputs = panels * kernels_.panel;
    float* const rows = self.memory.room();
    float* const products = rows + at_once * taps;
    while (const auto piece = next(self, (pixels + at_once - 1) / at_once)) {
      const std::size_t begin = *piece * at_once;
      const std::size_t count = std::min(at_once, pixels - begin);
      for (std::size_t i = 0; i < count; ++i) gather(input, size, begin + i, rows + i * taps);
      for (std::size_t panel = 0; panel < panels; ++panel) {
        kernels_.multiply(rows, taps, count, taps, packed.weights(panel), products);
        for (std::size_t i = 0; i < count; ++i) {
          kernels_.finish_row(products + i * kernels_.panel, packed.biases(panel),
                              output + (begin + i) * outputs + panel * kernels_.panel);
        }
      }
    }
  }

  /// The 3x3 pixels of three channels around a pixel, zeros beyond the border.
  static void gather(const float* input, const map_size& size, std::size_t pixel, float* row) {
    const std::size_t x = pixel % size.width;
    const std::size_t y = pixel / size.width % size.height;
    for (std::size_t down = 0; down < 3; ++down) {
      for (std::size_t along = 0; along < 3; ++along, row += 3) {
        // Below zero it wraps around, to beyond the other border.
        const bool inside = y + down - 1 < size.height && x + along - 1 < size.width;
        const float* const from = input + (pixel + (down - 1) * size.width + along - 1) * 3;
        for (std::size_t c = 0; c < 3; ++c) row[c] = inside ? from[c] : 0.0F;
      }
    }
  }

  void convolve_tiles(const step& layer, const detail::packed_panels& packed, std::size_t first,
                      std::size_t panels, const float* input, const map_size& size, float* output,
                      worker& self) {
    const tile_grid grid{size, layer.pooled, layer.matrix.outputs()};
    const std::size_t tiles =
        static_cast<std::size_t>(options_.batch) * grid.rows() * grid.columns();
    // As many groups as keep all threads busy to the end.
    const std::size_t most = self.count * static_cast<std::size_t>(vgg16::tiles_at_once);
    const std::size_t groups = std::min(tiles, (tiles + most - 1) / most * self.count);
    // Fewer tiles than threads: each takes some of the panels.
    const std::size_t splits =
        groups >= self.count ? 1 : std::min(panels, (self.count + groups - 1) / groups);
    while (const auto piece = next(self, groups * splits)) {
      const std::size_t group = *piece / splits;
      const std::size_t split = *piece % splits;
      convolve_group(grid, packed, first, {panels * split / splits, panels * (split + 1) / splits},
                     {tiles * group / groups, tiles * (group + 1) / groups}, input, output, self);
    }
  }

  /// How a map is divided into tiles of 2x2 outputs, and where their inputs and outputs are.
  struct tile_grid {
    map_size size;
    bool pooled;
    std::size_t outputs;

    [[nodiscard]] std::size_t rows() const noexcept { return (size.height + (pooled ? 0 : 1)) / 2; }
    [[nodiscard]] std::size_t columns() const noexcept {
      return (size.width + (pooled ? 0 : 1)) / 2;
    }
    [[nodiscard]] std::size_t row_of(std::size_t tile) const noexcept {
      return tile / columns() % rows();
    }
    [[nodiscard]] std::size_t column_of(std::size_t tile) const noexcept {
      return tile % columns();
    }
    [[nodiscard]] std::size_t image_of(std::size_t tile) const noexcept {
      return tile / columns() / rows();
    }

    /// The 4x4 pixels that the tile's outputs are made from, zeros beyond the border.
    [[nodiscard]] std::array<const float*, 16> patch(const float* input,
                                                     std::size_t tile) const noexcept {
      static constexpr std::array<float, 512> zeros{};
      const float* const image = input + image_of(tile) * size.values();
      std::array<const float*, 16> pixels;
      for (std::size_t i = 0; i < 16; ++i) {
        // Above and left of the first pixel they wrap around, to beyond the other border.
        const std::size_t y = 2 * row_of(tile) + i / 4 - 1;
        const std::size_t x = 2 * column_of(tile) + i % 4 - 1;
        const bool inside = y < size.height && x < size.width;
        pixels[i] = inside ? image + (y * size.width + x) * size.channels : zeros.data();
      }
      return pixels;
    }

    /// Where the outputs from the one at `channel` on go; products and biases are not in it.
    [[nodiscard]] detail::output_tile place(float* output, std::size_t tile,
                                            std::size_t channel) const noexcept {
      const std::size_t side = pooled ? 1 : 2;
      const std::size_t height = pooled ? rows() : size.height;
      const std::size_t width = pooled ? columns() : size.width;
      const std::size_t y = side * row_of(tile);
      const std::size_t x = side * column_of(tile);
      return {.products = nullptr,
              .plane = 0,
              .bias = nullptr,
              .output = output + ((image_of(tile) * height + y) * width + x) * outputs + channel,
              .row = width * outputs,
              .pixel = outputs,
              .has_right = x + 1 < width,
              .has_below = y + 1 < height,
              .pooled = pooled};
    }
  };

  using range = std::pair<std::size_t, std::size_t>;

  void convolve_group(const tile_grid& grid, const detail::packed_panels& packed, std::size_t first,
                      range panels, range tiles, const float* input, float* output, worker& self) {
    const std::size_t count = tiles.second - tiles.first;
    const std::size_t channels = grid.size.channels;
    // A row that is a power of two long would meet the others in the same lines of the cache.
    const std::size_t row = channels + 16;
    float* const inputs = self.memory.room();
    float* const products = inputs + 16 * count * row;
    for (std::size_t i = 0; i < count; ++i) {
      kernels_.transform_input(grid.patch(input, tiles.first + i), channels, inputs + i * row,
                               count * row);
    }
    const std::size_t width = kernels_.panel;
    for (std::size_t panel = panels.first; panel < panels.second; ++panel) {
      for (std::size_t plane = 0; plane < 16; ++plane) {
        kernels_.multiply(inputs + plane * count * row, row, count, channels,
                          packed.weights(panel) + plane * packed.plane(),
                          products + plane * count * width);
      }
      for (std::size_t i = 0; i < count; ++i) {
        detail::output_tile tile = grid.place(output, tiles.first + i, (first + panel) * width);
        tile.products = products + i * width;
        tile.plane = count * width;
        tile.bias = packed.biases(panel);
        kernels_.transform_output(tile);
      }
    }
  }

  /// A dense layer: [batch, inputs] to [batch, outputs].
  void multiply(const detail::weight_matrix& matrix, const float* input, float* output, bool relu,
                worker& self) {
    if (matrix.outputs_adjacent()) {
      multiply_columns(matrix, input, output, relu, self);
    } else {
      multiply_rows(matrix, input, output, relu, self);
    }
    meet(self);
  }

  /// Where the weights of an output lie side by side.
  void multiply_rows(const detail::weight_matrix& matrix, const float* input, float* output,
                     bool relu, worker& self) {
    constexpr std::size_t rows_at_once = 4;
    constexpr std::size_t images_at_once = 8;
    // Sums over parts lose less, and a part of the inputs stays in the first cache.
    constexpr std::size_t part = 2048;
    const auto batch = static_cast<std::size_t>(options_.batch);
    const std::size_t inputs = matrix.inputs();
    const std::size_t outputs = matrix.outputs();
    while (const auto piece = next(self, (outputs + rows_at_once - 1) / rows_at_once)) {
      const std::size_t first = *piece * rows_at_once;
      const std::size_t rows = std::min(rows_at_once, outputs - first);
      const float* const weights = matrix.weight().get(first * inputs, rows * inputs,
                                                       self.memory.room(), self.memory.staging());
      std::array<float, rows_at_once> bias;
      matrix.get_bias(first, rows, bias.data(), self.memory);
      for (std::size_t image = 0; image < batch; image += images_at_once) {
        const std::size_t images = std::min(images_at_once, batch - image);
        std::array<float, rows_at_once * images_at_once> sums{};
        for (std::size_t k = 0; k < inputs; k += part) {
          const std::size_t count = std::min(part, inputs - k);
          const float* const x = input + image * inputs + k;
          if (rows == rows_at_once) {
            kernels_.add_dots(weights + k, inputs, x, inputs, images, count, sums.data());
            continue;
          }
          for (std::size_t r = 0; r < rows; ++r) {  // four times the same row
            std::array<float, rows_at_once * images_at_once> same{};
            kernels_.add_dots(weights + r * inputs + k, 0, x, inputs, images, count, same.data());
            for (std::size_t i = 0; i < images; ++i) sums[4 * i + r] += same[4 * i];
          }
        }
        for (std::size_t i = 0; i < images; ++i) {
          for (std::size_t r = 0; r < rows; ++r) {
            const float value = sums[4 * i + r] + bias[r];
            output[(image + i) * outputs + first + r] = relu ? detail::rectified(value) : value;
          }
        }
      }
    }
  }

  /// Where the weights of an input lie side by side: sums over blocks of inputs, and then their sum. So weights are read
  /// in long runs, each once, and by any thread.
  void multiply_columns(const detail::weight_matrix& matrix, const float* input, float* output,
                        bool relu, worker& self) {
    constexpr std::size_t block_rows = 256;
    constexpr std::size_t most_images = 16;
    const auto batch = static_cast<std::size_t>(options_.batch);
    const std::size_t inputs = matrix.inputs();
    const std::size_t outputs = matrix.outputs();
    const std::size_t room = weight_tile_.size() / outputs;  // rows of sums
    const std::size_t at_once = std::min(most_images, room);
    for (std::size_t image = 0; image < batch; image += at_once) {
      const std::size_t images = std::min(batch - image, at_once);
      const std::size_t blocks = std::min((inputs + block_rows - 1) / block_rows, room / images);
      while (const auto block = next(self, blocks)) {
        const range rows{inputs * *block / blocks, inputs * (*block + 1) / blocks};
        add_rows(matrix, input + image * inputs, rows, images,
                 weight_tile_.data() + *block * images * outputs, self);
      }
      meet(self);
      sum_blocks(matrix, blocks, images, output + image * outputs, relu, self);
      meet(self);
    }
  }

  /// The products of some of the inputs with all their weights: `sums` [images, outputs].
  void add_rows(const detail::weight_matrix& matrix, const float* input, range rows,
                std::size_t images, float* sums, const worker& self) const {
    const std::size_t outputs = matrix.outputs();
    const std::size_t room = self.memory.room_floats();
    // Whole rows, or of very long ones a part of one.
    const std::size_t at_once = 8 * outputs <= room ? 8 : 1;
    std::fill_n(sums, images * outputs, 0.0F);
    for (std::size_t row = rows.first; row < rows.second; row += at_once) {
      const std::size_t some = std::min(at_once, rows.second - row);
      for (std::size_t first = 0; first < outputs; first += room) {
        const std::size_t columns = std::min(room, outputs - first);
        const float* const weights = matrix.weight().get(row * outputs + first, some * columns,
                                                         self.memory.room(), self.memory.staging());
        for (std::size_t image = 0; image < images; ++image) {
          kernels_.add_scaled_rows(weights, outputs, input + image * matrix.inputs() + row, some,
                                   columns, sums + image * outputs + first);
        }
      }
    }
  }

  /// Biases, and the sums of the blocks in their order.
  void sum_blocks(const detail::weight_matrix& matrix, std::size_t blocks, std::size_t images,
                  float* output, bool relu, const worker& self) const {
    const std::size_t outputs = matrix.outputs();
    const auto [begin, end] = self.share(outputs, 16);
    const std::size_t columns = end - begin;
    for (std::size_t image = 0; image < images; ++image) {
      float* const values = output + image * outputs + begin;
      matrix.get_bias(begin, columns, values, self.memory);
      for (std::size_t block = 0; block < blocks; ++block) {
        const float* const sums = weight_tile_.data() + (block * images + image) * outputs + begin;
        for (std::size_t i = 0; i < columns; ++i) values[i] += sums[i];
      }
      if (!relu) continue;
      for (std::size_t i = 0; i < columns; ++i) values[i] = detail::rectified(values[i]);
    }
  }

  /// [height, width, channels] to [channels, height, width], as PyTorch's fc1 has its inputs.
  void flatten_by_channel(const float* input, const map_size& size, float* output, worker& self) {
    const std::size_t pixels = size.height * size.width;
    const auto [begin, end] = self.share(static_cast<std::size_t>(options_.batch) * pixels);
    for (std::size_t pixel = begin; pixel < end; ++pixel) {
      float* const to = output + pixel / pixels * size.values() + pixel % pixels;
      for (std::size_t c = 0; c < size.channels; ++c) {
        to[c * pixels] = input[pixel * size.channels + c];
      }
    }
    meet(self);
  }

  /// Softmax of each row. The largest value is taken off first, so that nothing overflows.
  void normalise(float* values, std::size_t classes, worker& self) {
    const auto [begin, end] = self.share(static_cast<std::size_t>(options_.batch));
    for (std::size_t image = begin; image < end; ++image) {
      const std::span<float> row(values + image * classes, classes);
      const float most = *std::ranges::max_element(row);
      double sum = 0;
      for (float& value : row) {
        value = std::exp(value - most);
        sum += double{value};
      }
      for (float& value : row) value = static_cast<float>(double{value} / sum);
    }
    meet(self);
  }

  /// The mean or the maximum of each channel.
  void pool_globally(const float* input, const map_size& size, float* output, worker& self) {
    const std::size_t pixels = size.height * size.width;
    const auto [begin, end] = self.share(static_cast<std::size_t>(options_.batch) * size.channels);
    for (std::size_t i = begin; i < end; ++i) {
      const float* const channel = input + i / size.channels * size.values() + i % size.channels;
      double sum = 0;
      float most = channel[0];
      for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
        const float value = channel[pixel * size.channels];
        sum += double{value};
        most = detail::larger(most, value);
      }
      output[i] = options_.pooling == global_pooling::average
                      ? static_cast<float>(sum / static_cast<double>(pixels))
                      : most;
    }
    meet(self);
  }

  forward_options options_;
  detail::kernels kernels_;
  unsigned threads_;
  file_read_ahead ahead_;
  std::vector<step> steps_;
  shape output_shape_;
  arena<host_resource> memory_{0};
  std::span<float> activations_;
  std::span<float> weight_tile_;
  std::span<float> thread_tiles_;
  run_state* state_ = nullptr;  // of the call that runs
  const float* result_ = nullptr;
};

}  // namespace vggload::network
