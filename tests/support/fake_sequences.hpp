// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace test {

/// The numbers 0 to count - 1, as plain values. Models no more than `sequence`, and is no epoch like
/// the other: what it gives has the number of epochs that ended in its thousands.
struct numbers {
  using value_type = int;

  explicit numbers(std::size_t its_count) : count(its_count) {}
  [[nodiscard]] std::size_t size() const { return count; }
  [[nodiscard]] int operator[](std::size_t i) const { return ended * 1000 + static_cast<int>(i); }
  void on_epoch_end() { ++ended; }

  std::size_t count;
  int ended = 0;
};

/// The same numbers of an `epoch_sequence`, filled in by a call. `before` sees each call, and may throw or
/// return false.
struct epoch_numbers {
  using value_type = int;
  using hook = std::function<bool(std::uint64_t epoch, std::size_t i)>;

  explicit epoch_numbers(std::size_t its_count, hook its_hook = {})
      : count(its_count), before(std::move(its_hook)) {}
  [[nodiscard]] std::size_t size() const { return count; }
  [[nodiscard]] auto element(std::uint64_t its_epoch, std::size_t i) const {
    return [this, its_epoch, i](int& value) -> bool {
      if (before && !before(its_epoch, i)) return false;
      value = static_cast<int>(its_epoch) * 1000 + static_cast<int>(i);
      return true;
    };
  }
  [[nodiscard]] auto operator[](std::size_t i) const { return element(now, i); }
  [[nodiscard]] std::uint64_t epoch() const { return now; }
  void set_epoch(std::uint64_t to) { now = to; }
  void on_epoch_end() { ++now; }

  std::size_t count;
  hook before;
  std::uint64_t now = 0;
};

/// The place of a number in a `number_batch`: refers to it.
struct number_place {
  std::span<int> number;
  std::vector<int>& skipped;
};

/// A batch like those of images: its memory is an arena's, and its places refer to it.
class number_batch {
 public:
  /// Not rounded: the next batch begins behind a gap.
  static std::size_t bytes(std::size_t count) { return count * sizeof(int); }

  template <class Arena>
  number_batch(Arena& arena, std::size_t count) : capacity_(count) {
    const std::span<std::byte> memory = arena.allocate("numbers", bytes(count));
    values_ = reinterpret_cast<int*>(memory.data());
    for (std::size_t i = 0; i < count; ++i) new (values_ + i) int(-1);
    skipped_.reserve(count);
  }
  number_batch(number_batch&&) = default;
  number_batch& operator=(number_batch&&) = default;
  number_batch(const number_batch&) = delete;
  number_batch& operator=(const number_batch&) = delete;
  ~number_batch() = default;

  [[nodiscard]] std::size_t capacity() const { return capacity_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  void resize(std::size_t size) { size_ = size; }
  void clear() {
    size_ = 0;
    skipped_.clear();
  }
  [[nodiscard]] number_place operator[](std::size_t i) { return {{values_ + i, 1}, skipped_}; }

  [[nodiscard]] std::vector<int> values() const { return {values_, values_ + size_}; }
  [[nodiscard]] const std::vector<int>& skipped() const { return skipped_; }

 private:
  std::size_t capacity_;
  std::size_t size_ = 0;
  int* values_ = nullptr;
  std::vector<int> skipped_;
};

/// The same numbers once more, of a `planned_sequence`. `before` as above; what it refuses is listed in
/// the batch.
struct planned_numbers : epoch_numbers {
  using value_type = number_place;
  using epoch_numbers::epoch_numbers;

  [[nodiscard]] auto element(std::uint64_t its_epoch, std::size_t i) const {
    return [this, its_epoch, i](number_place& place) -> bool {
      int number = -1;
      const bool taken = epoch_numbers::element(its_epoch, i)(number);
      if (taken) {
        place.number[0] = number;
      } else {
        place.skipped.push_back(static_cast<int>(i));
      }
      return taken;
    };
  }
  [[nodiscard]] auto operator[](std::size_t i) const { return element(now, i); }

  [[nodiscard]] static std::size_t storage_bytes(std::size_t n) { return number_batch::bytes(n); }
  template <class Arena>
  [[nodiscard]] number_batch make_storage(Arena& arena, std::size_t n) const {
    return number_batch(arena, n);
  }
};

}  // namespace test
