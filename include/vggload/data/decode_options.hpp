// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>

#include <vggload/data/colour.hpp>
#include <vggload/data/image.hpp>

namespace vggload {

/// How an image is decoded.
struct decode_options {
  colour_mode colour = colour_mode::rgb;
  /// An image that says it has more is refused before memory is taken for it. The default is Pillow's.
  std::uint64_t pixel_limit = 178'956'970;
  /// Turns the image as its EXIF data ask. Keras and torchvision do not.
  bool apply_orientation = false;
  /// Where it is not {0, 0}, a JPEG may come at 1/2, 1/4 or 1/8 of its size, the smallest that is at least this in both
  /// directions: less work, and other pixels than decoding whole and resizing gives.
  image_size at_least{};
};

}  // namespace vggload
