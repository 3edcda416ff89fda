// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <vggload/core/error.hpp>
#include <vggload/data/bmp_decoder.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/decoded_rows.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/jpeg_decoder.hpp>
#include <vggload/data/orientation.hpp>
#include <vggload/data/png_decoder.hpp>
#include <vggload/data/ppm_decoder.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload {

namespace detail {

enum class image_format { jpeg, png, bmp, ppm };

/// Throws a `format_error` that says what the file is instead of one that is decoded.
[[noreturn]] inline void fail_unknown_image(std::string_view path, image_bytes file) {
  struct signature {
    std::size_t offset;
    std::string_view bytes;
    std::string_view name;
  };
  static constexpr std::array signatures{
      signature{0, {"II*\0", 4}, "TIFF"},  signature{0, {"MM\0*", 4}, "TIFF"},
      signature{0, {"II+\0", 4}, "TIFF"},  signature{0, {"MM\0+", 4}, "TIFF"},
      signature{0, "GIF8", "GIF"},         signature{8, "WEBP", "WebP"},
      signature{4, "ftypavif", "AVIF"},    signature{4, "ftyphei", "HEIC"},
      signature{4, "jP  ", "JPEG 2000"},   signature{0, "\xFF\x4F\xFF\x51", "JPEG 2000"},
      signature{0, "\xFF\x0A", "JPEG XL"}, signature{4, "JXL ", "JPEG XL"},
      signature{0, "8BPS", "Photoshop"},   signature{0, "P7\n", "PAM"},
      signature{0, "Pf", "PFM"},           signature{0, "PF", "PFM"},
      signature{0, "%PDF", "PDF"},         signature{0, "<svg", "SVG"},
  };
  if (file.size() == 0) fail_image(path, "the file is empty");
  for (const signature& known : signatures) {
    if (!file.starts_with(known.bytes, known.offset)) continue;
    std::string text(known.name);
    text += " is not decoded: only JPEG, PNG, BMP, PPM, PGM and PBM are";
    fail_image(path, text);
  }
  std::string text = "neither JPEG, PNG, BMP, PPM, PGM nor PBM: it begins with";
  constexpr std::string_view digits = "0123456789ABCDEF";
  for (std::size_t i = 0; i < std::min<std::size_t>(file.size(), 8); ++i) {
    text += ' ';
    text += digits[file.u8(i) / 16U];
    text += digits[file.u8(i) % 16U];
  }
  fail_image(path, text);
}

/// What a file is, by its first bytes.
[[nodiscard]] inline image_format image_format_of(std::string_view path,
                                                  std::span<const std::byte> head) {
  const image_bytes file(head);
  if (file.starts_with("\xFF\xD8\xFF")) return image_format::jpeg;
  if (file.starts_with(png_signature)) return image_format::png;
  if (file.starts_with("BM")) return image_format::bmp;
  if (ppm_decoder::matches(file)) return image_format::ppm;
  fail_unknown_image(path, file);
}

}  // namespace detail

/// Decodes JPEG, PNG, BMP, PPM, PGM and PBM, which it tells apart by their first bytes, into the pixels that Pillow
/// gives after `convert("RGB")`, "RGBA" or "L". An image is whole or an error: what is damaged, as far as it
/// shows, or ends early is refused. One for each thread; used for one image after another it allocates nothing but
/// from the scratch.
class image_decoder {
 public:
  /// Throws where libjpeg is not the one that was compiled for.
  image_decoder() : jpeg_(std::make_unique<detail::jpeg_decoder>()) {}

  /// `path` is for messages. The pixels lie in `memory`, as does all that decoding takes.
  /// @throws format_error "PATH: what is wrong"; out_of_memory, which names the path, where `memory` refuses
  [[nodiscard]] image_view decode(std::string_view path, std::span<const std::byte> file,
                                  const decode_options& options, scratch& memory) {
    return detail::naming_out_of_memory(path, "decoding it", [&, this]() -> image_view {
      switch (detail::image_format_of(path, file)) {
        case detail::image_format::jpeg: return jpeg_->decode(path, file, options, memory);
        case detail::image_format::png:
          return detail::png_decoder(path, file, options, memory).decode();
        case detail::image_format::bmp:
          return detail::bmp_decoder(path, file).decode(options, memory);
        case detail::image_format::ppm:
          return detail::ppm_decoder(path, file).decode(options, memory);
      }
      return {};
    });
  }

  /// Reads the file into `memory` and decodes it.
  /// @throws io_error besides
  [[nodiscard]] image_view decode_file(const std::string& path, const decode_options& options,
                                       scratch& memory) {
    const input_file file(path);
    return detail::naming_out_of_memory(path, "reading it", [&, this] {
      // What is no image is not read whole.
      std::array<std::byte, 16> head;
      const auto first =
          std::span(head).first(static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), 16)));
      file.read_at(0, first);
      (void)detail::image_format_of(path, first);
      const auto bytes = detail::allocate_rows(memory, 1, file.size());
      file.read_at(0, bytes);
      return decode(path, bytes, options, memory);
    });
  }

 private:
  std::unique_ptr<detail::jpeg_decoder> jpeg_;
};

}  // namespace vggload
