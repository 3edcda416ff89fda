// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <vggload/data/augmentation.hpp>
#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload::detail {

/// Where each pixel of the result is read: at row `row[0] * r + row[1] * c + row[2]` and column `column[0] * r +
/// column[1] * c + column[2]`, for row r and column c of the result.
struct pull_back_map {
  std::array<double, 3> row;
  std::array<double, 3> column;
};

/// A place between pixels along one axis: of pixel `first` and the one behind it, weighted. `first` is from -1 to the
/// last.
struct linear_taps {
  std::int32_t first;
  double first_weight;
  double second_weight;
};

/// SciPy's map_coordinate (ndimage/src/ni_interpolation.c, SciPy 1.17): where in an axis of `count` pixels a place
/// outside of it is read. Not for fill_mode::constant.
[[nodiscard]] inline double map_outside(double place, double count, fill_mode fill) noexcept {
  using exact::difference;
  using exact::product;
  using exact::quotient;
  using exact::sum;
  const double last = count - 1;
  if (fill == fill_mode::nearest) return std::clamp(place, 0.0, last);
  if (count <= 1) return 0;
  if (fill == fill_mode::wrap) {
    // As SciPy has it, not as its name says: the last pixel is the first again.
    if (place < 0) {
      const double periods = std::trunc(quotient(-place, last)) + 1;
      return sum(place, product(last, periods));
    }
    return difference(place, product(last, std::trunc(quotient(place, last))));
  }
  const double period = 2 * count;
  if (place < 0) {
    if (place < -period) {
      place = sum(product(period, std::trunc(quotient(-place, period))), place);
    }
    if (place < -count) return sum(place, period);
    return difference(place > -1e-15 ? 1e-15 : -place, 1);
  }
  place = difference(place, product(period, std::trunc(quotient(place, period))));
  return place >= count ? difference(difference(period, place), 1) : place;
}

/// An image whose pixels take four bytes, with a border of one pixel. An index outside of the image, by at most one,
/// is in the border, which holds what SciPy reads there.
class bordered_image {
 public:
  /// A copy, in `memory`.
  bordered_image(const image_view& image, fill_mode fill, scratch& memory)
      : height_(image.height), width_(image.width), stride_(image.width + 2) {
    pixels_ = memory.allocate((height_ + 2) * stride_ * 4).data();
    for (std::size_t y = 0; y < height_; ++y) {
      std::byte* const to = pixels_ + ((y + 1) * stride_ + 1) * 4;
      copy_row(image, y, to);
      std::memcpy(to - 4, to + beyond(width_, fill) * 4, 4);
      std::memcpy(to + width_ * 4, to + (width_ - 1 - beyond(width_, fill)) * 4, 4);
    }
    const std::size_t row_bytes = stride_ * 4;
    std::memcpy(pixels_, pixels_ + (1 + beyond(height_, fill)) * row_bytes, row_bytes);
    std::memcpy(pixels_ + (height_ + 1) * row_bytes,
                pixels_ + (height_ - beyond(height_, fill)) * row_bytes, row_bytes);
  }

  /// The pixel at row -1 and column -1.
  [[nodiscard]] const std::byte* pixels() const noexcept { return pixels_; }
  [[nodiscard]] std::size_t height() const noexcept { return height_; }
  [[nodiscard]] std::size_t width() const noexcept { return width_; }
  /// Pixels from one row to the next.
  [[nodiscard]] std::size_t stride() const noexcept { return stride_; }

 private:
  /// Which pixel stands behind the edge, counted from the edge: the one there again where SciPy reflects,
  /// else its neighbour.
  static std::size_t beyond(std::size_t count, fill_mode fill) noexcept {
    return fill == fill_mode::reflect || count == 1 ? 0 : 1;
  }

  static void copy_row(const image_view& image, std::size_t y, std::byte* to) noexcept {
    const std::uint8_t* from = image.row(y);
    if (image.channels == 4) {
      std::memcpy(to, from, image.width * 4);
    } else if (image.channels == 3) {
      for (std::size_t x = 0; x < image.width; ++x) {
        const std::uint32_t pixel = from[3 * x] |
                                    static_cast<std::uint32_t>(from[3 * x + 1]) << 8U |
                                    static_cast<std::uint32_t>(from[3 * x + 2]) << 16U;
        std::memcpy(to + 4 * x, &pixel, 4);
      }
    } else {
      for (std::size_t x = 0; x < image.width; ++x) to[4 * x] = std::byte{from[x]};
    }
  }

  std::size_t height_;
  std::size_t width_;
  std::size_t stride_;
  std::byte* pixels_;
};

/// What all rows of a result have in common.
struct affine_sampling {
  const bordered_image& image;
  pull_back_map map;
  fill_mode fill;
  float fill_value;
};

/// Where the row `r` of a result begins to be read: SciPy adds to the offset the row's share, then the column's.
struct affine_row {
  affine_row(const pull_back_map& map, std::size_t r) noexcept
      : row(exact::sum(map.row[2], exact::product(static_cast<double>(r), map.row[0]))),
        column(exact::sum(map.column[2], exact::product(static_cast<double>(r), map.column[0]))) {}

  double row;
  double column;
};

/// Writes the pixels [begin, end) of row `r` of the result, Channels values each, from `to` on.
template <std::size_t Channels>
void sample_row_scalar(const affine_sampling& sampling, std::size_t r, std::size_t begin,
                       std::size_t end, float* to) noexcept {
  using exact::difference;
  using exact::product;
  using exact::sum;
  const bordered_image& image = sampling.image;
  const affine_row starts(sampling.map, r);
  const auto height = static_cast<double>(image.height());
  const auto width = static_cast<double>(image.width());
  const auto outside = [](double place, double count) { return place < 0 || place > count - 1; };
  const auto taps = [&](double place, double count) {
    if (outside(place, count)) place = map_outside(place, count, sampling.fill);
    const double whole = std::floor(place);
    const double first_weight = difference(1.0, difference(place, whole));
    return linear_taps{static_cast<std::int32_t>(std::clamp(whole, -1.0, count - 1)), first_weight,
                       difference(1.0, first_weight)};
  };
  for (std::size_t c = begin; c < end; ++c, to += Channels) {
    const double row = sum(starts.row, product(static_cast<double>(c), sampling.map.row[1]));
    const double column =
        sum(starts.column, product(static_cast<double>(c), sampling.map.column[1]));
    if (sampling.fill == fill_mode::constant && (outside(row, height) || outside(column, width))) {
      std::fill_n(to, Channels, sampling.fill_value);
      continue;
    }
    const linear_taps across = taps(column, width);
    const linear_taps down = taps(row, height);
    const std::byte* const upper =
        image.pixels() + (static_cast<std::size_t>(down.first + 1) * image.stride() +
                          static_cast<std::size_t>(across.first + 1)) *
                             4;
    const std::byte* const lower = upper + image.stride() * 4;
    for (std::size_t channel = 0; channel < Channels; ++channel) {
      const auto weighted = [&](std::byte pixel, double row_weight, double column_weight) {
        return product(product(static_cast<double>(std::to_integer<unsigned>(pixel)), row_weight),
                       column_weight);
      };
      double value = weighted(upper[channel], down.first_weight, across.first_weight);
      value = sum(value, weighted(upper[4 + channel], down.first_weight, across.second_weight));
      value = sum(value, weighted(lower[channel], down.second_weight, across.first_weight));
      value = sum(value, weighted(lower[4 + channel], down.second_weight, across.second_weight));
      to[channel] = exact::opaque(static_cast<float>(value));
    }
  }
}

}  // namespace vggload::detail
