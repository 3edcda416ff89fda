// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/affine_map.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/bilinear.hpp>
#include <vggload/data/bilinear_x86.hpp>
#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/random.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/data/value_map.hpp>

namespace vggload {

namespace detail {

/// The steps of bilinear.hpp at one level of instructions, for a number of channels.
struct bilinear_steps {
  decltype(&detail::find_taps) find_taps;
  decltype(&detail::interpolate<1>) interpolate;
};

[[nodiscard]] inline bilinear_steps choose_bilinear_steps(std::size_t channels,
                                                          simd_level level) noexcept {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (level >= simd_level::avx2) {
    return {&bilinear_avx2::find_taps, channels == 1   ? &bilinear_avx2::interpolate<1>
                                       : channels == 3 ? &bilinear_avx2::interpolate<3>
                                                       : &bilinear_avx2::interpolate<4>};
  }
#endif
  static_cast<void>(level);
  return {&find_taps, channels == 1   ? &interpolate<1>
                      : channels == 3 ? &interpolate<3>
                                      : &interpolate<4>};
}

}  // namespace detail

/// Makes a decoded image a sample in one pass: resized to the format's size, rotated, shifted, sheared, zoomed and
/// flipped by one affine map (affine_map.hpp says what is what) with bilinear interpolation; brightness and
/// channel shift clipped to 0 to 255; normalised, converted and laid out.
///
/// The magnitudes of what is drawn are Keras' and the geometry is what the names say; pixels are not Keras' bit for
/// bit (keras_augmentation's are). With nothing drawn and an image of the target's size, flips included, values are
/// the pixels times a scale plus an offset, rounded once. What is drawn for an image depends on the seed, the epoch
/// and the index, and on no thread or processor. All levels of instructions give the same bits; where a mean of
/// the sample is asked for, a compiler's flags may change the last ones.
///
/// Bilinear interpolation looks at four pixels: an image that is more than twice the target's size loses detail
/// to aliasing. Decoding it smaller (`decode_options::at_least`) is faster and better; it changes the pixels.
///
/// Holds options only; any number of threads may use one.
class fast_augmentation {
 public:
  /// `level`: at most what the processor offers.
  /// @throws error where an option makes no sense
  explicit fast_augmentation(const sample_format& format, const augmentation& changes = {},
                             const normalisation& standard = {}, std::uint64_t seed = 0,
                             simd_level level = available_simd_level())
      : format_(format),
        changes_(changes),
        seed_(seed),
        centres_sample_(standard.samplewise_centre || standard.samplewise_scale),
        scales_sample_(standard.samplewise_scale),
        steps_(detail::choose_bilinear_steps(format.channels, level)) {
    check_format();
    check_changes();
    values_ = detail::make_value_map(standard, format.channels);
    to_format_ = find_conversion(dtype::f32, format.type, level);
  }

  [[nodiscard]] sample_format format() const noexcept { return format_; }

  /// Makes the sample of one image. `memory`: some rows of the sample as FP32, all of them where a mean of the
  /// sample is asked for in 16 bits.
  /// @throws error where the image has another number of channels than the format, or no pixels;
  /// unsupported_error where it has more than 131072 in a row or a column; out_of_memory
  void operator()(const image_view& decoded, std::uint64_t epoch, std::uint64_t index,
                  scratch& memory, image_sample& into) const {
    counter_random random(seed_, epoch, index);
    apply(decoded, draw_transform(changes_, {format_.height, format_.width}, random), memory, into);
  }

  /// The same with changes that are given.
  void apply(const image_view& decoded, const random_transform& drawn, scratch& memory,
             image_sample& into) const {
    check(decoded, into);
    const std::size_t value_bytes = format_.values() * sizeof(float);
    const bool in_place = format_.type == dtype::f32;
    std::byte* const values = centres_sample_ && !in_place ? memory.allocate(value_bytes).data()
                              : in_place                   ? into.pixels.data()
                                                           : nullptr;
    sample_rows(decoded, drawn, memory, values, into.pixels.data());
    if (centres_sample_) standardise(values, into.pixels.data());
  }

 private:
  // What the vector code may read from the beginning of a row's last pixel on.
  static constexpr std::size_t read_ahead = 8;

  void check_format() const {
    const auto& f = format_;
    if (f.channels != 1 && f.channels != 3 && f.channels != 4) {
      throw error("images have 1, 3 or 4 channels, not " + std::to_string(f.channels));
    }
    if (f.type != dtype::f32 && f.type != dtype::f16 && f.type != dtype::bf16) {
      throw error("a sample's values are F32, F16 or BF16, not " + std::string(name_of(f.type)));
    }
    constexpr std::size_t most = std::size_t{1} << 20U;
    if (f.height == 0 || f.width == 0 || f.height > most || f.width > most) {
      throw error("a sample of " + size_text({f.height, f.width}) + " pixels cannot be made");
    }
  }

  void check_changes() const {
    const auto& c = changes_;
    // Written so that a NaN fails, and far from what would overflow.
    const auto sensible = [](double value) { return value >= -1e6 && value <= 1e6; };
    for (const double value :
         {c.rotation_range, c.width_shift_range, c.height_shift_range, c.shear_range,
          c.zoom_range.low, c.zoom_range.high, c.channel_shift_range,
          c.brightness_range.value_or(value_range{}).low,
          c.brightness_range.value_or(value_range{}).high}) {
      if (!sensible(value)) throw error("a range of an augmentation is not within -1e6 and 1e6");
    }
    if (c.brightness_range && std::min(c.brightness_range->low, c.brightness_range->high) < 0) {
      throw error("a brightness is not negative");
    }
    if (!(c.fill_value >= 0 && c.fill_value <= 255)) throw error("fill_value is 0 to 255");
  }

  static std::string size_text(image_size size) {
    std::string text = std::to_string(size.height);
    text += " x ";
    return text += std::to_string(size.width);
  }

  void check(const image_view& decoded, const image_sample& into) const {
    if (decoded.channels != format_.channels) {
      throw error("the image has " + std::to_string(decoded.channels) +
                  " channels, the sample has " + std::to_string(format_.channels));
    }
    if (decoded.height == 0 || decoded.width == 0) throw error("the image has no pixels");
    if (std::max(decoded.height, decoded.width) > detail::max_source_pixels) {
      throw unsupported_error("the image has " + size_text(decoded.size()) +
                              " pixels, at most 131072 in a row or a column can be read");
    }
    if (into.pixels.size() != format_.bytes()) {
      throw error("the sample has " + std::to_string(into.pixels.size()) + " bytes, not " +
                  std::to_string(format_.bytes()));
    }
  }

  template <class T>
  static T* allocate(scratch& memory, std::size_t count) {
    return reinterpret_cast<T*>(memory.allocate(count * sizeof(T)).data());
  }

  /// The rows as `interpolate` wants them. Rows from whose last pixel the vector code would read beyond the
  /// image are copied.
  static const std::uint8_t* const* list_rows(const image_view& decoded, scratch& memory) {
    const std::size_t row_pixels = decoded.width * decoded.channels;
    const std::size_t readable = (decoded.width - 1) * decoded.channels + read_ahead;
    const std::size_t total = (decoded.height - 1) * decoded.row_bytes + row_pixels;
    auto* const rows = allocate<const std::uint8_t*>(memory, decoded.height + 1);
    for (std::size_t y = 0; y < decoded.height; ++y) {
      rows[y] = decoded.row(y);
      if (total - y * decoded.row_bytes >= readable) continue;
      auto* const copy = allocate<std::uint8_t>(memory, readable);
      std::memcpy(copy, decoded.row(y), row_pixels);
      std::memset(copy + row_pixels, 0, readable - row_pixels);
      rows[y] = copy;
    }
    rows[decoded.height] = rows[decoded.height - 1];
    return rows;
  }

  /// What becomes of bytes: brightness and channel shift, clipped, then the normalisation.
  [[nodiscard]] detail::channel_map map_channels(const random_transform& drawn) const noexcept {
    const detail::linear pixel = detail::linear{}
                                     .then(1, drawn.channel_shift.value_or(0.0))
                                     .then(drawn.brightness.value_or(1.0), 0);
    // Both changes clip; a pixel that the first one made 255 is the brightest after the second.
    const double brightest =
        std::min(255.0, detail::exact::product(255.0, drawn.brightness.value_or(1.0)));
    detail::channel_map map;
    map.from = values_.from;
    for (std::size_t i = 0; i < format_.channels; ++i) {
      const detail::linear last = composed(i);
      const detail::linear all = pixel.then(last.scale, last.offset);
      // Exact: the weights are 2^weight_bits in all.
      constexpr float weight = 1.0F / detail::whole_weight;
      map.scale.at(i) = static_cast<float>(all.scale) * weight;
      map.offset.at(i) = static_cast<float>(all.offset);
      const auto value = [&](double pixel_value) {
        return std::fma(static_cast<float>(pixel_value), static_cast<float>(last.scale),
                        static_cast<float>(last.offset));
      };
      map.low.at(i) = std::min(value(0), value(brightest));
      map.high.at(i) = std::max(value(0), value(brightest));
    }
    return map;
  }

  /// The linear part of the normalisation that is applied when a pixel is made.
  [[nodiscard]] detail::linear composed(std::size_t channel) const noexcept {
    const detail::linear& before = values_.before.at(channel);
    const detail::linear& after = values_.after.at(channel);
    return centres_sample_ ? before : before.then(after.scale, after.offset);
  }

  /// Writes all rows: to `values` as FP32 in the format's layout where it is given, else converted to `pixels`.
  void sample_rows(const image_view& decoded, const random_transform& drawn, scratch& memory,
                   std::byte* values, std::byte* pixels) const {
    const detail::affine_map map =
        detail::make_affine_map(decoded.size(), {format_.height, format_.width}, drawn);
    const detail::channel_map channels = map_channels(drawn);
    const std::uint8_t* const* const rows = list_rows(decoded, memory);
    const detail::tap_source source{static_cast<std::int64_t>(decoded.width),
                                    static_cast<std::int64_t>(decoded.height),
                                    static_cast<std::int32_t>(decoded.channels), changes_.fill};
    const std::size_t blocks =
        (format_.width + detail::pixel_block - 1) / detail::pixel_block * detail::pixel_block;
    const detail::row_taps taps{
        allocate<std::int32_t>(memory, blocks), allocate<std::int32_t>(memory, blocks),
        allocate<std::uint32_t>(memory, blocks), allocate<std::uint32_t>(memory, blocks)};
    const bool planar = format_.layout == image_layout::nchw;
    const std::size_t row_values = format_.width * format_.channels;
    // One value more than the blocks: a pixel of three channels is stored as one of four.
    auto* const row = allocate<float>(memory, blocks * format_.channels + 1);
    const detail::row_target target{reinterpret_cast<std::byte*>(row),
                                    (planar ? blocks : 1) * sizeof(float),
                                    (planar ? 1 : format_.channels) * sizeof(float)};
    for (std::size_t y = 0; y < format_.height; ++y) {
      const auto line = static_cast<std::int64_t>(y);
      const std::int64_t start_x = map.x_start + line * map.x_by_row;
      const std::int64_t start_y = map.y_start + line * map.y_by_row;
      steps_.find_taps(map, start_x, start_y, source, format_.width, taps);
      steps_.interpolate(rows, taps, channels, format_.width, target);
      if (changes_.fill == fill_mode::constant) {
        fill_outside(map, start_x, start_y, source, channels, target);
      }
      // The planes of a channel are the format's, or the row itself is.
      const std::size_t planes = planar ? format_.channels : 1;
      const std::size_t run = row_values / planes;
      for (std::size_t plane = 0; plane < planes; ++plane) {
        const std::byte* const from = target.values + plane * target.channel_stride;
        const std::size_t first = (plane * format_.height + y) * run;
        if (values != nullptr) {
          std::memcpy(values + first * sizeof(float), from, run * sizeof(float));
        } else {
          to_format_(from, pixels + first * bits_of(format_.type) / 8, run);
        }
      }
    }
  }

  /// Overwrites the pixels of a row that come from beyond the image's edges.
  void fill_outside(const detail::affine_map& map, std::int64_t x, std::int64_t y,
                    const detail::tap_source& source, const detail::channel_map& channels,
                    const detail::row_target& target) const noexcept {
    std::array<float, 4> filling{};
    for (std::size_t i = 0; i < format_.channels; ++i) {
      const auto sum = static_cast<std::int32_t>(changes_.fill_value * detail::whole_weight);
      filling.at(i) = detail::channel_value(sum, channels, i);
    }
    for (std::size_t i = 0; i < format_.width; ++i) {
      if (detail::is_outside(detail::rounded_position(x), source.width) ||
          detail::is_outside(detail::rounded_position(y), source.height)) {
        for (std::size_t channel = 0; channel < format_.channels; ++channel) {
          std::memcpy(target.values + i * target.pixel_stride + channel * target.channel_stride,
                      &filling.at(channel), sizeof(float));
        }
      }
      x += map.x_by_column;
      y += map.y_by_column;
    }
  }

  /// Minus the mean of all values, divided by their standard deviation, then what follows of the normalisation.
  void standardise(std::byte* values, std::byte* pixels) const {
    const std::size_t count = format_.values();
    const auto at = [&](std::size_t i) {
      float value = 0;
      std::memcpy(&value, values + i * sizeof(float), sizeof(value));
      return value;
    };
    // From the first value on: the sums of an image of one colour are zero exactly. Several of each, since an
    // addition waits for the one before it.
    constexpr std::size_t lanes = 8;
    const float first = at(0);
    std::array<double, lanes> sums{};
    std::array<double, lanes> squares{};
    const auto add = [&](std::size_t i, std::size_t lane) {
      const double difference = double{at(i)} - double{first};
      sums[lane] += difference;
      squares[lane] += difference * difference;
    };
    std::size_t done = 0;
    for (; done + lanes <= count; done += lanes) {
      for (std::size_t lane = 0; lane < lanes; ++lane) add(done + lane, lane);
    }
    for (; done < count; ++done) add(done, 0);
    double sum = 0;
    double square = 0;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      sum += sums[lane];
      square += squares[lane];
    }
    const auto number = static_cast<double>(count);
    const double mean = sum / number;
    const double variance = std::max(0.0, square / number - mean * mean);
    const double deviation = scales_sample_ ? std::sqrt(variance) + 1e-6 : 1.0;
    const auto centre = static_cast<float>(double{first} + mean);

    const bool planar = format_.layout == image_layout::nchw;
    const std::size_t plane = format_.height * format_.width;
    const std::size_t run = planar ? plane : 1;
    std::array<float, 4> scale{};
    std::array<float, 4> offset{};
    for (std::size_t i = 0; i < format_.channels; ++i) {
      const detail::linear& after = values_.after.at(i);
      scale.at(i) = static_cast<float>(after.scale / deviation);
      offset.at(i) = static_cast<float>(after.offset);
    }
    for (std::size_t i = 0; i < count;) {
      const std::size_t channel = i / run % format_.channels;
      for (std::size_t end = i + run; i < end; ++i) {
        const float value = (at(i) - centre) * scale[channel] + offset[channel];
        std::memcpy(values + i * sizeof(float), &value, sizeof(value));
      }
    }
    if (values != pixels) to_format_(values, pixels, count);
  }

  sample_format format_;
  augmentation changes_;
  std::uint64_t seed_;
  bool centres_sample_;
  bool scales_sample_;
  detail::bilinear_steps steps_;
  detail::value_map values_;
  conversion to_format_ = nullptr;
};

}  // namespace vggload
