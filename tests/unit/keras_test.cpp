// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Exact mode against what NumPy, Pillow and Keras gave: tests/fixtures/keras/make_keras.py says how.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/data/affine_scalar.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/keras_augmentation.hpp>
#include <vggload/data/keras_batches.hpp>
#include <vggload/data/nearest_resize.hpp>
#include <vggload/data/numpy_random.hpp>
#include <vggload/data/prefetch.hpp>
#include <vggload/data/resample.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/page_resource.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/simd_levels.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using nlohmann::json;
using test::crc32_of;
using test::message_of;
using test::temporary_folder;

static_assert(planned_sequence<keras_batches>);

namespace {

json fixture(const std::string& name) {
  return json::parse(test::read_file(FIXTURES "/keras/" + name));
}

/// `np.random.RandomState(20).bytes(count)`.
std::vector<std::uint8_t> noise(std::size_t count) {
  std::mt19937 engine(20);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the pixels of the fixtures
  std::vector<std::uint8_t> bytes;
  while (bytes.size() < count) {
    const auto four = static_cast<std::uint32_t>(engine());
    for (unsigned shift = 0; shift < 32; shift += 8) {
      bytes.push_back(static_cast<std::uint8_t>(four >> shift));
    }
  }
  bytes.resize(count);
  return bytes;
}

/// An image whose rows do not touch.
struct padded_image {
  std::vector<std::uint8_t> bytes;
  image_view view;

  padded_image(const std::vector<std::uint8_t>& pixels, image_size size, std::size_t channels)
      : bytes(size.height * (size.width * channels + 5), 0xEE),
        view{bytes.data(), size.height, size.width, channels, size.width * channels + 5} {
    for (std::size_t y = 0; y < size.height; ++y) {
      std::memcpy(bytes.data() + y * view.row_bytes, pixels.data() + y * size.width * channels,
                  size.width * channels);
    }
  }
};

fill_mode fill_of(const std::string& name) {
  if (name == "constant") return fill_mode::constant;
  if (name == "reflect") return fill_mode::reflect;
  return name == "wrap" ? fill_mode::wrap : fill_mode::nearest;
}

value_range range_of(const json& ends) { return {ends.at(0), ends.at(1)}; }

augmentation augmentation_of(const json& options) {
  augmentation made;
  for (const auto& [name, value] : options.items()) {
    if (name == "rotation_range") made.rotation_range = value;
    if (name == "width_shift_range") made.width_shift_range = value;
    if (name == "height_shift_range") made.height_shift_range = value;
    if (name == "shear_range") made.shear_range = value;
    if (name == "zoom_range") made.zoom_range = range_of(value);
    if (name == "horizontal_flip") made.horizontal_flip = value;
    if (name == "vertical_flip") made.vertical_flip = value;
    if (name == "channel_shift_range") made.channel_shift_range = value;
    if (name == "brightness_range") made.brightness_range = range_of(value);
    if (name == "fill_mode") made.fill = fill_of(value);
    if (name == "cval") made.fill_value = value;
  }
  return made;
}

preprocessing preprocessing_of(const std::string& name) {
  if (name == "caffe") return preprocessing::caffe;
  return name == "torch" ? preprocessing::torch : preprocessing::tf;
}

normalisation normalisation_of(const json& options) {
  normalisation made;
  for (const auto& [name, value] : options.items()) {
    if (name == "rescale") made.rescale = value;
    if (name == "preprocessing") made.preprocessing = preprocessing_of(value);
    if (name == "samplewise_center") made.samplewise_centre = value;
    if (name == "samplewise_std_normalization") made.samplewise_scale = value;
    if (name == "featurewise_mean") made.featurewise_mean = value.get<std::array<float, 3>>();
    if (name == "featurewise_deviation") {
      made.featurewise_deviation = value.get<std::array<float, 3>>();
    }
  }
  return made;
}

random_transform transform_of(const json& drawn) {
  random_transform made;
  made.rotation = drawn.value("theta", 0.0);
  made.height_shift = drawn.value("tx", 0.0);
  made.width_shift = drawn.value("ty", 0.0);
  made.shear = drawn.value("shear", 0.0);
  made.height_zoom = drawn.value("zx", 1.0);
  made.width_zoom = drawn.value("zy", 1.0);
  made.horizontal_flip = drawn.value("flip_horizontal", false);
  made.vertical_flip = drawn.value("flip_vertical", false);
  if (drawn.contains("channel_shift_intensity")) {
    made.channel_shift = drawn["channel_shift_intensity"].get<double>();
  }
  if (drawn.contains("brightness")) made.brightness = drawn["brightness"].get<double>();
  return made;
}

void check_equal(const random_transform& a, const random_transform& b) {
  CHECK(a.rotation == b.rotation);
  CHECK(a.height_shift == b.height_shift);
  CHECK(a.width_shift == b.width_shift);
  CHECK(a.shear == b.shear);
  CHECK(a.height_zoom == b.height_zoom);
  CHECK(a.width_zoom == b.width_zoom);
  CHECK(a.horizontal_flip == b.horizontal_flip);
  CHECK(a.vertical_flip == b.vertical_flip);
  CHECK(a.channel_shift == b.channel_shift);
  CHECK(a.brightness == b.brightness);
}

template <class Value>
std::string crc32_of_values(const std::vector<Value>& values) {
  return crc32_of(std::as_bytes(std::span(values)));
}

std::string crc32_of_map(const detail::pull_back_map& map) {
  std::vector<double> values;
  for (const auto& row : {map.row, map.column}) {
    // A zero has no sign.
    for (const double value : row) values.push_back(value + 0.0);
  }
  return crc32_of_values(values);
}

}  // namespace

TEST_CASE("NumPy's random numbers and permutations") {
  const json cases = fixture("random.json");
  REQUIRE(cases.size() == 56);
  for (const json& expected : cases) {
    CAPTURE(expected);
    numpy_random random(expected["seed"].get<std::uint32_t>());
    CHECK(random.unit() == expected["first"][0].get<double>());
    CHECK(random.uniform(-3.3, 7.7) == expected["first"][1].get<double>());
    CHECK(random.uniform(5, 5) == expected["first"][2].get<double>());
    const auto order = random.permutation(expected["count"].get<std::uint32_t>());
    if (expected["permutation"].is_array()) {
      CHECK(order == expected["permutation"].get<std::vector<std::uint32_t>>());
    } else {
      CHECK(crc32_of_values(order) == expected["permutation"].get<std::string>());
    }
    CHECK(random.unit() == expected["then"].get<double>());
  }
}

TEST_CASE("images are resized as Pillow does it with NEAREST") {
  const json cases = fixture("nearest.json");
  REQUIRE(cases.size() == 67);
  scratch memory;
  for (const json& expected : cases) {
    CAPTURE(expected);
    const auto channels = expected["channels"].get<std::size_t>();
    const image_size from{expected["from"][0], expected["from"][1]};
    const image_size to{expected["to"][0], expected["to"][1]};
    const padded_image image(noise(from.height * from.width * channels), from, channels);
    memory.reset();
    const image_view resized = nearest_resize(image.view, to, memory);
    REQUIRE(resized.size() == to);
    REQUIRE(resized.channels == channels);
    std::vector<std::uint8_t> pixels;
    for (std::size_t y = 0; y < to.height; ++y) {
      pixels.insert(pixels.end(), resized.row(y), resized.row(y) + to.width * channels);
    }
    CHECK(crc32_of_values(pixels) == expected["crc"].get<std::string>());
    CHECK((resized.pixels == image.view.pixels) == (from == to));
  }
}

TEST_CASE("images are changed and normalised as Keras does it, at every level") {
  const json cases = fixture("augmentation.json");
  REQUIRE(cases.size() > 400);
  scratch memory;
  for (const json& expected : cases) {
    CAPTURE(expected);
    const sample_format format{expected["size"][0], expected["size"][1], expected["size"][2]};
    std::vector<std::uint8_t> pixels = noise(format.values());
    if (expected.contains("level")) {
      std::ranges::fill(pixels, expected["level"].get<std::uint8_t>());
    }
    const padded_image image(pixels, {format.height, format.width}, format.channels);
    random_transform drawn = transform_of(expected["drawn"]);
    const auto map = detail::keras::make_affine_map(drawn, {format.height, format.width});
    CHECK(map.has_value() == expected.contains("map"));
    if (map) CHECK(crc32_of_map(*map) == expected["map"].get<std::string>());
    for (const simd_level level : test::simd_levels()) {
      CAPTURE(static_cast<int>(level));
      const keras_augmentation keras(format, augmentation_of(expected["options"]),
                                     normalisation_of(expected["options"]), level);
      CHECK(keras.format() == format);
      if (expected.contains("seed")) {
        numpy_random random(expected["seed"].get<std::uint32_t>());
        drawn = keras.draw(random);
        check_equal(drawn, transform_of(expected["drawn"]));
      }
      memory.reset();
      std::vector<float> values(format.values(), -1.0F);
      keras(image.view, drawn, memory, values);
      if (expected.contains("values")) {
        CHECK(values == expected["values"].get<std::vector<float>>());
      } else {
        CHECK(crc32_of_values(values) == expected["crc"].get<std::string>());
      }
    }
  }
}

TEST_CASE("options that Keras does not take, and images that do not fit, are refused") {
  const sample_format format{4, 5, 3};
  static constexpr double infinite = std::numeric_limits<double>::infinity();
  static constexpr double not_one = std::numeric_limits<double>::quiet_NaN();
  const auto refusal = [](const sample_format& of, const augmentation& options,
                          const normalisation& values) {
    return message_of<error>([&] { const keras_augmentation refused(of, options, values); });
  };
  CHECK(refusal({4, 5, 3, dtype::f16}, {}, {}).starts_with("Keras' images are float32"));
  CHECK(refusal({4, 5, 3, dtype::f32, image_layout::nchw}, {}, {})
            .starts_with("Keras' images are float32"));
  CHECK(refusal({4, 5, 2}, {}, {}) == "images have 1, 3 or 4 channels, not 2");
  for (const sample_format& wrong : {sample_format{0, 5, 3}, sample_format{4, 0, 3},
                                     sample_format{32767, 5, 3}, sample_format{4, 32767, 3}}) {
    CHECK(refusal(wrong, {}, {}).starts_with("images are of 1 to 32766 pixels each way, not of "));
  }
  CHECK(refusal(format, {.rotation_range = infinite}, {}) ==
        "a number of the augmentation is inf, and none beyond 1e9 has a meaning");
  for (const double number : {infinite, -infinite, not_one, 1.1e9, -1.1e9}) {
    CAPTURE(number);
    const std::string_view told = "a number of the augmentation is ";
    CHECK(refusal(format, {.rotation_range = number}, {}).starts_with(told));
    CHECK(refusal(format, {.width_shift_range = number}, {}).starts_with(told));
    CHECK(refusal(format, {.height_shift_range = number}, {}).starts_with(told));
    CHECK(refusal(format, {.shear_range = number}, {}).starts_with(told));
    CHECK(refusal(format, {.zoom_range = {number, 1}}, {}).starts_with(told));
    CHECK(refusal(format, {.zoom_range = {1, number}}, {}).starts_with(told));
    CHECK(refusal(format, {.channel_shift_range = number}, {}).starts_with(told));
    CHECK(refusal(format, {.brightness_range = value_range{number, 1}}, {}).starts_with(told));
    CHECK(refusal(format, {.brightness_range = value_range{1, number}}, {}).starts_with(told));
    CHECK(refusal(format, {.fill_value = number}, {}).starts_with(told));
    CHECK(refusal(format, {}, {.rescale = number}).starts_with(told));
  }
  const keras_augmentation largest({32766, 32766, 1}, {.rotation_range = 1e9}, {});
  CHECK(largest.options().rotation_range == 1e9);
  for (const preprocessing coloured : {preprocessing::caffe, preprocessing::torch}) {
    CHECK(refusal({4, 5, 1}, {}, {.preprocessing = coloured}).ends_with("the images are grey"));
  }
  constexpr std::array<float, 3> three{1, 2, 3};
  CHECK(refusal({4, 5, 4}, {}, {.featurewise_mean = three}).starts_with("a mean of three"));
  CHECK(refusal({4, 5, 4}, {}, {.featurewise_deviation = three}).starts_with("a mean of three"));

  const keras_augmentation keras(format, {}, {});
  scratch memory;
  std::vector<float> values(format.values());
  const auto misfit = [&](const sample_format& of, std::size_t count) {
    const padded_image image(noise(of.values()), {of.height, of.width}, of.channels);
    return message_of<error>(
        [&] { keras(image.view, {}, memory, std::span(values).first(count)); });
  };
  CHECK(misfit({5, 4, 3}, 60) ==
        "an image of 5 x 4 pixels of 3 channels and 60 values, where 4 x 5 pixels of 3 channels "
        "are wanted");
  CHECK(misfit({4, 4, 3}, 60).starts_with("an image of 4 x 4 pixels of 3 channels and 60 values"));
  CHECK(misfit({4, 5, 1}, 60).starts_with("an image of 4 x 5 pixels of 1 channels and 60 values"));
  CHECK(misfit({4, 5, 3}, 59).starts_with("an image of 4 x 5 pixels of 3 channels and 59 values"));

  const padded_image image(noise(format.values()), {4, 5}, 3);
  const auto refused_draw = [&](auto change) {
    random_transform drawn;
    change(drawn);
    return message_of<error>([&] { keras(image.view, drawn, memory, values); })
        .starts_with("a number of the augmentation is ");
  };
  CHECK(refused_draw([](random_transform& drawn) { drawn.rotation = not_one; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.height_shift = infinite; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.width_shift = -infinite; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.shear = 1e10; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.height_zoom = not_one; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.width_zoom = infinite; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.channel_shift = not_one; }));
  CHECK(refused_draw([](random_transform& drawn) { drawn.brightness = not_one; }));
}

TEST_CASE("no number that is allowed reads outside of an image") {
  // Under the sanitizers this finds a wrong index; here it compares the levels.
  std::mt19937 engine(1);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
  const auto number = [&] {
    constexpr std::array powers{1e-17, 1e-3, 1.0, 30.0, 1e5, 1e9};
    const double part = static_cast<double>(engine()) / 4294967296.0;
    const double power = powers.at(engine() % powers.size());
    return engine() % 4 == 0 ? power : (2 * part - 1) * power;
  };
  scratch memory;
  for (int round = 0; round < 2000; ++round) {
    const std::size_t channels = std::array<std::size_t, 3>{1, 3, 4}.at(engine() % 3);
    const sample_format format{1 + engine() % 6, 1 + engine() % 24, channels};
    const padded_image image(noise(format.values()), {format.height, format.width}, channels);
    random_transform drawn;
    drawn.rotation = engine() % 2 == 0 ? number() : 0;
    drawn.height_shift = number();
    drawn.width_shift = number();
    drawn.shear = engine() % 2 == 0 ? number() : 0;
    drawn.height_zoom = number();
    drawn.width_zoom = number();
    const augmentation options{.fill = static_cast<fill_mode>(round % 4), .fill_value = 7};
    std::vector<float> first;
    for (const simd_level level : test::simd_levels()) {
      memory.reset();
      std::vector<float> values(format.values(), -1.0F);
      keras_augmentation(format, options, {}, level)(image.view, drawn, memory, values);
      CHECK(std::ranges::all_of(values, [](float value) { return value >= 0 && value <= 255; }));
      if (first.empty()) first = values;
      CHECK(std::memcmp(first.data(), values.data(), values.size() * sizeof(float)) == 0);
    }
  }
}

namespace {

label_mode labels_of(const json& mode) {
  if (mode.is_null()) return label_mode::none;
  if (mode == "sparse") return label_mode::sparse;
  return mode == "binary" ? label_mode::binary : label_mode::categorical;
}

resampling_filter filter_of(const std::string& name) {
  constexpr std::array names{"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"};
  const auto place = std::ranges::find(names, name) - names.begin();
  REQUIRE(place < 6);
  return std::array{resampling_filter::nearest,  resampling_filter::box,
                    resampling_filter::bilinear, resampling_filter::hamming,
                    resampling_filter::bicubic,  resampling_filter::lanczos}
      .at(static_cast<std::size_t>(place));
}

keras_batches_options batches_options(const json& test) {
  const json& flow = test["flow"];
  keras_batches_options options;
  options.target = {flow["target_size"][0], flow["target_size"][1]};
  options.batch_size = flow["batch_size"];
  options.seed = flow["seed"].get<std::uint32_t>();
  options.shuffle = flow.value("shuffle", true);
  options.labels = labels_of(flow["class_mode"]);
  const std::string colour = flow.value("color_mode", "rgb");
  if (colour == "grayscale") options.colour = colour_mode::grey;
  if (colour == "rgba") options.colour = colour_mode::rgba;
  options.interpolation = filter_of(flow.value("interpolation", "nearest"));
  options.augmentation = augmentation_of(test["options"]);
  options.normalisation = normalisation_of(test["options"]);
  return options;
}

/// The images of the fixtures.
struct batches_fixture {
  json cases = fixture("batches.json");
  temporary_folder folder;

  batches_fixture() {
    const json& files = cases[0]["files"];
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::size_t height = files[i]["size"][0];
      const std::size_t width = files[i]["size"][1];
      std::string ppm = "P6 ";
      ppm.append(std::to_string(width)).append(" ").append(std::to_string(height));
      ppm.append(" 255\n");
      const auto bytes = noise(height * width * 3 + i);
      ppm.append(reinterpret_cast<const char*>(bytes.data()) + i, bytes.size() - i);
      folder.write(files[i]["name"].get<std::string>(), ppm);
    }
    cases.erase(0);
    REQUIRE(cases.size() == 12);
  }

  [[nodiscard]] image_folder images() const { return image_folder(folder.path().string()); }
};

/// An arena with one batch in it.
struct one_batch {
  explicit one_batch(const keras_batches& batches)
      : memory(batches.storage_bytes(1)), batch(make(batches)) {}
  image_batch make(const keras_batches& batches) {
    return std::move(batches.make_storage(memory, 1).front());
  }
  arena<page_resource> memory;
  image_batch batch;
};

std::string problem_of(const keras_batches& batches, const json& expected,
                       const image_batch& batch) {
  std::vector<std::string> names;
  for (const std::uint64_t index : batch.indices()) {
    names.emplace_back(batches.folder().name(static_cast<std::size_t>(index)));
  }
  if (names != expected["files"].get<std::vector<std::string>>()) return "other files";
  if (crc32_of(batch.images().bytes()) != expected["images"].get<std::string>()) return "pixels";
  if (expected["labels"].is_null()) return batch.labels().bytes().empty() ? "" : "has labels";
  return crc32_of(batch.labels().bytes()) == expected["labels"].get<std::string>() ? "" : "labels";
}

}  // namespace

TEST_CASE("the batches of Keras' flow_from_directory, epoch after epoch") {
  const batches_fixture fixture;
  for (const json& test : fixture.cases) {
    CAPTURE(test["flow"]);
    keras_batches batches(fixture.images(), batches_options(test));
    CHECK(batches.seed() == test["flow"]["seed"].get<std::uint32_t>());
    for (const json& epoch : test["epochs"]) {
      REQUIRE(batches.size() == epoch.size());
      one_batch memory(batches);
      for (std::size_t i = 0; i < epoch.size(); ++i) {
        batches[i](memory.batch);
        CHECK(problem_of(batches, epoch[i], memory.batch) == "");
      }
      batches.on_epoch_end();
    }
    CHECK(batches.epoch() == test["epochs"].size());
  }
}

TEST_CASE("any batch can be had by itself, in any order and from several threads") {
  const batches_fixture fixture;
  for (const json& test : fixture.cases) {
    CAPTURE(test["flow"]);
    std::vector<std::pair<std::size_t, std::size_t>> places;
    for (std::size_t epoch = 0; epoch < test["epochs"].size(); ++epoch) {
      for (std::size_t i = 0; i < test["epochs"][epoch].size(); ++i) places.emplace_back(epoch, i);
    }
    for (const auto& [epoch, i] : places) {
      const keras_batches fresh(fixture.images(), batches_options(test));
      one_batch memory(fresh);
      fresh.element(epoch, i)(memory.batch);
      CHECK(problem_of(fresh, test["epochs"][epoch][i], memory.batch) == "");
    }
    std::ranges::shuffle(places, std::mt19937(3));  // NOLINT(cert-msc32-c,cert-msc51-cpp)
    const keras_batches batches(fixture.images(), batches_options(test));
    std::atomic<std::size_t> next = 0;
    std::atomic<std::size_t> wrong = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        one_batch memory(batches);
        for (std::size_t n = next++; n < places.size(); n = next++) {
          const auto [epoch, number] = places[n];
          batches.element(epoch, number)(memory.batch);
          wrong += !problem_of(batches, test["epochs"][epoch][number], memory.batch).empty();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(next >= places.size());
    CHECK(wrong == 0);
  }
}

TEST_CASE("batches are read ahead like those of any sequence") {
  const batches_fixture fixture;
  const json& test = fixture.cases[2];
  keras_batches batches(fixture.images(), batches_options(test));
  auto loader = batches | prefetch({.workers = 3, .slots = 4});
  for (const json& epoch : test["epochs"]) {
    std::size_t i = 0;
    for (const image_batch& batch : loader) {
      REQUIRE(i < epoch.size());
      CHECK(problem_of(batches, epoch[i++], batch) == "");
    }
    CHECK(i == epoch.size());
  }
  CHECK(batches.scratch_bytes() > 0);
}

TEST_CASE("an image that cannot be decoded leaves all others as they are") {
  const batches_fixture fixture;
  const json& test = fixture.cases[1];
  keras_batches_options options = batches_options(test);
  const keras_batches whole(fixture.images(), options);
  const auto order = *whole.order(1);
  const std::size_t spoiled = order[5];  // the second of the second batch
  const std::string path = whole.folder().path(spoiled);
  one_batch expected(whole);
  whole.element(1, 1)(expected.batch);
  std::filesystem::resize_file(path, 20);

  const keras_batches stopping(fixture.images(), options);
  one_batch memory(stopping);
  CHECK(message_of<format_error>([&] {
          stopping.element(1, 1)(memory.batch);
        }).starts_with(path + ": "));

  options.on_error = on_error::skip;
  const keras_batches skipping(fixture.images(), options);
  skipping.element(1, 1)(memory.batch);
  REQUIRE(memory.batch.size() == 3);
  REQUIRE(memory.batch.skipped().size() == 1);
  CHECK(memory.batch.skipped()[0].path == path);
  CHECK(memory.batch.skipped()[0].reason.starts_with(path + ": "));
  for (std::size_t i = 0; i < 3; ++i) {
    const image_sample got = memory.batch[i];
    const image_sample wanted = expected.batch[i == 0 ? 0 : i + 1];
    CHECK(got.index == wanted.index);
    CHECK(got.label[0] == wanted.label[0]);
    CHECK(std::ranges::equal(got.pixels, wanted.pixels));
  }
  skipping.element(1, 0)(memory.batch);
  CHECK(memory.batch.size() == 4);
  CHECK(memory.batch.skipped().empty());
  CHECK(problem_of(skipping, test["epochs"][1][0], memory.batch) == "");
}

TEST_CASE("a seed behind NumPy's last is refused, as NumPy does it") {
  const batches_fixture fixture;
  const keras_batches batches(fixture.images(), batches_options(fixture.cases[4]));
  REQUIRE(batches.size() == 11);
  REQUIRE(batches.seed() == 4294967295U - 33);
  one_batch memory(batches);
  // 33 batches are in three epochs, and the first seed has none behind it but 33.
  batches.element(3, 0)(memory.batch);
  CHECK(memory.batch.size() == 1);
  CHECK(message_of<error>([&] { batches.element(3, 1)(memory.batch); }) ==
        "batch 1 of epoch 3 has a seed behind 4294967295, NumPy's last: the first was 4294967262");
  CHECK(message_of<error>([&] {
          batches.element(4, 0)(memory.batch);
        }).starts_with("batch 10 of epoch 3 has"));
  for (const std::uint64_t epoch : {std::uint64_t{1} << 32U, ~std::uint64_t{0}}) {
    CHECK(message_of<error>([&] {
            batches.element(epoch, 0)(memory.batch);
          }).ends_with("4294967262"));
  }
}

TEST_CASE("options of batches that make no sense, and limits") {
  const batches_fixture fixture;
  CHECK(message_of<error>([&] { const keras_batches none(fixture.images(), {.batch_size = 0}); }) ==
        "a batch has one image at least");
  const keras_batches small(fixture.images(), {.target = {8, 8}, .scratch_limit = 64});
  one_batch memory(small);
  CHECK_THROWS_AS(small[0](memory.batch), out_of_memory);
  // What one image takes is given back before the next.
  keras_batches_options tight = batches_options(fixture.cases[3]);
  REQUIRE(tight.batch_size == 11);
  tight.scratch_limit = 20000;
  const keras_batches one_by_one(fixture.images(), tight);
  one_batch eleven(one_by_one);
  one_by_one[0](eleven.batch);
  CHECK(problem_of(one_by_one, fixture.cases[3]["epochs"][0][0], eleven.batch) == "");
  // Workers are in two epochs at once, where one ends.
  const auto order = one_by_one.order(0);
  CHECK(one_by_one.order(1) != order);
  CHECK(one_by_one.order(0) == order);
  CHECK(one_by_one.order(2) != order);

  const keras_batches few(fixture.images(), {.target = {8, 8}, .pixel_limit = 10});
  CHECK_THROWS_AS(few[0](memory.batch), error);

  const temporary_folder empty;
  std::filesystem::create_directory(empty.path() / "class");
  keras_batches nothing(image_folder(empty.path().string()), {.shuffle = true});
  CHECK(nothing.size() == 0);
  CHECK(nothing.order(0)->empty());
  CHECK(nothing.order(1)->empty());
  nothing.on_epoch_end();
  CHECK(nothing.epoch() == 1);
}
