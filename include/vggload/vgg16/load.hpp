// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/memory_plan.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/load_plan.hpp>
#include <vggload/vgg16/weights.hpp>

namespace vggload::vgg16 {

/// What a load did.
struct load_report {
  std::string_view family;  // of names
  std::uint32_t classes = 0;
  std::size_t tensors = 0;
  std::uint64_t destination_bytes = 0;  // of the arena
  std::uint64_t copied_bytes = 0;       // written there
  std::uint64_t mapped_bytes = 0;       // that views show in the file
  std::uint64_t windows_bytes = 0;      // taken while loading, given back since
  unsigned threads = 0;                 // that took part
  double seconds = 0;
  std::vector<std::string> skipped;         // tensors of the file that were not loaded
  std::vector<tensor_overflow> overflowed;  // in the order of the layers, as are:
  std::vector<measured_tensor> measured;    // empty unless asked for
};

/// A loaded VGG16: owns the arena with what was converted and, where views point into it, the
/// mapped file. Moves, never copies; the views stay valid when it moves.
template <host_accessible_resource Resource = host_resource>
class model {
 public:
  model(vgg16::weights views, load_report report, arena<Resource> memory,
        std::optional<checkpoint> mapped, ledger_entry mapped_entry = {}) noexcept
      : weights_(std::move(views)),
        report_(std::move(report)),
        memory_(std::move(memory)),
        mapped_(std::move(mapped)),
        mapped_entry_(std::move(mapped_entry)) {}

  [[nodiscard]] const vgg16::weights& weights() const& noexcept { return weights_; }
  /// Views of a model that is gone at the end of the line would show nothing that is there.
  [[nodiscard]] const vgg16::weights& weights() const&& = delete;
  [[nodiscard]] const load_report& report() const noexcept { return report_; }
  /// The arena: what fills the memory, by name.
  [[nodiscard]] const arena<Resource>& memory() const noexcept { return memory_; }

 private:
  vgg16::weights weights_;
  load_report report_;
  arena<Resource> memory_;
  std::optional<checkpoint> mapped_;  // none where no view points into the file
  ledger_entry mapped_entry_;
};

namespace detail {

template <memory_resource Resource>
[[nodiscard]] arena<Resource> allocate_block(const checkpoint& source, std::string_view what,
                                             std::uint64_t bytes, const loaded_tensor& largest,
                                             const Resource& resource,
                                             const std::shared_ptr<memory_ledger>& ledger) {
  try {
    return arena<Resource>(static_cast<std::size_t>(bytes), resource, ledger, what);
  } catch (const std::bad_alloc& e) {
    const std::string_view tensor = source.tensors()[largest.index].name;
    auto text = vggload::detail::fixed_text() << source.path() << ": " << bytes << " bytes for "
                                              << what << " could not be allocated";
    if constexpr (Resource::access != memory_access::host) text << " (" << e.what() << ")";
    text << "; the largest tensor, '" << tensor.substr(0, 200) << "', takes " << largest.bytes;
    throw out_of_memory(text, tensor, bytes);
  }
}

/// Takes windows and keeps nothing: for what is only measured.
class discarding_sink {
 public:
  /// `buffers`: memory that `workers` share in equal parts.
  discarding_sink(std::span<std::byte> buffers, unsigned workers) noexcept
      : buffers_(buffers), buffer_bytes_(buffers.size() / workers) {}

  [[nodiscard]] std::span<std::byte> begin_window(unsigned worker, std::uint64_t,
                                                  std::size_t bytes) const noexcept {
    return buffers_.subspan(worker * buffer_bytes_, bytes);
  }
  void end_window(unsigned, std::uint64_t, std::span<std::byte>) const noexcept {}

 private:
  std::span<std::byte> buffers_;
  std::size_t buffer_bytes_;
};

static_assert(window_sink<discarding_sink>);

/// Enters what views show in the file: one block from the first of their bytes to the last.
template <class Tag>
[[nodiscard]] ledger_entry enter_mapped(const checkpoint& source,
                                        std::span<const loaded_tensor> tensors, const Tag& tag,
                                        const std::shared_ptr<memory_ledger>& ledger) {
  std::uintptr_t begin = UINTPTR_MAX;
  std::uintptr_t end = 0;
  const auto address = [](const loaded_tensor& tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor.mapped->data());
  };
  for (const loaded_tensor& tensor : tensors) {
    if (!tensor.mapped) continue;
    begin = std::min(begin, address(tensor));
    end = std::max(end, address(tensor) + tensor.mapped->size());
  }
  ledger_entry entry(ledger, source.path(), memory_kind::mapped_file, begin, end - begin);
  for (const loaded_tensor& tensor : tensors) {
    if (tensor.mapped) entry.allocated(tag(tensor), address(tensor) - begin, tensor.bytes);
  }
  return entry;
}

template <host_accessible_resource Resource>
[[nodiscard]] model<Resource> load(const checkpoint& source, const load_options& wanted,
                                   const Resource& resource) {
  const auto start = std::chrono::steady_clock::now();
  const load_options options = with_ledger(wanted);
  const binding bound = bind(source, options.include_top);
  const std::vector<loaded_tensor> tensors =
      choose_sources(source, bound, options.dtype, options.aligned);

  load_report report;
  report.family = bound.family;
  report.classes = bound.classes;
  report.tensors = tensors.size();
  for (const std::size_t index : bound.skipped) {
    report.skipped.push_back(source.tensors()[index].name);
  }

  // The plan comes first: a load that cannot keep its limit reads and allocates nothing.
  const loaded_tensor& largest = *std::ranges::max_element(tensors, {}, &loaded_tensor::bytes);
  const auto tag = [&](const loaded_tensor& tensor) {
    return memory_tag(source.tensors()[tensor.index].name, layer_of(bound, tensor.index),
                      memory_role::weights);
  };
  report.destination_bytes = arena_bytes(source, tensors, piece_alignment);
  for (const loaded_tensor& tensor : tensors) {
    if (!tensor.mapped) options.ledger->plan(tag(tensor), tensor.bytes);
  }
  std::uint64_t own_bytes = 0;  // that come back when the load ends
  const auto explaining = [&](const memory_tag& asking, std::uint64_t bytes, auto&& action) {
    try {
      return action();
    } catch (const out_of_memory& e) {
      throw explained(e, options, asking, bytes, [&](memory_report& made) {
        describe_host(made);
        auto available = made.limit ? made.limit : made.free;
        if (available && !made.limit) *available += own_bytes;
        made.alternatives = alternatives(source, options, available);
      });
    }
  };
  const memory_plan plan = explaining(tag(largest), largest.bytes, [&] {
    return plan_memory({.path = source.path(),
                        .largest_tensor = source.tensors()[largest.index].name,
                        .largest_tensor_bytes = largest.bytes,
                        .destination_bytes = report.destination_bytes,
                        .streams = report.destination_bytes > 0 || options.measure_health},
                       options.threads, options.memory_limit);
  });
  const auto allocate = [&](std::string_view what, std::uint64_t bytes) {
    return allocate_block(source, what, bytes, largest, resource, options.ledger);
  };

  arena<Resource> memory = explaining(tag(largest), largest.bytes, [&] {
    return allocate("the weights", report.destination_bytes);
  });
  own_bytes = memory.capacity();
  std::vector<transfer> transfers;
  std::vector<transfer> mapped_transfers;  // to nowhere, one behind the other
  std::vector<tensor_view> views;
  transfers.reserve(tensors.size());
  views.reserve(tensors.size());
  for (const loaded_tensor& tensor : tensors) {
    const tensor_info& info = source.tensors()[tensor.index];
    if (tensor.mapped) {
      views.emplace_back(tensor.type, *tensor.dims, *tensor.mapped, info.order);
      mapped_transfers.push_back({tensor.index, tensor.type, report.mapped_bytes});
      report.mapped_bytes += tensor.bytes;
      continue;
    }
    const std::span<std::byte> place =
        memory.allocate(tag(tensor), static_cast<std::size_t>(tensor.bytes), piece_alignment);
    transfers.push_back({tensor.index, tensor.type,
                         static_cast<std::uint64_t>(place.data() - memory.block().data())});
    element_order order = info.order;
    if (is_permuted(info)) {  // in an order that no view can tell: put into row-major on the way
      transfers.back().axes = axes_of(info);
      order = element_order::row_major;
    }
    views.emplace_back(tensor.type, *tensor.dims, place, order);
  }

  if (!options.measure_health) mapped_transfers.clear();
  if (!transfers.empty() || !mapped_transfers.empty()) {
    report.windows_bytes = plan.windows_bytes();
    const memory_tag windows_tag("windows", "load", memory_role::staging);
    arena<Resource> windows = explaining(windows_tag, plan.windows_bytes(),
                                         [&] { return allocate("windows", plan.windows_bytes()); });
    (void)windows.allocate(windows_tag, windows.capacity());
    stream_options how{.threads = plan.threads,
                       .stop = options.stop,
                       .progress = options.progress,
                       .overflow = options.overflow,
                       .measure_health = options.measure_health};
    if (!transfers.empty()) {
      memory_sink sink(memory.block());
      stream_report streamed = stream(source, transfers, sink, windows.block(), how);
      report.copied_bytes = streamed.written_bytes;
      report.threads = streamed.threads;
      report.overflowed = std::move(streamed.overflowed);
      report.measured = std::move(streamed.measured);
    }
    if (!mapped_transfers.empty()) {
      if (!transfers.empty()) how.progress = {};  // it has been to the end
      discarding_sink sink(windows.block(), plan.threads);
      const stream_report read = stream(source, mapped_transfers, sink, windows.block(), how);
      report.threads = std::max(report.threads, read.threads);
      report.measured.insert(report.measured.end(), read.measured.begin(), read.measured.end());
      std::ranges::sort(report.measured, {}, [&](const measured_tensor& one) {
        return std::ranges::find(tensors, one.tensor, &loaded_tensor::index) - tensors.begin();
      });
    }
  }

  std::vector<layer_view> layers;
  layers.reserve(bound.layers.size());
  for (std::size_t i = 0; i < bound.layers.size(); ++i) {
    layers.push_back({bound.layers[i].spec, std::move(views[2 * i]), std::move(views[2 * i + 1])});
  }
  std::optional<checkpoint> mapped;
  ledger_entry mapped_entry;
  if (report.mapped_bytes > 0) {
    mapped = source;
    mapped_entry = enter_mapped(source, tensors, tag, options.ledger);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  report.seconds = elapsed.count();
  return {weights(bound.layout, std::move(layers)), std::move(report), std::move(memory),
          std::move(mapped), std::move(mapped_entry)};
}

}  // namespace detail

/// Loads VGG16 from an open checkpoint into memory of `resource`. Each weight is in memory once: in
/// place in the mapped file where it has the wanted type there, otherwise converted, once, into an
/// arena of exactly the size that is needed. Beside it the load takes a window of 256 KiB for each
/// thread, 4 MiB at most in all (`plan_memory`), and a few KiB of lists.
///
/// Throws `binding_error` (the tensors are not VGG16's), `out_of_memory` (for the arena, before
/// anything is read; names the largest tensor and says what would fit; with a report), `io_error`, `overflow_error` (where the policy is to
/// refuse), `cancelled_error`, `unsupported_error`.
/// What was allocated is free again then.
template <host_accessible_resource Resource = host_resource>
[[nodiscard]] model<Resource> load(const checkpoint& source, const load_options& options = {},
                                   const Resource& resource = {}) {
  return vggload::detail::naming_out_of_memory(
      source.path(), "loading VGG16", [&] { return detail::load(source, options, resource); });
}

/// The same from a file, which `open_checkpoint` opens; throws its errors too.
template <host_accessible_resource Resource = host_resource>
[[nodiscard]] model<Resource> load(const std::string& path, const load_options& options = {},
                                   const Resource& resource = {}) {
  return load(open_checkpoint(path), options, resource);
}

}  // namespace vggload::vgg16
