// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a thousand batches take of the machine's memory: what was planned, from the first epoch to the last. In a
// process of its own, whose memory is measured.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include <vggload/data/augmentation.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/keras_batches.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/memory/process_memory.hpp>

#include "../support/temporary_folder.hpp"
#include "../support/write_jpeg.hpp"

using namespace vggload;

namespace {

constexpr std::int64_t tolerance = std::int64_t{2} << 20;  // the bar's

const test::temporary_folder& photographs() {
  static const test::temporary_folder folder;
  if (folder.count() == 0) {
    for (unsigned i = 0; i < 40; ++i) {
      folder.write(
          (i % 2 == 0 ? "a/" : "b/") + std::to_string(i) + ".jpg",
          test::jpeg_file(200 + 9 * i, 560 - 10 * i, i,
                          i % 5 == 0 ? test::jpeg_scans::progressive : test::jpeg_scans::one));
    }
  }
  return folder;
}

std::int64_t resident() { return static_cast<std::int64_t>(read_process_memory()->resident); }

constexpr augmentation changes{.shear_range = 5, .zoom_range = {0.8, 1.2}, .horizontal_flip = true};
const image_size target{224, 224};
constexpr std::size_t batch_size = 8;  // five batches in an epoch

/// Goes through 1,000 batches after three epochs. The pages of the program itself are not counted: an epoch of another
/// sequence, `first`, has brought them in before.
template <class Batches, class Source>
void measure(const char* what, Batches first, Batches& batches, const Source& source) {
  {
    auto ready = std::move(first) | prefetch({.workers = 2, .slots = 4});
    while (ready.next() != nullptr) continue;
  }
  const std::int64_t before = resident();
  auto ready = batches | prefetch({.workers = 2, .slots = 4});
  const auto go_through = [&](int epochs) {
    std::int64_t most = 0;
    for (int epoch = 0; epoch < epochs; ++epoch) {
      std::size_t images = 0;
      for (const image_batch& batch : ready) images += batch.size();
      REQUIRE(images == 40);
      most = std::max(most, resident());
    }
    return most;
  };
  const std::int64_t warm = go_through(3);
  const std::int64_t most = go_through(200);
  const auto slots = static_cast<std::int64_t>(ready.memory_bytes());
  const auto scratch = static_cast<std::int64_t>(source.scratch_bytes());
  std::printf(
      "%s: slots %lld + scratch %lld; resident growth %lld warm, %lld after 1,000 batches\n", what,
      static_cast<long long>(slots), static_cast<long long>(scratch),
      static_cast<long long>(warm - before), static_cast<long long>(most - before));
  CHECK(slots >= std::int64_t{4} * batch_size * 224 * 224 * 3 * 4);
  CHECK(most - before > slots + scratch - tolerance);
  CHECK(most - before < slots + scratch + tolerance);
  CHECK(most - warm < tolerance / 4);
}

}  // namespace

TEST_CASE("fast batches take the slots and what the workers need for the largest image") {
  const auto make_images = [] {
    return image_sequence(
        image_folder(photographs().path().string()),
        fast_augmentation({.height = target.height, .width = target.width}, changes));
  };
  auto first = make_images();
  auto images = make_images();
  auto batches = images | shuffle(1) | batch(batch_size);
  measure("fast", first | shuffle(1) | batch(batch_size), batches, images);
}

TEST_CASE("exact batches do, too") {
  const auto make_batches = [] {
    return keras_batches(image_folder(photographs().path().string()),
                         {.target = target, .batch_size = batch_size, .augmentation = changes});
  };
  auto batches = make_batches();
  measure("exact", make_batches(), batches, batches);
}
