// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vggload::vgg16 {

enum class layer_kind { conv, dense };

/// A layer with parameters. Convolutions are 3x3 with stride 1 and padding 1; every layer has a
/// bias for each output.
struct layer {
  std::string_view name;  // as Keras calls it
  layer_kind kind;
  std::uint32_t inputs;  // channels, or features of a dense layer
  std::uint32_t outputs;

  [[nodiscard]] constexpr std::uint64_t weights() const noexcept {
    return std::uint64_t{inputs} * outputs * (kind == layer_kind::conv ? 9 : 1);
  }
  [[nodiscard]] constexpr std::uint64_t parameters() const noexcept { return weights() + outputs; }
};

inline constexpr std::size_t conv_layers = 13;
inline constexpr std::size_t dense_layers = 3;

/// VGG16, configuration D of Simonyan and Zisserman, "Very Deep Convolutional Networks for
/// Large-Scale Image Recognition" (2014), in network order. The three dense layers are the top; the
/// last one's outputs are the classes, 1000 as published.
inline constexpr std::array<layer, conv_layers + dense_layers> layers{{
    {"block1_conv1", layer_kind::conv, 3, 64},
    {"block1_conv2", layer_kind::conv, 64, 64},
    {"block2_conv1", layer_kind::conv, 64, 128},
    {"block2_conv2", layer_kind::conv, 128, 128},
    {"block3_conv1", layer_kind::conv, 128, 256},
    {"block3_conv2", layer_kind::conv, 256, 256},
    {"block3_conv3", layer_kind::conv, 256, 256},
    {"block4_conv1", layer_kind::conv, 256, 512},
    {"block4_conv2", layer_kind::conv, 512, 512},
    {"block4_conv3", layer_kind::conv, 512, 512},
    {"block5_conv1", layer_kind::conv, 512, 512},
    {"block5_conv2", layer_kind::conv, 512, 512},
    {"block5_conv3", layer_kind::conv, 512, 512},
    {"fc1", layer_kind::dense, 512 * 7 * 7, 4096},
    {"fc2", layer_kind::dense, 4096, 4096},
    {"predictions", layer_kind::dense, 4096, 1000},
}};

/// What halves both sides of the maps behind the last convolution of each block: the largest of 2x2
/// with stride 2. A last odd row or column is dropped. As Keras calls them.
inline constexpr std::array<std::string_view, 5> pool_names{
    "block1_pool", "block2_pool", "block3_pool", "block4_pool", "block5_pool"};

/// Whether the pooling follows `layers[index]`.
[[nodiscard]] constexpr bool is_pooled(std::size_t index) noexcept {
  return index == 1 || index == 3 || index == 6 || index == 9 || index == 12;
}

/// The number of layers with or without the top.
[[nodiscard]] constexpr std::size_t layer_count(bool include_top) noexcept {
  return include_top ? layers.size() : conv_layers;
}

/// Weights and biases of the whole network, with another number of classes or without the top.
[[nodiscard]] constexpr std::uint64_t parameter_count(bool include_top = true,
                                                      std::uint32_t classes = 1000) noexcept {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < layer_count(include_top); ++i) {
    layer spec = layers[i];
    if (i + 1 == layers.size()) spec.outputs = classes;
    sum += spec.parameters();
  }
  return sum;
}

// As published: the paper's table 2 rounds them to 138 million.
static_assert(parameter_count() == 138'357'544);
static_assert(parameter_count(false) == 14'714'688);

}  // namespace vggload::vgg16
