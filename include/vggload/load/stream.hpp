// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/health.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/permutation.hpp>

namespace vggload {

/// One tensor's way from a reader to a destination. All transfers of a stream share one range of
/// bytes as their destination, in which each has its place.
struct transfer {
  std::size_t tensor;         // its index in the reader
  dtype to;                   // equal to the tensor's own: the bytes are moved as they are
  std::uint64_t destination;  // where its first byte goes
  /// Not empty: the elements get another order. The tensor's axes as they follow each other at the
  /// destination, slowest first, each with its stride in bytes of the payload.
  std::vector<strided_axis> axes = {};
};

/// Where a stream puts converted bytes. `offset` is a place in the destination range; `worker`
/// counts from 0 on and tells apart what happens at the same time. Both may be called from several
/// threads, each with its own `worker`.
///
/// - `begin_window(worker, offset, bytes)`: memory for the bytes that belong at `offset`;
/// - `end_window(worker, offset, window)`: that memory is filled. Valid until the worker's next
///   begin.
template <class S>
concept window_sink = requires(S& sink, unsigned worker, std::uint64_t offset, std::size_t bytes,
                               std::span<std::byte> window) {
  { sink.begin_window(worker, offset, bytes) } -> std::same_as<std::span<std::byte>>;
  { sink.end_window(worker, offset, window) } -> std::same_as<void>;
};

/// A destination that lies in host memory: bytes are converted straight into their place.
class memory_sink {
 public:
  /// `destination` must hold every transfer.
  explicit memory_sink(std::span<std::byte> destination) noexcept : destination_(destination) {}

  [[nodiscard]] std::span<std::byte> begin_window(unsigned, std::uint64_t offset,
                                                  std::size_t bytes) const noexcept {
    return destination_.subspan(static_cast<std::size_t>(offset), bytes);
  }
  void end_window(unsigned, std::uint64_t, std::span<std::byte>) const noexcept {}

 private:
  std::span<std::byte> destination_;
};

static_assert(window_sink<memory_sink>);

/// How far a stream is, in bytes of the file.
struct stream_progress {
  std::uint64_t done_bytes;
  std::uint64_t total_bytes;
};

struct stream_options {
  /// Threads that work at the same time, the caller's among them; at least 1.
  unsigned threads = 1;
  /// Asked between windows; ends the stream with `cancelled_error`.
  std::stop_token stop = {};
  /// Called by the caller's thread alone, after each of its windows and once at the end.
  std::function<void(const stream_progress&)> progress = {};
  /// What becomes of finite values that the type they are converted to cannot hold.
  overflow_policy overflow = overflow_policy::keep;
  /// Whether all floating-point tensors are measured in the same pass, also those that are moved as
  /// they are.
  bool measure_health = false;
};

/// A tensor some of whose finite values did not fit into the type that it was converted to.
struct tensor_overflow {
  std::size_t tensor;  // its index in the reader
  dtype to;
  std::uint64_t values;
};

/// What a stream measured of a tensor.
struct measured_tensor {
  std::size_t tensor;  // its index in the reader
  dtype to;
  tensor_health health;
};

/// What a stream did.
struct stream_report {
  std::uint64_t read_bytes = 0;     // from the reader
  std::uint64_t written_bytes = 0;  // to the sink
  unsigned threads = 0;  // that took part: fewer than asked for where the system had no more
  std::vector<tensor_overflow> overflowed;  // in the order of the transfers, as are:
  std::vector<measured_tensor> measured;    // empty unless asked for
};

namespace detail {

/// A transfer with all that its windows need.
struct resolved_transfer {
  std::size_t tensor;
  std::uint64_t begin;  // in the destination
  std::uint64_t end;
  std::size_t source_element;  // bytes; both 1 where bytes are moved as they are
  std::size_t destination_element;
  dtype from;
  dtype to;
  conversion convert;                     // nullptr: moved as they are
  measured_conversion measure = nullptr;  // nullptr: not measured
  bool sequential;                        // read by one thread, from its start to its end
  std::unique_ptr<const permutation> permuted = {};  // none: the order stays
  std::uint64_t last_box = 0;                        // boxes of all transfers up to this one
};

/// Where an element of the payload stands in the tensor: "[3, 0, 17]".
[[nodiscard]] inline std::string index_text(const tensor_info& info, std::uint64_t element) {
  const std::vector<strided_axis> axes = axes_of(info);
  const std::uint64_t offset = element * (bits_of(info.dtype) / 8);
  std::string text = "[";
  for (const strided_axis& axis : axes) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(axis.count == 1 ? 0 : offset / axis.stride % axis.count);
  }
  return text += "]";
}

/// A value of a floating-point type with all its digits.
[[nodiscard]] inline std::string value_text(dtype type, double value) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), type == dtype::f64 ? "%.17g" : "%.9g", value);
  return text.data();
}

/// Reads some of a tensor: `action`. Its io_error has the file's name and the numbers, whose bytes they are is known
/// only here.
template <class Action>
void naming_tensor(const tensor_info& info, Action&& action) {
  try {
    action();
  } catch (const io_error& cause) {
    throw io_error(std::string(cause.what()) + " (tensor " + in_quotes(info.name) + ")",
                   cause.code());
  }
}

/// What an `overflow_error` says: which element of a file's tensor exceeds the type it is rounded to.
[[nodiscard]] inline std::string overflow_text(std::string_view path, const tensor_info& info,
                                               std::uint64_t element, double value, dtype to) {
  return printable(path) + ": tensor " + in_quotes(info.name) + ": " +
         std::string(name_of(info.dtype)) + " " + value_text(info.dtype, value) + " at " +
         index_text(info, element) + " exceeds " + std::string(name_of(to)) +
         ", whose largest value is " + value_text(to, largest_finite(to));
}

template <weight_reader Reader>
[[nodiscard]] std::vector<resolved_transfer> resolve_transfers(const Reader& reader,
                                                               std::span<const transfer> transfers,
                                                               bool measure) {
  std::vector<resolved_transfer> resolved;
  resolved.reserve(transfers.size());
  std::uint64_t end_before = 0;
  for (const transfer& t : transfers) {
    const tensor_info& info = reader.tensors()[t.tensor];
    const auto fail = [&](const std::string& what) {
      throw unsupported_error(printable(reader.path()) + ": tensor " + in_quotes(info.name) + ": " +
                              what);
    };
    check_window(reader.path(), info, 0, 0);
    resolved_transfer r{t.tensor,   t.destination, 0,       1,       1,
                        info.dtype, t.to,          nullptr, nullptr, info.sequential};
    std::uint64_t bytes = info.bytes;
    if (info.dtype != t.to) {
      r.convert = find_conversion(info.dtype, t.to);
      if (r.convert == nullptr) {
        fail(std::string(name_of(info.dtype)) + " cannot be converted to " +
             std::string(name_of(t.to)));
      }
      r.source_element = bits_of(info.dtype) / 8;
      r.destination_element = bits_of(t.to) / 8;
      const auto converted = checked_multiply(info.bytes / r.source_element, r.destination_element);
      if (!converted) fail("its size as " + std::string(name_of(t.to)) + " exceeds 64 bits");
      bytes = *converted;
    }
    if (measure) r.measure = find_measured_conversion(info.dtype, t.to);
    if (r.measure != nullptr && r.convert == nullptr) {
      r.source_element = r.destination_element = bits_of(info.dtype) / 8;
    }
    const auto end = checked_add(t.destination, bytes);
    if (!end || t.destination < end_before) {
      fail("its place in the destination, " + std::to_string(bytes) + " bytes from " +
           std::to_string(t.destination) + " on, is not behind the tensor before");
    }
    r.end = end_before = *end;
    resolved.push_back(std::move(r));
  }
  return resolved;
}

/// The work of one call of `stream`, shared by its threads.
template <weight_reader Reader, window_sink Sink>
class stream_run {
 public:
  stream_run(const Reader& reader, std::span<const transfer> transfers, Sink& sink,
             std::span<std::byte> windows, const stream_options& options)
      : reader_(reader),
        transfers_(resolve_transfers(reader, transfers, options.measure_health)),
        health_(transfers_.size()),
        sink_(sink),
        windows_(windows),
        window_bytes_(windows.size() / std::max(options.threads, 1U)),
        options_(options) {
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      if (!transfers[i].axes.empty() && transfers_[i].end > transfers_[i].begin) {
        permute(transfers_[i], transfers[i].axes);
      }
      transfers_[i].last_box = boxes_;
    }
    for (const resolved_transfer& t : transfers_) {
      total_source_bytes_ += (t.end - t.begin) / t.destination_element * t.source_element;
      end_ = t.end;
      if (window_bytes_ < std::max(t.source_element, t.destination_element)) fail_small_windows();
    }
  }

  stream_report run() {
    stream_report report;
    {
      std::vector<std::jthread> threads;
      try {
        threads.reserve(options_.threads);
        for (unsigned worker = 1; worker < options_.threads; ++worker) {
          threads.emplace_back([this, worker] { work(worker); });
        }
      } catch (const std::system_error&) {
        // No further thread to be had: those that are there do the work.
      } catch (...) {
        failed_ = true;  // the ones that were started end before the stack unwinds
        throw;
      }
      report.threads = static_cast<unsigned>(threads.size()) + 1;
      work(0);
    }
    if (first_error_) std::rethrow_exception(first_error_);
    if (first_overflow_) throw_overflow();
    report.read_bytes = done_source_bytes_;
    report.written_bytes = done_bytes_;
    if (done_source_bytes_ != total_source_bytes_) {
      throw cancelled_error(printable(reader_.path()) + ": cancelled after " +
                            std::to_string(done_source_bytes_) + " of " +
                            std::to_string(total_source_bytes_) + " bytes");
    }
    report_progress();
    for (std::size_t i = 0; i < transfers_.size(); ++i) {
      const resolved_transfer& t = transfers_[i];
      if (health_[i].overflowed > 0) {
        report.overflowed.push_back({t.tensor, t.to, health_[i].overflowed});
      }
      if (t.measure != nullptr) report.measured.push_back({t.tensor, t.to, health_[i]});
    }
    return report;
  }

 private:
  /// A value that is refused; the first in the order of transfers and elements.
  struct refused_value {
    std::size_t transfer;
    std::uint64_t element;  // of the payload
    double value;

    friend bool operator<(const refused_value& a, const refused_value& b) {
      return std::pair(a.transfer, a.element) < std::pair(b.transfer, b.element);
    }
  };

  /// Bytes of the destination that a thread takes at a time: a huge page, so that no two threads
  /// meet in the first touch of one.
  static constexpr std::uint64_t stripe_bytes = std::uint64_t{2} << 20U;

  /// What is read of a box and what is written of it share a window.
  void permute(resolved_transfer& t, std::span<const strided_axis> axes) {
    if (t.convert == nullptr) {
      t.source_element = t.destination_element = bits_of(reader_.tensors()[t.tensor].dtype) / 8;
    }
    const std::size_t element = std::max(t.source_element, t.destination_element);
    const std::size_t most = window_bytes_ / 2 / element;
    if (most == 0) fail_small_windows();
    t.permuted = std::make_unique<const permutation>(strided_layout(axes, t.source_element), most,
                                                     t.sequential);
    // A sequential tensor's boxes belong to one thread.
    boxes_ += t.sequential ? 1 : t.permuted->boxes();
  }

  [[noreturn]] void fail_small_windows() const {
    throw error(printable(reader_.path()) + ": windows of " + std::to_string(window_bytes_) +
                " bytes are too small");
  }

  void work(unsigned worker) noexcept {
    try {
      while (goes_on()) {
        const std::uint64_t begin = next_stripe_.fetch_add(1) * stripe_bytes;
        if (begin >= end_) break;
        stream_stripe(worker, begin, begin + stripe_bytes);
      }
      while (goes_on()) {
        const std::uint64_t box = next_box_.fetch_add(1);
        if (box >= boxes_) return;
        stream_boxes(worker, box);
      }
    } catch (...) {
      const std::scoped_lock lock(error_mutex_);
      if (!first_error_) first_error_ = std::current_exception();
      failed_ = true;
    }
  }

  [[nodiscard]] bool goes_on() const noexcept {
    return !failed_ && !options_.stop.stop_requested();
  }

  /// Streams what lies in [begin, end) of the destination. An element on the border belongs to the
  /// stripe in which it begins, and so does all of a sequential tensor.
  void stream_stripe(unsigned worker, std::uint64_t begin, std::uint64_t end) {
    auto t = std::ranges::upper_bound(transfers_, begin, {}, &resolved_transfer::end);
    for (; t != transfers_.end() && t->begin < end; ++t) {
      const std::uint64_t size = t->destination_element;
      if (t->permuted || is_past_refusal(*t)) continue;
      if (t->sequential) {
        if (t->begin >= begin) stream_elements(worker, *t, 0, (t->end - t->begin) / size);
        if (failed_) return;
        continue;
      }
      const std::uint64_t first = begin > t->begin ? (begin - t->begin + size - 1) / size : 0;
      const std::uint64_t last = (std::min(end, t->end) - t->begin + size - 1) / size;
      stream_elements(worker, *t, first, last);
      if (failed_) return;
    }
  }

  void stream_elements(unsigned worker, const resolved_transfer& t, std::uint64_t first,
                       std::uint64_t last) {
    const std::uint64_t per_window =
        window_bytes_ / std::max(t.source_element, t.destination_element);
    naming_tensor(reader_.tensors()[t.tensor], [&, this] {
      for (std::uint64_t begin = first; begin < last && goes_on(); begin += per_window) {
        stream_window(worker, t, begin,
                      static_cast<std::size_t>(std::min(per_window, last - begin)));
      }
    });
  }

  void stream_window(unsigned worker, const resolved_transfer& t, std::uint64_t element,
                     std::size_t count) {
    const std::uint64_t destination = t.begin + element * t.destination_element;
    const std::uint64_t source = element * t.source_element;
    const std::size_t source_bytes = count * t.source_element;
    const std::size_t bytes = count * t.destination_element;
    const std::span<std::byte> target = sink_.begin_window(worker, destination, bytes);
    if (t.convert == nullptr) {
      reader_.read(t.tensor, source, target);
      measure(t, target, count);
    } else {
      const auto window = windows_.subspan(worker * window_bytes_, source_bytes);
      reader_.read(t.tensor, source, window);
      convert(t, window, target, count, [&](std::uint64_t i) { return element + i; });
    }
    sink_.end_window(worker, destination, target);
    add_progress(worker, source_bytes, bytes);
  }

  /// What is moved as it is, where it has been read.
  void measure(const resolved_transfer& t, std::span<std::byte> elements, std::size_t count) {
    if (t.measure == nullptr) return;
    tensor_health health = first_health(t);
    t.measure(elements.data(), elements.data(), count, health);
    const std::scoped_lock lock(results_mutex_);
    health_[number_of(t)] += health;
  }

  /// Converts, measures, and does with what overflows as the policy says. `element_of` gives the
  /// place in the payload of one of these elements.
  template <class ElementOf>
  void convert(const resolved_transfer& t, std::span<const std::byte> source,
               std::span<std::byte> target, std::size_t count, const ElementOf& element_of) {
    tensor_health health = first_health(t);
    if (t.measure != nullptr) {
      t.measure(source.data(), target.data(), count, health);
    } else if (!t.convert(source.data(), target.data(), count)) {
      return;
    }
    std::uint64_t values = 0;
    // Elements come in the order of the payload: of those that are refused the first is enough.
    if (t.measure == nullptr || health.overflowed > 0) {
      for_each_overflow(t.from, t.to, source.data(), target.data(), count,
                        [&, this](std::size_t i, double value, std::byte* place) {
                          ++values;
                          if (options_.overflow == overflow_policy::saturate) {
                            make_finite(t.to, place);
                          } else if (options_.overflow == overflow_policy::refuse && values == 1) {
                            refuse({number_of(t), element_of(i), value});
                          }
                        });
    }
    health.overflowed = values;
    const std::scoped_lock lock(results_mutex_);
    health_[number_of(t)] += health;
  }

  /// What a window's counting begins with: only errors beyond the largest so far take time.
  [[nodiscard]] tensor_health first_health(const resolved_transfer& t) {
    tensor_health health;
    if (t.measure == nullptr) return health;
    const std::scoped_lock lock(results_mutex_);
    health.max_relative_error = health_[number_of(t)].max_relative_error;
    return health;
  }

  [[nodiscard]] std::size_t number_of(const resolved_transfer& t) const noexcept {
    return static_cast<std::size_t>(&t - transfers_.data());
  }

  /// The rest of the tensor and the tensors before it are still looked at: which value an error
  /// names does not depend on the threads.
  void refuse(const refused_value& value) {
    const std::scoped_lock lock(results_mutex_);
    if (first_overflow_ && !(value < *first_overflow_)) return;
    first_overflow_ = value;
    last_transfer_ = value.transfer;
  }

  [[nodiscard]] bool is_past_refusal(const resolved_transfer& t) const noexcept {
    return number_of(t) > last_transfer_;
  }

  [[noreturn]] void throw_overflow() const {
    const resolved_transfer& t = transfers_[first_overflow_->transfer];
    throw overflow_error(overflow_text(reader_.path(), reader_.tensors()[t.tensor],
                                       first_overflow_->element, first_overflow_->value, t.to));
  }

  void add_progress(unsigned worker, std::uint64_t source_bytes, std::uint64_t bytes) {
    done_bytes_ += bytes;
    done_source_bytes_ += source_bytes;
    if (worker == 0) report_progress();
  }

  void stream_boxes(unsigned worker, std::uint64_t number) {
    const auto t = std::ranges::upper_bound(transfers_, number, {}, &resolved_transfer::last_box);
    if (is_past_refusal(*t)) return;
    naming_tensor(reader_.tensors()[t->tensor], [&, this] {
      if (!t->sequential) {
        stream_box(worker, *t, number - (t->last_box - t->permuted->boxes()));
        return;
      }
      for (std::uint64_t box = 0; box < t->permuted->boxes() && goes_on(); ++box) {
        stream_box(worker, *t, box);
      }
    });
  }

  void stream_box(unsigned worker, const resolved_transfer& t, std::uint64_t number) {
    const permuted_box box = t.permuted->box(number);
    const auto window = windows_.subspan(worker * window_bytes_, window_bytes_);
    auto filled = window.first(window.size() / 2);
    auto other = window.subspan(filled.size());
    std::size_t at = 0;
    t.permuted->for_each_source_run(box, [&, this](std::uint64_t source, std::uint64_t elements) {
      const auto run = filled.subspan(at, static_cast<std::size_t>(elements) * t.source_element);
      reader_.read(t.tensor, source, run);
      at += run.size();
    });
    const auto elements = static_cast<std::size_t>(box.elements);
    if (t.convert == nullptr) {
      measure(t, filled, elements);
    } else {
      convert(t, filled, other, elements, [&](std::uint64_t i) {
        std::uint64_t element = 0;
        std::uint64_t before = 0;
        t.permuted->for_each_source_run(box, [&](std::uint64_t source, std::uint64_t run) {
          if (i >= before && i < before + run) element = source / t.source_element + (i - before);
          before += run;
        });
        return element;
      });
      std::swap(filled, other);
    }
    t.permuted->permute(box, filled.data(), other.data(), t.destination_element);
    at = 0;
    t.permuted->for_each_destination_run(
        box, [&, this](std::uint64_t first, std::uint64_t run_elements) {
          const auto run =
              other.subspan(at, static_cast<std::size_t>(run_elements) * t.destination_element);
          const std::uint64_t destination = t.begin + first * t.destination_element;
          const auto target = sink_.begin_window(worker, destination, run.size());
          std::ranges::copy(run, target.begin());
          sink_.end_window(worker, destination, target);
          at += run.size();
        });
    add_progress(worker, elements * t.source_element, elements * t.destination_element);
  }

  void report_progress() const {
    if (options_.progress) options_.progress({done_source_bytes_, total_source_bytes_});
  }

  const Reader& reader_;
  std::vector<resolved_transfer> transfers_;
  std::vector<tensor_health> health_;  // one for each; of those not measured `overflowed` alone
  Sink& sink_;
  const std::span<std::byte> windows_;
  const std::size_t window_bytes_;
  const stream_options& options_;
  std::uint64_t total_source_bytes_ = 0;
  std::uint64_t end_ = 0;    // of the last transfer in the destination
  std::uint64_t boxes_ = 0;  // of all transfers that permute
  std::atomic<std::uint64_t> next_stripe_ = 0;
  std::atomic<std::uint64_t> next_box_ = 0;
  std::atomic<std::uint64_t> done_bytes_ = 0;
  std::atomic<std::uint64_t> done_source_bytes_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex results_mutex_;  // health_ and first_overflow_
  std::optional<refused_value> first_overflow_;
  std::atomic<std::size_t> last_transfer_ = SIZE_MAX;  // none behind it is looked at
  std::mutex error_mutex_;
  std::exception_ptr first_error_;
};

}  // namespace detail

/// Moves tensors from a reader to a sink, converted on the way, in windows smaller than a tensor
/// and from several threads; no tensor is ever in memory but at its destination.
///
/// - `transfers`: ordered by destination, without overlap.
/// - `windows`: memory that the threads share in equal parts for what is read and not yet
///   converted. Beside it only some hundred bytes for each transfer and thread are allocated, all
///   before the first read.
///
/// Throws the reader's and the sink's errors (the first one; the others' threads end soon after),
/// `unsupported_error` where there is no conversion, `overflow_error` where that is the policy,
/// `cancelled_error`.
template <weight_reader Reader, window_sink Sink>
stream_report stream(const Reader& reader, std::span<const transfer> transfers, Sink& sink,
                     std::span<std::byte> windows, const stream_options& options) {
  return detail::stream_run<Reader, Sink>(reader, transfers, sink, windows, options).run();
}

}  // namespace vggload
