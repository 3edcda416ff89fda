// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numbers>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include <vggload/convert/convert.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/nearest_resize.hpp>
#include <vggload/data/resample_passes.hpp>
#include <vggload/data/resample_x86.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload {

/// Pillow's filters (`Image.Resampling`), from the fastest to the sharpest. All but `nearest` look at as many pixels
/// as a pixel of the result covers: they do not alias.
enum class resampling_filter { nearest, box, bilinear, hamming, bicubic, lanczos };

namespace detail {

/// Half of a filter's width, in pixels of the larger grid.
[[nodiscard]] constexpr double support_of(resampling_filter filter) noexcept {
  switch (filter) {
    case resampling_filter::box: return 0.5;
    case resampling_filter::bicubic: return 2;
    case resampling_filter::lanczos: return 3;
    default: return 1;
  }
}

/// A filter's weight at a distance from its centre, computed step by step as Pillow's compiled code does
/// (src/libImaging/Resample.c).
[[nodiscard]] inline double filter_weight(resampling_filter filter, double x) noexcept {
  const auto sinc = [](double distance) {
    if (distance == 0) return 1.0;
    const double angle = exact::product(distance, std::numbers::pi);
    return exact::quotient(exact::opaque(std::sin(angle)), angle);
  };
  const double distance = x < 0 ? -x : x;
  switch (filter) {
    case resampling_filter::box: return x > -0.5 && x <= 0.5 ? 1 : 0;
    case resampling_filter::hamming: {
      if (distance >= 1) return 0;
      // The window's numbers are single precision there.
      const double cosine = exact::opaque(std::cos(exact::product(distance, std::numbers::pi)));
      const double window = exact::opaque(double{0.54F} + exact::opaque(double{0.46F} * cosine));
      return distance == 0 ? 1 : exact::opaque(sinc(distance) * window);
    }
    case resampling_filter::bicubic: {
      // Keys' cubic convolution with a = -0.5.
      if (distance < 1) {
        const double inner = exact::opaque(exact::opaque(1.5 * distance) - 2.5);
        return exact::opaque(exact::opaque(exact::opaque(inner * distance) * distance) + 1);
      }
      if (distance < 2) {
        const double inner =
            exact::opaque(exact::opaque(exact::opaque(distance - 5) * distance) + 8);
        return exact::opaque(exact::opaque(exact::opaque(inner * distance) - 4) * -0.5);
      }
      return 0;
    }
    case resampling_filter::lanczos:
      return x >= -3 && x < 3 ? exact::opaque(sinc(x) * sinc(exact::quotient(x, 3))) : 0;
    default: return distance < 1 ? exact::opaque(1 - distance) : 0;
  }
}

/// The weights of the pixels of a row (or a column) of `from` pixels in those of a row of `to`, of which the `count`
/// from `begin` on are wanted.
[[nodiscard]] inline resampling_weights make_weights(resampling_filter filter, std::size_t from,
                                                     std::size_t to, std::size_t begin,
                                                     std::size_t count, scratch& memory) {
  const auto pixels = static_cast<double>(from);
  const double scale = exact::quotient(pixels, static_cast<double>(to));
  const double filter_scale = std::max(scale, 1.0);
  const double support = exact::opaque(support_of(filter) * filter_scale);
  const double inverse = exact::quotient(1.0, filter_scale);
  const std::size_t most = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
  if (most > std::numeric_limits<std::size_t>::max() / sizeof(std::int32_t) / count) {
    throw unsupported_error("too many pixels to resize");
  }
  const auto numbers = [&](std::size_t n) {
    return reinterpret_cast<std::int32_t*>(memory.allocate(n * sizeof(std::int32_t)).data());
  };
  const resampling_weights weights{numbers(count), numbers(count), numbers(most * count), most};
  auto* const raw = reinterpret_cast<double*>(memory.allocate(most * sizeof(double)).data());
  for (std::size_t i = 0; i < count; ++i) {
    const double centre = exact::opaque((static_cast<double>(begin + i) + 0.5) * scale);
    const double low = exact::opaque(exact::opaque(centre - support) + 0.5);
    const double high = exact::opaque(exact::opaque(centre + support) + 0.5);
    const auto first = static_cast<std::int32_t>(std::max(low, 0.0));
    const auto taps = static_cast<std::int32_t>(std::min(high, pixels)) - first;
    double sum = 0;
    for (std::int32_t tap = 0; tap < taps; ++tap) {
      const double position =
          exact::opaque(exact::opaque(static_cast<double>(first + tap) - centre) + 0.5);
      raw[tap] = filter_weight(filter, exact::opaque(position * inverse));
      sum = exact::sum(sum, raw[tap]);
    }
    std::int32_t* const rounded = weights.values + i * most;
    for (std::int32_t tap = 0; tap < taps; ++tap) {
      const double weight = sum != 0 ? exact::quotient(raw[tap], sum) : raw[tap];
      const double scaled = exact::opaque(weight * (1 << resampling_bits));
      rounded[tap] =
          static_cast<std::int32_t>(exact::opaque(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
    weights.first[i] = first;
    weights.count[i] = taps;
  }
  return weights;
}

/// The first pixel that has a weight in one of `count`, and how many there are from it on; lets `first` count from it.
inline std::pair<std::size_t, std::size_t> trim(const resampling_weights& weights,
                                                std::size_t count) noexcept {
  const std::int32_t begin = weights.first[0];
  const std::int32_t end = weights.first[count - 1] + weights.count[count - 1];
  for (std::size_t i = 0; i < count; ++i) weights.first[i] -= begin;
  return {static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)};
}

/// Part of an image.
struct image_region {
  std::size_t top;
  std::size_t left;
  std::size_t height;
  std::size_t width;
};

[[nodiscard]] inline resampling_passes choose_resampling_passes(simd_level level) noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (level >= simd_level::avx2) {
    return {&resample_avx2::resample_row, &resample_avx2::resample_column};
  }
#endif
  static_cast<void>(level);
  return {&resample_row, &resample_column};
}

/// New pixels in `memory`, with `row_padding` bytes behind the last row.
struct new_image {
  image_view view;
  std::uint8_t* pixels;

  new_image(std::size_t height, std::size_t width, std::size_t channels, scratch& memory)
      : pixels(reinterpret_cast<std::uint8_t*>(
            memory.allocate(height * width * channels + row_padding).data())) {
    view = {pixels, height, width, channels, width * channels};
  }
  [[nodiscard]] std::uint8_t* row(std::size_t y) const noexcept {
    return pixels + y * view.row_bytes;
  }
};

/// Makes each row of the result from some rows.
[[nodiscard]] inline image_view resample_down(const image_view& image,
                                              const resampling_weights& weights, std::size_t height,
                                              const resampling_passes& passes, scratch& memory) {
  const new_image result(height, image.width, image.channels, memory);
  for (std::size_t y = 0; y < height; ++y) {
    passes.column(image.row(static_cast<std::size_t>(weights.first[y])), image.row_bytes,
                  weights.values + y * weights.most, static_cast<std::size_t>(weights.count[y]),
                  result.view.row_bytes, result.row(y));
  }
  return result.view;
}

/// Makes each pixel of a row from some pixels of the row.
[[nodiscard]] inline image_view resample_along(const image_view& image,
                                               const resampling_weights& weights, std::size_t width,
                                               const resampling_passes& passes, scratch& memory) {
  const new_image result(image.height, width, image.channels, memory);
  const std::size_t last = image.height - 1;
  for (std::size_t y = 0; y < last; ++y) {
    passes.row(image.row(y), image.channels, weights, width, result.row(y));
  }
  // Nothing may be read behind the last one.
  const new_image copy(1, image.width, image.channels, memory);
  std::memcpy(copy.pixels, image.row(last), copy.view.row_bytes);
  std::memset(copy.pixels + copy.view.row_bytes, 0, row_padding);
  passes.row(copy.pixels, image.channels, weights, width, result.row(last));
  return result.view;
}

/// The `region` of what `image` is when resized to `size`, in `memory` or, where no pixel changes, where it is. Rounded
/// to bytes between both passes, as Pillow does.
[[nodiscard]] inline image_view resample(image_view image, image_size size,
                                         const image_region& region, resampling_filter filter,
                                         scratch& memory, simd_level level) {
  const resampling_passes passes = choose_resampling_passes(level);
  const bool changes_height = size.height != image.height;
  const bool changes_width = size.width != image.width;
  // Pillow 13 makes the height first where that loses more than twice as many pixels as the width does; found by
  // experiment, the tests have sizes on both sides.
  const bool down_first =
      size.height < image.height && image.height + 2 * size.width > size.height + 2 * image.width;

  // The part of the source that counts.
  resampling_weights down{};
  resampling_weights along{};
  image_region part = region;
  if (changes_height) {
    down = make_weights(filter, image.height, size.height, region.top, region.height, memory);
    std::tie(part.top, part.height) = trim(down, region.height);
  }
  if (changes_width) {
    along = make_weights(filter, image.width, size.width, region.left, region.width, memory);
    std::tie(part.left, part.width) = trim(along, region.width);
  }
  image.pixels = image.row(part.top) + part.left * image.channels;
  image.height = part.height;
  image.width = part.width;

  if (changes_height && down_first) {
    image = resample_down(image, down, region.height, passes, memory);
  }
  if (changes_width) image = resample_along(image, along, region.width, passes, memory);
  if (changes_height && !down_first) {
    image = resample_down(image, down, region.height, passes, memory);
  }
  return image;
}

/// Red, green and blue times alpha (Pillow's mode RGBa).
[[nodiscard]] inline image_view premultiplied(const image_view& image, scratch& memory) {
  const new_image result(image.height, image.width, image.channels, memory);
  for (std::size_t y = 0; y < image.height; ++y) {
    const std::uint8_t* const from = image.row(y);
    std::uint8_t* const to = result.row(y);
    for (std::size_t x = 0; x < 4 * image.width; x += 4) {
      const unsigned alpha = from[x + 3];
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const unsigned product = from[x + channel] * alpha + 128;
        to[x + channel] = static_cast<std::uint8_t>(((product >> 8U) + product) >> 8U);
      }
      to[x + 3] = from[x + 3];
    }
  }
  return result.view;
}

/// The opposite.
[[nodiscard]] inline image_view divided_by_alpha(const image_view& image, scratch& memory) {
  const new_image result(image.height, image.width, image.channels, memory);
  for (std::size_t y = 0; y < image.height; ++y) {
    const std::uint8_t* const from = image.row(y);
    std::uint8_t* const to = result.row(y);
    for (std::size_t x = 0; x < 4 * image.width; x += 4) {
      const unsigned alpha = from[x + 3];
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const unsigned value = from[x + channel];
        to[x + channel] =
            static_cast<std::uint8_t>(alpha == 0 ? value : std::min(255U, 255 * value / alpha));
      }
      to[x + 3] = from[x + 3];
    }
  }
  return result.view;
}

/// @throws error, unsupported_error for sizes that cannot be
inline void check_resize(const image_view& image, image_size size) {
  if (image.channels != 1 && image.channels != 3 && image.channels != 4) {
    throw error("an image of " + std::to_string(image.channels) + " channels cannot be resized");
  }
  if (image.height == 0 || image.width == 0 || size.height == 0 || size.width == 0) {
    throw error("an image without pixels cannot be resized, nor an image to none");
  }
  // Then products of two and of a few constants fit into 64 bits.
  constexpr std::size_t most = std::size_t{1} << 24U;
  if (std::max({image.height, image.width, size.height, size.width}) > most) {
    throw unsupported_error("images of more than 2^24 pixels in a row or a column are not resized");
  }
}

}  // namespace detail

/// `image` in another size, bit for bit Pillow's `Image.resize` (without `box` and `reducing_gap`). Four channels are red, green, blue and alpha, and transparent colours do not bleed, as there. The
/// pixels lie in `memory`, or are those of `image` where it has the size already. All levels give the same
/// pixels.
/// @throws error where either has no pixels; unsupported_error beyond 2^24 pixels in a row;
/// out_of_memory
[[nodiscard]] inline image_view resize(const image_view& image, image_size size,
                                       resampling_filter filter, scratch& memory,
                                       simd_level level = available_simd_level()) {
  detail::check_resize(image, size);
  if (filter == resampling_filter::nearest) return nearest_resize(image, size, memory);
  if (image.size() == size) return image;
  const detail::image_region whole{0, 0, size.height, size.width};
  if (image.channels != 4) {
    return detail::resample(image, size, whole, filter, memory, level);
  }
  return detail::divided_by_alpha(
      detail::resample(detail::premultiplied(image, memory), size, whole, filter, memory, level),
      memory);
}

}  // namespace vggload
