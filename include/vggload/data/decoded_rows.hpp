// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload::detail {

/// Throws a `format_error` "PATH: what".
[[noreturn]] inline void fail_image(std::string_view path, std::string_view what) {
  std::string text = printable(path);
  text += ": ";
  text += what;
  throw format_error(text);
}

/// Refuses what says that it has no pixels, or more than the limit.
inline void check_image_size(std::string_view path, std::uint64_t width, std::uint64_t height,
                             const decode_options& options) {
  const auto pixels = checked_multiply(width, height);
  if (pixels && *pixels > 0 && *pixels <= options.pixel_limit) return;
  std::string text = "an image of " + std::to_string(width) + " x " + std::to_string(height);
  if (pixels && *pixels == 0) {
    text += " pixels has no pixels";
  } else {
    text +=
        " pixels is larger than the limit of " + std::to_string(options.pixel_limit) + " pixels";
  }
  fail_image(path, text);
}

/// height * row_bytes + before of memory; a product that does not fit is out of memory like one that is refused.
[[nodiscard]] inline std::span<std::byte> allocate_rows(scratch& memory, std::uint64_t height,
                                                        std::uint64_t row_bytes,
                                                        std::uint64_t before = 0) {
  const auto rows = checked_multiply(height, row_bytes);
  const auto bytes = rows ? checked_add(*rows, before) : rows;
  if (!bytes) {
    throw out_of_memory(fixed_text() << height << " rows of " << row_bytes
                                     << " bytes are more than there are addresses",
                        {}, 0);
  }
  return memory.allocate(static_cast<std::size_t>(*bytes));
}

/// The rows that an image is decoded into: a piece of a `scratch`.
///
/// No row begins at a multiple of 16: libjpeg-turbo writes rows that do past the caches, and whoever reads the pixels
/// next waits for the memory. Decoding and fast mode together take a sixth less time without.
struct decoded_rows {
  static constexpr std::size_t alignment = 16;
  static constexpr std::size_t offset = 8;

  std::uint8_t* pixels;
  image_size size;
  std::size_t channels;
  std::size_t row_bytes;

  /// `size`: checked.
  decoded_rows(image_size size_, std::size_t channels_, scratch& memory)
      : size(size_), channels(channels_) {
    const auto used = checked_multiply(size.width, channels);
    // Too narrow for that, and an image may have as many of them as the limit has pixels.
    const bool is_narrow = used && *used < 4 * alignment;
    const auto rounded = used && !is_narrow ? checked_align_up(*used, alignment) : used;
    row_bytes = static_cast<std::size_t>(rounded.value_or(UINT64_MAX));
    pixels = reinterpret_cast<std::uint8_t*>(
                 allocate_rows(memory, size.height, row_bytes, offset).data()) +
             offset;
  }

  [[nodiscard]] std::uint8_t* row(std::size_t y) const noexcept { return pixels + y * row_bytes; }
  [[nodiscard]] image_view view() const noexcept {
    return {pixels, size.height, size.width, channels, row_bytes};
  }
};

}  // namespace vggload::detail
