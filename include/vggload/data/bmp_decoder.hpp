// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
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

/// Decodes one BMP: 1, 4 or 8 bits with a palette, plain or RLE; 16, 24 or 32 bits, with masks or without; of
/// Windows or OS/2. Format: Microsoft's "Bitmap Storage" (BITMAPINFOHEADER, "Bitmap Compression").
class bmp_decoder {
 public:
  bmp_decoder(std::string_view path, std::span<const std::byte> file) noexcept
      : path_(path), file_(file) {}

  /// The pixels lie in `memory`.
  /// @throws format_error, out_of_memory
  image_view decode(const decode_options& options, scratch& memory) {
    read_header();
    check_image_size(path_, width_, height_, options);
    if (bits_ <= 8) {
      read_palette();
    } else {
      read_masks();
    }
    const decoded_rows rows({height_, width_}, channels_of(options.colour), memory);
    if (compression_ == rle_8 || compression_ == rle_4) {
      const decoded_rows indices({height_, width_}, 1, memory);
      expand(indices);
      for (std::size_t y = 0; y < height_; ++y) {
        write_indices(options.colour, indices.row(y), rows.row(y));
      }
      return rows.view();
    }
    const std::uint64_t row_bits = std::uint64_t{width_} * bits_;
    const std::uint64_t row_bytes = (row_bits + 31) / 32 * 4;
    // The last row may end without its padding.
    if (!file_.has(pixels_at_, row_bytes * (height_ - 1) + (row_bits + 7) / 8)) fail_short();
    const decoded_rows indices({1, width_}, 1, memory);
    for (std::size_t y = 0; y < height_; ++y) {
      const std::uint8_t* const stored =
          file_.data() + pixels_at_ + static_cast<std::size_t>(row_bytes) * stored_row(y);
      if (bits_ <= 8) {
        unpack(stored, indices.row(0));
        write_indices(options.colour, indices.row(0), rows.row(y));
      } else if (bits_ == 24) {
        write_row(options.colour, rows.row(y), width_, [stored](std::size_t x) {
          const std::uint8_t* colour = stored + x * 3;
          return pixel{colour[2], colour[1], colour[0]};
        });
      } else {
        write_row(options.colour, rows.row(y), width_, [stored, this](std::size_t x) {
          const std::size_t bytes = bits_ / 8;
          std::uint32_t value = 0;
          std::memcpy(&value, stored + x * bytes, bytes);
          return pixel{red_.of(value), green_.of(value), blue_.of(value), alpha_.of(value)};
        });
      }
    }
    return rows.view();
  }

 private:
  static_assert(std::endian::native == std::endian::little);

  static constexpr std::uint32_t plain = 0;
  static constexpr std::uint32_t rle_8 = 1;
  static constexpr std::uint32_t rle_4 = 2;
  static constexpr std::uint32_t masked = 3;

  /// Where a channel lies in a pixel.
  struct channel_mask {
    std::uint32_t mask = 0;
    [[nodiscard]] std::uint8_t of(std::uint32_t value) const noexcept {
      if (mask == 0) return 255;  // no alpha; a colour has a mask
      const int shift = std::countr_zero(mask);
      return static_cast<std::uint8_t>(std::uint64_t{(value & mask) >> shift} * 255 /
                                       (mask >> shift));
    }
    [[nodiscard]] bool is_contiguous() const noexcept {
      if (mask == 0) return false;
      const std::uint32_t low = mask >> std::countr_zero(mask);
      return (low & (low + 1)) == 0;
    }
  };

  [[noreturn]] void fail_short() const {
    fail_image(path_, "the file ends within the image: " + std::to_string(width_) + " x " +
                          std::to_string(height_) + " pixels of " + std::to_string(bits_) +
                          " bits from byte " + std::to_string(pixels_at_) + " on, and it has " +
                          std::to_string(file_.size()) + " bytes");
  }

  void require(std::size_t offset, std::uint64_t count, std::string_view what) const {
    if (file_.has(offset, count)) return;
    std::string text = "the file ends within its ";
    text += what;
    text += ": ";
    text += std::to_string(count);
    text += " bytes from byte ";
    text += std::to_string(offset);
    text += " on, and it has ";
    text += std::to_string(file_.size());
    text += " bytes";
    fail_image(path_, text);
  }

  void read_header() {
    require(0, 18, "header");
    pixels_at_ = file_.little(10, 4);
    header_bytes_ = file_.little(14, 4);
    if (header_bytes_ != 12 && header_bytes_ != 40 && header_bytes_ != 52 && header_bytes_ != 56 &&
        header_bytes_ != 64 && header_bytes_ != 108 && header_bytes_ != 124) {
      fail_image(path_, "a BMP whose header has " + std::to_string(header_bytes_) +
                            " bytes is not decoded");
    }
    require(14, header_bytes_, "header");
    if (header_bytes_ == 12) {
      width_ = file_.little(18, 2);
      height_ = file_.little(20, 2);
      bits_ = file_.little(24, 2);
    } else {
      width_ = file_.little(18, 4);
      const auto height = static_cast<std::int32_t>(file_.little(22, 4));
      top_down_ = height < 0;
      height_ = static_cast<std::size_t>(top_down_ ? -std::int64_t{height} : height);
      bits_ = file_.little(28, 2);
      compression_ = file_.little(30, 4);
      colour_count_ = file_.little(46, 4);
    }
    if (bits_ != 1 && bits_ != 4 && bits_ != 8 && bits_ != 16 && bits_ != 24 && bits_ != 32) {
      fail_image(path_,
                 "a BMP of " + std::to_string(bits_) + " bits for each pixel is not decoded");
    }
    // OS/2's headers give the numbers from 3 on other meanings.
    const bool decoded = compression_ == plain || (compression_ == rle_8 && bits_ == 8) ||
                         (compression_ == rle_4 && bits_ == 4) ||
                         (compression_ == masked && bits_ >= 16 && header_bytes_ != 64);
    if (!decoded) {
      fail_image(path_, "a BMP of " + std::to_string(bits_) + " bits with compression " +
                            std::to_string(compression_) + " is not decoded");
    }
  }

  void read_palette() {
    const std::uint32_t most = 1U << bits_;
    if (colour_count_ == 0) colour_count_ = most;
    if (colour_count_ > 65536) {
      fail_image(path_, "a palette of " + std::to_string(colour_count_) + " colours");
    }
    const std::size_t entry_bytes = header_bytes_ == 12 ? 3 : 4;
    const std::size_t palette_at = 14 + header_bytes_;
    // Some writers forget the palette here.
    if (pixels_at_ == palette_at || pixels_at_ == 0) {
      pixels_at_ = palette_at + entry_bytes * colour_count_;
    }
    colour_count_ = std::min(colour_count_, most);
    require(palette_at, entry_bytes * colour_count_, "palette");
    for (std::size_t i = 0; i < colour_count_; ++i) {
      const std::size_t at = palette_at + i * entry_bytes;
      colours_[i] = {file_.u8(at + 2), file_.u8(at + 1), file_.u8(at), 255};
    }
  }

  void read_masks() {
    if (pixels_at_ == 0) pixels_at_ = 14 + header_bytes_ + (is_masked_behind_header() ? 12 : 0);
    if (bits_ == 16) {
      red_ = {0x7C00};
      green_ = {0x3E0};
      blue_ = {0x1F};
    } else {
      red_ = {0xFF0000};
      green_ = {0xFF00};
      blue_ = {0xFF};
    }
    if (compression_ != masked) return;
    // Behind a header of 40 bytes, or the next numbers of a longer one.
    require(54, header_bytes_ >= 56 ? 16 : 12, "masks");
    const channel_mask red{file_.little(54, 4)};
    const channel_mask green{file_.little(58, 4)};
    const channel_mask blue{file_.little(62, 4)};
    const channel_mask alpha{header_bytes_ >= 56 ? file_.little(66, 4) : 0};
    const bool all_zero = (red.mask | green.mask | blue.mask | alpha.mask) == 0;
    if (all_zero && bits_ == 32) {
      alpha_ = {0xFF000000};  // as Pillow has it
      return;
    }
    const bool usable = red.is_contiguous() && green.is_contiguous() && blue.is_contiguous() &&
                        (alpha.mask == 0 || alpha.is_contiguous());
    const bool bgr = red.mask == red_.mask && green.mask == green_.mask && blue.mask == blue_.mask;
    if (!usable || (bits_ == 24 && !bgr)) {
      fail_image(path_, "the masks " + std::to_string(red.mask) + ", " +
                            std::to_string(green.mask) + ", " + std::to_string(blue.mask) + ", " +
                            std::to_string(alpha.mask) + " of " + std::to_string(bits_) +
                            " bits are not decoded");
    }
    red_ = red;
    green_ = green;
    blue_ = blue;
    alpha_ = bits_ == 32 ? alpha : channel_mask{};
  }

  [[nodiscard]] bool is_masked_behind_header() const noexcept {
    return compression_ == masked && header_bytes_ == 40;
  }

  /// Rows are stored from the bottom to the top, or the other way.
  [[nodiscard]] std::size_t stored_row(std::size_t y) const noexcept {
    return top_down_ ? y : height_ - 1 - y;
  }

  void unpack(const std::uint8_t* stored, std::uint8_t* indices) const noexcept {
    const unsigned per_byte = 8 / bits_;
    const unsigned mask = (1U << bits_) - 1;
    for (std::size_t x = 0; x < width_; ++x) {
      const auto right = static_cast<unsigned>(per_byte - 1 - x % per_byte) * bits_;
      indices[x] = static_cast<std::uint8_t>(unsigned{stored[x / per_byte]} >> right & mask);
    }
  }

  void write_indices(colour_mode mode, const std::uint8_t* indices, std::uint8_t* row) const {
    const unsigned largest = *std::max_element(indices, indices + width_);
    if (largest >= colour_count_) {
      fail_image(path_, "a pixel has colour " + std::to_string(largest) + " of a palette of " +
                            std::to_string(colour_count_));
    }
    write_row(mode, row, width_, [indices, this](std::size_t x) { return colours_[indices[x]]; });
  }

  /// Decodes RLE8 and RLE4. What the codes pass over has colour 0.
  void expand(const decoded_rows& indices) const {
    for (std::size_t y = 0; y < height_; ++y) std::memset(indices.row(y), 0, width_);
    std::size_t at = pixels_at_;
    std::size_t x = 0;
    std::size_t line = 0;  // stored
    const auto pixels = [&, this](std::size_t count) {
      if (line >= height_ || x > width_ || count > width_ - x) {
        fail_image(path_, "a run of " + std::to_string(count) + " pixels from pixel " +
                              std::to_string(x) + " of line " + std::to_string(line) +
                              " on leaves the image of " + std::to_string(width_) + " x " +
                              std::to_string(height_));
      }
      std::uint8_t* const start = indices.row(stored_row(line)) + x;
      x += count;
      return std::span(start, count);
    };
    const auto index = [this](std::size_t byte, std::size_t i) {
      if (compression_ == rle_8) return file_.u8(byte);
      const unsigned pair = file_.u8(byte);
      return static_cast<std::uint8_t>(i % 2 == 0 ? pair >> 4U : pair & 0xFU);
    };
    // An image may end without the code for it, once it is complete.
    while (line < height_ && !(line == height_ - 1 && x == width_)) {
      if (!file_.has(at, 2)) fail_short();
      const std::size_t count = file_.u8(at);
      const std::size_t code = file_.u8(at + 1);
      at += 2;
      if (count > 0) {
        const auto run = pixels(count);
        for (std::size_t i = 0; i < count; ++i) run[i] = index(at - 1, i);
      } else if (code == 0) {  // end of the line
        x = 0;
        ++line;
      } else if (code == 1) {
        fail_image(path_, "the image ends at pixel " + std::to_string(x) + " of line " +
                              std::to_string(line) + ", and it has " + std::to_string(width_) +
                              " x " + std::to_string(height_) + " pixels");
      } else if (code == 2) {  // onwards by so many pixels and lines
        if (!file_.has(at, 2)) fail_short();
        x += file_.u8(at);
        line += file_.u8(at + 1);
        at += 2;
        if (x > width_) pixels(0);
      } else {  // so many pixels as they are, filled up to an even number of bytes
        const std::size_t bytes = compression_ == rle_8 ? code : (code + 1) / 2;
        if (!file_.has(at, bytes)) fail_short();
        const auto run = pixels(code);
        for (std::size_t i = 0; i < code; ++i) {
          run[i] = index(at + (compression_ == rle_8 ? i : i / 2), i);
        }
        at += bytes + bytes % 2;
      }
    }
  }

  std::string_view path_;
  image_bytes file_;
  std::size_t header_bytes_ = 0;
  std::size_t pixels_at_ = 0;
  std::size_t width_ = 0;
  std::size_t height_ = 0;
  unsigned bits_ = 0;
  std::uint32_t compression_ = plain;
  bool top_down_ = false;
  std::uint32_t colour_count_ = 0;
  std::array<pixel, 256> colours_{};
  channel_mask red_;
  channel_mask green_;
  channel_mask blue_;
  channel_mask alpha_;
};

}  // namespace vggload::detail
