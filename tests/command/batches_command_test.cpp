// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// make_batches and show_batch as scripts see them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "../support/run_command.hpp"
#include "../support/temporary_folder.hpp"
#include "../support/write_jpeg.hpp"

using test::run_command;
using test::temporary_folder;

namespace {

/// Five images of three classes, one class empty.
void write_images(const temporary_folder& folder) {
  for (unsigned i = 0; i < 5; ++i) {
    folder.write((i < 2 ? "images/a/" : "images/b/") + std::to_string(i) + ".jpg",
                 test::jpeg_file(20 + i, 30 - i, i));
  }
  std::filesystem::create_directory(folder.path() / "images/c");
}

/// The header and the data of an .npy file of format 1.0.
struct npy {
  std::string header;
  std::string data;
};
npy read_npy(const std::string& path) {
  const std::string file = test::read_file(path);
  REQUIRE(file.starts_with(std::string_view("\x93NUMPY\x01\x00", 8)));
  const std::size_t size =
      static_cast<unsigned char>(file[8]) + std::size_t{256} * static_cast<unsigned char>(file[9]);
  CHECK((10 + size) % 64 == 0);
  CHECK(file[9 + size] == '\n');
  std::string header = file.substr(10, size - 1);
  header.erase(header.find_last_not_of(' ') + 1);
  return {header, file.substr(10 + size)};
}

/// The names of the files that begin like this.
std::vector<std::string> files(const temporary_folder& folder, const std::string& start) {
  std::vector<std::string> names;
  for (const auto& item : std::filesystem::directory_iterator(folder.path())) {
    const std::string name = item.path().filename().string();
    if (name.starts_with(start)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void check_refused(const test::command_result& result, const std::string& start) {
  INFO("stderr: ", result.err);
  CHECK(result.exit_code == 1);
  CHECK(result.out.empty());
  CHECK(result.err.starts_with("error: " + start));
  CHECK(std::ranges::count(result.err, '\n') == 1);
}

}  // namespace

TEST_CASE("make_batches writes what numpy reads, and says what it did") {
  const temporary_folder folder;
  write_images(folder);
  const std::string images = folder.file("images");
  for (const bool exact : {false, true}) {
    std::vector<std::string> line{"make_batches", images,
                                  "--target",     "8x6",
                                  "--batch",      "2",
                                  "--epochs",     "2",
                                  "--npy",        folder.file("out"),
                                  "--rescale",    "1/255",
                                  "--hflip",      "--zoom",
                                  "0.2"};
    if (exact) line.emplace_back("--exact");
    const auto result = run_command(line);
    CHECK(result.exit_code == 0);
    CHECK(result.err.empty());
    CHECK(result.out.find("images from " + images) == 0);
    CHECK(result.out.find("5  in 3 classes: a, b, c") != std::string::npos);
    CHECK(result.out.find("\nepoch 1: 5 images in 3 batches, 0 skipped, ") != std::string::npos);
    CHECK(files(folder, "out") ==
          std::vector<std::string>{
              "out-0000-0000-x.npy", "out-0000-0000-y.npy", "out-0000-0001-x.npy",
              "out-0000-0001-y.npy", "out-0000-0002-x.npy", "out-0000-0002-y.npy",
              "out-0001-0000-x.npy", "out-0001-0000-y.npy", "out-0001-0001-x.npy",
              "out-0001-0001-y.npy", "out-0001-0002-x.npy", "out-0001-0002-y.npy"});
    const npy values = read_npy(folder.file("out-0001-0002-x.npy"));
    CHECK(values.header == "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 6, 3, ), }");
    CHECK(values.data.size() == 8 * 6 * 3 * 4);
    const npy labels = read_npy(folder.file("out-0000-0000-y.npy"));
    CHECK(labels.header == "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, ), }");
    CHECK(labels.data.size() == 2 * 3 * 4);
  }
  const auto result = run_command({"make_batches", images, "--class-mode", "none", "--npy",
                                   folder.file("bare"), "--target", "4x4", "--batch", "5"});
  CHECK(result.exit_code == 0);
  CHECK(files(folder, "bare") == std::vector<std::string>{"bare-0000-0000-x.npy"});
  const auto sparse = run_command({"make_batches", images, "--class-mode", "sparse", "--npy",
                                   folder.file("s"), "--no-shuffle", "--target", "4x4"});
  CHECK(sparse.exit_code == 0);
  const npy labels = read_npy(folder.file("s-0000-0000-y.npy"));
  CHECK(labels.header == "{'descr': '<f4', 'fortran_order': False, 'shape': (5, ), }");
  CHECK(labels.data == std::string("\0\0\0\0\0\0\0\0\0\0\x80\x3F\0\0\x80\x3F\0\0\x80\x3F", 20));
}

TEST_CASE("the same seed gives the same batches, by any number of workers") {
  const temporary_folder folder;
  write_images(folder);
  const auto batch = [&](const std::string& seed, const std::string& workers) {
    const auto result = run_command({"make_batches", folder.file("images"), "--target", "8x8",
                                     "--seed", seed, "--workers", workers, "--shear", "20", "--npy",
                                     folder.file("out"), "--batch", "3"});
    CHECK(result.exit_code == 0);
    return test::read_file(folder.file("out-0000-0001-x.npy"));
  };
  const std::string first = batch("1", "0");
  CHECK(batch("1", "1") == first);
  CHECK(batch("1", "4") == first);
  CHECK(batch("2", "4") != first);
}

TEST_CASE("a broken image ends make_batches with its path, or is skipped and listed") {
  const temporary_folder folder;
  write_images(folder);
  const std::string images = folder.file("images");
  const std::string whole = test::jpeg_file(20, 20, 9);
  const std::string broken = folder.write("images/b/broken.jpg", whole.substr(0, whole.size() / 2));
  const std::string tiff = folder.write("images/c/listed.TIFF", std::string("II*\0\1", 5));
  for (const std::string mode : {"--exact", "--hflip"}) {
    check_refused(run_command({"make_batches", images, mode, "--no-shuffle"}), broken + ": ");
    const auto result = run_command(
        {"make_batches", images, mode, "--on-error", "skip", "--epochs", "2", "--batch", "4"});
    CHECK(result.exit_code == 0);
    CHECK(result.out.find("\nepoch 0: 5 images in 2 batches, 2 skipped, ") != std::string::npos);
    CHECK(result.out.find("\nepoch 1: 5 images in 2 batches, 2 skipped, ") != std::string::npos);
    CHECK(result.err.find("skipped: " + broken + ": ") != std::string::npos);
    CHECK(result.err.find("skipped: " + tiff + ": ") != std::string::npos);
    CHECK(std::ranges::count(result.err, '\n') == 2);  // once each
  }
}

TEST_CASE("what make_batches cannot do it says in one line") {
  const temporary_folder folder;
  write_images(folder);
  const std::string images = folder.file("images");
  check_refused(run_command({"make_batches", folder.file("nowhere")}),
                folder.file("nowhere") + ": cannot list the folder: ");
  check_refused(run_command({"make_batches", folder.file("images/a")}),
                folder.file("images/a") + ": no images in 0 classes");
  check_refused(run_command({"make_batches", images, "--npy", folder.file("no/such/folder")}),
                folder.file("no/such/folder-0000-0000-x.npy") + ": ");
  check_refused(run_command({"make_batches", images, "--target", "1000000x1000000"}),
                images + ": ");
  check_refused(run_command({"make_batches", images, "--exact", "--target", "1000000x1000000"}),
                "");
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {},
           {images, "--target", "224"},
           {images, "--target", "0x8"},
           {images, "--target", "8x8x3"},
           {images, "--batch", "0"},
           {images, "--seed", "-1"},
           {images, "--seed", "4294967296"},
           {images, "--shear", "x"},
           {images, "--zoom", "-0.1"},
           {images, "--zoom", "nan"},
           {images, "--rescale", "1/0"},
           {images, "--rescale", "x"},
           {images, "--class-mode", "input"},
           {images, "--class-mode", "1"},
           {images, "--npy", ""},
           {images, "--epochs", "0"},
           {images, "--workers", "1025"},
           {images, "--on-error", "ignore"},
       }) {
    std::vector<std::string> line{"make_batches"};
    line.insert(line.end(), wrong.begin(), wrong.end());
    const auto result = run_command(line);
    INFO((wrong.empty() ? std::string("nothing") : wrong.back()));
    CHECK(result.exit_code == 2);
    CHECK(result.out.empty());
  }
}

TEST_CASE("show_batch draws a sheet and says what is where") {
  const temporary_folder folder;
  write_images(folder);
  const std::string sheet = folder.file("sheet.png");
  const auto result = run_command({"show_batch", folder.file("images"), sheet, "--target", "10x20",
                                   "--no-shuffle", "--columns", "2"});
  CHECK(result.exit_code == 0);
  CHECK(result.err.empty());
  CHECK(result.out ==
        "row 1, column 1: a/0.jpg\nrow 1, column 2: a/1.jpg\nrow 2, column 1: b/2.jpg\n"
        "row 2, column 2: b/3.jpg\nrow 3, column 1: b/4.jpg\n");
  const std::string png = test::read_file(sheet);
  REQUIRE(png.size() > 24);
  CHECK(png.starts_with("\x89PNG\r\n\x1A\n"));
  // Two columns of 20 and three rows of 10, and 4 pixels around each.
  CHECK(png.substr(16, 8) == std::string("\0\0\0\x34\0\0\0\x2E", 8));
  check_refused(run_command({"show_batch", folder.file("images"), folder.file("no/such.png")}),
                folder.file("no/such.png") + ": ");

  const temporary_folder broken;
  broken.write("images/a/1.jpg", "no image");
  const auto nothing =
      run_command({"show_batch", broken.file("images"), sheet, "--on-error", "skip"});
  CHECK(nothing.exit_code == 1);
  CHECK(nothing.err.find("every image of the batch was skipped") != std::string::npos);
}
