// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Nanoseconds for each pixel of a sample that fast mode and the evaluation transform make of a decoded photograph's
// size, without decoding: the time of an iteration divided by the sample's pixels.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <vggload/core/dtype.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/evaluation_transform.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/scratch.hpp>

namespace {

using namespace vggload;

/// Runs `make(image, memory, sample)` again and again.
template <class Make>
void measure(benchmark::State& state, image_size size, const sample_format& format,
             const Make& make) {
  std::vector<std::uint8_t> source(size.height * size.width * 3);
  for (std::size_t i = 0; i < source.size(); ++i)
    source[i] = static_cast<std::uint8_t>(i * i >> 7U);
  const image_view image{source.data(), size.height, size.width, 3, size.width * 3};
  std::vector<std::byte> pixels(format.bytes());
  std::uint64_t index = 0;
  std::vector<skipped_image> skipped;
  image_sample sample{pixels, {}, index, skipped};
  scratch memory;
  for (auto _ : state) {
    memory.reset();
    make(image, memory, sample);
    benchmark::ClobberMemory();
  }
  const auto count = static_cast<double>(format.height * format.width);
  state.counters["pixels"] = benchmark::Counter(
      count, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void fast(benchmark::State& state, image_size size, const sample_format& format,
          const random_transform& drawn, fill_mode fill) {
  augmentation changes;
  changes.fill = fill;
  const fast_augmentation transform(format, changes, {.rescale = 1.0 / 255});
  measure(state, size, format, [&](const image_view& image, scratch& memory, image_sample& sample) {
    transform.apply(image, drawn, memory, sample);
  });
}

void evaluation(benchmark::State& state, const sample_format& format) {
  const evaluation_transform transform(format);
  measure(state, {375, 500}, format,
          [&](const image_view& image, scratch& memory, image_sample& sample) {
            transform(image, 0, 0, memory, sample);
          });
}

constexpr image_size photograph{375, 500};
constexpr image_size target{224, 224};

random_transform zoomed() {
  random_transform drawn;
  drawn.width_zoom = 0.9;
  drawn.height_zoom = 1.1;
  drawn.horizontal_flip = true;
  return drawn;
}

random_transform turned() {
  random_transform drawn = zoomed();
  drawn.rotation = 15;
  drawn.shear = 5;
  return drawn;
}

constexpr sample_format nhwc{};
constexpr sample_format nchw{.layout = image_layout::nchw};
constexpr sample_format half{.type = dtype::f16};
constexpr sample_format half_nchw{.type = dtype::f16, .layout = image_layout::nchw};

BENCHMARK_CAPTURE(fast, identity_f32_nhwc, target, nhwc, random_transform{}, fill_mode::nearest);
BENCHMARK_CAPTURE(fast, resize_f32_nhwc, photograph, nhwc, random_transform{}, fill_mode::nearest);
BENCHMARK_CAPTURE(fast, zoom_f32_nhwc, photograph, nhwc, zoomed(), fill_mode::nearest);
BENCHMARK_CAPTURE(fast, affine_f32_nhwc, photograph, nhwc, turned(), fill_mode::nearest);
BENCHMARK_CAPTURE(fast, affine_f32_nhwc_constant, photograph, nhwc, turned(), fill_mode::constant);
BENCHMARK_CAPTURE(fast, affine_f32_nhwc_reflect, photograph, nhwc, turned(), fill_mode::reflect);
BENCHMARK_CAPTURE(fast, affine_f32_nchw, photograph, nchw, turned(), fill_mode::nearest);
BENCHMARK_CAPTURE(fast, affine_f16_nhwc, photograph, half, turned(), fill_mode::nearest);
BENCHMARK_CAPTURE(fast, affine_f16_nchw, photograph, half_nchw, turned(), fill_mode::nearest);
BENCHMARK_CAPTURE(evaluation, f32_nchw, nchw);
BENCHMARK_CAPTURE(evaluation, f16_nchw, half_nchw);

}  // namespace

BENCHMARK_MAIN();
