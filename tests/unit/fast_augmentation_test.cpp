// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Fast mode against the definitions in double precision, against numbers by hand, and its geometry against Keras'.

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/random.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/out_of_memory.hpp>

#include "../support/float_reference.hpp"
#include "../support/message_of.hpp"
#include "../support/noise.hpp"
#include "../support/simd_levels.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;

static_assert(image_transform<fast_augmentation>);

namespace {

/// Pixels of its own, `gap` bytes between the rows and none behind the last one: what is read beyond is found.
struct source_image {
  std::vector<std::uint8_t> bytes;
  image_view view;

  source_image(const std::vector<std::uint8_t>& pixels, image_size size, std::size_t channels,
               std::size_t gap = 0) {
    const std::size_t row = size.width * channels;
    bytes.assign((size.height - 1) * (row + gap) + row, 0xEE);
    for (std::size_t y = 0; y < size.height; ++y) {
      std::memcpy(bytes.data() + y * (row + gap), pixels.data() + y * row, row);
    }
    view = {bytes.data(), size.height, size.width, channels, row + gap};
  }
  source_image(image_size size, std::size_t channels, std::size_t gap = 0)
      : source_image(test::noise(size.height * size.width * channels), size, channels, gap) {}

  [[nodiscard]] double at(std::int64_t y, std::int64_t x, std::size_t channel) const {
    const auto column = static_cast<std::size_t>(x) * view.channels + channel;
    return view.row(static_cast<std::size_t>(y))[column];
  }
};

/// Runs `make(memory, sample)` on a sample of exactly so many bytes.
template <class Make>
std::vector<std::byte> sample_of(std::size_t bytes, const Make& make) {
  std::vector<std::byte> pixels(bytes, std::byte{0xA5});
  std::uint64_t index = 0;
  std::vector<skipped_image> skipped;
  scratch memory;
  image_sample sample{pixels, {}, index, skipped};
  make(memory, sample);
  return pixels;
}

std::vector<std::byte> apply(const fast_augmentation& transform, const image_view& image,
                             const random_transform& drawn) {
  return sample_of(transform.format().bytes(), [&](scratch& memory, image_sample& sample) {
    transform.apply(image, drawn, memory, sample);
  });
}

/// The values, as double, channels last.
std::vector<double> values_of(const std::vector<std::byte>& bytes, const sample_format& format) {
  const auto single = test::convert(format.type, dtype::f32, simd_level::scalar, bytes);
  std::vector<double> values(format.values());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t channel = i % format.channels;
    const std::size_t pixel = i / format.channels;
    const std::size_t place =
        format.layout == image_layout::nhwc ? i : channel * format.height * format.width + pixel;
    float value = 0;
    std::memcpy(&value, single.data() + 4 * place, 4);
    values[i] = value;
  }
  return values;
}

std::vector<double> values(const fast_augmentation& transform, const image_view& image,
                           const random_transform& drawn = {}) {
  return values_of(apply(transform, image, drawn), transform.format());
}

/// Where a pixel of the target comes from, as affine_map.hpp defines it, one step after another.
std::complex<double> position(image_size source, image_size target, const random_transform& drawn,
                              std::size_t row, std::size_t column) {
  const double degree = std::acos(-1.0) / 180;
  double x = static_cast<double>(column) - static_cast<double>(target.width - 1) / 2;
  double y = static_cast<double>(row) - static_cast<double>(target.height - 1) / 2;
  if (drawn.horizontal_flip) x = -x;
  if (drawn.vertical_flip) y = -y;
  x *= drawn.width_zoom;
  y *= drawn.height_zoom;
  x -= std::sin(drawn.shear * degree) * y;
  y *= std::cos(drawn.shear * degree);
  const std::complex<double> moved(x + drawn.width_shift, y + drawn.height_shift);
  const std::complex<double> turned = moved * std::polar(1.0, drawn.rotation * degree);
  const auto resized = [](double from_centre, std::size_t from, std::size_t to) {
    const double part = from_centre / static_cast<double>(to) + 0.5;
    return part * static_cast<double>(from) - 0.5;
  };
  return {resized(turned.real(), source.width, target.width),
          resized(turned.imag(), source.height, target.height)};
}

/// What stands at a place beyond the image's edges, or in it; none where it is filled.
std::optional<std::int64_t> continued(std::int64_t place, std::int64_t pixels, fill_mode fill) {
  const auto modulo = [](std::int64_t a, std::int64_t b) { return ((a % b) + b) % b; };
  switch (fill) {
    case fill_mode::nearest:
    case fill_mode::constant: return std::clamp<std::int64_t>(place, 0, pixels - 1);
    case fill_mode::reflect: {
      const std::int64_t within = modulo(place, 2 * pixels);
      return within < pixels ? within : 2 * pixels - 1 - within;
    }
    case fill_mode::wrap: return modulo(place, pixels);
  }
  return {};
}

/// Distance of a position from the edges of the image and its repetitions, where what one sees jumps.
double from_edge(double position, std::size_t pixels, fill_mode fill) {
  const auto size = static_cast<double>(pixels);
  if (fill == fill_mode::nearest || fill == fill_mode::reflect) return 1;
  const double edge = position + 0.5;
  if (fill == fill_mode::constant) return std::min(std::abs(edge), std::abs(edge - size));
  return std::abs(std::remainder(edge, size));
}

/// One channel of what is seen at a position: 0 to 255.
double seen(const source_image& image, std::complex<double> at, std::size_t channel,
            const augmentation& changes) {
  const auto height = static_cast<std::int64_t>(image.view.height);
  const auto width = static_cast<std::int64_t>(image.view.width);
  const double right = static_cast<double>(width) - 0.5;
  const double bottom = static_cast<double>(height) - 0.5;
  double x = at.real();
  double y = at.imag();
  if (changes.fill == fill_mode::constant && (x < -0.5 || x >= right || y < -0.5 || y >= bottom)) {
    return changes.fill_value;
  }
  if (changes.fill == fill_mode::wrap) {
    // Repeated from edge to edge, without a mixture of both sides.
    const auto repeated = [](double place, std::int64_t pixels) {
      const auto size = static_cast<double>(pixels);
      const double within = place + 0.5 - std::floor((place + 0.5) / size) * size - 0.5;
      return std::clamp(within, 0.0, size - 1);
    };
    x = repeated(x, width);
    y = repeated(y, height);
  }
  const double left = std::floor(x);
  const double top = std::floor(y);
  double sum = 0;
  for (const int down : {0, 1}) {
    for (const int along : {0, 1}) {
      const double weight =
          (along == 1 ? x - left : left + 1 - x) * (down == 1 ? y - top : top + 1 - y);
      const auto row = continued(static_cast<std::int64_t>(top) + down, height, changes.fill);
      const auto column = continued(static_cast<std::int64_t>(left) + along, width, changes.fill);
      sum += weight * image.at(*row, *column, channel);
    }
  }
  return sum;
}

double changed(double value, const random_transform& drawn) {
  value = std::clamp(value + drawn.channel_shift.value_or(0), 0.0, 255.0);
  return std::clamp(value * drawn.brightness.value_or(1), 0.0, 255.0);
}

/// Compares a sample with the definition. Gives the largest difference, in grey levels; pixels so near an edge where
/// what is seen jumps that rounding decides are left out, and counted.
struct difference {
  double largest = 0;
  std::size_t compared = 0;
};
difference compare(const source_image& image, const augmentation& changes,
                   const random_transform& drawn, const sample_format& format,
                   const std::vector<double>& values) {
  difference found;
  const image_size target{format.height, format.width};
  for (std::size_t y = 0; y < format.height; ++y) {
    for (std::size_t x = 0; x < format.width; ++x) {
      const std::complex<double> at = position(image.view.size(), target, drawn, y, x);
      if (std::min(from_edge(at.real(), image.view.width, changes.fill),
                   from_edge(at.imag(), image.view.height, changes.fill)) < 0x1p-13) {
        continue;
      }
      for (std::size_t channel = 0; channel < format.channels; ++channel) {
        const double expected = changed(seen(image, at, channel, changes), drawn);
        const double value = values[(y * format.width + x) * format.channels + channel];
        found.largest = std::max(found.largest, std::abs(value - expected));
        ++found.compared;
      }
    }
  }
  return found;
}

#if defined(__FLT16_MANT_DIG__)
double widened(dtype type, std::uint16_t bits) {
  std::vector<std::byte> bytes(2);
  std::memcpy(bytes.data(), &bits, 2);
  return values_of(bytes, {.height = 1, .width = 1, .channels = 1, .type = type})[0];
}
#endif

augmentation filled(fill_mode fill, double value = 0) {
  augmentation changes;
  changes.fill = fill;
  changes.fill_value = value;
  return changes;
}

constexpr std::array fill_modes{fill_mode::nearest, fill_mode::constant, fill_mode::reflect,
                                fill_mode::wrap};

/// Geometry of all kinds, among it what goes far beyond the image.
random_transform any_transform(std::mt19937& random) {
  const auto between = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  const auto one_of = [&](unsigned n) { return random() % n == 0; };
  random_transform drawn;
  if (!one_of(3)) drawn.rotation = between(-180, 180);
  if (!one_of(3)) drawn.width_shift = between(-30, 30);
  if (!one_of(3)) drawn.height_shift = between(-30, 30);
  if (!one_of(3)) drawn.shear = between(-60, 60);
  if (!one_of(3)) drawn.width_zoom = between(0.3, 3);
  if (!one_of(3)) drawn.height_zoom = between(0.3, 3);
  drawn.horizontal_flip = one_of(2);
  drawn.vertical_flip = one_of(2);
  if (one_of(3)) drawn.channel_shift = between(-100, 100);
  if (one_of(3)) drawn.brightness = between(0, 2);
  return drawn;
}

image_size any_size(std::mt19937& random) {
  constexpr std::array<std::size_t, 10> lengths{1, 1, 2, 3, 5, 8, 9, 17, 31, 40};
  return {lengths.at(random() % lengths.size()), lengths.at(random() % lengths.size())};
}

}  // namespace

TEST_CASE("fast mode is the definition, to a sixteenth of a grey level") {
  std::mt19937 random(1);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in each run
  std::size_t compared = 0;
  std::size_t all = 0;
  for (int run = 0; run < 400; ++run) {
    const std::array<std::size_t, 3> counts{1, 3, 4};
    const std::size_t channels = counts.at(random() % 3);
    const source_image image(any_size(random), channels, random() % 3);
    const image_size target = any_size(random);
    const sample_format format{
        .height = target.height,
        .width = target.width,
        .channels = channels,
        .layout = random() % 2 == 0 ? image_layout::nhwc : image_layout::nchw};
    const augmentation changes = filled(fill_modes.at(random() % 4), 77.25);
    const random_transform drawn = any_transform(random);
    CAPTURE(run);
    const fast_augmentation transform(format, changes);
    const difference found =
        compare(image, changes, drawn, format, values(transform, image.view, drawn));
    CHECK(found.largest < 1.0 / 16);
    compared += found.compared;
    all += format.values();
  }
  CHECK(compared > all - all / 100);
}

TEST_CASE("the geometry is Keras', where Keras' centre is the centre") {
  std::istringstream lines(test::read_file(FIXTURES "/resample/keras_affine.txt"));
  std::string line;
  int cases = 0;
  while (std::getline(lines, line)) {
    CAPTURE(line.substr(0, 40));
    std::istringstream numbers(line);
    std::size_t size = 0;
    random_transform drawn;
    // Keras' tx moves rows, its name notwithstanding; the fixture has the width's first.
    numbers >> size >> drawn.rotation >> drawn.width_shift >> drawn.height_shift >> drawn.shear >>
        drawn.width_zoom >> drawn.height_zoom;
    const source_image image({size, size}, 1);
    const fast_augmentation transform({.height = size, .width = size, .channels = 1});
    double largest = 0;
    for (const double value : values(transform, image.view, drawn)) {
      double expected = -1;
      numbers >> expected;
      largest = std::max(largest, std::abs(value - expected));
    }
    CHECK(largest < 1.0 / 16);
    ++cases;
  }
  CHECK(cases == 16);
}

TEST_CASE("an image of the target's size keeps its pixels exactly, flipped or not") {
  struct standard {
    normalisation options;
    std::array<double, 3> scale;
    std::array<double, 3> offset;
    bool reversed = false;
  };
  const std::vector<standard> all{
      {{}, {1, 1, 1}, {0, 0, 0}},
      {{.rescale = 1.0 / 255}, {1.0 / 255, 1.0 / 255, 1.0 / 255}, {0, 0, 0}},
      {{.rescale = -2.5}, {-2.5, -2.5, -2.5}, {0, 0, 0}},
      {{.preprocessing = preprocessing::caffe}, {1, 1, 1}, {-103.939, -116.779, -123.68}, true},
      {{.preprocessing = preprocessing::torch},
       {1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)},
       {-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225}},
      {{.preprocessing = preprocessing::tf}, {1 / 127.5, 1 / 127.5, 1 / 127.5}, {-1, -1, -1}},
      {{.rescale = 0.5,
        .featurewise_mean = {{8, 16, 32}},
        .featurewise_deviation = {{1, 4, 0.125F}}},
       {0.5 / (1 + 1e-6), 0.5 / (4 + 1e-6), 0.5 / (0.125 + 1e-6)},
       {-8 / (1 + 1e-6), -16 / (4 + 1e-6), -32 / (0.125 + 1e-6)}},
      {{.preprocessing = preprocessing::tf, .rescale = 3, .featurewise_mean = {{1, 2, 4}}},
       {3 / 127.5, 3 / 127.5, 3 / 127.5},
       {-4, -5, -7}},
  };
  for (const image_size size : {image_size{1, 1}, {7, 3}, {16, 16}, {5, 33}}) {
    const source_image image(size, 3, 1);
    for (std::size_t i = 0; i < 4 * all.size(); ++i) {
      const standard& expected = all[i / 4];
      random_transform drawn;
      drawn.horizontal_flip = i % 2 == 1;
      drawn.vertical_flip = i / 2 % 2 == 1;
      CAPTURE(i);
      for (const simd_level level : test::simd_levels()) {
        const fast_augmentation transform({.height = size.height, .width = size.width}, {},
                                          expected.options, 0, level);
        const auto made = values(transform, image.view, drawn);
        std::size_t wrong = 0;
        for (std::size_t y = 0; y < size.height; ++y) {
          for (std::size_t x = 0; x < size.width; ++x) {
            for (std::size_t c = 0; c < 3; ++c) {
              const std::size_t from_y = drawn.vertical_flip ? size.height - 1 - y : y;
              const std::size_t from_x = drawn.horizontal_flip ? size.width - 1 - x : x;
              const auto pixel = static_cast<float>(image.at(static_cast<std::int64_t>(from_y),
                                                             static_cast<std::int64_t>(from_x),
                                                             expected.reversed ? 2 - c : c));
              const float value = std::fma(pixel, static_cast<float>(expected.scale.at(c)),
                                           static_cast<float>(expected.offset.at(c)));
              wrong += made[(y * size.width + x) * 3 + c] != double{value} ? 1U : 0U;
            }
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("a row, moved: what stands beyond its edges") {
  const source_image row({10, 20, 30, 40}, {1, 4}, 1);
  const auto moved = [&](double shift, const augmentation& changes) {
    const fast_augmentation transform({.height = 1, .width = 4, .channels = 1}, changes);
    random_transform drawn;
    drawn.width_shift = shift;
    return values(transform, row.view, drawn);
  };
  using row_values = std::vector<double>;
  // What is shown moves to the left.
  CHECK(moved(1, filled(fill_mode::nearest)) == row_values{20, 30, 40, 40});
  CHECK(moved(-2, filled(fill_mode::nearest)) == row_values{10, 10, 10, 20});
  CHECK(moved(0.5, filled(fill_mode::nearest)) == row_values{15, 25, 35, 40});
  CHECK(moved(1, filled(fill_mode::constant, 7)) == row_values{20, 30, 40, 7});
  CHECK(moved(-2.25, filled(fill_mode::constant, 7)) == row_values{7, 7, 10, 17.5});
  // The outer pixels reach half a pixel far, on the right up to it.
  CHECK(moved(-0.5, filled(fill_mode::constant, 7)) == row_values{10, 15, 25, 35});
  CHECK(moved(0.5, filled(fill_mode::constant, 7)) == row_values{15, 25, 35, 7});
  CHECK(moved(-100000, filled(fill_mode::constant, 7.5)) == row_values{7.5, 7.5, 7.5, 7.5});
  CHECK(moved(2, filled(fill_mode::reflect)) == row_values{30, 40, 40, 30});
  CHECK(moved(-3, filled(fill_mode::reflect)) == row_values{30, 20, 10, 10});
  CHECK(moved(5, filled(fill_mode::reflect)) == row_values{30, 20, 10, 10});
  CHECK(moved(8, filled(fill_mode::reflect)) == row_values{10, 20, 30, 40});
  CHECK(moved(1, filled(fill_mode::wrap)) == row_values{20, 30, 40, 10});
  CHECK(moved(-2, filled(fill_mode::wrap)) == row_values{30, 40, 10, 20});
  CHECK(moved(6, filled(fill_mode::wrap)) == row_values{30, 40, 10, 20});
  CHECK(moved(0.25, filled(fill_mode::wrap)) == row_values{12.5, 22.5, 32.5, 40});

  const source_image column({10, 20, 30, 40}, {4, 1}, 1);
  const fast_augmentation transform({.height = 4, .width = 1, .channels = 1});
  random_transform drawn;
  drawn.height_shift = 1;
  CHECK(values(transform, column.view, drawn) == row_values{20, 30, 40, 40});
}

TEST_CASE("zoom below one makes things larger; a quarter turn is counter-clockwise") {
  const source_image image({0, 64, 128, 192, 4, 68, 132, 196, 8, 72, 136, 200, 12, 76, 140, 204},
                           {4, 4}, 1);
  const fast_augmentation transform({.height = 4, .width = 4, .channels = 1});
  random_transform zoomed;
  zoomed.width_zoom = 0.5;
  // From 0.75, 1.25, 1.75, 2.25.
  CHECK(values(transform, image.view, zoomed)[0] == 48);
  CHECK(values(transform, image.view, zoomed)[3] == 144);
  CHECK(values(transform, image.view, zoomed)[4] == 52);
  random_transform turned;
  turned.rotation = 90;
  // The right column becomes the upper row.
  const auto made = values(transform, image.view, turned);
  const std::vector<double> upper(made.begin(), made.begin() + 4);
  CHECK(upper == std::vector<double>{192, 196, 200, 204});
}

TEST_CASE("brightness and channel shift are clipped, each by itself") {
  const source_image image({0, 100, 200, 255}, {1, 4}, 1);
  const auto made = [&](std::optional<double> shift, std::optional<double> brightness) {
    const fast_augmentation transform({.height = 1, .width = 4, .channels = 1});
    random_transform drawn;
    drawn.channel_shift = shift;
    drawn.brightness = brightness;
    return values(transform, image.view, drawn);
  };
  using row = std::vector<double>;
  CHECK(made(100, {}) == row{100, 200, 255, 255});
  CHECK(made(-150, {}) == row{0, 0, 50, 105});
  CHECK(made({}, 1.5) == row{0, 150, 255, 255});
  CHECK(made({}, 0.5) == row{0, 50, 100, 127.5});
  CHECK(made({}, 0) == row{0, 0, 0, 0});
  // 255 is the brightest after the shift, and half of it after both.
  CHECK(made(100, 0.5) == row{50, 100, 127.5, 127.5});
  CHECK(made(-150, 4) == row{0, 0, 200, 255});

  // What the values become does not change what is clipped.
  normalisation standard;
  standard.rescale = -0.5;
  const fast_augmentation negative({.height = 1, .width = 4, .channels = 1}, {}, standard);
  random_transform drawn;
  drawn.channel_shift = 100;
  CHECK(values(negative, image.view, drawn) == row{-50, -100, -127.5, -127.5});

  // What is filled in is changed as the pixels are.
  const fast_augmentation constant({.height = 1, .width = 4, .channels = 1},
                                   filled(fill_mode::constant, 200));
  drawn.width_shift = 2;
  CHECK(values(constant, image.view, drawn) == row{255, 255, 255, 255});
  drawn.channel_shift = 30;
  drawn.brightness = 0.5;
  CHECK(values(constant, image.view, drawn) == row{115, 127.5, 115, 115});
}

TEST_CASE("a sample's mean and deviation") {
  std::mt19937 random(2);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in each run
  for (const std::size_t channels : {1U, 3U, 4U}) {
    const source_image image({19, 23}, channels);
    const random_transform drawn = any_transform(random);
    const sample_format format{.height = 13, .width = 11, .channels = channels};
    normalisation options;
    options.rescale = 1.0 / 16;
    const auto plain = values(fast_augmentation(format, {}, options), image.view, drawn);
    double sum = 0;
    for (const double value : plain) sum += value;
    const double mean = sum / static_cast<double>(plain.size());
    double squares = 0;
    for (const double value : plain) squares += (value - mean) * (value - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(plain.size()));
    CHECK(deviation > 1);

    const bool coloured = channels == 3;
    if (coloured) options.featurewise_mean = {{1, 2, 3}};
    if (coloured) options.featurewise_deviation = {{2, 4, 8}};
    for (const bool scales : {false, true}) {
      options.samplewise_centre = !scales;
      options.samplewise_scale = scales;
      for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
        for (const image_layout layout : {image_layout::nhwc, image_layout::nchw}) {
          sample_format other = format;
          other.type = type;
          other.layout = layout;
          const auto made = values(fast_augmentation(other, {}, options), image.view, drawn);
          double largest = 0;
          for (std::size_t i = 0; i < made.size(); ++i) {
            double expected = (plain[i] - mean) / (scales ? deviation + 1e-6 : 1.0);
            if (coloured) {
              const auto channel = static_cast<double>(i % 3);
              expected = (expected - channel - 1) / (std::exp2(channel + 1) + 1e-6);
            }
            largest =
                std::max(largest, std::abs(made[i] - expected) / std::max(1.0, std::abs(expected)));
          }
          CHECK(largest <= (type == dtype::f32   ? 1e-5
                            : type == dtype::f16 ? 0x1p-11 + 1e-5
                                                 : 0x1p-8 + 1e-5));
        }
      }
    }
  }
  // Of one colour: zeros, and not what rounding leaves divided by 1e-6.
  const source_image grey(std::vector<std::uint8_t>(35, 77), {5, 7}, 1);
  normalisation options;
  options.rescale = 1.0 / 255;
  options.samplewise_scale = true;
  const fast_augmentation transform({.height = 9, .width = 4, .channels = 1}, {}, options);
  CHECK(values(transform, grey.view) == std::vector<double>(36, 0.0));
}

#if defined(__FLT16_MANT_DIG__)
TEST_CASE("sixteen bits are the single precision values, rounded; layouts have the same values") {
  std::mt19937 random(3);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in each run
  for (const std::size_t channels : {1U, 3U, 4U}) {
    for (const image_size size : {image_size{1, 1}, {7, 3}, {8, 16}, {3, 37}}) {
      const source_image image({21, 18}, channels);
      const random_transform drawn = any_transform(random);
      normalisation options;
      options.preprocessing = preprocessing::tf;
      sample_format format{.height = size.height, .width = size.width, .channels = channels};
      const auto single = values(fast_augmentation(format, {}, options), image.view, drawn);
      for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
        for (const image_layout layout : {image_layout::nhwc, image_layout::nchw}) {
          format.type = type;
          format.layout = layout;
          auto expected = single;
          for (double& value : expected) {
            const auto given = static_cast<float>(value);
            const std::uint16_t bits =
                type == dtype::f16 ? test::reference_f16(given) : test::reference_bf16(given);
            if (type != dtype::f32) value = widened(type, bits);
          }
          CHECK(values(fast_augmentation(format, {}, options), image.view, drawn) == expected);
        }
      }
    }
  }
}
#endif

TEST_CASE("all levels of instructions give the same bits, of any size") {
  std::mt19937 random(4);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in each run
  const auto levels = test::simd_levels();
  for (int run = 0; run < 400; ++run) {
    const std::array<std::size_t, 3> counts{1, 3, 4};
    const std::array types{dtype::f32, dtype::f16, dtype::bf16};
    const std::size_t channels = counts.at(random() % 3);
    const source_image image(any_size(random), channels, random() % 9);
    const image_size target = any_size(random);
    const sample_format format{
        .height = target.height,
        .width = target.width,
        .channels = channels,
        .type = types.at(random() % 3),
        .layout = random() % 2 == 0 ? image_layout::nhwc : image_layout::nchw};
    normalisation options;
    if (random() % 2 == 0) options.preprocessing = preprocessing::tf;
    if (channels == 3 && random() % 2 == 0) options.preprocessing = preprocessing::caffe;
    options.samplewise_scale = random() % 4 == 0;
    random_transform drawn = any_transform(random);
    // So far that positions do not fit into the vector code's 32 bits.
    if (random() % 8 == 0) drawn.width_shift = 3e5 * (random() % 2 == 0 ? 1 : -1);
    if (random() % 8 == 0) drawn.height_shift = 1e6 * (random() % 2 == 0 ? 1 : -1);
    if (random() % 16 == 0) drawn.width_zoom = 1e6;
    const augmentation changes = filled(fill_modes.at(random() % 4), 12.3);
    CAPTURE(run);
    std::vector<std::vector<std::byte>> made;
    for (const simd_level level : levels) {
      made.push_back(
          apply(fast_augmentation(format, changes, options, 0, level), image.view, drawn));
      CHECK((made.back() == made.front()));
    }
  }
}

TEST_CASE("an image of the largest width is read, one that is wider is not") {
  const std::size_t most = 131072;
  const source_image image({1, most}, 1);
  const sample_format format{.height = 1, .width = most, .channels = 1};
  std::vector<double> pixels(image.bytes.begin(), image.bytes.end());
  for (const simd_level level : test::simd_levels()) {
    CHECK((values(fast_augmentation(format, {}, {}, 0, level), image.view) == pixels));
    random_transform flipped;
    flipped.horizontal_flip = true;
    const std::vector<double> reversed(pixels.rbegin(), pixels.rend());
    CHECK((values(fast_augmentation(format, {}, {}, 0, level), image.view, flipped) == reversed));
  }
  const source_image wider({1, most + 1}, 1);
  const source_image higher({most + 1, 1}, 1);
  const fast_augmentation transform({.height = 2, .width = 2, .channels = 1});
  CHECK(message_of<unsupported_error>([&] { (void)values(transform, wider.view); }) ==
        "the image has 1 x 131073 pixels, at most 131072 in a row or a column can be read");
  CHECK(message_of<unsupported_error>([&] { (void)values(transform, higher.view); }) ==
        "the image has 131073 x 1 pixels, at most 131072 in a row or a column can be read");
}

TEST_CASE("what is drawn depends on seed, epoch and index, and on no thread") {
  augmentation changes{.rotation_range = 20, .width_shift_range = 0.2, .zoom_range = {0.8, 1.2}};
  changes.horizontal_flip = true;
  changes.brightness_range = {0.5, 1.5};
  const sample_format format{.height = 12, .width = 9};
  const source_image image({30, 20}, 3);
  const auto drawn_by = [&](std::uint64_t seed, std::uint64_t epoch, std::uint64_t index) {
    const fast_augmentation transform(format, changes, {}, seed);
    return sample_of(format.bytes(), [&](scratch& memory, image_sample& sample) {
      transform(image.view, epoch, index, memory, sample);
    });
  };
  const auto first = drawn_by(5, 1, 2);
  CHECK((drawn_by(6, 1, 2) != first));
  CHECK((drawn_by(5, 2, 2) != first));
  CHECK((drawn_by(5, 1, 3) != first));
  CHECK((drawn_by(5, 2, 1) != first));

  // Shifts are parts of the target, not of the image.
  counter_random random(5, 1, 2);
  const random_transform drawn = draw_transform(changes, {12, 9}, random);
  CHECK(std::abs(drawn.width_shift) <= 0.2 * 9);
  CHECK((apply(fast_augmentation(format, changes), image.view, drawn) == first));

  const fast_augmentation shared(format, changes, {}, 5);
  constexpr std::size_t samples = 40;
  std::vector<std::vector<std::byte>> made(4 * samples);
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::size_t i = 0; i < samples; ++i) {
        const std::size_t index = thread % 2 == 0 ? i : samples - 1 - i;
        made[thread * samples + index] =
            sample_of(format.bytes(), [&](scratch& memory, image_sample& sample) {
              shared(image.view, 3, index, memory, sample);
            });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < made.size(); ++i) CHECK((made[i] == drawn_by(5, 3, i % samples)));
}

TEST_CASE("options, images and samples that do not fit are refused") {
  const auto refused = [](const sample_format& format, const augmentation& changes = {},
                          const normalisation& standard = {}) {
    return message_of<error>([&] { (void)fast_augmentation(format, changes, standard); });
  };
  CHECK(refused({.channels = 2}) == "images have 1, 3 or 4 channels, not 2");
  CHECK(refused({.type = dtype::f64}) == "a sample's values are F32, F16 or BF16, not F64");
  CHECK(refused({.height = 0}) == "a sample of 0 x 224 pixels cannot be made");
  CHECK(refused({.width = 1048577}) == "a sample of 224 x 1048577 pixels cannot be made");
  for (double augmentation::*const range :
       {&augmentation::rotation_range, &augmentation::width_shift_range,
        &augmentation::height_shift_range, &augmentation::shear_range,
        &augmentation::channel_shift_range}) {
    for (const double bad : {1e7, -1e7, std::numeric_limits<double>::quiet_NaN()}) {
      augmentation changes;
      changes.*range = bad;
      CHECK(refused({}, changes) == "a range of an augmentation is not within -1e6 and 1e6");
    }
  }
  for (const value_range bad : {value_range{1, 1e7}, value_range{-1e7, 1}}) {
    CHECK(refused({}, {.zoom_range = bad}) ==
          "a range of an augmentation is not within -1e6 and 1e6");
  }
  CHECK(refused({}, {.brightness_range = value_range{0, 1e7}}) ==
        "a range of an augmentation is not within -1e6 and 1e6");
  CHECK(refused({}, {.brightness_range = value_range{-0.5, 1}}) == "a brightness is not negative");
  CHECK(refused({}, {.brightness_range = value_range{1, -0.5}}) == "a brightness is not negative");
  CHECK(refused({}, {.fill_value = -1}) == "fill_value is 0 to 255");
  CHECK(refused({}, {.fill_value = 256}) == "fill_value is 0 to 255");
  CHECK(refused({.channels = 1}, {}, {.preprocessing = preprocessing::caffe}) ==
        "a normalisation of three channels does not fit images of 1");
  CHECK(refused({.channels = 4}, {}, {.preprocessing = preprocessing::torch}) ==
        "a normalisation of three channels does not fit images of 4");
  CHECK(refused({.channels = 1}, {}, {.featurewise_mean = {{1, 2, 3}}}) ==
        "a normalisation of three channels does not fit images of 1");
  CHECK(refused({.channels = 4}, {}, {.featurewise_deviation = {{1, 2, 3}}}) ==
        "a normalisation of three channels does not fit images of 4");
  const double infinite = std::numeric_limits<double>::infinity();
  CHECK(refused({}, {}, {.rescale = infinite}) ==
        "a number of a normalisation is beyond 1e30, or a deviation is negative");
  CHECK(refused({}, {}, {.featurewise_mean = {{1, 2, static_cast<float>(infinite)}}}) ==
        "a number of a normalisation is beyond 1e30, or a deviation is negative");
  CHECK(refused({}, {}, {.featurewise_deviation = {{1, -1, 3}}}) ==
        "a number of a normalisation is beyond 1e30, or a deviation is negative");

  const fast_augmentation transform({.height = 4, .width = 4});
  const source_image grey({4, 4}, 1);
  CHECK(message_of<error>([&] { (void)values(transform, grey.view); }) ==
        "the image has 1 channels, the sample has 3");
  CHECK(message_of<error>([&] {
          (void)values(transform, {nullptr, 0, 4, 3, 12});
        }) == "the image has no pixels");
  CHECK(message_of<error>([&] {
          (void)values(transform, {nullptr, 4, 0, 3, 0});
        }) == "the image has no pixels");
  const source_image image({4, 4}, 3);
  CHECK(message_of<error>([&] {
          (void)sample_of(191, [&](scratch& memory, image_sample& sample) {
            transform.apply(image.view, {}, memory, sample);
          });
        }) == "the sample has 191 bytes, not 192");
  std::vector<std::byte> pixels(192);
  std::uint64_t index = 0;
  std::vector<skipped_image> skipped;
  image_sample sample{pixels, {}, index, skipped};
  scratch small(64);
  CHECK_THROWS_AS(transform.apply(image.view, {}, small, sample), out_of_memory);
}
