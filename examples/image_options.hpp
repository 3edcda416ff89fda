// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// The options of the commands that make batches of images, and the pipelines that they ask for.

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "command.hpp"

#include <vggload/core/error.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/keras_batches.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/shuffle.hpp>

namespace command {

/// A number, or a fraction such as 1/255.
inline CLI::Validator factor() {
  return {[](std::string& text) -> std::string {
            const std::size_t slash = text.find('/');
            const auto number = [](std::string_view part) {
              double value = 0;
              const char* const last = part.data() + part.size();
              const auto [end, code] = std::from_chars(part.data(), last, value);
              return code == std::errc() && end == last && std::isfinite(value) ? value : 0;
            };
            const double above = number(std::string_view(text).substr(0, slash));
            const double below =
                slash == std::string::npos ? 1 : number(std::string_view(text).substr(slash + 1));
            if (above == 0 || below == 0) {
              return "'" + text + "' is not a factor (such as 0.5 or 1/255)";
            }
            std::array<char, 32> digits;
            const auto end =
                std::to_chars(digits.data(), digits.data() + digits.size(), above / below).ptr;
            text.assign(digits.data(), end);
            return {};
          },
          ""};
}

/// Takes numbers from `least` to `most`; CLI::Range would let a NaN through.
inline CLI::Validator real_number(double least, double most) {
  return {[least, most](const std::string& text) -> std::string {
            double value = 0;
            const char* const last = text.data() + text.size();
            const auto [end, code] = std::from_chars(text.data(), last, value);
            if (code == std::errc() && end == last && value >= least && value <= most) return {};
            return "'" + text + "' is not a number from " + std::to_string(least) + " to " +
                   std::to_string(most);
          },
          ""};
}

/// What both commands ask for.
struct image_options {
  std::string folder;
  vggload::image_size target{224, 224};
  std::size_t batch = 32;
  std::uint64_t seed = 0;
  bool exact = false;
  double shear = 0;
  double zoom = 0;
  bool horizontal_flip = false;
  double rescale = 0;
  vggload::label_mode labels = vggload::label_mode::categorical;
  bool no_shuffle = false;
  unsigned workers = std::max(1U, std::thread::hardware_concurrency());
  vggload::on_error on_error = vggload::on_error::stop;
};

/// Adds the options that say which images, and what becomes of them.
inline void add_image_options(CLI::App& app, image_options& options) {
  app.add_option("DIR", options.folder, "A folder with a subfolder of images for each class")
      ->required();
  app.add_option_function<std::string>(
         "--target",
         [&options](const std::string& text) {
           const auto size = *parse_height_and_width(text);
           options.target = {static_cast<std::size_t>(size.first),
                             static_cast<std::size_t>(size.second)};
         },
         "Height and width of the images in a batch (default: 224x224)")
      ->check(height_and_width())
      ->check(CLI::Validator(
          [](const std::string& text) -> std::string {
            const auto size = parse_height_and_width(text);
            return size && (size->first == 0 || size->second == 0) ? "an image has pixels" : "";
          },
          ""))
      ->type_name("HxW");
  app.add_option("--batch", options.batch, "Images in a batch (default: 32)")
      ->transform(whole_number(1, 1U << 20U))
      ->type_name("N");
  app.add_option("--seed", options.seed, "Of all that is random (default: 0)")
      ->transform(whole_number(0, std::numeric_limits<std::uint32_t>::max()))
      ->type_name("N");
  app.add_flag("--exact", options.exact,
               "What Keras' ImageDataGenerator gives with this seed, bit for bit");
  app.add_option("--shear", options.shear, "Shear by up to D degrees to both sides")
      ->check(real_number(0, 360))
      ->type_name("D");
  app.add_option("--zoom", options.zoom, "Zoom by factors from 1 - Z to 1 + Z")
      ->check(real_number(0, 100))
      ->type_name("Z");
  app.add_flag("--hflip", options.horizontal_flip, "Exchange left and right of each second image");
  app.add_flag("--no-shuffle", options.no_shuffle, "Keep the order of the folder");
  app.add_option("--workers", options.workers,
                 "Threads that make batches (default: one for each processor)")
      ->transform(whole_number(0, vggload::largest_worker_count))
      ->type_name("N");
  add_choice(app, "--on-error", options.on_error,
             {{"stop", vggload::on_error::stop}, {"skip", vggload::on_error::skip}},
             "What happens with images that cannot be decoded (default: stop)")
      ->type_name("stop|skip");
}

/// Lists the folder; an empty one is an error.
inline vggload::image_folder list_images(const image_options& options) {
  vggload::image_folder folder(options.folder);
  if (folder.size() == 0) {
    throw vggload::error(vggload::printable(options.folder) + ": no images in " +
                         std::to_string(folder.classes().size()) + " classes");
  }
  return folder;
}

/// Calls `body` with the sequence of batches that is asked for. The sequence is not yet prefetched.
template <class Body>
void with_batches(const image_options& options, vggload::image_folder folder, Body&& body) {
  const vggload::augmentation changes{.shear_range = options.shear,
                                      .zoom_range = {1 - options.zoom, 1 + options.zoom},
                                      .horizontal_flip = options.horizontal_flip};
  const vggload::normalisation values{.rescale = options.rescale};
  if (options.exact) {
    vggload::keras_batches batches(std::move(folder),
                                   {.target = options.target,
                                    .labels = options.labels,
                                    .batch_size = options.batch,
                                    .shuffle = !options.no_shuffle,
                                    .seed = static_cast<std::uint32_t>(options.seed),
                                    .augmentation = changes,
                                    .normalisation = values,
                                    .on_error = options.on_error});
    body(batches, batches);
    return;
  }
  const vggload::sample_format format{.height = options.target.height,
                                      .width = options.target.width};
  vggload::image_sequence images(std::move(folder),
                                 vggload::fast_augmentation(format, changes, values, options.seed),
                                 {.labels = options.labels, .on_error = options.on_error});
  if (options.no_shuffle) {
    auto batches = images | vggload::batch(options.batch);
    body(batches, images);
  } else {
    auto batches = images | vggload::shuffle(options.seed) | vggload::batch(options.batch);
    body(batches, images);
  }
}

}  // namespace command
