// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>

namespace vggload::vgg16 {

/// The parameters of one layer, in place. `weight.values<float16>()` gives the elements. Shapes, by
/// the layout of the `weights` that it is from: torch [out, in, 3, 3] and [out, in], keras [3, 3,
/// in, out] and [in, out]; the bias is [out].
struct layer_view {
  layer spec;
  tensor_view weight;
  tensor_view bias;
};

/// Views of VGG16's parameters. Owns nothing: valid as long as the `model` it is from.
class weights {
 public:
  weights() = default;
  weights(weight_layout layout, std::vector<layer_view> views) noexcept
      : layout_(layout), layers_(std::move(views)) {}

  [[nodiscard]] weight_layout layout() const noexcept { return layout_; }
  /// All layers in network order: 13 convolutions and, with the top, 3 dense layers.
  [[nodiscard]] std::span<const layer_view> layers() const noexcept { return layers_; }
  [[nodiscard]] std::span<const layer_view> convs() const noexcept {
    return layers().first(std::min(conv_layers, layers_.size()));
  }
  /// fc1, fc2 and predictions; empty without the top.
  [[nodiscard]] std::span<const layer_view> dense() const noexcept {
    return layers().subspan(convs().size());
  }

  /// The layer with this name ("block1_conv1", ..., "predictions"). Throws `error` where there is
  /// none.
  [[nodiscard]] const layer_view& operator[](std::string_view name) const {
    for (const layer_view& view : layers_) {
      if (view.spec.name == name) return view;
    }
    throw error("VGG16 has no layer " + in_quotes(name) + " here; it has " +
                std::to_string(layers_.size()) + " from 'block1_conv1' on");
  }

  [[nodiscard]] std::uint64_t parameters() const noexcept {
    std::uint64_t sum = 0;
    for (const layer_view& view : layers_) sum += view.spec.parameters();
    return sum;
  }

 private:
  weight_layout layout_ = weight_layout::torch;
  std::vector<layer_view> layers_;
};

}  // namespace vggload::vgg16
