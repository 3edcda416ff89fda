// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <utility>

#include <vggload/core/error.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/feature_batch.hpp>

namespace vggload::network {

/// Features of images that are there already, in memory or in a mapped file: a sequence of single images, for
/// `shuffle` and `batch`. Every epoch is the same. A handle: copies share the memory.
class stored_features {
 public:
  using value_type = feature_sample;

  /// `features`: [images, format.features], `labels`: [images, format.classes], both row-major, kept alive by
  /// `owner`. Throws `error` where their sizes do not agree.
  stored_features(const feature_format& format, std::span<const float> features,
                  std::span<const float> labels, std::shared_ptr<const void> owner)
      : format_(format), features_(features), labels_(labels), owner_(std::move(owner)) {
    if (format.features > 0) size_ = features.size() / format.features;
    if (features.size() != size_ * format.features || labels.size() != size_ * format.classes) {
      throw error("stored features: " + std::to_string(features.size()) + " features and " +
                  std::to_string(labels.size()) +
                  " values of labels are not those of images with " +
                  std::to_string(format.features) + " and " + std::to_string(format.classes));
    }
  }

  /// Number of images.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const feature_format& format() const noexcept { return format_; }
  [[nodiscard]] std::span<const float> features() const noexcept { return features_; }
  [[nodiscard]] std::span<const float> labels() const noexcept { return labels_; }

  [[nodiscard]] auto element(std::uint64_t /*epoch*/, std::size_t i) const {
    return [this, i](feature_sample& into) {
      std::ranges::copy(features_.subspan(i * format_.features, format_.features),
                        into.features.begin());
      std::ranges::copy(labels_.subspan(i * format_.classes, format_.classes), into.label.begin());
    };
  }
  [[nodiscard]] auto operator[](std::size_t i) const { return element(epoch_, i); }

  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }
  void set_epoch(std::uint64_t epoch) noexcept { epoch_ = epoch; }
  void on_epoch_end() noexcept { ++epoch_; }

  [[nodiscard]] std::size_t storage_bytes(std::size_t count) const {
    return feature_batch::bytes(format_, count);
  }
  template <class Arena>
  [[nodiscard]] feature_batch make_storage(Arena& memory, std::size_t count) const {
    return {memory, format_, count};
  }

 private:
  feature_format format_;
  std::span<const float> features_;
  std::span<const float> labels_;
  std::shared_ptr<const void> owner_;
  std::size_t size_ = 0;
  std::uint64_t epoch_ = 0;
};

static_assert(epoch_sequence<stored_features> && planned_sequence<stored_features>);
static_assert(batch_storage<feature_batch>);

/// While features are made.
struct collect_options {
  /// Ends it with `cancelled_error`.
  std::stop_token stop = {};
  /// Called after each batch, with images.
  std::function<void(std::size_t done, std::size_t all)> progress = {};
  /// Where memory is entered, if anywhere.
  std::shared_ptr<memory_ledger> ledger = {};
};

namespace detail {

/// Makes all batches of the current epoch, one after another in the memory of one, and hands each to `use`. Throws
/// `error` where they are not of `count` images in all.
template <sequence S, class Use>
void for_each_batch(const S& batches, std::size_t count, const collect_options& options,
                    Use&& use) {
  arena<host_resource> memory(vggload::detail::value_place<S>::bytes(batches), {}, options.ledger,
                              "batch of features");
  vggload::detail::value_place<S> place(batches, memory);
  const auto fail = [count] {
    throw error("features: the batches do not have " + std::to_string(count) + " images in all");
  };
  std::size_t done = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(batches.size()); ++i) {
    if (options.stop.stop_requested()) throw cancelled_error("features: interrupted");
    place.clear();
    if (!read_element(batches, i, place.get())) continue;
    const feature_batch& batch = place.get();
    if (batch.size() > count - done) fail();
    use(batch, done);
    done += batch.size();
    if (options.progress) options.progress(done, count);
  }
  if (done != count) fail();
}

}  // namespace detail

/// The features of all `count` images of the current epoch of `batches`, in their order, kept in an arena. For
/// what every epoch looks at as it is: images for validation.
/// @throws error where the batches are not of `count` images; out_of_memory; what they throw; cancelled_error
template <sequence S>
[[nodiscard]] stored_features keep_features(const S& batches, const feature_format& format,
                                            std::size_t count,
                                            const collect_options& options = {}) {
  struct kept {
    arena<host_resource> memory{0};
    feature_batch batch;
  };
  const auto all = std::make_shared<kept>();
  all->memory = arena<host_resource>(feature_batch::bytes(format, count), {}, options.ledger,
                                     "kept features");
  all->batch = feature_batch(all->memory, format, count);
  all->batch.resize(count);
  detail::for_each_batch(
      batches, count, options, [&](const feature_batch& batch, std::size_t done) {
        std::ranges::copy(batch.features(),
                          all->batch.features().subspan(done * format.features).begin());
        std::ranges::copy(batch.labels(),
                          all->batch.labels().subspan(done * format.classes).begin());
      });
  const feature_batch& filled = all->batch;
  return {format, filled.features(), filled.labels(), all};
}

}  // namespace vggload::network
