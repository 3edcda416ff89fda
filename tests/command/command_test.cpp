// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The commands as scripts see them: arguments, exit codes, one line of error, files left behind.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "../support/run_command.hpp"
#include "../support/safetensors_text.hpp"
#include "../support/temporary_folder.hpp"

using nlohmann::json;
using test::command_result;
using test::run_command;

namespace {

const std::string fixtures = FIXTURES;

/// Exit 1, nothing on stdout, and on stderr one line that begins with the file and has `part`.
void check_refused(const command_result& result, const std::string& file, std::string_view part) {
  INFO("stderr: ", result.err);
  CHECK(result.exit_code == 1);
  CHECK(result.out.empty());
  CHECK(result.err.starts_with("error: " + file + ": "));
  CHECK(std::ranges::count(result.err, '\n') == 1);
  CHECK(result.err.ends_with('\n'));
  CHECK(result.err.find(part) != std::string::npos);
}

/// The header of a safetensors file as plain JSON, not as the library reads it.
json header_of(const std::string& bytes, std::size_t* data_begin = nullptr) {
  std::size_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8U | static_cast<unsigned char>(bytes[i]);
  if (data_begin != nullptr) *data_begin = 8 + length;
  return json::parse(bytes.substr(8, length));
}

json run_json(std::vector<std::string> arguments) {
  const command_result result = run_command(arguments);
  INFO("stderr: ", result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.empty());
  return json::parse(result.out);
}

}  // namespace

TEST_CASE("every command explains itself, and tells wrong usage from refused input") {
  for (const std::string command : {"make_checkpoint", "inspect", "convert", "load_vgg16"}) {
    INFO(command);
    const auto help = run_command({command, "--help"});
    CHECK(help.exit_code == 0);
    CHECK(help.out.find("Usage") != std::string::npos);
    CHECK(help.err.empty());
    CHECK(run_command({command}).exit_code == 2);
    CHECK(run_command({command, "--nonsense", "a", "b"}).exit_code == 2);
    CHECK(run_command({command, "--nonsense", "a", "b"}).out.empty());
  }
  CHECK(run_command({"load_vgg16", "f", "--dtype", "f64"}).exit_code == 2);
  CHECK(run_command({"load_vgg16", "f", "--dtype", "F16"}).exit_code == 2);
  CHECK(run_command({"load_vgg16", "f", "--threads", "0"}).exit_code == 2);
  CHECK(run_command({"load_vgg16", "f", "--device", "gpu"}).exit_code == 2);
  CHECK(run_command({"load_vgg16", "f", "--device", "cuda", "--convert", "x"}).exit_code == 2);
  CHECK(run_command({"load_vgg16", "f", "--convert", "staging"}).exit_code == 2);
  CHECK(run_command({"load_vgg16", "f", "--threads", "x"}).exit_code == 2);
  for (const std::string limit : {"", "x", "-1", "1KB", "1 KiB x", "0x10", "1.5MiB",
                                  "99999999999999999999", "99999999999GiB"}) {
    INFO(limit);
    CHECK(run_command({"load_vgg16", "f", "--memory-limit", limit}).exit_code == 2);
  }
  CHECK(run_command({"convert", "a", "b", "--dtype", "f8"}).exit_code == 2);
  for (const std::string number :
       {"", "-1", "+1", "0x10", "1e3", " 1", "1.0", "18446744073709551616"}) {
    INFO(number);
    for (const std::string option : {"--seed", "--classes"}) {
      CHECK(run_command({"make_checkpoint", "/none/a", option, number}).exit_code == 2);
    }
    CHECK(run_command({"convert", "/none/a", "/none/b", "--threads", number}).exit_code == 2);
  }
  CHECK(run_command({"make_checkpoint", "/none/a", "--seed", "18446744073709551615"}).exit_code ==
        1);
  CHECK(run_command({"make_checkpoint", "a", "--classes", "0"}).exit_code == 2);
  CHECK(run_command({"make_checkpoint", "a", "--classes", "10", "--no-top"}).exit_code == 2);
}

TEST_CASE("inspect says of each fixture what the real library says") {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(fixtures)) {
    const std::string expected = entry.path().string();
    constexpr std::string_view suffix = ".expected.json";
    if (!expected.ends_with(suffix)) continue;
    const std::string file = expected.substr(0, expected.size() - suffix.size());
    INFO(file);
    json said = run_json({"inspect", file, "--json", "--digest"});
    CHECK(said["file"] == file);
    said.erase("file");
    CHECK(said == json::parse(test::read_file(expected)));
    // The table has a line for each tensor too.
    const auto table = run_command({"inspect", file});
    CHECK(table.exit_code == 0);
    CHECK(static_cast<std::size_t>(std::ranges::count(table.out, '\n')) >=
          2 + said["tensors"].size());
    ++files;
  }
  CHECK(files >= 10);
}

TEST_CASE("inspect refuses what is broken with one line") {
  const test::temporary_folder folder;
  check_refused(run_command({"inspect", folder.file("none")}), folder.file("none"),
                "cannot open: No such file or directory");
  check_refused(run_command({"inspect", folder.path().string()}), folder.path().string(),
                "not a regular file");
  const std::string cut = folder.write(
      "cut", test::safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7));
  check_refused(run_command({"inspect", cut, "--json", "--digest"}), cut,
                "end at byte 8 behind the header, but 7");
  const std::string two_lines = folder.write(
      "odd", test::safetensors(R"({"a\nb":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8));
  check_refused(run_command({"inspect", two_lines}), two_lines,
                "tensor 'a\\x0ab': F32 [3] needs 12 bytes");
}

TEST_CASE("convert gives what numpy gives, keeps the rest, and what it writes can be read") {
  const test::temporary_folder folder;
  const std::string out = folder.file("out");
  for (const std::string to : {"f16", "bf16", "f32"}) {
    for (const std::string from : {"f64", "f32", "f16", "bf16"}) {
      if (from == to) continue;
      if (from == "f32" && to == "f32") continue;
      const std::string stem = fixtures + "/rounding_" + from;
      for (const std::string threads : {"1", "3"}) {
        const auto result = run_command(
            {"convert", stem + ".safetensors", out, "--dtype", to, "--threads", threads});
        REQUIRE(result.exit_code == 0);
        CHECK(result.out.empty());
        // No bar in a pipe; but these files have values that overflow.
        CHECK((result.err.empty() || result.err.starts_with("warning: ")));
        CHECK(std::ranges::count(result.err, '\n') <= 1);
        json said = run_json({"inspect", out, "--json", "--digest"});
        said.erase("file");
        CHECK(said ==
              json::parse(test::read_file(stem + "_as_" + to + ".safetensors.expected.json")));
      }
    }
  }
  for (const std::string file : {"mixed.safetensors", "sharded/model.safetensors.index.json"}) {
    REQUIRE(run_command({"convert", fixtures + "/" + file, out, "--dtype", "keep"}).exit_code == 0);
    json said = run_json({"inspect", out, "--json", "--digest"});
    said.erase("file");
    CHECK(said == json::parse(test::read_file(fixtures + "/" + file + ".expected.json")));
  }
  CHECK(folder.count() == 1);
}

TEST_CASE("convert changes floating tensors alone, and keeps the file's free text") {
  const test::temporary_folder folder;
  const std::string in = fixtures + "/mixed.safetensors";
  const std::string out = folder.file("out");
  REQUIRE(run_command({"convert", in, out}).exit_code == 0);
  const json metadata = header_of(test::read_file(in))["__metadata__"];
  CHECK_FALSE(metadata.empty());
  CHECK(header_of(test::read_file(out))["__metadata__"] == metadata);
  const json before = json::parse(test::read_file(in + ".expected.json"))["tensors"];
  const json after = run_json({"inspect", out, "--json", "--digest"})["tensors"];
  REQUIRE(after.size() == before.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    const std::string type = before[i]["dtype"];
    INFO(before[i].dump());
    CHECK(after[i]["name"] == before[i]["name"]);
    if (type == "F64" || type == "F32" || type == "BF16") {
      CHECK(after[i]["dtype"] == "F16");
      CHECK(after[i]["shape"] == before[i]["shape"]);
    } else {
      CHECK(after[i] == before[i]);
    }
  }
}

TEST_CASE("convert writes through a link, and refuses an empty name") {
  const test::temporary_folder folder;
  const std::string in = fixtures + "/mixed.safetensors";
  const std::string target = folder.write("target", "old");
  std::filesystem::create_symlink("target", folder.file("link"));
  REQUIRE(run_command({"convert", in, folder.file("link")}).exit_code == 0);
  CHECK(std::filesystem::is_symlink(folder.file("link")));
  CHECK(run_command({"inspect", target}).exit_code == 0);
  check_refused(run_command({"convert", in, ""}), "''", "not the name of a file");
  CHECK(folder.count() == 2);
}

TEST_CASE("a terminal shows progress, and only the report in the end") {
  const test::temporary_folder folder;
  const std::string file = folder.file("vgg16");
  const auto made = run_command({"make_checkpoint", file, "--no-top"}, {.on_terminal = true});
  REQUIRE(made.exit_code == 0);
  CHECK(made.out.find("\rwriting [####") != std::string::npos);
  CHECK(made.out.ends_with("\r\033[K"));
  const auto loaded = run_command({"load_vgg16", file, "--no-top"}, {.on_terminal = true});
  REQUIRE(loaded.exit_code == 0);
  CHECK(loaded.out.find("\rloading [") != std::string::npos);
  CHECK(loaded.out.find("100 %\r\033[KVGG16 from ") != std::string::npos);
  CHECK(std::ranges::count(loaded.out, '\033') == 1);
}

TEST_CASE("a report that cannot be written is an error") {
  const auto result = run_command({"inspect", fixtures + "/mixed.safetensors", "--json"},
                                  {.standard_output = "/dev/full"});
  check_refused(result, "standard output", "cannot write");
}

TEST_CASE("a conversion that is refused leaves no file") {
  const test::temporary_folder folder;
  const std::string out = folder.file("out");
  const std::string mixed = fixtures + "/mixed.safetensors";
  check_refused(run_command({"convert", folder.file("none"), out}), folder.file("none"),
                "cannot open");
  check_refused(run_command({"convert", mixed, folder.file("no/out")}), folder.file("no/out"),
                "cannot create");
  check_refused(run_command({"convert", mixed, "/dev/null"}), "/dev/null", "not a regular file");
  check_refused(run_command({"convert", fixtures + "/f4.safetensors", out}),
                fixtures + "/f4.safetensors", "F4 cannot be converted to F16");
  check_refused(run_command({"convert", mixed, out}, {.file_size = 2000}), out, "cannot");
  CHECK(folder.count() == 0);
}

TEST_CASE("a checkpoint without the top goes through all commands") {
  const test::temporary_folder folder;
  const std::string file = folder.file("vgg16");
  REQUIRE(run_command({"make_checkpoint", file, "--no-top", "--seed", "7"}).exit_code == 0);
  REQUIRE(
      run_command({"make_checkpoint", folder.file("again"), "--no-top", "--seed", "7"}).exit_code ==
      0);
  REQUIRE(run_command({"make_checkpoint", folder.file("other"), "--no-top"}).exit_code == 0);
  CHECK(test::read_file(file) == test::read_file(folder.file("again")));
  CHECK(test::read_file(file) != test::read_file(folder.file("other")));

  const json listed = run_json({"inspect", file, "--json"});
  REQUIRE(listed["tensors"].size() == 26);
  CHECK(listed["format"] == "safetensors");
  CHECK(listed["tensors"][0]["name"] == "features.0.weight");
  CHECK(listed["tensors"][25]["name"] == "features.28.bias");
  CHECK(listed["tensors"][24]["shape"] == json({512, 512, 3, 3}));

  const json f16 = run_json({"load_vgg16", file, "--no-top", "--json", "--threads", "2"});
  CHECK(f16["format"] == "safetensors");
  CHECK(f16["dtype"] == "F16");
  CHECK(f16["layout"] == "torch");
  CHECK(f16["tensors"] == 26);
  CHECK(f16["parameters"] == 14'714'688);
  CHECK(f16["classes"] == 0);
  CHECK(f16["file_bytes"] == std::filesystem::file_size(file));
  CHECK(f16["destination_bytes"] == 2 * 14'714'688);
  CHECK(f16["copied_bytes"] == 2 * 14'714'688);
  CHECK(f16["mapped_bytes"] == 0);
  CHECK(f16["skipped"] == json::array());
  CHECK(f16["seconds"] > 0);
  CHECK(f16["peak_rss_growth_bytes"] > 0);

  // Converted by the other command, then mapped: the same bytes, none of them copied.
  const std::string half = folder.file("half");
  REQUIRE(run_command({"convert", file, half}).exit_code == 0);
  const json mapped = run_json({"load_vgg16", half, "--no-top", "--json"});
  CHECK(mapped["copied_bytes"] == 0);
  CHECK(mapped["destination_bytes"] == 0);
  CHECK(mapped["mapped_bytes"] == 2 * 14'714'688);
  CHECK(mapped["crc32"] == f16["crc32"]);

  // Who looks for the top does not find it.
  check_refused(run_command({"load_vgg16", file}), file, "missing (6): 'classifier.0.weight'");
  check_refused(
      run_command({"load_vgg16", file, "--no-top", "--memory-limit", "28MiB"}), file,
      "the memory limit of 29360128 bytes cannot be kept: the destination needs 29429376 bytes");
  CHECK(run_command({"load_vgg16", file, "--no-top", "--memory-limit", "29 MiB"}).exit_code == 0);
  check_refused(run_command({"load_vgg16", fixtures + "/mixed.safetensors"}),
                fixtures + "/mixed.safetensors", "none of its");
}

TEST_CASE("a GPU gets what the host would have, or the command says why there is none") {
  const test::temporary_folder folder;
  const command_result first = run_command({"load_vgg16", folder.file("none"), "--device", "cuda"});
  if (first.err.find("no CUDA device: ") != std::string::npos) {
    // Said before the file, which is not there, was opened.
    check_refused(first, folder.file("none"), ": no CUDA device: ");
    MESSAGE("no GPU: not loaded to one");
    return;
  }
  check_refused(first, folder.file("none"), "No such file");
  const std::string file = folder.file("vgg16");
  REQUIRE(run_command({"make_checkpoint", file, "--no-top"}).exit_code == 0);
  const json host = run_json({"load_vgg16", file, "--no-top", "--json"});
  for (const std::string convert : {"device", "staging", "auto"}) {
    const json gpu = run_json(
        {"load_vgg16", file, "--no-top", "--json", "--device", "cuda", "--convert", convert});
    CHECK(gpu["crc32"] == host["crc32"]);
    CHECK(gpu["destination_bytes"] == host["destination_bytes"]);
    CHECK(gpu["pin_ms"] > 0);
    CHECK(gpu["upload_gb_per_second"] > 0);
    if (convert != "auto") CHECK(gpu["conversion"] == convert);
    CHECK(run_command({"load_vgg16", file, "--no-top", "--device", "cuda"}).exit_code == 0);
  }
}

TEST_CASE("a command that is told to stop stops, and leaves its file whole or not at all") {
  const test::temporary_folder folder;
  const std::string in = folder.file("in");
  REQUIRE(run_command({"make_checkpoint", in, "--no-top"}).exit_code == 0);
  const std::string out = folder.file("out");
  std::size_t stopped = 0;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    for (const std::vector<std::string>& words :
         {std::vector<std::string>{"make_checkpoint", out}, {"convert", in, out}}) {
      for (const unsigned milliseconds : {5U, 10U, 20U, 40U, 80U}) {
        const auto result = run_command(
            words, {.signal = signal, .signal_after = std::chrono::milliseconds(milliseconds)});
        INFO(words.front(), " ", signal, " after ", milliseconds, " ms: ", result.err);
        // Before it begins to write, a signal ends it as it ends any program.
        CHECK((result.exit_code == 0 || result.exit_code == 1 || result.exit_code == 128 + signal));
        if (result.exit_code == 1) {
          CHECK(result.err.find("cancelled") != std::string::npos);
          ++stopped;
        }
        CHECK(std::filesystem::exists(out) == (result.exit_code == 0));
        CHECK(folder.count() == (result.exit_code == 0 ? 2 : 1));
        std::filesystem::remove(out);
      }
    }
  }
  CHECK(stopped > 0);
}

TEST_CASE("who ignores a signal, as under nohup, goes on") {
  const test::temporary_folder folder;
  const auto result = run_command(
      {"make_checkpoint", folder.file("out"), "--no-top"},
      {.signal = SIGHUP, .signal_after = std::chrono::milliseconds(50), .ignores_signal = true});
  CHECK(result.exit_code == 0);
  CHECK(folder.count() == 1);
}

TEST_CASE("the weights of a new checkpoint are He's: normal, of variance 2 / fan_in, biases zero") {
  const test::temporary_folder folder;
  const std::string file = folder.file("vgg16");
  REQUIRE(run_command({"make_checkpoint", file, "--no-top", "--seed", "3"}).exit_code == 0);
  const std::string bytes = test::read_file(file);
  std::size_t data_begin = 0;
  const json header = header_of(bytes, &data_begin);
  const auto values = [&](const char* name) {
    const std::size_t begin = header[name]["data_offsets"][0];
    const std::size_t end = header[name]["data_offsets"][1];
    std::vector<float> floats((end - begin) / 4);
    std::memcpy(floats.data(), bytes.data() + data_begin + begin, end - begin);
    return floats;
  };
  struct expectation {
    const char* name;
    double fan_in;
  };
  for (const expectation& e :
       {expectation{"features.0.weight", 27}, expectation{"features.12.weight", 256 * 9},
        expectation{"features.28.weight", 512 * 9}}) {
    INFO(std::string(e.name));
    double sum = 0;
    double squares = 0;
    double fourths = 0;
    const auto drawn = values(e.name);
    for (const float value : drawn) {
      sum += value;
      squares += double{value} * value;
      fourths += double{value} * value * value * value;
    }
    // Within five standard errors of what n normal numbers show.
    const auto n = static_cast<double>(drawn.size());
    const double variance = 2 / e.fan_in;
    CHECK(std::abs(sum / n) < 5 * std::sqrt(variance / n));
    CHECK(std::abs(squares / n / variance - 1) < 5 * std::sqrt(2 / n));
    CHECK(std::abs(fourths / n / (variance * variance) - 3) < 5 * std::sqrt(96 / n));
  }
  for (const float value : values("features.28.bias")) REQUIRE(value == 0);
}

TEST_CASE("the checkpoint that cannot be written leaves nothing") {
  const test::temporary_folder folder;
  check_refused(
      run_command({"make_checkpoint", folder.file("out"), "--no-top"}, {.file_size = 1'000'000}),
      folder.file("out"), "cannot reserve");
  check_refused(run_command({"make_checkpoint", folder.file("no/out")}), folder.file("no/out"),
                "cannot create");
  CHECK(folder.count() == 0);
}

namespace {

/// One FP32 tensor 'w' [2, 3] and a bias, some of whose values FP16 cannot hold.
std::string write_large_values(const test::temporary_folder& folder) {
  std::string file =
      test::safetensors(R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                        R"("w.bias":{"dtype":"F32","shape":[2],"data_offsets":[24,32]}})",
                        32);
  const std::array<float, 8> values{1.0F, -7e4F, 1e-9F, 65504.0F, 1e-6F, 3e38F, 1e9F, 0.0F};
  std::memcpy(file.data() + file.size() - sizeof(values), values.data(), sizeof(values));
  return folder.write("large.safetensors", file);
}

}  // namespace

TEST_CASE("convert says what overflowed, and does with it what it is told") {
  const test::temporary_folder folder;
  const std::string in = write_large_values(folder);
  const std::string out = folder.file("out");

  const auto kept = run_command({"convert", in, out});
  CHECK(kept.exit_code == 0);
  CHECK(kept.out.empty());
  CHECK(kept.err == "warning: " + in +
                        ": 3 values in 2 tensors became infinite as F16, the first in 'w'; "
                        "--overflow saturate or refuse, or --keep-f32, prevents it\n");
  CHECK(run_command({"convert", in, out, "--overflow", "keep"}).err == kept.err);
  CHECK(test::read_file(out).ends_with(
      std::string("\x00\x3C\x00\xFC\x00\x00\xFF\x7B\x11\x00\x00\x7C\x00\x7C\x00\x00", 16)));

  const auto saturated = run_command({"convert", in, out, "--overflow", "saturate"});
  CHECK(saturated.exit_code == 0);
  CHECK(saturated.err.empty());
  CHECK(test::read_file(out).ends_with(
      std::string("\x00\x3C\xFF\xFB\x00\x00\xFF\x7B\x11\x00\xFF\x7B\xFF\x7B\x00\x00", 16)));

  const std::string refused = folder.file("refused");
  check_refused(run_command({"convert", in, refused, "--overflow", "refuse"}), in,
                "tensor 'w': F32 -70000 at [0, 1] exceeds F16, whose largest value is 65504");
  CHECK(folder.count() == 2);

  // BF16 holds them all; and so does FP32.
  CHECK(run_command({"convert", in, out, "--dtype", "bf16", "--overflow", "refuse"}).exit_code ==
        0);
  check_refused(run_command({"convert", in, out, "--overflow", "refuse", "--keep-f32", "w"}), in,
                "tensor 'w.bias': F32 1e+09 at [0]");
  CHECK(run_command(
            {"convert", in, out, "--overflow", "refuse", "--keep-f32", "*.bias", "--keep-f32", "w"})
            .exit_code == 0);
  // Wherever the option stands, it takes one word.
  CHECK(run_command(
            {"convert", "--keep-f32", "*.bias", in, "--keep-f32", "w", out, "--overflow", "refuse"})
            .exit_code == 0);
  CHECK(run_command({"convert", in, out, "--keep-f32", "w", "*.bias"}).exit_code == 2);
  const json listed = run_json({"inspect", out, "--json"});
  CHECK(listed["tensors"][0]["dtype"] == "F32");
  check_refused(run_command({"convert", in, out, "--keep-f32", "*.bais"}), in,
                "no floating-point tensor has a name like '*.bais'");
  CHECK(run_command({"convert", in, out, "--overflow", "ignore"}).exit_code == 2);
}

TEST_CASE("convert --health says what the values are and what was lost") {
  const test::temporary_folder folder;
  const std::string in = write_large_values(folder);
  const auto result = run_command({"convert", in, folder.file("out"), "--health", "--json"});
  CHECK(result.exit_code == 0);
  const json said = json::parse(result.out);
  CHECK(said["overflowed"] == 3);
  CHECK(said["overflow"] == "keep");
  REQUIRE(said["health"].size() == 2);
  const json& w = said["health"][0];
  CHECK(w["name"] == "w");
  CHECK(w["from"] == "F32");
  CHECK(w["to"] == "F16");
  CHECK(w["numel"] == 6);
  CHECK(w["neg"] == 1);
  CHECK(w["zero"] == 0);
  CHECK(w["pos"] == 5);
  CHECK(w["nan"] == 0);
  CHECK(w["overflowed"] == 2);
  CHECK(w["flushed_to_zero"] == 1);
  CHECK(w["became_subnormal"] == 1);
  CHECK(w["max_abs"] == static_cast<double>(3e38F));
  // 1e-6 becomes 17 * 2^-24.
  CHECK(w["max_relative_error"].get<double>() ==
        doctest::Approx(std::fabs(17 * 0x1p-24 / 1e-6 - 1)).epsilon(1e-5));
  CHECK(said["health"][1]["zero"] == 1);

  const auto table = run_command({"convert", in, folder.file("out"), "--health"});
  CHECK(table.out.find("w.bias") != std::string::npos);
  CHECK(std::ranges::count(table.out, '\n') == 4);  // the head, two tensors, all
  CHECK(run_json({"convert", in, folder.file("out"), "--json", "--overflow", "saturate"})
            .contains("health") == false);
}

TEST_CASE("plan_vgg16 says what is needed, and checks what it is asked") {
  const json plan = run_json({"plan_vgg16", "--json"});
  CHECK(plan["parameters"] == 138'357'544);
  CHECK(plan["weights_bytes"] == 553'430'176);
  CHECK(plan["masters_bytes"] == 0);
  CHECK(plan["activations_bytes"] == 16'056'320);
  CHECK(plan["gradients_bytes"] == 0);
  CHECK(plan["optimizer_bytes"] == 0);
  CHECK(plan["dtype"] == "F32");
  CHECK(plan["input"] == json({224, 224}));
  CHECK(plan.contains("fits") == false);
  REQUIRE(plan["layers"].size() == 21);
  CHECK(plan["layers"][2]["name"] == "block1_pool");
  CHECK(plan["layers"][2]["output_shape"] == json({1, 112, 112, 64}));
  CHECK(plan["layers"][2]["weight_bytes"] == 0);
  CHECK(plan["layers"][2]["activation_bytes"] == 3'211'264);
  CHECK(plan["layers"][20]["name"] == "predictions");
  CHECK(plan["layers"][20]["weight_bytes"] == 16'384'000);
  CHECK(plan["layers"][20]["bias_bytes"] == 4000);

  const json trained =
      run_json({"plan_vgg16", "--json", "--dtype", "bf16", "--compute", "f32", "--mode", "frozen",
                "--optimizer", "adam", "--batch", "4", "--classes", "10"});
  CHECK(trained["parameters"] == 134'301'514);
  CHECK(trained["weights_bytes"] == 268'603'028);
  CHECK(trained["optimizer_bytes"] == 8 * (134'301'514 - 14'714'688));
  CHECK(trained["activations_bytes"] == 4 * 16'056'320);
  CHECK(trained["compute"] == "F32");
  CHECK(trained["mode"] == "frozen");
  CHECK(trained["optimizer"] == "adam");
  CHECK(trained["classes"] == 10);

  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{"--dtype", "f64"},
                                             {"--compute", "f8"},
                                             {"--mode", "train"},
                                             {"--optimizer", "lamb"},
                                             {"--batch", "0"},
                                             {"--batch", "-1"},
                                             {"--input", "224"},
                                             {"--input", "224x"},
                                             {"--input", "x224"},
                                             {"--input", "224x224x3"},
                                             {"--input", "-1x224"},
                                             {"--input", "224X224"},
                                             {"--budget", "1GB"},
                                             {"--classes", "0"},
                                             {"--classes", "10", "--no-top"},
                                             {"surplus"}}) {
    std::vector<std::string> line{"plan_vgg16"};
    line.insert(line.end(), wrong.begin(), wrong.end());
    INFO(wrong.front(), " ", wrong.back());
    CHECK(run_command(line).exit_code == 2);
    CHECK(run_command(line).out.empty());
  }
  CHECK(run_command({"plan_vgg16", "--help"}).out.find("Usage") != std::string::npos);
  check_refused(run_command({"plan_vgg16", "--input", "256x224"}), "VGG16",
                "with the top the input is 224x224, not 256x224");
  check_refused(run_command({"plan_vgg16", "--input", "31x99", "--no-top"}), "VGG16",
                "at least 32x32, not 31x99");
  check_refused(run_command({"plan_vgg16", "--batch", "2000000000000", "--json"}), "VGG16",
                "exceed 64 bits");
}

TEST_CASE("plan_vgg16 advises what to change for a budget") {
  const json fits = run_json({"plan_vgg16", "--json", "--budget", "600000000"});
  CHECK(fits["fits"] == true);
  CHECK(fits["max_batch"] == 2);
  CHECK(fits["advice"] == json::array());

  const json advised = run_json({"plan_vgg16", "--json", "--batch", "20", "--budget", "300000000"});
  CHECK(advised["fits"] == false);
  CHECK(advised["max_batch"] == 0);
  REQUIRE(advised["advice"].size() == 4);
  // 553,430,176 + 16,056,320 + 5,230,592 with one image, the numbers of FP16 halved.
  CHECK(advised["advice"][1] ==
        json({{"change", "batch 1"}, {"total_bytes", 574'717'088}, {"fits", false}}));
  CHECK(advised["advice"][3] ==
        json({{"change", "dtype f16, batch 2"}, {"total_bytes", 295'386'704}, {"fits", true}}));

  const auto said = run_command({"plan_vgg16", "--batch", "20", "--budget", "300000000"});
  CHECK(said.exit_code == 0);
  CHECK(said.out.find("It does not fit into 300,000,000 bytes: 579,787,168 are missing.\n"
                      "Not even a batch of 1 fits.\n") != std::string::npos);
  CHECK(said.out.ends_with("With dtype f16, batch 2 it takes 295,386,704 bytes, which fits.\n"));
  CHECK(said.out.find("block5_pool   [20, 7, 7, 512]") != std::string::npos);
  CHECK(said.out.find("100.0 %") != std::string::npos);
}

TEST_CASE("plan_vgg16 draws a chart, whole or not at all") {
  const test::temporary_folder folder;
  const std::string chart = folder.write("chart.svg", "what was there");
  const std::vector<std::string> line{"plan_vgg16", "--budget", "1GiB", "--svg", chart};
  const auto said = run_command(line);
  CHECK(said.exit_code == 0);
  const std::string svg = test::read_file(chart);
  CHECK(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  CHECK(svg.ends_with("</svg>\n"));
  for (const std::string_view part : {"block5_conv3", "predictions", "budget 1,073,741,824",
                                      "574,717,088", "prefers-color-scheme:dark"}) {
    INFO(part);
    CHECK(svg.find(part) != std::string::npos);
  }
  CHECK(svg.find("href") == std::string::npos);
  CHECK(run_command(line).exit_code == 0);
  CHECK(test::read_file(chart) == svg);

  check_refused(run_command({"plan_vgg16", "--svg", folder.file("none/chart.svg")}),
                folder.file("none/chart.svg"), "cannot create");
  check_refused(run_command({"plan_vgg16", "--svg", chart}, {.file_size = 4096}), chart, "cannot");
  CHECK(test::read_file(chart) == svg);
  CHECK(folder.count() == 1);
  check_refused(run_command({"plan_vgg16", "--svg", ""}), "''", "not the name of a file");
}

TEST_CASE("load_vgg16 --dump shows where the memory went, and health, also after a refusal") {
  const test::temporary_folder folder;
  const std::string file = folder.file("file");
  REQUIRE(run_command({"make_checkpoint", file, "--no-top"}).exit_code == 0);
  const std::string dump = folder.file("new/dump");
  const auto lines_of = [&dump](const char* role) {
    std::size_t bytes = 0;
    std::istringstream lines(test::read_file(dump + "/memory.collapsed"));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(role)) bytes += std::stoull(line.substr(line.rfind(' ') + 1));
    }
    return bytes;
  };
  const auto health = [&dump] {
    return json::parse(test::read_file(dump + "/health.json"))["tensors"];
  };
  const auto events = [&dump] {
    return json::parse(test::read_file(dump + "/memory.perfetto.json"))["traceEvents"];
  };
  const auto ran_out = [&events] {
    return std::ranges::count_if(events(), [](const json& event) { return event["ph"] == "i"; });
  };

  const json report =
      run_json({"load_vgg16", file, "--no-top", "--threads", "2", "--json", "--dump", dump});
  CHECK_FALSE(report.contains("health"));
  CHECK(lines_of("weights;") == 2 * 14'714'688);
  CHECK(lines_of("staging;") == 2 * 262'144);
  REQUIRE(health().size() == 26);
  CHECK(health()[0]["name"] == "features.0.weight");
  CHECK(health()[0]["numel"] == 1728);
  CHECK(health()[1]["zero"] == 64);  // biases
  CHECK(ran_out() == 0);
  CHECK(std::filesystem::exists(dump + "/memory.svg"));
  CHECK(std::filesystem::exists(dump + "/memory.memory_viz.pickle"));
  const auto files = std::distance(std::filesystem::directory_iterator(dump), {});
  CHECK(files == 5 + 6);

  // One byte too few: the plan, no health, the moment when memory was out, and why.
  const auto refused = run_command({"load_vgg16", file, "--no-top", "--dump", dump,
                                    "--memory-limit", std::to_string(2 * 14'714'688 + 4095)});
  check_refused(refused, file, "mapped, as F32 in the file (4096 bytes)");
  CHECK(lines_of("weights;") == 2 * 14'714'688);
  CHECK(health() == json::array());
  CHECK(ran_out() == 1);
  const json why = json::parse(test::read_file(dump + "/out_of_memory.json"));
  CHECK(why["tensor"] == "features.19.weight");
  CHECK(why["limit"] == 2 * 14'714'688 + 4095);
  CHECK(test::read_file(dump + "/out_of_memory.txt").find("block4_conv2") != std::string::npos);

  // A load that goes well leaves none of that behind.
  CHECK(run_command({"load_vgg16", file, "--no-top", "--dtype", "f32", "--dump", dump}).exit_code ==
        0);
  CHECK(lines_of("mapped_weights;") == 4 * 14'714'688);
  CHECK(health().size() == 26);
  CHECK(std::distance(std::filesystem::directory_iterator(dump), {}) == files);

  // What is refused for another reason is told as it is.
  check_refused(run_command({"load_vgg16", file, "--dump", dump}), file, "missing (6)");
  CHECK(health() == json::array());
  // No folder, no load.
  const std::string taken = folder.write("taken", "x");
  check_refused(run_command({"load_vgg16", file, "--no-top", "--dump", taken}), taken,
                "not a folder");
  CHECK(test::read_file(taken) == "x");
  const std::string nowhere = folder.file("nowhere");
  std::filesystem::create_symlink("/nonexistent/folder", nowhere);
  check_refused(run_command({"load_vgg16", file, "--no-top", "--dump", nowhere}), nowhere,
                "cannot make the folder");
  check_refused(run_command({"load_vgg16", file, "--no-top", "--dump", ""}), "''",
                "not the name of a folder");
}

TEST_CASE("load_vgg16 --explain says what filled the memory, and nothing where all is well") {
  const test::temporary_folder folder;
  const std::string file = folder.file("file");
  REQUIRE(run_command({"make_checkpoint", file, "--no-top"}).exit_code == 0);
  std::vector<std::string> words{"load_vgg16",     file,  "--no-top", "--explain",
                                 "--memory-limit", "1MiB"};
  const auto text = run_command(words);
  CHECK(text.exit_code == 1);
  CHECK(std::ranges::count(text.err, '\n') == 1);
  CHECK(text.out.starts_with("what filled the memory: host memory\n"));
  CHECK(text.out.find("weights block4_conv2 'features.19.weight'") != std::string::npos);
  CHECK(text.out.find("16 more") != std::string::npos);
  words.emplace_back("--json");
  const json report = json::parse(run_command(words).out);
  CHECK(report["planned"]["largest"][0]["bytes"] == 4'718'592);
  CHECK(report["alternatives"][0]["fits"] == true);
  CHECK(run_json({"load_vgg16", file, "--no-top", "--explain", "--json"})["tensors"] == 26);
}

TEST_CASE("gpu_report says that there is no driver, and that is no error") {
  const test::temporary_folder folder;
  // In the place of the libraries, so that it is the same where there is a driver.
  test::command_conditions conditions;
  for (const std::string library : {"libnvidia-ml.so.1", "libcuda.so.1"}) {
    folder.write(library, "no library");
  }
  conditions.environment = {{"LD_LIBRARY_PATH", folder.path().string()}};
  const auto text = run_command({"gpu_report"}, conditions);
  CHECK(text.exit_code == 0);
  CHECK(text.err.empty());
  CHECK(text.out.starts_with("no driver: "));
  CHECK(text.out.find("libnvidia-ml.so.1: ") != std::string::npos);
  CHECK(text.out.find("verdict: cannot tell\n") != std::string::npos);
  const auto as_json = run_command({"gpu_report", "--json"}, conditions);
  CHECK(as_json.exit_code == 0);
  CHECK(as_json.err.empty());
  const json said = json::parse(as_json.out);
  CHECK(said["driver"].is_null());
  CHECK(said["reason"].get<std::string>().find("libnvidia-ml.so.1: ") != std::string::npos);
  CHECK(said["gpus"] == json::array());
  CHECK(said["versions"]["driver_cuda"].is_null());
  CHECK(said["verdict"] == "cannot tell");

  CHECK(run_command({"gpu_report", "--help"}).exit_code == 0);
  CHECK(run_command({"gpu_report", "--nonsense"}).exit_code == 2);
  CHECK(run_command({"gpu_report", "0"}).exit_code == 2);
}

TEST_CASE("gpu_report shows the GPUs, their processes and the versions") {
  test::command_conditions conditions;
  conditions.environment = {{"LD_LIBRARY_PATH", FAKE_DRIVER},
                            {"FAKE_DRIVER", "13000"},
                            {"FAKE_RUNTIME", "13000"},
                            {"FAKE_CUDNN", "91900"},
                            {"FAKE_CUDNN_CUDA", "12090"}};
  const auto as_json = run_command({"gpu_report", "--json"}, conditions);
  CHECK(as_json.exit_code == 0);
  CHECK(as_json.err.empty());
  const json said = json::parse(as_json.out);
  CHECK(said["driver"] == "580.65.06");
  CHECK_FALSE(said.contains("reason"));
  REQUIRE(said["gpus"].size() == 2);
  const json& gpu = said["gpus"][0];
  CHECK(gpu["name"] == "NVIDIA H100 80GB HBM3");
  CHECK(gpu["pci_bus_id"] == "00000000:17:00.0");
  CHECK(gpu["total_bytes"] == 85'000'000'000);
  CHECK(gpu["used_bytes"] == 64'500'000'000);
  CHECK(gpu["free_bytes"] == 20'000'000'000);
  CHECK(gpu["reserved_bytes"] == 500'000'000);
  CHECK(gpu["unaccounted_bytes"] == 2'500'000'000);
  REQUIRE(gpu["processes"].size() == 3);
  CHECK(gpu["processes"][0]["name"] == "gpu_report");
  CHECK(gpu["processes"][1] == json::parse(R"({"pid": 2000000001, "name": null, "type": "C+G",
                                               "bytes": 60000000000})"));
  CHECK(gpu["processes"][2]["type"] == "G");
  CHECK(said["versions"]["driver_cuda"] == "13.0");
  CHECK(said["versions"]["runtime"] == "13.0");
  CHECK(said["versions"]["cudnn"] == "9.19.0");
  CHECK(said["versions"]["cudnn_cuda"] == "12.9");
  CHECK(said["verdict"] == "does not fit");

  const auto text = run_command({"gpu_report"}, conditions);
  CHECK(text.exit_code == 0);
  CHECK(text.out.starts_with("driver 580.65.06\nGPU 00000000:17:00.0 NVIDIA H100 80GB HBM3\n"));
  // 60e9 / 2^20
  CHECK(text.out.find("process 2000000001 C+G (not visible here)          60,000,000,000 "
                      "  57,220 MiB\n") != std::string::npos);
  CHECK(text.out.find("\nverdict: does not fit\n") != std::string::npos);

  conditions.environment.emplace_back("FAKE_NVML", "no bytes");
  CHECK(
      json::parse(
          run_command({"gpu_report", "--json"}, conditions).out)["gpus"][0]["processes"][1]["bytes"]
          .is_null());
  conditions.environment.back().second = "other version";
  const auto refused = run_command({"gpu_report"}, conditions);
  CHECK(refused.exit_code == 0);
  CHECK(refused.out.starts_with("no driver: nvmlInit_v2: NVML error 18 "));
}
