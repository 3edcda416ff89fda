// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/colour.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/image_workspace.hpp>
#include <vggload/data/keras_augmentation.hpp>
#include <vggload/data/numpy_random.hpp>
#include <vggload/data/resample.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/page_resource.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// The arguments of Keras' `ImageDataGenerator` and its `flow_from_directory`, with their defaults.
struct keras_batches_options {
  image_size target{256, 256};
  colour_mode colour = colour_mode::rgb;
  resampling_filter interpolation = resampling_filter::nearest;  // where an image has another size
  label_mode labels = label_mode::categorical;
  std::size_t batch_size = 32;
  bool shuffle = true;
  std::uint32_t seed = 0;  // Keras takes one from the system where it is told none
  vggload::augmentation augmentation = {};
  vggload::normalisation normalisation = {};
  vggload::on_error on_error = vggload::on_error::stop;
  /// An image of more pixels is refused (decode_options).
  std::uint64_t pixel_limit = decode_options{}.pixel_limit;
  /// The memory that one image may take while it is made, its file included.
  std::size_t scratch_limit = std::numeric_limits<std::size_t>::max();
};

/// The batches of Keras 3.15's `flow_from_directory(seed=...)`, bit for bit, in the order of its `[]`: for each epoch all
/// batches from the first to the last, then `on_epoch_end()`. Any batch of any epoch can be made by itself, from any
/// thread: Keras seeds NumPy anew for each batch, and how often it draws depends on no pixel.
///
/// f32, channels last. An image that is skipped is missing from its batch; all others are as they would be with it.
class keras_batches {
 public:
  using value_type = image_batch;

  /// `resource`: where the memory for making an image comes from; several threads may ask it at once.
  /// @throws error where the options make no sense (keras_augmentation), or there are more than 2^32 - 1 images
  template <host_accessible_resource Resource = page_resource>
  explicit keras_batches(image_folder folder, const keras_batches_options& options = {},
                         Resource resource = {})
      : folder_(std::move(folder)),
        options_(options),
        augmentation_({options.target.height, options.target.width, channels_of(options.colour)},
                      options.augmentation, options.normalisation),
        workspaces_(options.scratch_limit, std::move(resource)),
        orders_(std::make_shared<remembered_orders>()) {
    if (options_.batch_size == 0) throw error("a batch has one image at least");
    if (folder_.size() > std::numeric_limits<std::uint32_t>::max()) {
      throw error(printable(folder_.root()) + ": " + std::to_string(folder_.size()) +
                  " images are more than can be shuffled as NumPy does it");
    }
  }

  [[nodiscard]] const image_folder& folder() const noexcept { return folder_; }
  [[nodiscard]] std::uint32_t seed() const noexcept { return options_.seed; }
  /// Number of batches, the last of which may be a short one.
  [[nodiscard]] std::size_t size() const noexcept {
    return folder_.size() / options_.batch_size + (folder_.size() % options_.batch_size != 0);
  }

  /// Makes a batch of that epoch: `element(epoch, number)(batch)`, from any thread.
  /// @throws error that names the path where an image cannot be read or decoded and is not to be skipped, or
  /// where seed and number of the batch pass 2^32 - 1, which NumPy refuses too
  [[nodiscard]] auto element(std::uint64_t epoch, std::size_t number) const {
    return [this, epoch, number](image_batch& into) { make(epoch, number, into); };
  }
  [[nodiscard]] auto operator[](std::size_t number) const { return element(epoch_, number); }

  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }
  void set_epoch(std::uint64_t epoch) noexcept { epoch_ = epoch; }
  void on_epoch_end() noexcept { ++epoch_; }

  /// One epoch, see `element_range`.
  [[nodiscard]] auto begin() { return element_iterator<keras_batches>(*this); }
  [[nodiscard]] static std::default_sentinel_t end() noexcept { return {}; }

  [[nodiscard]] std::size_t storage_bytes(std::size_t count) const {
    return count * image_batch::bytes(augmentation_.format(), labels(), options_.batch_size);
  }
  template <class Arena>
  [[nodiscard]] std::vector<image_batch> make_storage(Arena& arena, std::size_t count) const {
    std::vector<image_batch> batches;
    batches.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      batches.emplace_back(arena, augmentation_.format(), labels(), options_.batch_size);
    }
    return batches;
  }

  /// Which image of the folder is where in an epoch. Shared with all that ask for the same; the last epochs, one even
  /// and one odd, are remembered.
  [[nodiscard]] std::shared_ptr<const std::vector<std::uint32_t>> order(std::uint64_t epoch) const {
    const std::lock_guard lock(orders_->mutex);
    auto& [remembered, order] = orders_->of[epoch % 2];
    if (!order || remembered != epoch) {
      order = std::make_shared<const std::vector<std::uint32_t>>(make_order(epoch));
      remembered = epoch;
    }
    return order;
  }

  /// Bytes that the threads hold for making images, beside the batches.
  [[nodiscard]] std::size_t scratch_bytes() const { return workspaces_.held_bytes(); }

 private:
  struct remembered_orders {
    std::mutex mutex;
    std::array<std::pair<std::uint64_t, std::shared_ptr<const std::vector<std::uint32_t>>>, 2> of;
  };

  [[nodiscard]] label_format labels() const noexcept {
    return {options_.labels, folder_.classes().size()};
  }

  [[nodiscard]] std::size_t images_of(std::size_t number) const noexcept {
    return std::min(options_.batch_size, folder_.size() - number * options_.batch_size);
  }

  /// The generator as Keras has it when it begins to draw for the images of a batch.
  [[nodiscard]] numpy_random random_of(std::uint64_t epoch, std::size_t number) const {
    constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
    const std::uint64_t left = most - options_.seed;
    if (epoch > left / size() || number > left - epoch * size()) {
      throw error("batch " + std::to_string(number) + " of epoch " + std::to_string(epoch) +
                  " has a seed behind 4294967295, NumPy's last: the first was " +
                  std::to_string(options_.seed));
    }
    numpy_random random(static_cast<std::uint32_t>(options_.seed + epoch * size() + number));
    // Keras finds out in its first batch that it has no order yet, after it has seeded.
    if (options_.shuffle && epoch == 0 && number == 0) {
      (void)random.permutation(static_cast<std::uint32_t>(folder_.size()));
    }
    return random;
  }

  [[nodiscard]] std::vector<std::uint32_t> make_order(std::uint64_t epoch) const {
    const auto images = static_cast<std::uint32_t>(folder_.size());
    if (!options_.shuffle || images == 0) {
      std::vector<std::uint32_t> order(images);
      std::iota(order.begin(), order.end(), std::uint32_t{0});
      return order;
    }
    if (epoch == 0) return numpy_random(options_.seed).permutation(images);
    // At an epoch's end Keras goes on with the numbers that the last batch has left.
    const std::size_t last = size() - 1;
    numpy_random random = random_of(epoch - 1, last);
    for (std::size_t i = 0; i < images_of(last); ++i) (void)augmentation_.draw(random);
    return random.permutation(images);
  }

  void make(std::uint64_t epoch, std::size_t number, image_batch& into) const {
    const auto order = this->order(epoch);
    numpy_random random = random_of(epoch, number);
    const image_workspace_pool::lease workspace(workspaces_);
    into.clear();
    for (std::size_t i = 0; i < images_of(number); ++i) {
      const random_transform drawn = augmentation_.draw(random);
      const std::size_t index = (*order)[number * options_.batch_size + i];
      image_sample sample = into[into.size()];
      workspace->memory.reset();
      if (make_image(index, drawn, *workspace, sample)) into.resize(into.size() + 1);
    }
  }

  bool make_image(std::size_t index, const random_transform& drawn, image_workspace& workspace,
                  image_sample& into) const {
    const decode_options decode{.colour = options_.colour, .pixel_limit = options_.pixel_limit};
    const auto place = [&, this](const image_view& decoded) {
      const image_view resized =
          resize(decoded, options_.target, options_.interpolation, workspace.memory);
      const std::span<float> values(reinterpret_cast<float*>(into.pixels.data()),
                                    augmentation_.format().values());
      augmentation_(resized, drawn, workspace.memory, values);
    };
    return detail::make_sample(folder_, index, decode, labels(), options_.on_error, workspace, into,
                               place);
  }

  image_folder folder_;
  keras_batches_options options_;
  keras_augmentation augmentation_;
  image_workspace_pool workspaces_;
  std::shared_ptr<remembered_orders> orders_;
  std::uint64_t epoch_ = 0;
};

}  // namespace vggload
