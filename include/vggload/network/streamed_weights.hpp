// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/vgg16/binding.hpp>

namespace vggload::network {

/// VGG16's weights in a file, which a forward pass reads as it needs them and does not keep: it runs where they cannot
/// be loaded at all. The results are those of loaded weights, to the bit.
class streamed_weights {
 public:
  /// `types`: what the weights are rounded to before they are used, as a load would; by default they are used as they
  /// are in the file. `overflow`: what becomes of those that the type cannot hold. Without the top its tensors may be
  /// missing. Reads nothing yet. Throws `binding_error`, and `unsupported_error` where the weights cannot have the type.
  explicit streamed_weights(checkpoint file, const dtype_policy& types = std::nullopt,
                            bool include_top = true,
                            overflow_policy overflow = overflow_policy::keep)
      : file_(std::move(file)), bound_(vgg16::bind(file_, include_top)), overflow_(overflow) {
    for (const vgg16::bound_layer& layer : bound_.layers) {
      weight_types_.push_back(type_of(layer.weight, types));
      bias_types_.push_back(type_of(layer.bias, types));
    }
  }

  [[nodiscard]] const checkpoint& file() const noexcept { return file_; }
  [[nodiscard]] const vgg16::binding& layers() const noexcept { return bound_; }
  [[nodiscard]] overflow_policy overflow() const noexcept { return overflow_; }
  [[nodiscard]] dtype weight_type(std::size_t layer) const noexcept { return weight_types_[layer]; }
  [[nodiscard]] dtype bias_type(std::size_t layer) const noexcept { return bias_types_[layer]; }

 private:
  [[nodiscard]] dtype type_of(std::size_t tensor, const dtype_policy& types) const {
    const tensor_info& info = file_.tensors()[tensor];
    const dtype stored = types.storage_of(info);
    if (find_conversion(info.dtype, stored) == nullptr) {
      throw unsupported_error(printable(file_.path()) + ": tensor " + in_quotes(info.name) + ": " +
                              std::string(dtype_name(info)) + " cannot be used as " +
                              std::string(name_of(stored)));
    }
    return stored;
  }

  checkpoint file_;
  vgg16::binding bound_;
  overflow_policy overflow_;
  std::vector<dtype> weight_types_;
  std::vector<dtype> bias_types_;
};

}  // namespace vggload::network
