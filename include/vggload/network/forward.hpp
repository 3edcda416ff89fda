// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/network/weight_matrix.hpp>
#include <vggload/vgg16/footprint.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>
#include <vggload/vgg16/weights.hpp>

namespace vggload::network {

struct forward_options {
  std::uint64_t batch = 1;
  /// Of the input, in pixels: 224 and 224 with the top, at least 32 without.
  std::uint64_t height = 224;
  std::uint64_t width = 224;
  /// Probabilities instead of logits. Means nothing without the top.
  bool softmax = false;
  /// 0: one for each processor.
  unsigned threads = 0;
  /// Where the buffers are entered, if anywhere.
  std::shared_ptr<memory_ledger> ledger = {};
};

/// VGG16's forward pass on the host, in FP32. It runs on the weights as they are, in either layout:
/// none is copied whole. 16-bit ones are widened tile by tile. All that it allocates is one arena,
/// of exactly the activations and the workspace of `vgg16::plan` with `compute` FP32, and what
/// Eigen packs of a tile. Moves and copies: neither.
class forward_pass {
 public:
  /// The weights are looked at, and must outlive this. With the top the weights have 16 layers.
  /// Throws `error` where they are not VGG16's or cannot be widened, what `vgg16::plan` throws, and
  /// `out_of_memory`.
  forward_pass(const vgg16::weights& weights, const forward_options& options)
      : options_(options), layout_(weights.layout()), threads_(thread_count(options.threads)) {
    const std::size_t layers = weights.layers().size();
    if (layers != vgg16::layer_count(true) && layers != vgg16::layer_count(false)) {
      throw error("forward pass: VGG16 has 13 or 16 layers, not " + std::to_string(layers));
    }
    vgg16::plan_options wanted{.compute = dtype::f32,
                               .batch = options.batch,
                               .height = options.height,
                               .width = options.width,
                               .include_top = layers == vgg16::layers.size()};
    for (std::size_t i = 0; i < layers; ++i) {
      const vgg16::layer_view& view = weights.layers()[i];
      vgg16::layer spec = vgg16::layers[i];
      if (i + 1 == vgg16::layers.size()) spec.outputs = wanted.classes = view.spec.outputs;
      matrices_.emplace_back(view, layout_, spec);
      // Any 16-bit type has the same plan.
      if (!matrices_.back().in_place()) wanted.storage = dtype::f16;
    }
    const vgg16::footprint plan = vgg16::plan(wanted);
    output_shape_ = plan.layers.back().output_shape;
    const std::uint64_t bytes = plan.activations_bytes + plan.workspace_bytes;
    memory_ = vggload::detail::naming_out_of_memory("forward pass", "allocating", [&] {
      return arena<host_resource>(static_cast<std::size_t>(bytes), {}, options.ledger,
                                  "forward pass");
    });
    activations_ = take("activations", plan.activations_bytes, memory_role::activations);
    weight_tile_ = take("weight tile", plan.weight_tile_bytes, memory_role::workspace);
    im2col_ = take("im2col", plan.im2col_bytes, memory_role::workspace);
  }
  forward_pass(const forward_pass&) = delete;
  forward_pass& operator=(const forward_pass&) = delete;
  ~forward_pass() = default;

  /// `images`: [batch, height, width, 3], row-major. Returns the logits, or probabilities, [batch,
  /// classes], or without the top the last maps, [batch, height / 32, width / 32, 512], which stay
  /// until the next call. One call at a time. Throws `error` where `images` has another size, and
  /// `out_of_memory`.
  [[nodiscard]] std::span<const float> operator()(std::span<const float> images) {
    const std::uint64_t wanted = options_.batch * options_.height * options_.width * 3;
    if (images.size() != wanted) {
      throw error("forward pass: the images have " + std::to_string(images.size()) +
                  " values, not " + std::to_string(wanted) + " for " +
                  std::to_string(options_.batch) + " of " + std::to_string(options_.height) + "x" +
                  std::to_string(options_.width));
    }
    vggload::detail::naming_out_of_memory("forward pass", "multiplying",
                                          [&, this] { run_on_threads(images.data()); });
    return {result_, static_cast<std::size_t>(output_shape_.elements().value())};
  }

  /// [batch, classes] or [batch, height, width, 512].
  [[nodiscard]] const shape& output_shape() const noexcept { return output_shape_; }
  /// The arena: activations and workspace, by name.
  [[nodiscard]] const arena<host_resource>& memory() const noexcept { return memory_; }

 private:
  using index = Eigen::Index;
  using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using const_rows = Eigen::Map<const row_matrix>;

  struct image_size {
    index height;
    index width;
    index channels;
  };

  /// A thread's part of the pass. All take the same steps, each in its share of every one, and wait
  /// for the others in between.
  struct worker {
    unsigned number;
    unsigned count;
    std::barrier<>* step;

    /// This worker's part of 0 to `size`.
    [[nodiscard]] std::pair<index, index> share(index size) const {
      return {size * number / count, size * (number + 1) / count};
    }
    void wait() const { step->arrive_and_wait(); }
  };

  [[nodiscard]] static unsigned thread_count(unsigned wanted) {
    if (wanted == 0) wanted = std::max(1U, std::thread::hardware_concurrency());
    return std::min(wanted, 1024U);  // 256 weights of the tile for each
  }

  [[nodiscard]] std::span<float> take(std::string_view name, std::uint64_t bytes,
                                      memory_role role) {
    if (bytes == 0) return {};
    const std::span<std::byte> piece =
        memory_.allocate({name, {}, role}, static_cast<std::size_t>(bytes));
    return {reinterpret_cast<float*>(piece.data()), piece.size() / sizeof(float)};
  }

  void run_on_threads(const float* images) {
    std::barrier<> step(threads_);
    std::mutex mutex;
    std::exception_ptr failure;
    unsigned count = threads_;
    const auto run = [&, this](unsigned number) {
      try {
        step.arrive_and_wait();  // until `count` is known
        const float* const result = pass(images, {number, count, &step});
        if (number == 0) result_ = result;
      } catch (...) {
        // The others go on, and what they make is not looked at.
        step.arrive_and_drop();
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
        for (unsigned i = count; i < threads_; ++i) step.arrive_and_drop();
      }
      run(0);
    }
    if (failure) std::rethrow_exception(failure);
  }

  /// All steps; returns where the last one's output is.
  const float* pass(const float* input, const worker& self) {
    const auto batch = static_cast<index>(options_.batch);
    image_size size{static_cast<index>(options_.height), static_cast<index>(options_.width), 3};
    // A step reads one end of the buffer and writes the other: together they fit.
    bool at_front = true;
    const auto output = [&, this](index values) {
      float* const place =
          at_front ? activations_.data() : activations_.data() + activations_.size() - values;
      at_front = !at_front;
      return place;
    };
    for (std::size_t i = 0; i < vgg16::conv_layers; ++i) {
      const index pixels = batch * size.height * size.width;
      float* const convolved = output(pixels * matrices_[i].outputs());
      convolve(matrices_[i], input, size, pixels, convolved, self);
      size.channels = matrices_[i].outputs();
      input = convolved;
      if (!vgg16::is_pooled(i)) continue;
      float* const pooled = output(batch * (size.height / 2) * (size.width / 2) * size.channels);
      pool(input, size, batch, pooled, self);
      size = {size.height / 2, size.width / 2, size.channels};
      input = pooled;
    }
    if (matrices_.size() == vgg16::conv_layers) return input;
    if (layout_ == vgg16::weight_layout::torch) {
      float* const flat = output(batch * matrices_[vgg16::conv_layers].inputs());
      flatten_by_channel(input, size, batch, flat, self);
      input = flat;
    }
    for (std::size_t i = vgg16::conv_layers; i < matrices_.size(); ++i) {
      const bool last = i + 1 == matrices_.size();
      float* const values = output(batch * matrices_[i].outputs());
      multiply(matrices_[i], input, batch, values, !last, self);
      if (last && options_.softmax) normalise(values, batch, matrices_[i].outputs(), self);
      input = values;
    }
    return input;
  }

  void convolve(const weight_matrix& matrix, const float* input, const image_size& size,
                index pixels, float* output, const worker& self) {
    const auto rows = static_cast<index>(vgg16::im2col_rows(
        static_cast<std::uint32_t>(size.channels), static_cast<std::uint64_t>(pixels)));
    for (index first = 0; first < pixels; first += rows) {
      const index count = std::min(rows, pixels - first);
      const auto [begin, end] = self.share(count);
      for (index row = begin; row < end; ++row) {
        gather(matrix, input, size, first + row, im2col_.data() + row * matrix.inputs());
      }
      self.wait();
      multiply(matrix, im2col_.data(), count, output + first * matrix.outputs(), true, self);
    }
  }

  /// The 3x3 pixels around a pixel, zeros beyond the border, in the order of the weight's inputs.
  static void gather(const weight_matrix& matrix, const float* input, const image_size& size,
                     index pixel, float* row) {
    static constexpr std::array<float, 512> zeros{};
    const index x = pixel % size.width;
    const index y = pixel / size.width % size.height;
    std::array<const float*, 9> taps;
    for (index tap = 0; tap < 9; ++tap) {
      const index down = (matrix.taps_by_column() ? tap % 3 : tap / 3) - 1;
      const index along = (matrix.taps_by_column() ? tap / 3 : tap % 3) - 1;
      const bool inside =
          y + down >= 0 && y + down < size.height && x + along >= 0 && x + along < size.width;
      taps[static_cast<std::size_t>(tap)] =
          inside ? input + (pixel + down * size.width + along) * size.channels : zeros.data();
    }
    if (matrix.outputs_adjacent()) {
      for (const float* const tap : taps) row = std::copy_n(tap, size.channels, row);
    } else {
      for (index channel = 0; channel < size.channels; ++channel) {
        for (const float* const tap : taps) *row++ = tap[channel];
      }
    }
  }

  /// This worker's columns of the product with the weight.
  void multiply(const weight_matrix& matrix, const float* input, index rows, float* output,
                bool relu, const worker& self) const {
    const auto [begin, end] = self.share(matrix.outputs());
    const auto [tile_begin, tile_end] = self.share(static_cast<index>(weight_tile_.size()));
    matrix.multiply(input, rows, output, begin, end, relu,
                    weight_tile_.subspan(static_cast<std::size_t>(tile_begin),
                                         static_cast<std::size_t>(tile_end - tile_begin)));
    self.wait();
  }

  /// The largest of each 2x2 pixels; a NaN is larger than all.
  static void pool(const float* input, const image_size& size, index batch, float* output,
                   const worker& self) {
    const index height = size.height / 2;
    const index width = size.width / 2;
    const auto larger = [](float a, float b) { return b > a || b != b ? b : a; };
    const auto [begin, end] = self.share(batch * height);
    for (index row = begin; row < end; ++row) {
      const index source = row / height * size.height + row % height * 2;
      const float* above = input + source * size.width * size.channels;
      const float* below = above + size.width * size.channels;
      float* values = output + row * width * size.channels;
      for (index x = 0; x < width; ++x) {
        for (index c = 0; c < size.channels; ++c) {
          *values++ = larger(larger(above[c], above[c + size.channels]),
                             larger(below[c], below[c + size.channels]));
        }
        above += 2 * size.channels;
        below += 2 * size.channels;
      }
    }
    self.wait();
  }

  /// [height, width, channels] to [channels, height, width], as PyTorch's fc1 has its inputs.
  static void flatten_by_channel(const float* input, const image_size& size, index batch,
                                 float* output, const worker& self) {
    const index pixels = size.height * size.width;
    const auto [begin, end] = self.share(batch);
    for (index image = begin; image < end; ++image) {
      const index first = image * pixels * size.channels;
      Eigen::Map<row_matrix>(output + first, size.channels, pixels) =
          const_rows(input + first, pixels, size.channels).transpose();
    }
    self.wait();
  }

  /// Softmax of each row. The largest value is taken off first, so that nothing overflows.
  static void normalise(float* values, index batch, index classes, const worker& self) {
    const auto [begin, end] = self.share(batch);
    for (index image = begin; image < end; ++image) {
      Eigen::Map<Eigen::ArrayXf> row(values + image * classes, classes);
      row = (row - row.maxCoeff()).exp();
      row /= row.sum();
    }
    self.wait();
  }

  forward_options options_;
  vgg16::weight_layout layout_;
  unsigned threads_;
  std::vector<weight_matrix> matrices_;
  shape output_shape_;
  arena<host_resource> memory_{0};
  std::span<float> activations_;
  std::span<float> weight_tile_;
  std::span<float> im2col_;
  const float* result_ = nullptr;
};

}  // namespace vggload::network
