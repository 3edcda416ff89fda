// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// fine_tune as scripts see it: what it learns, that it does so twice in the same way, and that nothing is lost when it
// is killed.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "../support/run_command.hpp"
#include "../support/temporary_folder.hpp"

using test::command_result;
using test::run_command;
using test::temporary_folder;

namespace {

constexpr std::size_t side = 32;

/// 32 x 32 pixels of noise around a colour, with bright stripes.
std::string picture(bool red, bool upright, std::mt19937& random) {
  std::string file = "P6\n32 32\n255\n";
  std::uniform_int_distribution<int> noise(0, 59);
  const auto shift = static_cast<std::size_t>(random() % 8);
  for (std::size_t y = 0; y < side; ++y) {
    for (std::size_t x = 0; x < side; ++x) {
      const int stripe = ((upright ? x : y) + shift) / 4 % 2 == 0 ? 100 : 0;
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const bool bright = channel == (red ? 0U : 2U);
        file += static_cast<char>(noise(random) + stripe + (bright ? 90 : 0));
      }
    }
  }
  return file;
}

/// 128 images of each of two classes.
void write_images(const temporary_folder& folder, const std::string& name, bool by_colour) {
  std::mt19937 random(7);  // NOLINT(cert-msc32-c,cert-msc51-cpp)
  for (int i = 0; i < 128; ++i) {
    const std::string number = std::to_string(1000 + i) + ".ppm";
    const bool other = random() % 2 == 0;
    folder.write(name + "/first/" + number,
                 picture(by_colour || other, !by_colour || other, random));
    folder.write(name + "/second/" + number,
                 picture(!by_colour && other, by_colour && other, random));
  }
}

/// Weights and images that all tests look at, and none changes.
class shared_files {
 public:
  shared_files() {
    const auto made = run_command({"make_checkpoint", weights(), "--no-top", "--seed", "1"});
    REQUIRE(made.exit_code == 0);
    write_images(folder_, "colours", true);
    write_images(folder_, "stripes", false);
  }
  [[nodiscard]] std::string weights() const { return folder_.file("vgg16.safetensors"); }
  [[nodiscard]] std::string images() const { return folder_.file("colours"); }
  [[nodiscard]] std::string stripes() const { return folder_.file("stripes"); }

 private:
  temporary_folder folder_;
};

const shared_files& files() {
  static const shared_files made;
  return made;
}

/// fine_tune on the coloured images in a folder of its own, small and short.
std::vector<std::string> command_line(const std::vector<std::string>& more = {},
                                      const std::string& epochs = "3") {
  std::vector<std::string> line{
      "fine_tune", files().images(), files().weights(), "--target", "32x32", "--epochs", epochs};
  line.insert(line.end(), more.begin(), more.end());
  return line;
}

command_result run_in(const temporary_folder& folder, const std::vector<std::string>& line) {
  return run_command(line, {.working_folder = folder.path().string()});
}

/// The lines of epochs by their number; one that is said twice is the same both times.
std::map<std::string, std::string> epochs_of(const std::string& out) {
  std::map<std::string, std::string> epochs;
  for (std::size_t begin = 0; begin < out.size();) {
    const std::size_t end = std::min(out.find('\n', begin), out.size());
    const std::string line = out.substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with("epoch ")) continue;
    const auto [place, added] = epochs.emplace(line.substr(0, line.find('/')), line);
    if (!added) CHECK(place->second == line);
  }
  return epochs;
}

double last_number(const std::string& line) { return std::stod(line.substr(line.rfind(' ') + 1)); }

/// What an uninterrupted run of `command_line()` says.
const std::string& whole_run() {
  static const std::string out = [] {
    const temporary_folder folder;
    const command_result result = run_in(folder, command_line());
    REQUIRE(result.exit_code == 0);
    return result.out;
  }();
  return out;
}

/// The weights' file with a bit of another value in the middle of a tensor.
std::string with_another_weight() {
  std::string bytes = test::read_file(files().weights());
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  return bytes;
}

void check_refused(const command_result& result, const std::string& start) {
  INFO("stderr: ", result.err);
  CHECK(result.exit_code == 1);
  CHECK(result.err.starts_with("error: " + start));
  CHECK(std::ranges::count(result.err, '\n') == 1);
}

}  // namespace

TEST_CASE(
    "fine_tune learns two classes, says what it takes before, and does it twice in the same way") {
  const temporary_folder folder;
  const command_result result = run_in(folder, command_line({"--threads", "1"}));
  CHECK(result.exit_code == 0);
  CHECK(result.err.empty());
  const auto epochs = epochs_of(result.out);
  REQUIRE(epochs.size() == 3);
  CHECK(last_number(epochs.at("epoch 3")) >= 0.95);
  // 26 of 128 are for validation: int(0.2 * 128) is 25.
  CHECK(result.out.find("\n  images                          206  ") != std::string::npos);
  CHECK(result.out.find("\n  for validation                   50") != std::string::npos);
  CHECK(result.out.find("\n  in all ") < result.out.find("\nepoch 1/3 loss "));
  // Threads are a line of the plan, and nothing else.
  CHECK(epochs == epochs_of(whole_run()));
  const temporary_folder again;
  CHECK(run_in(again, command_line()).out == whole_run());
  const auto other =
      epochs_of(run_in(again, command_line({"--seed", "1", "--checkpoint", "b"})).out);
  CHECK(other.at("epoch 1") != epochs.at("epoch 1"));

  CHECK(std::filesystem::exists(folder.path() / "fine_tune.safetensors"));
  const std::string chart = test::read_file(folder.file("fine_tune.svg"));
  CHECK(chart.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  CHECK(chart.ends_with("</svg>\n"));
  CHECK(chart.find("class=\"validation\"") != std::string::npos);
  CHECK(folder.count() == 2);
}

TEST_CASE("fine_tune learns stripes, whatever their colour") {
  const temporary_folder folder;
  const command_result result =
      run_in(folder, {"fine_tune", files().stripes(), files().weights(), "--target", "64x64",
                      "--epochs", "6", "--cache", "cache"});
  CHECK(result.exit_code == 0);
  CHECK(last_number(epochs_of(result.out).at("epoch 6")) >= 0.95);
}

TEST_CASE("fine_tune, killed at any moment, comes to the same curve") {
  const temporary_folder folder;
  std::string out;
  int kills = 0;
  int resumed = 0;
  // Each life is longer than the one before, so that it ends.
  for (int milliseconds = 100;; milliseconds = milliseconds * 5 / 4 + 10) {
    const command_result result =
        run_command(command_line(), {.signal = SIGKILL,
                                     .signal_after = std::chrono::milliseconds(milliseconds),
                                     .working_folder = folder.path().string()});
    out += result.out;
    resumed += result.out.find("\nresumed fine_tune.safetensors: ") != std::string::npos ? 1 : 0;
    if (result.exit_code == 0) break;
    REQUIRE(result.exit_code == 128 + SIGKILL);
    ++kills;
  }
  CHECK(kills > 2);
  CHECK(resumed > 0);
  // What was cut off in the middle of its line is not a line.
  auto epochs = epochs_of(out);
  CHECK(epochs == epochs_of(whole_run()));
}

TEST_CASE("fine_tune ends at a signal with what it has, in the middle of an epoch, too") {
  const temporary_folder folder;
  std::string out;
  int interruptions = 0;
  for (int milliseconds = 300;; milliseconds = milliseconds * 5 / 4) {
    const command_result result = run_command(
        command_line({"--batch", "8"}), {.signal = SIGINT,
                                         .signal_after = std::chrono::milliseconds(milliseconds),
                                         .working_folder = folder.path().string()});
    out += result.out;
    if (result.exit_code == 0) break;
    ++interruptions;
    check_refused(result, "");
    CHECK(result.err.find("interrupted") != std::string::npos);
    CHECK(folder.count() <= 2);  // nothing half written
  }
  CHECK(interruptions > 1);
  const temporary_folder other;
  CHECK(epochs_of(out) == epochs_of(run_in(other, command_line({"--batch", "8"})).out));
}

TEST_CASE("a finished training says so, and goes on where more epochs are wanted") {
  const temporary_folder folder;
  auto line = command_line({"--cache", "cache"});
  const auto whole = epochs_of(run_in(folder, line).out);
  const command_result again = run_in(folder, line);
  CHECK(again.exit_code == 0);
  CHECK(
      again.out.find("\nresumed fine_tune.safetensors: 3 of 3 epochs are done, nothing is left") !=
      std::string::npos);
  CHECK(epochs_of(again.out).empty());
  line[6] = "4";
  const auto more = epochs_of(run_in(folder, line).out);
  CHECK(more.size() == 1);
  CHECK(more.contains("epoch 4"));

  line.emplace_back("--json");
  const command_result told = run_in(folder, line);
  const auto json = nlohmann::json::parse(told.out);
  CHECK(json["history"].size() == 4);
  CHECK(json["resumed"]["epoch"] == 4);
  CHECK(json["classes"] == std::vector<std::string>{"first", "second"});
}

TEST_CASE("a checkpoint of other options, or a damaged one, is an error and stays as it is") {
  const temporary_folder folder;
  const auto line = command_line({"--cache", "cache"}, "1");
  REQUIRE(run_in(folder, line).exit_code == 0);
  const std::string whole = test::read_file(folder.file("fine_tune.safetensors"));
  for (const auto& change :
       std::vector<std::pair<std::string, std::string>>{{"--seed", "3"},
                                                        {"--batch", "8"},
                                                        {"--optimizer", "sgd"},
                                                        {"--learning-rate", "0.5"},
                                                        {"--policy", "mixed_float16"},
                                                        {"--validation-split", "0.3"},
                                                        {"--preprocess", "keras"}}) {
    INFO(change.first);
    auto other = line;
    other.insert(other.end(), {change.first, change.second});
    check_refused(run_in(folder, other),
                  "fine_tune.safetensors: the checkpoint is of another training: ");
  }
  check_refused(run_in(folder, command_line({}, "1")),
                "fine_tune.safetensors: the checkpoint is of another training: ");
  folder.write("weights", with_another_weight());
  check_refused(run_in(folder, {"fine_tune", files().images(), "weights", "--target", "32x32",
                                "--epochs", "1", "--cache", "cache"}),
                "fine_tune.safetensors: the checkpoint is of another training: ");
  CHECK(test::read_file(folder.file("fine_tune.safetensors")) == whole);
  for (const std::string& damaged :
       {std::string(), whole.substr(0, whole.size() / 2), whole.substr(0, whole.size() - 1),
        whole.substr(0, whole.size() - 9) + "?" + whole.substr(whole.size() - 8)}) {
    folder.write("fine_tune.safetensors", damaged);
    check_refused(run_in(folder, line), "fine_tune.safetensors: ");
    CHECK(test::read_file(folder.file("fine_tune.safetensors")) == damaged);
  }
}

TEST_CASE("a checkpoint of an augmentation that is another by little is refused") {
  const temporary_folder folder;
  REQUIRE(run_in(folder, command_line({}, "1")).exit_code == 0);
  check_refused(run_in(folder, command_line({"--zoom", "0.1000001"}, "2")),
                "fine_tune.safetensors: the checkpoint is of another training: ");
}

TEST_CASE("a cache is made once, used again, and made anew where it is stale or damaged") {
  const temporary_folder folder;
  const temporary_folder images;
  std::filesystem::copy(files().images(), images.file("images"),
                        std::filesystem::copy_options::recursive);
  const auto run = [&](const std::vector<std::string>& more) {
    std::filesystem::remove(folder.file("fine_tune.safetensors"));
    std::vector<std::string> line{"fine_tune",
                                  images.file("images"),
                                  files().weights(),
                                  "--target",
                                  "32x32",
                                  "--epochs",
                                  "2",
                                  "--cache",
                                  "cache"};
    line.insert(line.end(), more.begin(), more.end());
    const command_result result = run_in(folder, line);
    CHECK(result.exit_code == 0);
    return result.out;
  };
  const auto says = [](const std::string& out, const std::string& name, const std::string& what) {
    return out.find("\ncache cache/" + name + ".safetensors: " + what) != std::string::npos;
  };
  const std::string made = run({});
  CHECK(says(made, "training", "made\n"));
  CHECK(says(made, "validation", "made\n"));
  CHECK(made.find("features in a cache are not augmented") != std::string::npos);
  const auto epochs = epochs_of(made);
  CHECK(epochs.size() == 2);

  const std::string used = run({});
  CHECK(says(used, "training", "used\n"));
  CHECK(says(used, "validation", "used\n"));
  CHECK(epochs_of(used) == epochs);
  // The features are those of the images, however they are learnt from.
  CHECK(says(run({"--seed", "5", "--optimizer", "momentum"}), "training", "used\n"));

  // Validation's images are the first of each class.
  const std::string image = images.file("images/second/1000.ppm");
  std::filesystem::last_write_time(image,
                                   std::filesystem::last_write_time(image) - std::chrono::hours(1));
  const std::string stale = run({});
  CHECK(says(stale, "training", "used\n"));
  CHECK(says(stale, "validation", "made anew, it was of other images, weights or options\n"));
  CHECK(epochs_of(stale) == epochs);

  const std::string path = folder.file("cache/training.safetensors");
  std::string damaged = test::read_file(path);
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 4);
  folder.write("cache/training.safetensors", damaged);
  const std::string mended = run({});
  CHECK(says(mended, "training", "made anew: cache/training.safetensors: tensor 'features'"));
  CHECK(says(mended, "validation", "used\n"));
  CHECK(epochs_of(mended) == epochs);

  std::filesystem::remove(folder.file("fine_tune.safetensors"));
  std::filesystem::copy_file(files().weights(), path,
                             std::filesystem::copy_options::overwrite_existing);
  check_refused(run_in(folder, {"fine_tune", images.file("images"), files().weights(), "--target",
                                "32x32", "--cache", "cache"}),
                "cache/training.safetensors: not a cache of features");
}

TEST_CASE("every optimizer and policy learns") {
  const temporary_folder folder;
  for (const std::string optimizer : {"sgd", "momentum", "adam"}) {
    for (const std::string policy : {"f32", "mixed_float16", "mixed_bfloat16"}) {
      std::filesystem::remove(folder.file("fine_tune.safetensors"));
      const command_result result = run_in(
          folder, command_line({"--cache", "cache", "--optimizer", optimizer, "--policy", policy}));
      INFO(optimizer, " ", policy, " ", result.out, result.err);
      REQUIRE(result.exit_code == 0);
      CHECK(last_number(epochs_of(result.out).at("epoch 3")) >= 0.95);
    }
  }
}

TEST_CASE("fine_tune keeps what it planned, and a limit, with weights that are not even loaded") {
  const temporary_folder folder;
  const auto run = [&](const std::vector<std::string>& more) {
    std::filesystem::remove(folder.file("fine_tune.safetensors"));
    auto line = command_line({"--json"}, "1");
    line.insert(line.end(), more.begin(), more.end());
    const command_result result = run_in(folder, line);
    INFO(result.err);
    REQUIRE(result.exit_code == 0);
    return nlohmann::json::parse(result.out);
  };
  const auto free = run({});
  CHECK(free["peak_bytes"] <= free["planned_bytes"]);
  CHECK(free["peak_bytes"].get<double>() > 0.98 * free["planned_bytes"].get<double>());
  CHECK(free["mapped_bytes"] == 14'714'688 * 4);
  CHECK(free["streams_weights"] == false);
  const auto limited = run({"--memory-limit", "20MiB"});
  CHECK(limited["planned_bytes"] <= 20 << 20);
  CHECK(limited["peak_bytes"] <= limited["planned_bytes"]);
  CHECK(limited["streams_weights"] == true);
  CHECK(limited["mapped_bytes"] == 0);
  CHECK(limited["history"][0]["val_accuracy"].get<double>() >= 0.9);
  std::filesystem::remove(folder.file("fine_tune.safetensors"));
  check_refused(run_in(folder, command_line({"--memory-limit", "1MiB"})),
                files().weights() + ": the memory limit of 1048576 bytes cannot be kept: ");
}

TEST_CASE("images are prepared as the weights' layout says") {
  const temporary_folder folder;
  const std::string keras = folder.file("keras.safetensors");
  REQUIRE(run_command({"convert", files().weights(), keras, "--layout", "keras"}).exit_code == 0);
  auto line = command_line({"--validation-split", "0"}, "1");
  line[2] = keras;
  const command_result result = run_in(folder, line);
  CHECK(result.exit_code == 0);
  CHECK(result.out.find("as Keras does for its weights") != std::string::npos);
  const auto epochs = epochs_of(result.out);
  CHECK(epochs.at("epoch 1").find("val_") == std::string::npos);
  CHECK(last_number(epochs.at("epoch 1")) > 0.7);
  CHECK(whole_run().find("as torchvision does for its weights") != std::string::npos);
}

TEST_CASE("what fine_tune cannot do it says in one line") {
  const temporary_folder folder;
  const auto refuse = [&](const std::string& images, const std::string& start) {
    const auto result =
        run_in(folder, {"fine_tune", images, files().weights(), "--target", "32x32"});
    check_refused(result, start);
    CHECK(folder.count() <= 1);
  };
  refuse("nowhere", "nowhere: cannot list the folder: ");
  folder.write("images/a/1.ppm", "");
  refuse("images", "images: a classifier needs two folders of images at least, not 1");
  folder.write("images/b/not an image.txt", "");
  refuse("images", "images: no images to train the class 'b' with");
  folder.write("images/b/1.ppm", "P6\n1 1\n255\nabc");
  refuse("images", "images: the classes have too few images to take a part of 0.2");
  for (int i = 2; i < 10; ++i) {
    folder.write("images/a/" + std::to_string(i) + ".ppm", "P6\n1 1\n255\nabc");
  }
  refuse("images", "images/a/1.ppm: the file is empty");
  check_refused(run_in(folder, {"fine_tune", files().images(), "no weights"}), "no weights: ");
  check_refused(run_in(folder, {"fine_tune", files().images(), folder.file("images/b/1.ppm")}),
                folder.file("images/b/1.ppm") + ": ");
  std::string broken = test::read_file(files().weights());
  for (std::size_t i = 1; i <= 1024; i += 4)
    broken.replace(broken.size() - i - 3, 4, {0, 0, '\xC0', '\x7F'});
  folder.write("broken", broken);  // its last tensor ends with NaN
  check_refused(run_in(folder, {"fine_tune", files().images(), "broken", "--target", "32x32"}),
                "broken: the features of the images are not finite");
  // What cannot be written is said before there is work that could be lost.
  const auto refuse_output = [&](const std::vector<std::string>& more, const std::string& start) {
    const auto result = run_in(folder, command_line(more));
    check_refused(result, start);
    CHECK(result.out.empty());
  };
  refuse_output({"--svg", "no/such/folder.svg"}, "no/such/folder.svg: ");
  refuse_output({"--checkpoint", "no/such"}, "no/such: ");
  refuse_output({"--svg", ""}, "'': ");
  refuse_output({"--checkpoint", ""}, "'': ");
  const std::string weights = test::read_file(files().weights());
  refuse_output({"--svg", files().weights()},
                files().weights() + ": --svg would replace the weights");
  refuse_output({"--checkpoint", files().weights()},
                files().weights() + ": --checkpoint would replace the weights");
  CHECK(test::read_file(files().weights()) == weights);
  refuse_output({"--svg", "a", "--checkpoint", "a"}, "a: --svg would replace the checkpoint");
  folder.write("a", "");
  std::filesystem::create_symlink("a", folder.file("b"));
  refuse_output({"--svg", "a", "--checkpoint", "b"}, "a: --svg would replace the checkpoint");

  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {},
           {files().images()},
           {files().images(), files().weights(), "more"},
           {files().images(), files().weights(), "--epochs", "0"},
           {files().images(), files().weights(), "--batch", "0"},
           {files().images(), files().weights(), "--seed", "-1"},
           {files().images(), files().weights(), "--optimizer", "rmsprop"},
           {files().images(), files().weights(), "--optimizer", "1"},
           {files().images(), files().weights(), "--learning-rate", "0"},
           {files().images(), files().weights(), "--learning-rate", "nan"},
           {files().images(), files().weights(), "--policy", "float16"},
           {files().images(), files().weights(), "--validation-split", "1"},
           {files().images(), files().weights(), "--memory-limit", "much"},
           {files().images(), files().weights(), "--target", "31x32"},
           {files().images(), files().weights(), "--target", "32"},
           {files().images(), files().weights(), "--cache", ""},
           {files().images(), files().weights(), "--cache", "c", "--hflip"},
           {files().images(), files().weights(), "--cache", "c", "--zoom", "0.2"},
       }) {
    std::vector<std::string> line{"fine_tune"};
    line.insert(line.end(), wrong.begin(), wrong.end());
    const auto result = run_in(folder, line);
    INFO((wrong.empty() ? std::string("nothing") : wrong.back()));
    CHECK(result.exit_code == 2);
    CHECK(result.out.empty());
  }
}
