// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <ranges>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/error.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/map.hpp>
#include <vggload/data/random_permutation.hpp>
#include <vggload/data/resume.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/data/sequence_state.hpp>
#include <vggload/data/shard.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/data/take.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

#include "../support/fake_sequences.hpp"
#include "../support/message_of.hpp"

using namespace vggload;
using test::epoch_numbers;
using test::message_of;
using test::number_batch;
using test::numbers;
using test::planned_numbers;

namespace {

// What is a sequence, and what is none.

static_assert(sequence<numbers> && !epoch_sequence<numbers> && !planned_sequence<numbers>);
static_assert(sequence<epoch_numbers> && epoch_sequence<epoch_numbers> &&
              !planned_sequence<epoch_numbers>);
static_assert(epoch_sequence<planned_numbers> && planned_sequence<planned_numbers>);
static_assert(!sequence<std::vector<int>> && !sequence<int> && !sequence<const numbers>);

struct without_size : numbers {
  void size() const;
};
struct without_value_type {
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] int operator[](std::size_t i) const;
  void on_epoch_end();
};
struct without_epoch_end {
  using value_type = int;
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] int operator[](std::size_t i) const;
};
struct index_not_const : without_epoch_end {
  [[nodiscard]] int operator[](std::size_t i);
  void on_epoch_end();
};
struct gives_text : without_epoch_end {
  [[nodiscard]] const char* operator[](std::size_t i) const;
  void on_epoch_end();
};
struct fills_text : without_epoch_end {
  [[nodiscard]] std::function<void(std::string&)> operator[](std::size_t i) const;
  void on_epoch_end();
};
struct returns_number : without_epoch_end {  // an int where bool is meant: which one is skipped?
  [[nodiscard]] std::function<int(int&)> operator[](std::size_t i) const;
  void on_epoch_end();
};
static_assert(!sequence<without_size> && !sequence<without_value_type> &&
              !sequence<without_epoch_end>);
static_assert(!sequence<index_not_const> && !sequence<gives_text> && !sequence<fills_text> &&
              !sequence<returns_number>);

struct without_set_epoch : numbers {
  [[nodiscard]] int element(std::uint64_t epoch, std::size_t i) const;
  [[nodiscard]] std::uint64_t epoch() const;
};
struct element_not_const : without_set_epoch {
  [[nodiscard]] int element(std::uint64_t epoch, std::size_t i);
  void set_epoch(std::uint64_t epoch);
};
static_assert(sequence<without_set_epoch> && !epoch_sequence<without_set_epoch>);
static_assert(sequence<element_not_const> && !epoch_sequence<element_not_const>);

struct storage_of_others : numbers {
  [[nodiscard]] std::size_t storage_bytes(std::size_t n) const;
  template <class Arena>
  [[nodiscard]] std::vector<std::string> make_storage(Arena& arena, std::size_t n) const;
};
static_assert(sequence<storage_of_others> && !planned_sequence<storage_of_others>);

static_assert(batch_storage<image_batch> && batch_storage<number_batch>);
static_assert(!batch_storage<std::vector<image_batch>> && !batch_storage<std::vector<int>>);

// What the adaptors are.

template <class S, class Adaptor>
using adapted = decltype(std::declval<S>() | std::declval<Adaptor>());
using batch_of = decltype(batch(2));
using shuffle_of = decltype(shuffle(1));
using shard_of = decltype(shard(0, 1));
using take_of = decltype(take(1));
using resume_of = decltype(resume_from(sequence_state{}));

static_assert(sequence<adapted<numbers, batch_of>> && !epoch_sequence<adapted<numbers, batch_of>> &&
              !planned_sequence<adapted<numbers, batch_of>>);
static_assert(epoch_sequence<adapted<epoch_numbers, batch_of>>);
static_assert(planned_sequence<adapted<planned_numbers, batch_of>> &&
              epoch_sequence<adapted<planned_numbers, batch_of>>);
static_assert(planned_sequence<adapted<planned_numbers, shuffle_of>> &&
              planned_sequence<adapted<planned_numbers, shard_of>> &&
              planned_sequence<adapted<planned_numbers, take_of>> &&
              planned_sequence<adapted<adapted<planned_numbers, batch_of>, resume_of>>);
static_assert(epoch_sequence<adapted<epoch_numbers&, shuffle_of>> &&
              epoch_sequence<adapted<epoch_numbers, shard_of>> &&
              epoch_sequence<adapted<epoch_numbers, take_of>> &&
              epoch_sequence<adapted<epoch_numbers, resume_of>>);
static_assert(std::same_as<sequence_value_t<adapted<numbers, batch_of>>, std::vector<int>>);
static_assert(std::same_as<sequence_value_t<adapted<planned_numbers, batch_of>&>, number_batch>);
static_assert(std::ranges::input_range<adapted<numbers, batch_of>> &&
              std::ranges::input_range<element_range<numbers&>>);
static_assert(!std::ranges::forward_range<adapted<numbers, batch_of>>);

/// All of one epoch.
template <class S>
std::vector<sequence_value_t<S>> all_of(S&& values) {
  std::vector<sequence_value_t<S>> all;
  for (auto& value : elements(std::forward<S>(values))) all.push_back(value);
  return all;
}

/// All batches of one epoch of planned numbers.
template <class S>
std::vector<std::vector<int>> batches_of(S&& values) {
  std::vector<std::vector<int>> all;
  for (auto& value : elements(std::forward<S>(values))) all.push_back(value.values());
  return all;
}

using ints = std::vector<int>;
using int_batches = std::vector<std::vector<int>>;

/// Counts how many of it were made.
struct counted {
  static inline int made = 0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
  counted() { ++made; }
  int number = 0;
};

struct counted_numbers {
  using value_type = counted;
  [[nodiscard]] static std::size_t size() { return 5; }
  [[nodiscard]] auto operator[](std::size_t i) const {
    return [i](counted& value) { value.number = static_cast<int>(i); };
  }
  void on_epoch_end() const {}
};

}  // namespace

TEST_CASE("elements of every style are read") {
  int value = 0;
  numbers plain(5);
  CHECK(read_element(plain, 3, value));
  CHECK(value == 3);
  plain.ended = 2;
  CHECK(read_element(plain, 7, 4, value));  // it does not know its epochs
  CHECK(value == 2004);

  epoch_numbers called(5, [](std::uint64_t, std::size_t i) { return i != 2; });
  called.now = 1;
  CHECK(read_element(called, 3, value));
  CHECK(value == 1003);
  CHECK(read_element(called, 7, 4, value));
  CHECK(value == 7004);
  CHECK_FALSE(read_element(called, 2, value));
  CHECK_FALSE(read_element(called, 7, 2, value));
  CHECK(value == 7004);

  CHECK(fill_from([](int& into) { into = 9; }, value));
  CHECK(value == 9);
  CHECK(fill_from(short{8}, value));
  CHECK(value == 8);
}

TEST_CASE("a loop goes through an epoch and ends it once") {
  numbers plain(3);
  CHECK(all_of(plain) == ints{0, 1, 2});
  CHECK(plain.ended == 1);
  CHECK(all_of(plain) == ints{1000, 1001, 1002});
  CHECK(plain.ended == 2);
  for (int& value : elements(plain)) {
    if (value == 2001) break;
  }
  CHECK(plain.ended == 2);

  numbers none(0);
  CHECK(all_of(none).empty());
  CHECK(none.ended == 1);

  int sum = 0;
  for (const int value : elements(numbers(4))) sum += value;
  CHECK(sum == 6);

  // Skipped at the beginning, at the end and twice in a row.
  epoch_numbers gaps(
      7, [](std::uint64_t, std::size_t i) { return i != 0 && i != 3 && i != 4 && i != 6; });
  CHECK(all_of(gaps) == ints{1, 2, 5});
  CHECK(gaps.now == 1);
  epoch_numbers nothing(4, [](std::uint64_t, std::size_t) { return false; });
  CHECK(all_of(nothing).empty());
  CHECK(nothing.now == 1);
}

TEST_CASE("a loop has one value, whatever its length") {
  counted::made = 0;
  int sum = 0;
  for (const counted& value : elements(counted_numbers())) sum += value.number;
  CHECK(sum == 10);
  CHECK(counted::made == 1);
  counted::made = 0;
  const counted* first = nullptr;
  for (const counted& value : counted_numbers() | take(4)) {
    if (first == nullptr) first = &value;
    CHECK(&value == first);
  }
  CHECK(counted::made == 1);
}

TEST_CASE("an error leaves a loop that can be begun again") {
  bool failing = true;
  epoch_numbers values(4, [&](std::uint64_t, std::size_t i) {
    if (failing && i == 2) throw std::runtime_error("no 2");
    return true;
  });
  CHECK(message_of<std::runtime_error>([&] { (void)all_of(values); }) == "no 2");
  CHECK(values.now == 0);

  auto range = values | take(9);
  auto position = range.begin();
  ++position;
  CHECK_THROWS_AS(++position, std::runtime_error);
  ++position;
  CHECK(*position == 3);
  ++position;
  CHECK(position == range.end());

  failing = false;
  values.now = 0;
  CHECK(all_of(values) == ints{0, 1, 2, 3});
}

TEST_CASE("adaptors own what they are given by value and refer to what has a name") {
  struct move_only : numbers {
    move_only() : numbers(4) {}
    std::unique_ptr<int> memory = std::make_unique<int>(1);
  };
  auto owning = move_only() | take(3) | batch(2);
  auto moved = std::move(owning);
  CHECK(all_of(moved) == int_batches{{0, 1}, {2}});

  numbers named(4);
  auto referring = named | take(3);
  CHECK(&referring.base() == &named);
  named.count = 2;
  CHECK(all_of(referring) == ints{0, 1});
  CHECK(named.ended == 1);
  auto twice = referring | batch(1);
  CHECK(all_of(twice) == int_batches{{1000}, {1001}});
  CHECK(named.ended == 2);

  const auto joined = take(3) | batch(2);  // before there is a sequence
  CHECK(all_of(numbers(9) | joined) == int_batches{{0, 1}, {2}});
  CHECK(all_of(numbers(1) | joined) == int_batches{{0}});
}

TEST_CASE("adaptors know the epochs of what is below") {
  auto values =
      epoch_numbers(5) | shuffle(1) | shard(0, 1) | take(5) | map([](int& /*value*/) {}) | batch(5);
  CHECK(values.epoch() == 0);
  values.set_epoch(7);
  CHECK(values.epoch() == 7);
  CHECK(values.state() == sequence_state{1, 7, 0});
  ints items;
  CHECK(read_element(values, 0, items));
  CHECK(std::ranges::all_of(items, [](int value) { return value / 1000 == 7; }));
  CHECK(read_element(values, 3, 0, items));
  CHECK(std::ranges::all_of(items, [](int value) { return value / 1000 == 3; }));
  values.on_epoch_end();
  CHECK(values.epoch() == 8);

  // One that does not know them is counted, once, however many adaptors there are.
  auto counted_epochs = numbers(2) | shuffle(3) | take(2) | batch(1);
  counted_epochs.on_epoch_end();
  counted_epochs.on_epoch_end();
  CHECK(counted_epochs.state() == sequence_state{3, 2, 0});
  CHECK(state_of(numbers(2)) == sequence_state{});
  struct seeded : epoch_numbers {
    using epoch_numbers::epoch_numbers;
    [[nodiscard]] static std::uint64_t seed() { return 11; }
  };
  seeded with_seed(3);
  with_seed.now = 4;
  CHECK(state_of(with_seed) == sequence_state{11, 4, 0});
  CHECK(state_of(with_seed | take(1)) == sequence_state{11, 4, 0});
  CHECK(state_of(with_seed | shuffle(12)) == sequence_state{12, 4, 0});
}

TEST_CASE("map changes values in place, or into others") {
  CHECK(all_of(numbers(3) | map([](int& value) { value *= 10; })) == ints{0, 10, 20});
  auto texts = numbers(3) | map([](int value) { return std::to_string(value); });
  static_assert(std::same_as<sequence_value_t<decltype(texts)>, std::string>);
  CHECK(all_of(texts) == std::vector<std::string>{"0", "1", "2"});
  CHECK(all_of(texts) == std::vector<std::string>{"1000", "1001", "1002"});
  struct point {
    int x = 0;
  };
  struct points : without_epoch_end {
    using value_type = point;
    [[nodiscard]] static std::size_t size() { return 2; }
    [[nodiscard]] point operator[](std::size_t i) const { return {static_cast<int>(i) + 5}; }
    void on_epoch_end() const {}
  };
  CHECK(all_of(points() | map(&point::x)) == ints{5, 6});

  // What is skipped does not come to the function.
  const auto odd = [](std::uint64_t, std::size_t i) { return i % 2 == 1; };
  ints seen;
  CHECK(all_of(epoch_numbers(5, odd) | map([&](int& value) { seen.push_back(value); })) ==
        ints{1, 3});
  CHECK(seen == ints{1, 3});
  CHECK(all_of(epoch_numbers(5, odd) | map([](int value) { return value > 2; })) ==
        std::vector<bool>{false, true});

  CHECK(batches_of(planned_numbers(3) | map([](test::number_place& place) { ++place.number[0]; }) |
                   batch(2)) == int_batches{{1, 2}, {3}});
}

TEST_CASE("batch keeps, drops or pads the last") {
  struct row {
    std::size_t count;
    std::size_t items;
    int_batches keep;
    int_batches drop;
    int_batches pad;
  };
  const std::vector<row> rows{
      {0, 3, {}, {}, {}},
      {1, 3, {{0}}, {}, {{0, 0, 0}}},
      {2, 3, {{0, 1}}, {}, {{0, 1, 0}}},
      {3, 3, {{0, 1, 2}}, {{0, 1, 2}}, {{0, 1, 2}}},
      {4, 3, {{0, 1, 2}, {3}}, {{0, 1, 2}}, {{0, 1, 2}, {3, 0, 1}}},
      {2, 5, {{0, 1}}, {}, {{0, 1, 0, 1, 0}}},
      {3, 1, {{0}, {1}, {2}}, {{0}, {1}, {2}}, {{0}, {1}, {2}}},
  };
  for (const row& each : rows) {
    CAPTURE(each.count);
    CAPTURE(each.items);
    const auto check = [&](last_batch last, const int_batches& expected) {
      auto plain = numbers(each.count) | batch(each.items, last);
      CHECK(plain.size() == expected.size());
      CHECK(all_of(plain) == expected);
      auto planned = planned_numbers(each.count) | batch(each.items, last);
      CHECK(planned.size() == expected.size());
      CHECK(batches_of(planned) == expected);
    };
    check(last_batch::keep, each.keep);
    check(last_batch::drop, each.drop);
    check(last_batch::pad, each.pad);
  }
  CHECK(all_of(numbers(3) | batch(2)) == int_batches{{0, 1}, {2}});
  CHECK(all_of(numbers(5) | batch(2) | batch(2)) ==
        std::vector<int_batches>{{{0, 1}, {2, 3}}, {{4}}});
  CHECK((numbers(7) | batch(std::numeric_limits<std::size_t>::max())).size() == 1);
  CHECK(message_of<error>([] { (void)(numbers(3) | batch(0)); }) ==
        "batch: a batch of 0 items was asked for");
}

TEST_CASE("what is skipped leaves a batch smaller, down to nothing") {
  const auto some = [](std::uint64_t, std::size_t i) { return i != 1 && i / 3 != 1; };
  CHECK(all_of(epoch_numbers(8, some) | batch(3)) == int_batches{{0, 2}, {}, {6, 7}});
  auto planned = planned_numbers(8, some) | batch(3);
  int_batches skipped;
  int_batches given;
  for (const number_batch& batch : planned) {
    given.push_back(batch.values());
    skipped.push_back(batch.skipped());
  }
  CHECK(given == int_batches{{0, 2}, {}, {6, 7}});
  CHECK(skipped == int_batches{{1}, {3, 4, 5}, {}});

  // Without batches nobody lists them, and nothing grows.
  std::size_t most = 0;
  int sum = 0;
  for (const test::number_place& place : planned_numbers(8, some) | take(8)) {
    most = std::max(most, place.skipped.size());
    sum += place.number[0];
  }
  CHECK(sum == 15);
  CHECK(most == 0);
}

TEST_CASE("an error in a batch leaves nothing behind for the next") {
  bool failing = true;
  planned_numbers values(6, [&](std::uint64_t, std::size_t i) {
    if (failing && i == 4) throw std::runtime_error("no 4");
    return i != 3;
  });
  auto batches = values | batch(3);
  arena<host_resource> memory(batches.storage_bytes(1));
  auto storage = batches.make_storage(memory, 1);
  CHECK(message_of<std::runtime_error>([&] { read_element(batches, 1, storage[0]); }) == "no 4");
  failing = false;
  CHECK(read_element(batches, 1, storage[0]));
  CHECK(storage[0].values() == ints{4, 5});
  CHECK(storage[0].skipped() == ints{3});
}

TEST_CASE("a vector is as large as a whole batch at once") {
  const auto batches = numbers(7) | batch(4);
  ints items;
  CHECK(read_element(batches, 1, items));
  CHECK(items == ints{4, 5, 6});
  const int* const memory = items.data();
  CHECK(read_element(batches, 0, items));
  CHECK(items == ints{0, 1, 2, 3});
  CHECK(items.data() == memory);
}

TEST_CASE("a batch's memory is known to the byte") {
  const auto batches = planned_numbers(100) | batch(20);  // 80 bytes, in two cache lines
  CHECK(batches.storage_bytes(1) == 128);
  CHECK(batches.storage_bytes(3) == 384);
  arena<host_resource> memory(batches.storage_bytes(3));
  const auto storage = batches.make_storage(memory, 3);
  CHECK(storage.size() == 3);
  CHECK(memory.used() == 2 * 128 + 80);
  const auto same = planned_numbers(100) | shuffle(1) | shard(0, 2) | take(50) |
                    map([](test::number_place& /*place*/) {}) | batch(20) |
                    resume_from({.seed = 1});
  CHECK(same.storage_bytes(3) == 384);
  const std::string message = message_of<error>(
      [&] { (void)batches.storage_bytes(std::numeric_limits<std::size_t>::max() / 127); });
  CHECK(message.starts_with("batch: the bytes of 145249953336295682"));
  CHECK(message.ends_with(" batches of 20 items do not fit into a number"));
}

TEST_CASE("a random order has every number once") {
  constexpr auto has_all = [](std::uint64_t seed, std::uint64_t epoch, std::uint64_t size) {
    const random_permutation order(seed, epoch, size);
    std::vector<bool> seen(size, false);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t place = order(i);
      if (place >= size || seen[place]) return false;
      seen[place] = true;
    }
    return true;
  };
  for (std::uint64_t size = 0; size <= 600; ++size) CHECK(has_all(size * 7, size % 5, size));
  for (unsigned bits = 10; bits <= 16; ++bits) {
    const std::uint64_t power = std::uint64_t{1} << bits;
    for (const std::uint64_t size : {power - 1, power, power + 1}) CHECK(has_all(1, bits, size));
  }
  CHECK(has_all(42, 0, 1'281'167));  // ImageNet
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CHECK(has_all(seed, 0, 37));
    CHECK(has_all(0, seed, 37));
    CHECK(has_all(std::numeric_limits<std::uint64_t>::max() - seed, seed, 37));
  }
  // Too many to see them all: none twice among the first, none beyond the end.
  for (const std::uint64_t size :
       {(std::uint64_t{1} << 32U) - 1, (std::uint64_t{1} << 32U) + 1, std::uint64_t{1} << 63U,
        (std::uint64_t{1} << 63U) + 1, std::numeric_limits<std::uint64_t>::max()}) {
    const random_permutation order(5, 6, size);
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < 20'000; ++i) {
      const std::uint64_t place = order(i);
      CHECK(place < size);
      seen.insert(place);
    }
    CHECK(seen.size() == 20'000);
    CHECK(*seen.begin() < size / 1000);  // and they are everywhere
    CHECK(*seen.rbegin() > size - size / 1000);
  }
}

TEST_CASE("a random order depends on seed and epoch, and on nothing else") {
  const auto listed = [](std::uint64_t seed, std::uint64_t epoch, std::uint64_t size) {
    const random_permutation order(seed, epoch, size);
    std::vector<std::uint64_t> all(size);
    for (std::uint64_t i = size; i-- > 0;) all[i] = order(i);
    return all;
  };
  CHECK(listed(1, 2, 50) == listed(1, 2, 50));
  std::set<std::vector<std::uint64_t>> orders;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    for (std::uint64_t epoch = 0; epoch < 40; ++epoch) orders.insert(listed(seed, epoch, 50));
  }
  CHECK(orders.size() == 1600);
  // Two orders agree at one place on average, as those that have nothing to do with each other do: the
  // number of places is then Poisson's with a mean of 1 (a variance of 1), of 400 pairs 400 +- 20.
  int agreeing = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (std::uint64_t epoch = 0; epoch < 20; ++epoch) {
      const auto one = listed(seed, epoch, 1000);
      const auto next = listed(seed, epoch + 1, 1000);
      for (std::size_t i = 0; i < one.size(); ++i) agreeing += one[i] == next[i] ? 1 : 0;
    }
  }
  CHECK(std::abs(agreeing - 400) < 5 * 20);
}

TEST_CASE("all random orders of a few numbers are equally frequent") {
  // Pearson's chi-squared of n! cells with 200 in each: mean n! - 1, variance 2 (n! - 1). What is
  // checked is that it lies within five standard deviations; the draws are fixed, so it is no test that
  // fails now and then.
  for (std::uint64_t size = 2; size <= 6; ++size) {
    std::map<std::vector<std::uint64_t>, int> counts;
    int cells = 1;
    for (std::uint64_t i = 2; i <= size; ++i) cells *= static_cast<int>(i);
    const int draws = cells * 200;
    for (int epoch = 0; epoch < draws; ++epoch) {
      const random_permutation order(99, static_cast<std::uint64_t>(epoch), size);
      std::vector<std::uint64_t> listed(size);
      for (std::uint64_t i = 0; i < size; ++i) listed[i] = order(i);
      ++counts[listed];
    }
    CAPTURE(size);
    CHECK(counts.size() == static_cast<std::size_t>(cells));
    double chi_squared = 0;
    for (const auto& [listed, count] : counts)
      chi_squared += (count - 200.0) * (count - 200.0) / 200;
    const double freedom = cells - 1;
    CHECK(std::abs(chi_squared - freedom) < 5 * std::sqrt(2 * freedom));
  }
}

TEST_CASE("every number comes to every place equally often, and with every neighbour") {
  // As above, with 300 cells' worth of each (number, place), then of each (number, the next one).
  for (const std::uint64_t size : {7U, 16U, 33U}) {
    const auto n = static_cast<std::size_t>(size);
    std::vector<int> places(n * n, 0);
    std::vector<int> neighbours(n * n, 0);
    const int epochs = static_cast<int>(n) * 300;
    for (int epoch = 0; epoch < epochs; ++epoch) {
      const random_permutation order(7, static_cast<std::uint64_t>(epoch), size);
      for (std::size_t i = 0; i < n; ++i) {
        const auto number = static_cast<std::size_t>(order(i));
        ++places[number * n + i];
        if (i + 1 < n) ++neighbours[number * n + static_cast<std::size_t>(order(i + 1))];
      }
    }
    CAPTURE(size);
    const auto deviation = [](const std::vector<int>& cells, double expected, double freedom) {
      double chi_squared = 0;
      for (const int count : cells) {
        if (count > 0) chi_squared += (count - expected) * (count - expected) / expected;
      }
      return (chi_squared - freedom) / std::sqrt(2 * freedom);
    };
    const auto count = static_cast<double>(n);
    // Rows and columns have fixed sums: (n - 1)^2 are free.
    CHECK(std::abs(deviation(places, 300, (count - 1) * (count - 1))) < 5);
    // n (n - 1) pairs; the dependence between them is weak.
    CHECK(std::count(neighbours.begin(), neighbours.end(), 0) == static_cast<std::ptrdiff_t>(n));
    CHECK(std::abs(deviation(neighbours, 300, count * (count - 1) - 1)) < 5);
  }
}

TEST_CASE("near places get numbers that have nothing to do with each other") {
  // Of 256 numbers, none of which is beyond the end: how the numbers at two places that differ in few bits
  // differ, 255 cells with 80 each, as above. A network of too few rounds shows here: with 3, 4 and 5 of
  // them the largest deviation is 820, 59 and 6 standard deviations.
  for (const std::uint64_t bits : {1U, 2U, 16U, 17U, 128U}) {
    CAPTURE(bits);
    std::array<int, 256> counts{};
    for (std::uint64_t epoch = 0; epoch < std::uint64_t{255} * 80; ++epoch) {
      const random_permutation order(3, epoch, 256);
      ++counts.at(order(5) ^ order(5 ^ bits));
    }
    CHECK(counts[0] == 0);
    double chi_squared = -80;  // of the first, which stays empty
    for (const int count : counts) chi_squared += (count - 80.0) * (count - 80.0) / 80;
    CHECK(std::abs(chi_squared - 254) < 5 * std::sqrt(2 * 254.0));
  }
}

TEST_CASE("shuffle gives every item once an epoch, in another order each time") {
  auto values = epoch_numbers(100) | shuffle(42);
  CHECK(values.size() == 100);
  ints first = all_of(values);
  ints second = all_of(values);
  auto again = epoch_numbers(100) | shuffle(42);
  CHECK(all_of(again) == first);
  CHECK(all_of(epoch_numbers(100) | shuffle(43)) != first);
  for (int& value : second) value -= 1000;
  CHECK(first != second);
  ints sorted(100);
  std::iota(sorted.begin(), sorted.end(), 0);
  CHECK_FALSE(std::ranges::is_sorted(first));
  std::ranges::sort(first);
  std::ranges::sort(second);
  CHECK(first == sorted);
  CHECK(second == sorted);

  // One that does not know its epochs has other orders, too.
  auto plain = numbers(100) | shuffle(42);
  CHECK(all_of(plain) == all_of(epoch_numbers(100) | shuffle(42)));
  const ints other = all_of(plain);
  again.set_epoch(1);
  CHECK(other == all_of(again));
  CHECK(all_of(numbers(0) | shuffle(1)).empty());
}

TEST_CASE("shards are those of torch's DistributedSampler") {
  // list(DistributedSampler(range(n), num_replicas=world, rank=rank, shuffle=False, drop_last=drop)),
  // torch 2
  struct row {
    std::size_t count;
    std::size_t world;
    int_batches pad;
    int_batches drop;
  };
  const std::vector<row> rows{
      {10, 4, {{0, 4, 8}, {1, 5, 9}, {2, 6, 0}, {3, 7, 1}}, {{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
      {3, 5, {{0}, {1}, {2}, {0}, {1}}, {{}, {}, {}, {}, {}}},
      {8, 4, {{0, 4}, {1, 5}, {2, 6}, {3, 7}}, {{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
      {2, 7, {{0}, {1}, {0}, {1}, {0}, {1}, {0}}, {{}, {}, {}, {}, {}, {}, {}}},
      {0, 2, {{}, {}}, {{}, {}}},
  };
  for (const row& each : rows) {
    CAPTURE(each.count);
    for (std::size_t rank = 0; rank < each.world; ++rank) {
      CAPTURE(rank);
      CHECK(all_of(numbers(each.count) | shard(rank, each.world)) == each.pad[rank]);
      CHECK(all_of(numbers(each.count) | shard(rank, each.world, uneven_shards::drop)) ==
            each.drop[rank]);
    }
  }
}

TEST_CASE("shards are disjoint, complete and equally large") {
  for (std::size_t count = 0; count <= 25; ++count) {
    for (std::size_t world = 1; world <= 9; ++world) {
      CAPTURE(count);
      CAPTURE(world);
      std::multiset<int> padded;
      std::multiset<int> dropped;
      for (std::size_t rank = 0; rank < world; ++rank) {
        auto with_pad = epoch_numbers(count) | shuffle(3) | shard(rank, world, uneven_shards::pad);
        auto with_drop =
            epoch_numbers(count) | shuffle(3) | shard(rank, world, uneven_shards::drop);
        CHECK(with_pad.size() == (count + world - 1) / world);
        CHECK(with_drop.size() == count / world);
        for (const int value : with_pad) padded.insert(value);
        for (const int value : with_drop) dropped.insert(value);
      }
      CHECK(dropped.size() == count / world * world);
      CHECK(padded.size() == (count + world - 1) / world * world);
      const auto most = count > 0 ? (padded.size() + count - 1) / count : 0;
      for (std::size_t i = 0; i < count; ++i) {
        CHECK(dropped.count(static_cast<int>(i)) <= 1);
        CHECK(padded.count(static_cast<int>(i)) >= 1);
        CHECK(padded.count(static_cast<int>(i)) <= most);
      }
    }
  }
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  CHECK(all_of(numbers(5) | shard(most - 1, most)) == ints{static_cast<int>((most - 1 - 5) % 5)});
  CHECK(all_of(numbers(5) | shard(0, most, uneven_shards::drop)).empty());
  CHECK(message_of<error>([] { (void)(numbers(5) | shard(4, 4)); }) ==
        "shard: rank 4 of a world of 4: ranks begin at 0 and are below the world's size");
  CHECK(message_of<error>([] { (void)(numbers(5) | shard(0, 0)); }) ==
        "shard: rank 0 of a world of 0: ranks begin at 0 and are below the world's size");
}

TEST_CASE("take gives the first ones") {
  CHECK(all_of(numbers(5) | take(3)) == ints{0, 1, 2});
  CHECK(all_of(numbers(5) | take(9)) == ints{0, 1, 2, 3, 4});
  CHECK(all_of(numbers(5) | take(0)).empty());
  CHECK((numbers(5) | take(3)).size() == 3);
}

TEST_CASE("a state is a line of text") {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  CHECK(to_string(sequence_state{42, 3, 17}) == "seed=42 epoch=3 batch=17");
  CHECK(parse_sequence_state("seed=42 epoch=3 batch=17") == sequence_state{42, 3, 17});
  CHECK(parse_sequence_state("seed=42 epoch=3 batch=17\n") == sequence_state{42, 3, 17});
  CHECK(parse_sequence_state("seed=42 epoch=3 batch=17\r\n") == sequence_state{42, 3, 17});
  CHECK(parse_sequence_state("seed=18446744073709551615 epoch=0 batch=18446744073709551615") ==
        sequence_state{most, 0, most});
  CHECK(to_string(sequence_state{most, most, most}) ==
        "seed=18446744073709551615 epoch=18446744073709551615 batch=18446744073709551615");
  for (const std::string text :
       {"", "seed", "seed=", "seed=1", "seed=1 epoch=2",
        "seed=1 epoch=2 batch=", "seed=-1 epoch=2 batch=3", "seed=+1 epoch=2 batch=3",
        "seed= 1 epoch=2 batch=3", " seed=1 epoch=2 batch=3", "seed=1  epoch=2 batch=3",
        "epoch=2 seed=1 batch=3", "seed=1 epoch=2 batch=18446744073709551616",
        "seed=1.5 epoch=2 batch=3", "seed=0x1 epoch=2 batch=3"}) {
    CAPTURE(text);
    CHECK(message_of<format_error>([&] { (void)parse_sequence_state(text); }) ==
          "'" + text + "' is no state of a sequence, which looks like 'seed=42 epoch=3 batch=17'");
  }
  for (const std::string text : {"seed=1 epoch=2 batch=3 ", "seed=1 epoch=2 batch=3.5",
                                 "seed=1 epoch=2 batch=3\nx", "seed=1 epoch=2 batch=3 batch=4"}) {
    CAPTURE(text);
    CHECK(message_of<format_error>([&] {
            (void)parse_sequence_state(text);
          }).ends_with(" is no state of a sequence: it goes on after its end"));
  }
  // What a file may hold does not break the message's line.
  CHECK(message_of<format_error>([&] {
          (void)parse_sequence_state("a\nb");
        }).starts_with("'a\\x0ab'"));
}

TEST_CASE("a sequence goes on in its epoch and at its batch") {
  const auto build = [] { return epoch_numbers(7) | shuffle(5) | batch(2); };
  auto whole = build();
  std::vector<int_batches> epochs;
  for (int epoch = 0; epoch < 4; ++epoch) epochs.push_back(all_of(whole));
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    for (std::uint64_t at = 0; at <= 4; ++at) {
      CAPTURE(epoch);
      CAPTURE(at);
      auto resumed = build() | resume_from({5, epoch, at});
      CHECK(resumed.size() == 4);
      CHECK(resumed.state() == sequence_state{5, epoch, at});
      const int_batches& full = epochs[epoch];
      CHECK(all_of(resumed) ==
            int_batches(full.begin() + static_cast<std::ptrdiff_t>(at), full.end()));
      CHECK(resumed.state() == sequence_state{5, epoch + 1, 0});
      CHECK(all_of(resumed) == epochs[epoch + 1]);
    }
  }
  auto back = build() | resume_from({5, 2, 3});
  back.set_epoch(0);
  CHECK(all_of(back) == epochs[0]);
  ints items;
  CHECK(read_element(back, 0, items));  // an index is that of the whole epoch
  CHECK(items == epochs[1][0]);

  // A sequence that does not know its epochs is brought to where it was.
  auto plain = numbers(3) | resume_from({0, 2, 1});
  CHECK(all_of(plain) == ints{2001, 2002});
  CHECK(all_of(plain) == ints{3000, 3001, 3002});
  CHECK(plain.state() == sequence_state{0, 4, 0});

  CHECK(message_of<error>([&] {
          (void)(build() | resume_from({6, 0, 0}));
        }) == "resume_from: the state is of a sequence with seed 6, this one has seed 5");
  CHECK(message_of<error>([&] {
          (void)(build() | resume_from({5, 0, 5}));
        }) == "resume_from: the state is behind batch 5 of an epoch, this sequence has 4");
  CHECK(message_of<error>([&] {
          auto late = numbers(3) | take(2);
          late.on_epoch_end();
          late.on_epoch_end();
          (void)(late | resume_from({0, 1, 0}));
        }) ==
        "resume_from: the state is of epoch 1, and the sequence, which cannot go back, is in epoch "
        "2");
}
