// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <unistd.h>

#include <vggload/load/memory_plan.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/failing_resource.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/process_memory.hpp>

#include "../support/message_of.hpp"

using namespace vggload;
using test::message_of;

TEST_CASE("host memory is aligned, writable, and as large as asked for") {
  host_resource resource;
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{5000}, (std::size_t{2} << 20) - 1,
        std::size_t{2} << 20, (std::size_t{5} << 20) + 17}) {
    for (const std::size_t alignment : {std::size_t{1}, std::size_t{64}, std::size_t{4096}}) {
      void* const memory = resource.allocate(bytes, alignment);
      CHECK(reinterpret_cast<std::uintptr_t>(memory) % alignment == 0);
      if (bytes >= std::size_t{2} << 20) {
        CHECK(reinterpret_cast<std::uintptr_t>(memory) % (std::size_t{2} << 20) == 0);
      }
      std::memset(memory, 0xFF, bytes);
      resource.deallocate(memory, bytes, alignment);
    }
  }
}

TEST_CASE(
    "large host memory costs nothing until it is written, then what is written, and goes back") {
  constexpr std::size_t size = (std::size_t{64} << 20) + 5000;  // ends in the middle of a huge page
  constexpr std::int64_t tolerance = std::int64_t{2} << 20;     // the kernel counts in batches
  const auto resident = [] { return static_cast<std::int64_t>(read_process_memory()->resident); };
  host_resource resource;
  const std::int64_t before = resident();
  void* const memory = resource.allocate(size, 64);
  CHECK(resident() - before < tolerance);
  std::memset(memory, 1, size);
  CHECK(resident() - before > static_cast<std::int64_t>(size) - tolerance);
  CHECK(resident() - before < static_cast<std::int64_t>(size) + tolerance);
  resource.deallocate(memory, size, 64);
  CHECK(resident() - before < tolerance);
}

TEST_CASE("host memory that cannot be had is out_of_memory with the number") {
  host_resource resource;
  for (const std::size_t bytes : {std::size_t{1} << 62, SIZE_MAX}) {
    CHECK(message_of<out_of_memory>([&] { (void)resource.allocate(bytes, 64); }) ==
          std::to_string(bytes) + " bytes of host memory were refused");
  }
}

TEST_CASE("more than the machine has is refused at once, where the kernel does not promise it") {
  std::ifstream policy("/proc/sys/vm/overcommit_memory");
  std::string promise;
  policy >> promise;
  if (promise == "1") return;  // whoever sets that wants to be promised everything
  const auto physical = static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) *
                        static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  host_resource resource;
  CHECK_THROWS_AS((void)resource.allocate(64 * physical, 64), out_of_memory);
}

TEST_CASE("what alignment asked for on top goes back to the kernel at once") {
  const auto address_space = [] {
    std::ifstream status("/proc/self/statm");
    std::size_t pages = 0;
    status >> pages;
    return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  };
  constexpr std::size_t size = (std::size_t{2} << 20) + 5000;
  host_resource resource;
  const std::size_t before = address_space();
  std::vector<void*> blocks(50);
  for (void*& block : blocks) block = resource.allocate(size, 64);
  CHECK(address_space() - before < blocks.size() * (size + (std::size_t{64} << 10)));
  for (void* const block : blocks) resource.deallocate(block, size, 64);
  CHECK(address_space() - before < std::size_t{2} << 20);
}

TEST_CASE("out_of_memory gets the file's name where it has none, once") {
  const auto message = [](auto&& action) {
    return message_of<out_of_memory>(
        [&] { detail::naming_out_of_memory("a file", "reading it", action); });
  };
  CHECK(message([] { throw std::bad_alloc(); }) == "a file: out of memory while reading it");
  CHECK(message([] { throw out_of_memory(detail::fixed_text() << "too large", "t", 9); }) ==
        "a file: too large");
  CHECK(message([] { throw out_of_memory(detail::fixed_text() << "a file: full", "t", 9); }) ==
        "a file: full");
  try {
    detail::naming_out_of_memory(
        "a file", "", [] { throw out_of_memory(detail::fixed_text() << "too large", "t", 9); });
  } catch (const out_of_memory& e) {
    CHECK(e.tensor() == "t");
    CHECK(e.requested() == 9);
  }
}

TEST_CASE("an arena gives out one block in named, aligned pieces up to its exact budget") {
  memory_counts counts;
  {
    arena<counting_resource<>> memory(200, counting_resource<>(counts));
    const std::span<std::byte> a = memory.allocate("a", 65);
    const std::span<std::byte> b = memory.allocate("b", 8, 8);
    const std::span<std::byte> c = memory.allocate("c", 72);
    CHECK(a.data() == memory.block().data());
    CHECK(b.data() - a.data() == 72);
    CHECK(c.data() - a.data() == 128);
    CHECK(memory.used() == 200);
    CHECK(counts.allocations == 1);
    CHECK(counts.bytes_in_use == 200);
    REQUIRE(memory.allocations().size() == 3);
    CHECK(memory.allocations()[1].name == "b");
    CHECK(memory.allocations()[2].offset == 128);
    CHECK(memory.allocations()[2].bytes == 72);
    try {
      (void)memory.allocate("classifier.6.bias", 1, 1);
      FAIL("allocated beyond the budget");
    } catch (const out_of_memory& e) {
      CHECK(std::string(e.what()) ==
            "tensor 'classifier.6.bias' needs 1 bytes, but 200 of the arena's 200 are in use");
      CHECK(e.tensor() == "classifier.6.bias");
      CHECK(e.requested() == 1);
    }
    CHECK_THROWS_AS((void)memory.allocate("wraps", SIZE_MAX), out_of_memory);
    CHECK(memory.used() == 200);
    CHECK_NOTHROW((void)memory.allocate("empty", 0, 8));

    arena<counting_resource<>> moved(std::move(memory));
    CHECK(moved.used() == 200);
    arena<counting_resource<>> other(10, counting_resource<>(counts));
    other = std::move(moved);
    CHECK(counts.deallocations == 1);
    CHECK(other.capacity() == 200);
  }
  CHECK(counts.deallocations == 2);
  CHECK(counts.bytes_in_use == 0);
  CHECK(counts.peak_bytes == 210);
}

TEST_CASE("an arena of nothing allocates nothing") {
  memory_counts counts;
  { arena<counting_resource<>> memory(0, counting_resource<>(counts)); }
  CHECK(counts.allocations == 0);
}

TEST_CASE("a failing resource fails when it is told to") {
  std::uint64_t remaining = 1;
  failing_resource<> resource(remaining);
  void* const memory = resource.allocate(10, 1);
  CHECK_THROWS_AS((void)resource.allocate(10, 1), std::bad_alloc);
  resource.deallocate(memory, 10, 1);
}

TEST_CASE("out_of_memory says what it was given on one line, whatever that holds") {
  const std::string name(6000, 'n');
  const out_of_memory e(
      detail::fixed_text() << "a\nb\xC2\x85 " << std::uint64_t{18446744073709551615U} << name, name,
      7);
  CHECK(std::string(e.what()).starts_with("a?b? 18446744073709551615nnn"));
  CHECK(std::string(e.what()).size() == 5119);
  CHECK(e.tensor().size() == 200);
  const out_of_memory copy = e;
  CHECK(std::string(copy.what()) == e.what());
}

TEST_CASE("a plan without a limit takes what is preferred") {
  const memory_plan plan = plan_memory({.destination_bytes = 1000}, 3, std::nullopt);
  CHECK(plan.threads == 3);
  CHECK(plan.window_bytes == 262144);
  CHECK(plan.total_bytes() == 1000 + 3 * 262144);
  CHECK(plan_memory({}, 0, std::nullopt).threads >= 1);
  CHECK(plan_memory({}, 16, std::nullopt).windows_bytes() == 16 * 262144);
  CHECK(plan_memory({}, 64, std::nullopt).window_bytes == 65536);
  CHECK(plan_memory({}, 100, std::nullopt).window_bytes == 40960);
  CHECK(plan_memory({.streams = false}, 8, std::nullopt).total_bytes() == 0);
}

TEST_CASE(
    "under a limit first the windows shrink, then the threads get fewer, then it is refused") {
  const memory_demand demand{.path = "file",
                             .largest_tensor = "classifier.0.weight",
                             .largest_tensor_bytes = 900'000,
                             .destination_bytes = 1'000'000};
  const auto plan = [&](std::uint64_t limit) { return plan_memory(demand, 4, limit); };
  CHECK(plan(1'000'000 + 4 * 262144).window_bytes == 262144);
  CHECK(plan(1'000'000 + 4 * 262144 - 1).window_bytes == 262144 - 4096);
  CHECK(plan(1'000'000 + 4 * 4096).window_bytes == 4096);
  CHECK(plan(1'000'000 + 4 * 4096).threads == 4);
  CHECK(plan(1'000'000 + 4 * 4096 - 1).threads == 3);
  CHECK(plan(1'000'000 + 4096).threads == 1);
  for (std::uint64_t extra = 4096; extra < 2'000'000; extra += 1013) {
    CHECK(plan(1'000'000 + extra).total_bytes() <= 1'000'000 + extra);
  }
  for (const std::uint64_t limit :
       {std::uint64_t{0}, std::uint64_t{999'999}, std::uint64_t{1'004'095}}) {
    CHECK(message_of<out_of_memory>([&] { (void)plan(limit); }) ==
          "file: the memory limit of " + std::to_string(limit) +
              " bytes cannot be kept: the destination needs 1000000 bytes and a window at least "
              "4096; the largest tensor, 'classifier.0.weight', takes 900000");
  }
  CHECK(plan_memory({.streams = false}, 4, 0).total_bytes() == 0);
}

TEST_CASE("the process tells its memory") {
  const auto now = read_process_memory();
  REQUIRE(now);
  CHECK(now->resident > 100'000);
  CHECK(now->peak_resident + (std::uint64_t{1} << 20) >= now->resident);
}
