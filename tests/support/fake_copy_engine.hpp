// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/load/upload_ring.hpp>

namespace test {

/// When the copies of a `fake_copy_engine` are made.
enum class copy_pace {
  /// By a thread of its own, in random order, each after a pause.
  out_of_step,
  /// Not before somebody waits for this very copy, or drains: as late as can be.
  when_waited_for,
};

/// Which call throws, counted from 0 on over all threads.
struct copy_failures {
  std::uint64_t at_submit = UINT64_MAX;     // before the copy begins
  std::uint64_t after_submit = UINT64_MAX;  // the copy is under way all the same
  std::uint64_t at_wait = UINT64_MAX;       // likewise
  std::uint64_t in_copy = UINT64_MAX;  // the copy is never made: all that wait from then on throw
};

/// Copies into a vector and looks on: it reads the source when the copy completes, as late as
/// hardware may, and compares it with what it was at the submission. A slot is poisoned before its
/// copy counts as complete, so that bytes that are submitted again without having been filled do
/// not go unseen. Breaches are collected as text, because the threads of a test cannot all assert.
class fake_copy_engine {
 public:
  static constexpr std::byte untouched{0xEE};
  static constexpr std::byte poison{0xDB};

  fake_copy_engine(std::size_t destination_bytes, vggload::ring_geometry geometry, copy_pace pace,
                   copy_failures fail = {})
      : destination_(destination_bytes, untouched),
        arrived_(destination_bytes),
        slots_(geometry.slots()),
        slot_bytes_(geometry.slot_bytes),
        pace_(pace),
        fail_(fail) {
    if (pace == copy_pace::out_of_step) {
      thread_ = std::jthread([this](const std::stop_token& stop) { copy_until(stop); });
    }
  }

  void submit(std::size_t slot, std::span<const std::byte> staged, std::uint64_t offset) {
    const std::unique_lock lock(mutex_);
    const std::uint64_t number = submits_++;
    if (number == fail_.at_submit) throw vggload::error("injected: submit");
    if (slot >= slots_.size()) return breach("there is no slot " + std::to_string(slot));
    if (slots_[slot]) return breach("a copy from the slot is under way");
    if (staged.empty() || staged.size() > slot_bytes_) return breach("not the bytes of a slot");
    for (const auto& other : slots_) {
      if (other && staged.data() < other->source.data() + other->source.size() &&
          other->source.data() < staged.data() + staged.size()) {
        return breach("the copy's source overlaps with one that is under way");
      }
    }
    if (offset > destination_.size() || staged.size() > destination_.size() - offset) {
      return breach("the copy ends behind the destination");
    }
    slots_[slot] = copy{staged, offset, {staged.begin(), staged.end()}, number == fail_.in_copy};
    if (number == fail_.after_submit) throw vggload::error("injected: submit");
  }

  void wait(std::size_t slot) {
    std::unique_lock lock(mutex_);
    if (waits_++ == fail_.at_wait) throw vggload::error("injected: wait");
    if (pace_ == copy_pace::when_waited_for && slots_[slot]) complete(slot);
    completed_.wait(lock, [&] { return !slots_[slot]; });
    if (copy_failed_) throw vggload::error("injected: copy");
  }

  void drain() noexcept {
    std::unique_lock lock(mutex_);
    if (pace_ == copy_pace::when_waited_for) {
      for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
        if (slots_[slot]) complete(slot);
      }
    }
    completed_.wait(lock, [&] { return under_way() == 0; });
  }

  /// What has arrived; `untouched` where nothing has.
  [[nodiscard]] std::vector<std::byte> destination() {
    const std::scoped_lock lock(mutex_);
    return destination_;
  }
  [[nodiscard]] std::optional<std::string> first_breach() {
    const std::scoped_lock lock(mutex_);
    return breach_;
  }
  [[nodiscard]] std::size_t copies_under_way() {
    const std::scoped_lock lock(mutex_);
    return under_way();
  }
  [[nodiscard]] std::uint64_t submits() {
    const std::scoped_lock lock(mutex_);
    return submits_;
  }
  [[nodiscard]] std::uint64_t waits() {
    const std::scoped_lock lock(mutex_);
    return waits_;
  }
  /// The most copies that were under way at the same time.
  [[nodiscard]] std::size_t most_under_way() {
    const std::scoped_lock lock(mutex_);
    return most_under_way_;
  }

 private:
  struct copy {
    std::span<const std::byte> source;
    std::uint64_t offset;
    std::vector<std::byte> submitted;  // what the source was
    bool fails;
  };

  void breach(std::string what) {
    if (!breach_) breach_ = std::move(what);
  }

  [[nodiscard]] std::size_t under_way() {
    const auto count = static_cast<std::size_t>(
        std::ranges::count_if(slots_, [](const auto& one) { return one.has_value(); }));
    most_under_way_ = std::max(most_under_way_, count);
    return count;
  }

  /// Makes the copy; the lock is held.
  void complete(std::size_t slot) {
    static_cast<void>(under_way());
    const copy& one = *slots_[slot];
    if (!std::ranges::equal(one.source, one.submitted)) breach("a slot was touched in flight");
    if (one.fails) {
      copy_failed_ = true;
    } else {
      const auto place = static_cast<std::ptrdiff_t>(one.offset);
      std::ranges::copy(one.source, destination_.begin() + place);
      for (std::size_t i = 0; i < one.source.size(); ++i) {
        if (arrived_[static_cast<std::size_t>(one.offset) + i]) breach("a byte arrived twice");
        arrived_[static_cast<std::size_t>(one.offset) + i] = true;
      }
    }
    // The memory is the test's own, and nobody else may touch it now.
    std::ranges::fill(std::span(const_cast<std::byte*>(one.source.data()), one.source.size()),
                      poison);
    slots_[slot].reset();
    completed_.notify_all();
  }

  void copy_until(const std::stop_token& stop) {
    std::mt19937 random(7);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 100));
      const std::scoped_lock lock(mutex_);
      const std::size_t count = under_way();
      if (count == 0) continue;
      std::size_t chosen = random() % count;
      for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
        if (slots_[slot] && chosen-- == 0) {
          complete(slot);
          break;
        }
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable completed_;
  std::vector<std::byte> destination_;
  std::vector<bool> arrived_;
  std::vector<std::optional<copy>> slots_;
  std::size_t slot_bytes_;
  copy_pace pace_;
  copy_failures fail_;
  std::uint64_t submits_ = 0;
  std::uint64_t waits_ = 0;
  std::size_t most_under_way_ = 0;
  bool copy_failed_ = false;
  std::optional<std::string> breach_;
  std::jthread thread_;
};

static_assert(vggload::copy_engine<fake_copy_engine>);
static_assert(vggload::window_sink<vggload::upload_ring<fake_copy_engine>>);

}  // namespace test
