// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The forward pass against sums written out, on small images. What takes a whole VGG16 with its top
// is in footprint_bar_test.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/forward.hpp>
#include <vggload/network/streamed_weights.hpp>
#include <vggload/vgg16/load.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

namespace vgg16 = vggload::vgg16;
using vgg16::weight_layout;
using vggload::dtype;
using vggload::element_order;
using vggload::tensor_view;
using vggload::network::forward_pass;

namespace {

/// Weights of the convolutions, [out][in][down][along], and biases. All are 7-bit integers times a
/// power of two, which FP16 and BF16 hold exactly: one reference serves all types.
struct parameters {
  std::vector<std::vector<float>> weights;
  std::vector<std::vector<float>> biases;
};

const parameters& random_parameters() {
  static const parameters drawn = [] {
    std::mt19937 random(1);  // NOLINT(cert-msc32-c,cert-msc51-cpp)
    parameters made;
    const auto draw = [&](std::uint64_t count, double deviation) {
      const int exponent = static_cast<int>(std::lround(std::log2(deviation / 73)));
      std::uniform_int_distribution<int> digits(-127, 127);
      std::vector<float> values(count);
      for (float& value : values) {
        value = std::ldexp(static_cast<float>(digits(random)), exponent);
      }
      return values;
    };
    for (std::size_t i = 0; i < vgg16::conv_layers; ++i) {
      const vgg16::layer& layer = vgg16::layers[i];
      made.weights.push_back(draw(layer.weights(), std::sqrt(2.0 / (9.0 * layer.inputs))));
      made.biases.push_back(draw(layer.outputs, 0.1));
    }
    return made;
  }();
  return drawn;
}

std::vector<float> random_images(std::size_t count) {
  std::mt19937 random(2);  // NOLINT(cert-msc32-c,cert-msc51-cpp)
  std::uniform_real_distribution<float> values(-1, 1);
  std::vector<float> images(count);
  for (float& value : images) value = values(random);
  return images;
}

/// The layers of one image in double, one sum after the other.
std::vector<double> reference(std::span<const float> image, std::size_t height, std::size_t width) {
  std::vector<double> map(image.begin(), image.end());
  for (std::size_t i = 0; i < vgg16::conv_layers; ++i) {
    const std::size_t in = vgg16::layers[i].inputs;
    const std::size_t out = vgg16::layers[i].outputs;
    // [down][along][in][out], so that the innermost loop is quick.
    std::vector<double> weights(9 * in * out);
    for (std::size_t o = 0; o < out; ++o) {
      for (std::size_t c = 0; c < in; ++c) {
        for (std::size_t tap = 0; tap < 9; ++tap) {
          weights[(tap * in + c) * out + o] =
              double{random_parameters().weights[i][(o * in + c) * 9 + tap]};
        }
      }
    }
    std::vector<double> next(height * width * out);
    for (std::size_t y = 0; y < height; ++y) {
      for (std::size_t x = 0; x < width; ++x) {
        double* const sums = &next[(y * width + x) * out];
        for (std::size_t o = 0; o < out; ++o) sums[o] = double{random_parameters().biases[i][o]};
        for (std::size_t tap = 0; tap < 9; ++tap) {
          const std::size_t row = y + tap / 3;
          const std::size_t column = x + tap % 3;
          if (row < 1 || row > height || column < 1 || column > width) continue;
          for (std::size_t c = 0; c < in; ++c) {
            const double value = map[((row - 1) * width + column - 1) * in + c];
            const double* const factors = &weights[(tap * in + c) * out];
            for (std::size_t o = 0; o < out; ++o) sums[o] += value * factors[o];
          }
        }
        for (std::size_t o = 0; o < out; ++o) sums[o] = std::max(sums[o], 0.0);
      }
    }
    map = std::move(next);
    const bool last_of_block = i == 1 || i == 3 || i == 6 || i == 9 || i == 12;
    if (!last_of_block) continue;
    std::vector<double> pooled(height / 2 * (width / 2) * out);
    for (std::size_t y = 0; y < height / 2; ++y) {
      for (std::size_t x = 0; x < width / 2; ++x) {
        for (std::size_t o = 0; o < out; ++o) {
          const auto at = [&](std::size_t down, std::size_t along) {
            return map[((2 * y + down) * width + 2 * x + along) * out + o];
          };
          pooled[(y * (width / 2) + x) * out + o] =
              std::max({at(0, 0), at(0, 1), at(1, 0), at(1, 1)});
        }
      }
    }
    map = std::move(pooled);
    height /= 2;
    width /= 2;
  }
  return map;
}

/// How the parameters lie in memory.
struct arrangement {
  weight_layout layout = weight_layout::torch;
  dtype type = dtype::f32;
  element_order order = element_order::row_major;
  std::size_t misplaced = 0;  // bytes off alignment
};

/// Owns the bytes that `views` shows.
class arranged_weights {
 public:
  explicit arranged_weights(const arrangement& how) {
    std::vector<vgg16::layer_view> layers;
    for (std::size_t i = 0; i < vgg16::conv_layers; ++i) {
      const vgg16::layer& layer = vgg16::layers[i];
      const std::array<std::uint64_t, 4> torch_dims{layer.outputs, layer.inputs, 3, 3};
      // Keras' axes are torch's third, fourth, second and first.
      const std::array<std::size_t, 4> axes = how.layout == weight_layout::torch
                                                  ? std::array<std::size_t, 4>{0, 1, 2, 3}
                                                  : std::array<std::size_t, 4>{2, 3, 1, 0};
      std::vector<std::uint64_t> dims;
      for (const std::size_t axis : axes) dims.push_back(torch_dims[axis]);
      std::array<std::size_t, 4> strides{};  // by torch's axes
      std::size_t stride = 1;
      for (std::size_t n = 0; n < 4; ++n) {
        const std::size_t axis = how.order == element_order::row_major ? axes[3 - n] : axes[n];
        strides[axis] = stride;
        stride *= torch_dims[axis];
      }
      const auto& source = random_parameters().weights[i];
      std::vector<float> moved(source.size());
      for (std::size_t e = 0; e < source.size(); ++e) {
        moved[e / 9 / layer.inputs * strides[0] + e / 9 % layer.inputs * strides[1] +
              e % 9 / 3 * strides[2] + e % 3 * strides[3]] = source[e];
      }
      layers.push_back(
          {layer, tensor_view(how.type, vggload::shape(dims), store(moved, how), how.order),
           tensor_view(how.type, {layer.outputs}, store(random_parameters().biases[i], how))});
    }
    views_ = vgg16::weights(how.layout, std::move(layers));
  }

  [[nodiscard]] const vgg16::weights& views() const { return views_; }

 private:
  std::span<const std::byte> store(const std::vector<float>& values, const arrangement& how) {
    const std::size_t bytes = values.size() * vggload::bits_of(how.type) / 8;
    std::vector<std::byte>& place = bytes_.emplace_back(bytes + how.misplaced);
    (void)vggload::find_conversion(dtype::f32, how.type)(
        reinterpret_cast<const std::byte*>(values.data()), place.data() + how.misplaced,
        values.size());
    return {place.data() + how.misplaced, bytes};
  }

  std::vector<std::vector<std::byte>> bytes_;
  vgg16::weights views_;
};

constexpr std::size_t height = 33;  // 16, 8, 4, 2, 1
constexpr std::size_t width = 71;   // 35, 17, 8, 4, 2
constexpr std::size_t image_values = height * width * 3;

const std::vector<double>& wanted() {
  static const std::vector<double> values = reference(random_images(image_values), height, width);
  return values;
}

void check_close(std::span<const float> got, std::span<const double> expected) {
  REQUIRE(got.size() == expected.size());
  const double largest = *std::max_element(expected.begin(), expected.end());
  REQUIRE(largest > 0.01);
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(double{got[i]} - expected[i]));
  }
  // 13 layers of sums of up to 4608 products, each rounded to 2^-24.
  CHECK(worst < 1e-5 * largest);
}

}  // namespace

TEST_CASE("the maps are the sums written out, in each layout, order and type") {
  const std::vector<float> image = random_images(image_values);
  unsigned threads = 1;
  for (const weight_layout layout : {weight_layout::torch, weight_layout::keras}) {
    for (const arrangement& how :
         std::vector<arrangement>{{layout, dtype::f32},
                                  {layout, dtype::f16},
                                  {layout, dtype::bf16, element_order::column_major},
                                  {layout, dtype::f32, element_order::column_major, 1}}) {
      INFO(name_of(layout), " ", vggload::name_of(how.type), " by ", threads, " threads");
      const arranged_weights weights(how);
      forward_pass pass(weights.views(), {.height = height, .width = width, .threads = threads});
      CHECK(pass.output_shape() == vggload::shape{1, 1, 2, 512});
      check_close(pass(image), wanted());
      threads = threads % 4 + 1;
    }
  }
}

TEST_CASE("more threads than rows or outputs, and again with the same buffers") {
  const std::vector<float> image = random_images(image_values);
  const arranged_weights weights({weight_layout::torch, dtype::f16});
  forward_pass pass(weights.views(), {.height = height, .width = width, .threads = 100});
  check_close(pass(image), wanted());
  check_close(pass(image), wanted());
}

TEST_CASE("the number of threads changes no bit") {
  const std::vector<float> image = random_images(image_values);
  for (const weight_layout layout : {weight_layout::torch, weight_layout::keras}) {
    const arranged_weights weights({layout, dtype::bf16});
    std::vector<float> first;
    for (const unsigned threads : {1U, 2U, 5U, 64U}) {
      forward_pass pass(weights.views(), {.height = height, .width = width, .threads = threads});
      const auto maps = pass(image);
      if (first.empty()) first.assign(maps.begin(), maps.end());
      CHECK(std::ranges::equal(maps, first));
    }
  }
}

namespace {

/// A file with the parameters, under the names of the layout's family.
std::string write_file(const test::temporary_folder& folder, const arrangement& how) {
  const arranged_weights weights(how);
  const auto& map = how.layout == weight_layout::torch ? vgg16::name_maps[0] : vgg16::name_maps[4];
  std::vector<vggload::tensor_info> infos;
  std::vector<std::span<const std::byte>> payloads;
  for (std::size_t i = 0; i < vgg16::conv_layers; ++i) {
    const vgg16::layer_view& layer = weights.views().layers()[i];
    for (const bool is_bias : {false, true}) {
      const tensor_view& view = is_bias ? layer.bias : layer.weight;
      infos.push_back({name_in(map, {i, is_bias}), view.dtype(), view.shape(), 0});
      payloads.push_back(view.bytes());
    }
  }
  std::string path = folder.file("weights.safetensors");
  vggload::safetensors_writer writer(path, infos);
  for (std::size_t i = 0; i < payloads.size(); ++i) {
    writer.write_data(writer.data_offset(i), payloads[i]);
  }
  writer.commit();
  return path;
}

}  // namespace

TEST_CASE("weights that stay in their file give the same bits as loaded ones") {
  using vggload::network::streamed_weights;
  const std::vector<float> image = random_images(image_values);
  const test::temporary_folder folder;
  for (const weight_layout layout : {weight_layout::torch, weight_layout::keras}) {
    for (const auto& each : std::vector<std::pair<dtype, std::vector<std::optional<dtype>>>>{
             {dtype::f32, {std::nullopt, dtype::f16}},
             {dtype::f16, {std::nullopt, dtype::f32}},
             {dtype::f64, {dtype::f32}}}) {
      const dtype in_file = each.first;
      const std::string path = write_file(folder, {layout, in_file});
      for (const std::optional<dtype> used : each.second) {
        INFO(name_of(layout), " ", vggload::name_of(in_file));
        const auto file = vggload::open_checkpoint(path);
        const auto model = vgg16::load(file, {.dtype = used, .include_top = false});
        forward_pass loaded(model.weights(), {.height = height, .width = width, .threads = 1});
        const streamed_weights streamed(file, used, false);
        forward_pass pass(streamed, {.height = height, .width = width, .threads = 2});
        CHECK(std::ranges::equal(pass(image), loaded(image)));
        CHECK(pass.memory().capacity() ==
              loaded.memory().capacity() + 4 * 28 * 16 * 560);  // the second thread's
      }
    }
  }
}

TEST_CASE(
    "weights that a narrower type cannot hold are kept, made finite, or refused with their place") {
  using vggload::overflow_policy;
  const test::temporary_folder folder;
  const std::string path = write_file(folder, {});
  const auto file = vggload::open_checkpoint(path);
  // block5_conv3's weight [512, 512, 3, 3]: the last element.
  const std::size_t tensor = *file.find("features.28.weight");
  const float large = 70000;
  {
    std::fstream bytes(path, std::ios::in | std::ios::out | std::ios::binary);
    const auto view = *file.view(tensor);
    const auto begin = view.data() - file.view(*file.find("features.0.weight"))->data();
    std::string all = test::read_file(path);
    const auto first = static_cast<std::ptrdiff_t>(all.size()) -
                       static_cast<std::ptrdiff_t>(4 * vgg16::parameter_count(false));
    bytes.seekp(first + begin + static_cast<std::ptrdiff_t>(view.size()) - 4);
    bytes.write(reinterpret_cast<const char*>(&large), 4);
  }
  const std::vector<float> image = random_images(image_values);
  const auto maps_of = [&](overflow_policy policy) {
    const vggload::network::streamed_weights weights(file, dtype::f16, false, policy);
    forward_pass pass(weights, {.height = height, .width = width, .threads = 2});
    const auto maps = pass(image);
    return std::vector<float>(maps.begin(), maps.end());
  };
  CHECK_FALSE(std::ranges::all_of(maps_of(overflow_policy::keep),
                                  [](float value) { return std::isfinite(value); }));
  const auto model = vgg16::load(
      file, {.dtype = dtype::f16, .overflow = overflow_policy::saturate, .include_top = false});
  forward_pass loaded(model.weights(), {.height = height, .width = width, .threads = 1});
  CHECK(std::ranges::equal(maps_of(overflow_policy::saturate), loaded(image)));
  CHECK(test::message_of<vggload::overflow_error>([&] {
          (void)maps_of(overflow_policy::refuse);
        }) == path +
                  ": tensor 'features.28.weight': F32 70000 at [511, 511, 2, 2] exceeds F16, whose "
                  "largest value is 65504");
}

TEST_CASE("a file that ends while it is read is an error with the tensor's name") {
  const test::temporary_folder folder;
  const std::string path = write_file(folder, {});
  const vggload::network::streamed_weights weights(vggload::open_checkpoint(path), std::nullopt,
                                                   false);
  forward_pass pass(weights, {.height = 32, .width = 32, .threads = 3});
  const std::vector<float> image = random_images(std::size_t{32} * 32 * 3);
  (void)pass(image);
  std::filesystem::resize_file(path, 30'000'000);
  const std::string message = test::message_of<vggload::io_error>([&] { (void)pass(image); });
  CHECK(message.starts_with(path + ": "));
  CHECK(message.find("(tensor 'features.") != std::string::npos);
}

TEST_CASE("what the progress throws ends the pass, and the next one is whole") {
  const arranged_weights weights({weight_layout::torch, dtype::f32});
  const std::vector<float> image = random_images(image_values);
  bool stops = false;
  std::size_t layers = 0;
  forward_pass pass(
      weights.views(),
      {.height = height, .width = width, .threads = 3, .progress = [&](const auto& layer) {
         ++layers;
         if (stops && layer.done == 4) throw std::runtime_error("enough");
       }});
  const auto values_of = [&] {
    const auto maps = pass(image);
    return std::vector<float>(maps.begin(), maps.end());
  };
  const std::vector<float> whole = values_of();
  stops = true;
  layers = 0;
  CHECK(test::message_of<std::runtime_error>([&] { (void)pass(image); }) == "enough");
  CHECK(layers == 4);
  stops = false;
  CHECK(values_of() == whole);
}

TEST_CASE("a pass ends where it is asked to") {
  const std::vector<float> image = random_images(image_values);
  const arranged_weights weights({weight_layout::keras, dtype::f16});
  const auto maps_of = [&](std::string_view layer, const vggload::shape& wanted) {
    std::vector<std::string> done;
    forward_pass pass(weights.views(), {.height = height,
                                        .width = width,
                                        .last_layer = layer,
                                        .threads = 2,
                                        .progress = [&](const auto& made) {
                                          CHECK(made.done == done.size() + 1);
                                          done.emplace_back(made.name);
                                          CHECK((made.done == made.all) == (made.name == layer));
                                        }});
    CHECK(pass.output_shape() == wanted);
    const auto maps = pass(image);
    CHECK(done.back() == layer);
    return std::vector<float>(maps.begin(), maps.end());
  };
  const auto whole = maps_of("block1_conv2", {1, 33, 71, 64});
  const auto pooled = maps_of("block1_pool", {1, 16, 35, 64});
  std::size_t differing = 0;
  for (std::size_t y = 0; y < 16; ++y) {
    for (std::size_t x = 0; x < 35; ++x) {
      for (std::size_t c = 0; c < 64; ++c) {
        const auto at = [&](std::size_t down, std::size_t along) {
          return whole[((2 * y + down) * 71 + 2 * x + along) * 64 + c];
        };
        const float most = std::max({at(0, 0), at(0, 1), at(1, 0), at(1, 1)});
        if (pooled[(y * 35 + x) * 64 + c] != most) ++differing;
      }
    }
  }
  CHECK(differing == 0);
  CHECK(maps_of("block1_conv1", {1, 33, 71, 64}).size() == std::size_t{33} * 71 * 64);
  CHECK(maps_of("block5_conv3", {1, 2, 4, 512}).size() == 8 * 512);
  CHECK(test::message_of<vggload::error>([&] {
          const forward_pass pass(weights.views(), {.last_layer = "fc1"});
        }) == "forward pass: VGG16 without top has no layer 'fc1'");
}

TEST_CASE("each channel's mean and maximum") {
  const std::vector<float> image = random_images(image_values);
  const arranged_weights weights({});
  forward_pass maps(weights.views(), {.height = height, .width = width, .threads = 1});
  const auto values = maps(image);
  using vggload::network::global_pooling;
  for (const global_pooling pooling : {global_pooling::average, global_pooling::maximum}) {
    forward_pass pass(weights.views(),
                      {.height = height, .width = width, .pooling = pooling, .threads = 3});
    CHECK(pass.output_shape() == vggload::shape{1, 512});
    const auto pooled = pass(image);
    REQUIRE(pooled.size() == 512);
    for (std::size_t c = 0; c < 512; ++c) {
      const float a = values[c];
      const float b = values[512 + c];
      const bool is_mean = pooling == global_pooling::average;
      CHECK(pooled[c] ==
            (is_mean ? static_cast<float>((double{a} + double{b}) / 2) : std::max(a, b)));
    }
  }
}

TEST_CASE("a limit that cannot be kept is refused before anything is allocated") {
  const arranged_weights weights({});
  // As in the test of the plan: 655,360 and 5,230,592.
  const vggload::network::forward_options options{
      .height = 32, .width = 64, .threads = 1, .memory_limit = 5'885'952};
  CHECK(forward_pass(weights.views(), options).memory().capacity() == 5'885'952);
  auto less = options;
  less.memory_limit = 5'885'951;
  CHECK(
      test::message_of<vggload::out_of_memory>(
          [&] { const forward_pass pass(weights.views(), less); }) ==
      "forward pass: the memory limit of 5885951 bytes cannot be kept: activations of 655360 bytes "
      "and a workspace of 5230592 are needed");
}

TEST_CASE("the images of a batch do not mix") {
  std::vector<float> images = random_images(image_values);
  images.insert(images.begin(), image_values, 0.5F);
  const arranged_weights weights({});
  forward_pass pass(weights.views(), {.batch = 2, .height = height, .width = width, .threads = 2});
  const auto maps = pass(images);
  REQUIRE(maps.size() == 2 * wanted().size());
  check_close(maps.subspan(wanted().size()), wanted());
}

TEST_CASE("a NaN in the image reaches the maps as far as convolutions carry it") {
  // Column 128 of 256. A convolution adds one on each side and a pooling halves: 126 to 130 and 63 to
  // 65, 61 to 67 and 30 to 33, 27 to 36 and 13 to 18, 10 to 21 and 5 to 10, 2 to 13 and 1 to 6.
  std::vector<float> image = random_images(std::size_t{32} * 256 * 3);
  image[std::size_t{16} * 256 * 3 + std::size_t{128} * 3] = std::numeric_limits<float>::quiet_NaN();
  const arranged_weights weights({});
  forward_pass pass(weights.views(), {.height = 32, .width = 256, .threads = 2});
  const auto maps = pass(image);
  REQUIRE(maps.size() == std::size_t{8} * 512);
  for (std::size_t column = 0; column < 8; ++column) {
    INFO(column);
    const auto nans = std::ranges::count_if(maps.subspan(512 * column, 512),
                                            [](float value) { return std::isnan(value); });
    CHECK(nans == (column >= 1 && column <= 6 ? 512 : 0));
  }
}

TEST_CASE("the buffers are those of the plan, and in the ledger") {
  const auto ledger = std::make_shared<vggload::memory_ledger>();
  const arranged_weights weights({weight_layout::torch, dtype::f16});
  {
    const forward_pass pass(weights.views(),
                            {.height = 32, .width = 64, .threads = 1, .ledger = ledger});
    // 32 * 64 maps of 64 channels, and a quarter of that behind the pooling; 2^20 + 2^13 weights, transformed; and 28
    // tiles of 16 planes of 512 + 16 inputs and 32 outputs.
    const std::uint64_t activations = 4 * (131'072 + 32'768);
    const std::uint64_t bytes = activations + 4 * 1'056'768 + 4 * 28 * 16 * 560;
    CHECK(pass.memory().capacity() == bytes);
    CHECK(pass.memory().used() == bytes);
    CHECK(ledger->live_bytes() == bytes);
    const auto pieces = ledger->snapshot().pieces;
    REQUIRE(pieces.size() == 3);
    CHECK(pieces[0].role == vggload::memory_role::workspace);
    CHECK(pieces[1].role == vggload::memory_role::workspace);
    CHECK(pieces[2].role == vggload::memory_role::activations);
    CHECK(pieces[2].bytes == activations);
  }
  CHECK(ledger->live_bytes() == 0);
}

TEST_CASE("what cannot be run is refused with the numbers") {
  using test::message_of;
  using vggload::error;
  const arranged_weights weights({});
  forward_pass pass(weights.views(), {.height = 32, .width = 32, .threads = 1});
  CHECK(message_of<error>([&] { (void)pass(std::vector<float>(3071)); }) ==
        "forward pass: the images have 3071 values, not 3072 for 1 of 32x32");
  CHECK_THROWS_AS((void)pass(std::vector<float>(3073)), error);
  const auto refusal = [](const vgg16::weights& views,
                          const vggload::network::forward_options& options) {
    return message_of<error>([&] { const forward_pass refused(views, options); });
  };
  CHECK(refusal(weights.views(), {.height = 31, .width = 32}) ==
        "VGG16: the input is at least 32x32, not 31x32");
  // 10^9 * 32 * 32 * 80 * 4 bytes, 2^20 + 2^13 weights and what a thread works in.
  CHECK(message_of<vggload::out_of_memory>([&] {
          const forward_pass refused(
              weights.views(), {.batch = 1'000'000'000, .height = 32, .width = 32, .threads = 1});
        }) == "forward pass: 327680005230592 bytes of host memory were refused");
  CHECK(refusal({}, {}) == "forward pass: VGG16 has 13 or 16 layers, not 0");
  auto layers = std::vector(weights.views().layers().begin(), weights.views().layers().end());
  CHECK(refusal({weight_layout::keras, layers}, {}) ==
        "forward pass: block1_conv1 has a weight [64, 3, 3, 3] and a bias [64], not [3, 3, 3, 64] "
        "and [64]");
  std::swap(layers[2], layers[3]);
  CHECK(refusal({weight_layout::torch, layers}, {})
            .starts_with("forward pass: block2_conv1 has a weight [128, 128, 3, 3]"));
  std::swap(layers[2], layers[3]);
  const std::vector<std::byte> integers(128);
  layers[2].bias = tensor_view(dtype::i8, {128}, integers);
  CHECK(refusal({weight_layout::torch, layers}, {}) ==
        "forward pass: block2_conv1 has a weight of F32 and a bias of I8, which cannot be widened "
        "to F32");
}
