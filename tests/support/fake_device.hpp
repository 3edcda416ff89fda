// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/cuda/health.hpp>
#include <vggload/cuda/upload_engine.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace test {

/// A device that is none: its memory is the host's, and what comes into a stream is done when
/// somebody waits, as late as can be, and in any order that streams and events allow. So what reads
/// memory that has been filled anew meanwhile, or that is not yet filled, gives wrong results.
///
/// The state is static, because resources and streams are default-constructed as those of CUDA are.
/// One test at a time calls `reset`.
class fake_device {
 public:
  struct statistics {
    std::uint64_t calls = 0;
    std::uint64_t fail_at_call = UINT64_MAX;  // and all that follow: such errors stay
    std::uint64_t copied_bytes = 0;           // to the device
    std::uint64_t conversions = 0;
    std::size_t device_bytes = 0;  // now
    std::size_t most_device_bytes = 0;
    std::size_t pinned_bytes = 0;
    std::size_t most_pinned_bytes = 0;
    std::size_t capacity = SIZE_MAX;  // of the device
    std::size_t dropped_steps = 0;  // of streams that ended before: nobody knows when they are made
    std::size_t live_streams = 0;
    std::size_t live_events = 0;
  };

  class device_resource {
   public:
    static constexpr vggload::memory_access access = vggload::memory_access::device;
    void* allocate(std::size_t bytes, std::size_t alignment) {
      const std::scoped_lock lock(mutex());
      if (bytes > history().capacity - history().device_bytes) {
        throw vggload::out_of_memory(vggload::detail::fixed_text() << "the fake device is full", {},
                                     bytes);
      }
      history().device_bytes += bytes;
      history().most_device_bytes = std::max(history().most_device_bytes, history().device_bytes);
      void* const address = vggload::host_resource().allocate(bytes, alignment);
      std::memset(address, 0xEE, bytes);
      return address;
    }
    void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
      const std::scoped_lock lock(mutex());
      history().device_bytes -= bytes;
      vggload::host_resource().deallocate(address, bytes, alignment);
    }
  };

  class pinned_resource {
   public:
    static constexpr vggload::memory_access access = vggload::memory_access::host_and_device;
    void* allocate(std::size_t bytes, std::size_t alignment) {
      const std::scoped_lock lock(mutex());
      history().pinned_bytes += bytes;
      history().most_pinned_bytes = std::max(history().most_pinned_bytes, history().pinned_bytes);
      return vggload::host_resource().allocate(bytes, alignment);
    }
    void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
      const std::scoped_lock lock(mutex());
      history().pinned_bytes -= bytes;
      vggload::host_resource().deallocate(address, bytes, alignment);
    }
  };

 private:
  struct event_state {
    std::uint64_t recorded = 0;
    std::uint64_t reached = 0;
  };
  struct step {
    std::function<void()> run;
    std::shared_ptr<event_state> after = {};  // not before this one has reached
    std::uint64_t reached = 0;                // so far
  };
  using queue = std::deque<step>;

 public:
  class stream {
   public:
    stream() : steps_(std::make_shared<queue>()) {
      const std::scoped_lock lock(mutex());
      all_streams().push_back(steps_);
      ++history().live_streams;
    }
    stream(stream&&) noexcept = default;
    stream& operator=(stream&&) noexcept = default;
    ~stream() {
      if (!steps_) return;
      const std::scoped_lock lock(mutex());
      history().dropped_steps += steps_->size();
      std::erase(all_streams(), steps_);
      --history().live_streams;
    }

   private:
    friend fake_device;
    std::shared_ptr<queue> steps_;
  };

  class event {
   public:
    event() : state_(std::make_shared<event_state>()) {
      const std::scoped_lock lock(mutex());
      ++history().live_events;
    }
    event(event&&) noexcept = default;
    event& operator=(event&&) noexcept = default;
    ~event() {
      if (!state_) return;
      const std::scoped_lock lock(mutex());
      --history().live_events;
    }

   private:
    friend fake_device;
    std::shared_ptr<event_state> state_;
  };

  /// Before a test. What was taken before must have been given back.
  static statistics& reset() {
    const std::scoped_lock lock(mutex());
    return history() = statistics();
  }
  static statistics& history() {
    static statistics instance;
    return instance;
  }

  void copy_to_device(std::byte* to, std::span<const std::byte> from, stream& order) const {
    const std::scoped_lock lock(mutex());
    count_call();
    history().copied_bytes += from.size();
    order.steps_->push_back({[=] { std::memcpy(to, from.data(), from.size()); }});
  }
  void set_zero(std::byte* to, std::size_t bytes, stream& order) const {
    const std::scoped_lock lock(mutex());
    count_call();
    order.steps_->push_back({[=] { std::memset(to, 0, bytes); }});
  }
  void convert(vggload::dtype to, const std::byte* source, std::byte* destination,
               std::size_t count, vggload::cuda::health_accumulator* health, stream& order) const {
    const std::scoped_lock lock(mutex());
    count_call();
    ++history().conversions;
    order.steps_->push_back({[=] {
      std::uint64_t overflowed = 0;
      if (vggload::find_conversion(vggload::dtype::f32, to)(source, destination, count)) {
        vggload::detail::for_each_overflow(vggload::dtype::f32, to, source, destination, count,
                                           [&](std::size_t, double, std::byte*) { ++overflowed; });
      }
      health->numel += count;
      health->counts.overflowed += overflowed;
    }});
  }
  void record(event& place, stream& order) const {
    const std::scoped_lock lock(mutex());
    count_call();
    order.steps_->push_back(
        {[state = place.state_, number = ++place.state_->recorded] { state->reached = number; }});
  }
  void wait(stream& order, event& place) const {
    const std::scoped_lock lock(mutex());
    count_call();
    order.steps_->push_back({[] {}, place.state_, place.state_->recorded});
  }
  void synchronize(event& place) const {
    const std::scoped_lock lock(mutex());
    count_call();
    const std::uint64_t wanted = place.state_->recorded;
    while (place.state_->reached < wanted) make_one_step();
  }
  void copy_to_host(std::span<std::byte> to, const std::byte* from) const {
    const std::scoped_lock lock(mutex());
    count_call();
    std::memcpy(to.data(), from, to.size());
  }
  void drain(stream& order) const noexcept {
    const std::scoped_lock lock(mutex());
    while (!order.steps_->empty()) make_one_step();
  }
  void describe(vggload::memory_report& report, std::uint64_t allocated) const noexcept {
    const std::scoped_lock lock(mutex());
    report.place = "memory of the fake device";
    report.free = history().capacity - history().device_bytes;
    report.context_bytes = history().device_bytes - allocated;
  }

 private:
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::vector<std::shared_ptr<queue>>& all_streams() {
    static std::vector<std::shared_ptr<queue>> instance;
    return instance;
  }

  static void count_call() {
    if (history().calls++ >= history().fail_at_call) throw vggload::error("injected: device");
  }

  /// One step of any stream that can make one.
  static void make_one_step() {
    static std::mt19937 random(3);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
    std::vector<queue*> ready;
    for (const auto& steps : all_streams()) {
      if (steps->empty()) continue;
      const step& next = steps->front();
      if (!next.after || next.after->reached >= next.reached) ready.push_back(steps.get());
    }
    queue& chosen = *ready.at(random() % ready.size());
    chosen.front().run();
    chosen.pop_front();
  }
};

static_assert(vggload::cuda::upload_device<fake_device>);

}  // namespace test
