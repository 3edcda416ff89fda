// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Against what Pillow and torchvision gave: tests/fixtures/resample/make_resample.py says how.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/evaluation_transform.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/nearest_resize.hpp>
#include <vggload/data/resample.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/out_of_memory.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/noise.hpp"
#include "../support/simd_levels.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::crc32_of;
using test::message_of;

static_assert(image_transform<evaluation_transform>);

namespace {

/// An image of the fixtures; `gap` bytes between the rows and none behind the last one.
struct source_image {
  std::vector<std::uint8_t> bytes;
  image_view view;

  source_image(image_size size, std::size_t channels, std::size_t gap) {
    auto pixels = test::noise(size.height * size.width * channels);
    if (channels == 4) {
      for (std::size_t i = 3; i < pixels.size(); i += 4) {
        if (pixels[i] < 64) pixels[i] = 0;
        if (pixels[i] >= 192) pixels[i] = 255;
      }
    }
    const std::size_t row = size.width * channels;
    bytes.assign((size.height - 1) * (row + gap) + row, 0xEE);
    for (std::size_t y = 0; y < size.height; ++y) {
      std::memcpy(bytes.data() + y * (row + gap), pixels.data() + y * row, row);
    }
    view = {bytes.data(), size.height, size.width, channels, row + gap};
  }
};

resampling_filter filter_of(const std::string& name) {
  if (name == "box") return resampling_filter::box;
  if (name == "bilinear") return resampling_filter::bilinear;
  if (name == "hamming") return resampling_filter::hamming;
  if (name == "bicubic") return resampling_filter::bicubic;
  REQUIRE(name == "lanczos");
  return resampling_filter::lanczos;
}

/// All pixels, without what stands between the rows.
std::string crc_of(const image_view& image) {
  std::vector<std::byte> pixels(image.height * image.width * image.channels);
  const std::size_t row = image.width * image.channels;
  for (std::size_t y = 0; y < image.height; ++y) {
    std::memcpy(pixels.data() + y * row, image.row(y), row);
  }
  return crc32_of(pixels);
}

std::vector<std::byte> sample_of(const evaluation_transform& transform, const image_view& image) {
  std::vector<std::byte> pixels(transform.format().bytes(), std::byte{0xA5});
  std::uint64_t index = 0;
  std::vector<skipped_image> skipped;
  image_sample sample{pixels, {}, index, skipped};
  scratch memory;
  transform(image, 0, 0, memory, sample);
  return pixels;
}

/// The same with channels last or first exchanged.
std::vector<std::byte> transposed(const std::vector<std::byte>& planes, std::size_t bytes) {
  const std::size_t pixels = planes.size() / bytes / 3;
  std::vector<std::byte> result(planes.size());
  for (std::size_t i = 0; i < pixels; ++i) {
    for (std::size_t c = 0; c < 3; ++c) {
      std::memcpy(result.data() + (3 * i + c) * bytes, planes.data() + (c * pixels + i) * bytes,
                  bytes);
    }
  }
  return result;
}

/// A case of evaluation.txt.
struct evaluation_case {
  evaluation_options options;
  sample_format format;
  image_size size;
  std::string crc;
};

std::vector<evaluation_case> evaluation_cases() {
  std::istringstream lines(test::read_file(FIXTURES "/resample/evaluation.txt"));
  std::vector<evaluation_case> cases;
  std::string filter;
  while (lines >> filter) {
    evaluation_case& made = cases.emplace_back();
    made.options.filter = filter_of(filter);
    made.format.layout = image_layout::nchw;
    lines >> made.size.height >> made.size.width >> made.options.resize_size >>
        made.format.height >> made.format.width >> made.crc;
  }
  REQUIRE(cases.size() == 15);
  return cases;
}

}  // namespace

TEST_CASE("Pillow's resize, with all filters, numbers of channels and levels") {
  std::istringstream lines(test::read_file(FIXTURES "/resample/resample.txt"));
  std::string name;
  int cases = 0;
  while (lines >> name) {
    std::size_t channels = 0;
    image_size from;
    image_size to;
    std::string crc;
    lines >> channels >> from.height >> from.width >> to.height >> to.width >> crc;
    CAPTURE(name);
    CAPTURE(channels);
    CAPTURE(from.height);
    CAPTURE(to.height);
    CAPTURE(to.width);
    for (const std::size_t gap : {0U, 5U}) {
      const source_image image(from, channels, gap);
      for (const simd_level level : test::simd_levels()) {
        scratch memory;
        const image_view made = resize(image.view, to, filter_of(name), memory, level);
        CHECK(made.size() == to);
        CHECK(made.channels == channels);
        CHECK(crc_of(made) == crc);
      }
    }
    ++cases;
  }
  CHECK(cases == 20 * 3 * 5);
}

TEST_CASE("a resize by hand") {
  const std::array<std::uint8_t, 4> pixels{0, 100, 200, 41};
  const image_view row{pixels.data(), 1, 4, 1, 4};
  scratch memory;
  const auto bytes_of = [](const image_view& image) {
    return std::vector<int>(image.pixels, image.pixels + image.width);
  };
  CHECK(bytes_of(resize(row, {1, 2}, resampling_filter::box, memory)) == std::vector{50, 121});
  // Weights of 3, 3 and 1, and of 1, 3 and 3: a triangle, less what is beyond the edge.
  CHECK(bytes_of(resize(row, {1, 2}, resampling_filter::bilinear, memory)) == std::vector{71, 118});
  CHECK(bytes_of(resize(row, {1, 8}, resampling_filter::box, memory)) ==
        std::vector{0, 0, 100, 100, 200, 200, 41, 41});
  CHECK(bytes_of(resize(row, {1, 8}, resampling_filter::nearest, memory)) ==
        std::vector{0, 0, 100, 100, 200, 200, 41, 41});
  CHECK(bytes_of(resize(row, {1, 2}, resampling_filter::nearest, memory)) == std::vector{100, 41});
  // No copy where nothing changes.
  CHECK(resize(row, {1, 4}, resampling_filter::lanczos, memory).pixels == pixels.data());

  // A transparent colour does not bleed: half of the other one, divided by half of its alpha.
  const std::array<std::uint8_t, 8> two{10, 20, 30, 255, 250, 250, 250, 0};
  const image_view made = resize({two.data(), 1, 2, 4, 8}, {1, 1}, resampling_filter::box, memory);
  CHECK(std::vector<int>(made.pixels, made.pixels + 4) == std::vector{9, 19, 29, 128});
}

TEST_CASE("torchvision's transform for evaluation, in both layouts and at all levels") {
  for (const evaluation_case& expected : evaluation_cases()) {
    CAPTURE(expected.size.height);
    CAPTURE(expected.size.width);
    CAPTURE(expected.format.height);
    const source_image image(expected.size, 3, 2);
    for (const simd_level level : test::simd_levels()) {
      const evaluation_transform transform(expected.format, expected.options, level);
      const auto planes = sample_of(transform, image.view);
      CHECK(crc32_of(planes) == expected.crc);
      sample_format format = expected.format;
      format.layout = image_layout::nhwc;
      const auto pixels =
          sample_of(evaluation_transform(format, expected.options, level), image.view);
      CHECK((pixels == transposed(planes, 4)));
      for (const dtype type : {dtype::f16, dtype::bf16}) {
        format.type = type;
        format.layout = image_layout::nchw;
        const auto rounded =
            sample_of(evaluation_transform(format, expected.options, level), image.view);
        CHECK((rounded == test::convert(dtype::f32, type, simd_level::scalar, planes)));
        format.layout = image_layout::nhwc;
        CHECK((sample_of(evaluation_transform(format, expected.options, level), image.view) ==
               transposed(rounded, 2)));
      }
    }
  }
}

TEST_CASE("the defaults are VGG16's") {
  const evaluation_transform transform;
  CHECK(transform.format().shape(1) == shape{1, 3, 224, 224});
  CHECK(transform.format().type == dtype::f32);
  const evaluation_case first = evaluation_cases().front();
  CHECK(crc32_of(sample_of(transform, source_image(first.size, 3, 0).view)) == first.crc);
}

TEST_CASE("only the rows and columns of the crop are made") {
  // A resize of all of it would take 256 rows of two million pixels.
  const source_image wide({1, 8192}, 3, 0);
  scratch memory(std::size_t{12} << 20U);
  std::vector<std::byte> pixels(evaluation_transform().format().bytes());
  std::uint64_t index = 0;
  std::vector<skipped_image> skipped;
  image_sample sample{pixels, {}, index, skipped};
  evaluation_transform()(wide.view, 0, 0, memory, sample);
  CHECK(memory.peak() < std::size_t{1} << 20U);
}

TEST_CASE("sizes, options and samples that do not fit are refused") {
  scratch memory;
  const source_image image({4, 4}, 3, 0);
  const auto refused = [&](const image_view& view, image_size size) {
    return message_of<error>([&] { (void)resize(view, size, resampling_filter::box, memory); });
  };
  CHECK(refused({image.view.pixels, 4, 4, 2, 8}, {1, 1}) ==
        "an image of 2 channels cannot be resized");
  for (const image_view empty :
       {image_view{image.view.pixels, 0, 4, 3, 12}, image_view{image.view.pixels, 4, 0, 3, 12}}) {
    CHECK(refused(empty, {1, 1}) ==
          "an image without pixels cannot be resized, nor an image to none");
  }
  for (const image_size none : {image_size{0, 1}, image_size{1, 0}}) {
    CHECK(refused(image.view, none) ==
          "an image without pixels cannot be resized, nor an image to none");
  }
  CHECK(message_of<unsupported_error>([&] {
          (void)resize(image.view, {1, (1U << 24U) + 1}, resampling_filter::box, memory);
        }) == "images of more than 2^24 pixels in a row or a column are not resized");
  scratch small(64);
  CHECK_THROWS_AS((void)resize(image.view, {9, 9}, resampling_filter::box, small), out_of_memory);

  const auto wrong = [](const sample_format& format, const evaluation_options& options = {}) {
    return message_of<error>([&] { (void)evaluation_transform(format, options); });
  };
  CHECK(wrong({.channels = 1}) == "torchvision's transform is for three channels, not 1");
  CHECK(wrong({.type = dtype::f64}) == "a sample's values are F32, F16 or BF16, not F64");
  CHECK(wrong({.height = 0}) == "a sample without pixels cannot be made");
  CHECK(wrong({.width = 0}) == "a sample without pixels cannot be made");
  CHECK(wrong({}, {.resize_size = 0}) == "a sample without pixels cannot be made");
  CHECK(wrong({}, {.filter = resampling_filter::nearest}) ==
        "torchvision's transform has a filter, not the nearest pixels");
  CHECK(wrong({}, {.deviation = {1, 0, 1}}) ==
        "a mean or a deviation is beyond 1e30, or a deviation is not positive");
  CHECK(wrong({}, {.mean = {0, 0, std::numeric_limits<float>::infinity()}}) ==
        "a mean or a deviation is beyond 1e30, or a deviation is not positive");

  const evaluation_transform transform;
  const source_image grey({4, 4}, 1, 0);
  CHECK(message_of<error>([&] { (void)sample_of(transform, grey.view); }) ==
        "the image has 1 channels, the sample has 3");
  CHECK(message_of<error>([&] {
          (void)sample_of(transform, {nullptr, 0, 4, 3, 12});
        }) == "the image has no pixels");
  // One pixel high: it would become 256 times as wide.
  CHECK(message_of<unsupported_error>([&] {
          (void)sample_of(transform, {image.view.pixels, 1, 1U << 17U, 3, 3U << 17U});
        }) == "images of more than 2^24 pixels in a row or a column are not resized");
  std::vector<std::byte> pixels(5);
  std::uint64_t index = 0;
  std::vector<skipped_image> skipped;
  image_sample sample{pixels, {}, index, skipped};
  CHECK(message_of<error>([&] { transform(image.view, 0, 0, memory, sample); }) ==
        "the sample has 5 bytes, not 602112");
}
