// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What Keras 3.15's ImageDataGenerator makes of an image, bit for bit: the arithmetic of Keras, NumPy 2.4 (with the
// OpenBLAS of its wheels, on a processor that has fused multiply-add), SciPy 1.17 and Pillow, in their order and
// precision. Their sources are named where a rule is from one.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <vggload/convert/convert.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/affine_sampling.hpp>
#include <vggload/data/affine_scalar.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/numpy_sum.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload {

namespace detail {

/// The processor rounds to nearest and keeps subnormals, for as long as it lives: a program linked with
/// -ffast-math does not.
struct usual_rounding {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  usual_rounding() noexcept : mode(x86::floating_point_mode::nearest) {}
  x86::floating_point_mode mode;
#elif defined(__aarch64__)
  neon::floating_point_mode mode;
#else
  usual_rounding() noexcept {}
#endif
};

}  // namespace detail

namespace detail::keras {

using matrix = std::array<std::array<double, 3>, 3>;

/// np.dot of two 3 x 3 matrices. OpenBLAS adds to its sums with fused multiply-add, from the first product on.
[[nodiscard]] inline matrix dot(const matrix& a, const matrix& b) noexcept {
  matrix result{};
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 3; ++j) {
      double total = exact::product(a[i][0], b[0][j]);
      total = exact::fused(a[i][1], b[1][j], total);
      result[i][j] = exact::fused(a[i][2], b[2][j], total);
    }
  }
  return result;
}

[[nodiscard]] inline double radians(double degrees) noexcept {
  return exact::product(degrees, 3.14159265358979323846 / 180.0);
}

/// The map of `apply_affine_transform`, or nothing where it leaves the image alone.
[[nodiscard]] inline std::optional<pull_back_map> make_affine_map(const random_transform& drawn,
                                                                  image_size size) noexcept {
  std::optional<matrix> composed;
  const auto append = [&](const matrix& next) {
    composed = composed ? dot(*composed, next) : next;
  };
  if (drawn.rotation != 0) {
    const double angle = exact::opaque(radians(drawn.rotation));
    const double sine = std::sin(angle);
    const double cosine = std::cos(angle);
    append({{{cosine, -sine, 0}, {sine, cosine, 0}, {0, 0, 1}}});
  }
  if (drawn.height_shift != 0 || drawn.width_shift != 0) {
    // They may be draw_transform's products, which the compiler must round before it multiplies again.
    append({{{1, 0, exact::opaque(drawn.height_shift)},
             {0, 1, exact::opaque(drawn.width_shift)},
             {0, 0, 1}}});
  }
  if (drawn.shear != 0) {
    const double angle = exact::opaque(radians(drawn.shear));
    append({{{1, -std::sin(angle), 0}, {0, std::cos(angle), 0}, {0, 0, 1}}});
  }
  if (drawn.height_zoom != 1 || drawn.width_zoom != 1) {
    append({{{drawn.height_zoom, 0, 0}, {0, drawn.width_zoom, 0}, {0, 0, 1}}});
  }
  if (!composed) return std::nullopt;
  const double x = static_cast<double>(size.height) / 2 - 0.5;
  const double y = static_cast<double>(size.width) / 2 - 0.5;
  const matrix centred = dot(dot({{{1, 0, x}, {0, 1, y}, {0, 0, 1}}}, *composed),
                             {{{1, 0, -x}, {0, 1, -y}, {0, 0, 1}}});
  // Keras swaps the axes here, and not for the centre: of an image that is not square it is a wrong one.
  return pull_back_map{{centred[1][1], centred[1][0], centred[1][2]},
                       {centred[0][1], centred[0][0], centred[0][2]}};
}

/// A value for each channel, repeated until it is whole vectors of four, for one, three and four channels.
using channel_pattern = std::array<float, 12>;

/// Replaces each value by `operation(value, constant of its channel)`, which takes floats and quads.
template <class Operation>
void for_each_value(std::span<float> values, const channel_pattern& constants,
                    Operation operation) noexcept {
  constexpr std::size_t step = std::tuple_size_v<channel_pattern>;
  const std::array quads{exact::load_quad(constants.data()), exact::load_quad(constants.data() + 4),
                         exact::load_quad(constants.data() + 8)};
  std::size_t i = 0;
  for (; i + step <= values.size(); i += step) {
    for (std::size_t part = 0; part < quads.size(); ++part) {
      float* const place = values.data() + i + 4 * part;
      exact::store_quad(place, operation(exact::load_quad(place), quads[part]));
    }
  }
  for (std::size_t part = 0; i < values.size(); ++i, ++part) {
    values[i] = operation(values[i], constants[part]);
  }
}

inline constexpr auto add = [](auto a, auto b) { return exact::sum(a, b); };
inline constexpr auto subtract = [](auto a, auto b) { return exact::difference(a, b); };
inline constexpr auto multiply = [](auto a, auto b) { return exact::product(a, b); };
inline constexpr auto divide = [](auto a, auto b) { return exact::quotient(a, b); };

[[nodiscard]] inline channel_pattern every_channel(float value) noexcept {
  channel_pattern pattern;
  pattern.fill(value);
  return pattern;
}

/// `count`: of the image's channels; further ones get `rest`.
[[nodiscard]] inline channel_pattern each_channel(std::span<const float> values, std::size_t count,
                                                  float rest) noexcept {
  channel_pattern pattern;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const std::size_t channel = i % count;
    pattern[i] = channel < values.size() ? values[channel] : rest;
  }
  return pattern;
}

/// How the axes of Keras' array lie in memory, which is the order in which NumPy adds its values up.
struct array_order {
  bool planar = false;  // channels outermost
  bool rows_reversed = false;
  bool columns_reversed = false;
  bool channels_reversed = false;
};

struct value_extent {
  float low;
  float high;
};

[[nodiscard]] inline value_extent extent_of(std::span<const float> values) noexcept {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {*low, *high};
}

/// `apply_channel_shift`: no value leaves the extent that they all had.
inline void shift_channels(std::span<float> values, double intensity) noexcept {
  const value_extent extent = extent_of(values);
  const auto shift = static_cast<float>(intensity);
  for (float& value : values) {
    value = std::clamp(exact::sum(value, shift), extent.low, extent.high);
  }
}

/// Pillow's `ImageEnhance.Brightness`, a blend with black, of bytes; alpha stays as it is.
inline void scale_bytes(std::span<float> values, std::size_t channels, double factor) noexcept {
  const auto scale = static_cast<float>(factor);
  const std::size_t alpha = channels == 4 ? 3 : channels;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto byte = static_cast<float>(static_cast<std::uint8_t>(values[i]));
    const float scaled =
        i % channels == alpha ? byte : std::clamp(exact::product(scale, byte), 0.0F, 255.0F);
    values[i] = static_cast<float>(static_cast<std::uint8_t>(scaled));
  }
}

/// `apply_brightness_shift` with scale=False: through bytes, and where a value is none, through the whole extent of the
/// values and back.
inline void change_brightness(std::span<float> values, std::size_t channels,
                              double factor) noexcept {
  const value_extent extent = extent_of(values);
  const bool rescale = extent.low < 0 || extent.high > 255;
  if (rescale) {
    const float highest = exact::difference(extent.high, extent.low);
    for_each_value(values, every_channel(extent.low), subtract);
    if (highest != 0) for_each_value(values, every_channel(highest), divide);
    for_each_value(values, every_channel(255), multiply);
  }
  scale_bytes(values, channels, factor);
  if (rescale) {
    for_each_value(values, every_channel(255), divide);
    for_each_value(values, every_channel(exact::difference(extent.high, extent.low)), multiply);
    for_each_value(values, every_channel(extent.low), add);
  }
}

/// A copy of `flip_axis`'s view.
inline void reverse_rows(std::span<float> values, std::size_t row_values) noexcept {
  float* top = values.data();
  float* bottom = top + values.size() - row_values;
  for (; top < bottom; top += row_values, bottom -= row_values) {
    std::swap_ranges(top, top + row_values, bottom);
  }
}

template <std::size_t Channels>
void reverse_pixels(float* row, std::size_t width) noexcept {
  float* left = row;
  float* right = row + (width - 1) * Channels;
  for (; left < right; left += Channels, right -= Channels) {
    std::swap_ranges(left, left + Channels, right);
  }
}

inline void reverse_columns(std::span<float> values, std::size_t width,
                            std::size_t channels) noexcept {
  const std::size_t row_values = width * channels;
  for (std::size_t i = 0; i < values.size(); i += row_values) {
    float* const row = values.data() + i;
    if (channels == 1) {
      reverse_pixels<1>(row, width);
    } else if (channels == 3) {
      reverse_pixels<3>(row, width);
    } else {
      reverse_pixels<4>(row, width);
    }
  }
}

inline void reverse_channels(std::span<float> values, std::size_t channels) noexcept {
  for (std::size_t i = 0; i < values.size(); i += channels) {
    std::reverse(values.data() + i, values.data() + i + channels);
  }
}

}  // namespace detail::keras

/// What Keras' `ImageDataGenerator` does with one image: `apply_transform` and `standardize`. The options are checked
/// once; any number of threads may use it at once.
class keras_augmentation {
 public:
  /// For images of that height, width and channels (1, 3 or 4). `level`: see convert.hpp; all give the same bits.
  /// @throws error where the options are none that Keras takes: a number that is infinite or not one, a format
  /// other than f32 and nhwc, a preprocessing or a mean that needs other channels
  keras_augmentation(const sample_format& format, const augmentation& options,
                     const normalisation& values, simd_level level = available_simd_level())
      : format_(format), options_(options), values_(values), level_(level) {
    check();
  }

  [[nodiscard]] const sample_format& format() const noexcept { return format_; }
  [[nodiscard]] const augmentation& options() const noexcept { return options_; }

  /// The changes of the next image.
  template <class Random>
  [[nodiscard]] random_transform draw(Random& random) const {
    return draw_transform(options_, {format_.height, format_.width}, random);
  }

  /// Writes what becomes of `image`, which has the format's size and channels: `into.size()` is format().values(), the
  /// order of the values [height, width, channels].
  /// @throws error where the sizes differ or a number is not one, and what `memory` throws
  void operator()(const image_view& image, const random_transform& drawn, scratch& memory,
                  std::span<float> into) const {
    if (image.height != format_.height || image.width != format_.width ||
        image.channels != format_.channels || into.size() != format_.values()) {
      throw error("an image of " + describe(image.height, image.width, image.channels) + " and " +
                  std::to_string(into.size()) + " values, where " +
                  describe(format_.height, format_.width, format_.channels) + " are wanted");
    }
    for (const double value :
         {drawn.rotation, drawn.height_shift, drawn.width_shift, drawn.shear, drawn.height_zoom,
          drawn.width_zoom, drawn.channel_shift.value_or(0), drawn.brightness.value_or(0)}) {
      check_number(value);
    }
    const detail::usual_rounding rounding;
    detail::keras::array_order order = transform(image, drawn, memory, into);
    standardize(order, memory, into);
  }

 private:
  static std::string describe(std::size_t height, std::size_t width, std::size_t channels) {
    return std::to_string(height) + " x " + std::to_string(width) + " pixels of " +
           std::to_string(channels) + " channels";
  }

  /// More than any image needs, and a place between pixels stays a number whose integer part is exact.
  static void check_number(double value) {
    constexpr double most = 1e9;
    constexpr std::uint64_t magnitude = ~std::uint64_t{0} >> 1U;
    // Compared as integers: with -ffast-math there are no NaNs that a comparison could find.
    if ((std::bit_cast<std::uint64_t>(value) & magnitude) > std::bit_cast<std::uint64_t>(most)) {
      throw error("a number of the augmentation is " + std::to_string(value) +
                  ", and none beyond 1e9 has a meaning");
    }
  }

  void check() const {
    if (format_.type != dtype::f32 || format_.layout != image_layout::nhwc) {
      throw error("Keras' images are float32 with the channels last, and no other format is made");
    }
    const std::size_t channels = format_.channels;
    if (channels != 1 && channels != 3 && channels != 4) {
      throw error("images have 1, 3 or 4 channels, not " + std::to_string(channels));
    }
    // Offsets between pixels take 31 bits where they are gathered.
    constexpr std::size_t most = 32766;
    if (format_.height == 0 || format_.width == 0 || format_.height > most ||
        format_.width > most) {
      throw error("images are of 1 to 32766 pixels each way, not of " +
                  describe(format_.height, format_.width, channels));
    }
    const auto brightness = options_.brightness_range.value_or(value_range{});
    for (const double value :
         {options_.rotation_range, options_.width_shift_range, options_.height_shift_range,
          options_.shear_range, options_.zoom_range.low, options_.zoom_range.high,
          options_.channel_shift_range, options_.fill_value, brightness.low, brightness.high,
          values_.rescale}) {
      check_number(value);
    }
    const bool coloured = values_.preprocessing == preprocessing::caffe ||
                          values_.preprocessing == preprocessing::torch;
    if (coloured && channels == 1) {
      throw error("the preprocessing of ImageNet's weights is of colours, and the images are grey");
    }
    if ((values_.featurewise_mean || values_.featurewise_deviation) && channels == 4) {
      throw error("a mean of three channels does not fit images of four");
    }
  }

  /// Keras' `apply_transform`.
  [[nodiscard]] detail::keras::array_order transform(const image_view& image,
                                                     const random_transform& drawn, scratch& memory,
                                                     std::span<float> into) const {
    detail::keras::array_order order;
    if (const auto map = detail::keras::make_affine_map(drawn, {format_.height, format_.width})) {
      const detail::bordered_image source(image, options_.fill, memory);
      detail::sample_affine({source, *map, options_.fill, static_cast<float>(options_.fill_value)},
                            format_.channels, level_, into);
      order.planar = true;
    } else {
      for (std::size_t y = 0; y < image.height; ++y) {
        const std::uint8_t* const row = image.row(y);
        std::copy_n(row, image.width * image.channels,
                    into.data() + y * image.width * image.channels);
      }
    }
    if (drawn.channel_shift) {
      detail::keras::shift_channels(into, *drawn.channel_shift);
      order.planar = true;
    }
    if (drawn.horizontal_flip) {
      detail::keras::reverse_columns(into, format_.width, format_.channels);
      order.columns_reversed = true;
    }
    if (drawn.vertical_flip) {
      detail::keras::reverse_rows(into, format_.width * format_.channels);
      order.rows_reversed = true;
    }
    if (drawn.brightness) {
      detail::keras::change_brightness(into, format_.channels, *drawn.brightness);
      order = {};
    }
    return order;
  }

  /// Keras' `standardize`.
  void standardize(detail::keras::array_order order, scratch& memory,
                   std::span<float> values) const {
    using namespace detail::keras;
    const std::size_t channels = format_.channels;
    const auto of_channels = [channels](std::span<const float> constants, float rest) {
      return each_channel(constants, channels, rest);
    };
    // keras.applications.imagenet_utils, _preprocess_numpy_input.
    switch (values_.preprocessing) {
      case preprocessing::none: break;
      case preprocessing::caffe: {
        constexpr std::array mean{103.939F, 116.779F, 123.68F};
        reverse_channels(values, channels);
        order.channels_reversed = true;
        for_each_value(values, of_channels(mean, 0), subtract);
        break;
      }
      case preprocessing::torch: {
        constexpr std::array mean{0.485F, 0.456F, 0.406F};
        constexpr std::array deviation{0.229F, 0.224F, 0.225F};
        for_each_value(values, every_channel(255), divide);
        for_each_value(values, of_channels(mean, 0), subtract);
        for_each_value(values, of_channels(deviation, 1), divide);
        break;
      }
      case preprocessing::tf:
        for_each_value(values, every_channel(127.5F), divide);
        for_each_value(values, every_channel(1), subtract);
        break;
    }
    if (values_.rescale != 0) {
      for_each_value(values, every_channel(static_cast<float>(values_.rescale)), multiply);
    }
    if (values_.samplewise_centre || values_.samplewise_scale) {
      for_each_value(values, every_channel(mean_of(values, order, memory)), subtract);
    }
    if (values_.samplewise_scale) {
      const float deviation = deviation_of(values, order, memory);
      for_each_value(values, every_channel(detail::exact::sum(deviation, 1e-6F)), divide);
    }
    if (values_.featurewise_mean) {
      for_each_value(values, of_channels(*values_.featurewise_mean, 0), subtract);
    }
    if (values_.featurewise_deviation) {
      std::array<float, 3> divisors = *values_.featurewise_deviation;
      for (float& divisor : divisors) divisor = detail::exact::sum(divisor, 1e-6F);
      for_each_value(values, of_channels(divisors, 1), divide);
    }
  }

  /// The values in the order of Keras' array in memory, as if no axis were reversed there.
  [[nodiscard]] std::span<float> in_order(std::span<const float> values, bool planar,
                                          scratch& memory) const {
    const std::span<std::byte> bytes = memory.allocate(values.size_bytes());
    const std::span<float> ordered(reinterpret_cast<float*>(bytes.data()), values.size());
    const std::size_t channels = planar ? format_.channels : 1;
    const std::size_t pixels = values.size() / channels;
    for (std::size_t channel = 0; channel < channels; ++channel) {
      for (std::size_t i = 0; i < pixels; ++i) {
        ordered[channel * pixels + i] = values[i * channels + channel];
      }
    }
    return ordered;
  }

  /// NumPy divides a float32 sum by a count in double precision.
  [[nodiscard]] static float divided(float sum, std::size_t count) noexcept {
    return detail::exact::opaque(static_cast<float>(
        detail::exact::quotient(static_cast<double>(sum), static_cast<double>(count))));
  }

  /// `np.mean`.
  [[nodiscard]] float mean_of(std::span<const float> values, detail::keras::array_order order,
                              scratch& memory) const {
    const detail::array_axis rows{format_.height, order.rows_reversed};
    const detail::array_axis columns{format_.width, order.columns_reversed};
    const detail::array_axis channels{format_.channels, order.channels_reversed};
    const std::array axes =
        order.planar ? std::array{channels, rows, columns} : std::array{rows, columns, channels};
    return divided(detail::numpy_sum(in_order(values, order.planar, memory), axes), values.size());
  }

  /// `np.std`. Its differences from the mean are a new array, in which no axis is reversed.
  [[nodiscard]] float deviation_of(std::span<const float> values, detail::keras::array_order order,
                                   scratch& memory) const {
    using namespace detail::keras;
    const std::span<float> squares = in_order(values, order.planar, memory);
    for_each_value(squares, every_channel(mean_of(values, order, memory)), subtract);
    for (float& value : squares) value = detail::exact::product(value, value);
    return detail::exact::square_root(divided(detail::pairwise_sum(squares), squares.size()));
  }

  sample_format format_;
  augmentation options_;
  normalisation values_;
  simd_level level_;
};

}  // namespace vggload
