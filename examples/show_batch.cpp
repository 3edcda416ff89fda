// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Draws a batch of augmented images as one PNG, a contact sheet, for eyes.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <png.h>

#include "image_options.hpp"

#include <vggload/core/error.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/io/atomic_output_file.hpp>

namespace {

/// Pixels of a sheet with a margin around each image.
class contact_sheet {
 public:
  contact_sheet(vggload::image_size cell, std::size_t columns, std::size_t rows)
      : cell_(cell),
        width_(columns * (cell.width + margin) + margin),
        height_(rows * (cell.height + margin) + margin),
        columns_(columns),
        pixels_(width_ * height_ * 3, 255) {}

  /// Puts an image, dense RGB of 0 to 255, into the next place.
  void add(std::span<const float> image) {
    const std::size_t top = margin + next_ / columns_ * (cell_.height + margin);
    const std::size_t left = margin + next_ % columns_ * (cell_.width + margin);
    for (std::size_t y = 0; y < cell_.height; ++y) {
      std::uint8_t* const row = &pixels_[((top + y) * width_ + left) * 3];
      for (std::size_t i = 0; i < cell_.width * 3; ++i) {
        row[i] = static_cast<std::uint8_t>(
            std::lround(std::clamp(image[y * cell_.width * 3 + i], 0.0F, 255.0F)));
      }
    }
    ++next_;
  }

  void write(const std::string& path) const {
    png_image header{};
    header.version = PNG_IMAGE_VERSION;
    header.width = static_cast<png_uint_32>(width_);
    header.height = static_cast<png_uint_32>(height_);
    header.format = PNG_FORMAT_RGB;
    std::vector<std::byte> bytes(PNG_IMAGE_PNG_SIZE_MAX(header));
    png_alloc_size_t size = bytes.size();
    if (png_image_write_to_memory(&header, bytes.data(), &size, 0, pixels_.data(), 0, nullptr) ==
        0) {
      throw vggload::error(path + ": " + header.message);
    }
    vggload::atomic_output_file file(path, size);
    file.write_at(0, std::span(bytes).first(size));
    file.commit();
  }

 private:
  static constexpr std::size_t margin = 4;

  vggload::image_size cell_;
  std::size_t width_;
  std::size_t height_;
  std::size_t columns_;
  std::size_t next_ = 0;
  std::vector<std::uint8_t> pixels_;
};

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Draws a batch of augmented images as one PNG.");
  command::image_options wanted;
  std::string output;
  std::size_t columns = 0;
  command::add_image_options(app, wanted);
  app.add_option("OUT", output, "The PNG to write")->required();
  app.add_option("--columns", columns,
                 "Images beside each other (default: about as many as below each other)")
      ->transform(command::whole_number(1, 1024))
      ->type_name("N");
  return command::run(app, argc, argv, wanted.folder, [&] {
    command::with_batches(
        wanted, command::list_images(wanted), [&](auto& batches, const auto& source) {
          for (vggload::image_batch& batch : batches) {
            for (const vggload::skipped_image& image : batch.skipped()) {
              std::fprintf(stderr, "skipped: %s\n", image.reason.c_str());
            }
            if (batch.size() == 0) {
              throw vggload::error(vggload::printable(wanted.folder) +
                                   ": every image of the batch was skipped");
            }
            if (columns == 0) {
              columns =
                  static_cast<std::size_t>(std::ceil(std::sqrt(static_cast<double>(batch.size()))));
            }
            const std::size_t rows = (batch.size() + columns - 1) / columns;
            contact_sheet sheet(wanted.target, columns, rows);
            const auto values = batch.images().template values<float>();
            const std::size_t image_values = batch.format().values();
            for (std::size_t i = 0; i < batch.size(); ++i) {
              sheet.add(values.subspan(i * image_values, image_values));
            }
            sheet.write(output);
            for (std::size_t i = 0; i < batch.size(); ++i) {
              const auto index = static_cast<std::size_t>(batch.indices()[i]);
              std::printf("row %zu, column %zu: %s\n", i / columns + 1, i % columns + 1,
                          vggload::printable(source.folder().name(index)).c_str());
            }
            break;
          }
        });
  });
} catch (...) {
  return command::report_error("show_batch");
}
