// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/pickle.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/io/zip_archive.hpp>

namespace vggload {

namespace detail {

/// An element type of PyTorch's.
struct torch_type {
  std::string_view name;          // torch.float32
  std::string_view legacy_class;  // torch.FloatStorage and torch.FloatTensor, if it has them
  vggload::dtype dtype;
  std::uint8_t bytes;   // of an element of a storage
  bool packed = false;  // a storage's element is several of a tensor's
};

// `_dtype_to_storage_type_map` and `_new_dtypes` in torch/storage.py.
inline constexpr std::array<torch_type, 33> torch_types{{
    {"uint8", "Byte", dtype::u8, 1},
    {"int8", "Char", dtype::i8, 1},
    {"int16", "Short", dtype::i16, 2},
    {"int32", "Int", dtype::i32, 4},
    {"int64", "Long", dtype::i64, 8},
    {"float16", "Half", dtype::f16, 2},
    {"float32", "Float", dtype::f32, 4},
    {"float64", "Double", dtype::f64, 8},
    {"bfloat16", "BFloat16", dtype::bf16, 2},
    {"bool", "Bool", dtype::boolean, 1},
    {"complex64", "ComplexFloat", dtype::c64, 8},
    {"complex128", "ComplexDouble", dtype::opaque, 16},
    {"qint8", "QInt8", dtype::opaque, 1},
    {"quint8", "QUInt8", dtype::opaque, 1},
    {"qint32", "QInt32", dtype::opaque, 4},
    {"quint4x2", "QUInt4x2", dtype::opaque, 1, true},
    {"quint2x4", "QUInt2x4", dtype::opaque, 1, true},
    {"uint16", "", dtype::u16, 2},
    {"uint32", "", dtype::u32, 4},
    {"uint64", "", dtype::u64, 8},
    {"float8_e4m3fn", "", dtype::f8_e4m3, 1},
    {"float8_e5m2", "", dtype::f8_e5m2, 1},
    {"float8_e4m3fnuz", "", dtype::f8_e4m3fnuz, 1},
    {"float8_e5m2fnuz", "", dtype::f8_e5m2fnuz, 1},
    {"float8_e8m0fnu", "", dtype::f8_e8m0, 1},
    {"float4_e2m1fn_x2", "", dtype::opaque, 1},
    {"complex32", "", dtype::opaque, 4},
    {"bcomplex32", "", dtype::opaque, 4},
    {"bits8", "", dtype::opaque, 1},
    {"bits16", "", dtype::opaque, 2},
    {"bits1x8", "", dtype::opaque, 1},
    {"bits2x4", "", dtype::opaque, 1},
    {"bits4x2", "", dtype::opaque, 1},
}};

/// What a global of PyTorch's is, where it is one that a state dict may refer to.
enum class torch_global : std::uint8_t {
  rebuild,            // (storage, offset, size, stride, ...) -> tensor
  rebuild_with_type,  // the same; the storage has bytes, and argument 6 is the type
  rebuild_parameter,  // (tensor, ...) -> tensor
  tensor_class,       // () -> tensor, which a state (storage, offset, size, stride) fills
  storage_class,
  type,
  size,   // ((...),) -> tuple
  other,  // in values that are skipped
};

/// For `pickle`: what the global is, and of which type.
[[nodiscard]] inline std::optional<std::uint64_t> find_torch_global(std::string_view name) {
  const auto number = [](torch_global what, std::size_t type = 0) {
    return static_cast<std::uint64_t>(what) << 8U | type;
  };
  constexpr std::array<std::pair<std::string_view, torch_global>, 11> functions{{
      {"torch._utils._rebuild_tensor", torch_global::rebuild},
      {"torch._utils._rebuild_tensor_v2", torch_global::rebuild},
      {"torch._utils._rebuild_qtensor", torch_global::rebuild},
      {"torch._utils._rebuild_tensor_v3", torch_global::rebuild_with_type},
      {"torch._utils._rebuild_parameter", torch_global::rebuild_parameter},
      {"torch.storage.UntypedStorage", torch_global::storage_class},  // uint8, the first type
      {"torch.Size", torch_global::size},
      {"torch.per_tensor_affine", torch_global::other},
      {"torch.per_tensor_symmetric", torch_global::other},
      {"torch.per_channel_affine", torch_global::other},
      {"torch.per_channel_affine_float_qparams", torch_global::other},
  }};
  const auto found = std::ranges::find(functions, name, [](const auto& f) { return f.first; });
  if (found != functions.end()) return number(found->second);
  constexpr std::string_view module = "torch.";
  if (!name.starts_with(module)) return std::nullopt;
  name.remove_prefix(module.size());
  for (std::size_t i = 0; i < torch_types.size(); ++i) {
    const torch_type& type = torch_types[i];
    if (name == type.name) return number(torch_global::type, i);
    if (type.legacy_class.empty() || !name.starts_with(type.legacy_class)) continue;
    const std::string_view rest = name.substr(type.legacy_class.size());
    if (rest == "Storage") return number(torch_global::storage_class, i);
    if (rest == "Tensor") return number(torch_global::tensor_class, i);
  }
  return std::nullopt;
}

[[nodiscard]] inline torch_global torch_global_of(const pickle_value& global) {
  return static_cast<torch_global>(global.number >> 8U);
}
[[nodiscard]] inline const torch_type& torch_type_of(const pickle_value& global) {
  return torch_types[static_cast<std::size_t>(global.number & 0xFFU)];
}

/// A whole number that is not negative, or nothing.
[[nodiscard]] inline std::optional<std::uint64_t> count_of(const pickle_value& value) {
  if (!value.is(pickle_kind::integer) || value.number > INT64_MAX) return std::nullopt;
  return value.number;
}

/// Elements of one type in a row, which several tensors may share.
struct torch_storage {
  std::string_view key;
  const torch_type* type;
  std::uint64_t elements;
  // What of them is meant: all, unless it is a view of storages as PyTorch before 0.4 had them.
  std::uint64_t view_offset;
  std::uint64_t view_elements;

  [[nodiscard]] std::optional<std::uint64_t> bytes() const noexcept {
    return checked_multiply(elements, type->bytes);
  }
};

/// What a persistent id says: ("storage", class, key, location, elements), in legacy files with a
/// view, None or (key, offset, elements), at the end. Nothing where it has another form.
[[nodiscard]] inline std::optional<torch_storage> storage_of(const pickle& file,
                                                             const pickle_value& id) {
  if (!id.is(pickle_kind::storage)) return std::nullopt;
  const auto parts = file.items(id);
  if (parts.size() != 5 && parts.size() != 6) return std::nullopt;
  if (!parts[0].is(pickle_kind::text) || file.text(parts[0]) != "storage") return std::nullopt;
  if (!parts[1].is(pickle_kind::global) ||
      torch_global_of(parts[1]) != torch_global::storage_class || !parts[2].is(pickle_kind::text)) {
    return std::nullopt;
  }
  // PyTorch's are numbers. Long ones, shared by many ids, would take long to compare.
  constexpr std::uint32_t max_key_bytes = 255;
  const auto elements = count_of(parts[4]);
  if (!elements || parts[2].count > max_key_bytes) return std::nullopt;
  torch_storage storage{file.text(parts[2]), &torch_type_of(parts[1]), *elements, 0, *elements};
  if (parts.size() == 5 || parts[5].is(pickle_kind::none)) return storage;
  if (!parts[5].is(pickle_kind::tuple) || parts[5].count != 3) return std::nullopt;
  const auto view = file.items(parts[5]);
  const auto offset = count_of(view[1]);
  const auto count = count_of(view[2]);
  if (!offset || !count || !in_bounds(*offset, *count, *elements)) return std::nullopt;
  storage.view_offset = *offset;
  storage.view_elements = *count;
  return storage;
}

/// What the readers of PyTorch's two formats have in common.
class torch_reader {
 public:
  [[nodiscard]] const std::string& path() const noexcept { return file_->path(); }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_->size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return metadata_; }

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    const tensor_info& info = tensors_[tensor];
    check_window(path(), info, offset, out.size());
    const place& from = places_[tensor];
    if (!from.layout) return file_->read_at(from.offset + offset, out);
    if ((info.bytes - 1) / most_expansion >= from.storage_bytes) {
      throw unsupported_error(printable(path()) + ": tensor " + in_quotes(info.name) + ": its " +
                              std::to_string(info.bytes) + " bytes are a view of only " +
                              std::to_string(from.storage_bytes) + ", and more than " +
                              std::to_string(most_expansion) + " times as many are not made");
    }
    read_strided(*from.layout, offset, out,
                 [&, this](std::uint64_t at, std::span<std::byte> bytes) {
                   file_->read_at(from.offset + at, bytes);
                 });
  }

  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    const place& from = places_[tensor];
    const tensor_info& info = tensors_[tensor];
    if (from.layout || info.dtype == dtype::opaque || is_permuted(info)) return std::nullopt;
    return file_->view(from.offset, info.bytes);
  }

 protected:
  explicit torch_reader(input_file file) : file_(std::make_unique<mapped_file>(std::move(file))) {}

  [[nodiscard]] const mapped_file& file() const noexcept { return *file_; }
  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(path()) + ": " + what);
  }

  /// Lists the tensors of the object that was saved. `locate(storage, subject)` gives the place of
  /// a storage's bytes in the file; what it throws begins with `subject()`.
  template <class Locate>
  void list(const pickle& saved, Locate&& locate) {
    struct entry {
      pickle_value key;
      pickle_value tensor;
    };
    std::vector<entry> entries;
    saved.for_each_entry(find_state_dict(saved),
                         [&, this](const pickle_value& key, const pickle_value& value) {
                           if (!is_tensor(saved, value)) return;
                           if (!key.is(pickle_kind::text)) {
                             fail("a tensor's key in the state dict is not a text");
                           }
                           if (entries.size() == max_tensors) {
                             fail("the state dict has more than the " +
                                  std::to_string(max_tensors) + " tensors that are allowed");
                           }
                           entries.push_back({key, value});
                         });
    tensors_.reserve(entries.size());
    places_.reserve(entries.size());
    // Before any name is copied, as one long text may be the key of many.
    std::vector<pickle_value> keys;
    keys.reserve(entries.size());
    for (const entry& e : entries) keys.push_back(e.key);
    const auto same = [](const pickle_value& a, const pickle_value& b) {
      return a.number == b.number;
    };
    std::ranges::sort(keys, [&](const pickle_value& a, const pickle_value& b) {
      return !same(a, b) && saved.text(a) < saved.text(b);
    });
    const auto twice =
        std::ranges::adjacent_find(keys, [&](const pickle_value& a, const pickle_value& b) {
          return same(a, b) || saved.text(a) == saved.text(b);
        });
    if (twice != keys.end()) fail("tensor " + in_quotes(saved.text(*twice)) + " occurs twice");
    for (const entry& e : entries) add(saved, std::string(saved.text(e.key)), e.tensor, locate);
  }

 private:
  /// Where a tensor lies in the file.
  struct place {
    std::uint64_t offset;  // of its first element
    std::uint64_t storage_bytes;
    std::optional<strided_layout> layout;  // in the payload's order; none: dense
  };

  /// A view that repeats its elements more often than this is listed, but not read.
  static constexpr std::uint64_t most_expansion = 16;
  static constexpr std::size_t max_rank = 64;
  /// What the list may hold, far above any real one.
  static constexpr std::size_t max_tensors = 20'000;
  static constexpr std::uint64_t max_dims = 131'072;  // of all tensors
  /// Under which a training checkpoint has its state dict.
  static constexpr std::array<std::string_view, 3> nested_keys{"state_dict", "model",
                                                               "model_state_dict"};

  [[nodiscard]] static bool is_tensor(const pickle& saved, const pickle_value& value) {
    if (!value.is(pickle_kind::object)) return false;
    switch (torch_global_of(saved.object(value).function)) {
      case torch_global::rebuild:
      case torch_global::rebuild_with_type:
      case torch_global::rebuild_parameter:
      case torch_global::tensor_class: return true;
      default: return false;
    }
  }

  /// What a dict has of interest.
  struct dict_summary {
    std::size_t tensors = 0;
    std::uint64_t bytes = 0;                              // that they have in their storages
    std::array<pickle_value, nested_keys.size()> nested;  // absent, or a dict
  };
  [[nodiscard]] dict_summary summarize(const pickle& saved, const pickle_value& dict) const {
    dict_summary summary;
    saved.for_each_entry(dict, [&, this](const pickle_value& key, const pickle_value& value) {
      // Of too many the bytes do not matter any more.
      if (is_tensor(saved, value) && ++summary.tensors <= max_tensors) {
        summary.bytes = checked_add(summary.bytes, stored_bytes(saved, value)).value_or(UINT64_MAX);
      }
      if (!key.is(pickle_kind::text)) return;
      const auto known = std::ranges::find(nested_keys, saved.text(key));
      if (known == nested_keys.end() || !value.is(pickle_kind::dict)) return;
      pickle_value& nested = summary.nested[static_cast<std::size_t>(known - nested_keys.begin())];
      if (!nested.is(pickle_kind::absent)) fail("the key " + in_quotes(*known) + " occurs twice");
      nested = value;
    });
    return summary;
  }
  /// 0 for what is no tensor of PyTorch's.
  [[nodiscard]] static std::uint64_t stored_bytes(const pickle& saved, const pickle_value& tensor) {
    const auto parts = parts_of(saved, tensor);
    if (!parts) return 0;
    const auto elements = shape(parts->size).elements();
    const auto bytes = elements ? checked_multiply(*elements, parts->type->bytes) : std::nullopt;
    return std::min(bytes.value_or(UINT64_MAX), parts->storage.bytes().value_or(UINT64_MAX));
  }

  /// A dict of tensors, and where it was found: "model.state_dict".
  struct found_dict {
    pickle_value dict;
    std::string path;
    std::uint64_t bytes;
  };
  /// Of the dicts under the known keys, whatever stands beside them, the one whose tensors have the
  /// most bytes; of equal ones the first in the order of the keys. Where none of these has a tensor,
  /// the dict itself, or nothing. `seen`: those that were looked at, as a dict may contain itself.
  [[nodiscard]] std::optional<found_dict> largest_dict(const pickle& saved,
                                                       const pickle_value& dict, std::string path,
                                                       std::vector<std::uint64_t>& seen) const {
    constexpr std::size_t most_dicts = 64;
    if (seen.size() == most_dicts || std::ranges::find(seen, dict.number) != seen.end()) return {};
    seen.push_back(dict.number);
    const dict_summary summary = summarize(saved, dict);
    std::optional<found_dict> largest;
    for (std::size_t i = 0; i < nested_keys.size(); ++i) {
      if (summary.nested[i].is(pickle_kind::absent)) continue;
      std::string inner_path = path + (path.empty() ? "" : ".") + std::string(nested_keys[i]);
      auto inner = largest_dict(saved, summary.nested[i], std::move(inner_path), seen);
      if (inner && (!largest || inner->bytes > largest->bytes)) largest = std::move(inner);
    }
    if (summary.tensors > 0 && !largest) {
      largest = {dict, std::move(path), summary.bytes};
    }
    return largest;
  }

  /// The dict of tensors: the root, or the one that a training checkpoint has it in.
  [[nodiscard]] pickle_value find_state_dict(const pickle& saved) {
    const pickle_value root = saved.root();
    if (is_tensor(saved, root)) fail("it holds a lone tensor, which has no name, not a state dict");
    if (!root.is(pickle_kind::dict)) {
      fail(std::string("it holds ") +
           (root.is(pickle_kind::list)    ? "a list"
            : root.is(pickle_kind::tuple) ? "a tuple"
                                          : "a single value") +
           ", not a state dict");
    }
    std::vector<std::uint64_t> seen;
    auto found = largest_dict(saved, root, "", seen);
    if (!found) {
      fail(
          "there are no tensors in the dict, nor a dict of some under 'state_dict', 'model' or "
          "'model_state_dict'; its keys are: " +
          keys_of(saved, root));
    }
    if (!found->path.empty()) metadata_.emplace_back("state_dict", std::move(found->path));
    return found->dict;
  }
  /// The first of them, for a message.
  [[nodiscard]] static std::string keys_of(const pickle& saved, const pickle_value& dict) {
    constexpr std::size_t most_keys = 8;
    std::size_t count = 0;
    std::string keys;
    saved.for_each_entry(dict, [&](const pickle_value& key, const pickle_value&) {
      if (!key.is(pickle_kind::text) || ++count > most_keys + 1) return;
      keys += count == 1 ? "" : ", ";
      keys += count > most_keys ? "..." : in_quotes(saved.text(key));
    });
    return count == 0 ? "none" : keys;
  }

  /// What a tensor is rebuilt from.
  struct tensor_parts {
    torch_storage storage;
    const torch_type* type;
    std::uint64_t offset;  // here and below in elements
    std::vector<std::uint64_t> size;
    std::vector<std::uint64_t> stride;
    std::string pending;  // what is still to be done to each element: "conj", "neg"
  };

  /// Of a tuple, a list or a torch.Size.
  [[nodiscard]] static std::optional<std::vector<std::uint64_t>> counts_of(const pickle& saved,
                                                                           pickle_value value) {
    if (value.is(pickle_kind::object)) {
      const pickle_object object = saved.object(value);
      if (torch_global_of(object.function) != torch_global::size || object.arguments.count != 1) {
        return std::nullopt;
      }
      value = saved.items(object.arguments)[0];
    }
    std::vector<std::uint64_t> counts;
    bool good = true;
    const auto add = [&](const pickle_value& item) {
      const auto count = count_of(item);
      good = good && count && counts.size() < max_rank;
      if (good) counts.push_back(*count);
    };
    if (value.is(pickle_kind::tuple)) {
      if (value.count > max_rank) return std::nullopt;
      counts.reserve(value.count);
      for (const pickle_value& item : saved.items(value)) add(item);
    } else if (value.is(pickle_kind::list)) {
      saved.for_each_item(value, add);
    } else {
      return std::nullopt;
    }
    if (!good) return std::nullopt;
    return counts;
  }

  /// Nothing where they have another form than PyTorch's.
  [[nodiscard]] static std::optional<tensor_parts> parts_of(const pickle& saved,
                                                            pickle_value tensor) {
    pickle_object object = saved.object(tensor);
    // What a parameter wraps was there before it, so this ends.
    while (torch_global_of(object.function) == torch_global::rebuild_parameter) {
      if (object.arguments.count == 0) return std::nullopt;
      tensor = saved.items(object.arguments)[0];
      if (!is_tensor(saved, tensor)) return std::nullopt;
      object = saved.object(tensor);
    }
    const torch_global function = torch_global_of(object.function);
    if (function == torch_global::tensor_class) object.arguments = object.state;
    if (!object.arguments.is(pickle_kind::tuple)) return std::nullopt;
    const auto arguments = saved.items(object.arguments);
    if (arguments.size() < 4) return std::nullopt;
    const auto storage = storage_of(saved, arguments[0]);
    const auto offset = count_of(arguments[1]);
    auto size = counts_of(saved, arguments[2]);
    auto stride = counts_of(saved, arguments[3]);
    if (!storage || !offset || !size || !stride || size->size() != stride->size()) {
      return std::nullopt;
    }
    tensor_parts parts{*storage, storage->type, *offset, *std::move(size), *std::move(stride), {}};
    std::size_t metadata_at = 6;
    if (function == torch_global::rebuild_with_type) {
      if (arguments.size() <= metadata_at || !arguments[metadata_at].is(pickle_kind::global) ||
          torch_global_of(arguments[metadata_at]) != torch_global::type) {
        return std::nullopt;
      }
      parts.type = &torch_type_of(arguments[metadata_at++]);
    }
    if (arguments.size() > metadata_at && arguments[metadata_at].is(pickle_kind::dict)) {
      if (const auto key = saved.first_key(arguments[metadata_at])) {
        parts.pending = key->is(pickle_kind::text) ? saved.text(*key).substr(0, 16) : "changed";
      }
    }
    return parts;
  }

  template <class Locate>
  void add(const pickle& saved, std::string name, const pickle_value& tensor, Locate& locate) {
    const auto subject = [&] { return "tensor " + in_quotes(name) + ": "; };
    auto parts = parts_of(saved, tensor);
    if (!parts) {
      fail(subject() +
           "it is not rebuilt from a storage, an offset, and sizes and strides of one rank up to " +
           std::to_string(max_rank) + ", none of them negative");
    }
    dims_ += parts->size.size();
    if (dims_ > max_dims) {
      fail(subject() + "with its " + std::to_string(parts->size.size()) + " dims there are " +
           std::to_string(dims_) + " in all, more than the " + std::to_string(max_dims) +
           " that are allowed");
    }
    const torch_storage& storage = parts->storage;
    const auto storage_bytes = storage.bytes();
    if (!storage_bytes) {
      fail(subject() + "its storage's " + std::to_string(storage.elements) +
           " elements are more bytes than a 64-bit number can count");
    }
    place from{locate(storage, *storage_bytes, subject), *storage_bytes, {}};
    from.offset += storage.view_offset * storage.type->bytes;
    tensor_info info{name, parts->type->dtype, shape(parts->size), 0};
    if (!parts->pending.empty()) info.dtype = dtype::opaque;
    if (info.dtype == dtype::opaque) {
      info.foreign_dtype = parts->type->name;
      if (!parts->pending.empty()) info.foreign_dtype += "." + parts->pending;
    }
    if (parts->type->packed) {
      info.bytes = *storage_bytes;
    } else {
      place_elements(*parts, info, from, subject);
    }
    tensors_.push_back(std::move(info));
    places_.push_back(std::move(from));
  }

  /// Checks that all elements lie in the storage, whose view's place `from` has; then it has the
  /// tensor's.
  template <class Subject>
  void place_elements(const tensor_parts& parts, tensor_info& info, place& from,
                      const Subject& subject) const {
    const std::uint64_t element_bytes = parts.type->bytes;
    const auto elements = info.shape.elements();
    const auto bytes = elements ? checked_multiply(*elements, element_bytes) : std::nullopt;
    if (!bytes) {
      fail(subject() + std::string(parts.type->name) + " " + to_string(info.shape) +
           " has more bytes than a 64-bit number can count");
    }
    info.bytes = *bytes;
    // What has no elements may lie anywhere: x[3:, 4:] of a [3, 4] begins behind its storage.
    if (*elements == 0) return;
    std::optional<std::uint64_t> end = parts.offset;  // of the last element, once 1 is added
    for (std::size_t axis = 0; axis < info.shape.rank(); ++axis) {
      if (parts.size[axis] == 1) continue;
      const auto way = checked_multiply(parts.size[axis] - 1, parts.stride[axis]);
      end = end && way ? checked_add(*end, *way) : std::nullopt;
    }
    end = end ? checked_add(*end, 1) : std::nullopt;
    const std::uint64_t view_elements =
        parts.storage.view_elements * parts.storage.type->bytes / element_bytes;
    if (!end || *end > view_elements) {
      fail(subject() + to_string(info.shape) + " from offset " + std::to_string(parts.offset) +
           " in steps of " + to_string(shape(parts.stride)) + " reaches " +
           (end ? "element " + std::to_string(*end) : "beyond 64 bits") + ", but its storage has " +
           std::to_string(view_elements));
    }
    from.offset += parts.offset * element_bytes;
    order_elements(parts, info, from);
  }

  /// Gives the payload the order that the elements have in the storage, so that reading it goes
  /// through the file onwards, whatever the view: one that is transposed or permuted is dense then.
  static void order_elements(const tensor_parts& parts, tensor_info& info, place& from) {
    const std::uint64_t element_bytes = parts.type->bytes;
    std::vector<std::size_t> logical;  // axes; the stride of a single step is anything
    for (std::size_t axis = 0; axis < info.shape.rank(); ++axis) {
      if (parts.size[axis] > 1) logical.push_back(axis);
    }
    const auto is_repeated = [&](std::size_t axis) { return parts.stride[axis] == 0; };
    std::vector<std::size_t> moved;
    std::ranges::remove_copy_if(logical, std::back_inserter(moved), is_repeated);
    std::ranges::stable_sort(moved, std::greater(), [&](std::size_t a) { return parts.stride[a]; });
    std::vector<std::size_t> order = logical;  // slowest first; repetitions stay where they are
    auto next = moved.begin();
    for (std::size_t& axis : order) {
      if (!is_repeated(axis)) axis = *next++;
    }

    std::vector<strided_axis> axes;
    for (const std::size_t axis : order) {
      axes.push_back({parts.size[axis], parts.stride[axis] * element_bytes});
    }
    strided_layout layout(axes, static_cast<std::size_t>(element_bytes));
    if (!layout.is_dense()) from.layout = std::move(layout);
    if (order == logical) return;
    info.order = element_order::column_major;
    if (std::ranges::equal(order.rbegin(), order.rend(), logical.begin(), logical.end())) return;
    info.strides.assign(info.shape.rank(), element_bytes);
    std::uint64_t stride = element_bytes;
    for (std::size_t i = order.size(); i-- > 0;) {
      info.strides[order[i]] = stride;
      stride *= parts.size[order[i]];
    }
  }

  std::unique_ptr<const mapped_file> file_;
  std::vector<tensor_info> tensors_;
  std::vector<place> places_;
  std::vector<metadata_entry> metadata_;
  std::uint64_t dims_ = 0;
};

}  // namespace detail

/// What `torch.save` writes since PyTorch 1.6: a zip of a pickled object and the storages of its
/// tensors. Format: torch/serialization.py, `_save` and `_load`.
///
/// The object is the state dict, or a training checkpoint that has it under "state_dict", "model"
/// or "model_state_dict", or under one of these in another; then metadata() has the entry
/// "state_dict" with that key ("model.state_dict"). Of several such it is the one whose
/// tensors have the most bytes. What else is in
/// it is skipped. Nothing is executed, so an object of any other class than a tensor's is an error.
/// A tensor whose elements follow each other in its storage is viewed in place where they do so in
/// row- or column-major order (a transposed matrix). The payload of any other view, gathered where
/// there are gaps, has its elements in the storage's order, which the tensor's `order` and `strides`
/// tell. A model of `weight_reader`.
class torch_zip_reader : public detail::torch_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit torch_zip_reader(input_file file) : torch_reader(std::move(file)) {
    const zip_archive archive(this->file().file());
    const std::string folder =
        folder_of(archive.members().empty() ? "" : archive.members().front().name);
    const zip_member* pickle_member = archive.find(folder + "data.pkl");
    if (pickle_member == nullptr) fail("the zip has no member " + in_quotes(folder + "data.pkl"));
    require_stored(*pickle_member, "");
    check_byte_order(archive.find(folder + "byteorder"));
    const std::uint64_t end = pickle_member->data_offset + pickle_member->bytes;
    const detail::pickle saved(this->file(), pickle_member->data_offset, end,
                               in_quotes(pickle_member->name), detail::find_torch_global);
    if (saved.bytes() != pickle_member->bytes) {
      fail(in_quotes(pickle_member->name) + " ends at byte " + std::to_string(saved.bytes()) +
           " of its " + std::to_string(pickle_member->bytes));
    }
    list(saved, [&, this](const detail::torch_storage& storage, std::uint64_t bytes,
                          const auto& subject) {
      const std::string name = folder + "data/" + std::string(storage.key);
      const zip_member* member = archive.find(name);
      if (member == nullptr) fail(subject() + "the zip has no member " + in_quotes(name));
      require_stored(*member, subject());
      if (member->bytes != bytes) {
        fail(subject() + "its storage has " + std::to_string(storage.elements) + " elements of " +
             std::string(storage.type->name) + ", which are " + std::to_string(bytes) +
             " bytes, but member " + in_quotes(name) + " has " + std::to_string(member->bytes));
      }
      return member->data_offset;
    });
  }

  /// A zip that has "data.pkl" in the folder of its first member.
  [[nodiscard]] static bool matches(const input_file& file, std::span<const std::byte> head) {
    if (!zip_archive::matches(head)) return false;
    try {
      const std::vector<std::string> names = zip_archive::names(file);
      if (names.empty()) return false;
      return std::ranges::find(names, folder_of(names.front()) + "data.pkl") != names.end();
    } catch (const format_error&) {
      // As torch writes it, "data.pkl" comes first; then this is a broken one.
      constexpr std::size_t header_bytes = 30;
      if (head.size() < header_bytes) return false;
      const std::size_t name_bytes = detail::little_endian_reader(head).u16(26);
      if (!in_bounds(header_bytes, name_bytes, file.size())) return false;
      std::string name(name_bytes, '\0');
      file.read_at(header_bytes, std::as_writable_bytes(std::span(name)));
      return name.ends_with("/data.pkl");
    }
  }

  [[nodiscard]] std::string_view format() const noexcept { return "torch-zip"; }

 private:
  /// "archive/", of the first member.
  [[nodiscard]] static std::string folder_of(const std::string& first) {
    return first.substr(0, first.find('/')) + '/';
  }

  void require_stored(const zip_member& member, const std::string& subject) const {
    if (member.deflated) {
      fail(subject + "member " + in_quotes(member.name) +
           " is deflated, but PyTorch's are stored as they are");
    }
  }

  void check_byte_order(const zip_member* member) const {
    if (member == nullptr) return;
    std::string order(static_cast<std::size_t>(std::min<std::uint64_t>(member->stored_bytes, 16)),
                      '\0');
    file().read_at(member->data_offset, std::as_writable_bytes(std::span(order)));
    if (order != "little") {
      fail("its byte order is " + in_quotes(order) + "; only 'little' can be read");
    }
  }
};

static_assert(weight_reader<torch_zip_reader>);

/// What `torch.save` wrote before PyTorch 1.6, the official VGG16 of 2017 among it, and still
/// writes when told so: five pickles, then the storages. Format: torch/serialization.py,
/// `_legacy_save` and `_legacy_load`. All else is as with `torch_zip_reader`; views in place too,
/// which torch itself does not offer.
class torch_legacy_reader : public detail::torch_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit torch_legacy_reader(input_file file) : torch_reader(std::move(file)) {
    std::array<std::byte, 64> head;
    const auto begin = std::span(head).first(
        static_cast<std::size_t>(std::min<std::uint64_t>(head.size(), file_bytes())));
    this->file().read_at(0, begin);
    if (is_tar(this->file().file(), begin)) {
      fail("it is a tar, as the first PyTorch wrote it; load it with torch and save it again");
    }
    if (!has_magic_number(begin)) fail("it does not begin with the magic number of torch.save");

    std::uint64_t at = 0;
    const auto next = [&, this](const char* what) {
      detail::pickle part(this->file(), at, file_bytes(), std::string("the pickle of the ") + what,
                          detail::find_torch_global);
      at += part.bytes();
      return part;
    };
    (void)next("magic number");
    const auto version = detail::count_of(next("protocol's version").root());
    if (version != protocol_version) {
      fail("its protocol's version is " + (version ? std::to_string(*version) : "no number") +
           ", not " + std::to_string(protocol_version));
    }
    check_system(next("writer's system"));
    const detail::pickle saved = next("object");
    const detail::pickle keys = next("storages' keys");
    const std::vector<stored> storages = find_storages(saved, keys, at);
    list(saved, [&, this](const detail::torch_storage& storage, std::uint64_t bytes,
                          const auto& subject) {
      const auto found = std::ranges::lower_bound(storages, storage.key, {}, &stored::key);
      if (found == storages.end() || found->key != storage.key || found->offset == 0) {
        fail(subject() + "its storage " + in_quotes(storage.key) + " is not in the file");
      }
      if (found->bytes != bytes) {
        fail(subject() + "its storage " + in_quotes(storage.key) + " has " +
             std::to_string(found->bytes) + " bytes, but " + std::to_string(storage.elements) +
             " elements of " + std::string(storage.type->name) + " are " + std::to_string(bytes));
      }
      return found->offset;
    });
  }

  /// By the magic number; also a tar of PyTorch's, which is then refused.
  [[nodiscard]] static bool matches(const input_file& file, std::span<const std::byte> head) {
    return has_magic_number(head) || is_tar(file, head);
  }

  [[nodiscard]] std::string_view format() const noexcept { return "torch-legacy"; }

 private:
  /// The opcodes of 0x1950a86a20f9469cfc6c and the end.
  static constexpr std::string_view magic_bytes = "\x8A\nl\xFC\x9C\x46\xF9 j\xA8P\x19.";
  static constexpr std::uint64_t protocol_version = 1001;

  /// A storage as the file has it.
  struct stored {
    std::string_view key;
    std::uint64_t elements;
    std::uint64_t bytes;
    std::uint64_t offset = 0;  // 0: not there
  };

  /// Behind the protocol, and what newer ones have in between.
  [[nodiscard]] static bool has_magic_number(std::span<const std::byte> head) {
    return !head.empty() && head[0] == std::byte{0x80} &&
           detail::text_of(head).find(magic_bytes) != std::string::npos;
  }

  /// The format of 2016, by its first member.
  [[nodiscard]] static bool is_tar(const input_file& file, std::span<const std::byte> head) {
    constexpr std::array<std::string_view, 4> members{"sys_info", "pickle", "tensors", "storages"};
    constexpr std::size_t magic_offset = 257;
    constexpr std::string_view magic = "ustar";
    const std::string begin = detail::text_of(head);
    const std::string_view name(begin.c_str());
    if (std::ranges::find(members, name) == members.end()) return false;
    if (!in_bounds(magic_offset, magic.size(), file.size())) return false;
    std::array<std::byte, magic.size()> bytes;
    file.read_at(magic_offset, bytes);
    return detail::text_of(bytes) == magic;
  }

  void check_system(const detail::pickle& system) const {
    std::optional<bool> little_endian;
    if (system.root().is(detail::pickle_kind::dict)) {
      system.for_each_entry(system.root(), [&](const auto& key, const auto& value) {
        if (key.is(detail::pickle_kind::text) && system.text(key) == "little_endian") {
          little_endian = value.number != 0;
        }
      });
    }
    if (!little_endian) fail("it does not say whether its writer's machine was little-endian");
    if (!*little_endian) fail("its writer's machine was big-endian; only little-endian is read");
  }

  /// The storages of the object, sorted by key. They lie in the order of `keys` from `at` on: each
  /// the number of its elements in 8 bytes, then these.
  [[nodiscard]] std::vector<stored> find_storages(const detail::pickle& saved,
                                                  const detail::pickle& keys,
                                                  std::uint64_t at) const {
    std::vector<stored> storages;
    for (const detail::pickle_value& id : saved.storages()) {
      const auto storage = detail::storage_of(saved, id);
      if (!storage) fail("the object has a persistent id that is not that of a storage");
      const auto bytes = storage->bytes();
      if (!bytes) {
        fail("storage " + in_quotes(storage->key) + ": its " + std::to_string(storage->elements) +
             " elements are more bytes than a 64-bit number can count");
      }
      storages.push_back({storage->key, storage->elements, *bytes});
    }
    // The first one of a key decides, as in `_legacy_load`.
    std::ranges::stable_sort(storages, {}, &stored::key);
    const auto same_key = [](const stored& a, const stored& b) { return a.key == b.key; };
    storages.erase(std::unique(storages.begin(), storages.end(), same_key), storages.end());

    if (!keys.root().is(detail::pickle_kind::list)) fail("its storages' keys are not a list");
    keys.for_each_item(keys.root(), [&, this](const detail::pickle_value& item) {
      if (!item.is(detail::pickle_kind::text)) fail("a storage's key is not a text");
      const std::string_view key = keys.text(item);
      const auto subject = [&] { return "storage " + in_quotes(key) + ": "; };
      const auto found = std::ranges::lower_bound(storages, key, {}, &stored::key);
      if (found == storages.end() || found->key != key) {
        fail(subject() + "nothing in the object refers to it");
      }
      if (found->offset != 0) fail(subject() + "it is in the file twice");
      std::array<std::byte, 8> count_bytes;
      if (!in_bounds(at, count_bytes.size(), file_bytes())) {
        fail(subject() + "it is to begin at byte " + std::to_string(at) +
             ", but the file has only " + std::to_string(file_bytes()));
      }
      file().read_at(at, count_bytes);
      const auto count = detail::load_little_endian<std::uint64_t>(count_bytes);
      if (count != found->elements) {
        fail(subject() + "it has " + std::to_string(count) + " elements where it lies, but " +
             std::to_string(found->elements) + " in the object");
      }
      at += count_bytes.size();
      if (!in_bounds(at, found->bytes, file_bytes())) {
        fail(subject() + "its " + std::to_string(found->bytes) + " bytes from offset " +
             std::to_string(at) + " are not in the file's " + std::to_string(file_bytes()));
      }
      found->offset = at;
      at += found->bytes;
    });
    return storages;
  }
};

static_assert(weight_reader<torch_legacy_reader>);

}  // namespace vggload
