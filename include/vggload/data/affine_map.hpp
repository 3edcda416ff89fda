// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include <vggload/data/augmentation.hpp>
#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>

namespace vggload::detail {

/// Where the pixels of a target come from, in 2^-32 of a source pixel: the pixel in column c and row r comes from
/// x = x_start + c * x_by_column + r * x_by_row, y likewise. Whole numbers are pixel centres.
struct affine_map {
  static constexpr int fraction_bits = 32;

  std::int64_t x_start = 0;
  std::int64_t x_by_column = 0;
  std::int64_t x_by_row = 0;
  std::int64_t y_start = 0;
  std::int64_t y_by_column = 0;
  std::int64_t y_by_row = 0;

  /// Whether rows stay rows and columns columns.
  [[nodiscard]] bool is_axis_aligned() const noexcept { return x_by_row == 0 && y_by_column == 0; }
};

/// A number of source pixels in the map's units; one beyond the limit, which is far outside of any image, becomes
/// the limit.
[[nodiscard]] inline std::int64_t in_map_units(double pixels, double limit) noexcept {
  constexpr auto unit = static_cast<double>(std::int64_t{1} << affine_map::fraction_bits);
  const double units = exact::product(std::clamp(pixels, -limit, limit), unit);
  return static_cast<std::int64_t>(std::floor(exact::sum(units, 0.5)));
}

/// What `drawn` means for an image of `source` that becomes one of `target`: the image is resized to the target,
/// then changed there. With x to the right and y downwards, both from the centre of the target, a pixel of the
/// result at p comes from R (S Z p + t), where
///   Z = diag(width_zoom, height_zoom): below 1 things become larger;
///   S = [1 -sin(shear); 0 cos(shear)];
///   t = (width_shift, height_shift): what is shown moves to the left and up;
///   R = [cos(rotation) -sin(rotation); sin(rotation) cos(rotation)]: the picture turns counter-clockwise;
/// these are Keras' matrices and their order. What Keras exchanges there is not: height_shift is vertical, and the
/// centre is the centre of targets that are not square, too. Flips come last, so p is mirrored first.
[[nodiscard]] inline affine_map make_affine_map(image_size source, image_size target,
                                                const random_transform& drawn) noexcept {
  const auto product = [](double a, double b) { return exact::product(a, b); };
  const auto sum = [](double a, double b) { return exact::sum(a, b); };
  const auto quotient = [](double a, double b) { return exact::quotient(a, b); };
  const auto radians = [&](double degrees) {
    return quotient(product(degrees, std::numbers::pi), 180.0);
  };
  const double cosine = exact::opaque(std::cos(radians(drawn.rotation)));
  const double sine = exact::opaque(std::sin(radians(drawn.rotation)));
  const double shear_cosine = exact::opaque(std::cos(radians(drawn.shear)));
  const double shear_sine = exact::opaque(std::sin(radians(drawn.shear)));

  // S Z, its lower left is 0.
  const double sheared_xx = drawn.width_zoom;
  const double sheared_xy = product(-shear_sine, drawn.height_zoom);
  const double sheared_yy = product(shear_cosine, drawn.height_zoom);

  const double mirror_x = drawn.horizontal_flip ? -1.0 : 1.0;
  const double mirror_y = drawn.vertical_flip ? -1.0 : 1.0;
  const auto pixels = [](std::size_t count) { return static_cast<double>(count); };
  // The centre of the target comes from the centre of the source, a target pixel is so many source pixels.
  const double pitch_x = quotient(pixels(source.width), pixels(target.width));
  const double pitch_y = quotient(pixels(source.height), pixels(target.height));
  const double xx = product(product(product(cosine, sheared_xx), mirror_x), pitch_x);
  const double xy = product(
      product(sum(product(cosine, sheared_xy), -product(sine, sheared_yy)), mirror_y), pitch_x);
  const double yx = product(product(product(sine, sheared_xx), mirror_x), pitch_y);
  const double yy = product(
      product(sum(product(sine, sheared_xy), product(cosine, sheared_yy)), mirror_y), pitch_y);
  const double shift_x =
      product(sum(product(cosine, drawn.width_shift), -product(sine, drawn.height_shift)), pitch_x);
  const double shift_y =
      product(sum(product(sine, drawn.width_shift), product(cosine, drawn.height_shift)), pitch_y);

  const double left = quotient(1.0 - pixels(target.width), 2.0);
  const double top = quotient(1.0 - pixels(target.height), 2.0);
  const auto start = [&](double by_column, double by_row, double shift, std::size_t size) {
    const double from_centre = sum(product(by_column, left), product(by_row, top));
    return sum(sum(from_centre, shift), quotient(pixels(size) - 1.0, 2.0));
  };
  // So that the three terms fit into 64 bits, in 2^-32 of a pixel, and a few columns more than there are, too.
  constexpr double limit = 0x1p26;
  const double by_column = limit / pixels(target.width);
  const double by_row = limit / pixels(target.height);
  return {in_map_units(start(xx, xy, shift_x, source.width), limit),
          in_map_units(xx, by_column),
          in_map_units(xy, by_row),
          in_map_units(start(yx, yy, shift_y, source.height), limit),
          in_map_units(yx, by_column),
          in_map_units(yy, by_row)};
}

}  // namespace vggload::detail
