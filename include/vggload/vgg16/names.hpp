// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <vggload/vgg16/layers.hpp>

namespace vggload::vgg16 {

/// How a file lays its weights out. torch (and ONNX): convolutions [out, in, height, width], dense
/// layers [out, in]. keras: [height, width, in, out] and [in, out]; and the inputs of its fc1 are
/// flattened from height, width, channel where torch's are from channel, height, width.
enum class weight_layout { torch, keras };

[[nodiscard]] constexpr std::string_view name_of(weight_layout layout) noexcept {
  return layout == weight_layout::torch ? "torch" : "keras";
}

/// One of the network's 32 tensors.
struct tensor_slot {
  std::size_t layer;  // index into `layers`
  bool is_bias;

  friend constexpr bool operator==(tensor_slot, tensor_slot) = default;
};

/// How one family of files names VGG16's tensors: a stem for each layer, and an ending for its
/// weight and its bias. `matches_path`: the stem is Keras' layer name and may stand anywhere in a
/// path (below).
struct name_map {
  std::string_view family;
  weight_layout layout;
  std::array<std::string_view, layers.size()> stems;
  std::string_view weight_ending;
  std::string_view bias_ending;
  bool matches_path = false;
};

/// The families, where two of them fit a file equally well the first one counts. Sources:
/// torchvision 0.20, `models.vgg16`; timm 1.0, `vgg16`; jcjohnson/pytorch-vgg,
/// `vgg16-00b39a1b.pth`; ONNX model zoo, `vgg16-7`; Keras 3.6, `save_weights`; and
/// `vgg16_weights_tf_dim_ordering_tf_kernels.h5` with what Keras 2 and 3 write when they save it
/// again.
inline constexpr std::array<name_map, 6> name_maps{{
    {"torchvision",
     weight_layout::torch,
     {"features.0", "features.2", "features.5", "features.7", "features.10", "features.12",
      "features.14", "features.17", "features.19", "features.21", "features.24", "features.26",
      "features.28", "classifier.0", "classifier.3", "classifier.6"},
     ".weight",
     ".bias"},
    {"timm",
     weight_layout::torch,
     {"features.0", "features.2", "features.5", "features.7", "features.10", "features.12",
      "features.14", "features.17", "features.19", "features.21", "features.24", "features.26",
      "features.28", "pre_logits.fc1", "pre_logits.fc2", "head.fc"},
     ".weight",
     ".bias"},
    {"jcjohnson",
     weight_layout::torch,
     {"features.0", "features.2", "features.5", "features.7", "features.10", "features.12",
      "features.14", "features.17", "features.19", "features.21", "features.24", "features.26",
      "features.28", "classifier.1", "classifier.4", "classifier.6"},
     ".weight",
     ".bias"},
    {"ONNX model zoo",
     weight_layout::torch,
     {"vgg0_conv0", "vgg0_conv1", "vgg0_conv2", "vgg0_conv3", "vgg0_conv4", "vgg0_conv5",
      "vgg0_conv6", "vgg0_conv7", "vgg0_conv8", "vgg0_conv9", "vgg0_conv10", "vgg0_conv11",
      "vgg0_conv12", "vgg0_dense0", "vgg0_dense1", "vgg0_dense2"},
     "_weight",
     "_bias"},
    {"Keras",
     weight_layout::keras,
     {"block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block3_conv1",
      "block3_conv2", "block3_conv3", "block4_conv1", "block4_conv2", "block4_conv3",
      "block5_conv1", "block5_conv2", "block5_conv3", "fc1", "fc2", "predictions"},
     "/kernel",
     "/bias",
     true},
    {"Keras 3",
     weight_layout::keras,
     {"layers/conv2d", "layers/conv2d_1", "layers/conv2d_2", "layers/conv2d_3", "layers/conv2d_4",
      "layers/conv2d_5", "layers/conv2d_6", "layers/conv2d_7", "layers/conv2d_8", "layers/conv2d_9",
      "layers/conv2d_10", "layers/conv2d_11", "layers/conv2d_12", "layers/dense", "layers/dense_1",
      "layers/dense_2"},
     "/vars/0",
     "/vars/1"},
}};

/// The name that a family gives a tensor; for Keras the shortest of several.
[[nodiscard]] inline std::string name_in(const name_map& map, tensor_slot slot) {
  return std::string(map.stems[slot.layer]) +
         std::string(slot.is_bias ? map.bias_ending : map.weight_ending);
}

namespace detail {

/// Keras: a path in which some component is the layer's name and the last one tells kernel and
/// bias: "block1_conv1/block1_conv1_W_1:0", "block1_conv1/block1_conv1/kernel:0",
/// "model_weights/fc1/sequential/fc1/bias", "predictions/kernel".
[[nodiscard]] constexpr std::optional<tensor_slot> find_in_path(const name_map& map,
                                                                std::string_view name) noexcept {
  if (name.starts_with("optimizer"))
    return std::nullopt;  // its momenta are named after the weights
  if (name.ends_with(":0")) name.remove_suffix(2);
  const std::size_t last_slash = name.rfind('/');
  if (last_slash == std::string_view::npos) return std::nullopt;
  const std::string_view last = name.substr(last_slash + 1);
  std::string_view path = name.substr(0, last_slash);
  while (!path.empty()) {
    const std::string_view component = path.substr(0, path.find('/'));
    path.remove_prefix(component.size() == path.size() ? path.size() : component.size() + 1);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (component != map.stems[i]) continue;
      if (last == "kernel") return tensor_slot{i, false};
      if (last == "bias") return tensor_slot{i, true};
      if (last.starts_with(component)) {
        const std::string_view ending = last.substr(component.size());
        if (ending == "_W_1" || ending == "_W") return tensor_slot{i, false};
        if (ending == "_b_1" || ending == "_b") return tensor_slot{i, true};
      }
      return std::nullopt;
    }
  }
  return std::nullopt;
}

}  // namespace detail

/// Which of the network's tensors a family means by a name, if any. What wrappers put in front of
/// torch's names is passed over: "module." (DataParallel) and "_orig_mod." (torch.compile).
[[nodiscard]] constexpr std::optional<tensor_slot> find_slot(const name_map& map,
                                                             std::string_view name) noexcept {
  if (map.matches_path) return detail::find_in_path(map, name);
  for (const std::string_view wrapper : {"module.", "_orig_mod."}) {
    if (name.starts_with(wrapper)) name.remove_prefix(wrapper.size());
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (!name.starts_with(map.stems[i])) continue;
    const std::string_view ending = name.substr(map.stems[i].size());
    if (ending == map.weight_ending) return tensor_slot{i, false};
    if (ending == map.bias_ending) return tensor_slot{i, true};
  }
  return std::nullopt;
}

}  // namespace vggload::vgg16
