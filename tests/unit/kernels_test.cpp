// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the forward pass is made of, for each instruction set, against sums in double precision.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/network/kernels.hpp>

#include "../support/simd_levels.hpp"

using vggload::network::detail::find_kernels;
using vggload::network::detail::kernels;

namespace {

/// Integers from -8 to 8: their products and sums are exact, in any order.
std::vector<float> small_integers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> digits(-8, 8);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(digits(random));
  return values;
}

template <class Test>
void for_each_level(const Test& test) {
  for (const vggload::simd_level level : test::simd_levels()) {
    INFO("level ", static_cast<int>(level));
    test(find_kernels(level));
  }
}

}  // namespace

TEST_CASE("products of any number of rows") {
  for_each_level([](const kernels& kernels) {
    const std::size_t panel = kernels.panel;
    CHECK(32 % panel == 0);
    for (std::size_t rows = 1; rows <= 30; ++rows) {
      constexpr std::size_t count = 27;
      constexpr std::size_t stride = 31;
      const std::vector<float> inputs = small_integers(rows * stride, 1);
      const std::vector<float> weights = small_integers(count * panel, 2);
      std::vector<float> products((rows + 1) * panel, 99);
      kernels.multiply(inputs.data(), stride, rows, count, weights.data(), products.data());
      std::size_t wrong = 0;
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t i = 0; i < panel; ++i) {
          float sum = 0;
          for (std::size_t k = 0; k < count; ++k) {
            sum += inputs[r * stride + k] * weights[k * panel + i];
          }
          if (products[r * panel + i] != sum) ++wrong;
        }
      }
      CHECK(wrong == 0);
      CHECK(products[rows * panel] == 99);
    }
  });
}

TEST_CASE("dot products of four rows and any number of images") {
  for_each_level([](const kernels& kernels) {
    for (std::size_t images = 1; images <= 9; ++images) {
      constexpr std::size_t count = 48;
      constexpr std::size_t stride = 50;
      const std::vector<float> weights = small_integers(4 * stride, 3);
      const std::vector<float> inputs = small_integers(images * stride, 4);
      std::vector<float> sums(4 * images, 1000);
      kernels.add_dots(weights.data(), stride, inputs.data(), stride, images, count, sums.data());
      for (std::size_t image = 0; image < images; ++image) {
        for (std::size_t row = 0; row < 4; ++row) {
          float sum = 1000;
          for (std::size_t k = 0; k < count; ++k) {
            sum += weights[row * stride + k] * inputs[image * stride + k];
          }
          CHECK(sums[4 * image + row] == sum);
        }
      }
    }
  });
}

TEST_CASE("scaled rows of any length") {
  for_each_level([](const kernels& kernels) {
    for (std::size_t count = 1; count <= 70; ++count) {
      constexpr std::size_t rows = 5;
      constexpr std::size_t stride = 73;
      const std::vector<float> weights = small_integers(rows * stride, 5);
      const std::vector<float> factors = small_integers(rows, 6);
      std::vector<float> outputs(count + 1, 50);
      kernels.add_scaled_rows(weights.data(), stride, factors.data(), rows, count, outputs.data());
      for (std::size_t i = 0; i < count; ++i) {
        float sum = 50;
        for (std::size_t r = 0; r < rows; ++r) sum += factors[r] * weights[r * stride + i];
        CHECK(outputs[i] == sum);
      }
      CHECK(outputs[count] == 50);
    }
  });
}

namespace {

/// A tile of 2x2 outputs: 4x4 pixels of 16 channels, 3x3 taps of them for a panel of outputs.
struct tile_case {
  std::size_t panel;
  std::vector<float> pixels = small_integers(16 * 16, 7);
  std::vector<float> taps = small_integers(9 * 16 * panel, 8);
  std::vector<float> bias = small_integers(panel, 9);

  /// The convolution by its definition, with bias and ReLU.
  [[nodiscard]] float wanted(std::size_t y, std::size_t x, std::size_t output) const {
    float sum = bias[output];
    for (std::size_t tap = 0; tap < 9; ++tap) {
      for (std::size_t c = 0; c < 16; ++c) {
        sum += pixels[((y + tap / 3) * 4 + x + tap % 3) * 16 + c] *
               taps[(tap * 16 + c) * panel + output];
      }
    }
    return std::max(sum, 0.0F);
  }

  /// By Winograd's way: the outputs [2, 2, panel], or one pooled [panel]; what is not written is 99.
  [[nodiscard]] std::vector<float> convolve(const kernels& kernels, bool pooled, bool has_right,
                                            bool has_below) const {
    std::array<const float*, 16> patch;
    for (std::size_t i = 0; i < 16; ++i) patch[i] = pixels.data() + 16 * i;
    std::vector<float> inputs(16 * 16);
    kernels.transform_input(patch, 16, inputs.data(), 16);
    const std::size_t plane = 16 * panel + 3;
    std::vector<float> weights(16 * plane);
    kernels.transform_weights(taps.data(), 16, weights.data(), plane);
    std::vector<float> products(16 * panel);
    for (std::size_t i = 0; i < 16; ++i) {
      kernels.multiply(inputs.data() + 16 * i, 16, 1, 16, weights.data() + i * plane,
                       products.data() + i * panel);
    }
    std::vector<float> outputs(4 * panel, 99);
    kernels.transform_output({.products = products.data(),
                              .plane = panel,
                              .bias = bias.data(),
                              .output = outputs.data(),
                              .row = 2 * panel,
                              .pixel = panel,
                              .has_right = has_right,
                              .has_below = has_below,
                              .pooled = pooled});
    return outputs;
  }
};

}  // namespace

TEST_CASE("a tile is the convolution written out") {
  for_each_level([](const kernels& kernels) {
    const tile_case tile{kernels.panel};
    for (const bool has_right : {false, true}) {
      for (const bool has_below : {false, true}) {
        const std::vector<float> outputs = tile.convolve(kernels, false, has_right, has_below);
        for (std::size_t i = 0; i < tile.panel; ++i) {
          for (std::size_t y = 0; y < 2; ++y) {
            for (std::size_t x = 0; x < 2; ++x) {
              const bool is_written = (y == 0 || has_below) && (x == 0 || has_right);
              // Halves and quarters of small integers are exact as well.
              CHECK(outputs[(2 * y + x) * tile.panel + i] ==
                    (is_written ? tile.wanted(y, x, i) : 99));
            }
          }
        }
      }
    }
    const std::vector<float> pooled = tile.convolve(kernels, true, true, true);
    for (std::size_t i = 0; i < tile.panel; ++i) {
      CHECK(pooled[i] == std::max({tile.wanted(0, 0, i), tile.wanted(0, 1, i), tile.wanted(1, 0, i),
                                   tile.wanted(1, 1, i)}));
      CHECK(pooled[tile.panel + i] == 99);
    }
  });
}

TEST_CASE("NaNs survive bias, ReLU and pooling") {
  for_each_level([](const kernels& kernels) {
    tile_case tile{kernels.panel};
    tile.pixels[0] = std::numeric_limits<float>::quiet_NaN();  // of the first output's pixels alone
    const std::vector<float> pooled = tile.convolve(kernels, true, true, true);
    for (std::size_t i = 0; i < tile.panel; ++i) CHECK(std::isnan(pooled[i]));
    const std::vector<float> products(kernels.panel, std::numeric_limits<float>::quiet_NaN());
    std::vector<float> row(kernels.panel);
    kernels.finish_row(products.data(), tile.bias.data(), row.data());
    for (const float value : row) CHECK(std::isnan(value));
  });
}
