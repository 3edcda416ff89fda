// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

#include <png.h>

#include <vggload/data/c_library_call.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/decoded_rows.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/orientation.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload::detail {

inline constexpr std::string_view png_signature{"\x89PNG\r\n\x1A\n", 8};

/// The orientation that a PNG's eXIf chunk asks for; it may stand behind the pixels.
[[nodiscard]] inline unsigned png_orientation(image_bytes file) noexcept {
  for (std::size_t at = png_signature.size(); file.has(at, 8);) {
    const std::uint32_t length = file.big(at, 4);
    if (!file.has(at + 8, std::uint64_t{length} + 4)) break;
    if (file.starts_with("eXIf", at + 4)) return orientation_of(file.part(at + 8, length));
    at += 12 + std::size_t{length};
  }
  return 1;
}

/// Decodes one PNG with libpng into what Pillow gives. All that libpng allocates lies in the scratch, so nothing is
/// given back to it, and its structures are simply left.
class png_decoder {
 public:
  png_decoder(std::string_view path, std::span<const std::byte> file, const decode_options& options,
              scratch& memory)
      : path_(path), file_(file), options_(options), memory_(memory) {}
  png_decoder(const png_decoder&) = delete;
  png_decoder& operator=(const png_decoder&) = delete;
  ~png_decoder() = default;

  /// The pixels lie in the scratch.
  /// @throws format_error, out_of_memory
  image_view decode() {
    run([this] { read_header(); });
    if (info_ == nullptr) call_.fail(path_);  // its first allocations were refused
    const image_size size{::png_get_image_height(png_, info_), ::png_get_image_width(png_, info_)};
    check_image_size(path_, size.width, size.height, options_);
    run([this] { choose_samples(); });
    const decoded_rows rows(size, channels_of(options_.colour), memory_);
    if (as_wanted_) {
      run([&, this] {
        for (int pass = 0; pass < passes_; ++pass) {
          for (std::size_t y = 0; y < size.height; ++y) ::png_read_row(png_, rows.row(y), nullptr);
        }
        ::png_read_end(png_, nullptr);
      });
    } else {
      // Interlaced, a row is complete with the last pass only.
      const std::size_t height = passes_ > 1 ? size.height : 1;
      const decoded_rows samples({height, size.width}, bytes_per_pixel_, memory_);
      run([&, this] {
        for (int pass = 0; pass < passes_; ++pass) {
          for (std::size_t y = 0; y < size.height; ++y) {
            std::uint8_t* const row = samples.row(passes_ > 1 ? y : 0);
            ::png_read_row(png_, row, nullptr);
            if (pass == passes_ - 1) convert_row(row, rows.row(y), size.width);
          }
        }
        ::png_read_end(png_, nullptr);
      });
    }
    const unsigned orientation =
        options_.apply_orientation ? png_orientation(image_bytes(file_)) : 1;
    return oriented(rows.view(), orientation, memory_);
  }

 private:
  template <class Action>
  void run(const Action& action) {
    if (!call_.run(action)) call_.fail(path_);
  }

  static png_decoder& of(void* pointer) noexcept { return *static_cast<png_decoder*>(pointer); }

  static void read_bytes(png_structp png, png_bytep out, std::size_t count) {
    png_decoder& self = of(::png_get_io_ptr(png));
    if (count > self.file_.size() - self.position_) {
      self.call_.leave("the file ends within the image");
    }
    std::memcpy(out, self.file_.data() + self.position_, count);
    self.position_ += count;
  }

  void complain(const char* message) noexcept {
    fixed_text text;
    text << "libpng: " << message;
    call_.leave(text.view());
  }

  // The functions below run within `call_`: no object of theirs has a destructor.

  void read_header() {
    png_ = ::png_create_read_struct_2(
        PNG_LIBPNG_VER_STRING, this,
        [](png_structp png, png_const_charp message) {
          of(::png_get_error_ptr(png)).complain(message);
        },
        [](png_structp png, png_const_charp message) {
          // Before the pixels, with the chunks below passed over, a warning is about transparency, which odd writers
          // give too many bits; behind their start it is about them.
          png_decoder& self = of(::png_get_error_ptr(png));
          if (self.info_is_read_) self.complain(message);
        },
        this,
        [](png_structp png, png_alloc_size_t bytes) -> png_voidp {
          png_decoder& self = of(::png_get_mem_ptr(png));
          return self.call_.allocate(self.memory_, bytes);
        },
        [](png_structp, png_voidp) {});
    if (png_ == nullptr) return;
    info_ = ::png_create_info_struct(png_);
    if (info_ == nullptr) return;
    ::png_set_read_fn(png_, this, read_bytes);
    // The sizes are ours to judge.
    constexpr png_uint_32 largest = std::numeric_limits<png_int_32>::max();
    ::png_set_user_limits(png_, largest, largest);
    ::png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    // Texts, profiles and the like are passed over: their sums are right or wrong, and what they hold is not looked at.
    ::png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    ::png_set_check_for_invalid_index(png_, -1);  // done below, with the numbers
    ::png_read_info(png_, info_);
    info_is_read_ = true;
  }

  void choose_samples() {
    const unsigned bits = ::png_get_bit_depth(png_, info_);
    const unsigned type = ::png_get_color_type(png_, info_);
    png_bytep alphas = nullptr;
    int alpha_count = 0;
    png_color_16p transparent = nullptr;
    ::png_get_tRNS(png_, info_, &alphas, &alpha_count, &transparent);

    if (type == PNG_COLOR_TYPE_PALETTE) {
      kind_ = kind::looked_up;
      png_colorp colours = nullptr;
      int count = 0;
      ::png_get_PLTE(png_, info_, &colours, &count);
      colour_count_ = static_cast<unsigned>(count);
      for (int i = 0; i < count; ++i) {
        colours_[static_cast<std::size_t>(i)] = {
            colours[i].red, colours[i].green, colours[i].blue,
            alphas != nullptr && i < alpha_count ? alphas[i] : std::uint8_t{255}};
      }
    } else if (type == PNG_COLOR_TYPE_GRAY && bits <= 8) {
      kind_ = kind::looked_up;
      fill_greys(bits, transparent);
    } else if (type == PNG_COLOR_TYPE_GRAY) {
      kind_ = kind::grey_16;
    } else if (type == PNG_COLOR_TYPE_GRAY_ALPHA) {
      kind_ = kind::grey_alpha;
    } else {
      kind_ = type == PNG_COLOR_TYPE_RGB ? kind::rgb : kind::rgba;
    }
    if (transparent != nullptr) {
      // Pillow compares the lower eight bits.
      has_transparent_ = true;
      transparent_ = {low_byte(transparent->red), low_byte(transparent->green),
                      low_byte(transparent->blue), 0};
      if (kind_ == kind::grey_16) transparent_ = grey_pixel(low_byte(transparent->gray), 0);
    }

    if (bits < 8) ::png_set_packing(png_);
    // Of sixteen bits Pillow keeps the upper eight; grey alone it keeps whole, and clips later.
    if (bits == 16 && kind_ != kind::grey_16) ::png_set_strip_16(png_);
    passes_ = ::png_set_interlace_handling(png_);
    ::png_read_update_info(png_, info_);
    bytes_per_pixel_ = ::png_get_rowbytes(png_, info_) / ::png_get_image_width(png_, info_);
    as_wanted_ = (kind_ == kind::rgb && options_.colour == colour_mode::rgb) ||
                 (kind_ == kind::rgba && options_.colour == colour_mode::rgba) ||
                 (type == PNG_COLOR_TYPE_GRAY && bits == 8 && options_.colour == colour_mode::grey);
  }

  static std::uint8_t low_byte(png_uint_16 value) noexcept {
    return static_cast<std::uint8_t>(value & 0xFFU);
  }

  void fill_greys(unsigned bits, const png_color_16* transparent) noexcept {
    colour_count_ = 1U << bits;
    for (unsigned i = 0; i < colour_count_; ++i) {
      colours_[i] = grey_pixel(static_cast<std::uint8_t>(i * 255 / (colour_count_ - 1)));
    }
    if (transparent == nullptr) return;
    // Pillow compares the file's number with the pixel that was made of it, but for one bit.
    const unsigned wanted =
        bits == 1 ? (transparent->gray != 0 ? 255 : 0) : low_byte(transparent->gray);
    for (unsigned i = 0; i < colour_count_; ++i) {
      if (colours_[i].red == wanted) colours_[i].alpha = 0;
    }
  }

  void convert_row(const std::uint8_t* from, std::uint8_t* to, std::size_t width) {
    const auto marked = [this](pixel colour) {
      if (has_transparent_ && colour.red == transparent_.red &&
          colour.green == transparent_.green && colour.blue == transparent_.blue) {
        colour.alpha = 0;
      }
      return colour;
    };
    switch (kind_) {
      case kind::looked_up: {
        const unsigned largest = *std::max_element(from, from + width);
        if (largest >= colour_count_) {
          fixed_text text;
          text << "a pixel has colour " << largest << " of a palette of " << colour_count_;
          call_.leave(text.view());
        }
        write_row(options_.colour, to, width,
                  [from, this](std::size_t x) { return colours_[from[x]]; });
        break;
      }
      case kind::grey_16:
        write_row(options_.colour, to, width, [from, marked](std::size_t x) {
          return marked(grey_pixel(from[x * 2] != 0 ? std::uint8_t{255} : from[x * 2 + 1]));
        });
        break;
      case kind::grey_alpha:
        write_row(options_.colour, to, width,
                  [from](std::size_t x) { return grey_pixel(from[x * 2], from[x * 2 + 1]); });
        break;
      case kind::rgb:
        write_row(options_.colour, to, width, [from, marked](std::size_t x) {
          const std::uint8_t* colour = from + x * 3;
          return marked({colour[0], colour[1], colour[2], 255});
        });
        break;
      case kind::rgba:
        write_row(options_.colour, to, width, [from](std::size_t x) {
          const std::uint8_t* colour = from + x * 4;
          return pixel{colour[0], colour[1], colour[2], colour[3]};
        });
        break;
    }
  }

  enum class kind { looked_up, grey_16, grey_alpha, rgb, rgba };

  c_library_call call_;
  std::string_view path_;
  std::span<const std::byte> file_;
  const decode_options& options_;
  scratch& memory_;
  std::size_t position_ = 0;  // in the file
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  bool info_is_read_ = false;
  kind kind_ = kind::rgb;
  int passes_ = 1;
  std::size_t bytes_per_pixel_ = 0;
  bool as_wanted_ = false;            // libpng gives the rows as they are to be
  std::array<pixel, 256> colours_{};  // of a palette, or grey
  unsigned colour_count_ = 0;
  bool has_transparent_ = false;
  pixel transparent_{};
};

}  // namespace vggload::detail
