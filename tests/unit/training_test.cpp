// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The loss, the optimizers, the loss scale, and single steps of a trainer.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/error.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/loss.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/optimizer.hpp>
#include <vggload/network/trainer.hpp>

#include "../support/message_of.hpp"
#include "../support/replaced_new.hpp"

namespace {

std::atomic<std::uint64_t> allocations = 0;

}  // namespace

void* test::allocate(std::size_t bytes, std::size_t alignment) noexcept {
  ++allocations;
  return aligned_block(bytes, alignment);
}

void test::release(void* memory) noexcept { std::free(memory); }

using namespace vggload::network;
using test::message_of;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Three steps from the same weights with the same gradients.
std::vector<std::vector<float>> three_steps(const optimizer_options& options) {
  constexpr std::array<std::array<float, 4>, 3> gradients{
      {{0.5F, -1, 0.25F, 0}, {-0.125F, 2, 0.75F, 1e-3F}, {3, 0.5F, -0.5F, -1e-3F}}};
  std::vector<float> weights{1, -2, 0.5F, 0.03125F};
  std::vector<std::vector<float>> memory(state_values(options), std::vector<float>(4));
  std::vector<std::span<float>> state(memory.begin(), memory.end());
  std::vector<std::vector<float>> steps;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    optimizer_step(options, i + 1)(weights, gradients[i], state);
    steps.push_back(weights);
  }
  return steps;
}

/// In units of 1e-7 of the larger weight: twice what FP32's rounding of one operation is.
double deviation(const std::vector<std::vector<float>>& got,
                 const std::vector<std::vector<float>>& wanted) {
  double largest = 0;
  for (std::size_t step = 0; step < wanted.size(); ++step) {
    for (std::size_t i = 0; i < 4; ++i) {
      const double off = std::abs(double{got[step][i]} - double{wanted[step][i]});
      largest = std::max(largest, off / std::max(0.1, std::abs(double{wanted[step][i]})));
    }
  }
  return largest / 1e-7;
}

training_options tiny(precision_policy policy = precision_policy::f32) {
  return {.features = {3},
          .layers = {dense(4, activation::relu), dense(2)},
          .max_batch = 4,
          .policy = policy,
          .optimizer = {.kind = optimizer_kind::momentum, .learning_rate = 0.05}};
}

const std::vector<float> four_images{1, 0, 2, -1, 1, 0.5F, 0, 0, 1, 2, -2, 0.25F};
const std::vector<float> four_labels{1, 0, 0, 1, 1, 0, 0, 1};

std::vector<float> all_weights(const trainer& model) {
  std::vector<float> values;
  for (std::size_t i = 0; i < model.head().parameters().size(); ++i) {
    const auto more = model.head().values(i);
    values.insert(values.end(), more.begin(), more.end());
  }
  return values;
}

}  // namespace

TEST_CASE("cross-entropy by hand") {
  const std::array<float, 4> zeros{};
  const std::array<float, 4> one_hot{0, 1, 1, 0};
  CHECK(softmax_cross_entropy(zeros, one_hot, 2).sum == doctest::Approx(2 * std::log(2.0)));
  // softmax(ln 1, ln 2, ln 5) = 1/8, 2/8, 5/8
  const std::array<float, 3> logarithms{0, std::log(2.0F), std::log(5.0F)};
  std::array<float, 3> gradients{};
  const batch_loss third =
      softmax_cross_entropy(logarithms, std::array{0.0F, 0.0F, 1.0F}, 3, gradients, 16);
  CHECK(third.sum == doctest::Approx(std::log(8.0 / 5)));
  CHECK(third.correct == 1);
  CHECK(gradients[0] == doctest::Approx(2.0F));
  CHECK(gradients[1] == doctest::Approx(4.0F));
  CHECK(gradients[2] == doctest::Approx(-6.0F));
  // Shares: 0.25 ln 8 + 0.75 ln(8/2).
  const batch_loss shares =
      softmax_cross_entropy(logarithms, std::array{0.25F, 0.75F, 0.0F}, 3, gradients);
  CHECK(shares.sum == doctest::Approx(0.25 * std::log(8.0) + 0.75 * std::log(4.0)));
  CHECK(shares.correct == 0);
  CHECK(gradients[0] == doctest::Approx(-0.125F));
  CHECK(gradients[1] == doctest::Approx(-0.5F));
  CHECK(gradients[2] == doctest::Approx(0.625F));
  // Labels that sum to 2 count twice: the slope of 2 ln(sum exp) - x_1 - x_2 by x_0 is 2/8.
  softmax_cross_entropy(logarithms, std::array{0.0F, 1.0F, 1.0F}, 3, gradients);
  CHECK(gradients[0] == doctest::Approx(0.25F));
  CHECK(gradients[1] == doctest::Approx(-0.5F));
  // Gradients are of the mean.
  std::array<float, 4> two_images{};
  softmax_cross_entropy(zeros, one_hot, 2, two_images);
  CHECK(two_images[0] == 0.25F);
  CHECK(two_images[1] == -0.25F);
}

TEST_CASE("cross-entropy does not overflow") {
  std::array<float, 2> gradients{};
  const std::array<float, 2> far{3e38F, -3e38F};
  CHECK(softmax_cross_entropy(far, std::array{1.0F, 0.0F}, 2, gradients).sum == 0);
  CHECK(gradients == std::array{0.0F, 0.0F});
  CHECK(softmax_cross_entropy(far, std::array{0.0F, 1.0F}, 2, gradients).sum ==
        doctest::Approx(6e38));
  CHECK(gradients == std::array{1.0F, -1.0F});
  // A class that no label asks for may be impossible.
  CHECK(softmax_cross_entropy(std::array{2.0F, -infinity}, std::array{1.0F, 0.0F}, 2).sum == 0);
  CHECK(std::isnan(
      softmax_cross_entropy(std::array{std::nanf(""), 1.0F}, std::array{1.0F, 0.0F}, 2).sum));
  CHECK_FALSE(std::isfinite(
      softmax_cross_entropy(std::array{infinity, 1.0F}, std::array{1.0F, 0.0F}, 2).sum));
}

TEST_CASE("logits and labels that do not fit are refused") {
  const std::vector<float> six(6);
  const auto refused = [&](std::size_t logits, std::vector<float> labels, std::size_t classes) {
    return message_of<vggload::error>(
        [&] { softmax_cross_entropy(std::span(six).first(logits), labels, classes); });
  };
  CHECK(refused(6, six, 4) == "loss: 6 logits and 6 labels are not images of 4 classes");
  CHECK(refused(6, {1, 0}, 2) == "loss: 6 logits and 2 labels are not images of 2 classes");
  CHECK(refused(6, six, 0) == "loss: 6 logits and 6 labels are not images of 0 classes");
  CHECK(refused(4, {1, 0, 2, -1}, 2) ==
        "loss: label 1 of image 1 of the batch is -1.000000, not a share");
  CHECK(refused(4, {1, 0, std::nanf(""), 1}, 2) ==
        "loss: label 0 of image 1 of the batch is nan, not a share");
  CHECK(refused(2, {infinity, 0}, 2) ==
        "loss: label 0 of image 0 of the batch is inf, not a share");
}

// Printed by torch.optim.SGD and Adam, on the weights and gradients of `three_steps`.
TEST_CASE("optimizers step as torch's") {
  CHECK(deviation(three_steps({.kind = optimizer_kind::sgd, .learning_rate = 0.1}),
                  {{0.949999988F, -1.89999998F, 0.474999994F, 0.03125F},
                   {0.962499976F, -2.0999999F, 0.400000006F, 0.0311500002F},
                   {0.662499964F, -2.14999986F, 0.450000018F, 0.03125F}}) < 4);
  CHECK(deviation(
            three_steps({.kind = optimizer_kind::sgd, .learning_rate = 0.1, .weight_decay = 0.01}),
            {{0.949000001F, -1.898F, 0.4745F, 0.0312187504F},
             {0.960551023F, -2.096102F, 0.3990255F, 0.0310875308F},
             {0.659590483F, -2.14400601F, 0.448626488F, 0.0311564431F}}) < 4);
  CHECK(deviation(three_steps({.kind = optimizer_kind::momentum, .learning_rate = 0.1}),
                  {{0.949999988F, -1.89999998F, 0.474999994F, 0.03125F},
                   {0.917499959F, -2.00999999F, 0.377499998F, 0.0311500002F},
                   {0.588249981F, -2.15899992F, 0.339749992F, 0.0311600007F}}) < 4);
  CHECK(deviation(three_steps({.kind = optimizer_kind::momentum,
                               .learning_rate = 0.1,
                               .momentum = 0.8,
                               .weight_decay = 0.01}),
                  {{0.949000001F, -1.898F, 0.4745F, 0.0312187504F},
                   {0.919750988F, -2.01450205F, 0.378625512F, 0.0310625322F},
                   {0.595432043F, -2.15568924F, 0.351547271F, 0.0310064945F}}) < 4);
  CHECK(deviation(three_steps({.kind = optimizer_kind::adam, .learning_rate = 0.01}),
                  {{0.99000001F, -1.99000001F, 0.49000001F, 0.03125F},
                   {0.985305309F, -1.99366105F, 0.480822206F, 0.0238087364F},
                   {0.978395343F, -1.99781752F, 0.478243172F, 0.0242605526F}}) < 4);
  CHECK(deviation(three_steps({.kind = optimizer_kind::adam,
                               .learning_rate = 0.05,
                               .beta1 = 0.8,
                               .beta2 = 0.95,
                               .epsilon = 1e-3,
                               .weight_decay = 0.1}),
                  {{0.950083196F, -1.95004165F, 0.450166106F, -0.00662878901F},
                   {0.92034483F, -1.96527112F, 0.40284878F, -0.0312988684F},
                   {0.882368267F, -1.98126185F, 0.389384329F, -0.02181134F}}) < 4);
}

TEST_CASE("equal weights are updated alike, wherever they are") {
  // Not a multiple of any vector.
  constexpr std::size_t count = 1031;
  for (const auto kind : {optimizer_kind::sgd, optimizer_kind::momentum, optimizer_kind::adam}) {
    const optimizer_options options{.kind = kind, .learning_rate = 0.1, .weight_decay = 0.01};
    std::vector<float> weights(count, 0.7F);
    std::vector<std::vector<float>> memory(state_values(options), std::vector<float>(count));
    const std::vector<std::span<float>> state(memory.begin(), memory.end());
    for (std::uint64_t step = 1; step < 4; ++step) {
      optimizer_step(options, step)(weights, std::vector<float>(count, 0.3F), state);
    }
    CHECK(weights[0] < 0.7F);
    CHECK(std::ranges::count(weights, weights[0]) == count);
  }
}

TEST_CASE("an optimizer's numbers are looked at, and named") {
  const auto refused = [](optimizer_options options) {
    return message_of<vggload::error>([&] { check(options); });
  };
  CHECK(refused({.learning_rate = -1}) ==
        "optimizer: the learning rate cannot be -1.000000, only 0 or more");
  CHECK(refused({.learning_rate = std::nan("")}) ==
        "optimizer: the learning rate cannot be nan, only 0 or more");
  CHECK(refused({.momentum = 1}) ==
        "optimizer: the momentum cannot be 1.000000, only from 0 to less than 1");
  CHECK(refused({.beta1 = 1.5}).find("beta1") != std::string::npos);
  CHECK(refused({.beta2 = -0.5}).find("beta2") != std::string::npos);
  CHECK(refused({.epsilon = -1}).find("epsilon") != std::string::npos);
  CHECK(refused({.weight_decay = std::numeric_limits<double>::infinity()}).find("weight decay") !=
        std::string::npos);
  training_options options = tiny();
  options.optimizer.learning_rate = -2;
  CHECK(message_of<vggload::error>([&] { trainer model(options); }).starts_with("optimizer: "));
  CHECK(to_string(optimizer_options{.kind = optimizer_kind::momentum, .learning_rate = 0.1}) ==
        "momentum(learning_rate=0.1, momentum=0.9, weight_decay=0)");
}

// The numbers are those of Keras' LossScaleOptimizer, given the same gradients; but that it ends at 1.
TEST_CASE("the loss scale halves where gradients are not finite and doubles where they long were") {
  loss_scale scale({.initial = 32, .growth_steps = 3});
  const auto after = [&](bool finite) {
    scale.update(finite);
    return scale.value();
  };
  CHECK(after(true) == 32);
  CHECK(after(true) == 32);
  CHECK(after(true) == 64);  // the third in a row
  CHECK(after(true) == 64);
  CHECK(after(true) == 64);
  CHECK(after(false) == 32);
  CHECK(after(true) == 32);  // the count begins again
  CHECK(after(true) == 32);
  CHECK(after(true) == 64);
  for (int i = 0; i < 5; ++i) scale.update(false);
  CHECK(after(false) == 1);
  CHECK(after(false) == 1);
  loss_scale largest({.initial = 0x1p125, .growth_steps = 1});
  for (int i = 0; i < 3; ++i) largest.update(true);
  CHECK(largest.value() == 0x1p126);
  CHECK(loss_scale().value() == 32768);

  CHECK(message_of<vggload::error>([] { (void)loss_scale({.initial = 0.5}); }) ==
        "loss scale: it cannot begin at 0.500000, only at 1 to 2^126");
  CHECK(message_of<vggload::error>([] { (void)loss_scale({.growth_steps = 0}); }) ==
        "loss scale: it cannot grow after 0 steps");
  CHECK(message_of<vggload::error>([&] { scale.restore(4, 3); }) ==
        "loss scale: it cannot be 4.000000 after 3 finite steps");
}

TEST_CASE("a policy is known by its name") {
  CHECK(precision_policy_from_name("mixed_float16") == precision_policy::mixed_float16);
  CHECK(precision_policy_from_name("f32") == precision_policy::f32);
  CHECK(name_of(precision_policy::mixed_bfloat16) == "mixed_bfloat16");
  CHECK_FALSE(precision_policy_from_name("float16"));
}

TEST_CASE("a step lowers the loss, and equal trainers take equal steps") {
  for (const precision_policy policy :
       {precision_policy::f32, precision_policy::mixed_float16, precision_policy::mixed_bfloat16}) {
    CAPTURE(name_of(policy));
    trainer model(tiny(policy));
    trainer same(tiny(policy));
    const double before = model.evaluate(four_images, four_labels, 4).sum;
    for (int i = 0; i < 60; ++i) {
      model.step(four_images, four_labels, 4);
      same.step(four_images, four_labels, 4);
    }
    const batch_loss after = model.evaluate(four_images, four_labels, 4);
    CHECK(after.sum < before / 5);
    CHECK(after.correct == 4);
    CHECK(all_weights(model) == all_weights(same));
    CHECK(model.progress().steps == 60);
  }
}

TEST_CASE("one step of SGD by hand") {
  // Logits 0: the gradients by the logits are (1/2 - y) / 2 for each of two images.
  trainer model({.features = {2},
                 .layers = {dense(2)},
                 .optimizer = {.kind = optimizer_kind::sgd, .learning_rate = 0.5}});
  model.head().set_values(0, std::vector<float>(4));
  const step_result result =
      model.step(std::array{1.0F, 2.0F, 3.0F, -4.0F}, std::array{1.0F, 0.0F, 0.0F, 1.0F}, 2);
  CHECK(result.updated);
  CHECK(result.loss.sum == doctest::Approx(2 * std::log(2.0)));
  CHECK(result.loss.correct == 1);  // of equal logits the first counts
  // By the kernel: 1 (-1/4) + 3 (1/4) = 1/2 and 2 (-1/4) - 4 (1/4) = -3/2, the second column the opposite.
  const auto kernel = model.head().values(0);
  CHECK(std::vector<float>(kernel.begin(), kernel.end()) ==
        std::vector<float>{-0.25F, 0.25F, 0.75F, -0.75F});
  CHECK(model.head().values(1)[0] == 0);
}

TEST_CASE("float16 skips steps whose gradients overflow, backs off, and grows again") {
  training_options options = tiny(precision_policy::mixed_float16);
  options.loss_scale = {.initial = 0x1p20, .growth_steps = 4};
  trainer model(options);
  // Gradients by logits are up to 0.5 / 4 of the scale: beyond 65504 from 2^19 or 2^20 on.
  const std::vector<float> before = all_weights(model);
  CHECK_FALSE(model.step(four_images, four_labels, 4).updated);
  CHECK(all_weights(model) == before);
  CHECK(model.loss_scale().value() == 0x1p19);
  CHECK(model.progress().updates == 0);
  int skipped = 1;
  while (!model.step(four_images, four_labels, 4).updated) {
    CHECK(all_weights(model) == before);
    ++skipped;
    REQUIRE(skipped < 12);
  }
  CHECK(all_weights(model) != before);
  const double fits = model.loss_scale().value();
  CHECK(fits == std::ldexp(1, 20 - skipped));
  for (int i = 0; i < 3; ++i) CHECK(model.step(four_images, four_labels, 4).updated);
  CHECK(model.loss_scale().value() == 2 * fits);

  SUBCASE("the scale does not show in what is learnt") {
    options.loss_scale.initial = 1024;
    trainer scaled(options);
    options.loss_scale.initial = 16;
    trainer other(options);
    for (int i = 0; i < 20; ++i) {
      scaled.step(four_images, four_labels, 4);
      other.step(four_images, four_labels, 4);
    }
    const double wanted = scaled.evaluate(four_images, four_labels, 4).sum;
    CHECK(other.evaluate(four_images, four_labels, 4).sum == doctest::Approx(wanted).epsilon(0.01));
  }
  SUBCASE("small gradients are lost without") {
    // By the logits about 2^-27, half of FP16's smallest number.
    const auto learns = [](double initial) {
      training_options fine{.features = {1},
                            .layers = {dense(2)},
                            .policy = precision_policy::mixed_float16,
                            .optimizer = {.kind = optimizer_kind::sgd, .learning_rate = 1e6},
                            .loss_scale = {.initial = initial}};
      trainer learner(fine);
      learner.head().set_values(0, std::array{18.75F, 0.0F});
      learner.step(std::array{1.0F}, std::array{1.0F, 0.0F}, 1);
      return learner.head().values(0)[0] != 18.75F;
    };
    CHECK(learns(32768));
    CHECK_FALSE(learns(1));
  }
}

TEST_CASE("a loss that is not finite ends the training, which is as it was before") {
  trainer model(tiny(precision_policy::mixed_float16));
  std::vector<float> images = four_images;
  images[4] = 1e5F;
  const std::vector<float> before = all_weights(model);
  CHECK(message_of<vggload::error>([&] { model.step(images, four_labels, 4); }) ==
        "training: the loss of step 1 is not finite; a lower learning rate may help, or another "
        "policy: values beyond 65504 do not fit into float16");
  CHECK(all_weights(model) == before);
  CHECK(model.progress().steps == 0);
  trainer wide(tiny());
  images[4] = std::nanf("");
  CHECK(message_of<vggload::error>([&] { wide.step(images, four_labels, 4); }) ==
        "training: the loss of step 1 is not finite; a lower learning rate may help");
}

TEST_CASE("a step allocates nothing") {
  for (const precision_policy policy : {precision_policy::f32, precision_policy::mixed_float16}) {
    training_options options{
        .features = {2, 2, 96},
        .layers = {flatten(), normalization(), dense(80, activation::relu), dropout(0.5), dense(7)},
        .max_batch = 16,
        .policy = policy,
        .ledger = std::make_shared<vggload::memory_ledger>()};
    trainer model(options);
    const std::vector<float> features(16 * 384, 0.5F);
    std::vector<float> labels(16 * 7);
    for (std::size_t i = 0; i < 16; ++i) labels[i * 7 + i % 7] = 1;
    const std::uint64_t before = allocations;
    for (int i = 0; i < 3; ++i) {
      model.step(features, labels, 16);
      model.evaluate(features, labels, 16);
    }
    CHECK(allocations == before);
    CHECK(model.head().memory().capacity() == plan_training(options).total_bytes);
  }
}
