// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <jpeglib.h>

namespace test {

/// How a JPEG's coefficients are written.
enum class jpeg_scans { one, one_for_each_component, progressive };

/// A JPEG of waves and noise, 4:2:0: by libjpeg, as files from elsewhere are.
inline std::string jpeg_file(std::size_t height, std::size_t width, unsigned seed,
                             jpeg_scans scans = jpeg_scans::one) {
  std::vector<JSAMPLE> row(width * 3);
  jpeg_compress_struct encoder{};
  jpeg_error_mgr errors{};
  encoder.err = jpeg_std_error(&errors);
  jpeg_create_compress(&encoder);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&encoder, &bytes, &size);
  encoder.image_height = static_cast<JDIMENSION>(height);
  encoder.image_width = static_cast<JDIMENSION>(width);
  encoder.input_components = 3;
  encoder.in_color_space = JCS_RGB;
  jpeg_set_defaults(&encoder);
  jpeg_set_quality(&encoder, 90, TRUE);
  if (scans == jpeg_scans::progressive) jpeg_simple_progression(&encoder);
  const std::array<jpeg_scan_info, 3> separate{
      {{1, {0}, 0, 63, 0, 0}, {1, {1}, 0, 63, 0, 0}, {1, {2}, 0, 63, 0, 0}}};
  if (scans == jpeg_scans::one_for_each_component) {
    encoder.scan_info = separate.data();
    encoder.num_scans = separate.size();
  }
  jpeg_start_compress(&encoder, TRUE);
  unsigned noise = seed * 2654435761U + 1;
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      noise = noise * 1664525U + 1013904223U;
      const double wave = 100 + 80 * std::sin(0.02 * static_cast<double>(i + seed)) *
                                    std::cos(0.05 * static_cast<double>(y));
      row[i] = static_cast<JSAMPLE>(wave + (noise >> 24U) % 32);
    }
    JSAMPROW rows = row.data();
    jpeg_write_scanlines(&encoder, &rows, 1);
  }
  jpeg_finish_compress(&encoder);
  jpeg_destroy_compress(&encoder);
  std::string file(reinterpret_cast<const char*>(bytes), size);
  std::free(bytes);  // NOLINT(cppcoreguidelines-no-malloc): libjpeg's
  return file;
}

}  // namespace test
