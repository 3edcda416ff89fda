// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/data/image.hpp>

namespace vggload {

/// What stands beside the images of a batch, in Keras' terms (`class_mode`).
enum class label_mode {
  categorical,  // a row for each image, 1 at its class, 0 elsewhere
  sparse,       // the number of its class
  binary,       // the same, of two classes
  none,
};

/// What the labels of a batch look like in memory: f32, dense.
struct label_format {
  label_mode mode = label_mode::categorical;
  std::size_t classes = 0;

  /// Values for each image.
  [[nodiscard]] std::size_t values() const noexcept {
    if (mode == label_mode::none) return 0;
    return mode == label_mode::categorical ? classes : 1;
  }
  /// Of a batch of `count` images: [images, classes], or [images]; [images, 0] where there are none.
  [[nodiscard]] vggload::shape shape(std::size_t count) const {
    if (mode == label_mode::sparse || mode == label_mode::binary) return {count};
    return {count, values()};
  }
  /// Writes the label of an image of that class into its `values()`.
  void write(std::size_t label, std::span<float> into) const noexcept {
    if (mode == label_mode::categorical) std::fill(into.begin(), into.end(), 0.0F);
    if (mode != label_mode::none) {
      into[mode == label_mode::categorical ? label : 0] =
          mode == label_mode::categorical ? 1.0F : static_cast<float>(label);
    }
  }
};

/// An image that an epoch went on without.
struct skipped_image {
  std::string path;
  std::string reason;
};

/// The place of one image in a batch: refers to the batch.
struct image_sample {
  std::span<std::byte> pixels;  // of sample_format::bytes()
  std::span<float> label;       // one value, or one for each class, or none
  std::uint64_t& index;         // of the image in its folder
  std::vector<skipped_image>& skipped;
};

/// Images and labels that are handed over together. The memory is somebody else's, an arena's, and is taken
/// once: a batch is filled again and again. Moves, never copies.
class image_batch {
 public:
  /// Bytes that a batch of up to `count` images takes in an arena. Throws `error` where they do not fit into a
  /// number.
  [[nodiscard]] static std::size_t bytes(const sample_format& format, const label_format& labels,
                                         std::size_t count) {
    const auto all = checked_add(pixel_bytes(format, count), label_bytes(labels, count));
    const auto bytes = all ? checked_add(*all, index_bytes(count)) : std::nullopt;
    if (!bytes) fail_size(count);
    return static_cast<std::size_t>(*bytes);
  }

  image_batch() = default;
  /// Takes the memory for up to `count` images from `arena`, whose memory the host may touch; throws what it
  /// throws.
  template <class Arena>
  image_batch(Arena& arena, const sample_format& format, const label_format& labels,
              std::size_t count)
      : format_(format), label_format_(labels), capacity_(count) {
    pixels_ = arena.allocate("images", pixel_bytes(format, count));
    labels_ = reinterpret_cast<float*>(arena.allocate("labels", label_bytes(labels, count)).data());
    indices_ =
        reinterpret_cast<std::uint64_t*>(arena.allocate("indices", index_bytes(count)).data());
  }
  image_batch(image_batch&&) = default;
  image_batch& operator=(image_batch&&) = default;
  image_batch(const image_batch&) = delete;
  image_batch& operator=(const image_batch&) = delete;
  ~image_batch() = default;

  /// Images that there is room for.
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// Images that are in it: fewer than there is room for at the end of an epoch, or where some were skipped.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Says how many are in it, up to `capacity()`.
  void resize(std::size_t count) noexcept { size_ = count; }
  /// Forgets what was in it.
  void clear() noexcept {
    size_ = 0;
    skipped_.clear();
  }

  [[nodiscard]] const sample_format& format() const noexcept { return format_; }
  /// The place of the `i`-th image, whether it is filled or not.
  [[nodiscard]] image_sample operator[](std::size_t i) noexcept {
    return {pixels_.subspan(i * format_.bytes(), format_.bytes()),
            {labels_ + i * label_format_.values(), label_format_.values()},
            indices_[i],
            skipped_};
  }

  /// The images that are in it, in the format's layout.
  [[nodiscard]] tensor_view images() const {
    return {format_.type, format_.shape(size_), pixels_.first(size_ * format_.bytes())};
  }
  /// Their labels.
  [[nodiscard]] tensor_view labels() const {
    const std::span<const float> values{labels_, size_ * label_format_.values()};
    return {dtype::f32, label_format_.shape(size_), std::as_bytes(values)};
  }
  /// Which images of the folder they are.
  [[nodiscard]] std::span<const std::uint64_t> indices() const noexcept {
    return {indices_, size_};
  }
  /// Those that would have been in it, with the reason; in the order of the batch.
  [[nodiscard]] std::span<const skipped_image> skipped() const noexcept { return skipped_; }

 private:
  [[noreturn]] static void fail_size(std::size_t count) {
    throw error("the bytes of a batch of " + std::to_string(count) +
                " images do not fit into a number");
  }

  // Pieces of an arena are multiples of its alignment.
  static std::size_t piece_bytes(std::initializer_list<std::uint64_t> factors, std::size_t count) {
    std::optional<std::uint64_t> bytes = count;
    for (const std::uint64_t factor : factors) {
      if (bytes) bytes = checked_multiply(*bytes, factor);
    }
    if (bytes) bytes = checked_align_up(*bytes, 64);
    if (!bytes) fail_size(count);
    return static_cast<std::size_t>(*bytes);
  }
  static std::size_t pixel_bytes(const sample_format& format, std::size_t count) {
    return piece_bytes({format.height, format.width, format.channels, bits_of(format.type) / 8},
                       count);
  }
  static std::size_t label_bytes(const label_format& labels, std::size_t count) {
    return piece_bytes({labels.values(), sizeof(float)}, count);
  }
  static std::size_t index_bytes(std::size_t count) {
    return piece_bytes({sizeof(std::uint64_t)}, count);
  }

  sample_format format_;
  label_format label_format_;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
  std::span<std::byte> pixels_;
  float* labels_ = nullptr;
  std::uint64_t* indices_ = nullptr;
  std::vector<skipped_image> skipped_;
};

}  // namespace vggload
