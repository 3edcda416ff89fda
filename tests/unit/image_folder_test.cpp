// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <sys/stat.h>

#include <vggload/core/error.hpp>
#include <vggload/data/image_folder.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;
using test::temporary_folder;

namespace {

/// "label name" for each image.
std::vector<std::string> listed(const image_folder& folder) {
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < folder.size(); ++i) {
    CHECK(folder.path(i) == std::filesystem::path(folder.root()) / folder.name(i));
    lines.push_back(std::to_string(folder.label(i)).append(" ").append(folder.name(i)));
  }
  return lines;
}

std::vector<std::string> classes_of(const image_folder& folder) {
  return {folder.classes().begin(), folder.classes().end()};
}

/// Names that the rules treat differently; what the tests expect of it is what Keras 3.15.1's
/// flow_from_directory(shuffle=False) and torchvision 0.29.2's ImageFolder list.
void write_folder(const temporary_folder& folder) {
  for (const char* name : {"a/1.jpg", "a/.hidden.png", "a/sub/x.PNG", "a/sub/yjpeg",
                           "a/sub-x/q.tiff", "\xC3\xA4/z.webp", "\xC3\xA4/z.jpeg", "B.x/e.bmp",
                           "b/t.gif", "b/k.ppm", "b/l.pgm", "b/n.npy", "top.jpg"}) {
    folder.write(name, "");
  }
}

}  // namespace

TEST_CASE("Keras' rules list what Keras lists") {
  const temporary_folder folder;
  write_folder(folder);
  std::filesystem::create_directory_symlink("../a", folder.file("b/link"));
  std::filesystem::create_symlink("nowhere", folder.file("a/broken.jpg"));
  std::filesystem::create_directory(folder.file("empty"));
  const image_folder images(folder.path().string());
  CHECK(classes_of(images) == std::vector<std::string>{"B.x", "a", "b", "empty", "\xC3\xA4"});
  CHECK(listed(images) == std::vector<std::string>{"0 B.x/e.bmp", "1 a/.hidden.png", "1 a/1.jpg",
                                                   "1 a/broken.jpg", "1 a/sub/x.PNG",
                                                   "1 a/sub/yjpeg", "1 a/sub-x/q.tiff", "2 b/k.ppm",
                                                   "4 \xC3\xA4/z.jpeg"});
  const image_folder followed(folder.path().string(), {.classes = {"b"}, .follow_links = true});
  CHECK(followed.size() == 7);
  CHECK(followed.name(1) == "b/link/.hidden.png");
}

TEST_CASE("torchvision's rules list what torchvision lists") {
  const temporary_folder folder;
  write_folder(folder);
  std::filesystem::create_directory_symlink("../a/sub", folder.file("b/link"));
  const image_folder images(folder.path().string(), {.rule = listing_rule::torchvision});
  CHECK(listed(images) == std::vector<std::string>{"0 B.x/e.bmp", "1 a/.hidden.png", "1 a/1.jpg",
                                                   "1 a/sub/x.PNG", "1 a/sub-x/q.tiff", "2 b/k.ppm",
                                                   "2 b/l.pgm", "2 b/link/x.PNG",
                                                   "3 \xC3\xA4/z.jpeg", "3 \xC3\xA4/z.webp"});
}

TEST_CASE("classes may be named, and have their numbers by the order of the names") {
  const temporary_folder folder;
  write_folder(folder);
  const image_folder images(folder.path().string(), {.classes = {"b", "B.x"}});
  CHECK(listed(images) == std::vector<std::string>{"0 b/k.ppm", "1 B.x/e.bmp"});
}

TEST_CASE("the first files of each class are for validation, rounded down") {
  const temporary_folder folder;
  for (const char* name :
       {"a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg"}) {
    folder.write(name, "");
  }
  const std::string root = folder.path().string();
  // int(0.4 * 5) = 2 and int(0.4 * 3) = 1
  const image_folder validation(root,
                                {.validation_split = 0.4, .subset = folder_subset::validation});
  CHECK(listed(validation) == std::vector<std::string>{"0 a/0.jpg", "0 a/1.jpg", "1 b/0.jpg"});
  const image_folder training(root, {.validation_split = 0.4, .subset = folder_subset::training});
  CHECK(listed(training) ==
        std::vector<std::string>{"0 a/2.jpg", "0 a/3.jpg", "0 a/4.jpg", "1 b/1.jpg", "1 b/2.jpg"});
}

TEST_CASE("what cannot be listed is an error that names the path") {
  const temporary_folder folder;
  write_folder(folder);
  const std::string root = folder.path().string();
  CHECK(message_of<io_error>([] { image_folder("/no/such/folder"); }) ==
        "/no/such/folder: cannot list the folder: No such file or directory");
  CHECK(message_of<io_error>([&] { image_folder(root, {.classes = {"c"}}); }) ==
        root + "/c: cannot list the folder: No such file or directory");
  CHECK(message_of<io_error>([&] { image_folder(root + "/top.jpg"); }) ==
        root + "/top.jpg: cannot list the folder: Not a directory");
  for (const double split : {-0.1, 1.0, 0.0 / 0.0}) {
    CHECK(message_of<error>([&] {
            image_folder(root, {.validation_split = split});
          }).starts_with(root + ": the validation split "));
  }
  std::filesystem::create_directory(folder.file("empty"));
  CHECK(message_of<error>([&] { image_folder(root, {.rule = listing_rule::torchvision}); }) ==
        root + "/empty: no image in the folder of this class");
  const temporary_folder nothing;
  CHECK(image_folder(nothing.path().string()).size() == 0);
  CHECK(message_of<error>([&] {
          image_folder(nothing.path().string(), {.rule = listing_rule::torchvision});
        }) == nothing.path().string() + ": no subfolder, and so no class");
}

TEST_CASE("links that lead back to a folder above are an error, not a walk without end") {
  const temporary_folder folder;
  folder.write("a/sub/1.jpg", "");
  std::filesystem::create_directory_symlink("../..", folder.file("a/sub/up"));
  const std::string root = folder.path().string();
  CHECK(image_folder(root).size() == 1);
  CHECK(message_of<io_error>([&] { image_folder(root, {.follow_links = true}); }) ==
        root + "/a/sub/up/a: links lead back to a folder that this one is in");
}
