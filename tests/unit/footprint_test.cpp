// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the planner says against arithmetic by hand: sizes of maps and layers from the paper's table
// 1, multiplied by the bytes of a type.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/vgg16/footprint.hpp>

#include "../support/message_of.hpp"

namespace vgg16 = vggload::vgg16;
using vgg16::optimizer_kind;
using vgg16::pass_mode;
using vgg16::plan_options;
using vggload::dtype;

namespace {

constexpr std::uint64_t parameters = 138'357'544;
constexpr std::uint64_t base_parameters = 14'714'688;
constexpr std::uint64_t top_parameters = 123'642'856;  // 102,764,544 + 16,781,312 + 4,097,000
// Elements: 4 panels of 32 outputs, each 16 planes of 512 * 32 and 16, and 32 biases, are 1,050,752 of the 2^20 + 2^13.
constexpr std::uint64_t weight_tile = 1'056'768;
constexpr std::uint64_t thread_tile =
    250'880;  // 28 tiles of 16 planes, with 512 + 16 inputs and 32 outputs
constexpr std::uint64_t tiles = weight_tile + thread_tile;
// 224 * 224 * 64 behind block1_conv1, and a quarter behind block1_pool.
constexpr std::uint64_t activations = 3'211'264 + 802'816;

std::vector<std::string> changes(const std::vector<vgg16::advice>& advice) {
  std::vector<std::string> texts;
  for (const auto& entry : advice) texts.push_back(entry.change);
  return texts;
}

}  // namespace

TEST_CASE("inference as FP32") {
  const auto plan = vgg16::plan({});
  CHECK(plan.parameters == parameters);
  CHECK(plan.weights_bytes == 553'430'176);
  CHECK(plan.masters_bytes == 0);
  CHECK(plan.activations_bytes == 4 * activations);
  CHECK(plan.gradients_bytes == 0);
  CHECK(plan.optimizer_bytes == 0);
  CHECK(plan.weight_tile_bytes == 4'227'072);
  CHECK(plan.thread_tiles_bytes == 1'003'520);
  CHECK(plan.workspace_bytes == 5'230'592);
  CHECK(plan.total_bytes == 553'430'176 + 16'056'320 + 5'230'592);
  CHECK(plan.fits(574'717'088));
  CHECK_FALSE(plan.fits(574'717'087));
  const auto threads = vgg16::plan({.threads = 7});
  CHECK(threads.thread_tiles_bytes == 7 * 1'003'520);
  CHECK(threads.total_bytes == plan.total_bytes + 6 * 1'003'520);
}

TEST_CASE("every layer by the paper's table") {
  struct row {
    std::string_view name;
    std::uint64_t side;  // 0: dense
    std::uint64_t inputs;
    std::uint64_t outputs;
  };
  constexpr std::array<row, 21> rows{{
      {"block1_conv1", 224, 27, 64},    {"block1_conv2", 224, 576, 64},
      {"block1_pool", 112, 0, 64},      {"block2_conv1", 112, 576, 128},
      {"block2_conv2", 112, 1152, 128}, {"block2_pool", 56, 0, 128},
      {"block3_conv1", 56, 1152, 256},  {"block3_conv2", 56, 2304, 256},
      {"block3_conv3", 56, 2304, 256},  {"block3_pool", 28, 0, 256},
      {"block4_conv1", 28, 2304, 512},  {"block4_conv2", 28, 4608, 512},
      {"block4_conv3", 28, 4608, 512},  {"block4_pool", 14, 0, 512},
      {"block5_conv1", 14, 4608, 512},  {"block5_conv2", 14, 4608, 512},
      {"block5_conv3", 14, 4608, 512},  {"block5_pool", 7, 0, 512},
      {"fc1", 0, 25088, 4096},          {"fc2", 0, 4096, 4096},
      {"predictions", 0, 4096, 1000},
  }};
  const auto plan = vgg16::plan({.storage = dtype::f16,
                                 .mode = pass_mode::training,
                                 .optimizer = optimizer_kind::adam,
                                 .batch = 3});
  REQUIRE(plan.layers.size() == rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const row& wanted = rows[i];
    const auto& layer = plan.layers[i];
    INFO(wanted.name);
    CHECK(layer.name == wanted.name);
    const bool dense = wanted.side == 0;
    CHECK(layer.output_shape ==
          (dense ? vggload::shape{3, wanted.outputs}
                 : vggload::shape{3, wanted.side, wanted.side, wanted.outputs}));
    const std::uint64_t pixels = dense ? 1 : wanted.side * wanted.side;
    CHECK(layer.activation_bytes == 3 * pixels * wanted.outputs * 2);
    const std::uint64_t weights = wanted.inputs * wanted.outputs;
    const std::uint64_t biases = wanted.inputs == 0 ? 0 : wanted.outputs;
    CHECK(layer.weight_bytes == 2 * weights);
    CHECK(layer.bias_bytes == 2 * biases);
    CHECK(layer.parameters == weights + biases);
    CHECK(layer.masters_bytes == 4 * (weights + biases));
    CHECK(layer.gradients_bytes == 4 * (weights + biases));
    CHECK(layer.optimizer_bytes == 8 * (weights + biases));
  }
}

TEST_CASE("a type for the weights and one for the rest") {
  const auto half = vgg16::plan({.storage = dtype::f16});
  CHECK(half.weights_bytes == 276'715'088);
  CHECK(half.activations_bytes == 2 * activations);
  CHECK(half.workspace_bytes == 2 * tiles);
  CHECK(vgg16::plan({.storage = dtype::bf16}).total_bytes == half.total_bytes);

  const auto widened = vgg16::plan({.storage = dtype::f16, .compute = dtype::f32});
  CHECK(widened.weights_bytes == 276'715'088);
  CHECK(widened.activations_bytes == 4 * activations);
  CHECK(widened.workspace_bytes == 4 * tiles);
  CHECK(widened.total_bytes == 276'715'088 + 4 * activations + 4 * tiles);
}

TEST_CASE("training keeps every output, gradients and the optimizer's state") {
  const auto plan = vgg16::plan({.mode = pass_mode::training, .optimizer = optimizer_kind::adam});
  CHECK(plan.activations_bytes == 15'087'080 * 4);
  CHECK(plan.masters_bytes == 0);
  CHECK(plan.gradients_bytes == 4 * parameters);
  CHECK(plan.optimizer_bytes == 8 * parameters);
  // The gradients of block1_conv2's input and output, and the image.
  CHECK(plan.workspace_bytes == 4 * tiles + 25'690'112 + 224 * 224 * 3 * 4);
  CHECK(plan.total_bytes == 16 * parameters + 60'348'320 + 5'230'592 + 25'690'112 + 602'112);

  CHECK(vgg16::plan({.mode = pass_mode::training}).optimizer_bytes == 0);
  CHECK(vgg16::plan({.mode = pass_mode::training, .optimizer = optimizer_kind::momentum})
            .optimizer_bytes == 4 * parameters);
  // Nothing is updated in a forward pass.
  CHECK(vgg16::plan({.optimizer = optimizer_kind::adam}).optimizer_bytes == 0);
}

TEST_CASE("training as FP16 adds FP32 masters, and scaled gradients of the largest layer") {
  const auto plan = vgg16::plan({.storage = dtype::f16, .mode = pass_mode::training, .batch = 32});
  CHECK(plan.weights_bytes == 2 * parameters);
  CHECK(plan.masters_bytes == 4 * parameters);
  CHECK(plan.gradients_bytes == 4 * parameters);
  CHECK(plan.activations_bytes == 15'087'080ULL * 32 * 2);
  // fc1 has 102,764,544 parameters.
  CHECK(plan.workspace_bytes ==
        2 * tiles + 32 * 12'845'056ULL + 32 * 150'528 * 2 + 2 * 102'764'544ULL);
  // block5's convolutions have 2,359,808 each.
  const auto base = vgg16::plan({.storage = dtype::f16,
                                 .mode = pass_mode::training,
                                 .height = 32,
                                 .width = 32,
                                 .include_top = false});
  CHECK(base.masters_bytes == 4 * base_parameters);
  CHECK(base.workspace_bytes == 2 * tiles + 2 * 2 * 32 * 32 * 64 + 2 * 32 * 32 * 3 + 2 * 2'359'808);
  // With FP32 all along there is nothing to scale, and no master.
  CHECK(vgg16::plan({.storage = dtype::f16, .compute = dtype::f32, .mode = pass_mode::training})
            .workspace_bytes == 4 * tiles + 25'690'112 + 602'112);
}

TEST_CASE("a frozen base trains the dense layers") {
  const auto plan = vgg16::plan(
      {.storage = dtype::bf16, .mode = pass_mode::frozen, .optimizer = optimizer_kind::adam});
  CHECK(plan.weights_bytes == 2 * parameters);
  CHECK(plan.masters_bytes == 4 * top_parameters);
  CHECK(plan.gradients_bytes == 4 * top_parameters);
  CHECK(plan.optimizer_bytes == 8 * top_parameters);
  CHECK(plan.activations_bytes == 2 * activations);
  CHECK(plan.workspace_bytes == 2 * tiles + 2 * 102'764'544ULL);
  for (const auto& layer : plan.layers) {
    CHECK((layer.gradients_bytes > 0) == (layer.output_shape.rank() == 2));
  }

  const auto nothing = vgg16::plan(
      {.mode = pass_mode::frozen, .optimizer = optimizer_kind::adam, .include_top = false});
  CHECK(nothing.gradients_bytes == 0);
  CHECK(nothing.optimizer_bytes == 0);
  CHECK(nothing.total_bytes == 4 * base_parameters + 4 * activations + 4 * tiles);
}

TEST_CASE("other classes, and other sizes without the top") {
  const auto ten = vgg16::plan({.classes = 10});
  CHECK(ten.parameters == parameters - 990 * 4097);
  CHECK(ten.layers.back().output_shape == vggload::shape{1, 10});

  const auto plan = vgg16::plan({.batch = 2, .height = 75, .width = 1000, .include_top = false});
  CHECK(plan.parameters == base_parameters);
  CHECK(plan.layers.size() == 18);
  CHECK(plan.activations_bytes == 2ULL * (75 * 1000 + 37 * 500) * 64 * 4);
  // Halved and rounded down five times: 37, 18, 9, 4, 2 and 500, 250, 125, 62, 31.
  CHECK(plan.layers[5].output_shape == vggload::shape{2, 18, 250, 128});
  CHECK(plan.layers.back().output_shape == vggload::shape{2, 2, 31, 512});
  CHECK(vgg16::plan({.height = 32, .width = 63, .include_top = false}).layers.back().output_shape ==
        vggload::shape{1, 1, 1, 512});
}

TEST_CASE("a layer's weights take the tile as far as they fill it") {
  // block1_conv2: two panels of 16 planes of 64 * 32 and 16, and 32 biases.
  CHECK(vgg16::weight_tile_of(vgg16::layers[1]) == 2 * (16 * (64 * 32 + 16) + 32));
  CHECK(vgg16::weight_tile_of(vgg16::layers[12]) == weight_tile);
  CHECK(vgg16::plan({}).layers[1].workspace_bytes == 4 * (66'112 + thread_tile));
}

TEST_CASE("what cannot be planned is refused with the numbers") {
  using test::message_of;
  using vggload::unsupported_error;
  const auto refusal = [](const plan_options& options) {
    return message_of<unsupported_error>([&] { (void)vgg16::plan(options); });
  };
  CHECK(refusal({.height = 256, .width = 256}) ==
        "VGG16: with the top the input is 224x224, not 256x256");
  CHECK(refusal({.height = 224, .width = 225}) ==
        "VGG16: with the top the input is 224x224, not 224x225");
  CHECK(refusal({.height = 32, .width = 31, .include_top = false}) ==
        "VGG16: the input is at least 32x32, not 32x31");
  CHECK(refusal({.batch = 0}) == "VGG16: a batch of 0 images");
  CHECK(refusal({.classes = 0}) == "VGG16: 1 to 1000000 classes, not 0");
  CHECK(refusal({.classes = 1'000'001}) == "VGG16: 1 to 1000000 classes, not 1000001");
  CHECK(refusal({.storage = dtype::f64}) == "VGG16: a footprint is of F32, F16 or BF16, not F64");
  CHECK(refusal({.compute = dtype::i8}) == "VGG16: a footprint is of F32, F16 or BF16, not I8");
  CHECK(refusal({.batch = 2'000'000'000'000}) ==
        "VGG16: the bytes of a batch of 2000000000000 images of 224x224 exceed 64 bits");
  for (const std::uint64_t large : {std::uint64_t{1} << 32U, UINT64_MAX}) {
    CHECK(refusal({.height = large, .width = large, .include_top = false})
              .ends_with(" exceed 64 bits"));
    CHECK(refusal({.batch = large * 3, .height = large, .width = 32, .include_top = false})
              .ends_with(" exceed 64 bits"));
  }
  // Just below.
  const std::uint64_t most = (UINT64_MAX - 574'717'088) / 16'056'320 + 1;
  CHECK(vgg16::plan({.batch = most}).activations_bytes == most * 16'056'320);
  CHECK(refusal({.batch = most + 1}).ends_with(" exceed 64 bits"));
}

TEST_CASE("the largest batch fits, and one more does not") {
  // 553,430,176 + 5,230,592 + batch * 16,056,320
  const std::uint64_t fixed = 558'660'768;
  CHECK(vgg16::max_batch({}, fixed + 12 * 16'056'320) == 12);
  CHECK(vgg16::max_batch({}, fixed + 12 * 16'056'320 - 1) == 11);
  CHECK(vgg16::max_batch({.batch = 1000}, fixed + 12 * 16'056'320 + 16'056'319) == 12);
  CHECK(vgg16::max_batch({}, fixed + 16'056'320 - 1) == 0);
  CHECK(vgg16::max_batch({}, 0) == 0);
  const std::uint64_t largest = vgg16::max_batch({}, UINT64_MAX);
  CHECK(largest == (UINT64_MAX - fixed) / 16'056'320);
  CHECK_THROWS_AS((void)vgg16::max_batch({.height = 20}, 1), vggload::unsupported_error);
}

TEST_CASE("advice: nothing where it fits, else single changes in order") {
  CHECK(vgg16::advise({}, 574'717'088).empty());

  // FP16 is enough, and so would be less of a batch, or no top.
  const auto four = vgg16::advise({.batch = 4}, 590'000'000);
  CHECK(changes(four) == std::vector<std::string>{"dtype f16", "batch 1", "no top"});
  CHECK(four[0].total_bytes == 276'715'088 + 8 * activations + 2 * tiles);
  CHECK(four[0].fits);
  CHECK(four[1].total_bytes == 574'717'088);
  CHECK(four[1].fits);
  CHECK(four[2].total_bytes == 4 * base_parameters + 16 * activations + 4 * tiles);
  CHECK(four[2].fits);
  CHECK(four[2].options.include_top == false);
  CHECK(four[2].options.batch == 4);

  const auto training =
      vgg16::advise({.storage = dtype::bf16, .mode = pass_mode::training}, 1'600'000'000);
  CHECK(changes(training) == std::vector<std::string>{"no top", "frozen base"});
  CHECK(training[0].fits);
  // 276,715,088 + 8 * 123,642,856 + 8,028,160 + 2,615,296 + 205,529,088
  CHECK(training[1].total_bytes == 1'482'030'480);
  CHECK(training[1].fits);
}

TEST_CASE("advice: where no single change is enough, as many as it takes") {
  // By themselves: 276,715,088 + 20 * 8,028,160 + 2,615,296; 574,717,088; and without the top
  // 58,858,752 + 20 * 16,056,320 + 5,230,592.
  const auto found = vgg16::advise({.batch = 20}, 300'000'000);
  CHECK(changes(found) ==
        std::vector<std::string>{"dtype f16", "batch 1", "no top", "dtype f16, batch 2"});
  CHECK(found[0].total_bytes == 439'893'584);
  CHECK(found[1].total_bytes == 574'717'088);
  CHECK(found[2].total_bytes == 385'215'744);
  CHECK(found[3].total_bytes == 276'715'088 + 2 * 8'028'160 + 2'615'296);
  for (const auto& entry : found) CHECK(entry.fits == (entry.total_bytes == 295'386'704));
  // Without the top all twenty fit again.
  const auto base = vgg16::advise({.batch = 20}, 200'000'000);
  CHECK(changes(base) ==
        std::vector<std::string>{"dtype f16", "batch 1", "no top", "dtype f16, no top"});
  CHECK(base.back().options.batch == 20);
  CHECK(base.back().fits);
}

TEST_CASE("advice: what makes the plan larger is none, and no change is named that is not needed") {
  // FP16 would need masters: 2 bytes more for each parameter than it saves.
  const auto larger = vgg16::advise(
      {.mode = pass_mode::training, .optimizer = optimizer_kind::momentum, .batch = 2},
      1'800'000'000);
  CHECK(changes(larger) == std::vector<std::string>{"batch 1", "no top", "frozen base"});
  // 16 bytes for each of the base's parameters, its activations of one image (13,547,520 +
  // 1,530,368 floats), two gradients, the image and the tiles.
  constexpr std::uint64_t one_image =
      16 * base_parameters + 4 * 15'077'888 + 25'690'112 + 602'112 + 5'230'592;
  CHECK(one_image == 327'269'376);
  const auto exact = vgg16::advise({.compute = vggload::dtype::f32,
                                    .mode = pass_mode::training,
                                    .optimizer = optimizer_kind::adam,
                                    .batch = 4},
                                   one_image);
  CHECK(exact.back().change == "batch 1, no top");
  CHECK(exact.back().total_bytes == one_image);
  CHECK(exact.back().fits);
}

TEST_CASE("advice that does not suffice is given all the same") {
  const auto found = vgg16::advise(
      {.mode = pass_mode::training, .optimizer = optimizer_kind::adam, .batch = 64}, 10'000'000);
  CHECK(changes(found) == std::vector<std::string>{"dtype f16", "batch 1", "no top", "frozen base",
                                                   "dtype f16, batch 1, no top, frozen base"});
  for (const auto& entry : found) {
    CHECK_FALSE(entry.fits);
    CHECK(entry.total_bytes > 10'000'000);
  }
  CHECK(found.back().total_bytes == 2 * base_parameters + 2 * activations + 2 * tiles);
}
