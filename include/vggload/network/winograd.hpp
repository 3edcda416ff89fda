// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>

// The loop behind it may be taken in any order: a compiler need not prove that what is written is not read.
#if defined(__clang__)
#define VGGLOAD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define VGGLOAD_INDEPENDENT _Pragma("GCC ivdep")
#endif

/// A convolution by Winograd's minimal filtering F(2x2, 3x3): a tile of 2x2 outputs of one channel takes 16
/// multiplications for each input channel where its definition takes 36 (Lavin and Gray, "Fast Algorithms for
/// Convolutional Neural Networks", 2015, section 4.1). Tiles of 4x4 inputs and the 3x3 weights are transformed to 16
/// planes each; in each plane the sum over the channels is a matrix product; and the outputs are transformed back. The
/// matrices hold 0, 1, -1 and 1/2 alone, so the error is that of the plain sum, nearly.
///
/// The functions are inlined where instruction sets are told apart (kernels_x86.hpp): their loops have the length of
/// vectors.
namespace vggload::network::detail {

struct two {
  float a, b;
};
struct three {
  float a, b, c;
};
struct four {
  float a, b, c, d;
};

[[gnu::always_inline]] inline four input_transform(four x) noexcept {
  return {x.a - x.c, x.b + x.c, x.c - x.b, x.b - x.d};
}
[[gnu::always_inline]] inline four weight_transform(three x) noexcept {
  const float sides = 0.5F * (x.a + x.c);
  const float middle = 0.5F * x.b;
  return {x.a, sides + middle, sides - middle, x.c};
}
[[gnu::always_inline]] inline two output_transform(four x) noexcept {
  return {x.a + x.b + x.c, x.b - x.c - x.d};
}

/// Not below zero; a NaN stays one.
[[gnu::always_inline]] inline float rectified(float value) noexcept {
  return value < 0 ? 0 : value;
}
/// A NaN is larger than all.
[[gnu::always_inline]] inline float larger(float a, float b) noexcept {
  const float most = b > a ? b : a;
  return b != b ? b : most;
}

/// Sixteen channels at a time: `patch`, 4x4 pixels in row-major order, each with its channels side by side. `planes[p *
/// plane]` is plane p's first channel of this tile.
[[gnu::always_inline]] inline void transform_input(const std::array<const float*, 16>& patch,
                                                   std::size_t channels, float* planes,
                                                   std::size_t plane) noexcept {
  for (std::size_t first = 0; first < channels; first += 16) {
    VGGLOAD_INDEPENDENT
    for (std::size_t c = first; c < first + 16; ++c) {
      const four r0 = input_transform({patch[0][c], patch[1][c], patch[2][c], patch[3][c]});
      const four r1 = input_transform({patch[4][c], patch[5][c], patch[6][c], patch[7][c]});
      const four r2 = input_transform({patch[8][c], patch[9][c], patch[10][c], patch[11][c]});
      const four r3 = input_transform({patch[12][c], patch[13][c], patch[14][c], patch[15][c]});
      const four a = input_transform({r0.a, r1.a, r2.a, r3.a});
      const four b = input_transform({r0.b, r1.b, r2.b, r3.b});
      const four c2 = input_transform({r0.c, r1.c, r2.c, r3.c});
      const four d = input_transform({r0.d, r1.d, r2.d, r3.d});
      planes[c] = a.a;
      planes[plane + c] = b.a;
      planes[2 * plane + c] = c2.a;
      planes[3 * plane + c] = d.a;
      planes[4 * plane + c] = a.b;
      planes[5 * plane + c] = b.b;
      planes[6 * plane + c] = c2.b;
      planes[7 * plane + c] = d.b;
      planes[8 * plane + c] = a.c;
      planes[9 * plane + c] = b.c;
      planes[10 * plane + c] = c2.c;
      planes[11 * plane + c] = d.c;
      planes[12 * plane + c] = a.d;
      planes[13 * plane + c] = b.d;
      planes[14 * plane + c] = c2.d;
      planes[15 * plane + c] = d.d;
    }
  }
}

/// `taps`: [9][channels][Panel]. To [channels][Panel] in each plane.
template <std::size_t Panel>
[[gnu::always_inline]] inline void transform_weights(const float* taps, std::size_t channels,
                                                     float* planes, std::size_t plane) noexcept {
  const std::size_t tap = channels * Panel;
  for (std::size_t first = 0; first < tap; first += Panel) {
    VGGLOAD_INDEPENDENT
    for (std::size_t i = first; i < first + Panel; ++i) {
      const four r0 = weight_transform({taps[i], taps[tap + i], taps[2 * tap + i]});
      const four r1 = weight_transform({taps[3 * tap + i], taps[4 * tap + i], taps[5 * tap + i]});
      const four r2 = weight_transform({taps[6 * tap + i], taps[7 * tap + i], taps[8 * tap + i]});
      const four a = weight_transform({r0.a, r1.a, r2.a});
      const four b = weight_transform({r0.b, r1.b, r2.b});
      const four c = weight_transform({r0.c, r1.c, r2.c});
      const four d = weight_transform({r0.d, r1.d, r2.d});
      planes[i] = a.a;
      planes[plane + i] = b.a;
      planes[2 * plane + i] = c.a;
      planes[3 * plane + i] = d.a;
      planes[4 * plane + i] = a.b;
      planes[5 * plane + i] = b.b;
      planes[6 * plane + i] = c.b;
      planes[7 * plane + i] = d.b;
      planes[8 * plane + i] = a.c;
      planes[9 * plane + i] = b.c;
      planes[10 * plane + i] = c.c;
      planes[11 * plane + i] = d.c;
      planes[12 * plane + i] = a.d;
      planes[13 * plane + i] = b.d;
      planes[14 * plane + i] = c.d;
      planes[15 * plane + i] = d.d;
    }
  }
}

/// A tile of 2x2 outputs of a panel's channels.
struct output_tile {
  const float* products;  // the first plane's
  std::size_t plane;      // values from one plane's to the next
  const float* bias;
  float* output;      // of the tile's first pixel
  std::size_t row;    // values from one row of pixels to the next
  std::size_t pixel;  // values from one pixel to the next
  bool has_right;     // a second column within the map
  bool has_below;
  bool pooled;  // the largest of the four is all that is written
};

template <std::size_t Panel>
[[gnu::always_inline]] inline void transform_output(const output_tile& tile) noexcept {
  const float* const m = tile.products;
  const std::size_t plane = tile.plane;
  alignas(64) std::array<std::array<float, Panel>, 4> results;
  VGGLOAD_INDEPENDENT
  for (std::size_t i = 0; i < Panel; ++i) {
    const two c0 = output_transform({m[i], m[4 * plane + i], m[8 * plane + i], m[12 * plane + i]});
    const two c1 =
        output_transform({m[plane + i], m[5 * plane + i], m[9 * plane + i], m[13 * plane + i]});
    const two c2 = output_transform(
        {m[2 * plane + i], m[6 * plane + i], m[10 * plane + i], m[14 * plane + i]});
    const two c3 = output_transform(
        {m[3 * plane + i], m[7 * plane + i], m[11 * plane + i], m[15 * plane + i]});
    const two above = output_transform({c0.a, c1.a, c2.a, c3.a});
    const two below = output_transform({c0.b, c1.b, c2.b, c3.b});
    results[0][i] = rectified(above.a + tile.bias[i]);
    results[1][i] = rectified(above.b + tile.bias[i]);
    results[2][i] = rectified(below.a + tile.bias[i]);
    results[3][i] = rectified(below.b + tile.bias[i]);
  }
  if (tile.pooled) {
    VGGLOAD_INDEPENDENT
    for (std::size_t i = 0; i < Panel; ++i) {
      tile.output[i] =
          larger(larger(results[0][i], results[1][i]), larger(results[2][i], results[3][i]));
    }
    return;
  }
  const auto write = [](const std::array<float, Panel>& values, float* to) {
    VGGLOAD_INDEPENDENT
    for (std::size_t i = 0; i < Panel; ++i) to[i] = values[i];
  };
  write(results[0], tile.output);
  if (tile.has_right) write(results[1], tile.output + tile.pixel);
  if (tile.has_below) write(results[2], tile.output + tile.row);
  if (tile.has_right && tile.has_below) write(results[3], tile.output + tile.row + tile.pixel);
}

/// Bias and ReLU of a row of a panel.
template <std::size_t Panel>
[[gnu::always_inline]] inline void finish_row(const float* products, const float* bias,
                                              float* output) noexcept {
  VGGLOAD_INDEPENDENT
  for (std::size_t i = 0; i < Panel; ++i) output[i] = rectified(products[i] + bias[i]);
}

}  // namespace vggload::network::detail
