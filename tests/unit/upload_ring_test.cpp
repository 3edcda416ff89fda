// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/load/upload_ring.hpp>

#include "../support/fake_copy_engine.hpp"
#include "../support/fake_reader.hpp"
#include "../support/message_of.hpp"

using namespace vggload;
using test::copy_pace;
using test::fake_copy_engine;
using test::fake_reader;
using test::message_of;

namespace {

constexpr std::array paces{copy_pace::out_of_step, copy_pace::when_waited_for};

/// Some stripes long, with borders at odd places, empty and tiny tensors between, a gap behind each.
std::vector<tensor_info> tensors_to_upload() {
  return {fake_reader::info("large", dtype::f32, {1'200'001}),
          fake_reader::info("small", dtype::f32, {3}),
          fake_reader::info("empty", dtype::f32, {0}),
          fake_reader::info("bytes", dtype::u8, {900'001}),
          fake_reader::info("half", dtype::f16, {100'001}),
          fake_reader::info("last", dtype::f32, {500'003})};
}

struct upload {
  std::vector<transfer> transfers;
  std::vector<std::byte> expected;
};

/// The tensors one behind the other, FP32 as FP16, by the scalar code.
upload lay_out(std::span<const tensor_info> tensors, std::size_t gap) {
  upload result;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensors[i].bytes));
    for (std::size_t at = 0; at < bytes.size(); ++at) bytes[at] = fake_reader::byte_at(i, at);
    dtype to = tensors[i].dtype;
    if (to == dtype::f32) {
      to = dtype::f16;
      std::vector<std::byte> converted(bytes.size() / 2);
      find_conversion(dtype::f32, to, simd_level::scalar)(bytes.data(), converted.data(),
                                                          bytes.size() / 4);
      bytes = std::move(converted);
    }
    result.transfers.push_back({i, to, result.expected.size()});
    result.expected.insert(result.expected.end(), bytes.begin(), bytes.end());
    result.expected.insert(result.expected.end(), gap, fake_copy_engine::untouched);
  }
  return result;
}

/// A byte of the destination in tests without a reader.
std::byte byte_of(std::uint64_t offset) {
  return static_cast<std::byte>(offset * 2654435761U >> 13U);
}

/// One worker's windows of [begin, end), some of which continue the one before.
void fill_windows(upload_ring<fake_copy_engine>& ring, unsigned worker, std::uint64_t begin,
                  std::uint64_t end) {
  std::mt19937 random(worker);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
  const auto most = static_cast<std::uint64_t>(ring.geometry().slot_bytes);
  std::vector<std::pair<std::uint64_t, std::size_t>> windows;
  for (std::uint64_t offset = begin; offset < end;) {
    const std::uint64_t bytes = std::min<std::uint64_t>(1 + random() % most, end - offset);
    windows.emplace_back(offset, static_cast<std::size_t>(bytes));
    offset += bytes;
  }
  // Runs of neighbours stay together.
  for (std::size_t i = 0; i + 8 <= windows.size(); i += 8) {
    std::rotate(windows.begin() + static_cast<std::ptrdiff_t>(i),
                windows.begin() + static_cast<std::ptrdiff_t>(i + random() % 8),
                windows.begin() + static_cast<std::ptrdiff_t>(i + 8));
  }
  for (const auto& [offset, bytes] : windows) {
    const auto window = ring.begin_window(worker, offset, bytes);
    for (std::size_t i = 0; i < bytes; ++i) window[i] = byte_of(offset + i);
    ring.end_window(worker, offset, window);
  }
}

}  // namespace

TEST_CASE("a ring is divided among any number of workers") {
  constexpr std::size_t mib = std::size_t{1} << 20U;
  struct row {
    unsigned workers;
    std::size_t slots_per_worker;
    std::size_t slot_bytes;
  };
  for (const auto& [workers, slots, bytes] :
       {row{1, 4, 4 * mib}, row{2, 2, 4 * mib}, row{4, 2, 2 * mib}, row{16, 2, mib / 2},
        row{64, 2, mib / 8}, row{2048, 2, 4096}}) {
    const ring_geometry ring = divide_ring(16 * mib, workers);
    CHECK(ring.slots_per_worker == slots);
    CHECK(ring.slot_bytes == bytes);
    CHECK(ring.slots() == workers * slots);
  }
  for (unsigned workers = 1; workers <= 300; ++workers) {
    for (const std::size_t bytes : {16 * mib, 5 * mib + 12'345, std::size_t{8192} * workers}) {
      const ring_geometry ring = divide_ring(bytes, workers);
      CHECK(ring.slots_per_worker >= 2);
      CHECK(ring.slot_bytes % slot_alignment == 0);
      CHECK(ring.slot_bytes <= largest_slot_bytes);
      CHECK(ring.slots() * ring.slot_bytes <= bytes);
    }
  }
  CHECK(message_of<error>([] { static_cast<void>(divide_ring(24'575, 3)); }) ==
        "a ring of 24575 bytes is too small for 3 workers: each needs two slots of 4096 bytes");
}

TEST_CASE("all that is streamed arrives, for any number of workers, geometry and pace") {
  const fake_reader reader(tensors_to_upload());
  const upload wanted = lay_out(reader.tensors(), 5);
  for (const copy_pace pace : paces) {
    for (const unsigned workers : {1U, 2U, 3U, 8U, 16U}) {
      // The smallest that holds a window; an odd one with more slots; the usual one.
      for (const std::size_t ring_bytes : {workers * 2 * std::size_t{64} * 1024,
                                           workers * std::size_t{500'000}, preferred_ring_bytes}) {
        CAPTURE(workers);
        CAPTURE(ring_bytes);
        std::vector<std::byte> memory(ring_bytes);
        std::vector<std::byte> windows(workers * std::size_t{64} * 1024);
        fake_copy_engine engine(wanted.expected.size(), divide_ring(ring_bytes, workers), pace);
        {
          upload_ring ring(engine, std::span(memory), workers);
          const stream_report report =
              stream(reader, wanted.transfers, ring, windows, {.threads = workers});
          ring.finish();
          CHECK(report.written_bytes == wanted.expected.size() - 5 * wanted.transfers.size());
        }
        CHECK(engine.first_breach() == std::nullopt);
        CHECK(engine.copies_under_way() == 0);
        CHECK(engine.destination() == wanted.expected);
      }
    }
  }
}

TEST_CASE("windows in any order arrive, from workers that are all at work at the same time") {
  constexpr std::uint64_t bytes_each = 80'000;
  for (const copy_pace pace : paces) {
    for (unsigned workers = 1; workers <= 16; ++workers) {
      CAPTURE(workers);
      const std::size_t ring_bytes = workers * (std::size_t{8192} + 4096 * (workers % 3));
      std::vector<std::byte> memory(ring_bytes);
      fake_copy_engine engine(workers * bytes_each, divide_ring(ring_bytes, workers), pace);
      upload_ring ring(engine, std::span(memory), workers);
      {
        std::vector<std::jthread> threads;
        for (unsigned worker = 0; worker < workers; ++worker) {
          threads.emplace_back([&ring, worker] {
            fill_windows(ring, worker, worker * bytes_each, (worker + 1) * bytes_each);
          });
        }
      }
      ring.finish();
      CHECK(engine.first_breach() == std::nullopt);
      CHECK(engine.copies_under_way() == 0);
      const auto arrived = engine.destination();
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < arrived.size(); ++i) wrong += arrived[i] != byte_of(i) ? 1U : 0U;
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("a slot is filled by windows that continue each other, and others go on meanwhile") {
  std::vector<std::byte> memory(4 * 4096);
  const ring_geometry geometry = divide_ring(memory.size(), 1);
  REQUIRE(geometry.slot_bytes == 8192);
  REQUIRE(geometry.slots() == 2);
  fake_copy_engine engine(100'000, geometry, copy_pace::when_waited_for);
  upload_ring ring(engine, std::span(memory), 1);
  const auto fill = [&](std::uint64_t offset, std::size_t bytes) {
    const auto window = ring.begin_window(0, offset, bytes);
    std::ranges::fill(window, std::byte{1});
    ring.end_window(0, offset, window);
    return static_cast<std::size_t>(window.data() - memory.data());
  };
  CHECK(fill(0, 4096) == 0);
  CHECK(fill(4096, 4096) == 4096);
  CHECK(engine.submits() == 0);
  CHECK(fill(8192, 1) == 8192);  // the first slot is full
  CHECK(engine.submits() == 1);
  CHECK(engine.waits() == 0);
  CHECK(fill(8193, 8191) == 8193);
  CHECK(fill(16384, 100) == 0);  // the second is full, and the first was waited for
  CHECK(engine.submits() == 2);
  CHECK(engine.waits() == 1);
  CHECK(fill(16484, 8092) == 100);
  CHECK(engine.submits() == 2);
  CHECK(fill(30'000, 100) == 8192);  // does not continue it
  CHECK(engine.submits() == 3);
  CHECK(fill(40'000, 8192) == 0);
  CHECK(engine.submits() == 4);
  CHECK(engine.copies_under_way() == 1);
  ring.finish();
  CHECK(engine.submits() == 5);
  CHECK(engine.copies_under_way() == 0);
  CHECK(engine.most_under_way() == 2);
  CHECK(message_of<error>([&] { static_cast<void>(ring.begin_window(0, 0, 8193)); }) ==
        "a window of 8193 bytes does not fit into a slot of 8192");
}

TEST_CASE("nothing waits for a ring that was never used, or ends with nothing to submit") {
  std::vector<std::byte> memory(8192);
  fake_copy_engine engine(0, divide_ring(memory.size(), 1), copy_pace::when_waited_for);
  upload_ring ring(engine, std::span(memory), 1);
  ring.finish();
  CHECK(engine.submits() == 0);
  CHECK(engine.waits() == 0);
}

TEST_CASE("the engine's error reaches the caller, and the ring leaves no copy under way") {
  const fake_reader reader(tensors_to_upload());
  const upload wanted = lay_out(reader.tensors(), 0);
  using failures = test::copy_failures;
  for (const copy_pace pace : paces) {
    for (const unsigned workers : {1U, 16U}) {
      const std::size_t ring_bytes = workers * std::size_t{2} * 64 * 1024;
      // About 70 copies are made: from the first on to the very end, when the rest is submitted.
      for (const std::uint64_t number : {0U, 1U, 17U, 50U}) {
        for (const auto& [fail, what] :
             {std::pair(failures{.at_submit = number}, "injected: submit"),
              std::pair(failures{.after_submit = number}, "injected: submit"),
              std::pair(failures{.at_wait = number}, "injected: wait"),
              std::pair(failures{.in_copy = number}, "injected: copy")}) {
          const std::string text = what;
          CAPTURE(workers);
          CAPTURE(number);
          CAPTURE(text);
          fake_copy_engine engine(wanted.expected.size(), divide_ring(ring_bytes, workers), pace,
                                  fail);
          // Gone with the ring: a copy that is still under way reads memory that is not there.
          auto memory = std::make_unique<std::vector<std::byte>>(ring_bytes);
          std::vector<std::byte> windows(workers * std::size_t{64} * 1024);
          const auto run = [&] {
            upload_ring ring(engine, std::span(*memory), workers);
            stream(reader, wanted.transfers, ring, windows, {.threads = workers});
            ring.finish();
          };
          const std::string message = message_of<error>(run);
          CHECK(engine.copies_under_way() == 0);
          memory.reset();
          CHECK(message == text);
          CHECK(engine.first_breach() == std::nullopt);
        }
      }
    }
  }
}

TEST_CASE("an error of the reader comes through, and no copy is under way behind it") {
  for (const copy_pace pace : paces) {
    for (const unsigned workers : {1U, 4U}) {
      const fake_reader reader(tensors_to_upload());
      reader.history()->fail_at_read = 30;
      const upload wanted = lay_out(reader.tensors(), 0);
      std::vector<std::byte> memory(preferred_ring_bytes);
      std::vector<std::byte> windows(workers * std::size_t{64} * 1024);
      fake_copy_engine engine(wanted.expected.size(), divide_ring(memory.size(), workers), pace);
      const auto run = [&] {
        upload_ring ring(engine, std::span(memory), workers);
        stream(reader, wanted.transfers, ring, windows, {.threads = workers});
        ring.finish();
      };
      CHECK(message_of<io_error>(run).starts_with("fake file: injected (tensor '"));
      CHECK(engine.copies_under_way() == 0);
      CHECK(engine.first_breach() == std::nullopt);
    }
  }
}

TEST_CASE("a cancelled upload ends after the window at hand") {
  for (const copy_pace pace : paces) {
    for (const unsigned workers : {1U, 4U}) {
      const fake_reader reader(tensors_to_upload());
      reader.history()->stop_at_read = 20;
      const upload wanted = lay_out(reader.tensors(), 0);
      const std::size_t ring_bytes = workers * std::size_t{2} * 64 * 1024;
      std::vector<std::byte> memory(ring_bytes);
      std::vector<std::byte> windows(workers * std::size_t{64} * 1024);
      fake_copy_engine engine(wanted.expected.size(), divide_ring(ring_bytes, workers), pace);
      const auto run = [&] {
        upload_ring ring(engine, std::span(memory), workers);
        stream(reader, wanted.transfers, ring, windows,
               {.threads = workers, .stop = reader.history()->stop.get_token()});
        ring.finish();
      };
      CHECK(message_of<cancelled_error>(run).starts_with("fake file: cancelled after "));
      CHECK(reader.history()->reads <= 20 + 2 * workers);
      // No read without a window, and no window without a copy before it: it cannot be more.
      CHECK(engine.submits() <= reader.history()->reads);
      CHECK(engine.copies_under_way() == 0);
      CHECK(engine.first_breach() == std::nullopt);
    }
  }
}
