// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
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
#include <vggload/data/image_batch.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>
#include <vggload/network/feature_batch.hpp>
#include <vggload/network/forward.hpp>
#include <vggload/network/streamed_weights.hpp>
#include <vggload/vgg16/footprint.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/weights.hpp>

namespace vggload::network {

struct frozen_base_options {
  /// Images that go through the network at once: what its activations are planned for. Any number of images is
  /// done in groups of this.
  std::size_t batch = 1;
  /// Of an image, in pixels, at least 32.
  std::size_t height = 224;
  std::size_t width = 224;
  /// Of the last maps (Keras' `pooling="avg"` and `"max"`).
  global_pooling pooling = global_pooling::none;
  /// 0: one for each processor.
  unsigned threads = 0;
  /// Where the buffers are entered, if anywhere.
  std::shared_ptr<memory_ledger> ledger = {};
};

/// What a frozen base takes beside its weights, in bytes.
struct frozen_base_footprint {
  std::uint64_t activations_bytes = 0;
  std::uint64_t workspace_bytes = 0;
  /// A group of images, for the last ones that do not fill one.
  std::uint64_t staging_bytes = 0;
  [[nodiscard]] std::uint64_t total() const noexcept {
    return activations_bytes + workspace_bytes + staging_bytes;
  }
};

/// Of the features of one image: [height / 32, width / 32, 512], or [1, 1, 512] where they are pooled.
[[nodiscard]] inline shape feature_shape(const frozen_base_options& options) {
  const std::uint64_t channels = vgg16::layers[vgg16::conv_layers - 1].outputs;
  if (options.pooling != global_pooling::none) return {1, 1, channels};
  return {options.height / 32, options.width / 32, channels};
}

/// By arithmetic alone. Throws what `vgg16::plan` throws.
[[nodiscard]] inline frozen_base_footprint plan_frozen_base(const frozen_base_options& options) {
  const vgg16::footprint pass = vgg16::plan({.batch = options.batch,
                                             .height = options.height,
                                             .width = options.width,
                                             .include_top = false,
                                             .threads = pass_threads(options.threads)});
  // Smaller than the activations, which are in the plan: no overflow.
  const std::uint64_t staging =
      std::uint64_t{options.batch} * options.height * options.width * 3 * 4;
  return {pass.activations_bytes, pass.workspace_bytes, options.batch > 1 ? staging : 0};
}

/// VGG16's convolutions as they are: images in, features out. Runs forward only and keeps no activation for a
/// gradient, so it takes what inference takes: one arena, planned beforehand. Neither moves nor copies.
class frozen_base {
 public:
  /// The weights are looked at, and must outlive this. Throws `error` where they are not those of the 13
  /// convolutions, and what `forward_pass` throws.
  frozen_base(const vgg16::weights& weights, const frozen_base_options& options)
      : frozen_base(weights, weights.layers().size(), options) {}

  /// The same with weights that are read in each pass, where there is no room to load them.
  frozen_base(const streamed_weights& weights, const frozen_base_options& options)
      : frozen_base(weights, weights.layers().layers.size(), options) {}

  frozen_base(const frozen_base&) = delete;
  frozen_base& operator=(const frozen_base&) = delete;
  ~frozen_base() = default;

  [[nodiscard]] const frozen_base_options& options() const noexcept { return options_; }
  /// What an image has to be: FP32, [height, width, 3].
  [[nodiscard]] sample_format image_format() const noexcept {
    return {.height = options_.height, .width = options_.width};
  }
  /// Values of the features of one image, see `feature_shape`.
  [[nodiscard]] std::size_t feature_values() const {
    return static_cast<std::size_t>(pass_.output_shape().elements().value() / options_.batch);
  }

  /// The features of `count` images, [count, height, width, 3], row-major, into [count, feature_values()]. One call at
  /// a time. Throws `error` where a span has another size, and what the pass throws.
  void operator()(std::span<const float> images, std::size_t count, std::span<float> features) {
    check_size("images", images.size(), count, image_values());
    check_size("features", features.size(), count, feature_values());
    for (std::size_t first = 0; first < count; first += options_.batch) {
      const std::size_t here = std::min(options_.batch, count - first);
      const std::span<const float> group =
          images.subspan(first * image_values(), here * image_values());
      const std::span<const float> made = pass_(here < options_.batch ? filled_up(group) : group);
      std::copy_n(made.data(), here * feature_values(), features.data() + first * feature_values());
    }
  }

 private:
  template <class Weights>
  frozen_base(const Weights& weights, std::size_t layers, const frozen_base_options& options)
      : options_(options),
        pass_((check_layers(layers), weights), {.batch = options.batch,
                                                .height = options.height,
                                                .width = options.width,
                                                .pooling = options.pooling,
                                                .threads = options.threads,
                                                .ledger = options.ledger}) {
    if (options.batch == 1) return;
    memory_ = arena<host_resource>(options.batch * image_values() * sizeof(float), {},
                                   options.ledger, "frozen base");
    group_ = reinterpret_cast<float*>(
        memory_.allocate({"group of images", {}, memory_role::staging}, memory_.capacity()).data());
  }

  static void check_layers(std::size_t layers) {
    if (layers == vgg16::conv_layers) return;
    throw error("frozen base: the weights have " + std::to_string(layers) + " layers, not the " +
                std::to_string(vgg16::conv_layers) + " convolutions (load without the top)");
  }

  [[nodiscard]] std::size_t image_values() const noexcept {
    return options_.height * options_.width * 3;
  }
  static void check_size(const char* what, std::size_t size, std::size_t count,
                         std::size_t values) {
    // As a quotient: a product of the caller's numbers may not fit.
    if (size % values == 0 && size / values == count) return;
    throw error(std::string("frozen base: the ") + what + " have " + std::to_string(size) +
                " values, not " + std::to_string(count) + " times " + std::to_string(values));
  }

  /// A whole group that begins with these images: the pass has one size. What follows is black, and not looked at.
  std::span<const float> filled_up(std::span<const float> images) {
    float* const rest = std::copy(images.begin(), images.end(), group_);
    const std::size_t all = options_.batch * image_values();
    std::fill(rest, group_ + all, 0.0F);
    return {group_, all};
  }

  frozen_base_options options_;
  forward_pass pass_;
  arena<host_resource> memory_{0};
  float* group_ = nullptr;
};

/// What Keras' `base.trainable = False` asks for: the convolutions of a loaded model as a base that is not
/// trained. The model, loaded without the top, must outlive it. Throws what `frozen_base` throws.
template <host_accessible_resource Resource>
[[nodiscard]] std::unique_ptr<frozen_base> freeze(const vgg16::model<Resource>& model,
                                                  const frozen_base_options& options = {}) {
  return std::make_unique<frozen_base>(model.weights(), options);
}
template <host_accessible_resource Resource>
std::unique_ptr<frozen_base> freeze(const vgg16::model<Resource>&&,
                                    const frozen_base_options& options = {}) = delete;

/// A sequence of batches of features, see `features`.
template <class Base>
class feature_sequence : public adapted_sequence<feature_sequence<Base>, Base> {
  using adapted = adapted_sequence<feature_sequence<Base>, Base>;
  using typename adapted::base_type;
  static_assert(std::same_as<typename base_type::value_type, image_batch>,
                "features are made of batches of images: images | batch(n) | features(base)");

 public:
  using value_type = feature_batch;

  feature_sequence(Base&& base, frozen_base& frozen, std::shared_ptr<memory_ledger> ledger)
      : adapted(std::forward<Base>(base)),
        frozen_(&frozen),
        images_(std::make_unique<image_place>(this->base(), std::move(ledger))) {
    const image_batch& batch = images_->place.get();
    if (batch.format() != frozen.image_format()) {
      const shape found = batch.format().shape(1);
      throw error("features: the images are " + std::string(name_of(batch.format().type)) + " " +
                  to_string(found) + ", not F32 " + to_string(frozen.image_format().shape(1)));
    }
    const shape labels = batch.labels().shape();
    if (labels.rank() != 2 || labels[1] == 0) {
      throw error("features: the images' labels are " + to_string(labels) +
                  ", not a row of classes for each (label_mode::categorical)");
    }
    format_ = {frozen.feature_values(), static_cast<std::size_t>(labels[1])};
  }

  /// Batches of an epoch.
  [[nodiscard]] std::size_t size() const { return this->base_size(); }
  [[nodiscard]] const feature_format& format() const noexcept { return format_; }
  /// Bytes of the batch of images that goes through the base.
  [[nodiscard]] std::size_t image_bytes() const noexcept { return images_->memory.capacity(); }

  /// Makes the batch of images and runs the base over it. One after another: the base's memory is there once. A batch
  /// that lost all of its images is skipped.
  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, feature_batch& value) const {
    const std::scoped_lock lock(images_->mutex);
    images_->place.clear();
    image_batch& batch = images_->place.get();
    if (!read_element(this->base(), epoch, i, batch) || batch.size() == 0) return false;
    value.resize(batch.size());
    const tensor_view pixels = batch.images();
    (*frozen_)(pixels.values<float>(), batch.size(), value.features());
    const tensor_view labels = batch.labels();
    std::ranges::copy(labels.values<float>(), value.labels().begin());
    return true;
  }

  /// Bytes that `n` batches take in an arena. Throws `error` where the number does not fit.
  [[nodiscard]] std::size_t storage_bytes(std::size_t n) const {
    const auto all = checked_multiply(feature_batch::bytes(format_, capacity()), n);
    if (!all)
      throw error("features: the bytes of " + std::to_string(n) +
                  " batches do not fit into a number");
    return static_cast<std::size_t>(*all);
  }
  template <class Arena>
  [[nodiscard]] std::vector<feature_batch> make_storage(Arena& memory, std::size_t n) const {
    std::vector<feature_batch> batches;
    batches.reserve(n);
    for (std::size_t i = 0; i < n; ++i) batches.emplace_back(memory, format_, capacity());
    return batches;
  }

 private:
  /// The one batch of images, in its own arena. Stays where it is, since batches refer to it.
  struct image_place {
    image_place(const base_type& values, std::shared_ptr<memory_ledger> ledger)
        : memory(vggload::detail::value_place<base_type>::bytes(values), {}, std::move(ledger),
                 "images"),
          place(values, memory) {}

    arena<host_resource> memory;
    vggload::detail::value_place<base_type> place;
    std::mutex mutex;
  };

  [[nodiscard]] std::size_t capacity() const noexcept { return images_->place.get().capacity(); }

  frozen_base* frozen_;
  std::unique_ptr<image_place> images_;
  feature_format format_;
};

/// Makes batches of images batches of features: `images | batch(32) | features(base)`. Refers to `base`, and holds one
/// batch of images in an arena that is entered in `ledger`.
/// @throws error where the images are not FP32 of the base's size with categorical labels; out_of_memory
[[nodiscard]] inline auto features(frozen_base& base,
                                   std::shared_ptr<memory_ledger> ledger = nullptr) {
  return sequence_adaptor{[&base, ledger = std::move(ledger)]<class S>(S&& values) {
    return feature_sequence<S>(std::forward<S>(values), base, ledger);
  }};
}

}  // namespace vggload::network
