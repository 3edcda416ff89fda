// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a frozen base gives and where its features go. Its weights hand three channels through from layer to layer,
// so that features are known beforehand: of each 32 x 32 pixels the largest value of a channel.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/resume.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/data/take.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/feature_batch.hpp>
#include <vggload/network/feature_cache.hpp>
#include <vggload/network/frozen_base.hpp>
#include <vggload/network/stored_features.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/weights.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using namespace vggload::network;
using test::message_of;

namespace {

/// Each convolution's first three outputs are its first three inputs; all others are 0.
const vgg16::weights& identity_weights() {
  static std::vector<std::vector<float>> values;
  static const vgg16::weights weights = [] {
    values.reserve(2 * vgg16::conv_layers);
    std::vector<vgg16::layer_view> layers;
    for (std::size_t i = 0; i < vgg16::conv_layers; ++i) {
      const vgg16::layer& spec = vgg16::layers[i];
      std::vector<float>& weight = values.emplace_back(spec.weights());
      for (std::size_t c = 0; c < 3; ++c) weight[(c * spec.inputs + c) * 9 + 4] = 1;
      const std::vector<float>& bias = values.emplace_back(spec.outputs);
      layers.push_back(
          {spec,
           {dtype::f32, {spec.outputs, spec.inputs, 3, 3}, std::as_bytes(std::span(weight))},
           {dtype::f32, {spec.outputs}, std::as_bytes(std::span(bias))}});
    }
    return vgg16::weights(vgg16::weight_layout::torch, std::move(layers));
  }();
  return weights;
}

/// The value of a pixel: another one in each image, place and channel.
float pixel(std::uint64_t image, std::size_t y, std::size_t x, std::size_t channel) {
  return static_cast<float>((image * 37 + y * 11 + x * 5 + channel * 101) % 251);
}

void draw(std::uint64_t image, std::size_t height, std::size_t width, float* into) {
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      for (std::size_t c = 0; c < 3; ++c) *into++ = pixel(image, y, x, c);
    }
  }
}

/// The last maps of an image, [height / 32][width / 32][512].
std::vector<float> expected_maps(std::uint64_t image, std::size_t height, std::size_t width) {
  std::vector<float> maps(height / 32 * (width / 32) * 512);
  for (std::size_t y = 0; y < height / 32 * 32; ++y) {
    for (std::size_t x = 0; x < width / 32 * 32; ++x) {
      for (std::size_t c = 0; c < 3; ++c) {
        float& most = maps[((y / 32) * (width / 32) + x / 32) * 512 + c];
        most = std::max(most, pixel(image, y, x, c));
      }
    }
  }
  return maps;
}

/// Images of 32 x 32, each another one in each epoch, in classes that take turns. Each fourth is skipped where that
/// is asked for.
class drawn_images {
 public:
  using value_type = image_sample;

  explicit drawn_images(std::size_t count, bool skips = false,
                        const sample_format& format = {.height = 32, .width = 32},
                        label_mode mode = label_mode::categorical)
      : count_(count), skips_(skips), format_(format), labels_{mode, 3} {}

  static std::uint64_t image_of(std::uint64_t epoch, std::size_t i) { return epoch * 100 + i; }

  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] auto element(std::uint64_t epoch, std::size_t i) const {
    return [this, epoch, i](image_sample& into) {
      if (skips_ && i % 4 == 3) return false;
      draw(image_of(epoch, i), 32, 32, reinterpret_cast<float*>(into.pixels.data()));
      labels_.write(i % 3, into.label);
      into.index = i;
      return true;
    };
  }
  [[nodiscard]] auto operator[](std::size_t i) const { return element(epoch_, i); }
  [[nodiscard]] std::uint64_t epoch() const { return epoch_; }
  void set_epoch(std::uint64_t epoch) { epoch_ = epoch; }
  void on_epoch_end() { ++epoch_; }
  [[nodiscard]] std::size_t storage_bytes(std::size_t n) const {
    return image_batch::bytes(format_, labels_, n);
  }
  template <class Arena>
  [[nodiscard]] image_batch make_storage(Arena& memory, std::size_t n) const {
    return {memory, format_, labels_, n};
  }

 private:
  std::size_t count_;
  bool skips_;
  sample_format format_;
  label_format labels_;
  std::uint64_t epoch_ = 0;
};

/// Whether the `row`-th image of a batch is this one.
bool holds(const feature_batch& batch, std::size_t row, std::uint64_t image, std::size_t label) {
  const std::vector<float> maps = expected_maps(image, 32, 32);
  std::array<float, 3> one_hot{};
  one_hot.at(label) = 1;
  return std::ranges::equal(batch.features().subspan(row * 512, 512), maps) &&
         std::ranges::equal(batch.labels().subspan(row * 3, 3), one_hot);
}

}  // namespace

TEST_CASE("a frozen base gives the last maps of any number of images, in groups") {
  constexpr std::size_t height = 64;
  constexpr std::size_t width = 100;  // the last 4 columns are in no 32 x 32 pixels
  constexpr std::size_t values = height * width * 3;
  for (const std::size_t batch : {1U, 2U, 4U}) {
    frozen_base base(identity_weights(),
                     {.batch = batch, .height = height, .width = width, .threads = 2});
    CHECK(feature_shape(base.options()) == shape{2, 3, 512});
    REQUIRE(base.feature_values() == 2 * 3 * 512);
    for (const std::size_t count : {3U, 5U, 1U, 0U}) {
      std::vector<float> images(count * values);
      for (std::size_t i = 0; i < count; ++i) draw(i + count, height, width, &images[i * values]);
      std::vector<float> features(count * base.feature_values());
      base(images, count, features);
      for (std::size_t i = 0; i < count; ++i) {
        const auto maps = expected_maps(i + count, height, width);
        CHECK(std::ranges::equal(
            std::span(features).subspan(i * base.feature_values(), base.feature_values()), maps));
      }
    }
  }
}

TEST_CASE("a frozen base averages its maps where that is asked for") {
  frozen_base base(identity_weights(),
                   {.batch = 2, .height = 64, .width = 64, .pooling = global_pooling::average});
  CHECK(feature_shape(base.options()) == shape{1, 1, 512});
  REQUIRE(base.feature_values() == 512);
  constexpr std::size_t values = 64 * 64 * 3;
  std::vector<float> images(3 * values);
  for (std::size_t i = 0; i < 3; ++i) draw(i, 64, 64, &images[i * values]);
  std::vector<float> features(std::size_t{3} * 512);
  base(images, 3, features);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto maps = expected_maps(i, 64, 64);
    for (std::size_t c = 0; c < 512; ++c) {
      // Of four whole numbers: exact.
      const float mean = (maps[c] + maps[512 + c] + maps[1024 + c] + maps[1536 + c]) / 4;
      CHECK(features[i * 512 + c] == mean);
    }
  }
}

TEST_CASE("a frozen base takes what was planned, and enters it") {
  const auto ledger = std::make_shared<memory_ledger>();
  const frozen_base_options options{.batch = 3, .height = 64, .width = 32, .ledger = ledger};
  const frozen_base_footprint plan = plan_frozen_base(options);
  CHECK(plan.staging_bytes == 3 * 64 * 32 * 3 * 4);
  {
    const frozen_base base(identity_weights(), options);
    CHECK(ledger->live_bytes() == plan.total());
  }
  CHECK(ledger->live_bytes() == 0);
  CHECK(plan_frozen_base({.batch = 1}).staging_bytes == 0);
}

TEST_CASE("a frozen base refuses what it cannot take") {
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  std::vector<float> images(std::size_t{2} * 32 * 32 * 3);
  std::vector<float> features(std::size_t{2} * 512);
  CHECK(message_of<error>([&] { base(std::span(images).first(100), 2, features); }) ==
        "frozen base: the images have 100 values, not 2 times 3072");
  CHECK(message_of<error>([&] { base(images, 2, std::span(features).first(512)); }) ==
        "frozen base: the features have 512 values, not 2 times 512");
  const auto views = identity_weights().layers();
  const vgg16::weights fewer(vgg16::weight_layout::torch, {views.begin(), views.begin() + 12});
  CHECK(message_of<error>([&] { const frozen_base wrong(fewer, {}); }) ==
        "frozen base: the weights have 12 layers, not the 13 convolutions (load without the top)");
  CHECK(message_of<unsupported_error>([&] {
          const frozen_base wrong(identity_weights(), {.height = 31, .width = 32});
        }) == "VGG16: the input is at least 32x32, not 31x32");
}

TEST_CASE("batches of images become batches of features, the short last one too") {
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  const auto ledger = std::make_shared<memory_ledger>();
  auto batches = drawn_images(7) | batch(3) | features(base, ledger);
  static_assert(epoch_sequence<decltype(batches)> && planned_sequence<decltype(batches)>);
  CHECK(batches.format() == feature_format{512, 3});
  CHECK(batches.size() == 3);
  CHECK(ledger->live_bytes() > 3 * 32 * 32 * 3 * 4);
  for (std::uint64_t epoch = 0; epoch < 2; ++epoch) {
    std::size_t image = 0;
    std::vector<std::size_t> sizes;
    for (const feature_batch& batch : batches) {
      sizes.push_back(batch.size());
      CHECK(batch.features().size() == batch.size() * 512);
      for (std::size_t row = 0; row < batch.size(); ++row, ++image) {
        CHECK(holds(batch, row, drawn_images::image_of(epoch, image), image % 3));
      }
    }
    CHECK(sizes == std::vector<std::size_t>{3, 3, 1});
  }
}

TEST_CASE("features can be resumed in the middle of an epoch") {
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  const auto first_features = [&](const sequence_state& from) {
    std::vector<float> first;
    auto rest = drawn_images(7) | shuffle(5) | batch(2) | features(base) | resume_from(from);
    for (const feature_batch& batch : rest) first.push_back(batch.features()[0]);
    return first;
  };
  const std::vector<float> whole = first_features({5, 3, 0});
  REQUIRE(whole.size() == 4);
  CHECK(first_features({5, 3, 2}) == std::vector<float>(whole.begin() + 2, whole.end()));
}

TEST_CASE("images that are skipped are missing, and a batch that lost all of its is left out") {
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  auto pairs = drawn_images(8, true) | batch(2) | features(base);
  std::vector<std::size_t> sizes;
  for (const feature_batch& batch : pairs) sizes.push_back(batch.size());
  CHECK(sizes == std::vector<std::size_t>{2, 1, 2, 1});
  auto singles = drawn_images(8, true) | batch(1) | features(base);
  std::size_t count = 0;
  for (const feature_batch& batch : singles) {
    CHECK(batch.size() == 1);
    ++count;
  }
  CHECK(count == 6);
}

TEST_CASE("features are brought to the length 1, image by image") {
  arena memory(feature_batch::bytes({2, 1}, 3), host_resource());
  feature_batch batch(memory, {2, 1}, 3);
  batch.resize(2);
  const std::array<float, 6> values{3, -4, 0, 0, 5, 12};
  for (std::size_t i = 0; i < 3; ++i) {
    std::ranges::copy(std::span(values).subspan(2 * i, 2), batch[i].features.begin());
  }
  unit_normalization(batch);
  batch.resize(3);  // the last one was not in it
  const std::array<float, 6> expected{0.6F, -0.8F, 0, 0, 5, 12};
  CHECK(std::ranges::equal(batch.features(), expected));
}

TEST_CASE("images of another kind are refused") {
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  const auto refused = [&](const sample_format& format, label_mode mode) {
    return message_of<error>(
        [&] { (void)(drawn_images(4, false, format, mode) | batch(2) | features(base)); });
  };
  CHECK(refused({.height = 64, .width = 32}, label_mode::categorical) ==
        "features: the images are F32 [1, 64, 32, 3], not F32 [1, 32, 32, 3]");
  CHECK(refused({.height = 32, .width = 32, .type = dtype::f16}, label_mode::categorical) ==
        "features: the images are F16 [1, 32, 32, 3], not F32 [1, 32, 32, 3]");
  CHECK(refused({.height = 32, .width = 32}, label_mode::sparse) ==
        "features: the images' labels are [0], not a row of classes for each "
        "(label_mode::categorical)");
  CHECK(refused({.height = 32, .width = 32}, label_mode::none) ==
        "features: the images' labels are [0, 0], not a row of classes for each "
        "(label_mode::categorical)");
}

TEST_CASE("kept features are those of the images, in memory that is entered") {
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  const auto batches = drawn_images(7) | batch(3) | features(base);
  const auto ledger = std::make_shared<memory_ledger>();
  std::vector<std::size_t> seen;
  {
    stored_features kept =
        keep_features(batches, batches.format(), 7,
                      {.progress = [&](std::size_t done, std::size_t) { seen.push_back(done); },
                       .ledger = ledger});
    CHECK(seen == std::vector<std::size_t>{3, 6, 7});
    CHECK(ledger->live_bytes() == feature_batch::bytes({512, 3}, 7));
    REQUIRE(kept.size() == 7);
    auto again = kept | batch(4);
    std::size_t image = 0;
    for (const feature_batch& batch : again) {
      for (std::size_t row = 0; row < batch.size(); ++row, ++image) {
        CHECK(holds(batch, row, image, image % 3));
      }
    }
    CHECK(image == 7);
    // In the order that the images would have.
    kept.set_epoch(0);
    auto shuffled = kept | shuffle(9) | batch(4) | take(1);
    auto images = drawn_images(7) | shuffle(9) | batch(4) | take(1);
    for (const feature_batch& batch : shuffled) {
      for (const image_batch& source : images) {
        for (std::size_t row = 0; row < 4; ++row) {
          const auto index = static_cast<std::size_t>(source.indices()[row]);
          CHECK(holds(batch, row, index, index % 3));
        }
      }
    }
  }
  CHECK(ledger->live_bytes() == 0);
  for (const std::size_t wrong : {6U, 8U}) {
    CHECK(message_of<error>([&] { (void)keep_features(batches, batches.format(), wrong); }) ==
          "features: the batches do not have " + std::to_string(wrong) + " images in all");
  }
  CHECK(message_of<error>([] {
          const std::vector<float> values(10);
          const stored_features wrong({4, 1}, values, std::span(values).first(2), nullptr);
        }) ==
        "stored features: 10 features and 2 values of labels are not those of images with 4 and 1");
}

namespace {

/// A cache of seven images, written by the base.
struct written_cache {
  test::temporary_folder folder;
  std::string path = folder.file("features.safetensors");
  frozen_base base{identity_weights(), {.batch = 2, .height = 32, .width = 32}};

  explicit written_cache(const std::string& key) {
    const auto batches = drawn_images(7) | batch(3) | features(base);
    write_feature_cache(path, key, batches, batches.format(), 7);
  }
  [[nodiscard]] found_features find(std::string_view key, const feature_format& format = {512, 3},
                                    std::size_t count = 7) const {
    return find_feature_cache(path, key, format, count);
  }
};

}  // namespace

TEST_CASE("a cache gives back the features and labels, from the mapped file") {
  const written_cache cache("a key, \"quoted\"");
  // As any reader sees it.
  const checkpoint file = open_checkpoint(cache.path);
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.tensors()[0].name == "features");
  CHECK(file.tensors()[0].shape == shape{7, 512});
  CHECK(file.tensors()[1].name == "labels");
  CHECK(file.tensors()[1].shape == shape{7, 3});

  found_features found = cache.find("a key, \"quoted\"");
  REQUIRE(found.state == cache_state::usable);
  const stored_features& stored = found.features.value();
  for (std::size_t image = 0; image < 7; ++image) {
    CHECK(std::ranges::equal(stored.features().subspan(image * 512, 512),
                             expected_maps(image, 32, 32)));
    CHECK(stored.labels()[image * 3 + image % 3] == 1);
  }
  CHECK(std::ranges::count(stored.labels(), 0.0F) == 14);
}

TEST_CASE("a cache of something else is stale") {
  const written_cache cache("key");
  CHECK(cache.find("key").state == cache_state::usable);
  CHECK(cache.find("another key").state == cache_state::stale);
  CHECK(cache.find("key", {256, 3}).state == cache_state::stale);
  CHECK(cache.find("key", {512, 2}).state == cache_state::stale);
  CHECK(cache.find("key", {512, 3}, 6).state == cache_state::stale);
  CHECK(find_feature_cache(cache.path + ".not", "key", {512, 3}, 7).state == cache_state::missing);
}

TEST_CASE("damage to a cache shows, wherever it is") {
  const written_cache cache("key");
  const std::string whole = test::read_file(cache.path);
  const std::size_t data = whole.size() - (7 * 512 + 7 * 3) * sizeof(float) - 16;
  for (const auto& [place, tensor] :
       std::vector<std::pair<std::size_t, std::string>>{{data, "features"},
                                                        {data + 7 * 512 * 4 - 1, "features"},
                                                        {data + 7 * 512 * 4, "labels"},
                                                        {whole.size() - 17, "labels"},
                                                        {whole.size() - 16, "features"},
                                                        {whole.size() - 1, "labels"}}) {
    std::string damaged = whole;
    damaged[place] = static_cast<char>(damaged[place] ^ 1);
    cache.folder.write("features.safetensors", damaged);
    const found_features found = cache.find("key");
    CHECK(found.state == cache_state::damaged);
    CHECK(found.reason ==
          cache.path + ": tensor '" + tensor + "' is damaged: its checksum is another one");
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, data, whole.size() - 1}) {
    cache.folder.write("features.safetensors", whole.substr(0, size));
    const found_features found = cache.find("key");
    CHECK(found.state == cache_state::damaged);
    CHECK(found.reason.starts_with(cache.path + ": "));
  }
}

TEST_CASE("somebody else's file is no cache, and is left alone") {
  const test::temporary_folder folder;
  const std::string path = folder.file("weights.safetensors");
  const std::array<float, 2> values{1, 2};
  const tensor_info tensor{"weights", dtype::f32, {2}, 0};
  const metadata_entry format{"format", "pt"};
  safetensors_writer writer(path, {&tensor, 1}, {&format, 1});
  writer.write_data(0, std::as_bytes(std::span(values)));
  writer.commit();
  CHECK(message_of<error>([&] {
          (void)find_feature_cache(path, "key", {512, 3}, 7);
        }) == path + ": not a cache of features: its format is 'pt'");
}

TEST_CASE("a cache appears whole or not at all") {
  const test::temporary_folder folder;
  const std::string path = folder.file("features.safetensors");
  frozen_base base(identity_weights(), {.batch = 2, .height = 32, .width = 32});
  const auto batches = drawn_images(7) | batch(3) | features(base);
  CHECK(message_of<error>([&] { write_feature_cache(path, "", batches, batches.format(), 8); }) ==
        "features: the batches do not have 8 images in all");
  CHECK(folder.count() == 0);
  std::stop_source stop;
  const collect_options stopping{
      .stop = stop.get_token(), .progress = [&](std::size_t, std::size_t) { stop.request_stop(); }};
  CHECK(message_of<cancelled_error>([&] {
          write_feature_cache(path, "", batches, batches.format(), 7, stopping);
        }) == "features: interrupted");
  CHECK(folder.count() == 0);
  CHECK(message_of<io_error>([&] {
          write_feature_cache(folder.file("no/such"), "", batches, batches.format(), 7);
        }).starts_with(folder.file("no/such") + ": "));
}
