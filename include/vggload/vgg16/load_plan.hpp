// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/memory_plan.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/process_memory.hpp>
#include <vggload/vgg16/binding.hpp>

namespace vggload::vgg16 {

struct load_options {
  /// The type of the loaded weights: f16, bf16, f32 or f64; with exceptions by name,
  /// `dtype_policy(dtype::f16).keep_fp32(...)`. Tensors that have it in the file already are mapped,
  /// not copied.
  dtype_policy dtype = vggload::dtype::f16;
  /// What becomes of weights that the type cannot hold.
  overflow_policy overflow = overflow_policy::keep;
  /// Whether all weights are measured: `load_report::measured`. Mapped ones are read for it.
  bool measure_health = false;
  /// False: without fc1, fc2 and predictions, which the file may have or not.
  bool include_top = true;
  /// True: what is not aligned for its type in the file is copied, so that `tensor_view::values`
  /// shows all weights. PyTorch's files of before 2020 and NumPy's zips put tensors at any place;
  /// `tensor_view::bytes` shows them there.
  bool aligned = false;
  /// 0: one for each processor.
  unsigned threads = 0;
  /// Most bytes that destination and windows may take together; mapped pages, which the kernel can
  /// drop at any time, do not count. The load refuses beforehand where it cannot keep it.
  std::optional<std::uint64_t> memory_limit = {};
  /// Ends the load with `cancelled_error`.
  std::stop_token stop = {};
  /// Where the weights, the windows and what is mapped are entered, and an out of memory. The load
  /// keeps one of its own where there is none.
  std::shared_ptr<memory_ledger> ledger = {};
  /// Called from the caller's thread while bytes are read.
  std::function<void(const stream_progress&)> progress = {};
};

namespace detail {

/// Of each tensor in the arena.
inline constexpr std::size_t piece_alignment = arena<host_resource>::default_alignment;

/// One tensor on its way from the file to a view.
struct loaded_tensor {
  std::size_t index;  // in the file
  const shape* dims;
  dtype type;                                        // as loaded
  std::optional<std::span<const std::byte>> mapped;  // none: goes to the arena
  std::uint64_t bytes = 0;                           // as loaded
};

/// Decides for each bound tensor whether a view into the file does.
[[nodiscard]] inline std::vector<loaded_tensor> choose_sources(const checkpoint& source,
                                                               const binding& bound,
                                                               const dtype_policy& types,
                                                               bool aligned) {
  std::vector<loaded_tensor> chosen;
  chosen.reserve(2 * bound.layers.size());
  const auto add = [&](std::size_t index, const shape& dims) {
    const tensor_info& info = source.tensors()[index];
    const dtype type = types.storage_of(info);
    loaded_tensor tensor{index, &dims, type, std::nullopt, 0};
    if (info.dtype == type) {
      tensor.mapped = source.view(index);
      if (aligned && tensor.mapped && !tensor_view::is_aligned_for(tensor.mapped->data(), type)) {
        tensor.mapped.reset();
      }
    }
    const auto bytes = bytes_of(type, dims);
    if (!bytes || find_conversion(info.dtype, type) == nullptr) {
      throw unsupported_error(printable(source.path()) + ": tensor " + in_quotes(info.name) + ": " +
                              std::string(dtype_name(info)) + " " + to_string(info.shape) +
                              " cannot be loaded as " + std::string(name_of(type)));
    }
    tensor.bytes = *bytes;
    chosen.push_back(tensor);
  };
  for (const bound_layer& layer : bound.layers) {
    add(layer.weight, layer.weight_shape);
    add(layer.bias, layer.bias_shape);
  }
  return chosen;
}

/// The bytes of an arena that holds the tensors that are not mapped, each at its aligned place.
[[nodiscard]] inline std::uint64_t arena_bytes(const checkpoint& source,
                                               std::span<const loaded_tensor> tensors,
                                               std::size_t alignment) {
  std::optional<std::uint64_t> end = 0;
  for (const loaded_tensor& tensor : tensors) {
    if (tensor.mapped) continue;
    end = checked_align_up(*end, alignment);
    if (end) end = checked_add(*end, tensor.bytes);
    if (!end || *end > SIZE_MAX) {
      throw unsupported_error(printable(source.path()) + ": tensor " +
                              in_quotes(source.tensors()[tensor.index].name) +
                              ": the tensors up to it exceed the address space");
    }
  }
  return *end;
}

/// Bytes that a load with these options takes at least: its arena and one smallest window.
[[nodiscard]] inline std::uint64_t least_bytes(const checkpoint& source,
                                               const load_options& options) {
  const std::uint64_t destination = arena_bytes(
      source,
      choose_sources(source, bind(source, options.include_top), options.dtype, options.aligned),
      piece_alignment);
  const bool streams = destination > 0 || options.measure_health;
  return destination + (streams ? smallest_window_bytes : 0);
}

/// "F32", or "F16 and F32" where the file's weights have several types.
[[nodiscard]] inline std::string types_of(const checkpoint& source, bool include_top) {
  std::vector<std::string_view> names;
  for (const bound_layer& layer : bind(source, include_top).layers) {
    for (const std::size_t tensor : {layer.weight, layer.bias}) {
      const std::string_view name = dtype_name(source.tensors()[tensor]);
      if (std::ranges::find(names, name) == names.end()) names.push_back(name);
    }
  }
  std::ranges::sort(names);
  std::string text;
  for (const std::string_view name : names) {
    if (!text.empty()) text += " and ";
    text += name;
  }
  return text;
}

/// Calls `on_load(change, types, include_top)` for the loads that keep less than the options do, the
/// nearest to them first.
template <class OnLoad>
void for_each_smaller_load(const load_options& options, const OnLoad& on_load) {
  const dtype_policy& types = options.dtype;
  const dtype_policy half = types.with_storage(dtype::f16);
  const bool is_wide = !types.storage() || bits_of(*types.storage()) > 16;
  if (is_wide) on_load("as F16", half, options.include_top);
  if (options.include_top) on_load("without the top", types, false);
  if (is_wide && options.include_top) on_load("as F16 without the top", half, false);
}

/// What would take less memory than the options do, the nearest to them first; `available`: bytes
/// that there are.
[[nodiscard]] inline std::vector<memory_alternative> alternatives(
    const checkpoint& source, const load_options& options, std::optional<std::uint64_t> available) {
  std::vector<memory_alternative> all;
  const auto add = [&](std::string change, std::uint64_t bytes) {
    all.push_back({std::move(change), bytes, available && bytes <= *available});
  };
  const std::uint64_t now = least_bytes(source, options);
  const auto add_load = [&](const std::string& change, const dtype_policy& types, bool top) {
    load_options other = options;
    other.dtype = types;
    other.include_top = top;
    try {
      const std::uint64_t bytes = least_bytes(source, other);
      if (bytes < now) add(change, bytes);
    } catch (const error&) {
      return;  // some tensor has no conversion to that type: no such load
    }
  };
  for_each_smaller_load(options, add_load);
  if (options.dtype.storage()) {
    add_load("mapped, as " + types_of(source, options.include_top) + " in the file", {std::nullopt},
             options.include_top);
  }
  if (now > smallest_window_bytes) {
    add("streamed in windows, without keeping it", smallest_window_bytes);
  }
  return all;
}

/// The layer that a tensor of the file belongs to, as Keras calls it.
[[nodiscard]] inline std::string_view layer_of(const binding& bound, std::size_t tensor) noexcept {
  for (const bound_layer& layer : bound.layers) {
    if (layer.weight == tensor || layer.bias == tensor) return layer.spec.name;
  }
  return {};
}

/// The error with a report, and in its text what would fit. Where memory is so short that this cannot
/// be made it is the error as it was. `asking`: the tensor to blame, of `bytes`. `complete(report)`
/// says what is known of the place that is full, and which alternatives there are.
template <class Complete>
[[nodiscard]] out_of_memory explained(const out_of_memory& error, const load_options& options,
                                      const memory_tag& asking, std::uint64_t bytes,
                                      Complete&& complete) noexcept {
  auto text = vggload::detail::fixed_text() << error.what();
  const auto report = vggload::detail::try_report([&] {
    memory_report made;
    made.tensor = asking.name;
    made.requested = bytes;
    made.requested_at_once = error.requested();
    made.limit = options.memory_limit;
    const ledger_snapshot ledger = options.ledger->snapshot();
    made.live = live_tensors(ledger);
    made.planned = planned_tensors(ledger);
    complete(made);
    return made;
  });
  if (report) {
    std::string_view separator = "; this would fit: ";
    for (const memory_alternative& alternative : report->alternatives) {
      if (!alternative.fits) continue;
      text << separator << alternative.change << " (" << alternative.bytes << " bytes)";
      separator = ", ";
    }
  }
  options.ledger->out_of_memory(asking, bytes, text.view());
  return {text, error.tensor(), error.requested(), report};
}

/// The options with a ledger: an error wants to say what was planned even where nobody asked for one.
[[nodiscard]] inline load_options with_ledger(load_options options) {
  if (!options.ledger) options.ledger = std::make_shared<memory_ledger>();
  return options;
}

/// What is known of a full host memory.
inline void describe_host(memory_report& report) {
  report.place = "host memory";
  if (const auto host = read_host_memory()) {
    report.total = host->total;
    // Pages may lie anywhere.
    report.free = report.largest_free = host->available;
  }
}

}  // namespace detail

}  // namespace vggload::vgg16
