// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>

namespace vggload::vgg16 {

/// Where in a file the tensors of one layer are, as indices of the file's list, and the shapes that
/// views of them have: a dense weight that the file holds as a convolution ([4096, 512, 7, 7]) is
/// [4096, 25088].
struct bound_layer {
  layer spec;  // with the file's number of classes
  std::size_t weight;
  std::size_t bias;
  shape weight_shape;
  shape bias_shape;
};

/// The tensors of a file, put in VGG16's order.
struct binding {
  std::string_view family;  // of names
  weight_layout layout = weight_layout::torch;
  std::uint32_t classes = 0;         // 0 without the top
  std::vector<bound_layer> layers;   // 16, or 13 without the top
  std::vector<std::size_t> skipped;  // tensors of the file that are not loaded
};

namespace detail {

/// The shapes that a layer's weight may have in a file; the first is the one that views show.
[[nodiscard]] inline std::vector<shape> weight_shapes(const layer& spec, weight_layout layout) {
  const std::uint64_t in = spec.inputs;
  const std::uint64_t out = spec.outputs;
  if (spec.kind == layer_kind::conv) {
    if (layout == weight_layout::keras) return {{3, 3, in, out}};
    return {{out, in, 3, 3}};
  }
  if (layout == weight_layout::keras) return {{in, out}};
  // A dense layer written as a convolution over all that is left of the image: the same bytes.
  if (spec.inputs == 512 * 7 * 7) return {{out, in}, {out, 512, 7, 7}};
  return {{out, in}, {out, in, 1, 1}};
}

/// What a file's metadata says of the layers' weights: `keras_weights`, where the reader of a Keras
/// file puts their names in the layers' order, a line each and an empty line between two layers.
struct listed_weights {
  std::vector<bool> has;           // for each tensor; empty where nothing is said
  std::vector<std::size_t> order;  // of those that could be weights
  bool in_pairs = true;            // each layer has two: its kernel and its bias
};

/// Nothing where a name is that of no tensor: metadata may come from another file, converted.
[[nodiscard]] inline listed_weights find_listed(std::span<const tensor_info> tensors,
                                                std::span<const metadata_entry> metadata) {
  const auto entry = std::ranges::find(metadata, "keras_weights", &metadata_entry::first);
  if (entry == metadata.end()) return {};
  std::vector<std::size_t> by_name(tensors.size());
  std::iota(by_name.begin(), by_name.end(), std::size_t{0});
  const auto name = [tensors](std::size_t i) -> std::string_view { return tensors[i].name; };
  std::ranges::sort(by_name, {}, name);
  listed_weights listed{std::vector<bool>(tensors.size()), {}};
  std::size_t in_layer = 0;
  const auto end_layer = [&] {
    listed.in_pairs = listed.in_pairs && (in_layer == 0 || in_layer == 2);
    in_layer = 0;
  };
  std::string_view left = entry->second;
  while (!left.empty()) {
    const std::string_view line = left.substr(0, left.find('\n'));
    left.remove_prefix(std::min(line.size() + 1, left.size()));
    if (line.empty()) {
      end_layer();
      continue;
    }
    const auto found = std::ranges::lower_bound(by_name, line, {}, name);
    if (found == by_name.end() || name(*found) != line || listed.has[*found]) return {};
    listed.has[*found] = true;
    // A layer may have counters and seeds, too.
    if (!is_floating(tensors[*found].dtype)) continue;
    listed.order.push_back(*found);
    ++in_layer;
  }
  end_layer();
  return listed;
}

/// The family of names that most of the tensors, or of those listed, fit, or nullptr where none of
/// them fits any.
[[nodiscard]] inline const name_map* find_family(std::span<const tensor_info> tensors,
                                                 const listed_weights& listed = {}) {
  const name_map* best = nullptr;
  std::size_t most = 0;
  for (const name_map& map : name_maps) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (!listed.has.empty() && !listed.has[i]) continue;
      count += find_slot(map, tensors[i].name) ? 1U : 0U;
    }
    if (count > most) {
      most = count;
      best = &map;
    }
  }
  return best;
}

/// Collects all that is wrong, to say it at once.
class complaint_list {
 public:
  /// Kinds: "missing", "extra", "misshapen", ...
  explicit complaint_list(std::string_view kind) : kind_(kind) {}

  void add(const std::string& what) {
    // VGG16 has 32 tensors; a file with thousands of others needs no line of megabytes.
    constexpr std::size_t most = 64;
    if (++count_ <= most) text_ += (text_.empty() ? "" : ", ") + what;
  }

  void append_to(std::string& message) const {
    if (count_ == 0) return;
    message += "; " + std::string(kind_) + " (" + std::to_string(count_) + "): " + text_;
    if (count_ > 64) message += ", ...";
  }
  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }

 private:
  std::string_view kind_;
  std::string text_;
  std::size_t count_ = 0;
};

[[nodiscard]] inline std::string describe(const tensor_info& info) {
  return in_quotes(info.name) + " " + std::string(dtype_name(info)) + " " + to_string(info.shape);
}

/// What training leaves beside the weights, and no reason to refuse a file: counters and steps,
/// integers and masks of any shape, and all that an optimizer keeps ("optimizer/vars/3",
/// "optimizer_weights/adam/...").
[[nodiscard]] inline bool is_no_weight(const tensor_info& info) {
  return !is_floating(info.dtype) || info.shape.elements() == 1 ||
         info.name.starts_with("optimizer");
}

class binder {
 public:
  binder(std::string_view path, std::span<const tensor_info> tensors,
         std::span<const metadata_entry> metadata, bool include_top)
      : path_(path),
        tensors_(tensors),
        listed_(find_listed(tensors, metadata)),
        include_top_(include_top) {}

  [[nodiscard]] binding bind() {
    find_slots();
    if (map_ == nullptr) throw binding_error(no_family());
    result_.family = map_->family;
    result_.layout = map_->layout;
    set_classes();
    for (std::size_t i = 0; i < layer_count(include_top_); ++i) bind_layer(i);
    if (!missing_.empty() || !extra_.empty() || !misshapen_.empty()) fail();
    return std::move(result_);
  }

  /// Whether the file has one of the dense layers. In place of `bind`, not beside it.
  [[nodiscard]] bool has_top() {
    find_slots();
    return has_dense_layer();
  }

 private:
  /// Where a file lists its layers' weights, their order says what each of them is, whatever their
  /// names. The names do if the order does not fit, and where a layer is a network in itself, whose
  /// weights Keras puts in another order when some of them are frozen.
  void find_slots() {
    if (listed_.order.empty()) {
      map_ = find_family(tensors_);
    } else if (!listed_.in_pairs || !fits_in_order()) {
      map_ = find_family(tensors_, listed_);
    }
    if (map_ != nullptr) return assign_by_name();
    if (listed_.order.empty()) return;
    map_ = &*std::ranges::find(name_maps, "Keras", &name_map::family);
    by_order_ = true;
    assign_by_order();
  }

  [[nodiscard]] bool fits_in_order() const {
    if (listed_.order.size() > 2 * layers.size()) return false;
    const std::size_t count = layer_count(include_top_);
    if (listed_.order.size() < 2 * count) return false;
    for (std::size_t i = 0; i < count; ++i) {
      const shape& weight = tensors_[listed_.order[2 * i]].shape;
      layer spec = layers[i];
      if (i + 1 == layers.size() && weight.rank() == 2) {
        spec.outputs = static_cast<std::uint32_t>(std::min<std::uint64_t>(weight[1], UINT32_MAX));
      }
      if (weight != weight_shapes(spec, weight_layout::keras).front()) return false;
      if (tensors_[listed_.order[2 * i + 1]].shape != shape{spec.outputs}) return false;
    }
    return true;
  }

  void assign_by_order() {
    std::vector<bool> used(tensors_.size());
    for (std::size_t i = 0; i < listed_.order.size(); ++i) {
      const std::size_t tensor = listed_.order[i];
      if (i / 2 >= layers.size()) {
        extra_.add(describe(tensors_[tensor]));
        continue;
      }
      slots_[i / 2][i % 2] = tensor;
      used[tensor] = i / 2 < layer_count(include_top_);
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (!used[i]) result_.skipped.push_back(i);
    }
  }

  [[nodiscard]] std::string no_family() const {
    std::string text = printable(path_) + ": none of its " + std::to_string(tensors_.size()) +
                       " tensors has a name of VGG16's (known are the names of";
    for (const name_map& map : name_maps) {
      text += (&map == name_maps.data() ? " " : ", ") + std::string(map.family);
    }
    text += ")";
    for (std::size_t i = 0; i < tensors_.size() && i < 3; ++i) {
      text += (i == 0 ? "; it begins with " : ", ") + in_quotes(tensors_[i].name);
    }
    return text;
  }

  void assign_by_name() {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const tensor_info& info = tensors_[i];
      const auto slot = find_slot(*map_, info.name);
      if (!slot) {
        if (is_no_weight(info) || (!listed_.has.empty() && !listed_.has[i])) {
          result_.skipped.push_back(i);
        } else {
          extra_.add(describe(info));
        }
        continue;
      }
      auto& place = slots_[slot->layer][slot->is_bias ? 1 : 0];
      if (place) {
        extra_.add(describe(info) + " (beside " + in_quotes(tensors_[*place].name) + ")");
      } else {
        place = i;
        if (slot->layer >= layer_count(include_top_)) result_.skipped.push_back(i);
      }
    }
  }

  /// The number of classes is the number of outputs of the last weight, whatever its bias says.
  void set_classes() {
    if (!include_top_) return;
    result_.classes = layers.back().outputs;
    const auto weight = slots_.back()[0];
    if (!weight) return;
    const shape& dims = tensors_[*weight].shape;
    if (dims.rank() < 2) return;
    const std::uint64_t outputs = dims[map_->layout == weight_layout::keras ? dims.rank() - 1 : 0];
    if (outputs > 0 && outputs <= UINT32_MAX) {
      result_.classes = static_cast<std::uint32_t>(outputs);
    }
  }

  void bind_layer(std::size_t index) {
    layer spec = layers[index];
    if (index + 1 == layers.size()) spec.outputs = result_.classes;
    const std::vector<shape> weights = weight_shapes(spec, map_->layout);
    const shape biases{spec.outputs};
    const auto weight = find({index, false}, weights);
    const auto bias = find({index, true}, {&biases, 1});
    if (weight && bias) result_.layers.push_back({spec, *weight, *bias, weights.front(), biases});
  }

  /// The tensor at a slot if it is there with one of the shapes; complains otherwise.
  [[nodiscard]] std::optional<std::size_t> find(tensor_slot slot, std::span<const shape> wanted) {
    const auto place = slots_[slot.layer][slot.is_bias ? 1 : 0];
    if (!place) {
      missing_.add(in_quotes(name_in(*map_, slot)));
      return std::nullopt;
    }
    const tensor_info& info = tensors_[*place];
    for (const shape& candidate : wanted) {
      if (info.shape != candidate) continue;
      // Another shape of the same bytes is one in row-major order alone.
      if (info.order != element_order::row_major && candidate != wanted.front()) continue;
      if (find_conversion(info.dtype, dtype::f32) != nullptr) return place;
      misshapen_.add(describe(info) + ", whose elements cannot be weights");
      return std::nullopt;
    }
    misshapen_.add(describe(info) + " where " + to_string(wanted.front()) + " is needed");
    return std::nullopt;
  }

  [[noreturn]] void fail() const {
    std::string text = printable(path_) + ": its tensors do not make a VGG16" +
                       (include_top_ ? "" : " without top") +
                       (by_order_ ? " in the order in which its attributes list them"
                                  : " under the names of " + std::string(map_->family));
    missing_.append_to(text);
    extra_.append_to(text);
    misshapen_.append_to(text);
    if (include_top_ && !has_dense_layer()) text += "; the file has no top: load it without";
    throw binding_error(text);
  }

  [[nodiscard]] bool has_dense_layer() const {
    return std::any_of(slots_.begin() + conv_layers, slots_.end(),
                       [](const auto& slots) { return slots[0] || slots[1]; });
  }

  std::string_view path_;
  std::span<const tensor_info> tensors_;
  listed_weights listed_;
  bool include_top_;
  bool by_order_ = false;
  const name_map* map_ = nullptr;
  std::array<std::array<std::optional<std::size_t>, 2>, layers.size()> slots_;
  complaint_list missing_{"missing"};
  complaint_list extra_{"extra"};
  complaint_list misshapen_{"misshapen"};
  binding result_;
};

}  // namespace detail

/// Finds VGG16's tensors among those of a file: in the order in which a Keras file lists its layers'
/// weights (the metadata `keras_weights`; what is not listed is skipped), whatever their names; or
/// under the names of the family that fits most of them. Without the top its tensors, where the file
/// has them, are skipped; so is what training left beside the weights: counters, integers, an
/// optimizer's state. Any other tensor that is missing, extra, or misshapen throws one
/// `binding_error` that lists all of them.
template <weight_reader Reader>
[[nodiscard]] binding bind(const Reader& reader, bool include_top = true) {
  return detail::binder(reader.path(), reader.tensors(), reader.metadata(), include_top).bind();
}

}  // namespace vggload::vgg16
