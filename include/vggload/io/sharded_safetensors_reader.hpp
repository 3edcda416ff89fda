// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/find_duplicate.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/json_events.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

namespace detail {

/// Collects "weight_map" from the events of a shard index, which has this form:
///
///   {"metadata": anything, "weight_map": {tensor: file}}
class shard_index_handler final : public json_event_handler {
 public:
  explicit shard_index_handler(const std::string& path) : path_(path) {}

  void on_event(json_event event, std::uint64_t /*number*/, std::string& text) override {
    if (skipped_depth_ > 0 || skip_next_) {
      skip(event);
    } else if (!open_) {
      if (event != json_event::begin_object) fail("the index is not a JSON object");
      open_ = true;
    } else if (in_map_) {
      on_map(event, text);
    } else if (event == json_event::key) {
      if (text == "weight_map") {
        if (std::exchange(map_seen_, true)) fail("the key 'weight_map' occurs twice");
        in_map_ = true;
      } else if (text == "metadata") {
        if (std::exchange(metadata_seen_, true)) fail("the key 'metadata' occurs twice");
        skip_next_ = true;
      } else {
        fail("unknown field " + in_quotes(text) + " in the index");
      }
    }
  }

  void finish() const {
    if (!map_seen_) fail("the index has no 'weight_map'");
  }

  std::vector<std::pair<std::string, std::string>> weight_map;  // tensor, file

 private:
  /// What nests deeper than anyone's metadata is refused, not followed.
  static constexpr unsigned max_metadata_depth = 16;

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(path_) + ": " + what);
  }

  void skip(json_event event) {
    skip_next_ = false;
    if (event == json_event::begin_object || event == json_event::begin_array) {
      if (++skipped_depth_ > max_metadata_depth) fail("'metadata' nests too deeply");
    } else if (event == json_event::end_object || event == json_event::end_array) {
      --skipped_depth_;
    }
  }

  void on_map(json_event event, std::string& text) {
    if (!map_open_) {
      if (event != json_event::begin_object) fail("'weight_map' is not a JSON object");
      map_open_ = true;
    } else if (event == json_event::key) {
      weight_map.emplace_back(std::move(text), std::string());
    } else if (event == json_event::string) {
      weight_map.back().second = std::move(text);
    } else if (event == json_event::end_object) {
      in_map_ = false;
    } else {
      fail("tensor " + in_quotes(weight_map.back().first) + ": its file's name is not a string");
    }
  }

  const std::string& path_;
  bool open_ = false;
  unsigned skipped_depth_ = 0;
  bool skip_next_ = false;
  bool in_map_ = false;
  bool map_open_ = false;
  bool map_seen_ = false;
  bool metadata_seen_ = false;
};

}  // namespace detail

/// A checkpoint in several safetensors files, opened by its index (`*.safetensors.index.json`):
/// tensors are listed in the index's order. The files lie beside the index or below it; a name with
/// `..` and an absolute one are refused, and so are a tensor that its file lacks, one that two
/// files hold, and one that a file holds but the index does not list (it would be lost in silence).
/// A model of `weight_reader`.
class sharded_safetensors_reader {
 public:
  /// Throws `io_error` and `format_error`, which name the index or the shard.
  explicit sharded_safetensors_reader(input_file index) : path_(index.path()) {
    const auto weight_map = read_weight_map(index);
    file_bytes_ = index.size();
    std::unordered_map<std::string_view, std::size_t> shard_of_file;
    std::unordered_map<std::string_view, location> location_of;
    for (const auto& [tensor, file] : weight_map) {
      if (shard_of_file.contains(file)) continue;
      check_file_name(tensor, file);
      const std::size_t shard = shards_.size();
      open_shard(file, tensor);
      shard_of_file.emplace(file, shard);
    }
    for (std::size_t shard = 0; shard < shards_.size(); ++shard) {
      const auto infos = shards_[shard].tensors();
      for (std::size_t i = 0; i < infos.size(); ++i) {
        const auto [other, inserted] = location_of.try_emplace(infos[i].name, location{shard, i});
        if (!inserted) {
          fail("tensor " + in_quotes(infos[i].name) + " is in two shards, " +
               in_quotes(shards_[other->second.shard].path()) + " and " +
               in_quotes(shards_[shard].path()));
        }
      }
    }
    tensors_.reserve(weight_map.size());
    locations_.reserve(weight_map.size());
    for (const auto& [tensor, file] : weight_map) {
      const auto found = location_of.find(tensor);
      if (found == location_of.end() || found->second.shard != shard_of_file.at(file)) {
        fail("tensor " + in_quotes(tensor) + " is not in its shard " + in_quotes(file));
      }
      locations_.push_back(found->second);
      tensors_.push_back(shards_[found->second.shard].tensors()[found->second.tensor]);
      location_of.erase(found);
    }
    if (!location_of.empty()) {
      const auto& [tensor, where] = *location_of.begin();
      fail("tensor " + in_quotes(tensor) + " in the shard " +
           in_quotes(shards_[where.shard].path()) + " is not in the index");
    }
  }

  /// Whether a file that begins with these bytes is meant to be a shard index: JSON text, an
  /// object.
  [[nodiscard]] static bool matches(const input_file& /*file*/,
                                    std::span<const std::byte> head) noexcept {
    const auto first = std::ranges::find_if_not(head, detail::is_json_white_space);
    return first != head.end() ? *first == std::byte{'{'} : !head.empty();
  }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::string_view format() const noexcept { return "safetensors"; }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_bytes_; }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  /// That of the first shard: the writers give all shards the same.
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept {
    return shards_.empty() ? std::span<const metadata_entry>() : shards_.front().metadata();
  }

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    const location where = locations_[tensor];
    shards_[where.shard].read(where.tensor, offset, out);
  }

  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    const location where = locations_[tensor];
    return shards_[where.shard].view(where.tensor);
  }

 private:
  struct location {
    std::size_t shard;
    std::size_t tensor;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(path_) + ": " + what);
  }

  [[nodiscard]] std::vector<std::pair<std::string, std::string>> read_weight_map(
      const input_file& index) const {
    if (index.size() > detail::safetensors_max_header_bytes) {
      fail("the index has " + std::to_string(index.size()) + " bytes, more than the " +
           std::to_string(detail::safetensors_max_header_bytes) + " that are allowed");
    }
    std::string text(static_cast<std::size_t>(index.size()), '\0');
    index.read_at(0, std::as_writable_bytes(std::span(text)));
    detail::shard_index_handler handler(path_);
    detail::parse_json_events(text, printable(path_) + ": the index", handler);
    handler.finish();
    const std::string* twice = detail::find_duplicate(
        handler.weight_map, [](const auto& e) -> const std::string& { return e.first; });
    if (twice != nullptr) fail("tensor " + in_quotes(*twice) + " occurs twice in 'weight_map'");
    return std::move(handler.weight_map);
  }

  /// Only names that stay in the index's folder: relative, no component "..", no NUL that would cut
  /// them.
  void check_file_name(const std::string& tensor, const std::string& file) const {
    bool leaves_folder =
        file.empty() || file.front() == '/' || file.find('\0') != std::string::npos;
    for (std::size_t begin = 0; begin <= file.size() && !leaves_folder;) {
      const std::size_t end = std::min(file.find('/', begin), file.size());
      leaves_folder = std::string_view(file).substr(begin, end - begin) == "..";
      begin = end + 1;
    }
    if (leaves_folder) {
      fail("tensor " + in_quotes(tensor) + ": its file " + in_quotes(file) +
           " is not a name below the index's folder");
    }
  }

  void open_shard(const std::string& file, const std::string& tensor) {
    const std::size_t folder = path_.rfind('/');
    const std::string shard_path =
        folder == std::string::npos ? file : path_.substr(0, folder + 1) + file;
    try {
      shards_.emplace_back(input_file(shard_path));
    } catch (const io_error& cause) {
      // The user named the index: say which of its files is in the way, and who needs it.
      throw io_error(
          printable(path_) + ": tensor " + in_quotes(tensor) + ": its shard " + cause.what(),
          cause.code());
    }
    const auto sum = checked_add(file_bytes_, shards_.back().file_bytes());
    if (!sum) fail("the shards' sizes exceed a 64-bit number");
    file_bytes_ = *sum;
  }

  std::string path_;
  std::uint64_t file_bytes_ = 0;
  std::vector<safetensors_reader> shards_;
  std::vector<tensor_info> tensors_;
  std::vector<location> locations_;
};

static_assert(weight_reader<sharded_safetensors_reader>);

}  // namespace vggload
