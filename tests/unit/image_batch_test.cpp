// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/error.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/random.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/out_of_memory.hpp>

#include "../support/message_of.hpp"

using namespace vggload;
using test::message_of;

TEST_CASE("a batch lies in an arena of exactly the bytes that it says") {
  const sample_format format{.height = 5, .width = 3, .channels = 3, .type = dtype::f16};
  const label_format labels{label_mode::categorical, 4};
  // 90 bytes for each image, 16 for its label, 8 for its index; each piece a multiple of 64.
  constexpr std::size_t bytes = 320 + 64 + 64;
  CHECK(image_batch::bytes(format, labels, 3) == bytes);
  memory_counts counts;
  arena memory(bytes, counting_resource<>(counts));
  image_batch batch(memory, format, labels, 3);
  CHECK(memory.used() == bytes);
  CHECK(counts.allocations == 1);
  CHECK(batch.capacity() == 3);
  CHECK(batch.size() == 0);

  for (std::size_t i = 0; i < 3; ++i) {
    image_sample sample = batch[i];
    REQUIRE(sample.pixels.size() == 90);
    std::memset(sample.pixels.data(), static_cast<int>(i + 1), sample.pixels.size());
    labels.write(3 - i, sample.label);
    sample.index = 100 + i;
  }
  batch.resize(2);
  CHECK(batch.images().shape() == shape{2, 5, 3, 3});
  CHECK(batch.images().bytes()[89] == std::byte{1});
  CHECK(batch.images().bytes()[90] == std::byte{2});
  CHECK(batch.labels().shape() == shape{2, 4});
  const auto values = batch.labels().values<float>();
  CHECK(std::vector<float>(values.begin(), values.end()) ==
        std::vector<float>{0, 0, 0, 1, 0, 0, 1, 0});
  CHECK(batch.indices()[1] == 101);
}

TEST_CASE("a batch that no number of bytes can hold is an error") {
  const label_format labels{label_mode::none};
  const sample_format format{.height = std::size_t{1} << 31U, .width = std::size_t{1} << 31U};
  CHECK(message_of<error>([&] { (void)image_batch::bytes(format, labels, 2); }) ==
        "the bytes of a batch of 2 images do not fit into a number");
}

TEST_CASE("labels have the shapes that Keras gives them") {
  const auto shape_of = [](label_mode mode) { return label_format{mode, 1}.shape(2); };
  CHECK(shape_of(label_mode::categorical) == shape{2, 1});
  CHECK(shape_of(label_mode::sparse) == shape{2});
  CHECK(shape_of(label_mode::binary) == shape{2});
  CHECK(shape_of(label_mode::none) == shape{2, 0});
  float value = 0;
  label_format{label_mode::sparse, 9}.write(7, {&value, 1});
  CHECK(value == 7);
}

TEST_CASE("scratch memory grows to the largest image, becomes one block and stays") {
  memory_counts counts;
  scratch memory(std::size_t{1} << 30, counting_resource<>(counts));
  const auto take = [&](std::size_t bytes) {
    const auto piece = memory.allocate(bytes);
    CHECK(piece.size() == bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(piece.data()) % 64 == 0);
    std::fill(piece.begin(), piece.end(), std::byte{1});
    return piece;
  };
  const auto image = [&](std::size_t bytes) {
    const auto first = take(bytes);
    const auto second = take(2 * bytes);
    const bool apart = first.data() + first.size() <= second.data() ||
                       second.data() + second.size() <= first.data();
    CHECK(apart);
    memory.reset();
  };
  image(100'000);
  image(100'000);
  const std::uint64_t allocations = counts.allocations;
  for (int i = 0; i < 100; ++i) image(100'000 - static_cast<std::size_t>(i));
  CHECK(counts.allocations == allocations);
  CHECK(counts.bytes_in_use == memory.capacity());
  CHECK(memory.capacity() >= 300'000);
  CHECK(memory.capacity() < 300'000 + 2 * 65'536);
  CHECK(memory.peak() == 100'032 + 200'000);
  image(1'000'000);
  image(1'000'000);
  CHECK(memory.capacity() >= 3'000'000);
  CHECK(memory.capacity() < 3'000'000 + 2 * 65'536);
}

TEST_CASE("scratch memory keeps its limit and says the numbers") {
  memory_counts counts;
  scratch memory(1000, counting_resource<>(counts));
  (void)memory.allocate(640);
  CHECK(message_of<out_of_memory>([&] { (void)memory.allocate(400); }) ==
        "400 bytes are needed beside 640, the limit for one image is 1000");
  CHECK(message_of<out_of_memory>([&] {
          (void)memory.allocate(~std::size_t{0});
        }).ends_with("the limit for one image is 1000"));
  CHECK(memory.allocate(320).size() == 320);
  memory.reset();
  CHECK(memory.allocate(960).size() == 960);
}

TEST_CASE("the counter's random numbers depend on all three numbers and are SplitMix64's") {
  // Steele, Lea and Flood's generator from the state 0 begins with 0xE220A8397B1DCDAF.
  CHECK(counter_random::mix(0) == 0xE220A8397B1DCDAFU);
  counter_random first(1, 2, 3);
  const std::uint64_t bits = first.bits();
  CHECK(counter_random(1, 2, 3).bits() == bits);
  CHECK(counter_random(0, 2, 3).bits() != bits);
  CHECK(counter_random(1, 3, 2).bits() != bits);
  CHECK(counter_random(1, 2, 4).bits() != bits);
  double sum = 0;
  for (std::uint64_t i = 0; i < 10'000; ++i) {
    const double value = counter_random(7, 0, i).uniform(-1, 3);
    CHECK(value >= -1);
    CHECK(value < 3);
    sum += value;
  }
  CHECK(sum / 10'000 == doctest::Approx(1).epsilon(0.05));  // its standard deviation is 0.012
}

namespace {

/// Gives what it is told, and keeps the ranges that were asked for.
struct scripted_random {
  double unit() {
    asked.emplace_back("unit");
    return next();
  }
  double uniform(double low, double high) {
    asked.push_back(std::to_string(low).append(" ").append(std::to_string(high)));
    return low + (high - low) * next();
  }
  double next() { return values.at(used++); }

  std::vector<double> values;
  std::size_t used = 0;
  std::vector<std::string> asked = {};
};

}  // namespace

TEST_CASE("changes are drawn in Keras' order, those that are off not at all") {
  scripted_random random{.values = {0, 0.25, 0.75, 1, 0.5, 0, 0.4, 0.6, 0.75, 0.5}};
  const augmentation all{.rotation_range = 10,
                         .width_shift_range = 0.5,
                         .height_shift_range = 4,
                         .shear_range = 20,
                         .zoom_range = {0.5, 1.5},
                         .horizontal_flip = true,
                         .vertical_flip = true,
                         .channel_shift_range = 8,
                         .brightness_range = value_range{1, 2}};
  const random_transform drawn = draw_transform(all, {.height = 100, .width = 200}, random);
  CHECK(drawn.rotation == -10);
  CHECK(drawn.height_shift == -2);  // pixels
  CHECK(drawn.width_shift == 50);   // a quarter of the width
  CHECK(drawn.shear == 20);
  CHECK(drawn.height_zoom == 1);
  CHECK(drawn.width_zoom == 0.5);
  CHECK(drawn.horizontal_flip);
  CHECK_FALSE(drawn.vertical_flip);
  CHECK(drawn.channel_shift == 4);
  CHECK(drawn.brightness == 1.5);

  scripted_random little{.values = {0.1, 0.2}};
  const random_transform none = draw_transform({}, {.height = 1, .width = 1}, little);
  CHECK(little.asked == std::vector<std::string>{"unit", "unit"});
  CHECK_FALSE(none.horizontal_flip);
  CHECK_FALSE(none.channel_shift);
}
