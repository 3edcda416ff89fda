// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <unistd.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/data/random.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/network/feature_batch.hpp>
#include <vggload/network/stored_features.hpp>

namespace vggload::network {

/// The metadata entry that tells a cache of features, and its version, from other safetensors files.
inline constexpr std::string_view feature_cache_format = "vggload features 1";

/// A file with features of images, mapped.
struct feature_cache {
  std::string key;  // what the features were made from, in the words of the one who made them
  stored_features features;
};

namespace detail {

/// 64 bits that change with every bit and place of the values: against files that were damaged, not against
/// people.
class feature_checksum {
 public:
  void add(std::span<const float> values) noexcept {
    for (const float value : values) {
      sum_ = counter_random::mix(sum_ ^ std::bit_cast<std::uint32_t>(value));
    }
  }
  [[nodiscard]] std::uint64_t value() const noexcept { return sum_; }

 private:
  std::uint64_t sum_ = 0;
};

// The file's tensors, in this order.
inline constexpr std::array<std::string_view, 3> feature_cache_tensors{"features", "labels",
                                                                       "checksums"};

[[noreturn]] inline void fail_feature_cache(const std::string& path, const std::string& what) {
  throw format_error(printable(path) + ": " + what);
}

[[nodiscard]] inline std::optional<std::string> metadata_value(const safetensors_reader& file,
                                                               std::string_view name) {
  for (const auto& [key, value] : file.metadata()) {
    if (key == name) return value;
  }
  return std::nullopt;
}

}  // namespace detail

/// Writes the features of all `count` images of the current epoch of `batches` to `path`, batch by batch: beside the
/// batches' own memory that of one is taken, however many there are. The file is a safetensors one, "features"
/// [images, features] and "labels" [images, classes], both FP32, and "checksums" of the two; it appears whole or not
/// at all.
/// @throws io_error; error where the batches are not of `count` images; what they throw; cancelled_error
template <sequence S>
void write_feature_cache(const std::string& path, const std::string& key, const S& batches,
                         const feature_format& format, std::size_t count,
                         const collect_options& options = {}) {
  const auto& names = detail::feature_cache_tensors;
  const std::array<tensor_info, 3> tensors{
      tensor_info{std::string(names[0]), dtype::f32, {count, format.features}, 0},
      tensor_info{std::string(names[1]), dtype::f32, {count, format.classes}, 0},
      tensor_info{std::string(names[2]), dtype::u64, {2}, 0}};
  const std::array<metadata_entry, 2> metadata{
      metadata_entry{"format", std::string(feature_cache_format)}, metadata_entry{"key", key}};
  safetensors_writer writer(path, tensors, metadata);
  detail::feature_checksum features;
  detail::feature_checksum labels;
  const auto write = [&](std::size_t tensor, std::size_t first, std::span<const float> values,
                         detail::feature_checksum& sum) {
    writer.write_data(writer.data_offset(tensor) + std::uint64_t{first} * sizeof(float),
                      std::as_bytes(values));
    sum.add(values);
  };
  detail::for_each_batch(batches, count, options,
                         [&](const feature_batch& batch, std::size_t done) {
                           write(0, done * format.features, batch.features(), features);
                           write(1, done * format.classes, batch.labels(), labels);
                         });
  const std::array<std::uint64_t, 2> sums{features.value(), labels.value()};
  writer.write_data(writer.data_offset(2), std::as_bytes(std::span(sums)));
  writer.commit();
}

/// Maps a file that `write_feature_cache` wrote, and looks through it once for damage. Nothing is copied; the
/// kernel may drop its pages at any time.
/// @throws io_error; format_error where it is damaged; error where it is another safetensors file
[[nodiscard]] inline feature_cache open_feature_cache(const std::string& path) {
  const auto file = std::make_shared<safetensors_reader>(input_file(path));
  const auto format = detail::metadata_value(*file, "format");
  if (format != feature_cache_format) {
    throw error(printable(path) + ": not a cache of features: its format is " +
                (format ? in_quotes(*format) : "not said"));
  }
  const std::span<const tensor_info> tensors = file->tensors();
  const auto find = [&](std::size_t which, dtype type, std::size_t rank) {
    const std::string_view name = detail::feature_cache_tensors[which];
    const auto found = std::ranges::find(tensors, name, &tensor_info::name);
    if (found == tensors.end() || found->dtype != type || found->shape.rank() != rank) {
      detail::fail_feature_cache(path, "a cache of features has a tensor " + in_quotes(name) +
                                           ", " + std::string(name_of(type)) + " of rank " +
                                           std::to_string(rank));
    }
    return static_cast<std::size_t>(found - tensors.begin());
  };
  const std::size_t features = find(0, dtype::f32, 2);
  const std::size_t labels = find(1, dtype::f32, 2);
  const std::size_t checksums = find(2, dtype::u64, 1);
  if (tensors[features].shape[0] != tensors[labels].shape[0] || tensors[checksums].shape[0] != 2) {
    detail::fail_feature_cache(path, "features " + to_string(tensors[features].shape) +
                                         ", labels " + to_string(tensors[labels].shape) +
                                         " and checksums " + to_string(tensors[checksums].shape) +
                                         " do not belong together");
  }
  const auto values = [&](std::size_t tensor) {
    const auto bytes = file->view(tensor);
    if (!bytes) throw io_error(printable(path) + ": cannot be mapped");
    if (!tensor_view::is_aligned_for(bytes->data(), dtype::f32)) {
      detail::fail_feature_cache(path, "its values are not aligned");
    }
    return std::span(reinterpret_cast<const float*>(bytes->data()), bytes->size() / sizeof(float));
  };
  std::array<std::uint64_t, 2> wanted{};
  file->read(checksums, 0, std::as_writable_bytes(std::span(wanted)));
  for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
    const std::size_t tensor = i == 0 ? features : labels;
    detail::feature_checksum sum;
    sum.add(values(tensor));
    if (sum.value() != wanted.at(i)) {
      detail::fail_feature_cache(path, "tensor " + in_quotes(tensors[tensor].name) +
                                           " is damaged: its checksum is another one");
    }
  }
  const feature_format shape{static_cast<std::size_t>(tensors[features].shape[1]),
                             static_cast<std::size_t>(tensors[labels].shape[1])};
  return {detail::metadata_value(*file, "key").value_or(""),
          stored_features(shape, values(features), values(labels), file)};
}

/// What was found where a cache is kept.
enum class cache_state {
  usable,   // made from the same
  missing,  // no file
  stale,    // made from something else
  damaged,  // not readable any more
};

struct found_features {
  cache_state state = cache_state::missing;
  std::optional<stored_features> features;  // of a usable one
  std::string reason;                       // what is wrong with a damaged one
};

/// Looks for a cache at `path` that was made with this `key` for `count` images of this format. What is stale or
/// damaged is to be written anew.
/// @throws io_error; error where the file is a whole safetensors file and no cache of features: it is somebody else's
[[nodiscard]] inline found_features find_feature_cache(const std::string& path,
                                                       std::string_view key,
                                                       const feature_format& format,
                                                       std::size_t count) {
  if (::access(path.c_str(), F_OK) != 0) return {};
  try {
    feature_cache found = open_feature_cache(path);
    const bool same =
        found.key == key && found.features.format() == format && found.features.size() == count;
    if (!same) return {cache_state::stale, std::nullopt, {}};
    return {cache_state::usable, std::move(found.features), {}};
  } catch (const format_error& e) {
    return {cache_state::damaged, std::nullopt, e.what()};
  }
}

}  // namespace vggload::network
