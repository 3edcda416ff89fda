// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A VGG16 of the real size: the planner's total against what a load and a forward pass really take,
// and the top's results. In a process of its own, whose memory is measured.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/scalar.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/process_memory.hpp>
#include <vggload/network/forward.hpp>
#include <vggload/vgg16/footprint.hpp>
#include <vggload/vgg16/load.hpp>

#include "../support/run_command.hpp"
#include "../support/temporary_folder.hpp"

namespace vgg16 = vggload::vgg16;
using test::run_command;
using vggload::dtype;
using vggload::network::forward_pass;

namespace {

const test::temporary_folder& folder() {
  static const test::temporary_folder made;
  return made;
}

const std::string& checkpoint_file() {
  static const std::string path = [] {
    const std::string file = folder().file("vgg16.safetensors");
    REQUIRE(run_command({"make_checkpoint", file, "--seed", "1"}).exit_code == 0);
    return file;
  }();
  return path;
}

std::vector<float> image() {
  std::vector<float> values(224 * 224 * 3);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(i)));
  }
  return values;
}

struct measured {
  std::uint64_t planned;
  std::uint64_t ledger_peak;
  std::uint64_t growth;  // of the process's resident memory, at its peak
};

/// Loads, runs one image through, and says what that took. What is mapped is no piece of the ledger.
measured load_and_run(dtype type, unsigned threads) {
  const vgg16::plan_options options{.storage = type, .compute = dtype::f32, .threads = threads};
  const std::vector<float> input = image();
  const auto ledger = std::make_shared<vggload::memory_ledger>();
  REQUIRE(vggload::reset_peak_resident());
  const auto before = vggload::read_process_memory();
  const auto model =
      vgg16::load(checkpoint_file(), {.dtype = type, .threads = threads, .ledger = ledger});
  forward_pass pass(model.weights(), {.threads = threads, .ledger = ledger});
  const auto logits = pass(input);
  const auto after = vggload::read_process_memory();
  REQUIRE(before);
  REQUIRE(after);
  CHECK(std::ranges::all_of(logits, [](float value) { return std::isfinite(value); }));
  return {vgg16::plan(options).total_bytes, ledger->peak_bytes(),
          after->peak_resident - before->resident};
}

double off(std::uint64_t planned, std::uint64_t measured) {
  return std::abs(static_cast<double>(planned) / static_cast<double>(measured) - 1);
}

/// A dense layer, written out. `weight`: [out, in].
std::vector<double> dense(std::span<const double> inputs, std::span<const float> weight,
                          std::span<const float> bias, bool relu) {
  std::vector<double> outputs;
  for (std::size_t o = 0; o < bias.size(); ++o) {
    auto sum = double{bias[o]};
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      sum += inputs[i] * double{weight[o * inputs.size() + i]};
    }
    outputs.push_back(relu ? std::max(sum, 0.0) : sum);
  }
  return outputs;
}

/// The network with the first ten of its classes, whose weights these are.
vgg16::weights with_ten_classes(const vgg16::weights& all, std::span<const std::byte> weight) {
  std::vector<vgg16::layer_view> layers(all.layers().begin(), all.layers().end());
  vgg16::layer_view& last = layers.back();
  last.spec.outputs = 10;
  const bool torch = all.layout() == vgg16::weight_layout::torch;
  last.weight = vggload::tensor_view(
      dtype::f32, torch ? vggload::shape{10, 4096} : vggload::shape{4096, 10}, weight);
  last.bias = vggload::tensor_view(dtype::f32, {10}, last.bias.bytes().first(10 * sizeof(float)));
  return {all.layout(), std::move(layers)};
}

double largest_difference(std::span<const float> got, std::span<const double> wanted) {
  REQUIRE(got.size() == wanted.size());
  double largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(double{got[i]} - wanted[i]));
  }
  return largest;
}

}  // namespace

TEST_CASE("the planner's total is what a load and a forward pass take") {
  (void)checkpoint_file();
  for (const dtype type : {dtype::f16, dtype::bf16}) {
    for (const unsigned threads : {1U, 2U, 16U}) {
      const measured got = load_and_run(type, threads);
      std::printf(
          "%s by %u threads: planned %llu, ledger's peak %llu (%+.4f %%), resident growth %llu "
          "(%+.2f %%)\n",
          std::string(name_of(type)).c_str(), threads, static_cast<unsigned long long>(got.planned),
          static_cast<unsigned long long>(got.ledger_peak),
          100 * (static_cast<double>(got.ledger_peak) / static_cast<double>(got.planned) - 1),
          static_cast<unsigned long long>(got.growth),
          100 * (static_cast<double>(got.growth) / static_cast<double>(got.planned) - 1));
      CHECK(off(got.planned, got.ledger_peak) < 0.01);
      CHECK(off(got.planned, got.growth) < 0.03);
    }
  }
}

TEST_CASE("mapped weights are pages of the file: resident they count, in the ledger they do not") {
  const measured got = load_and_run(dtype::f32, 2);
  const std::uint64_t weights = 4 * vgg16::parameter_count();
  CHECK(got.ledger_peak == got.planned - weights);
  CHECK(off(got.planned, got.growth) < 0.03);
}

TEST_CASE("the top is the sums written out, in either layout") {
  const std::vector<float> input = image();
  const auto model = vgg16::load(checkpoint_file(), {.dtype = dtype::f32});
  const auto& weights = model.weights();
  const auto layers = weights.layers();

  // The maps in front of it, which forward_test checks, from the same weights without the top.
  const vgg16::weights base(weights.layout(), {layers.begin(), layers.begin() + 13});
  forward_pass base_pass(base, {});
  const auto maps = base_pass(input);
  std::vector<double> values(25088);
  for (std::size_t pixel = 0; pixel < 49; ++pixel) {
    for (std::size_t channel = 0; channel < 512; ++channel) {
      values[channel * 49 + pixel] = double{maps[pixel * 512 + channel]};
    }
  }
  for (const auto& layer : weights.dense()) {
    values = dense(values, layer.weight.values<float>(), layer.bias.values<float>(),
                   layer.spec.name != "predictions");
  }
  const double scale =
      std::abs(*std::ranges::max_element(values, {}, [](double value) { return std::abs(value); }));
  REQUIRE(scale > 0.01);

  forward_pass pass(weights, {});
  CHECK(pass.output_shape() == vggload::shape{1, 1000});
  CHECK(largest_difference(pass(input), values) < 1e-5 * scale);

  const std::string keras = folder().file("keras.safetensors");
  REQUIRE(run_command({"convert", checkpoint_file(), keras, "--dtype", "f32", "--layout", "keras"})
              .exit_code == 0);
  const auto keras_model = vgg16::load(keras, {.dtype = dtype::f32});
  REQUIRE(keras_model.weights().layout() == vgg16::weight_layout::keras);
  forward_pass keras_pass(keras_model.weights(), {});
  CHECK(largest_difference(keras_pass(input), values) < 1e-5 * scale);
  // FP16 keeps 11 bits of each weight.
  for (const std::string& file : {checkpoint_file(), keras}) {
    const auto half = vgg16::load(file, {.dtype = dtype::f16});
    forward_pass half_pass(half.weights(), {.batch = 3, .threads = 3});
    std::vector<float> images;
    for (int copy = 0; copy < 3; ++copy) images.insert(images.end(), input.begin(), input.end());
    const auto logits = half_pass(images);
    for (std::size_t n = 0; n < 3; ++n) {
      CHECK(largest_difference(logits.subspan(1000 * n, 1000), values) < 0.01 * scale);
    }
  }

  // Ten classes, which are no whole number of what is computed at once: the first ten logits, to the bit.
  const auto& predictions = weights["predictions"];
  constexpr std::size_t features = 4096;
  const vgg16::weights torch_ten =
      with_ten_classes(weights, predictions.weight.bytes().first(10 * features * sizeof(float)));
  std::vector<float> transposed(features * 10);
  for (std::size_t i = 0; i < features; ++i) {
    for (std::size_t o = 0; o < 10; ++o) {
      transposed[i * 10 + o] = predictions.weight.values<float>()[o * features + i];
    }
  }
  const vgg16::weights keras_ten =
      with_ten_classes(keras_model.weights(), std::as_bytes(std::span(transposed)));
  const auto ten_of = [&](const vgg16::weights& all, const vgg16::weights& ten) {
    forward_pass all_pass(all, {.threads = 1});
    forward_pass ten_pass(ten, {.threads = 2});
    CHECK(ten_pass.output_shape() == vggload::shape{1, 10});
    return std::ranges::equal(ten_pass(input), all_pass(input).first(10));
  };
  CHECK(ten_of(weights, torch_ten));
  CHECK(ten_of(keras_model.weights(), keras_ten));

  // Softmax, written out.
  double sum = 0;
  for (const double value : values) sum += std::exp(value);
  for (double& value : values) value = std::exp(value) / sum;
  forward_pass softmax(weights, {.softmax = true});
  CHECK(largest_difference(softmax(input), values) < 1e-5);
}
