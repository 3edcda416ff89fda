// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A head's logits and gradients against the layers written out in double, whose slopes are central
// differences; and its memory against its plan.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/network/head.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/loss.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/product.hpp>

#include "../support/message_of.hpp"
#include "../support/simd_levels.hpp"

using namespace vggload::network;
using test::message_of;
using vggload::memory_role;

namespace {

using numbers = std::vector<double>;

std::vector<float> random_numbers(std::size_t count, unsigned seed, float low = -1,
                                  float high = 1) {
  std::mt19937 random(seed);  // NOLINT(cert-msc32-c,cert-msc51-cpp)
  std::uniform_real_distribution<float> distribution(low, high);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

/// Shares of classes that sum to 1, so that no class is without.
std::vector<float> random_labels(std::size_t images, std::size_t classes) {
  std::vector<float> labels = random_numbers(images * classes, 3, 0, 1);
  for (std::size_t image = 0; image < images; ++image) {
    const auto row = std::span(labels).subspan(image * classes, classes);
    float sum = 0;
    for (const float value : row) sum += value;
    for (float& value : row) value /= sum;
  }
  return labels;
}

/// Weights of a size that keeps values near 1.
void set_random_weights(head& model) {
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const head_parameter& parameter = model.parameters()[i];
    const auto inputs = static_cast<float>(parameter.shape.rank() == 2 ? parameter.shape[0] : 12);
    const float limit = std::sqrt(3 / inputs);
    const bool deviation = parameter.name == "normalization.deviation";
    model.set_values(i, random_numbers(model.values(i).size(), static_cast<unsigned>(10 + i),
                                       deviation ? 0.5F : -limit, deviation ? 2.0F : limit));
  }
}

/// What each value of a dropout layer's input is multiplied by.
using mask = std::vector<double>;

/// The head in double. `weights`: of `model.parameters()`, in their order.
class reference {
 public:
  reference(const head& model, std::span<const float> features, std::span<const float> labels,
            std::size_t images, mask dropped = {})
      : options_(model.options()),
        classes_(model.classes()),
        features_(features.begin(), features.end()),
        labels_(labels.begin(), labels.end()),
        images_(images),
        mask_(std::move(dropped)) {}

  [[nodiscard]] numbers logits(const std::vector<numbers>& weights) const {
    numbers values = features_;
    const std::size_t channels = options_.features[options_.features.rank() - 1];
    std::size_t next = 0;
    for (const head_layer& layer : options_.layers) {
      switch (layer.kind) {
        case head_layer_kind::flatten: break;
        case head_layer_kind::global_average_pool: values = pooled(values, channels); break;
        case head_layer_kind::normalization:
          for (std::size_t i = 0; i < values.size(); ++i) {
            const std::size_t c = i % weights[next].size();
            values[i] = (values[i] - weights[next][c]) / weights[next + 1][c];
            if (std::abs(values[i]) > layer.limit)
              values[i] = std::copysign(layer.limit, values[i]);
          }
          next += 2;
          break;
        case head_layer_kind::dropout:
          for (std::size_t i = 0; i < mask_.size(); ++i) values[i] *= mask_[i];
          break;
        case head_layer_kind::dense:
          values = multiplied(values, weights[next], weights[next + 1]);
          if (layer.activation == activation::relu) {
            for (double& value : values) value = std::max(value, 0.0);
          }
          next += 2;
          break;
      }
    }
    return values;
  }

  /// The mean of the images' cross-entropies.
  [[nodiscard]] double loss(const std::vector<numbers>& weights) const {
    const numbers x = logits(weights);
    double sum = 0;
    for (std::size_t image = 0; image < images_; ++image) {
      double exponentials = 0;
      for (std::size_t c = 0; c < classes_; ++c) exponentials += std::exp(x[image * classes_ + c]);
      for (std::size_t c = 0; c < classes_; ++c) {
        const std::size_t i = image * classes_ + c;
        sum -= labels_[i] * std::log(std::exp(x[i]) / exponentials);
      }
    }
    return sum / static_cast<double>(images_);
  }

  /// The loss's slope by one weight.
  [[nodiscard]] double slope(std::vector<numbers>& weights, std::size_t parameter,
                             std::size_t i) const {
    constexpr double step = 1e-5;
    const double before = std::exchange(weights[parameter][i], weights[parameter][i] + step);
    const double above = loss(weights);
    weights[parameter][i] = before - step;
    const double below = loss(weights);
    weights[parameter][i] = before;
    return (above - below) / (2 * step);
  }

 private:
  [[nodiscard]] numbers pooled(const numbers& values, std::size_t channels) const {
    const std::size_t pixels = values.size() / images_ / channels;
    numbers means(images_ * channels);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t image = i / (pixels * channels);
      means[image * channels + i % channels] += values[i] / static_cast<double>(pixels);
    }
    return means;
  }
  [[nodiscard]] numbers multiplied(const numbers& values, const numbers& kernel,
                                   const numbers& bias) const {
    const std::size_t inputs = values.size() / images_;
    numbers sums(images_ * bias.size());
    for (std::size_t image = 0; image < images_; ++image) {
      double* const row = &sums[image * bias.size()];
      std::ranges::copy(bias, row);
      for (std::size_t k = 0; k < inputs; ++k) {
        const double value = values[image * inputs + k];
        for (std::size_t o = 0; o < bias.size(); ++o) row[o] += value * kernel[k * bias.size() + o];
      }
    }
    return sums;
  }

  const head_options& options_;
  std::size_t classes_;
  numbers features_;
  numbers labels_;
  std::size_t images_;
  mask mask_;
};

std::vector<numbers> weights_of(const head& model) {
  std::vector<numbers> weights;
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    weights.emplace_back(model.values(i).begin(), model.values(i).end());
  }
  return weights;
}

double largest_of(const numbers& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

/// How far off, relative to the largest value, logits and gradients are.
struct deviations {
  double logits = 0;
  double gradients = 0;
};

/// Forward and backward with random weights, against the reference. At most `samples` weights of each
/// parameter are looked at.
deviations compare(head& model, std::size_t images, std::size_t samples = SIZE_MAX,
                   double scale = 1, const mask& dropped = {}) {
  set_random_weights(model);
  const std::vector<float> features = random_numbers(images * model.features(), 2);
  const std::vector<float> labels = random_labels(images, model.classes());
  const auto logits = model.forward(features, images, head_pass::training, 7);
  const reference wanted(model, features, labels, images, dropped);
  std::vector<numbers> weights = weights_of(model);

  deviations found;
  const numbers wanted_logits = wanted.logits(weights);
  REQUIRE(logits.size() == wanted_logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    found.logits = std::max(found.logits, std::abs(double{logits[i]} - wanted_logits[i]));
  }
  found.logits /= largest_of(wanted_logits);

  const auto by_logits = model.logit_gradients().first(logits.size());
  softmax_cross_entropy(logits, labels, model.classes(), by_logits, scale);
  REQUIRE(model.backward(by_logits));
  for (std::size_t p = 0; p < weights.size(); ++p) {
    if (!model.parameters()[p].trained) continue;
    std::vector<float> gradients(weights[p].size());
    model.read_gradient(p, gradients);
    numbers slopes;
    double off = 0;
    const std::size_t stride = std::max<std::size_t>(1, weights[p].size() / samples);
    for (std::size_t i = 0; i < weights[p].size(); i += stride) {
      slopes.push_back(wanted.slope(weights, p, i));
      off = std::max(off, std::abs(double{gradients[i]} / scale - slopes.back()));
    }
    CAPTURE(model.parameters()[p].name);
    REQUIRE(largest_of(slopes) > 1e-4);
    found.gradients = std::max(found.gradients, off / largest_of(slopes));
  }
  return found;
}

head_options small(std::vector<head_layer> layers,
                   precision_policy policy = precision_policy::f32) {
  return {.features = {2, 3, 5}, .layers = std::move(layers), .max_batch = 6, .policy = policy};
}

/// What dropout does to the values of the one hidden layer, seen through a head of the same layers that
/// else lets them pass: their kernels are identities.
mask seen_mask(const head_options& options, std::size_t images, std::size_t width,
               std::uint64_t step) {
  head model(options);
  std::vector<float> identity(width * width);
  for (std::size_t i = 0; i < width; ++i) identity[i * width + i] = 1;
  std::vector<float> first(model.features() * width);
  model.set_values(0, first);
  model.set_values(1, std::vector<float>(width, 1));
  model.set_values(2, identity);
  model.set_values(3, std::vector<float>(width, 0));
  const std::vector<float> features(images * model.features());
  const auto logits = model.forward(features, images, head_pass::training, step);
  return {logits.begin(), logits.end()};
}

constexpr std::array policies{precision_policy::f32, precision_policy::mixed_float16,
                              precision_policy::mixed_bfloat16};

}  // namespace

TEST_CASE("products of all shapes are sums of products, at every level, and touch nothing beside") {
  // Rows that are parts of longer ones; sizes beside and beyond those of the parts that are packed.
  struct sizes {
    std::size_t rows;
    std::size_t count;
    std::size_t columns;
  };
  constexpr std::array all{sizes{1, 1, 1},   sizes{3, 5, 7},     sizes{32, 300, 33},
                           sizes{65, 2, 64}, sizes{130, 17, 70}, sizes{14, 513, 32}};
  constexpr std::size_t gap = 3;
  for (const sizes& each : all) {
    const std::size_t rows = each.rows;
    const std::size_t count = each.count;
    const std::size_t columns = each.columns;
    CAPTURE(rows);
    CAPTURE(count);
    CAPTURE(columns);
    const std::size_t a_stride = std::max(rows, count) + gap;
    const std::size_t b_stride = std::max(count, columns) + gap;
    const std::size_t c_stride = columns + gap;
    const std::vector<float> a = random_numbers(std::max(rows, count) * a_stride, 1);
    const std::vector<float> b = random_numbers(std::max(count, columns) * b_stride, 2);
    const std::vector<float> before = random_numbers(rows * c_stride, 3);
    for (const int kind : {0, 1, 2}) {
      for (const product_result result : {product_result::replaced, product_result::added_to}) {
        for (const vggload::simd_level level : test::simd_levels()) {
          std::vector<float> c = before;
          const row_matrix<float> to{c.data(), rows, columns, c_stride};
          if (kind == 0) {
            multiply({a.data(), rows, count, a_stride}, {b.data(), count, columns, b_stride}, to,
                     result, level);
          } else if (kind == 1) {
            multiply_first_transposed({a.data(), count, rows, a_stride},
                                      {b.data(), count, columns, b_stride}, to, result, level);
          } else {
            multiply_second_transposed({a.data(), rows, count, a_stride},
                                       {b.data(), columns, count, b_stride}, to, result, level);
          }
          double off = 0;
          bool beside = true;
          for (std::size_t i = 0; i < c.size(); ++i) {
            const std::size_t row = i / c_stride;
            const std::size_t column = i % c_stride;
            if (column >= columns) {
              beside = beside && c[i] == before[i];
              continue;
            }
            double sum = result == product_result::added_to ? double{before[i]} : 0;
            for (std::size_t k = 0; k < count; ++k) {
              const float x = kind == 1 ? a[k * a_stride + row] : a[row * a_stride + k];
              const float y = kind == 2 ? b[column * b_stride + k] : b[k * b_stride + column];
              sum += double{x} * double{y};
            }
            off = std::max(off, std::abs(double{c[i]} - sum));
          }
          CHECK(beside);
          CHECK(off < 2e-5);
        }
      }
    }
  }
}

TEST_CASE("logits are the layers' and gradients the loss's slopes") {
  const std::vector<std::vector<head_layer>> heads{
      {flatten(), dense(4)},
      {global_average_pool(), dense(3)},
      {flatten(), dense(7, activation::relu), dense(4)},
      {flatten(), dense(7), dense(6, activation::relu), dense(9, activation::relu), dense(4)},
      {global_average_pool(), normalization(), dense(8, activation::relu), dense(3)},
      {normalization(), flatten(), dense(8, activation::relu), dense(3)},
      {normalization(), global_average_pool(), dense(5)},
      {normalization(0.5), flatten(), dense(8, activation::relu), dense(3)},
  };
  for (const auto& layers : heads) {
    for (const std::size_t images : {1U, 4U, 6U}) {
      CAPTURE(to_string(layers));
      CAPTURE(images);
      head model(small(layers));
      const deviations found = compare(model, images);
      CHECK(found.logits < 1e-5);
      CHECK(found.gradients < 1e-5);
    }
  }
}

TEST_CASE("16-bit policies are as near as their types, whatever the loss is multiplied by") {
  const std::vector<std::vector<head_layer>> heads{
      {flatten(), dense(4)},
      {flatten(), dense(7, activation::relu), dense(6, activation::relu), dense(4)},
      {global_average_pool(), normalization(), dense(8, activation::relu), dense(3)},
  };
  for (const auto& layers : heads) {
    CAPTURE(to_string(layers));
    // Half a unit of 11 or 8 binary digits for each of a few roundings.
    head half(small(layers, precision_policy::mixed_float16));
    const deviations f16 = compare(half, 5, SIZE_MAX, 1024);
    CHECK(f16.logits < 3e-3);
    CHECK(f16.gradients < 6e-3);
    CHECK(f16.gradients > 1e-5);  // it is not FP32
    head brain(small(layers, precision_policy::mixed_bfloat16));
    const deviations bf16 = compare(brain, 5);
    CHECK(bf16.logits < 2.4e-2);
    CHECK(bf16.gradients < 5e-2);
    CHECK(bf16.gradients > 1e-4);
  }
}

TEST_CASE("kernels larger than a tile") {
  // 700 x 400 and 3000 x 100 16-bit weights are more than 2^18.
  for (const precision_policy policy : policies) {
    CAPTURE(name_of(policy));
    const bool f32 = policy == precision_policy::f32;
    const double bound = f32 ? 1e-5 : policy == precision_policy::mixed_float16 ? 6e-3 : 5e-2;
    head deep({.features = {16},
               .layers = {dense(700, activation::relu), dense(400)},
               .max_batch = 3,
               .policy = policy});
    const deviations in_deep = compare(deep, 3, 25, f32 ? 1 : 64);
    CHECK(in_deep.logits < bound);
    CHECK(in_deep.gradients < bound);
    head wide({.features = {10, 20, 15},
               .layers = {flatten(), dense(100, activation::relu), dense(4)},
               .max_batch = 3,
               .policy = policy});
    const deviations in_wide = compare(wide, 2, 25);
    CHECK(in_wide.logits < bound);
    CHECK(in_wide.gradients < bound);
  }
}

TEST_CASE("dropout drops by seed, step and place, and its gradients are the slopes") {
  constexpr std::size_t width = 40;
  constexpr std::size_t images = 6;
  head_options options =
      small({flatten(), dense(width, activation::relu), dropout(0.25), dense(width)});
  const mask seen = seen_mask(options, images, width, 7);
  const auto dropped = std::ranges::count(seen, 0.0);
  CHECK(dropped > 30);  // of 240, 60 are expected, with a deviation of 6.7
  CHECK(dropped < 90);
  for (const double value : seen) {
    // 1 / (1 - 0.25) in FP32
    const bool right = value == 0.0 || value == double{4.0F / 3.0F};
    CHECK(right);
  }
  CHECK(seen_mask(options, images, width, 7) == seen);
  CHECK(seen_mask(options, images, width, 8) != seen);
  options.seed = 1;
  CHECK(seen_mask(options, images, width, 7) != seen);
  options.seed = 0;
  // A smaller batch has the same places.
  CHECK(seen_mask(options, 2, width, 7) == mask(seen.begin(), seen.begin() + 2 * width));

  head model(options);
  const deviations found = compare(model, images, 400, 1, seen);
  CHECK(found.logits < 1e-5);
  CHECK(found.gradients < 1e-5);

  SUBCASE("in inference nothing is dropped") {
    head without(small({flatten(), dense(width, activation::relu), dense(width)}));
    set_random_weights(without);
    const std::vector<float> features = random_numbers(images * model.features(), 2);
    const auto logits = model.forward(features, images);
    const auto wanted = without.forward(features, images);
    CHECK(std::ranges::equal(logits, wanted));
  }
  SUBCASE("features can be dropped, too") {
    head on_features(small({flatten(), dropout(0.5), dense(30)}));
    std::vector<float> identity(30 * 30);
    for (std::size_t i = 0; i < 30; ++i) identity[i * 30 + i] = 1;
    on_features.set_values(0, identity);
    const std::vector<float> ones(30, 1);
    const auto logits = on_features.forward(ones, 1, head_pass::training, 3);
    for (const float logit : logits) CHECK((logit == 0 || logit == 2));
    CHECK(std::ranges::count(logits, 0.0F) > 3);
    CHECK(std::ranges::count(logits, 2.0F) > 3);
  }
}

TEST_CASE("values of small numbers by hand, rounded where the policy rounds") {
  // Features [1, 2], kernel [[3, 4], [5, 6]], bias [0.5, -100]: [13.5, 16 - 100].
  const auto logits_of = [](precision_policy policy, std::vector<float> features) {
    head model(
        {.features = {2}, .layers = {dense(2, activation::relu), dense(2)}, .policy = policy});
    model.set_values(0, std::array{3.0F, 4.0F, 5.0F, 6.0F});
    model.set_values(1, std::array{0.5F, -100.0F});
    model.set_values(2, std::array{1.0F, -1.0F, 7.0F, 9.0F});
    model.set_values(3, std::array{0.0F, 0.25F});
    const auto logits = model.forward(features, 1);
    return std::vector<float>(logits.begin(), logits.end());
  };
  for (const precision_policy policy : policies) {
    CHECK(logits_of(policy, {1, 2}) == std::vector<float>{13.5F, -13.25F});
  }
  // Features [1000, 5]: 3025.5 has 13 binary digits, which FP16 rounds to a multiple of 2 and BF16 to one
  // of 16; 4 * 1000 + 6 * 5 - 100 = 3930 FP16 has, and BF16 makes 3936 of it.
  CHECK(logits_of(precision_policy::f32, {1000, 5})[0] == 3025.5F + 7 * 3930);
  CHECK(logits_of(precision_policy::mixed_float16, {1000, 5})[0] == 3026.0F + 7 * 3930);
  CHECK(logits_of(precision_policy::mixed_bfloat16, {1000, 5})[0] == 3024.0F + 7 * 3936);
  // Features are rounded: 1 + 2^-9 becomes 1 in BF16.
  CHECK(logits_of(precision_policy::mixed_float16, {1.001953125F, 0})[0] == 3.505859375F);
  CHECK(logits_of(precision_policy::mixed_bfloat16, {1.001953125F, 0})[0] == 3.5F);
}

TEST_CASE("weights are rounded for products, and their masters are not") {
  head model({.features = {1}, .layers = {dense(1)}, .policy = precision_policy::mixed_bfloat16});
  model.set_values(0, std::array{1.001953125F});
  CHECK(model.values(0)[0] == 1.001953125F);
  CHECK(model.forward(std::array{1.0F}, 1)[0] == 1.0F);
  // Less than BF16 has beside 1 (2^-7), but what adds up does not get lost: 1 + 2^-9 + 2^-8 rounds up.
  model.update([](std::span<float> values, std::span<const float>,
                  std::span<const std::span<float>>) { values[0] += 0.00390625F; });
  CHECK(model.values(0)[0] == 1.005859375F);
  CHECK(model.forward(std::array{1.0F}, 1)[0] == 1.0078125F + 0.00390625F);  // and the bias
}

TEST_CASE("a gradient beyond FP16 is told, and so is a NaN") {
  const std::vector<head_layer> layers{dense(3, activation::relu), dense(2)};
  const std::vector<float> features(4 * 2, 100.0F);
  const auto finite = [&](precision_policy policy, float gradient) {
    head model({.features = {4}, .layers = layers, .max_batch = 2, .policy = policy});
    model.set_values(0, std::vector<float>(12, 1.0F));
    model.set_values(2, std::vector<float>(6, 1.0F));
    (void)model.forward(features, 2, head_pass::training);
    return model.backward(std::vector<float>(4, gradient));
  };
  // By the kernels: 2 images x (2 x gradient) x 100, and 2 x gradient x 400.
  CHECK(finite(precision_policy::mixed_float16, 80));          // 64000 of the second kernel
  CHECK_FALSE(finite(precision_policy::mixed_float16, 82));    // 65600
  CHECK_FALSE(finite(precision_policy::mixed_float16, 7e4F));  // by the logits
  CHECK(finite(precision_policy::mixed_bfloat16, 7e4F));
  CHECK_FALSE(finite(precision_policy::mixed_bfloat16, std::numeric_limits<float>::quiet_NaN()));
  CHECK_FALSE(finite(precision_policy::mixed_bfloat16, std::numeric_limits<float>::infinity()));
}

TEST_CASE("the first weights are uniform as Keras' are, and those of a seed") {
  head model(small({flatten(), dense(500, activation::relu), dense(2)}));
  const auto kernel = model.values(0);
  const double limit = std::sqrt(6.0 / (30 + 500));
  double sum = 0;
  double squares = 0;
  for (const float value : kernel) {
    REQUIRE(std::abs(double{value}) <= limit);
    sum += double{value};
    squares += double{value} * double{value};
  }
  const auto count = static_cast<double>(kernel.size());
  CHECK(std::abs(sum / count) < 5 * limit / std::sqrt(3 * count));
  CHECK(squares / count == doctest::Approx(limit * limit / 3).epsilon(0.05));
  CHECK(std::ranges::all_of(model.values(1), [](float value) { return value == 0; }));

  head same(small({flatten(), dense(500, activation::relu), dense(2)}));
  CHECK(std::ranges::equal(same.values(0), kernel));
  head_options other = small({flatten(), dense(500, activation::relu), dense(2)});
  other.seed = 1;
  CHECK_FALSE(std::ranges::equal(head(other).values(0), kernel));
  CHECK(same.values(2)[0] != same.values(0)[0]);
}

TEST_CASE("the arena is as large as its plan, and the ledger has all of it") {
  for (const precision_policy policy : policies) {
    CAPTURE(name_of(policy));
    head_options options{
        .features = {7, 7, 512},
        .layers = {flatten(), dense(256, activation::relu), dropout(0.5), dense(10)},
        .max_batch = 32,
        .policy = policy,
        .optimizer_state = 2,
        .keeps_best = true,
    };
    const head_footprint plan = plan_head(options);
    const auto ledger = std::make_shared<vggload::memory_ledger>();
    const head model(options, ledger);
    CHECK(model.memory().capacity() == plan.total_bytes);
    CHECK(model.memory().used() <= plan.total_bytes);
    CHECK(model.memory().used() + 64 > plan.total_bytes);

    const std::uint64_t trained = 25088 * 256 + 256 + 256 * 10 + 10;
    const bool f32 = policy == precision_policy::f32;
    const std::uint64_t wide = f32 ? 4 : 2;
    CHECK(plan.bytes(memory_role::optimizer) == trained * 4 * 2);
    CHECK(plan.bytes(memory_role::masters) == (f32 ? 0 : trained * 4));
    // With those of the best epoch.
    CHECK(plan.bytes(memory_role::weights) == trained * 4 + trained * wide);
    // Of weights, of the logits, and of the hidden layer; in 16 bits the logits' once more.
    CHECK(plan.bytes(memory_role::gradients) ==
          trained * wide + 32 * 10 * 4 + 32 * 256 * wide + (f32 ? 0 : 32 * 10 * wide));
    // The hidden layer, the same after dropout, the logits, and features where they are rounded.
    CHECK(plan.bytes(memory_role::activations) ==
          32 * 256 * wide * 2 + 32 * 10 * 4 + (f32 ? 0 : 32 * 25088 * wide));
    // Tiles of 1024 rows of the kernel, and of as many columns of the features; sums of the hidden layer.
    CHECK(plan.bytes(memory_role::workspace) ==
          (f32 ? 0 : (1024 * 256 + 32 * 1024 + 32 * 256) * sizeof(float)));

    const vggload::ledger_snapshot book = ledger->snapshot();
    std::uint64_t live = 0;
    for (const head_piece& piece : plan.pieces) live += piece.bytes;
    CHECK(book.live_bytes == live);
    REQUIRE(book.pieces.size() == plan.pieces.size());
    for (std::size_t i = 0; i < plan.pieces.size(); ++i) {
      CHECK(book.pieces[i].name == plan.pieces[i].name);
      CHECK(book.pieces[i].role == plan.pieces[i].role);
    }
  }
}

TEST_CASE("weights can be remembered and recalled") {
  head_options options = small({flatten(), dense(3)}, precision_policy::mixed_float16);
  options.keeps_best = true;
  head model(options);
  const std::vector<float> features = random_numbers(model.features(), 1);
  const std::vector<float> first(model.values(0).begin(), model.values(0).end());
  const auto logits = model.forward(features, 1);
  const std::vector<float> before(logits.begin(), logits.end());
  model.remember_weights();
  set_random_weights(model);
  CHECK_FALSE(std::ranges::equal(model.values(0), first));
  model.recall_weights();
  CHECK(std::ranges::equal(model.values(0), first));
  CHECK(std::ranges::equal(model.forward(features, 1), before));
}

TEST_CASE("layers that do not fit together are refused, with the layer") {
  const auto refused = [](std::vector<head_layer> layers) {
    return message_of<vggload::error>([&] { (void)plan_head(small(layers)); });
  };
  CHECK(refused({}) ==
        "head: the last layer has to be dense(classes) without an activation, not none");
  CHECK(refused({flatten()}) ==
        "head: the last layer has to be dense(classes) without an activation, not flatten");
  CHECK(refused({flatten(), dense(4, activation::relu)}) ==
        "head: the last layer has to be dense(classes) without an activation, not dense(4, relu)");
  CHECK(refused({dense(4)}) ==
        "head: layer 1, dense(4): its input has the shape [2, 3, 5]; flatten or "
        "global_average_pool has to come before");
  CHECK(refused({flatten(), global_average_pool(), dense(4)}) ==
        "head: layer 2, global_average_pool: its input has the shape [30], without a height and a "
        "width");
  CHECK(refused({flatten(), dense(4), normalization(), dense(4)}) ==
        "head: layer 3, normalization: it has to come before the first dense layer");
  CHECK(refused({flatten(), normalization(), normalization(), dense(4)}) ==
        "head: layer 3, normalization: there is one before");
  CHECK(refused({flatten(), normalization(0), dense(4)}) ==
        "head: layer 2, normalization(0): the limit is not above 0");
  CHECK(refused({flatten(), dense(0)}) == "head: layer 2, dense(0): it has no units");
  CHECK(refused({flatten(), dropout(1), dense(2)}) ==
        "head: layer 2, dropout(1): the rate is not from 0 to less than 1");
  CHECK(refused({flatten(), dropout(-0.5), dense(2)}) ==
        "head: layer 2, dropout(-0.5): the rate is not from 0 to less than 1");
  CHECK(refused({flatten(), dropout(std::nan("")), dense(2)}).find("the rate is not") !=
        std::string::npos);
  CHECK(refused({flatten(), dense(std::uint64_t{1} << 60U)}) ==
        "head: its sizes do not fit into memory");
  CHECK(refused({flatten(), dense(std::uint64_t{1} << 59U), dense(2)}) ==
        "head: its sizes do not fit into memory");
  head_options options = small({flatten(), dense(2)});
  options.max_batch = 0;
  CHECK(message_of<vggload::error>([&] { (void)plan_head(options); }) ==
        "head: a batch of 0 images cannot be");
  options.max_batch = SIZE_MAX;
  CHECK(message_of<vggload::error>([&] { (void)plan_head(options); }) ==
        "head: its sizes do not fit into memory");
  options.max_batch = 1;
  options.features = {2, 0, 5};
  CHECK(message_of<vggload::error>([&] { (void)plan_head(options); }) ==
        "head: features of the shape [2, 0, 5] cannot be");
  options.features = {};
  CHECK(message_of<vggload::error>([&] { (void)plan_head(options); }) ==
        "head: features of the shape [] cannot be");
}

TEST_CASE("batches that do not fit are refused, with the numbers") {
  head model(small({flatten(), dense(2)}));
  const std::vector<float> features(7 * 30);
  const auto forward = [&](std::size_t values, std::size_t images) {
    return message_of<vggload::error>(
        [&] { (void)model.forward(std::span(features).first(values), images); });
  };
  CHECK(forward(0, 0) == "head: a batch of 0 images, where 1 to 6 were planned");
  CHECK(forward(210, 7) == "head: a batch of 7 images, where 1 to 6 were planned");
  CHECK(forward(59, 2) == "head: 2 images have 60 features, not 59");
  const std::vector<float> gradients(4);
  CHECK(message_of<vggload::error>([&] { model.backward(gradients); }) ==
        "head: there are no gradients without a pass for training");
  (void)model.forward(std::span(features).first(60), 2);
  CHECK(message_of<vggload::error>([&] { model.backward(gradients); }) ==
        "head: there are no gradients without a pass for training");
  (void)model.forward(std::span(features).first(90), 3, head_pass::training);
  CHECK(message_of<vggload::error>([&] { model.backward(gradients); }) ==
        "head: 3 images have 6 gradients by logits, not 4");
  CHECK(message_of<vggload::error>([&] { model.set_values(1, gradients); }) ==
        "head: 'dense_1.bias' has 2 values, not 4");
  CHECK(message_of<vggload::error>([&] { model.set_normalization(gradients, gradients); }) ==
        "head: it has no normalization layer");
}

TEST_CASE("a head that no memory holds is one error") {
  const head_options options{.features = {std::uint64_t{1} << 30U},
                             .layers = {dense(std::uint64_t{1} << 14U)}};
  CHECK(message_of<vggload::out_of_memory>([&] { head model(options); }).starts_with("head: "));
}
