// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>

namespace vggload::network {

/// The place of one image's features in a batch: refers to the batch.
struct feature_sample {
  std::span<float> features;
  std::span<float> label;  // one value for each class
};

/// How many values an image has in a batch of features.
struct feature_format {
  std::size_t features = 0;
  std::size_t classes = 0;
  friend bool operator==(const feature_format&, const feature_format&) = default;
};

/// What a head learns from at once: the features of some images, FP32 [size, features], and their labels
/// [size, classes]. The memory is an arena's, taken once; a batch is filled again and again. Moves, never
/// copies.
class feature_batch {
 public:
  /// Bytes that a batch of up to `count` images takes in an arena. Throws `error` where they do not fit into a
  /// number.
  [[nodiscard]] static std::size_t bytes(const feature_format& format, std::size_t count) {
    const auto both =
        checked_add(piece_bytes(format.features, count), piece_bytes(format.classes, count));
    if (!both) fail_size(count);
    return static_cast<std::size_t>(*both);
  }

  feature_batch() = default;
  /// Takes the memory for up to `count` images from `arena`, whose memory the host may touch; throws what it
  /// throws.
  template <class Arena>
  feature_batch(Arena& arena, const feature_format& format, std::size_t count)
      : format_(format), capacity_(count) {
    features_ = reinterpret_cast<float*>(
        arena.allocate("features", piece_bytes(format.features, count)).data());
    labels_ = reinterpret_cast<float*>(
        arena.allocate("labels of features", piece_bytes(format.classes, count)).data());
  }
  feature_batch(feature_batch&&) = default;
  feature_batch& operator=(feature_batch&&) = default;
  feature_batch(const feature_batch&) = delete;
  feature_batch& operator=(const feature_batch&) = delete;
  ~feature_batch() = default;

  [[nodiscard]] const feature_format& format() const noexcept { return format_; }
  /// Images that there is room for.
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// Images that are in it: fewer than there is room for at the end of an epoch.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Says how many are in it, up to `capacity()`.
  void resize(std::size_t count) noexcept { size_ = count; }
  void clear() noexcept { size_ = 0; }

  /// The place of the `i`-th image, whether it is filled or not.
  [[nodiscard]] feature_sample operator[](std::size_t i) noexcept {
    return {{features_ + i * format_.features, format_.features},
            {labels_ + i * format_.classes, format_.classes}};
  }
  /// [size, features], row-major.
  [[nodiscard]] std::span<const float> features() const noexcept {
    return {features_, size_ * format_.features};
  }
  [[nodiscard]] std::span<float> features() noexcept {
    return {features_, size_ * format_.features};
  }
  /// [size, classes], row-major.
  [[nodiscard]] std::span<const float> labels() const noexcept {
    return {labels_, size_ * format_.classes};
  }
  [[nodiscard]] std::span<float> labels() noexcept { return {labels_, size_ * format_.classes}; }

 private:
  [[noreturn]] static void fail_size(std::size_t count) {
    throw error("the bytes of the features of " + std::to_string(count) +
                " images do not fit into a number");
  }

  // Pieces of an arena are multiples of its alignment.
  static std::size_t piece_bytes(std::size_t values, std::size_t count) {
    std::optional<std::uint64_t> bytes = checked_multiply(values, count);
    if (bytes) bytes = checked_multiply(*bytes, sizeof(float));
    if (bytes) bytes = checked_align_up(*bytes, 64);
    if (!bytes) fail_size(count);
    return static_cast<std::size_t>(*bytes);
  }

  feature_format format_;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
  float* features_ = nullptr;
  float* labels_ = nullptr;
};

/// Brings the features of each image to the length 1 (Keras' `UnitNormalization`), for `map`. ReLU and pooling hand a
/// factor through, so an image's brightness and contrast scale all of its features, and tell nothing of its class.
/// Features that are all 0 stay so.
inline void unit_normalization(feature_batch& batch) {
  for (std::size_t image = 0; image < batch.size(); ++image) {
    const std::span<float> features = batch[image].features;
    double squares = 0;
    for (const float value : features) squares += double{value} * double{value};
    if (!(squares > 0)) continue;
    const double factor = 1 / std::sqrt(squares);
    for (float& value : features) value = static_cast<float>(double{value} * factor);
  }
}

}  // namespace vggload::network
