// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/error.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

// What every `memory_resource` does, whatever memory it is about. A test runs
// TEST_CASE_TEMPLATE_INVOKE(every_resource, Fixtures...) and, for those that reserve,
// (every_reserving_resource, Fixtures...). A fixture is made anew for each case and has
//
// - `resource`, and `alignments`: the largest that the resource gives;
// - `fill(address, bytes, byte)` and `holds(address, bytes, byte)`: write and compare memory;
// - `refused`: sizes that no machine has;
// - `check_all_given_back()`;
// - those that reserve, `reserved`: bytes of addresses that can be had and not committed, and
//   `is_bounded`: whether that holds, since a kernel may promise everything.

namespace test {

/// Puts memory behind the block where the resource only reserves addresses.
template <vggload::memory_resource Resource>
void make_usable(Resource& resource, void* address, std::size_t bytes) {
  if constexpr (vggload::reserving_resource<Resource>) {
    CHECK(resource.commit(address, 0, bytes) >= bytes);
  }
}

/// Allocates, and where memory is only reserved commits it.
template <vggload::memory_resource Resource>
void* allocate_usable(Resource& resource, std::size_t bytes, std::size_t alignment) {
  void* const address = resource.allocate(bytes, alignment);
  make_usable(resource, address, bytes);
  return address;
}

TEST_CASE_TEMPLATE_DEFINE("every resource", Fixture, every_resource) {
  using namespace vggload;
  Fixture fixture;
  auto resource = fixture.resource;
  using resource_type = decltype(resource);

  SUBCASE("gives the alignment that is asked for, or refuses and says what it can") {
    for (std::size_t alignment = 1; alignment <= 4096; alignment *= 2) {
      CAPTURE(alignment);
      if (alignment <= fixture.alignments) {
        for (const std::size_t bytes : {std::size_t{1}, alignment + 1}) {
          void* const address = allocate_usable(resource, bytes, alignment);
          CHECK(reinterpret_cast<std::uintptr_t>(address) % alignment == 0);
          fixture.fill(address, bytes, 0x5A);
          CHECK(fixture.holds(address, bytes, 0x5A));
          resource.deallocate(address, bytes, alignment);
        }
        continue;
      }
      try {
        (void)resource.allocate(1, alignment);
        FAIL_CHECK("not refused");
      } catch (const unsupported_error& e) {
        CHECK(std::string_view(e.what()).find(std::to_string(alignment)) != std::string::npos);
        CHECK(std::string_view(e.what()).find(std::to_string(fixture.alignments)) !=
              std::string::npos);
      }
    }
  }

  SUBCASE("gives blocks that do not overlap, of no bytes as well") {
    const std::vector<std::size_t> sizes{0, 0, 1, 255, 256, 257, 4096, 100'003, 3'000'017};
    std::vector<void*> blocks;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      blocks.push_back(allocate_usable(resource, sizes[i], 64));
      REQUIRE(blocks.back() != nullptr);
      fixture.fill(blocks[i], sizes[i], static_cast<std::uint8_t>(i + 1));
    }
    CHECK(blocks[0] != blocks[1]);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CHECK(fixture.holds(blocks[i], sizes[i], static_cast<std::uint8_t>(i + 1)));
      resource.deallocate(blocks[i], sizes[i], 64);
    }
  }

  SUBCASE("refuses what there is not, with the number, and goes on") {
    void* const before = allocate_usable(resource, 1000, 64);
    fixture.fill(before, 1000, 1);
    for (const std::size_t bytes : fixture.refused) {
      CAPTURE(bytes);
      void* reserved = nullptr;
      try {
        reserved = resource.allocate(bytes, 64);
        make_usable(resource, reserved, bytes);
        FAIL_CHECK("not refused");
      } catch (const out_of_memory& e) {
        CHECK(e.requested() >= bytes);
        CHECK(std::string_view(e.what()).find(std::to_string(e.requested()) + " bytes of ") !=
              std::string::npos);
      }
      if (reserved != nullptr) resource.deallocate(reserved, bytes, 64);
      void* const after = allocate_usable(resource, 1000, 64);
      fixture.fill(after, 1000, 2);
      CHECK(fixture.holds(before, 1000, 1));
      resource.deallocate(after, 1000, 64);
    }
    resource.deallocate(before, 1000, 64);
  }

  SUBCASE("is a handle: copies are equal, and one takes back what another gave") {
    resource_type copy(resource);
    CHECK(copy == resource);
    void* const first = resource.allocate(10, 8);
    void* const second = copy.allocate(10, 8);
    resource_type assigned(resource);
    assigned = copy;
    CHECK(assigned == resource);
    copy.deallocate(first, 10, 8);
    const resource_type moved(std::move(copy));
    CHECK(moved == resource);
    assigned.deallocate(second, 10, 8);
  }

  SUBCASE("carries an arena, which moves, frees once, and names the tensor that does not fit") {
    arena<resource_type> memory(5000, resource);
    const auto first = memory.allocate("first", 1000);
    const auto second = memory.allocate("second", 3000);
    fixture.fill(first.data(), 1000, 1);
    fixture.fill(second.data(), 3000, 2);
    arena<resource_type> moved(std::move(memory));
    arena<resource_type> other(100, resource);
    other = std::move(moved);
    CHECK(fixture.holds(first.data(), 1000, 1));
    CHECK(fixture.holds(second.data(), 3000, 2));
    try {
      (void)other.allocate("classifier.0.weight", 2000);
      FAIL_CHECK("allocated beyond the budget");
    } catch (const out_of_memory& e) {
      CHECK(e.tensor() == "classifier.0.weight");
      CHECK(e.requested() == 2000);
    }
    const auto third = other.allocate("third", 900);
    fixture.fill(third.data(), 900, 3);
    CHECK(fixture.holds(second.data(), 3000, 2));
  }

  fixture.check_all_given_back();
}

TEST_CASE_TEMPLATE_DEFINE("every reserving resource", Fixture, every_reserving_resource) {
  using namespace vggload;
  Fixture fixture;
  auto resource = fixture.resource;
  using resource_type = decltype(resource);

  SUBCASE("commits step by step and keeps what was written") {
    constexpr std::size_t size = 20'000'000;
    void* const block = resource.allocate(size, 64);
    std::size_t committed = 0;
    for (const std::size_t wanted :
         {std::size_t{1}, std::size_t{1000}, std::size_t{70'000}, std::size_t{5'000'000}, size}) {
      const std::size_t before = committed;
      committed = resource.commit(block, before, wanted);
      CHECK(committed >= wanted);
      CHECK(committed - wanted < std::size_t{2} << 20U);  // no device's granularity is larger
      CHECK(committed >= before);
      CHECK(fixture.holds(block, before, 7));
      fixture.fill(block, committed, 7);
    }
    CHECK(resource.commit(block, committed, 0) == committed);
    CHECK(resource.commit(block, committed, size) == committed);
    CHECK(fixture.holds(block, size, 7));
    resource.deallocate(block, size, 64);
  }

  SUBCASE("takes back a block of which nothing was committed") {
    resource.deallocate(resource.allocate(20'000'000, 64), 20'000'000, 64);
  }

  SUBCASE("keeps what was committed where more is refused") {
    if (!fixture.is_bounded) return;
    void* const block = resource.allocate(fixture.reserved, 64);
    const std::size_t committed = resource.commit(block, 0, 1000);
    fixture.fill(block, committed, 9);
    CHECK_THROWS_AS((void)resource.commit(block, committed, fixture.reserved), out_of_memory);
    CHECK(fixture.holds(block, committed, 9));
    const std::size_t more = resource.commit(block, committed, committed + 1);
    CHECK(more > committed);
    fixture.fill(block, more, 10);
    CHECK(fixture.holds(block, more, 10));
    resource.deallocate(block, fixture.reserved, 64);
  }

  SUBCASE("carries an arena, whose memory comes with its pieces") {
    if (!fixture.is_bounded) return;
    arena<resource_type> memory(fixture.reserved, resource);
    CHECK(memory.committed() == 0);
    const auto first = memory.allocate("first", 1000);
    fixture.fill(first.data(), 1000, 1);
    CHECK(memory.committed() >= 1000);
    const std::size_t committed = memory.committed();
    try {
      (void)memory.allocate("classifier.0.weight", fixture.reserved - 4096);
      FAIL_CHECK("memory that nobody has");
    } catch (const out_of_memory& e) {
      CHECK(e.tensor() == "classifier.0.weight");
      CHECK(e.requested() == fixture.reserved - 4096);
    }
    CHECK(memory.committed() == committed);
    CHECK(memory.used() == 1000);
    // One byte more than has memory.
    const std::size_t rest = memory.committed() - memory.used() + 1;
    const auto beyond = memory.allocate("beyond", rest, 1);
    fixture.fill(beyond.data(), rest, 3);
    const auto second = memory.allocate("second", 5'000'000);
    fixture.fill(second.data(), 5'000'000, 2);
    arena<resource_type> moved(std::move(memory));
    CHECK(moved.committed() > 5'000'000);
    CHECK(fixture.holds(first.data(), 1000, 1));
    CHECK(fixture.holds(second.data(), 5'000'000, 2));
  }

  fixture.check_all_given_back();
}

}  // namespace test
