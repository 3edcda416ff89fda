// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Images per second of one way to read an image folder, in the second epoch: bench_batches MODE FOLDER WORKERS
// MODE: decode (libjpeg alone, files in memory, pixels into a buffer: the limit), fast, fast-f16, exact.
// bench/image_peers.py runs it beside others. The changes are those of Keras' tutorials: shear and zoom of 0.2, flips.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <jpeglib.h>

#include <vggload/core/error.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/keras_batches.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/io/input_file.hpp>

namespace {

using namespace vggload;

constexpr std::size_t batch_size = 32;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Decodes each `step`-th file from `first` on: libjpeg as a C program would use it, one object for all images, its
/// defaults, whole rows into one buffer.
void decode_files(const std::vector<std::vector<std::byte>>& files, std::size_t first,
                  std::size_t step) {
  jpeg_decompress_struct decoder{};
  jpeg_error_mgr errors{};
  decoder.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&decoder);
  std::vector<JSAMPLE> pixels;
  for (std::size_t file = first; file < files.size(); file += step) {
    jpeg_mem_src(&decoder, reinterpret_cast<const unsigned char*>(files[file].data()),
                 files[file].size());
    jpeg_read_header(&decoder, TRUE);
    decoder.out_color_space = JCS_RGB;
    jpeg_start_decompress(&decoder);
    const std::size_t row_bytes = std::size_t{decoder.output_width} * 3;
    const std::size_t height = decoder.output_height;
    pixels.resize(std::max(pixels.size(), row_bytes * height));
    while (decoder.output_scanline < height) {
      std::array<JSAMPROW, 16> rows;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] = pixels.data() + std::min(decoder.output_scanline + i, height - 1) * row_bytes;
      }
      jpeg_read_scanlines(&decoder, rows.data(), static_cast<JDIMENSION>(rows.size()));
    }
    jpeg_finish_decompress(&decoder);
  }
  jpeg_destroy_decompress(&decoder);
}

double decode_alone(const image_folder& folder, unsigned threads) {
  std::vector<std::vector<std::byte>> files;
  for (std::size_t i = 0; i < folder.size(); ++i) {
    const input_file file(folder.path(i));
    files.emplace_back(static_cast<std::size_t>(file.size()));
    file.read_at(0, files.back());
  }
  double seconds = 0;
  for (int pass = 0; pass < 2; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    {
      std::vector<std::jthread> others;
      for (unsigned i = 1; i < threads; ++i) {
        others.emplace_back([&, i] { decode_files(files, i, threads); });
      }
      decode_files(files, 0, std::max(threads, 1U));
    }
    seconds = seconds_since(start);
  }
  return static_cast<double>(files.size()) / seconds;
}

template <class Batches>
double images_per_second(Batches& batches, unsigned workers) {
  auto ready = batches | prefetch({.workers = workers});
  double speed = 0;
  for (int epoch = 0; epoch < 2; ++epoch) {
    const auto start = std::chrono::steady_clock::now();
    std::size_t images = 0;
    for (const image_batch& batch : ready) images += batch.size();
    speed = static_cast<double>(images) / seconds_since(start);
  }
  return speed;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) return 2;
  const std::string_view mode = argv[1];
  const auto workers = static_cast<unsigned>(std::strtoul(argv[3], nullptr, 10));
  image_folder folder(argv[2]);
  const augmentation changes{.shear_range = 0.2, .zoom_range = {0.8, 1.2}, .horizontal_flip = true};
  const normalisation values{.rescale = 1.0 / 255};
  double speed = 0;
  if (mode == "decode") {
    speed = decode_alone(folder, workers);
  } else if (mode == "exact") {
    keras_batches batches(std::move(folder), {.target = {224, 224},
                                              .batch_size = batch_size,
                                              .seed = 1,
                                              .augmentation = changes,
                                              .normalisation = values});
    speed = images_per_second(batches, workers);
  } else {
    const sample_format format{.type = mode == "fast-f16" ? dtype::f16 : dtype::f32};
    auto batches =
        image_sequence(std::move(folder), fast_augmentation(format, changes, values, 1)) |
        shuffle(1) | batch(batch_size);
    speed = images_per_second(batches, workers);
  }
  std::printf("%.1f\n", speed);
} catch (const std::exception& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return 1;
}
