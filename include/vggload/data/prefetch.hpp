// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// How many workers `prefetch` takes at most: more is a mistake.
inline constexpr unsigned largest_worker_count = 1024;

/// How far a sequence is read ahead.
struct prefetch_options {
  /// Threads that fill slots. With 0 nothing is read ahead: the consumer's own thread fills its one slot.
  unsigned workers = std::max(1U, std::thread::hardware_concurrency());
  /// Values that there is memory for, the one that the consumer has included. 0: two more than workers.
  /// Workers beyond the number of slots would have nothing to do and are not started.
  std::size_t slots = 0;
  /// In the sequence's order; else within an epoch as they become ready, for consumers to whom the
  /// order means nothing.
  bool ordered = true;
};

/// How a consumer fared.
struct prefetch_statistics {
  std::uint64_t values = 0;            // that it was given
  std::uint64_t waits = 0;             // for how many of them it had to wait
  std::chrono::nanoseconds waited{0};  // for how long, in all; without workers: filling them
};

namespace detail {

/// The slots, the workers and what they share. Stays where it is, since the workers refer to it.
///
/// A worker takes the next element of the sequence and a free slot in one step. So elements are begun
/// in their order, the earliest that the consumer lacks has a slot, and nobody can wait for somebody
/// who waits for him. In order, element n of all epochs together is in slot n modulo their number.
template <class S, class Resource>
class prefetch_ring {
  using base_type = std::remove_reference_t<S>;
  using value_type = sequence_value_t<S>;

 public:
  prefetch_ring(S&& values, const prefetch_options& options, Resource resource,
                std::shared_ptr<memory_ledger> ledger)
      : values_(std::forward<S>(values)),
        ordered_(options.ordered),
        slots_(slot_count(options)),
        memory_(memory_bytes(), std::move(resource), std::move(ledger), "prefetch") {
    const sequence_state start = state_of(sequence());
    seed_ = start.seed;
    epoch_ = start.epoch;
    given_ = static_cast<std::size_t>(start.batch);
    size_ = static_cast<std::size_t>(values_.size());
    claim_epoch_ = epoch_;
    claim_index_ = given_;
    begin_next_epoch();
    for (slot& each : slots_) each.place.emplace(sequence(), memory_);
    start_workers(options.workers);
  }
  prefetch_ring(const prefetch_ring&) = delete;
  prefetch_ring& operator=(const prefetch_ring&) = delete;
  ~prefetch_ring() { stop(); }

  /// The next value; nullptr at the end of an epoch.
  [[nodiscard]] value_type* next() {
    std::unique_lock lock(mutex_);
    release_held();
    while (given_ < size_) {
      held_ = ready_slot();
      if (held_ == nullptr) held_ = wait_for_slot(lock);
      ++given_;
      ++taken_;
      if (held_->failure) {
        lock.unlock();
        std::rethrow_exception(std::exchange(held_->failure, nullptr));
      }
      if (!held_->skipped) {
        ++statistics_.values;
        return &held_->place->get();
      }
      release_held();
    }
    lock.unlock();
    end_epoch();
    return nullptr;
  }

  [[nodiscard]] sequence_state state() const {
    const std::scoped_lock lock(mutex_);
    std::size_t index = given_;
    if (!ordered_) {
      index = claim_epoch_ == epoch_ ? claim_index_ : size_;
      for (const slot& each : slots_) {
        const bool pending = each.stage != slot_stage::free && &each != held_;
        if (pending && each.epoch == epoch_) index = std::min(index, each.index);
      }
    }
    return {seed_, epoch_, index};
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t slots() const noexcept { return slots_.size(); }
  [[nodiscard]] std::size_t workers() const noexcept { return workers_.size(); }
  [[nodiscard]] std::size_t memory_capacity() const noexcept { return memory_.capacity(); }
  [[nodiscard]] const prefetch_statistics& statistics() const noexcept { return statistics_; }

 private:
  enum class slot_stage : std::uint8_t { free, filling, ready };

  struct slot {
    std::optional<value_place<base_type>> place;
    slot_stage stage = slot_stage::free;
    bool skipped = false;
    std::exception_ptr failure;
    std::uint64_t epoch = 0;  // of what is in it
    std::size_t index = 0;
    std::uint64_t ready_number = 0;  // counts on with each slot that becomes ready
  };

  static std::size_t slot_count(const prefetch_options& options) {
    if (options.workers > largest_worker_count) {
      throw error("prefetch: " + std::to_string(options.workers) +
                  " workers were asked for, and there can be " +
                  std::to_string(largest_worker_count));
    }
    if (options.workers == 0) return 1;
    return options.slots > 0 ? options.slots : std::size_t{options.workers} + 2;
  }

  [[nodiscard]] std::size_t memory_bytes() const {
    const auto one = checked_align_up(value_place<base_type>::bytes(sequence()),
                                      arena<Resource>::default_alignment);
    const auto all = one ? checked_multiply(*one, slots_.size()) : std::nullopt;
    if (!all) {
      throw error("prefetch: the bytes of " + std::to_string(slots_.size()) +
                  " slots do not fit into a number");
    }
    return static_cast<std::size_t>(*all);
  }

  [[nodiscard]] const base_type& sequence() const noexcept { return values_; }

  void start_workers(unsigned wanted) {
    const std::size_t count = std::min<std::size_t>(wanted, slots_.size());
    workers_.reserve(count);
    try {
      while (workers_.size() < count) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // No further thread to be had: those that are there do the work, or else the consumer's.
    } catch (...) {
      stop();
      throw;
    }
  }

  /// The workers end after the element that they are at.
  void stop() noexcept {
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    slot_wanted_.notify_all();
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      slot* mine = nullptr;
      slot_wanted_.wait(lock, [&, this] { return stopping_ || (mine = free_slot()) != nullptr; });
      if (stopping_) return;
      fill_next(*mine, lock);
      slot_ready_.notify_one();
    }
  }

  /// Where all elements of an epoch were taken, and those of the next can be.
  void begin_next_epoch() noexcept {
    if (epoch_sequence<base_type> && claim_index_ == size_) {
      ++claim_epoch_;
      claim_index_ = 0;
    }
  }

  /// Takes the next element and fills the slot with it. The lock is held before and after, not meanwhile.
  void fill_next(slot& mine, std::unique_lock<std::mutex>& lock) {
    mine.stage = slot_stage::filling;
    mine.epoch = claim_epoch_;
    mine.index = claim_index_;
    ++claimed_;
    ++claim_index_;
    begin_next_epoch();
    lock.unlock();
    try {
      mine.place->clear();
      mine.skipped = !read_element(sequence(), mine.epoch, mine.index, mine.place->get());
    } catch (...) {
      mine.failure = std::current_exception();
    }
    lock.lock();
    mine.stage = slot_stage::ready;
    mine.ready_number = ++ready_count_;
  }

  /// A slot for the next element, where there are both.
  [[nodiscard]] slot* free_slot() noexcept {
    if (claim_index_ >= size_) return nullptr;  // until the epoch has ended
    // In order, slots become free in turn. Out of order it may be another one, and beginning at this one
    // lets all of them be filled once soon.
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      slot& each = slots_[static_cast<std::size_t>((claimed_ + i) % slots_.size())];
      if (each.stage == slot_stage::free) return &each;
    }
    return nullptr;
  }

  /// The slot that the consumer is to have next, where it is ready.
  [[nodiscard]] slot* ready_slot() noexcept {
    if (ordered_) {
      slot& next = slots_[static_cast<std::size_t>(taken_ % slots_.size())];
      return next.stage == slot_stage::ready ? &next : nullptr;
    }
    slot* first = nullptr;
    for (slot& each : slots_) {
      if (each.stage != slot_stage::ready || each.epoch != epoch_) continue;
      if (first == nullptr || each.ready_number < first->ready_number) first = &each;
    }
    return first;
  }

  [[nodiscard]] slot* wait_for_slot(std::unique_lock<std::mutex>& lock) {
    const auto start = std::chrono::steady_clock::now();
    slot* ready = nullptr;
    if (workers_.empty()) {
      fill_next(*free_slot(), lock);
      ready = ready_slot();
    } else {
      slot_ready_.wait(lock, [&, this] { return (ready = ready_slot()) != nullptr; });
    }
    ++statistics_.waits;
    statistics_.waited += std::chrono::steady_clock::now() - start;
    return ready;
  }

  void release_held() noexcept {
    if (held_ == nullptr) return;
    held_->stage = slot_stage::free;
    held_ = nullptr;
    slot_wanted_.notify_one();
  }

  /// All of the epoch were given, so no worker is at any of its elements.
  void end_epoch() {
    std::exception_ptr failure;
    try {
      values_.on_epoch_end();
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::scoped_lock lock(mutex_);
      ++epoch_;
      given_ = 0;
      if constexpr (!epoch_sequence<base_type>) {
        size_ = static_cast<std::size_t>(values_.size());
        claim_epoch_ = epoch_;
        claim_index_ = 0;
      }
    }
    slot_wanted_.notify_all();
    if (failure) std::rethrow_exception(failure);
  }

  S values_;
  bool ordered_;
  std::vector<slot> slots_;
  arena<Resource> memory_;

  // Of the consumer.
  std::uint64_t seed_ = 0;
  std::uint64_t epoch_ = 0;
  std::size_t given_ = 0;    // of the epoch, or passed over
  std::uint64_t taken_ = 0;  // of all epochs
  slot* held_ = nullptr;
  prefetch_statistics statistics_;

  mutable std::mutex mutex_;  // of what follows, and of the slots' stages
  std::condition_variable slot_wanted_;
  std::condition_variable slot_ready_;
  bool stopping_ = false;
  std::size_t size_ = 0;  // of an epoch
  std::uint64_t claim_epoch_ = 0;
  std::size_t claim_index_ = 0;  // the next element
  std::uint64_t claimed_ = 0;    // elements of all epochs
  std::uint64_t ready_count_ = 0;

  std::vector<std::jthread> workers_;  // joined before all else goes
};

}  // namespace detail

/// A sequence that is read ahead, see `prefetch`. For one consumer, one thread at a time. Moves, never
/// copies.
template <class S, class Resource>
class prefetched_sequence {
  using ring = detail::prefetch_ring<S, Resource>;

 public:
  using value_type = sequence_value_t<S>;

  /// See `prefetch`.
  prefetched_sequence(S&& values, const prefetch_options& options, Resource resource,
                      std::shared_ptr<memory_ledger> ledger)
      : ring_(std::make_unique<ring>(std::forward<S>(values), options, std::move(resource),
                                     std::move(ledger))) {}

  /// The next value, which the consumer may change, until the next call; nullptr once at the end of
  /// each epoch, after the sequence's `on_epoch_end()`. Throws what the element or `on_epoch_end()`
  /// threw, and can be called again: the next element, or the next epoch, follows.
  [[nodiscard]] value_type* next() { return ring_->next(); }

  /// Shows a value until the next step.
  class iterator {
   public:
    using value_type = prefetched_sequence::value_type;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    explicit iterator(ring& values) : ring_(&values), value_(values.next()) {}
    [[nodiscard]] value_type& operator*() const noexcept { return *value_; }
    iterator& operator++() {
      value_ = ring_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& position, std::default_sentinel_t /*end*/) {
      return position.value_ == nullptr;
    }

   private:
    ring* ring_;
    value_type* value_;
  };

  /// What is left of the epoch: a loop goes to its end, and one after it goes through the next epoch.
  [[nodiscard]] iterator begin() { return iterator(*ring_); }
  [[nodiscard]] static std::default_sentinel_t end() noexcept { return {}; }

  /// Where to go on (`resume_from`) when everything that was given is done with, the value that is
  /// shown included. Not in order: at the first that was not given, so some behind it will be given
  /// again.
  [[nodiscard]] sequence_state state() const { return ring_->state(); }

  /// Of a whole epoch.
  [[nodiscard]] std::size_t size() const noexcept { return ring_->size(); }
  /// Values that there is memory for.
  [[nodiscard]] std::size_t slots() const noexcept { return ring_->slots(); }
  /// Threads that fill slots: fewer than asked for where slots or the system's threads are fewer.
  [[nodiscard]] std::size_t workers() const noexcept { return ring_->workers(); }
  /// Bytes of the slots' block; 0 for plain values.
  [[nodiscard]] std::size_t memory_bytes() const noexcept { return ring_->memory_capacity(); }
  [[nodiscard]] const prefetch_statistics& statistics() const noexcept {
    return ring_->statistics();
  }

 private:
  std::unique_ptr<ring> ring_;
};

/// Reads a sequence ahead with `options.workers` threads, into `options.slots` slots that are filled
/// again and again. The slots of a `planned_sequence` are one block of `resource`, of exactly the
/// planned bytes, entered in `ledger` as "prefetch"; others are plain values. From then on only what
/// the sequence itself needs is allocated.
///
/// Workers wait when all slots are full. They begin the next epoch while the consumer finishes one, if
/// the sequence knows its epochs (`epoch_sequence`); if not, they wait for its `on_epoch_end()`, which
/// the consumer's thread calls. Elements that are skipped are left out. An element's error comes at its
/// turn. To end, at any moment, destroy it: the workers finish the elements that they are at.
/// @throws error where more than `largest_worker_count` workers are asked for, and what the resource
/// throws
template <host_accessible_resource Resource = host_resource>
[[nodiscard]] auto prefetch(const prefetch_options& options = {}, Resource resource = {},
                            std::shared_ptr<memory_ledger> ledger = nullptr) {
  return sequence_adaptor{
      [options, resource = std::move(resource), ledger = std::move(ledger)]<class S>(S&& values) {
        return prefetched_sequence<S, Resource>(std::forward<S>(values), options, resource, ledger);
      }};
}

}  // namespace vggload
