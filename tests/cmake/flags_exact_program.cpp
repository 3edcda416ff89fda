// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Prints digests of what exact mode makes of images, at every level. flags.cmake compiles it with one
// set of a consumer's flags after the other: the output must not change.

#include <array>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/keras_augmentation.hpp>
#include <vggload/data/nearest_resize.hpp>
#include <vggload/data/numpy_random.hpp>
#include <vggload/data/scratch.hpp>

#include "../support/simd_levels.hpp"

namespace {

std::uint64_t digest_of(std::span<const std::byte> bytes) {
  std::uint64_t digest = 14695981039346656037U;  // FNV-1a
  for (const std::byte byte : bytes) {
    digest = (digest ^ std::to_integer<std::uint64_t>(byte)) * 1099511628211U;
  }
  return digest;
}

}  // namespace

int main() {
  using namespace vggload;
  numpy_random random(1);
  const auto number = [&](double below) {
    return static_cast<std::size_t>(random.uniform(0, below));
  };
  scratch memory;
  for (int round = 0; round < 300; ++round) {
    const std::size_t channels = std::array<std::size_t, 3>{1, 3, 4}.at(number(3));
    const sample_format format{1 + number(40), 1 + number(60), channels};
    const image_size size{1 + number(50), 1 + number(50)};
    std::vector<std::uint8_t> pixels(size.height * size.width * channels);
    for (std::uint8_t& pixel : pixels) pixel = static_cast<std::uint8_t>(number(256));
    const augmentation options{
        .rotation_range = round % 2 == 0 ? 0 : random.uniform(0, 180),
        .width_shift_range = random.uniform(0, 1.5),
        .height_shift_range = random.uniform(0, 1.5),
        .shear_range = round % 3 == 0 ? 0 : random.uniform(0, 40),
        .zoom_range = {0.3, random.uniform(0.3, 3)},
        .horizontal_flip = true,
        .vertical_flip = true,
        .channel_shift_range = round % 4 == 1 ? 90.0 : 0,
        .brightness_range = round % 4 == 2 ? std::optional(value_range{-0.5, 2}) : std::nullopt,
        .fill = static_cast<fill_mode>(number(4)),
        .fill_value = -7.3};
    normalisation values{
        .preprocessing = static_cast<preprocessing>(channels == 1 ? 3 * number(2) : number(4)),
        .rescale = round % 2 == 0 ? 0 : random.uniform(-2, 2),
        .samplewise_centre = round % 3 == 1,
        .samplewise_scale = round % 5 == 1};
    if (channels != 4 && round % 7 < 2) values.featurewise_mean = {3.3F, 103.7F, 77.7F};
    if (channels != 4 && round % 7 > 4) values.featurewise_deviation = {33.1F, 0.1F, 57.7F};
    memory.reset();
    const image_view resized =
        nearest_resize({pixels.data(), size.height, size.width, channels, size.width * channels},
                       {format.height, format.width}, memory);
    std::vector<float> into(format.values());
    const numpy_random here = random;
    for (const simd_level level : test::simd_levels()) {
      random = here;
      const keras_augmentation keras(format, options, values, level);
      keras(resized, keras.draw(random), memory, into);
      std::printf("%d %d: %016" PRIx64 "\n", round, static_cast<int>(level),
                  digest_of(std::as_bytes(std::span(into))));
    }
    const auto order = random.permutation(static_cast<std::uint32_t>(number(300)));
    std::printf("%016" PRIx64 "\n", digest_of(std::as_bytes(std::span(order))));
  }
}
