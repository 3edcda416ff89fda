// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <vggload/core/error.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/resume.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/counting_resource.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;
using test::temporary_folder;

namespace {

/// A PPM of one colour.
std::string ppm(std::size_t height, std::size_t width, const std::string& pixel) {
  std::string file = "P6 ";
  file.append(std::to_string(width)).append(" ").append(std::to_string(height)).append(" 255\n");
  for (std::size_t i = 0; i < height * width; ++i) file += pixel;
  return file;
}

/// Writes the epoch, the index and the first pixel, so that a test sees what came.
struct telling_transform {
  [[nodiscard]] static sample_format format() { return {.height = 1, .width = 2}; }
  void operator()(const image_view& decoded, std::uint64_t epoch, std::uint64_t index,
                  scratch& memory, image_sample& into) const {
    (void)memory.allocate(decoded.height * decoded.width);
    const std::vector<float> values{static_cast<float>(epoch),
                                    static_cast<float>(index),
                                    static_cast<float>(decoded.pixels[0]),
                                    static_cast<float>(decoded.pixels[1]),
                                    static_cast<float>(decoded.pixels[2]),
                                    static_cast<float>(decoded.height)};
    REQUIRE(into.pixels.size() == values.size() * sizeof(float));
    std::memcpy(into.pixels.data(), values.data(), into.pixels.size());
  }
};
static_assert(image_transform<telling_transform>);
static_assert(image_transform<fast_augmentation>);
static_assert(epoch_sequence<image_sequence<telling_transform>>);
static_assert(planned_sequence<image_sequence<telling_transform>>);

/// Seven images in two classes; the fourth has the height 4, and so on.
void write_images(const temporary_folder& folder) {
  for (int i = 0; i < 7; ++i) {
    const std::string pixel{static_cast<char>(10 * i), static_cast<char>(10 * i + 1), '\2'};
    folder.write((i < 3 ? "cats/" : "dogs/") + std::to_string(i) + ".ppm",
                 ppm(static_cast<std::size_t>(i) + 1, 3, pixel));
  }
}

std::vector<float> values_of(const tensor_view& view) {
  const auto values = view.values<float>();
  return {values.begin(), values.end()};
}

}  // namespace

TEST_CASE("a folder's images become batches with their labels and indices") {
  const temporary_folder folder;
  write_images(folder);
  image_sequence images(image_folder(folder.path().string()), telling_transform{});
  CHECK(images.size() == 7);
  auto batches = images | batch(3);
  CHECK(batches.size() == 3);
  std::size_t number = 0;
  for (const image_batch& each : batches) {
    if (number == 1) {
      CHECK(each.images().shape() == shape{3, 1, 2, 3});
      CHECK(values_of(each.images()) == std::vector<float>{0, 3, 30, 31, 2, 4,  //
                                                           0, 4, 40, 41, 2, 5,  //
                                                           0, 5, 50, 51, 2, 6});
      CHECK(values_of(each.labels()) == std::vector<float>{0, 1, 0, 1, 0, 1});
      CHECK(each.indices()[2] == 5);
    }
    if (number == 2) CHECK(each.size() == 1);
    ++number;
  }
  CHECK(number == 3);
  CHECK(images.epoch() == 1);
  for (const image_batch& each : batches) {
    CHECK(values_of(each.images())[0] == 1);
    break;
  }
}

TEST_CASE("images can be had one by one") {
  const temporary_folder folder;
  write_images(folder);
  image_sequence images(image_folder(folder.path().string()), telling_transform{},
                        {.labels = label_mode::sparse});
  float label_sum = 0;
  for (const image_sample& sample : images) {
    REQUIRE(sample.label.size() == 1);
    label_sum += sample.label[0];
  }
  CHECK(label_sum == 4);
}

TEST_CASE("an image that cannot be decoded is an error with its path, or skipped and listed") {
  const temporary_folder folder;
  write_images(folder);
  const std::string bad = folder.write("cats/1.ppm", "P6 3 2 255\nshort");
  const std::string gone = folder.file("dogs/5.ppm");
  std::filesystem::remove(gone);
  std::filesystem::create_symlink("nowhere", gone);

  image_sequence stopping(image_folder(folder.path().string()), telling_transform{});
  auto stopped = stopping | batch(4) | prefetch({.workers = 2});
  CHECK(message_of<format_error>([&] { (void)stopped.next(); }).starts_with(bad + ": "));
  CHECK(message_of<io_error>([&] { (void)stopped.next(); }).starts_with(gone + ": cannot open"));
  CHECK(stopped.next() == nullptr);

  image_sequence skipping(image_folder(folder.path().string()), telling_transform{},
                          {.on_error = on_error::skip});
  for (const unsigned workers : {0U, 2U}) {
    auto batches = skipping | batch(4) | prefetch({.workers = workers});
    const image_batch* first = batches.next();
    REQUIRE(first != nullptr);
    CHECK(std::vector<std::uint64_t>(first->indices().begin(), first->indices().end()) ==
          std::vector<std::uint64_t>{0, 2, 3});
    CHECK(first->images().shape() == shape{3, 1, 2, 3});
    REQUIRE(first->skipped().size() == 1);
    CHECK(first->skipped()[0].path == bad);
    CHECK(first->skipped()[0].reason.starts_with(bad + ": "));
    const image_batch* second = batches.next();
    REQUIRE(second != nullptr);
    CHECK(second->size() == 2);
    CHECK(second->skipped()[0].path == gone);
    CHECK(batches.next() == nullptr);
    skipping.set_epoch(0);
  }
}

TEST_CASE("an image is not skipped because the process has too many files open") {
  const temporary_folder folder;
  write_images(folder);
  image_sequence images(image_folder(folder.path().string()), telling_transform{},
                        {.on_error = on_error::skip});
  auto batches = images | batch(7) | prefetch({.workers = 0});
  ::rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const ::rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const std::string message = message_of<io_error>([&] { (void)batches.next(); });
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(message == folder.file("cats/0.ppm") + ": cannot open: Too many open files");
}

namespace {

struct refusing_transform : telling_transform {
  void operator()(const image_view&, std::uint64_t, std::uint64_t index, scratch&,
                  image_sample&) const {
    if (index == 2) throw error("not this one");
  }
};

}  // namespace

TEST_CASE("what a transform refuses names the image, too") {
  const temporary_folder folder;
  write_images(folder);
  const std::string third = folder.file("cats/2.ppm");
  image_sequence images(image_folder(folder.path().string()), refusing_transform{});
  CHECK(message_of<error>([&] {
          for (const image_batch& each : images | batch(7)) CHECK(each.size() == 7);
        }) == third + ": not this one");
  image_sequence skipping(image_folder(folder.path().string()), refusing_transform{},
                          {.on_error = on_error::skip});
  for (const image_batch& each : skipping | batch(7)) {
    CHECK(each.size() == 6);
    REQUIRE(each.skipped().size() == 1);
    CHECK(each.skipped()[0].reason == third + ": not this one");
  }
}

TEST_CASE("batches are the same for any number of workers, and after a resume") {
  const temporary_folder folder;
  write_images(folder);
  const augmentation changes{
      .rotation_range = 20, .zoom_range = {0.5, 1.5}, .horizontal_flip = true};
  const auto three_epochs = [&](unsigned workers, const sequence_state& state) {
    image_sequence images(image_folder(folder.path().string()),
                          fast_augmentation({.height = 5, .width = 4}, changes, {}, 9));
    auto batches =
        images | shuffle(9) | batch(2) | resume_from(state) | prefetch({.workers = workers});
    std::vector<std::vector<float>> seen;
    for (std::uint64_t epoch = state.epoch; epoch < 3; ++epoch) {
      for (const image_batch& each : batches) seen.push_back(values_of(each.images()));
    }
    return seen;
  };
  const auto all = three_epochs(0, {.seed = 9});
  REQUIRE(all.size() == 12);
  CHECK(all[0] != all[4]);
  for (const unsigned workers : {1U, 2U, 5U}) CHECK(three_epochs(workers, {.seed = 9}) == all);
  const auto rest = three_epochs(3, {.seed = 9, .epoch = 1, .batch = 3});
  CHECK(rest == std::vector<std::vector<float>>(all.begin() + 7, all.end()));
}

TEST_CASE("memory is what was planned and what the largest image took, and stays so") {
  const temporary_folder folder;
  write_images(folder);
  memory_counts slots;
  memory_counts making;  // one worker: the counts are for one thread
  image_sequence images(image_folder(folder.path().string()), telling_transform{}, {},
                        counting_resource<>(making));
  auto batches =
      images | batch(3) | prefetch({.workers = 1, .slots = 2}, counting_resource<>(slots));
  // 24 bytes for each image, 8 for its label, 8 for its index, in pieces of 64
  CHECK(slots.bytes_in_use == 2 * (128 + 64 + 64));
  std::uint64_t allocations = 0;
  for (int epoch = 0; epoch < 20; ++epoch) {
    std::size_t count = 0;
    for (const image_batch& each : batches) count += each.size();
    CHECK(count == 7);
    // The worker is an epoch ahead at most.
    if (epoch == 2) allocations = making.allocations;
  }
  CHECK(slots.allocations == 1);
  CHECK(making.allocations == allocations);
  CHECK(images.scratch_bytes() == making.bytes_in_use);
}

TEST_CASE("a transform's channels say which colours are decoded") {
  const temporary_folder folder;
  folder.write("a/1.ppm", ppm(2, 2, "\x64\x32\x14"));
  image_sequence grey(image_folder(folder.path().string()),
                      fast_augmentation({.height = 2, .width = 2, .channels = 1}));
  for (const image_batch& each : grey | batch(1)) {
    // (19595 * 100 + 38470 * 50 + 7471 * 20 + 32768) >> 16
    CHECK(values_of(each.images()) == std::vector<float>(4, 62));
  }
}
