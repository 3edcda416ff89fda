// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Makes every single allocation of a load fail in turn: those of the resource and those of operator
// new.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/failing_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/vgg16/load.hpp>

#include "../support/fake_reader.hpp"
#include "../support/replaced_new.hpp"
#include "../support/temporary_folder.hpp"

namespace {

/// While counting, the allocations that still pass; the rest of the program allocates freely.
std::atomic<bool> counting = false;
std::atomic<std::int64_t> passed = 0;
std::atomic<std::int64_t> may_pass = 0;
std::atomic<std::int64_t> live = 0;

}  // namespace

void* test::allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (counting && passed++ >= may_pass) return nullptr;
  void* const memory = aligned_block(bytes, alignment);
  if (memory != nullptr) ++live;
  return memory;
}

void test::release(void* memory) noexcept {
  if (memory != nullptr) --live;
  std::free(memory);
}

namespace {

using vggload::counting_resource;
using vggload::failing_resource;
using vggload::memory_counts;

std::string write_checkpoint(const test::temporary_folder& folder) {
  const auto tensors = test::vgg16_tensors("torchvision", false);
  const std::string path = folder.file("file");
  vggload::safetensors_writer writer(path, tensors);
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    bytes.assign(static_cast<std::size_t>(tensors[i].bytes), std::byte{0});
    writer.write_data(writer.data_offset(i), bytes);
  }
  writer.commit();
  return path;
}

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

/// Loads with the first `allow` allocations of operator new passing. True when the load succeeded.
template <class Resource>
bool load(const std::string& path, vggload::dtype type, std::int64_t allow,
          const Resource& resource) {
  const std::string prefix = path + ": ";
  const std::int64_t live_before = live;
  const std::size_t descriptors_before = open_descriptors();
  passed = 0;
  may_pass = allow;
  bool done = false;
  bool named = false;
  bool other = false;
  const vggload::vgg16::load_options options{.dtype = type, .include_top = false, .threads = 2};
  counting = true;
  try {
    const auto model = vggload::vgg16::load(path, options, resource);
    done = true;
  } catch (const vggload::out_of_memory& e) {
    named = std::string_view(e.what()).starts_with(prefix);
  } catch (...) {
    other = true;
  }
  counting = false;
  CHECK((done || named));
  CHECK_FALSE(other);
  CHECK(live == live_before);
  CHECK(open_descriptors() == descriptors_before);
  return done;
}

}  // namespace

TEST_CASE("each failing operator new is out_of_memory, leaks nothing, and the next load works") {
  const test::temporary_folder folder;
  const std::string path = write_checkpoint(folder);
  for (const auto type : {vggload::dtype::f16, vggload::dtype::f32}) {
    memory_counts counts;
    std::int64_t failures = 0;
    while (!load(path, type, failures, counting_resource<>(counts))) {
      CHECK(counts.bytes_in_use == 0);
      ++failures;
      REQUIRE(failures < 10'000);
    }
    MESSAGE(vggload::name_of(type), ": ", failures, " allocations failed in turn");
    CHECK(failures > 20);
    CHECK(load(path, type, INT64_MAX, counting_resource<>(counts)));
    CHECK(counts.bytes_in_use == 0);
  }
}

TEST_CASE("each failing allocation of the resource is out_of_memory that names the tensor") {
  const test::temporary_folder folder;
  const std::string path = write_checkpoint(folder);
  memory_counts counts;
  for (std::uint64_t pass = 0; pass < 2; ++pass) {  // the weights, the windows
    std::uint64_t remaining = pass;
    const failing_resource<counting_resource<>> resource(remaining, counting_resource<>(counts));
    try {
      (void)vggload::vgg16::load(path, {.include_top = false, .threads = 2}, resource);
      FAIL("loaded");
    } catch (const vggload::out_of_memory& e) {
      const std::string bytes =
          pass == 0 ? "29429376 bytes for the weights" : "524288 bytes for windows";
      CHECK(std::string(e.what()).starts_with(
          path + ": " + bytes +
          " could not be allocated; the largest tensor, 'features.19.weight', takes 4718592; this "
          "would fit: "));
      CHECK(e.report());
      CHECK(e.tensor() == "features.19.weight");
    }
    CHECK(counts.bytes_in_use == 0);
  }
  std::uint64_t remaining = 2;
  CHECK_NOTHROW((void)vggload::vgg16::load(path, {.include_top = false, .threads = 2},
                                           failing_resource<>(remaining)));
}

TEST_CASE("a ledger that cannot record an end knows all the same what is free") {
  vggload::memory_ledger ledger;
  const std::size_t block =
      ledger.block_allocated("block", vggload::memory_kind::host, 0x1000, 7000);
  for (int i = 0; i < 7; ++i) {
    ledger.allocated(block, "tensor", static_cast<std::uint64_t>(i) * 1000, 1000);
  }
  may_pass = 0;
  passed = 0;
  counting = true;
  ledger.block_freed(block);
  counting = false;
  CHECK(ledger.live_bytes() == 0);
  const vggload::ledger_snapshot book = ledger.snapshot();
  CHECK_FALSE(book.blocks[0].live);
  CHECK(std::ranges::none_of(book.pieces, &vggload::ledger_piece::live));
  CHECK(book.lost_events > 0);
  CHECK(book.lost_events + book.events.size() == 1 + 7 + 7 + 1);
}
