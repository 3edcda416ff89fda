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
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/resample.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload {

/// How images are prepared for a network that was trained by torchvision; the defaults are those of
/// `VGG16_Weights.IMAGENET1K_V1.transforms()`.
struct evaluation_options {
  std::size_t resize_size = 256;  // pixels of the shorter side, before the crop
  resampling_filter filter = resampling_filter::bilinear;
  // Of each channel, of values between 0 and 1.
  std::array<float, 3> mean{0.485F, 0.456F, 0.406F};
  std::array<float, 3> deviation{0.229F, 0.224F, 0.225F};
};

/// torchvision's transform for evaluation (`torchvision.transforms._presets.ImageClassification`) of a Pillow image:
/// the shorter side resized with antialiasing, the centre cropped to the format's size (with black around
/// what is smaller), divided by 255, minus the mean, divided by the standard deviation. FP32 is torchvision's bit for
/// bit, in either layout; 16-bit values are its FP32 rounded. Only pixels that are in the crop are computed.
///
/// Any number of threads may use one.
class evaluation_transform {
 public:
  /// `level`: at most what the processor offers; all give the same bits.
  /// @throws error where the format does not have three channels, or a number makes no sense
  explicit evaluation_transform(const sample_format& format = {.layout = image_layout::nchw},
                                const evaluation_options& options = {},
                                simd_level level = available_simd_level())
      : format_(format), options_(options), level_(level) {
    if (format.channels != 3) {
      throw error("torchvision's transform is for three channels, not " +
                  std::to_string(format.channels));
    }
    if (format.type != dtype::f32 && format.type != dtype::f16 && format.type != dtype::bf16) {
      throw error("a sample's values are F32, F16 or BF16, not " +
                  std::string(name_of(format.type)));
    }
    if (format.height == 0 || format.width == 0 || options.resize_size == 0) {
      throw error("a sample without pixels cannot be made");
    }
    if (options.filter == resampling_filter::nearest) {
      throw error("torchvision's transform has a filter, not the nearest pixels");
    }
    for (std::size_t i = 0; i < 3; ++i) {
      // Compared with a number, so that -ffast-math does not take it for granted.
      constexpr float most = 1e30F;
      if (!(std::abs(options.mean.at(i)) <= most) || !(options.deviation.at(i) > 0) ||
          !(options.deviation.at(i) <= most)) {
        throw error("a mean or a deviation is beyond 1e30, or a deviation is not positive");
      }
    }
    make_table();
  }

  [[nodiscard]] sample_format format() const noexcept { return format_; }

  /// Makes the sample of one image; epoch and index change nothing.
  /// @throws error where the image does not have three channels, or no pixels; unsupported_error where it becomes
  /// larger than can be; out_of_memory
  void operator()(const image_view& decoded, std::uint64_t /*epoch*/, std::uint64_t /*index*/,
                  scratch& memory, image_sample& into) const {
    if (decoded.channels != 3) {
      throw error("the image has " + std::to_string(decoded.channels) +
                  " channels, the sample has 3");
    }
    if (into.pixels.size() != format_.bytes()) {
      throw error("the sample has " + std::to_string(into.pixels.size()) + " bytes, not " +
                  std::to_string(format_.bytes()));
    }
    if (decoded.height == 0 || decoded.width == 0) throw error("the image has no pixels");
    const image_size resized = resized_size(decoded.size());
    detail::check_resize(decoded, resized);
    const span down = crop(resized.height, format_.height);
    const span along = crop(resized.width, format_.width);
    const image_view pixels =
        detail::resample(decoded, resized, {down.first, along.first, down.count, along.count},
                         options_.filter, memory, level_);
    if (format_.type == dtype::f32) {
      write<std::uint32_t>(pixels, down.before, along.before, into.pixels);
    } else {
      write<std::uint16_t>(pixels, down.before, along.before, into.pixels);
    }
  }

 private:
  /// What a crop takes of a row or column of pixels, and how many black ones it puts before them.
  struct span {
    std::size_t first;
    std::size_t count;
    std::size_t before;
  };

  /// The shorter side as wanted; the longer one is truncated (`_compute_resized_output_size`).
  [[nodiscard]] image_size resized_size(image_size size) const noexcept {
    const std::size_t shorter = std::min(size.height, size.width);
    const std::size_t longer = std::max(size.height, size.width);
    const double product = detail::exact::product(static_cast<double>(options_.resize_size),
                                                  static_cast<double>(longer));
    const auto scaled =
        static_cast<std::size_t>(detail::exact::quotient(product, static_cast<double>(shorter)));
    return size.width <= size.height ? image_size{scaled, options_.resize_size}
                                     : image_size{options_.resize_size, scaled};
  }

  /// `center_crop`: a half is rounded to the even number; of the black ones that are missing, the fewer come
  /// first.
  static span crop(std::size_t pixels, std::size_t wanted) noexcept {
    if (pixels < wanted) return {0, pixels, (wanted - pixels) / 2};
    const std::size_t surplus = pixels - wanted;
    return {surplus / 2 + (surplus % 4 == 3 ? 1 : 0), wanted, 0};
  }

  /// The bits of each byte's value in each channel, in the format's type.
  void make_table() {
    const conversion to_format = find_conversion(dtype::f32, format_.type, level_);
    for (std::size_t channel = 0; channel < 3; ++channel) {
      for (std::size_t byte = 0; byte < 256; ++byte) {
        const float unit = detail::exact::quotient(static_cast<float>(byte), 255.0F);
        const float centred = detail::exact::difference(unit, options_.mean.at(channel));
        const float value = detail::exact::quotient(centred, options_.deviation.at(channel));
        to_format(reinterpret_cast<const std::byte*>(&value),
                  reinterpret_cast<std::byte*>(&table_.at(channel).at(byte)), 1);
      }
    }
  }

  /// Looks the pixels up. `Bits`: as many as a value has.
  template <class Bits>
  void write(const image_view& pixels, std::size_t top, std::size_t left,
             std::span<std::byte> into) const noexcept {
    const bool planar = format_.layout == image_layout::nchw;
    const std::size_t channel_stride = planar ? format_.height * format_.width : 1;
    const std::size_t pixel_stride = planar ? 1 : 3;
    const bool covers = pixels.height == format_.height && pixels.width == format_.width;
    if (!covers) fill<Bits>(channel_stride, pixel_stride, into);
    for (std::size_t y = 0; y < pixels.height; ++y) {
      const std::uint8_t* const row = pixels.row(y);
      const std::size_t start = ((top + y) * format_.width + left) * pixel_stride;
      for (std::size_t channel = 0; channel < 3; ++channel) {
        std::byte* const to = into.data() + (start + channel * channel_stride) * sizeof(Bits);
        const auto& values = table_[channel];
        for (std::size_t x = 0; x < pixels.width; ++x) {
          std::memcpy(to + x * pixel_stride * sizeof(Bits), &values[row[3 * x + channel]],
                      sizeof(Bits));
        }
      }
    }
  }

  /// Makes all pixels black.
  template <class Bits>
  void fill(std::size_t channel_stride, std::size_t pixel_stride,
            std::span<std::byte> into) const noexcept {
    for (std::size_t channel = 0; channel < 3; ++channel) {
      for (std::size_t i = 0; i < format_.height * format_.width; ++i) {
        std::memcpy(into.data() + (i * pixel_stride + channel * channel_stride) * sizeof(Bits),
                    &table_[channel][0], sizeof(Bits));
      }
    }
  }

  sample_format format_;
  evaluation_options options_;
  simd_level level_;
  std::array<std::array<std::uint32_t, 256>, 3> table_{};
};

}  // namespace vggload
