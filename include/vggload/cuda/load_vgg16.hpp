// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <vggload/convert/health.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/cuda/health.hpp>
#include <vggload/cuda/memory_report.hpp>
#include <vggload/cuda/upload_engine.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/memory_plan.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/load/upload_ring.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/load_plan.hpp>
#include <vggload/vgg16/names.hpp>

namespace vggload::cuda {

/// Where FP32 becomes FP16 or BF16 on the way to a device. Other conversions are the host's.
enum class upload_conversion : std::uint8_t {
  on_device,      // FP32 crosses to the device: spares the host's processors
  while_staging,  // in the host's ring: half the bytes cross
  /// The first 24 MiB or more go the one way and the next the other; the rest goes the faster way.
  /// Nothing is sent twice. Where the device has no room for its window all is converted while
  /// staging.
  by_measurement,
};

[[nodiscard]] constexpr std::string_view name_of(upload_conversion conversion) noexcept {
  constexpr std::array<std::string_view, 3> names{"device", "staging", "auto"};
  return names[static_cast<std::size_t>(conversion)];
}

struct device_load_options {
  /// As for the host. `aligned` has no meaning, because nothing is mapped. `memory_limit` is for all
  /// that is taken on both sides: destination, ring, windows. `overflow` other than `keep` and
  /// `measure_health` need the host to look at the values: they exclude `on_device`, and
  /// `by_measurement` converts while staging then.
  vgg16::load_options load = {};
  upload_conversion conversion = upload_conversion::by_measurement;
  /// Of pinned memory; at least 8 KiB for each thread.
  std::size_t ring_bytes = preferred_ring_bytes;
};

/// Some tensors that were uploaded in one go.
struct upload_stage {
  upload_conversion conversion;  // on_device or while_staging
  std::uint64_t source_bytes;    // read of the file
  std::uint64_t uploaded_bytes;  // that crossed to the device
  double seconds;
};

/// What a load did, beside what the host's loads tell of themselves. `destination_bytes` and
/// `copied_bytes` are on the device.
struct device_load_report : vgg16::load_report {
  /// How most was converted: on_device or while_staging, the latter also where nothing was.
  upload_conversion conversion = upload_conversion::while_staging;
  std::vector<upload_stage> stages;       // one, or three where they were measured
  double pin_ms = 0;                      // for locking the ring's pages
  std::uint64_t ring_bytes = 0;           // pinned; given back since, as are:
  std::uint64_t device_window_bytes = 0;  // on the device
  std::uint64_t uploaded_bytes = 0;       // that crossed to the device
  double upload_seconds = 0;              // from the first read to the last byte's arrival
};

/// A dense tensor in memory of a device: who may touch it is in the type of `bytes`.
struct device_tensor {
  vggload::dtype dtype;
  vggload::shape shape;
  element_order order;
  memory_span<memory_access::device> bytes;
};

/// The parameters of one layer, in shapes as `vgg16::layer_view` has them.
struct device_layer {
  vgg16::layer spec;
  device_tensor weight;
  device_tensor bias;
};

/// A VGG16 on a device: owns the arena there. Moves, never copies; the layers stay valid when it
/// moves.
template <memory_resource Resource>
class device_model {
 public:
  device_model(vgg16::weight_layout layout, std::vector<device_layer> layers,
               device_load_report report, arena<Resource> memory) noexcept
      : layout_(layout),
        layers_(std::move(layers)),
        report_(std::move(report)),
        memory_(std::move(memory)) {}

  [[nodiscard]] vgg16::weight_layout layout() const noexcept { return layout_; }
  /// All layers in network order: 13 convolutions and, with the top, 3 dense layers.
  [[nodiscard]] std::span<const device_layer> layers() const& noexcept { return layers_; }
  [[nodiscard]] std::span<const device_layer> layers() const&& = delete;
  [[nodiscard]] const device_load_report& report() const noexcept { return report_; }
  [[nodiscard]] const arena<Resource>& memory() const noexcept { return memory_; }

 private:
  vgg16::weight_layout layout_;
  std::vector<device_layer> layers_;
  device_load_report report_;
  arena<Resource> memory_;
};

namespace detail {

/// Of the source, that a trial uploads at least: long enough for threads and copies to get going.
inline constexpr std::uint64_t trial_bytes = std::uint64_t{24} << 20U;

/// Ends of the two trials of `by_measurement`, as indices of the tensors; `source_bytes` are theirs.
[[nodiscard]] inline std::pair<std::size_t, std::size_t> trial_ends(
    std::span<const std::uint64_t> source_bytes) {
  const auto end_of_trial = [&](std::size_t first) {
    std::uint64_t bytes = 0;
    while (first < source_bytes.size() && bytes < trial_bytes) bytes += source_bytes[first++];
    return first;
  };
  const std::size_t first_end = end_of_trial(0);
  return {first_end, end_of_trial(first_end)};
}

/// One load to a device. A class because its steps share most of what they know.
template <upload_device Device>
class device_load {
 public:
  using resource = typename Device::device_resource;

  device_load(Device device, const checkpoint& source, const device_load_options& options)
      : device_(std::move(device)),
        source_(source),
        options_(with_ledger(options)),
        start_(std::chrono::steady_clock::now()),
        bound_(vgg16::bind(source, options.load.include_top)),
        tensors_(vgg16::detail::choose_sources(source, bound_, options.load.dtype, false)) {
    for (tensor& one : tensors_) one.mapped.reset();
    largest_ = &*std::ranges::max_element(tensors_, {}, &vgg16::detail::loaded_tensor::bytes);
  }

  [[nodiscard]] device_model<resource> run() {
    conversion_ = choose_conversion();
    report_.family = bound_.family;
    report_.classes = bound_.classes;
    report_.tensors = tensors_.size();
    for (const std::size_t index : bound_.skipped) {
      report_.skipped.push_back(source_.tensors()[index].name);
    }
    // The plan comes first: a load that cannot keep its limit reads and allocates nothing.
    report_.destination_bytes =
        vgg16::detail::arena_bytes(source_, tensors_, vgg16::detail::piece_alignment);
    report_.ring_bytes = options_.ring_bytes;
    if (conversion_ != upload_conversion::while_staging) {
      report_.device_window_bytes = window_bytes();
    }
    if (const auto& limit = options_.load.memory_limit; limit) {
      if (!in_bounds(report_.destination_bytes + beside(), smallest_window_bytes, *limit)) {
        do_without_window();
      }
    }
    for (const tensor& one : tensors_) options_.load.ledger->plan(tag(one), one.bytes);
    memory_plan plan =
        explaining(memory_access::device, tag(*largest_), largest_->bytes, [&, this] {
          return plan_memory({.path = source_.path(),
                              .largest_tensor = source_.tensors()[largest_->index].name,
                              .largest_tensor_bytes = largest_->bytes,
                              .destination_bytes = report_.destination_bytes + beside()},
                             thread_count(options_.load.threads), options_.load.memory_limit);
        });
    // What is read into a window is staged in a slot.
    plan.window_bytes =
        std::min(plan.window_bytes, divide_ring(options_.ring_bytes, plan.threads).slot_bytes);
    report_.windows_bytes = plan.windows_bytes();

    arena<resource> memory =
        explaining(memory_access::device, tag(*largest_), largest_->bytes, [&, this] {
          return vgg16::detail::allocate_block(source_, "the weights on the device",
                                               report_.destination_bytes, *largest_, resource(),
                                               options_.load.ledger);
        });
    own_device_bytes_ = memory.capacity();
    std::vector<device_tensor> views = place(memory);
    explaining(memory_access::device, {"streams and kernels", "load", memory_role::staging}, 0,
               [&, this] { stage_and_upload(plan, views); });

    std::vector<device_layer> layers;
    layers.reserve(bound_.layers.size());
    for (std::size_t i = 0; i < bound_.layers.size(); ++i) {
      layers.push_back(
          {bound_.layers[i].spec, std::move(views[2 * i]), std::move(views[2 * i + 1])});
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    report_.seconds = elapsed.count();
    return {bound_.layout, std::move(layers), std::move(report_), std::move(memory)};
  }

 private:
  using tensor = vgg16::detail::loaded_tensor;

  [[nodiscard]] static device_load_options with_ledger(device_load_options options) {
    options.load = vgg16::detail::with_ledger(std::move(options.load));
    return options;
  }

  /// What the options ask for, and by_measurement only where there is a choice.
  [[nodiscard]] upload_conversion choose_conversion() const {
    const bool is_possible = std::ranges::any_of(tensors_, [&, this](const tensor& one) {
      return is_converted_on_device(source_.tensors()[one.index].dtype, one.type);
    });
    const bool needs_host =
        options_.load.measure_health || options_.load.overflow != overflow_policy::keep;
    if (needs_host && options_.conversion == upload_conversion::on_device) {
      throw unsupported_error(printable(source_.path()) +
                              ": a conversion on the device neither measures the health of weights "
                              "nor looks for what overflows: convert while staging");
    }
    return is_possible && !needs_host ? options_.conversion : upload_conversion::while_staging;
  }

  /// Where nothing is said, no more threads than leave each worker slots of a MiB of the usual ring:
  /// shorter copies cost more in calls.
  [[nodiscard]] static unsigned thread_count(unsigned wanted) {
    constexpr unsigned usual = 8;
    if (wanted != 0) return wanted;
    return std::clamp(std::thread::hardware_concurrency(), 1U, usual);
  }

  /// Bytes that are taken beside the destination, windows apart.
  [[nodiscard]] std::uint64_t beside() const noexcept {
    return report_.ring_bytes + report_.device_window_bytes;
  }

  /// Of the device's window: the ring's mirror, and behind it an accumulator for each tensor.
  [[nodiscard]] std::uint64_t window_bytes() const {
    const auto mirror = checked_align_up(options_.ring_bytes, vgg16::detail::piece_alignment);
    if (!mirror) throw error("a ring of " + std::to_string(options_.ring_bytes) + " bytes");
    return *mirror + healths_bytes();
  }
  [[nodiscard]] std::uint64_t healths_bytes() const noexcept {
    return tensors_.size() * sizeof(health_accumulator);
  }

  /// Where there is no room for the device's window and it is not insisted on, the host converts.
  void do_without_window() noexcept {
    if (conversion_ != upload_conversion::by_measurement) return;
    conversion_ = upload_conversion::while_staging;
    report_.device_window_bytes = 0;
  }

  [[nodiscard]] memory_tag tag(const tensor& one) const {
    return {source_.tensors()[one.index].name, vgg16::detail::layer_of(bound_, one.index),
            memory_role::weights};
  }

  /// Bytes of the weights, loaded otherwise.
  [[nodiscard]] std::uint64_t bytes_of_weights(const dtype_policy& types, bool include_top) const {
    const vgg16::binding bound = vgg16::bind(source_, include_top);
    auto tensors = vgg16::detail::choose_sources(source_, bound, types, false);
    for (tensor& one : tensors) one.mapped.reset();
    return vgg16::detail::arena_bytes(source_, tensors, vgg16::detail::piece_alignment);
  }

  /// What would take less, the nearest to the options first. A limit is for all that is taken on both
  /// sides, the device is asked for the weights alone: the host converts in all of these.
  /// (`vgg16::detail::alternatives` speaks of mapping, which is no way to a device.)
  [[nodiscard]] std::vector<memory_alternative> device_alternatives(
      std::optional<std::uint64_t> available) const {
    std::vector<memory_alternative> all;
    const bool insists = conversion_ == upload_conversion::on_device;
    const std::uint64_t staging =
        options_.load.memory_limit ? report_.ring_bytes + smallest_window_bytes : 0;
    const auto add = [&, this](std::string change, const dtype_policy& other_types,
                               bool other_top) {
      try {
        const std::uint64_t weights = bytes_of_weights(other_types, other_top);
        if (weights >= report_.destination_bytes && !change.empty()) return;
        if (insists)
          change += change.empty() ? "converted while staging" : ", converted while staging";
        const std::uint64_t bytes = weights + staging;
        all.push_back({std::move(change), bytes, available && bytes <= *available});
      } catch (const error&) {
        return;  // some tensor has no conversion to that type: no such load
      }
    };
    if (insists) add("", options_.load.dtype, options_.load.include_top);
    vgg16::detail::for_each_smaller_load(options_.load, add);
    return all;
  }

  /// The same where the host has no room for what is staged.
  [[nodiscard]] std::vector<memory_alternative> host_alternatives(
      std::optional<std::uint64_t> available) const {
    const std::uint64_t bytes =
        2 * slot_alignment * std::uint64_t{thread_count(options_.load.threads)};
    return {{"with the smallest ring", bytes, available && bytes <= *available}};
  }

  /// Runs `action`, in which `asking` asks for `bytes`; an out of memory that comes out of it says what
  /// would fit and what filled the memory, the device's or the host's, unless it does already.
  template <class Action>
  decltype(auto) explaining(memory_access access, const memory_tag& asking, std::uint64_t bytes,
                            Action&& action) {
    try {
      return action();
    } catch (const out_of_memory& e) {
      if (e.report()) throw;
      throw vgg16::detail::explained(
          e, options_.load, asking, bytes, [&, this](memory_report& report) {
            if (is_host_accessible(access)) {
              vgg16::detail::describe_host(report);
              report.alternatives = host_alternatives(report.free);
              return;
            }
            device_.describe(report, live_device_bytes(options_.load.ledger->snapshot()));
            auto available = report.limit ? report.limit : report.free;
            // What the load itself has there comes back when it ends.
            if (available && !report.limit) *available += own_device_bytes_;
            report.alternatives = device_alternatives(available);
          });
    }
  }

  /// A block for one purpose beside the weights: all of it is one piece.
  template <memory_resource Resource>
  [[nodiscard]] arena<Resource> allocate(std::string_view what, std::uint64_t bytes) {
    return explaining(Resource::access, {what, "load", memory_role::staging}, bytes, [&, this] {
      return vgg16::detail::allocate_block(source_, what, bytes, *largest_, Resource(),
                                           options_.load.ledger);
    });
  }

  /// The window on the device, if any.
  [[nodiscard]] arena<resource> allocate_window() {
    constexpr std::string_view what = "a window on the device";
    if (conversion_ == upload_conversion::by_measurement) {
      try {
        return vgg16::detail::allocate_block(source_, what, report_.device_window_bytes, *largest_,
                                             resource(), options_.load.ledger);
      } catch (const out_of_memory&) {
        do_without_window();
      }
    }
    return allocate<resource>(what, report_.device_window_bytes);
  }

  /// Gives each tensor its place.
  [[nodiscard]] std::vector<device_tensor> place(arena<resource>& memory) const {
    std::vector<device_tensor> views;
    views.reserve(tensors_.size());
    for (const tensor& one : tensors_) {
      const tensor_info& info = source_.tensors()[one.index];
      const auto order = is_permuted(info) ? element_order::row_major : info.order;
      views.push_back({one.type, *one.dims, order,
                       memory.allocate(tag(one), static_cast<std::size_t>(one.bytes),
                                       vgg16::detail::piece_alignment)});
    }
    return views;
  }

  /// Takes what is needed on the way, uploads all tensors, and gives it back.
  void stage_and_upload(const memory_plan& plan, std::span<const device_tensor> views) {
    arena<host_resource> windows = allocate<host_resource>("windows", plan.windows_bytes());
    (void)windows.allocate({"windows", "load", memory_role::staging}, windows.capacity());
    const auto before = std::chrono::steady_clock::now();
    auto ring = allocate<typename Device::pinned_resource>("the pinned ring", options_.ring_bytes);
    const std::chrono::duration<double, std::milli> pinned =
        std::chrono::steady_clock::now() - before;
    report_.pin_ms = pinned.count();
    (void)ring.allocate({"the pinned ring", "load", memory_role::staging}, ring.capacity());
    arena<resource> window = allocate_window();
    if (report_.device_window_bytes > 0) {
      mirror_ = window.allocate({"a window on the device", "load", memory_role::staging},
                                options_.ring_bytes);
      healths_ = window.allocate({"health", "load", memory_role::staging},
                                 static_cast<std::size_t>(healths_bytes()));
      typename Device::stream order;
      device_.set_zero(healths_.data(), healths_.size(), order);
      typename Device::event done;
      device_.record(done, order);
      device_.synchronize(done);
    }

    for (const tensor& one : tensors_) {
      source_bytes_.push_back(source_.tensors()[one.index].bytes);
      total_source_bytes_ += source_bytes_.back();
    }
    const auto upload = [&, this](upload_conversion how, std::size_t first, std::size_t last) {
      if (first < last)
        upload_stage_of(how, first, last, views, ring.block(), windows.block(), plan);
    };
    if (conversion_ != upload_conversion::by_measurement) {
      report_.conversion = conversion_;
      upload(conversion_, 0, tensors_.size());
    } else {
      const auto [first_end, second_end] = trial_ends(source_bytes_);
      upload(upload_conversion::on_device, 0, first_end);
      upload(upload_conversion::while_staging, first_end, second_end);
      report_.conversion = faster(report_.stages);
      upload(report_.conversion, second_end, tensors_.size());
    }
    if (report_.device_window_bytes > 0) add_overflows_on_device();
    // Stages and devices tell of them each in an order of its own.
    const auto place_of = [&, this](const auto& one) {
      return std::ranges::find(tensors_, one.tensor, &tensor::index) - tensors_.begin();
    };
    std::ranges::sort(report_.overflowed, {}, place_of);
  }

  /// How the stage went that had the most bytes of the source for its time.
  [[nodiscard]] static upload_conversion faster(std::span<const upload_stage> stages) {
    return std::ranges::max_element(stages, {},
                                    [](const upload_stage& stage) {
                                      return static_cast<double>(stage.source_bytes) /
                                             stage.seconds;
                                    })
        ->conversion;
  }

  void upload_stage_of(upload_conversion how, std::size_t first, std::size_t last,
                       std::span<const device_tensor> views, std::span<std::byte> ring_memory,
                       std::span<std::byte> windows, const memory_plan& plan) {
    // All that is staged, one tensor behind the other in the type in which it crosses.
    std::vector<transfer> transfers;
    std::vector<upload_segment> segments;
    std::uint64_t staged_end = 0;
    for (std::size_t i = first; i < last; ++i) {
      const tensor& one = tensors_[i];
      const tensor_info& info = source_.tensors()[one.index];
      const bool converts =
          how == upload_conversion::on_device && is_converted_on_device(info.dtype, one.type);
      const std::uint64_t begin = *checked_align_up(staged_end, vgg16::detail::piece_alignment);
      staged_end = begin + (converts ? info.bytes : one.bytes);
      transfers.push_back({one.index, converts ? info.dtype : one.type, begin});
      if (is_permuted(info)) transfers.back().axes = axes_of(info);
      segments.push_back({begin, staged_end, views[i].bytes.data()});
      if (converts) {
        segments.back().converted = one.type;
        segments.back().health = reinterpret_cast<health_accumulator*>(healths_.data()) + i;
      }
    }

    const std::uint64_t done_before = done_source_bytes_;
    std::function<void(const stream_progress&)> progress;
    if (options_.load.progress) {
      progress = [&, this](const stream_progress& stage) {
        options_.load.progress({done_before + stage.done_bytes, total_source_bytes_});
      };
    }
    const stream_options how_to_stream{.threads = plan.threads,
                                       .stop = options_.load.stop,
                                       .progress = progress,
                                       .overflow = options_.load.overflow,
                                       .measure_health = options_.load.measure_health};
    const ring_geometry geometry = divide_ring(ring_memory.size(), plan.threads);
    const auto start = std::chrono::steady_clock::now();
    stream_report streamed;
    {
      upload_engine<Device> engine(device_, std::move(segments), ring_memory, mirror_,
                                   geometry.slots());
      upload_ring ring(engine, ring_memory, plan.threads);
      streamed = stream(source_, transfers, ring, windows, how_to_stream);
      ring.finish();
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    report_.stages.push_back({how, streamed.read_bytes, streamed.written_bytes, elapsed.count()});
    report_.upload_seconds += elapsed.count();
    report_.uploaded_bytes += streamed.written_bytes;
    report_.threads = std::max(report_.threads, streamed.threads);
    done_source_bytes_ += streamed.read_bytes;
    for (std::size_t i = first; i < last; ++i) report_.copied_bytes += tensors_[i].bytes;
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(report_.overflowed, streamed.overflowed);
    append(report_.measured, streamed.measured);
  }

  void add_overflows_on_device() {
    std::vector<health_accumulator> healths(tensors_.size());
    device_.copy_to_host(std::as_writable_bytes(std::span(healths)), healths_.data());
    for (std::size_t i = 0; i < healths.size(); ++i) {
      const std::uint64_t overflowed = to_health(healths[i]).overflowed;
      if (overflowed > 0) {
        report_.overflowed.push_back({tensors_[i].index, tensors_[i].type, overflowed});
      }
    }
  }

  Device device_;
  const checkpoint& source_;
  const device_load_options options_;
  std::chrono::steady_clock::time_point start_;
  vgg16::binding bound_;
  std::vector<tensor> tensors_;
  const tensor* largest_ = nullptr;
  upload_conversion conversion_ = upload_conversion::while_staging;
  device_load_report report_;
  memory_span<memory_access::device> mirror_;   // of the ring
  memory_span<memory_access::device> healths_;  // an accumulator for each tensor
  std::vector<std::uint64_t> source_bytes_;     // of each tensor
  std::uint64_t own_device_bytes_ = 0;          // of the weights, once they have their place
  std::uint64_t total_source_bytes_ = 0;
  std::uint64_t done_source_bytes_ = 0;
};

}  // namespace detail

/// Loads VGG16 from an open checkpoint into memory of the device, which is taken in one block of
/// exactly the size that is needed. Threads read windows into a ring of pinned memory, from where
/// they cross while the next are read (`upload_ring`, `upload_engine`). On the host the load takes
/// the ring, 16 MiB, and windows of 4 MiB at most in all, which are used where the host converts; on
/// the device, where that converts, a window as large as the ring beside the weights.
///
/// Throws `vgg16::load`'s errors, and the device's.
template <upload_device Device>
[[nodiscard]] device_model<typename Device::device_resource> load_vgg16(
    const checkpoint& source, const device_load_options& options, Device device) {
  return vggload::detail::naming_out_of_memory(source.path(), "loading VGG16", [&] {
    return detail::device_load<Device>(std::move(device), source, options).run();
  });
}

}  // namespace vggload::cuda
