// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The main job on a checkpoint of the real size: results, bounds on memory, limits.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <zlib.h>
#include <nlohmann/json.hpp>

#include "../support/run_command.hpp"
#include "../support/temporary_folder.hpp"

using nlohmann::json;
using test::run_command;

namespace {

constexpr std::uint64_t parameters = 138'357'544;
constexpr std::uint64_t destination = 2 * parameters;
constexpr std::uint64_t mib = std::uint64_t{1} << 20U;

/// Made once for all cases below.
const std::string& checkpoint_file() {
  static const test::temporary_folder folder;
  static const std::string path = [] {
    const std::string file = folder.file("vgg16.safetensors");
    REQUIRE(run_command({"make_checkpoint", file, "--seed", "1"}).exit_code == 0);
    return file;
  }();
  return path;
}

json load(std::vector<std::string> options, const test::command_conditions& conditions = {}) {
  options.insert(options.begin(), {"load_vgg16", checkpoint_file(), "--json"});
  const auto result = run_command(options, conditions);
  INFO("stderr: ", result.err);
  REQUIRE(result.exit_code == 0);
  return json::parse(result.out);
}

/// The CRC-32 of all payloads, taken from the file's bytes and not by the library: make_checkpoint
/// writes them in network order, so this is what a load as FP32 must show.
std::string payload_crc() {
  const std::string bytes = test::read_file(checkpoint_file());
  const auto begin = bytes.size() - 4 * parameters;
  std::array<char, 16> text;
  std::snprintf(
      text.data(), text.size(), "%08lx",
      ::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data() + begin), bytes.size() - begin));
  return text.data();
}

}  // namespace

TEST_CASE(
    "FP16 takes its destination and less than 8 MiB, for any number of threads, with one result") {
  std::string crc;
  for (const std::string threads : {"1", "2", "16"}) {
    const json report = load({"--threads", threads});
    INFO(report.dump());
    CHECK(report["parameters"] == parameters);
    CHECK(report["tensors"] == 32);
    CHECK(report["classes"] == 1000);
    CHECK(report["destination_bytes"] == destination);
    CHECK(report["copied_bytes"] == destination);
    CHECK(report["peak_rss_growth_bytes"] >= destination - mib);
    CHECK(report["peak_rss_growth_bytes"] <= destination + 8 * mib);
    if (crc.empty()) crc = report["crc32"];
    CHECK(report["crc32"] == crc);
  }
  CHECK(load({"--dtype", "bf16"})["peak_rss_growth_bytes"] <= destination + 8 * mib);
}

TEST_CASE("FP32 is the mapped file itself, and opening it costs next to nothing") {
  const json report = load({"--dtype", "f32"});
  CHECK(report["copied_bytes"] == 0);
  CHECK(report["destination_bytes"] == 0);
  CHECK(report["mapped_bytes"] == 4 * parameters);
  CHECK(report["peak_rss_growth_bytes"] <= 2 * mib);
  CHECK(report["crc32"] == payload_crc());
}

TEST_CASE("it works in the address space of the destination and 64 MiB") {
  const json report = load({"--threads", "2"}, {.address_space = destination + 64 * mib});
  CHECK(report["copied_bytes"] == destination);
  CHECK(report["threads"] == 2);
}

TEST_CASE("too little address space is one line that names the largest tensor") {
  const auto result = run_command({"load_vgg16", checkpoint_file()}, {.address_space = 200 * mib});
  CHECK(result.exit_code == 1);
  CHECK(result.err ==
        "error: " + checkpoint_file() +
            ": 276715088 bytes for the weights could not be allocated; the largest tensor, "
            "'classifier.0.weight', takes 205520896; this would fit: without the top (29433472 "
            "bytes), streamed in windows, without keeping it (4096 bytes)\n");
}

TEST_CASE("a memory limit is kept exactly, and refused with the numbers where it cannot be") {
  const std::string least = std::to_string(destination + 4096);
  CHECK(load({"--memory-limit", least, "--threads", "8"})["windows_bytes"] == 4096);
  const auto result = run_command(
      {"load_vgg16", checkpoint_file(), "--memory-limit", std::to_string(destination + 4095)});
  CHECK(result.exit_code == 1);
  CHECK(result.err == "error: " + checkpoint_file() +
                          ": the memory limit of 276719183 bytes cannot be kept: the destination "
                          "needs 276715088 bytes "
                          "and a window at least 4096; the largest tensor, 'classifier.0.weight', "
                          "takes 205520896; this would fit: without the top (29433472 bytes), "
                          "mapped, as F32 in the file (0 bytes), streamed in windows, "
                          "without keeping it (4096 bytes)\n");
}

TEST_CASE("the top is skipped on request, and named") {
  const json report = load({"--no-top"});
  CHECK(report["parameters"] == 14'714'688);
  CHECK(report["skipped"] ==
        json({"classifier.0.weight", "classifier.0.bias", "classifier.3.weight",
              "classifier.3.bias", "classifier.6.weight", "classifier.6.bias"}));
}

TEST_CASE("the number of classes is the file's") {
  const test::temporary_folder folder;
  const std::string file = folder.file("ten");
  REQUIRE(run_command({"make_checkpoint", file, "--classes", "10"}).exit_code == 0);
  const auto result = run_command({"load_vgg16", file, "--json"});
  REQUIRE(result.exit_code == 0);
  const json report = json::parse(result.out);
  CHECK(report["classes"] == 10);
  CHECK(report["parameters"] == parameters - 990 * 4097);
}

TEST_CASE("the program in the README runs") {
  const auto result = run_command({"quickstart", checkpoint_file()});
  CHECK(result.exit_code == 0);
  CHECK(std::ranges::count(result.out, '\n') == 17);
  CHECK(result.out.find("fc1             102760448 weights") != std::string::npos);
  CHECK(result.out.ends_with("276715088 bytes in memory\n"));
  CHECK(run_command({"quickstart", "/nonexistent"}).exit_code == 1);
}
