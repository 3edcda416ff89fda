// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>

#include <Eigen/Core>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>
#include <vggload/vgg16/weights.hpp>

namespace vggload::network {

/// A layer's weight and bias as they lie in memory, whatever the layout of their file and the order
/// of its elements: a matrix that rows of inputs are multiplied by. Looks at the layer's bytes, and
/// is valid as long as they are.
class weight_matrix {
 public:
  using index = Eigen::Index;

  /// Throws `error` where the view is not one of the layer `wanted`, and `unsupported_error` where
  /// its elements cannot be widened to FP32.
  weight_matrix(const vgg16::layer_view& view, vgg16::weight_layout layout,
                const vgg16::layer& wanted)
      : weight_(view.weight),
        bias_(view.bias),
        inputs_(index{wanted.inputs} * (wanted.kind == vgg16::layer_kind::conv ? 9 : 1)),
        outputs_(index{wanted.outputs}),
        row_major_(view.weight.order() == element_order::row_major),
        outputs_adjacent_((layout == vgg16::weight_layout::keras) == row_major_),
        widen_(find_conversion(weight_.dtype(), dtype::f32)),
        widen_bias_(find_conversion(bias_.dtype(), dtype::f32)) {
    const shape dims = vgg16::detail::weight_shapes(wanted, layout).front();
    if (weight_.shape() != dims || bias_.shape() != shape{wanted.outputs}) {
      throw error("forward pass: " + std::string(wanted.name) + " has a weight " +
                  to_string(weight_.shape()) + " and a bias " + to_string(bias_.shape()) +
                  ", not " + to_string(dims) + " and " + to_string(shape{wanted.outputs}));
    }
    if (widen_ == nullptr || widen_bias_ == nullptr) {
      throw unsupported_error("forward pass: " + std::string(wanted.name) + " has a weight of " +
                              std::string(name_of(weight_.dtype())) + " and a bias of " +
                              std::string(name_of(bias_.dtype())) +
                              ", which cannot be widened to F32");
    }
  }

  /// Rows: of a convolution 9 for each channel.
  [[nodiscard]] index inputs() const noexcept { return inputs_; }
  /// Columns.
  [[nodiscard]] index outputs() const noexcept { return outputs_; }
  /// Whether the weights of one input for all outputs lie side by side, as in Keras' files; those of
  /// one output for all inputs do otherwise, as in PyTorch's. A convolution's inputs are the channels
  /// of one tap after the other then, and the taps of one channel after the other otherwise.
  [[nodiscard]] bool outputs_adjacent() const noexcept { return outputs_adjacent_; }
  /// Whether a convolution's taps go down the columns of its kernel, not along its rows.
  [[nodiscard]] bool taps_by_column() const noexcept { return !row_major_; }
  /// Whether the weight is used where it is: FP32, and aligned. It is widened tile by tile otherwise.
  [[nodiscard]] bool in_place() const noexcept {
    return weight_.dtype() == dtype::f32 &&
           tensor_view::is_aligned_for(weight_.bytes().data(), dtype::f32);
  }

  /// Columns `begin` to `end` of the product of `rows` rows of inputs and the weight, with the bias
  /// and, if asked for, ReLU. `output` has all columns. `tile`: room for widened weights where they
  /// are not in place. Allocates what Eigen packs.
  void multiply(const float* input, index rows, float* output, index begin, index end, bool relu,
                std::span<float> tile) const {
    if (begin == end) return;
    if (in_place()) {
      const float* const values = weight_.values<float>().data();
      multiply_part({0, inputs_, begin, end - begin}, input, rows, output,
                    values + (outputs_adjacent_ ? begin : begin * inputs_),
                    outputs_adjacent_ ? outputs_ : inputs_);
    } else {
      multiply_widened(input, rows, output, begin, end, tile);
    }
    add_bias(output, rows, begin, end, relu);
  }

 private:
  using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using column_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
  template <class Matrix>
  using strided = Eigen::Map<Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;

  /// A block of the matrix.
  struct part {
    index row;
    index height;
    index column;
    index width;
  };

  /// `values`: the part's, with `stride` between what is not adjacent. Parts below others are added
  /// to them.
  void multiply_part(const part& at, const float* input, index rows, float* output,
                     const float* values, index stride) const {
    const strided<const row_matrix> left(input + at.row, rows, at.height,
                                         Eigen::OuterStride<>(inputs_));
    strided<row_matrix> result(output + at.column, rows, at.width, Eigen::OuterStride<>(outputs_));
    const auto assign_or_add = [&](const auto& right) {
      if (at.row == 0) {
        result.noalias() = left * right;
      } else {
        result.noalias() += left * right;
      }
    };
    const Eigen::OuterStride<> outer(stride);
    if (outputs_adjacent_) {
      assign_or_add(strided<const row_matrix>(values, at.height, at.width, outer));
    } else {
      assign_or_add(strided<const column_matrix>(values, at.height, at.width, outer));
    }
  }

  /// Widens part by part; their sides are long where elements are adjacent.
  void multiply_widened(const float* input, index rows, float* output, index begin, index end,
                        std::span<float> tile) const {
    constexpr index long_run = 1024;
    const auto room = static_cast<index>(tile.size());
    const index most_height =
        std::min(inputs_, outputs_adjacent_ ? std::max<index>(1, room / (end - begin))
                                            : std::min(long_run, room));
    const index most_width = std::min(end - begin, room / most_height);
    for (index column = begin; column < end; column += most_width) {
      for (index row = 0; row < inputs_; row += most_height) {
        const part at{row, std::min(most_height, inputs_ - row), column,
                      std::min(most_width, end - column)};
        widen(at, tile.data());
        multiply_part(at, input, rows, output, tile.data(),
                      outputs_adjacent_ ? at.width : at.height);
      }
    }
  }

  void widen(const part& at, float* tile) const {
    const index element = bits_of(weight_.dtype()) / 8;
    const index runs = outputs_adjacent_ ? at.height : at.width;
    const index length = outputs_adjacent_ ? at.width : at.height;
    for (index run = 0; run < runs; ++run) {
      const index first = outputs_adjacent_ ? (at.row + run) * outputs_ + at.column
                                            : (at.column + run) * inputs_ + at.row;
      (void)widen_(weight_.bytes().data() + first * element,
                   reinterpret_cast<std::byte*>(tile + run * length),
                   static_cast<std::size_t>(length));
    }
  }

  void add_bias(float* output, index rows, index begin, index end, bool relu) const {
    std::array<float, 256> bias;
    const index element = bits_of(bias_.dtype()) / 8;
    for (index column = begin; column < end; column += 256) {
      const index width = std::min<index>(256, end - column);
      (void)widen_bias_(bias_.bytes().data() + column * element,
                        reinterpret_cast<std::byte*>(bias.data()), static_cast<std::size_t>(width));
      for (index row = 0; row < rows; ++row) {
        float* const values = output + row * outputs_ + column;
        for (index i = 0; i < width; ++i) {
          const float value = values[i] + bias[static_cast<std::size_t>(i)];
          values[i] = relu && value < 0 ? 0 : value;  // a NaN stays one
        }
      }
    }
  }

  tensor_view weight_;
  tensor_view bias_;
  index inputs_;
  index outputs_;
  bool row_major_;
  bool outputs_adjacent_;
  conversion widen_;
  conversion widen_bias_;
};

}  // namespace vggload::network
