// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include <vggload/data/image.hpp>

namespace vggload {

/// The ends of a range from which a number is drawn uniformly.
struct value_range {
  double low = 0;
  double high = 0;
};

/// What is read beyond an image's edge, in SciPy's terms (ndimage.affine_transform, `mode`).
enum class fill_mode {
  nearest,   // a a a | a b c d | d d d
  constant,  // k k k | a b c d | k k k
  reflect,   // c b a | a b c d | d c b
  wrap,      // b c d | a b c d | a b c
};

/// Random changes of an image that leave its class what it is. The names and meanings are those of Keras'
/// `ImageDataGenerator`; a range of zero switches a change off.
struct augmentation {
  double rotation_range = 0;      // degrees, to both sides
  double width_shift_range = 0;   // below 1 a part of the width, else pixels
  double height_shift_range = 0;  // likewise of the height
  double shear_range = 0;         // degrees, to both sides
  value_range zoom_range{1, 1};   // factors of what is shown: below 1 things become larger
  bool horizontal_flip = false;   // each second image, left and right exchanged
  bool vertical_flip = false;
  double channel_shift_range = 0;  // in units of the pixels, 0 to 255, the same for all channels
  std::optional<value_range> brightness_range = {};  // factors
  vggload::fill_mode fill = vggload::fill_mode::nearest;
  double fill_value = 0;  // for fill_mode::constant, 0 to 255
};

/// What was drawn for one image.
struct random_transform {
  double rotation = 0;      // degrees
  double height_shift = 0;  // pixels
  double width_shift = 0;   // pixels
  double shear = 0;         // degrees
  double height_zoom = 1;
  double width_zoom = 1;
  bool horizontal_flip = false;
  bool vertical_flip = false;
  std::optional<double> channel_shift;
  std::optional<double> brightness;
};

/// Draws the changes of one image of that size. `random` has `uniform(low, high)` and `unit()`, and is asked in Keras'
/// order: rotation, height shift, width shift, shear, both zooms, each only where it is switched on; both flips
/// always; channel shift and brightness where on (Keras 3.15, `get_random_transform`).
template <class Random>
[[nodiscard]] random_transform draw_transform(const augmentation& options, image_size size,
                                              Random& random) {
  random_transform drawn;
  const auto both_sides = [&](double range) {
    return range != 0 ? random.uniform(-range, range) : 0.0;
  };
  const auto shift = [&](double range, std::size_t pixels) {
    const double drawn_shift = both_sides(range);
    return range < 1 ? drawn_shift * static_cast<double>(pixels) : drawn_shift;
  };
  drawn.rotation = both_sides(options.rotation_range);
  drawn.height_shift = shift(options.height_shift_range, size.height);
  drawn.width_shift = shift(options.width_shift_range, size.width);
  drawn.shear = both_sides(options.shear_range);
  if (options.zoom_range.low != 1 || options.zoom_range.high != 1) {
    drawn.height_zoom = random.uniform(options.zoom_range.low, options.zoom_range.high);
    drawn.width_zoom = random.uniform(options.zoom_range.low, options.zoom_range.high);
  }
  const bool first = random.unit() < 0.5;
  const bool second = random.unit() < 0.5;
  drawn.horizontal_flip = first && options.horizontal_flip;
  drawn.vertical_flip = second && options.vertical_flip;
  if (options.channel_shift_range != 0) {
    drawn.channel_shift = both_sides(options.channel_shift_range);
  }
  if (options.brightness_range) {
    drawn.brightness =
        random.uniform(options.brightness_range->low, options.brightness_range->high);
  }
  return drawn;
}

/// A fixed preprocessing that belongs to a set of weights (`keras.applications.imagenet_utils.preprocess_input`'s
/// modes), applied before all of `normalisation`'s other steps.
enum class preprocessing {
  none,
  caffe,  // BGR, minus ImageNet's mean of each channel: what Keras' VGG16 was trained with
  torch,  // / 255, minus ImageNet's mean, / its standard deviation: torchvision's VGG16
  tf,     // / 127.5, minus 1
};

/// How pixels of 0 to 255 become what the network wants, in this order (Keras' `standardize`).
struct normalisation {
  vggload::preprocessing preprocessing = vggload::preprocessing::none;
  double rescale = 0;              // a factor; 0 is none
  bool samplewise_centre = false;  // minus the mean of all the image's values
  bool samplewise_scale =
      false;  // / (their standard deviation + 1e-6), centred before as Keras does it
  std::optional<std::array<float, 3>> featurewise_mean =
      {};  // of each channel, over a set of images
  std::optional<std::array<float, 3>> featurewise_deviation = {};
};

}  // namespace vggload
