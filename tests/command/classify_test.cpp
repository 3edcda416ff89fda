// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// classify as scripts see it, on a VGG16 of full size. tests/peers compares its logits with other libraries'.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../support/run_command.hpp"
#include "../support/temporary_folder.hpp"

using test::run_command;

namespace {

constexpr std::size_t pixels = std::size_t{224} * 224;

/// What all cases share: a checkpoint in each layout.
const test::temporary_folder& folder() {
  static const test::temporary_folder shared;
  return shared;
}
const std::string& torch_file() {
  static const std::string path = [] {
    std::string file = folder().file("torch.safetensors");
    REQUIRE(run_command({"make_checkpoint", file, "--seed", "3"}).exit_code == 0);
    return file;
  }();
  return path;
}
const std::string& keras_file() {
  static const std::string path = [] {
    std::string file = folder().file("keras.safetensors");
    REQUIRE(run_command({"convert", torch_file(), file, "--layout", "keras", "--dtype", "keep"})
                .exit_code == 0);
    return file;
  }();
  return path;
}

/// An .npy file of format 1.0.
std::string npy_file(const std::string& descr, const std::string& shape, const std::string& data) {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  header.append(117 - header.size(), ' ').push_back('\n');
  return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + data;
}
std::string bytes_of(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// The elements of an .npy file, whose header must be this one.
std::vector<float> read_npy(const std::string& path, const std::string& shape) {
  const std::string file = test::read_file(path);
  const std::string wanted = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }";
  REQUIRE(file.size() > 128);
  CHECK(file.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  CHECK(file.substr(10, wanted.size()) == wanted);
  std::vector<float> values((file.size() - 128) / sizeof(float));
  std::memcpy(values.data(), file.data() + 128, values.size() * sizeof(float));
  return values;
}

struct classification {
  std::string out;
  std::vector<float> logits;
};
classification classify(std::vector<std::string> arguments, const std::string& shape) {
  const std::string npy = folder().file("logits.npy");
  arguments.insert(arguments.begin(), "classify");
  arguments.insert(arguments.end(), {"--npy", npy});
  const auto result = run_command(arguments);
  INFO("stderr: ", result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.empty());
  return {result.out, read_npy(npy, shape)};
}

/// 224 x 224 pixels whose every channel goes through all values, and the same as a PPM.
std::vector<std::uint8_t> colours() {
  std::vector<std::uint8_t> values(pixels * 3);
  for (std::size_t i = 0; i < pixels; ++i) {
    const std::size_t x = i % 224;
    const std::size_t y = i / 224;
    values[3 * i] = static_cast<std::uint8_t>(x + y / 4);
    values[3 * i + 1] = static_cast<std::uint8_t>(y * 255 / 223);
    values[3 * i + 2] = static_cast<std::uint8_t>(x * y);
  }
  return values;
}
std::string ppm(std::size_t height, std::size_t width, const std::vector<std::uint8_t>& values) {
  return "P6 " + std::to_string(width) + " " + std::to_string(height) + " 255\n" +
         std::string(values.begin(), values.end());
}

void check_refused(const test::command_result& result, const std::string& text) {
  INFO("stderr: ", result.err);
  CHECK(result.exit_code == 1);
  CHECK(result.out.empty());
  CHECK(result.err == "error: " + text + "\n");
}

/// The classes of these logits from the largest on, and the softmax of each, by its definition.
std::vector<std::pair<std::size_t, double>> expected_ranking(const float* logits) {
  std::vector<std::pair<std::size_t, double>> classes;
  double sum = 0;
  for (std::size_t i = 0; i < 1000; ++i) sum += std::exp(static_cast<double>(logits[i]));
  for (std::size_t i = 0; i < 1000; ++i) {
    classes.emplace_back(i, std::exp(static_cast<double>(logits[i])) / sum);
  }
  std::stable_sort(classes.begin(), classes.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return classes;
}

}  // namespace

TEST_CASE("an image is prepared as its weights want it") {
  const std::vector<std::uint8_t> values = colours();
  const std::string image = folder().write("colours.ppm", ppm(224, 224, values));
  // Blue, green, red, less Caffe's means (keras.applications.imagenet_utils).
  std::vector<float> keras(pixels * 3);
  for (std::size_t i = 0; i < pixels; ++i) {
    keras[3 * i] = static_cast<float>(values[3 * i + 2]) - 103.939F;
    keras[3 * i + 1] = static_cast<float>(values[3 * i + 1]) - 116.779F;
    keras[3 * i + 2] = static_cast<float>(values[3 * i]) - 123.68F;
  }
  const std::string keras_input =
      folder().write("keras.npy", npy_file("<f4", "(1, 224, 224, 3)", bytes_of(keras)));
  const auto from_image = classify({keras_file(), image}, "(1, 1000, )");
  const auto from_array = classify({keras_file(), "--input-npy", keras_input}, "(1, 1000, )");
  CHECK(from_image.logits == from_array.logits);

  // Of one colour, so that resizing and cropping change nothing.
  std::vector<std::uint8_t> one_colour;
  std::vector<float> torch;
  for (std::size_t i = 0; i < std::size_t{300} * 400; ++i) {
    one_colour.insert(one_colour.end(), {200, 30, 0});
  }
  for (std::size_t i = 0; i < pixels; ++i) {
    torch.insert(torch.end(), {(200 / 255.0F - 0.485F) / 0.229F, (30 / 255.0F - 0.456F) / 0.224F,
                               (0 - 0.406F) / 0.225F});
  }
  const std::string plain = folder().write("plain.ppm", ppm(300, 400, one_colour));
  const std::string torch_input =
      folder().write("torch.npy", npy_file("<f4", "(1, 224, 224, 3)", bytes_of(torch)));
  const auto plain_array = classify({torch_file(), "--input-npy", torch_input}, "(1, 1000, )");
  CHECK(classify({torch_file(), plain}, "(1, 1000, )").logits == plain_array.logits);
  CHECK(classify({torch_file(), plain, "--preprocess", "keras"}, "(1, 1000, )").logits !=
        plain_array.logits);

  // The same network in the other layout, when told what to do with the image.
  const auto other = classify({torch_file(), image, "--preprocess", "keras"}, "(1, 1000, )");
  const float largest = std::abs(*std::ranges::max_element(
      from_image.logits, {}, [](float value) { return std::abs(value); }));
  for (std::size_t i = 0; i < 1000; ++i) {
    CHECK(std::abs(other.logits[i] - from_image.logits[i]) <= 1e-5F * largest);
  }
}

TEST_CASE("its lines are the likeliest classes and their softmax, in the order of the images") {
  std::vector<std::string> arguments{torch_file(), "--batch", "2", "--top", "7"};
  const std::vector<std::string> names{"a b.ppm", "c\n.ppm", "d.ppm"};
  for (const std::string& name : names) {
    std::vector<std::uint8_t> values = colours();
    std::rotate(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(name.size() * 1009),
                values.end());
    arguments.push_back(folder().write(name, ppm(224, 224, values)));
  }
  const auto result = classify(arguments, "(3, 1000, )");
  REQUIRE(result.logits.size() == 3000);
  std::istringstream lines(result.out);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto wanted = expected_ranking(&result.logits[i * 1000]);
    for (std::size_t rank = 0; rank < 7; ++rank) {
      std::array<std::string, 4> column;
      for (std::size_t k = 0; k < 4; ++k) std::getline(lines, column.at(k), k < 3 ? '\t' : '\n');
      // A newline in a name would be one in the list.
      CHECK(column[0] == folder().file(i == 1 ? "c\\x0a.ppm" : names[i]));
      CHECK(column[1] == std::to_string(rank + 1));
      CHECK(column[2] == std::to_string(wanted[rank].first));
      CHECK(column[3].size() == 8);
      CHECK(std::abs(std::stod(column[3]) - wanted[rank].second) < 6e-7);
    }
  }
  CHECK(lines.peek() == std::istringstream::traits_type::eof());
}

TEST_CASE(
    "every class is listed where more than all are asked for, and names of arrays have numbers") {
  const std::string input = folder().write(
      "two.npy",
      npy_file("<f4", "(2, 224, 224, 3)", std::string(2 * pixels * 3 * sizeof(float), '\0')));
  const auto result = run_command(
      {"classify", torch_file(), "--input-npy", input, "--top", "2000", "--batch", "2"});
  CHECK(result.exit_code == 0);
  CHECK(std::ranges::count(result.out, '\n') == 2000);
  CHECK(result.out.starts_with(input + "[0]\t1\t"));
  CHECK(result.out.find("\n" + input + "[1]\t1000\t") != std::string::npos);
}

TEST_CASE(
    "weights that are larger than the memory limit are read layer by layer, with the same result") {
  const std::string image = folder().write("colours.ppm", ppm(224, 224, colours()));
  for (const std::string& file : {torch_file(), keras_file()}) {
    for (const std::string type : {"keep", "f16"}) {
      const auto loaded = classify({file, image, "--dtype", type}, "(1, 1000, )");
      const auto streamed =
          classify({file, image, "--dtype", type, "--memory-limit", "64MiB"}, "(1, 1000, )");
      CHECK(streamed.logits == loaded.logits);
      CHECK(streamed.out == loaded.out);
    }
  }
  // By one thread: 602,112 bytes of an image, 16,056,320 of activations, and workspaces.
  const std::uint64_t needed = 602'112 + 16'056'320 + 4'227'072 + 1'003'520;
  const auto limited = [&](std::uint64_t bytes) {
    return run_command({"classify", torch_file(), image, "--threads", "1", "--memory-limit",
                        std::to_string(bytes)});
  };
  CHECK(limited(needed).exit_code == 0);
  const auto refused = limited(needed - 1);
  CHECK(refused.exit_code == 1);
  CHECK(refused.out.empty());
  CHECK(refused.err == "error: " + torch_file() + ": the memory limit of " +
                           std::to_string(needed - 1) +
                           " bytes cannot be kept: " + std::to_string(needed) +
                           " are needed, 602112 for the images of a batch, 16056320 for "
                           "activations and 5230592 for the workspace\n");
}

TEST_CASE("what is wrong with an input is one line that names it, and nothing is written") {
  const std::string good = folder().write("good.ppm", ppm(224, 224, colours()));
  const std::string bad = folder().write("bad.jpg", "\xFF\xD8\xFF\xE0 no more");
  const std::string out = folder().file("refused.npy");
  const auto refused = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"classify", torch_file(), "--npy", out});
    const auto result = run_command(arguments);
    CHECK(std::ranges::count(result.err, '\n') == 1);
    CHECK(test::read_file(out).empty());
    return result;
  };
  const auto broken = refused({good, bad});
  CHECK(broken.exit_code == 1);
  CHECK(broken.out.empty());
  CHECK(broken.err.starts_with("error: " + bad + ": "));
  check_refused(refused({folder().file("absent.png")}),
                folder().file("absent.png") + ": cannot open: No such file or directory");
  // Resized to 256 pixels of height, it would have more columns than can be.
  const std::string wide =
      folder().write("wide.ppm", ppm(1, 70000, std::vector<std::uint8_t>(210000)));
  const auto too_wide = refused({wide});
  CHECK(too_wide.exit_code == 1);
  CHECK(too_wide.err.starts_with("error: " + wide + ": "));

  const std::string data(pixels * 3 * 4, '\0');
  const auto array = [&](const std::string& descr, const std::string& shape,
                         const std::string& said) {
    const std::string input = folder().write("array.npy", npy_file(descr, shape, data));
    check_refused(refused({"--input-npy", input}),
                  input + ": the images are F32 [N, 224, 224, 3], not " + said);
  };
  array("<f4", "(1, 3, 224, 224)", "F32 [1, 3, 224, 224]");
  array("<f4", "(224, 224, 3)", "F32 [224, 224, 3]");
  array("<f4", "(4, 112, 112, 3)", "F32 [4, 112, 112, 3]");
  array("<i4", "(1, 224, 224, 3)", "I32 [1, 224, 224, 3]");
  check_refused(
      refused({"--input-npy", folder().write("none.npy", npy_file("<f4", "(0, 224, 224, 3)", ""))}),
      folder().file("none.npy") +
          ": the images are F32 [N, 224, 224, 3], not F32 [0, 224, 224, 3]");
  const auto no_array = refused({"--input-npy", good});
  CHECK(no_array.exit_code == 1);
  CHECK(no_array.err.starts_with("error: " + good + ": "));

  // No network, or none with a top.
  const std::string body = folder().file("body.safetensors");
  REQUIRE(run_command({"make_checkpoint", body, "--no-top"}).exit_code == 0);
  const auto no_top = run_command({"classify", body, good});
  CHECK(no_top.exit_code == 1);
  CHECK(no_top.err.find("'classifier.0.weight'") != std::string::npos);
}

TEST_CASE("what it is asked for wrongly is said with exit code 2") {
  const std::vector<std::vector<std::string>> wrong{
      {},
      {"weights"},
      {"weights", "--top", "3"},
      {"weights", "image", "--input-npy", "array"},
      {"weights", "image", "--top", "0"},
      {"weights", "image", "--batch", "-1"},
      {"weights", "image", "--dtype", "f64"},
      {"weights", "image", "--preprocess", "tf"},
      {"weights", "image", "--memory-limit", "much"},
  };
  for (std::vector<std::string> arguments : wrong) {
    arguments.insert(arguments.begin(), "classify");
    const auto result = run_command(arguments);
    CHECK(result.exit_code == 2);
    CHECK(result.out.empty());
  }
}
