// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dirent.h>
#include <sys/stat.h>

#include <vggload/core/error.hpp>

namespace vggload {

/// Whose rules say which files of a folder are images, and in which order. Both take every subfolder for a
/// class, sorted by code point, and all that is below it: folders sorted by their whole paths, then files by
/// their names.
enum class listing_rule {
  /// Keras 3.15's `flow_from_directory`: names that end in png, jpg, jpeg, bmp, ppm, tif or tiff, in capitals or
  /// not, with a dot before it or not. A class may be empty.
  keras,
  /// torchvision's `ImageFolder`: names that end in .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff or .webp; links
  /// to folders are followed; an empty class is an error.
  torchvision,
};

/// Which part of a folder's images.
enum class folder_subset { all, training, validation };

struct image_folder_options {
  listing_rule rule = listing_rule::keras;
  /// The classes in the order of their numbers; where empty, every subfolder.
  std::vector<std::string> classes = {};
  /// Of each class's n images the first int(split * n) are for validation, the others for training.
  double validation_split = 0;
  folder_subset subset = folder_subset::all;
  /// Links to folders are followed (torchvision's rule always does).
  bool follow_links = false;
};

/// The images of a folder with a subfolder for each class: their paths and the numbers of their classes. Looks at
/// names only, at no image; keeps them in one piece of memory.
class image_folder {
 public:
  /// Lists `root`.
  /// @throws io_error with the path, where a folder cannot be read, a class that was asked for is not there, or
  /// links lead round in a circle
  /// @throws error where the split is not in [0, 1), and by torchvision's rule where there is no class or one
  /// without an image
  explicit image_folder(std::string root, const image_folder_options& options = {})
      : root_(std::move(root)), classes_(options.classes) {
    if (!(options.validation_split >= 0 && options.validation_split < 1)) {
      throw error(printable(root_) + ": the validation split " +
                  std::to_string(options.validation_split) + " is not from 0 to 1");
    }
    if (classes_.empty()) {
      classes_ = subfolders(root_);
      if (classes_.empty() && options.rule == listing_rule::torchvision) {
        throw error(printable(root_) + ": no subfolder, and so no class");
      }
    }
    for (std::size_t label = 0; label < classes_.size(); ++label) list_class(label, options);
  }

  [[nodiscard]] const std::string& root() const noexcept { return root_; }
  /// Number of images.
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  /// The names of the classes; their places are their numbers.
  [[nodiscard]] std::span<const std::string> classes() const noexcept { return classes_; }
  /// The number of the `i`-th image's class.
  [[nodiscard]] std::size_t label(std::size_t i) const noexcept { return entries_[i].label; }
  /// Its path below the root: class, folders, file.
  [[nodiscard]] std::string_view name(std::size_t i) const noexcept {
    const std::size_t end = i + 1 < entries_.size() ? entries_[i + 1].begin : names_.size();
    return std::string_view(names_).substr(entries_[i].begin, end - entries_[i].begin);
  }
  [[nodiscard]] std::string path(std::size_t i) const { return joined(root_, name(i)); }

 private:
  struct entry {
    std::size_t begin;  // in names_
    std::uint32_t label;
  };
  struct listed_folder {
    std::string name;  // below the class's folder; empty is that itself
    std::vector<std::string> files;
  };
  struct folder_item {
    std::string name;
    unsigned char type;
  };
  // To know a folder again that a link leads back to.
  struct folder_identity {
    ::dev_t device;
    ::ino_t inode;
    bool operator==(const folder_identity&) const = default;
  };

  static std::string joined(std::string_view folder, std::string_view name) {
    std::string path(folder);
    if (name.empty()) return path;
    if (!path.empty() && path.back() != '/') path += '/';
    return path += name;
  }

  // `type`: what readdir says, which saves asking for each file; not every file system knows it.
  static bool is_folder(const std::string& path, unsigned char type) noexcept {
    if (type != DT_UNKNOWN && type != DT_LNK) return type == DT_DIR;
    struct ::stat status {};
    return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
  }
  static bool is_link(const std::string& path, unsigned char type) noexcept {
    if (type != DT_UNKNOWN) return type == DT_LNK;
    struct ::stat status {};
    return ::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
  }

  /// What is in a folder, sorted by name.
  static std::vector<folder_item> items_in(const std::string& path) {
    const auto close = [](::DIR* folder) { ::closedir(folder); };
    const std::unique_ptr<::DIR, decltype(close)> folder(::opendir(path.c_str()), close);
    if (folder == nullptr) detail::throw_system_error(path, "cannot list the folder", errno);
    std::vector<folder_item> items;
    errno = 0;
    // NOLINTNEXTLINE(concurrency-mt-unsafe): no other thread has this stream
    while (const ::dirent* found = ::readdir(folder.get())) {
      const std::string_view name(found->d_name);
      if (name != "." && name != "..") items.push_back({std::string(name), found->d_type});
      errno = 0;
    }
    if (errno != 0) detail::throw_system_error(path, "cannot list the folder", errno);
    std::sort(items.begin(), items.end(),
              [](const folder_item& a, const folder_item& b) { return a.name < b.name; });
    return items;
  }

  static std::vector<std::string> subfolders(const std::string& path) {
    std::vector<std::string> names;
    for (folder_item& item : items_in(path)) {
      if (is_folder(joined(path, item.name), item.type)) names.push_back(std::move(item.name));
    }
    return names;
  }

  static bool is_image(std::string_view name, listing_rule rule) {
    constexpr std::array<std::string_view, 7> of_keras{"png", "jpg", "jpeg", "bmp",
                                                       "ppm", "tif", "tiff"};
    constexpr std::array<std::string_view, 9> of_torchvision{
        ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"};
    std::string end(name.substr(name.size() - std::min<std::size_t>(name.size(), 5)));
    for (char& letter : end) {
      if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    }
    const auto ends_so = [&](std::string_view suffix) { return end.ends_with(suffix); };
    return rule == listing_rule::keras
               ? std::any_of(of_keras.begin(), of_keras.end(), ends_so)
               : std::any_of(of_torchvision.begin(), of_torchvision.end(), ends_so);
  }

  void list_class(std::size_t label, const image_folder_options& options) {
    const std::string path = joined(root_, classes_[label]);
    std::vector<listed_folder> folders;
    std::vector<folder_identity> above;
    walk(path, "", options, above, folders);
    std::sort(folders.begin(), folders.end(),
              [](const listed_folder& a, const listed_folder& b) { return a.name < b.name; });
    std::vector<std::string> files;
    for (const listed_folder& folder : folders) {
      for (const std::string& file : folder.files) files.push_back(joined(folder.name, file));
    }
    if (files.empty() && options.rule == listing_rule::torchvision) {
      throw error(printable(path) + ": no image in the folder of this class");
    }
    const auto first_for_training =
        static_cast<std::size_t>(options.validation_split * static_cast<double>(files.size()));
    const std::size_t begin = options.subset == folder_subset::training ? first_for_training : 0;
    const std::size_t end =
        options.subset == folder_subset::validation ? first_for_training : files.size();
    for (std::size_t i = begin; i < end; ++i) {
      entries_.push_back({names_.size(), static_cast<std::uint32_t>(label)});
      names_ += joined(classes_[label], files[i]);
    }
  }

  /// Adds the folder and all below it. `above`: the folders on the way to it.
  static void walk(const std::string& path, const std::string& name,
                   const image_folder_options& options, std::vector<folder_identity>& above,
                   std::vector<listed_folder>& folders) {
    struct ::stat status {};
    if (::stat(path.c_str(), &status) != 0) {
      detail::throw_system_error(path, "cannot list the folder", errno);
    }
    const folder_identity identity{status.st_dev, status.st_ino};
    if (std::find(above.begin(), above.end(), identity) != above.end()) {
      throw io_error(printable(path) + ": links lead back to a folder that this one is in");
    }
    above.push_back(identity);
    listed_folder folder{name, {}};
    const bool follow = options.follow_links || options.rule == listing_rule::torchvision;
    for (folder_item& item : items_in(path)) {
      const std::string item_path = joined(path, item.name);
      if (!is_folder(item_path, item.type)) {
        if (is_image(item.name, options.rule)) folder.files.push_back(std::move(item.name));
      } else if (follow || !is_link(item_path, item.type)) {
        walk(item_path, joined(name, item.name), options, above, folders);
      }
    }
    folders.push_back(std::move(folder));
    above.pop_back();
  }

  std::string root_;
  std::vector<std::string> classes_;
  std::string names_;
  std::vector<entry> entries_;
};

}  // namespace vggload
