// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <vggload/core/checked.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/decoded_rows.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/orientation.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload::detail {

/// Decodes one PBM, PGM or PPM, in text (P1 to P3) or binary (P4 to P6), into what Pillow gives. Format: netpbm's
/// manual pages pbm(5), pgm(5) and ppm(5).
class ppm_decoder {
 public:
  [[nodiscard]] static bool matches(image_bytes file) noexcept {
    return file.size() >= 3 && file.u8(0) == 'P' && file.u8(1) >= '1' && file.u8(1) <= '6' &&
           is_space(file.u8(2));
  }

  ppm_decoder(std::string_view path, std::span<const std::byte> file) noexcept
      : path_(path), file_(file) {}

  /// The pixels lie in `memory`.
  /// @throws format_error, out_of_memory
  image_view decode(const decode_options& options, scratch& memory) {
    const unsigned kind = file_.u8(1) - unsigned{'0'};
    const std::size_t width = text_number();
    const std::size_t height = text_number();
    const bool bitmap = kind == 1 || kind == 4;
    if (!bitmap) {
      largest_ = text_number();
      if (largest_ == 0 || largest_ > 65535) {
        fail_image(path_,
                   "the largest value is " + std::to_string(largest_) + " and must be 1 to 65535");
      }
    }
    check_image_size(path_, width, height, options);
    const bool grey = kind == 2 || kind == 5;
    // Pillow makes 16-bit grey of what has more than 256 values, and clips that at 255.
    full_scale_ = grey && largest_ > 255 ? 65535 : 255;
    const std::size_t channels = bitmap || grey ? 1 : 3;
    const decoded_rows rows({height, width}, channels_of(options.colour), memory);
    const decoded_rows samples({1, width}, channels, memory);
    if (kind >= 4) require_pixels(width, height, channels, bitmap);
    for (std::size_t y = 0; y < height; ++y) {
      const std::uint8_t* const row = read_row(kind, samples.row(0), width, channels);
      if (channels == 1) {
        write_row(options.colour, rows.row(y), width,
                  [row](std::size_t x) { return grey_pixel(row[x]); });
      } else {
        write_row(options.colour, rows.row(y), width, [row](std::size_t x) {
          const std::uint8_t* colour = row + x * 3;
          return pixel{colour[0], colour[1], colour[2]};
        });
      }
    }
    return rows.view();
  }

 private:
  [[nodiscard]] static constexpr bool is_space(std::uint8_t character) noexcept {
    return character == ' ' || (character >= '\t' && character <= '\r');
  }
  [[nodiscard]] static constexpr bool is_digit(std::uint8_t character) noexcept {
    return character >= '0' && character <= '9';
  }

  /// The next character outside comments, which go from # to the end of the line.
  [[nodiscard]] std::uint8_t next_character() {
    bool comment = false;
    while (true) {
      if (position_ == file_.size()) {
        fail_image(path_, "the file ends within the image, at byte " + std::to_string(position_));
      }
      const std::uint8_t character = file_.u8(position_++);
      if (character == '#') comment = true;
      if (!comment) return character;
      if (character == '\n' || character == '\r') comment = false;
    }
  }

  /// The next number in text; takes the one character behind it, if there is one.
  [[nodiscard]] std::size_t text_number() {
    std::uint8_t character = next_character();
    while (is_space(character)) character = next_character();
    const std::size_t start = position_ - 1;
    std::size_t value = 0;
    std::size_t digits = 0;
    while (is_digit(character)) {
      value = value * 10 + (character - std::size_t{'0'});
      if (++digits > 10) {
        fail_image(path_, "a number of more than 10 digits at byte " + std::to_string(start));
      }
      // The last number of an image in text may end with the file.
      if (position_ == file_.size()) return value;
      character = next_character();
    }
    if (digits == 0 || !is_space(character)) {
      fail_image(path_, "no number at byte " + std::to_string(start));
    }
    return value;
  }

  [[nodiscard]] std::uint8_t text_bit() {
    std::uint8_t character = next_character();
    while (is_space(character)) character = next_character();
    if (character != '0' && character != '1') {
      fail_image(path_, "neither 0 nor 1 at byte " + std::to_string(position_ - 1));
    }
    return character == '0' ? 255 : 0;
  }

  [[nodiscard]] std::uint8_t text_value() {
    const std::size_t start = position_;
    const std::size_t value = text_number();
    if (value > largest_) {
      fail_image(path_, "the value " + std::to_string(value) + " at byte " + std::to_string(start) +
                            " is larger than " + std::to_string(largest_));
    }
    return scaled(value);
  }

  /// There must be enough bytes, which `require_pixels` sees to.
  [[nodiscard]] std::uint8_t binary_value() noexcept {
    const std::size_t bytes = largest_ > 255 ? 2 : 1;
    position_ += bytes;
    return scaled(file_.big(position_ - bytes, bytes));
  }

  /// The samples of the next row: in `row`, or in the file where they are there as they are wanted.
  [[nodiscard]] const std::uint8_t* read_row(unsigned kind, std::uint8_t* row, std::size_t width,
                                             std::size_t channels) {
    if (kind >= 5 && largest_ == 255) {
      position_ += width * channels;
      return file_.data() + position_ - width * channels;
    }
    switch (kind) {
      case 1: std::generate_n(row, width, [this] { return text_bit(); }); break;
      case 2:
      case 3: std::generate_n(row, width * channels, [this] { return text_value(); }); break;
      case 4: read_bits(row, width); break;
      default: std::generate_n(row, width * channels, [this] { return binary_value(); }); break;
    }
    return row;
  }

  void read_bits(std::uint8_t* row, std::size_t width) noexcept {
    for (std::size_t x = 0; x < width; ++x) {
      const unsigned bit = unsigned{file_.u8(position_ + x / 8)} >> (7 - x % 8) & 1U;
      row[x] = bit == 0 ? 255 : 0;
    }
    position_ += (width + 7) / 8;
  }

  void require_pixels(std::size_t width, std::size_t height, std::size_t channels,
                      bool bitmap) const {
    // Nothing overflows: the image was allocated, and these are at most twice as many bytes.
    const std::uint64_t row_bytes =
        bitmap ? (width + 7) / 8 : width * channels * (largest_ > 255 ? 2 : 1);
    const auto bytes = checked_multiply(row_bytes, height);
    if (bytes && file_.has(position_, *bytes)) return;
    fail_image(path_, "the file ends within the image: " + std::to_string(width) + " x " +
                          std::to_string(height) + " pixels from byte " +
                          std::to_string(position_) + " on, and it has " +
                          std::to_string(file_.size()) + " bytes");
  }

  /// value / largest of the full scale, rounded to the nearest and a half to the even number, clipped at 255.
  [[nodiscard]] std::uint8_t scaled(std::size_t value) const noexcept {
    const std::uint64_t twice = 2 * std::uint64_t{value} * full_scale_ + largest_;
    std::uint64_t rounded = twice / (2 * largest_);
    if (twice % (2 * largest_) == 0 && rounded % 2 == 1) --rounded;
    return static_cast<std::uint8_t>(std::min<std::uint64_t>(rounded, 255));
  }

  std::string_view path_;
  image_bytes file_;
  std::size_t position_ = 2;
  std::uint64_t largest_ = 1;
  std::uint64_t full_scale_ = 255;
};

}  // namespace vggload::detail
