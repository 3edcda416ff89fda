// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>  // jpeglib.h needs it first
#include <iterator>
#include <span>
#include <string>
#include <string_view>

#include <jerror.h>
#include <jpeglib.h>

#include <vggload/core/error.hpp>
#include <vggload/data/c_library_call.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/decoded_rows.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/jpeg_memory.hpp>
#include <vggload/data/orientation.hpp>
#include <vggload/data/scratch.hpp>

#ifndef JCS_EXTENSIONS
#error "vggload::images needs libjpeg-turbo: another libjpeg gives other pixels"
#endif

namespace vggload::detail {

/// The orientation that a JPEG's EXIF data ask for: they are an APP1 segment before the first scan.
[[nodiscard]] inline unsigned jpeg_orientation(image_bytes file) noexcept {
  constexpr std::string_view name{"Exif\0\0", 6};
  for (std::size_t at = 2; file.has(at, 4) && file.u8(at) == 0xFF;) {
    const std::uint8_t marker = file.u8(at + 1);
    const std::uint32_t length = file.big(at + 2, 2);
    if (marker == 0xFF) {  // padding
      ++at;
      continue;
    }
    if (marker == 0xDA || length < 2 || !file.has(at + 2, length)) break;
    if (marker == 0xE1 && length >= 2 + name.size() && file.starts_with(name, at + 4)) {
      return orientation_of(file.part(at + 4 + name.size(), length - 2 - name.size()));
    }
    at += 2 + length;
  }
  return 1;
}

/// Decodes JPEGs with libjpeg-turbo as Pillow does: accurate IDCT, fancy upsampling. One for each thread; libjpeg's
/// structure is made once.
class jpeg_decoder {
 public:
  jpeg_decoder() : memory_(call_) {
    info_.err = ::jpeg_std_error(&errors_);
    info_.client_data = this;
    errors_.error_exit = [](j_common_ptr info) { of(info).leave(info); };
    errors_.emit_message = [](j_common_ptr info, int level) {
      if (level < 0) of(info).judge_warning(info);
    };
    errors_.output_message = [](j_common_ptr) {};
    if (!call_.run([this] { ::jpeg_CreateDecompress(&info_, JPEG_LIB_VERSION, sizeof info_); })) {
      call_.fail("libjpeg");
    }
    own_memory_ = info_.mem;
    info_.mem = &memory_;
    source_.init_source = [](j_decompress_ptr) {};
    source_.fill_input_buffer = [](j_decompress_ptr info) -> boolean { end_of_file(info); };
    source_.skip_input_data = [](j_decompress_ptr info, long count) {
      if (count <= 0) return;
      const auto bytes = static_cast<std::size_t>(count);
      if (bytes > info->src->bytes_in_buffer) end_of_file(info);
      info->src->next_input_byte += bytes;
      info->src->bytes_in_buffer -= bytes;
    };
    source_.resync_to_restart = ::jpeg_resync_to_restart;
    source_.term_source = [](j_decompress_ptr) {};
    info_.src = &source_;
    progress_.progress_monitor = [](j_common_ptr info) { of(info).limit_scans(); };
    info_.progress = &progress_;
  }
  jpeg_decoder(const jpeg_decoder&) = delete;
  jpeg_decoder& operator=(const jpeg_decoder&) = delete;
  ~jpeg_decoder() {
    info_.mem = own_memory_;
    ::jpeg_destroy_decompress(&info_);
  }

  /// `file`: begins like a JPEG. The pixels lie in `memory`.
  /// @throws format_error, out_of_memory
  image_view decode(std::string_view path, std::span<const std::byte> file,
                    const decode_options& options, scratch& memory) {
    begin(file, memory);
    run(path, [this] { ::jpeg_read_header(&info_, TRUE); });
    check_image_size(path, info_.image_width, info_.image_height, options);
    if (info_.num_components != 1 && info_.num_components != 3 && info_.num_components != 4) {
      fail_image(
          path, "a JPEG of " + std::to_string(info_.num_components) + " components is not decoded");
    }
    const unsigned orientation =
        options.apply_orientation ? jpeg_orientation(image_bytes(file)) : 1;
    choose_scale(options.at_least, is_transposed(orientation));
    const std::size_t row_channels = choose_colours(options.colour);
    const bool as_wanted =
        info_.out_color_space != JCS_CMYK && row_channels == channels_of(options.colour);
    run(path, [this] { ::jpeg_calc_output_dimensions(&info_); });
    const decoded_rows rows({info_.output_height, info_.output_width}, channels_of(options.colour),
                            memory);
    if (as_wanted) {
      run(path, [&, this] { read_straight(rows); });
    } else {
      const decoded_rows band({rows_at_once, info_.output_width}, row_channels, memory);
      run(path, [&, this] { read_converting(options.colour, band, rows); });
    }
    return oriented(rows.view(), orientation, memory);
  }

 private:
  // More than a call of the library ever gives, which is a row of blocks.
  static constexpr std::size_t rows_at_once = 16;
  // A progressive JPEG has ten, and each costs as much as the whole image, however few bytes it has.
  static constexpr int scan_limit = 500;

  static jpeg_decoder& of(j_common_ptr info) noexcept {
    return *static_cast<jpeg_decoder*>(info->client_data);
  }

  template <class Action>
  void run(std::string_view path, const Action& action) {
    if (!call_.run(action)) call_.fail(path);
  }

  [[noreturn]] void leave(j_common_ptr info) noexcept {
    std::array<char, JMSG_LENGTH_MAX> message{};
    errors_.format_message(info, message.data());
    call_.leave(message.data());
  }
  [[noreturn]] static void end_of_file(j_decompress_ptr info) noexcept {
    static_cast<jpeg_decoder*>(info->client_data)->call_.leave("the file ends within the image");
  }

  /// Warnings tell that pixels are not what was written, but for these. Left-over bytes mean nothing between the segments
  /// of the header; behind a scan they are what a damaged scan, decoded to its end too soon, leaves.
  void judge_warning(j_common_ptr info) noexcept {
    switch (errors_.msg_code) {
      case JWRN_ADOBE_XFORM:
      case JWRN_JFIF_MAJOR:
      case JWRN_NOT_SEQUENTIAL: return;
      case JWRN_EXTRANEOUS_DATA:
        if (info_.input_scan_number == 0) return;
        break;
      default: break;
    }
    leave(info);
  }

  void limit_scans() noexcept {
    if (info_.input_scan_number > scan_limit) call_.leave("more than 500 scans in one image");
  }

  /// Forgets the image before, with all that libjpeg keeps from one to the next for streams that share their tables:
  /// an image without tables would be decoded with those of another.
  void begin(std::span<const std::byte> file, scratch& memory) noexcept {
    ::jpeg_abort_decompress(&info_);
    std::ranges::fill(info_.quant_tbl_ptrs, nullptr);
    std::ranges::fill(info_.dc_huff_tbl_ptrs, nullptr);
    std::ranges::fill(info_.ac_huff_tbl_ptrs, nullptr);
    memory_.use(memory);
    source_.next_input_byte = reinterpret_cast<const JOCTET*>(file.data());
    source_.bytes_in_buffer = file.size();
  }

  void choose_scale(image_size at_least, bool transposed) noexcept {
    info_.scale_num = 1;
    info_.scale_denom = 1;
    if (at_least == image_size{}) return;
    if (transposed) at_least = {at_least.width, at_least.height};
    for (const unsigned denominator : {2U, 4U, 8U}) {
      const auto scaled = [denominator](std::size_t length) {
        return (length + denominator - 1) / denominator;
      };
      if (scaled(info_.image_height) < at_least.height) break;
      if (scaled(info_.image_width) < at_least.width) break;
      info_.scale_denom = denominator;
    }
  }

  /// Asks for the colours nearest to what is wanted; returns the channels in a row.
  std::size_t choose_colours(colour_mode mode) noexcept {
    if (info_.num_components == 4) {
      info_.out_color_space = JCS_CMYK;
      return 4;
    }
    if (mode == colour_mode::rgba) {
      info_.out_color_space = JCS_EXT_RGBA;
      return 4;
    }
    // Grey comes from RGB, as it does in Pillow: a JPEG's own luma is not the same.
    if (mode == colour_mode::grey && info_.num_components == 1) {
      info_.out_color_space = JCS_GRAYSCALE;
      return 1;
    }
    info_.out_color_space = JCS_RGB;
    return 3;
  }

  // The functions below run within `call_`: no object of theirs has a destructor.

  /// Begins to decompress, which reads all scans of an image that has several.
  void start() {
    ::jpeg_start_decompress(&info_);
    if (::jpeg_has_multiple_scans(&info_) == FALSE) return;
    // A file that ends properly after some of its scans is well-formed, and half an image.
    for (int i = 0; i < info_.num_components; ++i) {
      // Kept from a component's first scan on.
      if (info_.comp_info[i].quant_table == nullptr) {
        call_.leave("the file ends before the scan of a component");
      }
      if (info_.coef_bits == nullptr) continue;
      // Of each coefficient how many bits are still to come; -1 where none came, which may mean that all are zero.
      const auto& missing = info_.coef_bits[i];
      if (std::any_of(std::begin(missing), std::end(missing), [](int bits) { return bits > 0; })) {
        call_.leave("the file ends before the last bits of its coefficients");
      }
    }
  }

  void read_straight(const decoded_rows& rows) {
    start();
    std::array<JSAMPROW, rows_at_once> pointers;
    while (info_.output_scanline < info_.output_height) {
      const std::size_t count =
          std::min<std::size_t>(rows_at_once, info_.output_height - info_.output_scanline);
      for (std::size_t i = 0; i < count; ++i) pointers[i] = rows.row(info_.output_scanline + i);
      ::jpeg_read_scanlines(&info_, pointers.data(), static_cast<JDIMENSION>(count));
    }
    ::jpeg_finish_decompress(&info_);
  }

  void read_converting(colour_mode mode, const decoded_rows& band, const decoded_rows& rows) {
    start();
    std::array<JSAMPROW, rows_at_once> pointers;
    for (std::size_t i = 0; i < rows_at_once; ++i) pointers[i] = band.row(i);
    while (info_.output_scanline < info_.output_height) {
      const std::size_t first = info_.output_scanline;
      const std::size_t count = ::jpeg_read_scanlines(&info_, pointers.data(), rows_at_once);
      for (std::size_t i = 0; i < count; ++i) {
        convert_row(mode, band.row(i), rows.row(first + i));
      }
    }
    ::jpeg_finish_decompress(&info_);
  }

  void convert_row(colour_mode mode, const std::uint8_t* from, std::uint8_t* to) const noexcept {
    if (info_.num_components == 4) {
      write_row(mode, to, info_.output_width, [from](std::size_t x) {
        const std::uint8_t* ink = from + x * 4;
        return inverted_cmyk_pixel(ink[0], ink[1], ink[2], ink[3]);
      });
    } else {
      write_row(mode, to, info_.output_width, [from](std::size_t x) {
        const std::uint8_t* colour = from + x * 3;
        return pixel{colour[0], colour[1], colour[2]};
      });
    }
  }

  c_library_call call_;
  jpeg_memory memory_;
  ::jpeg_memory_mgr* own_memory_ = nullptr;  // libjpeg's own, of what lives as long as `info_`
  ::jpeg_error_mgr errors_{};
  ::jpeg_source_mgr source_{};
  ::jpeg_progress_mgr progress_{};
  ::jpeg_decompress_struct info_{};
};

}  // namespace vggload::detail
