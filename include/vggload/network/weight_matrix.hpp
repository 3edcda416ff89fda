// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/network/kernels.hpp>
#include <vggload/network/weight_source.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>

namespace vggload::network::detail {

/// What one thread works in: `floats`, whose last part stages what is read from a file.
struct workspace {
  static constexpr std::size_t staging_floats = std::size_t{1} << 14U;

  std::span<float> all;

  [[nodiscard]] float* room() const noexcept { return all.data(); }
  [[nodiscard]] std::size_t room_floats() const noexcept { return all.size() - staging_floats; }
  [[nodiscard]] std::span<std::byte> staging() const noexcept {
    return std::as_writable_bytes(all.last(staging_floats));
  }
};

/// A layer's weight and bias as they lie, whatever the layout of their file and the order of its elements: a matrix of
/// inputs and outputs. Those of one input for all outputs lie side by side, as in Keras' files ("outputs adjacent"), or
/// those of one output for all inputs, as in PyTorch's.
class weight_matrix {
 public:
  /// Throws `error` where the tensors are not those of the layer `wanted`, and `unsupported_error` where their elements
  /// cannot be widened to FP32.
  weight_matrix(weight_source weight, weight_source bias, vgg16::weight_layout layout,
                const vgg16::layer& wanted)
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        spec_(wanted),
        layout_(layout),
        row_major_(weight_.order() == element_order::row_major),
        outputs_adjacent_((layout == vgg16::weight_layout::keras) == row_major_) {
    const shape dims = vgg16::detail::weight_shapes(wanted, layout).front();
    if (weight_.dims() != dims || bias_.dims() != shape{wanted.outputs}) {
      throw error("forward pass: " + std::string(wanted.name) + " has a weight " +
                  to_string(weight_.dims()) + " and a bias " + to_string(bias_.dims()) + ", not " +
                  to_string(dims) + " and " + to_string(shape{wanted.outputs}));
    }
    if (!weight_.is_readable() || !bias_.is_readable()) {
      throw unsupported_error("forward pass: " + std::string(wanted.name) + " has a weight of " +
                              std::string(name_of(weight_.type())) + " and a bias of " +
                              std::string(name_of(bias_.type())) +
                              ", which cannot be widened to F32");
    }
  }

  [[nodiscard]] const vgg16::layer& spec() const noexcept { return spec_; }
  [[nodiscard]] std::size_t inputs() const noexcept { return spec_.inputs; }
  [[nodiscard]] std::size_t outputs() const noexcept { return spec_.outputs; }
  /// Whether fc1's inputs are in the order of channels, as in PyTorch.
  [[nodiscard]] bool is_torch() const noexcept { return layout_ == vgg16::weight_layout::torch; }
  [[nodiscard]] bool outputs_adjacent() const noexcept { return outputs_adjacent_; }
  [[nodiscard]] const weight_source& weight() const noexcept { return weight_; }

  /// The biases of `count` outputs from `first` on.
  void get_bias(std::size_t first, std::size_t count, float* to, const workspace& memory) const {
    const float* const values = bias_.get(first, count, to, memory.staging());
    if (values != to) std::copy_n(values, count, to);
  }

 private:
  weight_source weight_;
  weight_source bias_;
  vgg16::layer spec_;
  vgg16::weight_layout layout_;
  bool row_major_;
  bool outputs_adjacent_;

  friend class packed_panels;
};

/// Some of a convolution's outputs, panel by panel, as they are multiplied: transformed (winograd.hpp) to 16 planes of
/// [inputs, panel] each; of the first layer, which has three inputs, as they are, [9, 3, panel]; and the biases behind.
class packed_panels {
 public:
  /// The first panels go to the one memory, those that it has no room for to the other.
  packed_panels(const weight_matrix& matrix, const kernels& kernels, std::span<float> memory,
                std::span<float> more_memory = {}) noexcept
      : matrix_(&matrix),
        kernels_(&kernels),
        memory_(memory),
        more_memory_(more_memory),
        // A plane that is a power of two long would meet the others in the same lines of the cache.
        plane_(transformed() ? matrix.inputs() * kernels.panel + 16 : 0),
        panel_floats_((transformed() ? 16 * plane_ : 9 * matrix.inputs() * kernels.panel) +
                      kernels.panel),
        panels_in_memory_(memory.size() / panel_floats_) {}

  [[nodiscard]] bool transformed() const noexcept { return matrix_->inputs() >= 16; }
  /// Panels that fit into the memory at a time.
  [[nodiscard]] std::size_t most_panels() const noexcept {
    return std::min(matrix_->outputs() / kernels_->panel,
                    panels_in_memory_ + more_memory_.size() / panel_floats_);
  }
  [[nodiscard]] std::size_t plane() const noexcept { return plane_; }
  /// The weights of a panel, counted from the first one that is packed.
  [[nodiscard]] const float* weights(std::size_t panel) const noexcept { return place(panel); }
  [[nodiscard]] const float* biases(std::size_t panel) const noexcept { return bias_place(panel); }

  /// Into how many parts the packing of `panels` is divided, which different threads may take.
  [[nodiscard]] std::size_t parts(std::size_t panels) const noexcept {
    // What is not in memory is read in long runs: all inputs of some outputs, or all outputs of some inputs.
    return matrix_->outputs_adjacent()            ? chunks()
           : matrix_->weight_.values() == nullptr ? panels
                                                  : panels * chunks();
  }

  /// Packs a part of the panels from `first` on.
  void pack(std::size_t part, std::size_t first, std::size_t panels, const workspace& memory) {
    if (matrix_->outputs_adjacent()) {
      pack_inputs(part, first, panels, memory);
      if (part == 0) {
        for (std::size_t panel = 0; panel < panels; ++panel) pack_biases(panel, first, memory);
      }
      return;
    }
    if (matrix_->weight_.values() == nullptr) {
      pack_outputs(part, 0, chunks(), first, memory);
    } else {
      pack_outputs(part / chunks(), part % chunks(), part % chunks() + 1, first, memory);
    }
    if (part < panels) pack_biases(part, first, memory);
  }

 private:
  static constexpr std::size_t chunk = 16;  // inputs that are packed together
  static constexpr std::size_t most_panel = 32;

  [[nodiscard]] std::size_t chunks() const noexcept {
    return (matrix_->inputs() + chunk - 1) / chunk;
  }
  [[nodiscard]] float* place(std::size_t panel) const noexcept {
    return panel < panels_in_memory_
               ? memory_.data() + panel * panel_floats_
               : more_memory_.data() + (panel - panels_in_memory_) * panel_floats_;
  }
  [[nodiscard]] float* bias_place(std::size_t panel) const noexcept {
    return place(panel) + panel_floats_ - kernels_->panel;
  }

  void pack_biases(std::size_t panel, std::size_t first, const workspace& memory) {
    matrix_->get_bias((first + panel) * kernels_->panel, kernels_->panel, bias_place(panel),
                      memory);
  }

  /// The place in row-major order of the tap that is the `tap`th as the elements lie.
  [[nodiscard]] std::size_t tap_at(std::size_t tap) const noexcept {
    return matrix_->row_major_ ? tap : tap % 3 * 3 + tap / 3;
  }

  /// One panel, chunks `begin` to `end` of its inputs; for each output its inputs' 3x3 taps lie one after the other.
  void pack_outputs(std::size_t panel, std::size_t begin, std::size_t end, std::size_t first,
                    const workspace& memory) {
    const std::size_t width = kernels_->panel;
    const std::size_t run = 9 * matrix_->inputs();
    const float* const rows = matrix_->weight_.get((first + panel) * width * run, width * run,
                                                   memory.room(), memory.staging());
    for (std::size_t c = begin * chunk; c < std::min(end * chunk, matrix_->inputs()); c += chunk) {
      const std::size_t count = std::min(chunk, matrix_->inputs() - c);
      std::array<float, 9 * chunk * most_panel> taps;
      for (std::size_t output = 0; output < width; ++output) {
        const float* const values = rows + output * run + 9 * c;
        for (std::size_t tap = 0; tap < 9; ++tap) {
          float* const to = taps.data() + tap_at(tap) * count * width + output;
          for (std::size_t i = 0; i < count; ++i) to[i * width] = values[9 * i + tap];
        }
      }
      store(taps.data(), panel, c, count);
    }
  }

  /// One chunk of the inputs, for all panels; for each tap and input all outputs lie side by side.
  void pack_inputs(std::size_t part, std::size_t first, std::size_t panels,
                   const workspace& memory) {
    const std::size_t width = kernels_->panel;
    const std::size_t c = part * chunk;
    const std::size_t count = std::min(chunk, matrix_->inputs() - c);
    const std::size_t outputs = matrix_->outputs();
    std::array<const float*, 9> rows;
    for (std::size_t tap = 0; tap < 9; ++tap) {
      rows[tap_at(tap)] =
          matrix_->weight_.get((tap * matrix_->inputs() + c) * outputs, count * outputs,
                               memory.room() + tap * count * outputs, memory.staging());
    }
    for (std::size_t panel = 0; panel < panels; ++panel) {
      std::array<float, 9 * chunk * most_panel> taps;
      float* to = taps.data();
      for (const float* const row : rows) {
        for (std::size_t i = 0; i < count; ++i) {
          to = std::copy_n(row + i * outputs + (first + panel) * width, width, to);
        }
      }
      store(taps.data(), panel, c, count);
    }
  }

  /// `taps`: [9][count][panel], of the inputs from `c` on.
  void store(const float* taps, std::size_t panel, std::size_t c, std::size_t count) {
    const std::size_t width = kernels_->panel;
    if (transformed()) {
      kernels_->transform_weights(taps, count, place(panel) + c * width, plane_);
      return;
    }
    for (std::size_t tap = 0; tap < 9; ++tap) {
      std::copy_n(taps + tap * count * width, count * width,
                  place(panel) + (tap * matrix_->inputs() + c) * width);
    }
  }

  const weight_matrix* matrix_;
  const kernels* kernels_;
  std::span<float> memory_;
  std::span<float> more_memory_;
  std::size_t plane_;
  std::size_t panel_floats_;
  std::size_t panels_in_memory_;
};

}  // namespace vggload::network::detail
