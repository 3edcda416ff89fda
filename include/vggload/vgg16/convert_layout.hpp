// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/shape.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/convert_checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>

namespace vggload::vgg16 {

namespace detail {

/// What is left of the image in front of fc1, which flattens it: 7 x 7 places of 512 channels.
inline constexpr std::uint64_t flat_places = 49;
inline constexpr std::uint64_t flat_channels = 512;

/// A layer's weight from one layout in the other. The formulas: torch[o][i][h][w] =
/// keras[h][w][i][o]; of fc1 torch[o][c * 49 + p] = keras[p * 512 + c][o], p counting the places.
[[nodiscard]] inline converted_tensor convert_weight(const checkpoint& source,
                                                     const bound_layer& bound, weight_layout from,
                                                     weight_layout to) {
  const tensor_info& info = source.tensors()[bound.weight];
  converted_tensor converted{bound.weight, {}, bound.weight_shape};
  std::vector<strided_axis> axes = axes_of(info);
  if (from == to) {
    if (info.order != element_order::row_major) converted.axes = std::move(axes);
    return converted;
  }
  converted.shape = weight_shapes(bound.spec, to).front();
  if (bound.spec.kind == layer_kind::conv) {
    // [height, width, in, out] or [out, in, height, width].
    if (from == weight_layout::keras) {
      converted.axes = {axes[3], axes[2], axes[0], axes[1]};
    } else {
      converted.axes = {axes[2], axes[3], axes[1], axes[0]};
    }
    return converted;
  }
  // A file of torch's may hold [out, in] as a convolution: the same bytes.
  strided_axis in = axes.front();
  strided_axis out = axes.back();
  if (from == weight_layout::torch) {
    out = axes.front();
    in = {bound.spec.inputs,
          info.order == element_order::row_major ? axes.back().stride : axes[1].stride};
  }
  if (bound.spec.inputs != flat_places * flat_channels) {
    converted.axes = from == weight_layout::keras ? std::vector{out, in} : std::vector{in, out};
  } else if (from == weight_layout::keras) {
    converted.axes = {out, {flat_channels, in.stride}, {flat_places, in.stride * flat_channels}};
  } else {
    converted.axes = {{flat_places, in.stride}, {flat_channels, in.stride * flat_places}, out};
  }
  return converted;
}

/// Whether a file has one of the dense layers.
[[nodiscard]] inline bool has_top(const checkpoint& source) {
  return binder(source.path(), source.tensors(), source.metadata(), true).has_top();
}

}  // namespace detail

/// The names under which `convert_layout` writes VGG16's tensors: torchvision's, or those of Keras'
/// classic file without the ":0" ("block1_conv1/block1_conv1_W_1").
[[nodiscard]] inline std::string name_in_layout(weight_layout layout, tensor_slot slot) {
  if (layout == weight_layout::torch) return name_in(name_maps.front(), slot);
  const std::string name(layers[slot.layer].name);
  return name + "/" + name + (slot.is_bias ? "_b_1" : "_W_1");
}

/// Writes the VGG16 that a checkpoint holds, with its top if it has one, to a safetensors file in
/// another layout, under that layout's names, in network order, in the types that `types` says.
/// Moves the bytes box by box, within the memory of `write_converted`. Throws `binding_error` and
/// what `write_converted` throws.
inline stream_report convert_layout(const checkpoint& source, const std::string& path,
                                    weight_layout layout, const dtype_policy& types,
                                    stream_options options) {
  const binding bound = bind(source, detail::has_top(source));
  std::vector<converted_tensor> tensors;
  for (std::size_t i = 0; i < bound.layers.size(); ++i) {
    tensors.push_back(detail::convert_weight(source, bound.layers[i], bound.layout, layout));
    tensors.back().name = name_in_layout(layout, {i, false});
    tensors.push_back(
        {bound.layers[i].bias, name_in_layout(layout, {i, true}), bound.layers[i].bias_shape});
  }
  return write_converted(source, std::move(tensors), path, types, std::move(options));
}

}  // namespace vggload::vgg16
