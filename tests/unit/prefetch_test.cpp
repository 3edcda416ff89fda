// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <latch>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <random>
#include <ranges>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <pthread.h>

#include <vggload/core/error.hpp>
#include <vggload/cuda/pinned_resource.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/map.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/random.hpp>
#include <vggload/data/resume.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/data/shard.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/data/take.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/failing_resource.hpp>
#include <vggload/memory/ledger.hpp>

#include "../support/fake_cuda.hpp"
#include "../support/fake_sequences.hpp"
#include "../support/message_of.hpp"
#include "../support/replaced_new.hpp"

namespace {

/// Of operator new, by all threads.
std::atomic<std::uint64_t> allocations = 0;

}  // namespace

void* test::allocate(std::size_t bytes, std::size_t alignment) noexcept {
  ++allocations;
  return aligned_block(bytes, alignment);
}

void test::release(void* memory) noexcept { std::free(memory); }

using namespace vggload;
using namespace std::chrono_literals;
using test::epoch_numbers;
using test::message_of;
using test::number_batch;
using test::numbers;
using test::planned_numbers;

namespace {

using ints = std::vector<int>;
using int_batches = std::vector<std::vector<int>>;

static_assert(std::movable<decltype(numbers(1) | prefetch())>);
static_assert(!std::copyable<decltype(numbers(1) | prefetch())>);
static_assert(std::ranges::input_range<decltype(numbers(1) | prefetch())>);
// An element that is read ahead is no sequence again.
static_assert(!sequence<decltype(numbers(1) | prefetch())>);

ints values_in(const ints& batch) { return batch; }
ints values_in(const number_batch& batch) { return batch.values(); }
int values_in(int number) { return number; }

/// What is left of one epoch.
template <class Pipeline>
auto rest_of(Pipeline& pipeline) {
  std::vector<decltype(values_in(*pipeline.next()))> all;
  for (const auto& value : pipeline) all.push_back(values_in(value));
  return all;
}

/// Waits until it holds; fails the test after a time that no machine needs.
template <class Condition>
bool comes_true(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + 30s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(100us);
  }
  return true;
}

const std::vector<prefetch_options> all_options{
    {.workers = 0},
    {.workers = 1, .slots = 1},
    {.workers = 1, .slots = 2},
    {.workers = 2, .slots = 1},
    {.workers = 2, .slots = 2},
    {.workers = 2, .slots = 5},
    {.workers = 5, .slots = 3},
    {.workers = 5, .slots = 7},
    {.workers = 5, .slots = 100},
};

}  // namespace

TEST_CASE("the same values come from any number of workers and slots") {
  const int_batches first{{0, 1, 2}, {3, 4, 5}, {6}};
  const int_batches second{{1000, 1001, 1002}, {1003, 1004, 1005}, {1006}};
  const int_batches third{{2000, 2001, 2002}, {2003, 2004, 2005}, {2006}};
  for (const prefetch_options& options : all_options) {
    CAPTURE(options.workers);
    CAPTURE(options.slots);
    const auto check = [&](auto pipeline) {
      CHECK(pipeline.size() == 3);
      CHECK(rest_of(pipeline) == first);
      CHECK(rest_of(pipeline) == second);
      CHECK(rest_of(pipeline) == third);
      CHECK(pipeline.statistics().values == 9);
      CHECK(pipeline.state() == sequence_state{0, 3, 0});
    };
    check(numbers(7) | batch(3) | prefetch(options));
    check(epoch_numbers(7) | batch(3) | prefetch(options));
    check(planned_numbers(7) | batch(3) | prefetch(options));
  }

  auto reference = epoch_numbers(50) | shuffle(4) | shard(1, 2) | batch(4);
  std::vector<int_batches> expected(3);
  for (int_batches& epoch : expected) {
    for (const ints& each : reference) epoch.push_back(each);
  }
  for (const unsigned workers : {0U, 1U, 2U, 5U}) {
    auto pipeline =
        planned_numbers(50) | shuffle(4) | shard(1, 2) | batch(4) | prefetch({.workers = workers});
    for (const int_batches& epoch : expected) CHECK(rest_of(pipeline) == epoch);
  }
}

TEST_CASE("the consumer may change the value that it is shown") {
  auto pipeline = numbers(5) | prefetch({.workers = 2, .slots = 2});
  for (int epoch = 0; epoch < 3; ++epoch) {
    int expected = epoch * 1000;
    while (int* value = pipeline.next()) {
      CHECK(*value == expected++);
      *value = -5;
      std::this_thread::sleep_for(200us);  // the workers leave it alone
      CHECK(*value == -5);
    }
  }
}

TEST_CASE("out of order, what is ready is given") {
  for (const bool knows_epochs : {false, true}) {
    std::latch others_given(6);
    const auto hook = [&](std::uint64_t epoch, std::size_t i) {
      if (epoch == 0 && i == 2) others_given.wait();  // until all others were given
      return true;
    };
    const auto check = [&](auto values) {
      auto pipeline = std::move(values) | prefetch({.workers = 2, .slots = 3, .ordered = false});
      ints given;
      for (const int value : pipeline) {
        given.push_back(value);
        // What was not given is where to go on, whatever was given behind it.
        if (value != 2) {
          std::uint64_t next = 0;
          while (std::ranges::find(given, static_cast<int>(next)) != given.end()) ++next;
          CHECK(pipeline.state() == sequence_state{0, 0, next});
          others_given.count_down();
        }
      }
      CHECK(pipeline.state() == sequence_state{0, 1, 0});
      REQUIRE(given.size() == 7);
      CHECK(given.back() == 2);
      given.pop_back();
      std::ranges::sort(given);
      CHECK(given == ints{0, 1, 3, 4, 5, 6});
      ints next = rest_of(pipeline);
      std::ranges::sort(next);
      CHECK(next == ints{1000, 1001, 1002, 1003, 1004, 1005, 1006});
    };
    if (knows_epochs) {
      check(epoch_numbers(7, hook));
    } else {
      struct without_epochs {
        using value_type = int;
        epoch_numbers values;
        [[nodiscard]] std::size_t size() const { return values.size(); }
        [[nodiscard]] auto operator[](std::size_t i) const { return values[i]; }
        void on_epoch_end() { values.on_epoch_end(); }
      };
      check(without_epochs{epoch_numbers(7, hook)});
    }
  }
}

TEST_CASE("out of order, what has been ready for longest is given first") {
  std::atomic<int> begun = 0;
  auto pipeline = epoch_numbers(6, [&](std::uint64_t, std::size_t) { return ++begun > 0; }) |
                  prefetch({.workers = 1, .slots = 3, .ordered = false});
  for (int i = 0; i < 6; ++i) {
    // One worker makes them ready in their order, each in the slot that the consumer left: of those
    // before what waits.
    CHECK(comes_true([&] { return begun == std::max(3, i + 2); }));
    std::this_thread::sleep_for(5ms);
    const int* value = pipeline.next();
    REQUIRE(value != nullptr);
    CHECK(*value == i);
  }
}

TEST_CASE("out of order, each epoch is complete, and nothing of the next is in it") {
  for (const prefetch_options& given_options : all_options) {
    prefetch_options options = given_options;
    options.ordered = false;
    auto pipeline = epoch_numbers(3,
                                  [](std::uint64_t epoch, std::size_t i) {
                                    if ((epoch + i) % 3 == 0) std::this_thread::sleep_for(300us);
                                    return true;
                                  }) |
                    prefetch(options);
    for (int epoch = 0; epoch < 5; ++epoch) {
      ints all = rest_of(pipeline);
      std::ranges::sort(all);
      CHECK(all == ints{epoch * 1000, epoch * 1000 + 1, epoch * 1000 + 2});
    }
  }
}

TEST_CASE("the slots are one block of exactly the planned bytes, in the ledger") {
  memory_counts counts;
  const auto ledger = std::make_shared<memory_ledger>();
  {
    auto pipeline = planned_numbers(90) | batch(20) |  // 80 bytes, in two cache lines
                    prefetch({.workers = 2, .slots = 5}, counting_resource(counts), ledger);
    CHECK(pipeline.slots() == 5);
    CHECK(pipeline.memory_bytes() == 5 * 128);
    for (int epoch = 0; epoch < 3; ++epoch) CHECK(rest_of(pipeline).size() == 5);
    CHECK(counts.allocations == 1);
    CHECK(counts.bytes_in_use == 5 * 128);
    CHECK(counts.peak_bytes == 5 * 128);
    const ledger_snapshot book = ledger->snapshot();
    REQUIRE(book.blocks.size() == 1);
    CHECK(book.blocks[0].name == "prefetch");
    CHECK(book.blocks[0].bytes == 5 * 128);
    CHECK(book.blocks[0].kind == memory_kind::host);
    CHECK(book.pieces.size() == 5);
    CHECK(book.live_bytes == 5 * 80);
  }
  CHECK(counts.bytes_in_use == 0);
  CHECK(ledger->live_bytes() == 0);

  // Items by themselves have a line of memory each.
  auto items = planned_numbers(9) | prefetch({.workers = 2, .slots = 3});
  CHECK(items.memory_bytes() == 3 * 64);
  CHECK((numbers(9) | prefetch()).memory_bytes() == 0);
  // Without workers one slot is enough.
  auto alone = planned_numbers(9) | batch(4) | prefetch({.workers = 0, .slots = 7});
  CHECK(alone.slots() == 1);
  CHECK(alone.workers() == 0);
  CHECK(alone.memory_bytes() == 64);

  // Pinned memory is as good.
  test::fake_driver driver;
  using pinned_resource = cuda::basic_pinned_resource<test::fake_cuda>;
  auto pinned = planned_numbers(7) | batch(4) |
                prefetch({.workers = 1}, pinned_resource(test::fake_cuda(driver)), ledger);
  CHECK(ledger->snapshot().blocks.back().kind == memory_kind::pinned);
  CHECK(rest_of(pinned) == int_batches{{0, 1, 2, 3}, {4, 5, 6}});
}

TEST_CASE("items are filled in their own places") {
  for (const prefetch_options& options : all_options) {
    auto pipeline = planned_numbers(20, [](std::uint64_t, std::size_t i) { return i % 3 != 1; }) |
                    prefetch(options);
    for (int epoch = 0; epoch < 2; ++epoch) {
      ints given;
      for (const test::number_place& place : pipeline) {
        CHECK(place.skipped.empty());
        given.push_back(place.number[0] % 1000);
      }
      CHECK(given == ints{0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18});
    }
  }
}

TEST_CASE("nothing is allocated once the slots were filled") {
  const auto steady = [](auto pipeline) {
    const std::size_t warm = pipeline.slots() / pipeline.size() + 2;
    std::uint64_t seen = 0;
    for (std::size_t epoch = 0; epoch < warm; ++epoch) {
      while (pipeline.next() != nullptr) ++seen;
    }
    const std::uint64_t before = allocations;
    for (int epoch = 0; epoch < 50; ++epoch) {
      while (pipeline.next() != nullptr) ++seen;
    }
    const std::uint64_t after = allocations;
    CHECK(after == before);
    return seen;
  };
  for (const prefetch_options& options : all_options) {
    CAPTURE(options.workers);
    CAPTURE(options.slots);
    for (const bool ordered : {true, false}) {
      prefetch_options with = options;
      with.ordered = ordered;
      CHECK(steady(numbers(13) | shuffle(1) | batch(4) | prefetch(with)) % 4 == 0);
      CHECK(steady(epoch_numbers(13) | shuffle(1) | shard(0, 1) | take(13) |
                   map([](int& value) { ++value; }) | batch(4) | prefetch(with)) %
                4 ==
            0);
      memory_counts counts;
      CHECK(steady(planned_numbers(13, [](std::uint64_t, std::size_t i) { return i % 5 != 0; }) |
                   shuffle(1) | batch(4, last_batch::pad) |
                   prefetch(with, counting_resource(counts))) %
                4 ==
            0);
      CHECK(counts.allocations == 1);
    }
  }
}

TEST_CASE("an error comes at its turn, and the next value after it") {
  for (const prefetch_options& options : all_options) {
    CAPTURE(options.workers);
    CAPTURE(options.slots);
    for (std::size_t bad = 0; bad < 6; ++bad) {
      CAPTURE(bad);
      auto pipeline = epoch_numbers(6,
                                    [&](std::uint64_t epoch, std::size_t i) {
                                      if (i == bad) {
                                        throw std::runtime_error(std::to_string(epoch) + " " +
                                                                 std::to_string(i));
                                      }
                                      return true;
                                    }) |
                      prefetch(options);
      for (int epoch = 0; epoch < 2; ++epoch) {
        for (std::size_t i = 0; i < 6; ++i) {
          if (i == bad) {
            CHECK(message_of<std::runtime_error>([&] { (void)pipeline.next(); }) ==
                  std::to_string(epoch) + " " + std::to_string(i));
          } else {
            const int* value = pipeline.next();
            REQUIRE(value != nullptr);
            CHECK(*value == epoch * 1000 + static_cast<int>(i));
          }
          CHECK(pipeline.state() == sequence_state{0, static_cast<std::uint64_t>(epoch), i + 1});
        }
        CHECK(pipeline.next() == nullptr);
      }
      CHECK(pipeline.statistics().values == 10);
    }

    // Each of them.
    auto all_bad = numbers(4) |
                   map([](int& value) { throw std::runtime_error(std::to_string(value)); }) |
                   batch(2) | prefetch(options);
    for (int epoch = 0; epoch < 3; ++epoch) {
      CHECK(message_of<std::runtime_error>([&] { (void)all_bad.next(); }) ==
            std::to_string(epoch * 1000));
      CHECK(message_of<std::runtime_error>([&] { (void)all_bad.next(); }) ==
            std::to_string(epoch * 1000 + 2));
      CHECK(all_bad.next() == nullptr);
    }
  }
  // What is no std::exception is carried as well.
  auto odd = numbers(1) | map([](int& /*value*/) { throw 5; }) | prefetch({.workers = 1});
  CHECK_THROWS_AS((void)odd.next(), int);
  CHECK(odd.next() == nullptr);

  prefetch_options unordered{.workers = 3, .slots = 4, .ordered = false};
  auto some_bad = epoch_numbers(9,
                                [](std::uint64_t, std::size_t i) {
                                  if (i % 4 == 1) throw std::runtime_error("bad");
                                  return true;
                                }) |
                  prefetch(unordered);
  for (int epoch = 0; epoch < 3; ++epoch) {
    int errors = 0;
    std::set<int> given;
    for (bool more = true; more;) {
      try {
        const int* value = some_bad.next();
        more = value != nullptr;
        if (more) given.insert(*value % 1000);
      } catch (const std::runtime_error&) {
        ++errors;
      }
    }
    CHECK(errors == 2);
    CHECK(given == std::set<int>{0, 2, 3, 4, 6, 7, 8});
  }
}

TEST_CASE("skipped values are left out, and a batch of which all were skipped is empty") {
  const auto none_of_first_four = [](std::uint64_t, std::size_t i) { return i >= 4; };
  const auto nothing = [](std::uint64_t, std::size_t) { return false; };
  for (const prefetch_options& options : all_options) {
    auto pipeline = epoch_numbers(6, none_of_first_four) | prefetch(options);
    CHECK(rest_of(pipeline) == ints{4, 5});
    CHECK(rest_of(pipeline) == ints{1004, 1005});
    auto batches = planned_numbers(6, none_of_first_four) | batch(2) | prefetch(options);
    for (int epoch = 0; epoch < 2; ++epoch) {
      int_batches skipped;
      ints sizes;
      for (const number_batch& each : batches) {
        skipped.push_back(each.skipped());
        sizes.push_back(static_cast<int>(each.size()));
      }
      CHECK(skipped == int_batches{{0, 1}, {2, 3}, {}});
      CHECK(sizes == ints{0, 0, 2});
    }
    auto empty = epoch_numbers(6, nothing) | prefetch(options);
    CHECK(rest_of(empty).empty());
    CHECK(rest_of(empty).empty());
    CHECK(empty.state() == sequence_state{0, 2, 0});
  }
}

TEST_CASE("an error of on_epoch_end comes at the epoch's end, and the next epoch follows") {
  struct fails_at_end : numbers {
    using numbers::numbers;
    void on_epoch_end() {
      numbers::on_epoch_end();
      if (ended % 2 == 1) throw std::runtime_error("end of " + std::to_string(ended));
    }
  };
  struct fails_at_end_of_epoch : epoch_numbers {
    using epoch_numbers::epoch_numbers;
    void on_epoch_end() {
      epoch_numbers::on_epoch_end();
      if (now % 2 == 1) throw std::runtime_error("end of " + std::to_string(now));
    }
  };
  for (const prefetch_options& options : all_options) {
    const auto check = [](auto pipeline) {
      for (int epoch = 0; epoch < 4; ++epoch) {
        CHECK(*pipeline.next() == epoch * 1000);
        CHECK(*pipeline.next() == epoch * 1000 + 1);
        if (epoch % 2 == 0) {
          CHECK(message_of<std::runtime_error>([&] { (void)pipeline.next(); }) ==
                "end of " + std::to_string(epoch + 1));
        } else {
          CHECK(pipeline.next() == nullptr);
        }
        CHECK(pipeline.state() == sequence_state{0, static_cast<std::uint64_t>(epoch) + 1, 0});
      }
    };
    check(fails_at_end(2) | prefetch(options));
    check(fails_at_end_of_epoch(2) | prefetch(options));
  }
}

TEST_CASE("an empty epoch ends at once") {
  for (const prefetch_options& options : all_options) {
    auto plain = numbers(0) | batch(3) | prefetch(options);
    auto known = epoch_numbers(0) | shuffle(1) | batch(3) | prefetch(options);
    for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
      CHECK(plain.next() == nullptr);
      CHECK(known.next() == nullptr);
      CHECK(plain.state() == sequence_state{0, epoch + 1, 0});
      CHECK(known.state() == sequence_state{1, epoch + 1, 0});
    }
    // One that does not know its epochs may have another size in each.
    struct growing : numbers {
      using numbers::numbers;
      void on_epoch_end() {
        numbers::on_epoch_end();
        count = ended % 3 == 0 ? 0 : count + 1;
      }
    };
    auto grows = growing(0) | prefetch(options);
    for (int round = 0; round < 2; ++round) {
      const int thousand = round * 3000;
      CHECK(rest_of(grows).empty());
      CHECK(rest_of(grows) == ints{thousand + 1000});
      CHECK(grows.size() == 2);
      CHECK(rest_of(grows) == ints{thousand + 2000, thousand + 2001});
    }
  }
}

TEST_CASE("workers stop when all slots are full") {
  for (const std::size_t slots : {1U, 3U, 6U}) {
    std::atomic<std::size_t> begun = 0;
    auto pipeline = epoch_numbers(4,
                                  [&](std::uint64_t, std::size_t) {
                                    ++begun;
                                    return true;
                                  }) |
                    prefetch({.workers = 4, .slots = slots});
    CHECK(pipeline.workers() == std::min<std::size_t>(4, slots));
    CHECK(comes_true([&] { return begun == slots; }));
    std::this_thread::sleep_for(10ms);
    CHECK(begun == slots);
    CHECK(*pipeline.next() == 0);
    std::this_thread::sleep_for(10ms);
    CHECK(begun == slots);  // the consumer has it still
    if (slots > 1) {
      CHECK(*pipeline.next() == 1);
      CHECK(comes_true([&] { return begun == slots + 1; }));
      std::this_thread::sleep_for(10ms);
      CHECK(begun == slots + 1);
    }
  }
}

TEST_CASE("the next epoch begins while the consumer has the last value of one") {
  std::atomic<bool> next_epoch = false;
  auto pipeline = epoch_numbers(4,
                                [&](std::uint64_t epoch, std::size_t) {
                                  if (epoch == 1) next_epoch = true;
                                  return true;
                                }) |
                  batch(2) | prefetch({.workers = 1, .slots = 2});
  CHECK(*pipeline.next() == ints{0, 1});
  CHECK(*pipeline.next() == ints{2, 3});
  CHECK(comes_true([&] { return next_epoch.load(); }));
  CHECK(pipeline.next() == nullptr);
  CHECK(*pipeline.next() == ints{1000, 1001});
}

TEST_CASE("on_epoch_end has a sequence that does not know its epochs for itself") {
  struct watched {
    using value_type = int;
    std::shared_ptr<std::atomic<int>> busy = std::make_shared<std::atomic<int>>(0);
    std::shared_ptr<std::atomic<int>> together = std::make_shared<std::atomic<int>>(0);
    int ended = 0;  // unguarded: ThreadSanitizer watches as well

    [[nodiscard]] static std::size_t size() { return 5; }
    [[nodiscard]] auto operator[](std::size_t i) const {
      return [this, i](int& value) {
        ++*busy;
        std::this_thread::sleep_for(50us);
        value = ended * 1000 + static_cast<int>(i);
        --*busy;
      };
    }
    void on_epoch_end() {
      *together += *busy;
      ++ended;
      std::this_thread::sleep_for(200us);
      *together += *busy;
    }
  };
  for (const bool ordered : {true, false}) {
    watched values;
    auto pipeline = values | prefetch({.workers = 4, .slots = 9, .ordered = ordered});
    for (int epoch = 0; epoch < 20; ++epoch) {
      ints all = rest_of(pipeline);
      std::ranges::sort(all);
      CHECK(all.front() == epoch * 1000);
      CHECK(all.back() == epoch * 1000 + 4);
    }
    CHECK(*values.together == 0);
  }
}

TEST_CASE("it ends at any moment") {
  SUBCASE("at once") {
    for (int i = 0; i < 50; ++i) (void)(epoch_numbers(100) | prefetch({.workers = 4}));
  }
  SUBCASE("while all slots are full") {
    std::atomic<int> begun = 0;
    const auto count = [&](std::uint64_t, std::size_t) {
      ++begun;
      return true;
    };
    {
      auto pipeline = epoch_numbers(100, count) | prefetch({.workers = 3, .slots = 5});
      (void)pipeline.next();
      CHECK(comes_true([&] { return begun == 5; }));
      std::this_thread::sleep_for(2ms);
    }
    CHECK(begun == 5);
  }
  SUBCASE("while workers are at an element: they finish it, and begin no other") {
    std::atomic<int> begun = 0;
    std::atomic<int> finished = 0;
    std::atomic<bool> go_on = false;
    std::optional<std::jthread> opener;
    {
      auto pipeline = epoch_numbers(100,
                                    [&](std::uint64_t, std::size_t i) {
                                      ++begun;
                                      while (!go_on) std::this_thread::sleep_for(100us);
                                      ++finished;
                                      if (i == 1) throw std::runtime_error("nobody will see this");
                                      return true;
                                    }) |
                      prefetch({.workers = 2, .slots = 50});
      CHECK(comes_true([&] { return begun == 2; }));
      opener.emplace([&] {
        std::this_thread::sleep_for(20ms);
        go_on = true;
      });
    }
    CHECK(finished == 2);
    CHECK(begun == 2);
  }
  SUBCASE("while the workers wait for the end of an epoch") {
    auto pipeline = numbers(2) | prefetch({.workers = 2, .slots = 4});
    CHECK(*pipeline.next() == 0);
    CHECK(*pipeline.next() == 1);
    std::this_thread::sleep_for(2ms);
  }
  SUBCASE("after an error") {
    auto pipeline = numbers(9) | map([](int& value) {
                      if (value == 1) throw std::runtime_error("1");
                    }) |
                    prefetch({.workers = 2, .slots = 4});
    CHECK(*pipeline.next() == 0);
    CHECK_THROWS_AS((void)pipeline.next(), std::runtime_error);
  }
}

TEST_CASE("a pipeline moves, also while it works and inside a loop") {
  auto first = epoch_numbers(6) | prefetch({.workers = 2, .slots = 3});
  const int* value = first.next();
  CHECK(*value == 0);
  auto second = std::move(first);
  CHECK(*value == 0);
  CHECK(*second.next() == 1);
  std::optional<decltype(second)> third;
  int expected = 2;
  for (const int each : second) {
    CHECK(each == expected++);
    if (each == 3) third.emplace(std::move(second));  // NOLINT(bugprone-use-after-move): once
  }
  CHECK(expected == 6);
  REQUIRE(third);
  CHECK(third->state() == sequence_state{0, 1, 0});
  *third = epoch_numbers(2) | prefetch({.workers = 1});
  CHECK(rest_of(*third) == ints{0, 1});
}

TEST_CASE("a sequence with a name is only referred to") {
  numbers values(3);
  {
    auto pipeline = values | prefetch({.workers = 2});
    CHECK(rest_of(pipeline) == ints{0, 1, 2});
    CHECK(values.ended == 1);
  }
  auto batches = values | batch(2);
  auto pipeline = batches | prefetch({.workers = 1});
  CHECK(rest_of(pipeline) == int_batches{{1000, 1001}, {1002}});
  CHECK(values.ended == 2);
}

TEST_CASE("a broken loop is gone on with") {
  auto pipeline = epoch_numbers(5) | prefetch({.workers = 2});
  for (const int value : pipeline) {
    if (value == 2) break;
  }
  CHECK(pipeline.state() == sequence_state{0, 0, 3});
  CHECK(rest_of(pipeline) == ints{3, 4});
  CHECK(rest_of(pipeline).size() == 5);
}

TEST_CASE("a saved state gives exactly what was not given yet") {
  const auto check = [](const auto& build, std::uint64_t seed) {
    std::vector<int_batches> expected;
    auto reference = build();
    for (int epoch = 0; epoch < 5; ++epoch) {
      expected.emplace_back();
      for (auto& value : elements(reference)) expected.back().push_back(values_in(value));
    }
    const std::size_t batches = expected[0].size();
    for (const prefetch_options& options : all_options) {
      for (std::size_t epoch = 0; epoch < 3; ++epoch) {
        for (std::size_t given = 0; given <= batches; ++given) {
          CAPTURE(options.workers);
          CAPTURE(options.slots);
          CAPTURE(epoch);
          CAPTURE(given);
          std::string saved;
          {
            // Begun in the middle itself, so that a state of a state is looked at, too.
            auto pipeline = build() | resume_from({seed, epoch, given / 2}) | prefetch(options);
            CHECK(pipeline.state() == sequence_state{seed, epoch, given / 2});
            CHECK(pipeline.size() == batches);
            for (std::size_t i = given / 2; i < given; ++i) {
              const auto* value = pipeline.next();
              REQUIRE(value != nullptr);
              CHECK(values_in(*value) == expected[epoch][i]);
            }
            saved = to_string(pipeline.state());
          }
          const sequence_state state = parse_sequence_state(saved);
          CHECK(state == sequence_state{seed, epoch, given});
          auto pipeline = build() | resume_from(state) | prefetch(options);
          const int_batches& all = expected[epoch];
          CHECK(rest_of(pipeline) ==
                int_batches(all.begin() + static_cast<std::ptrdiff_t>(given), all.end()));
          CHECK(rest_of(pipeline) == expected[epoch + 1]);
          CHECK(rest_of(pipeline) == expected[epoch + 2]);
          CHECK(pipeline.state() == sequence_state{seed, epoch + 3, 0});
        }
      }
    }
  };
  check([] { return planned_numbers(23) | shuffle(8) | shard(1, 2) | batch(3); }, 8);
  check([] { return numbers(11) | shuffle(9) | batch(3, last_batch::pad); }, 9);
}

TEST_CASE("out of order, a saved state loses nothing") {
  for (int round = 0; round < 30; ++round) {
    std::mt19937 random(static_cast<unsigned>(round));  // NOLINT(cert-msc51-cpp,cert-msc32-c)
    const auto hook = [&](std::uint64_t, std::size_t i) {
      if ((i * 7 + static_cast<std::size_t>(round)) % 5 == 0) std::this_thread::sleep_for(300us);
      return true;
    };
    const prefetch_options options{.workers = 3, .slots = 5, .ordered = false};
    std::set<int> given;
    sequence_state state;
    {
      auto pipeline = epoch_numbers(12, hook) | prefetch(options);
      const auto steps = std::uniform_int_distribution<int>(0, 12)(random);
      for (int i = 0; i < steps; ++i) given.insert(*pipeline.next());
      state = pipeline.state();
    }
    CHECK(state.epoch == 0);
    CHECK(state.batch <= given.size());
    auto pipeline = epoch_numbers(12, hook) | resume_from(state) | prefetch(options);
    for (const int value : rest_of(pipeline)) given.insert(value);
    CHECK(given.size() == 12);
    CHECK(rest_of(pipeline).size() == 12);
  }
}

namespace {

struct no_storage : planned_numbers {
  using planned_numbers::planned_numbers;
  template <class Arena>
  [[nodiscard]] number_batch make_storage(Arena& arena, std::size_t n) const {
    if (arena.used() > 100) throw error("no storage");
    return planned_numbers::make_storage(arena, n);
  }
};

}  // namespace

TEST_CASE("what cannot be is refused before a thread is started") {
  CHECK(message_of<error>([] { (void)(numbers(3) | prefetch({.workers = 4'000'000'000})); }) ==
        "prefetch: 4000000000 workers were asked for, and there can be 1024");
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  CHECK(message_of<error>([] {
          (void)(planned_numbers(3) | batch(most / 16) | prefetch({.workers = 1, .slots = 9}));
        }) == "prefetch: the bytes of 9 slots do not fit into a number");
  CHECK_THROWS_AS((void)(numbers(3) | prefetch({.workers = 1, .slots = most})), std::exception);
  memory_counts counts;
  for (std::uint64_t passing = 0; passing < 2; ++passing) {
    std::uint64_t remaining = passing;
    std::atomic<int> begun = 0;
    const auto start = [&] {
      auto pipeline =
          planned_numbers(3, [&](std::uint64_t, std::size_t) { return ++begun > 0; }) | batch(2) |
          prefetch({.workers = 2}, failing_resource(remaining, counting_resource(counts)));
      CHECK(rest_of(pipeline).size() == 2);
    };
    if (passing == 0) {
      CHECK_THROWS_AS(start(), std::bad_alloc);
      CHECK(begun == 0);
    } else {
      start();
    }
    CHECK(counts.bytes_in_use == 0);
  }
  // A storage that cannot be made.
  CHECK(message_of<error>([&] {
          (void)(no_storage(3) | prefetch({.workers = 2}, counting_resource(counts)));
        }) == "no storage");
  CHECK(counts.bytes_in_use == 0);
}

TEST_CASE("a system without threads for it is no error") {
  // A stack that no address space has room for lets every start of a thread fail.
  pthread_attr_t attributes;
  REQUIRE(pthread_getattr_default_np(&attributes) == 0);
  std::size_t usual = 0;
  REQUIRE(pthread_attr_getstacksize(&attributes, &usual) == 0);
  REQUIRE(pthread_attr_setstacksize(&attributes, std::size_t{1} << 47U) == 0);
  REQUIRE(pthread_setattr_default_np(&attributes) == 0);
  {
    auto pipeline =
        planned_numbers(7) | shuffle(1) | batch(2) | prefetch({.workers = 3, .slots = 2});
    CHECK(pipeline.workers() == 0);
    auto reference = planned_numbers(7) | shuffle(1) | batch(2) | prefetch({.workers = 0});
    for (int epoch = 0; epoch < 3; ++epoch) CHECK(rest_of(pipeline) == rest_of(reference));
  }
  REQUIRE(pthread_attr_setstacksize(&attributes, usual) == 0);
  REQUIRE(pthread_setattr_default_np(&attributes) == 0);
  REQUIRE(pthread_attr_destroy(&attributes) == 0);
  CHECK((numbers(3) | prefetch({.workers = 3})).workers() == 3);
}

TEST_CASE("the consumer's waits are counted") {
  std::atomic<bool> slow = true;
  auto pipeline = epoch_numbers(3,
                                [&](std::uint64_t, std::size_t) {
                                  if (slow) std::this_thread::sleep_for(5ms);
                                  return true;
                                }) |
                  prefetch({.workers = 1, .slots = 3});
  CHECK(pipeline.statistics().waits == 0);
  (void)pipeline.next();
  CHECK(pipeline.statistics().waits == 1);
  CHECK(pipeline.statistics().waited > 0ns);
  slow = false;
  std::this_thread::sleep_for(20ms);
  const prefetch_statistics before = pipeline.statistics();
  (void)pipeline.next();
  const prefetch_statistics after = pipeline.statistics();
  CHECK(after.values == 2);
  CHECK(before.values == 1);
  CHECK(after.waits == before.waits);
  CHECK(after.waited == before.waited);
}

namespace {

enum class outcome { value, skipped, failed };

/// What becomes of an element, the same for everybody who asks.
struct script {
  std::uint64_t seed = 0;
  unsigned failing = 0;  // in a hundred
  unsigned skipping = 0;
  unsigned slow = 0;
  unsigned failing_ends = 0;

  [[nodiscard]] unsigned roll(std::uint64_t epoch, std::uint64_t index) const {
    return static_cast<unsigned>(counter_random(seed, epoch, index).bits() % 100);
  }
  [[nodiscard]] outcome of(std::uint64_t epoch, std::size_t i) const {
    const unsigned rolled = roll(epoch, i);
    if (rolled < failing) return outcome::failed;
    return rolled < failing + skipping ? outcome::skipped : outcome::value;
  }
  [[nodiscard]] bool end_fails(std::uint64_t epoch) const {
    return roll(epoch, 1'000'000) < failing_ends;
  }
  /// Acts it.
  bool act(std::uint64_t epoch, std::size_t i) const {
    const unsigned rolled = roll(epoch, i + 2'000'000);
    if (rolled < slow) std::this_thread::sleep_for(std::chrono::microseconds(rolled * 10));
    const outcome what = of(epoch, i);
    if (what == outcome::failed) throw std::runtime_error("failed");
    return what == outcome::value;
  }
};

struct scripted : planned_numbers {
  scripted(std::size_t its_count, const script& its_script)
      : planned_numbers(
            its_count,
            [its_script](std::uint64_t epoch, std::size_t i) { return its_script.act(epoch, i); }),
        acted(its_script) {}
  void on_epoch_end() {
    planned_numbers::on_epoch_end();
    if (acted.end_fails(now - 1)) throw std::runtime_error("end failed");
  }
  script acted;
};

/// The same without knowledge of epochs, and of plain values.
struct scripted_plain {
  using value_type = int;
  scripted_plain(std::size_t its_count, const script& its_script, const bool& is_armed)
      : count(its_count), acted(its_script), armed(&is_armed) {}
  [[nodiscard]] std::size_t size() const { return count; }
  [[nodiscard]] auto operator[](std::size_t i) const {
    return [this, i](int& value) {
      value = ended * 1000 + static_cast<int>(i);
      return acted.act(static_cast<std::uint64_t>(ended), i);
    };
  }
  void on_epoch_end() {
    ++ended;
    if (!*armed) return;  // it is only brought to its epoch
    if (acted.end_fails(static_cast<std::uint64_t>(ended - 1)))
      throw std::runtime_error("end failed");
  }
  std::size_t count;
  script acted;
  int ended = 0;
  const bool* armed;
};

int number_of(int value) { return value; }
int number_of(const test::number_place& place) { return place.number[0]; }

/// Goes on with a pipeline for a number of steps and compares with the script.
template <class Pipeline>
void follow(Pipeline& pipeline, const script& acted, std::size_t count, bool ordered, int steps) {
  const sequence_state start = pipeline.state();
  std::uint64_t epoch = start.epoch;
  auto next = static_cast<std::size_t>(start.batch);
  std::multiset<int> expected;  // of the epoch, out of order
  std::size_t failures = 0;
  const auto begin_epoch = [&](std::size_t from) {
    expected.clear();
    failures = 0;
    for (std::size_t i = from; i < count; ++i) {
      if (acted.of(epoch, i) == outcome::value) {
        expected.insert(static_cast<int>(epoch) * 1000 + static_cast<int>(i));
      }
      if (acted.of(epoch, i) == outcome::failed) ++failures;
    }
  };
  begin_epoch(next);
  for (int step = 0; step < steps; ++step) {
    std::string what;
    int value = -1;
    try {
      if (const auto* given = pipeline.next()) {
        what = "value";
        value = number_of(*given);
      } else {
        what = "end";
      }
    } catch (const std::runtime_error& e) {
      what = e.what();
    }
    if (ordered) {
      while (next < count && acted.of(epoch, next) == outcome::skipped) ++next;
    }
    if (what.starts_with("end")) {
      REQUIRE(expected.empty());
      REQUIRE(failures == 0);
      REQUIRE(what == (acted.end_fails(epoch) ? "end failed" : "end"));
      ++epoch;
      next = 0;
      begin_epoch(0);
    } else if (what == "value") {
      const auto found = expected.find(value);
      REQUIRE(found != expected.end());
      expected.erase(found);
      if (ordered) REQUIRE(value == static_cast<int>(epoch) * 1000 + static_cast<int>(next++));
    } else {
      REQUIRE(what == "failed");
      REQUIRE(failures > 0);
      --failures;
      if (ordered) REQUIRE(acted.of(epoch, next++) == outcome::failed);
    }
    if (ordered) REQUIRE(pipeline.state() == sequence_state{0, epoch, next});
  }
}

}  // namespace

TEST_CASE("starting, stopping, throwing and resuming at random") {
  std::mt19937 random(20'240'607);  // NOLINT(cert-msc51-cpp,cert-msc32-c)
  const auto below = [&](unsigned end) {
    return std::uniform_int_distribution<unsigned>(0, end - 1)(random);
  };
  for (int round = 0; round < 600; ++round) {
    CAPTURE(round);
    script acted;
    acted.seed = random();
    acted.failing = below(3) == 0 ? below(100) : 0;
    acted.skipping = below(3) == 0 ? below(100 - acted.failing) : 0;
    acted.failing_ends = below(3) == 0 ? below(100) : 0;
    acted.slow = below(4) == 0 ? below(40) : 0;
    const std::size_t count = below(13);
    const prefetch_options options{
        .workers = below(6), .slots = below(7), .ordered = below(3) != 0};
    CAPTURE(options.workers);
    CAPTURE(options.slots);
    CAPTURE(options.ordered);
    CAPTURE(count);
    const int sessions = 1 + static_cast<int>(below(4));
    sequence_state state{0, below(4), below(static_cast<unsigned>(count) + 1)};
    for (int session = 0; session < sessions; ++session) {
      const int steps = static_cast<int>(below(30));
      if (round % 2 == 0) {
        auto pipeline = scripted(count, acted) | resume_from(state) | prefetch(options);
        follow(pipeline, acted, count, options.ordered, steps);
        state = pipeline.state();
      } else {
        bool armed = false;
        auto pipeline =
            scripted_plain(count, acted, armed) | resume_from(state) | prefetch(options);
        armed = true;  // NOLINT(clang-analyzer-deadcode.DeadStores): the sequence refers to it
        follow(pipeline, acted, count, options.ordered, steps);
        state = pipeline.state();
      }
    }
  }
}
