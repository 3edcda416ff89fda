// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include <vggload/core/error.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_decoder.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_workspace.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/data/sequence.hpp>
#include <vggload/memory/page_resource.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// What becomes of a decoded image: writes one sample of a batch, `format()` says how it looks. Depends on
/// the image, the epoch and the image's index in its folder only; several threads call it at once.
template <class T>
concept image_transform = requires(const T& transform, const image_view& decoded,
                                   std::uint64_t number, scratch& memory, image_sample& into) {
  { transform.format() } -> std::convertible_to<sample_format>;
  transform(decoded, number, number, memory, into);
};

/// What happens to an image that cannot be read or decoded.
enum class on_error {
  stop,  // its error goes to whoever asked for it
  skip,  // the epoch goes on without it, the batch lists it
};

namespace detail {

/// No fault of the image: the process has too many files open, or no memory.
[[nodiscard]] inline bool is_shortage(const error& failure) noexcept {
  const auto* io = dynamic_cast<const io_error*>(&failure);
  return io != nullptr && (io->code() == std::errc::too_many_files_open ||
                           io->code() == std::errc::too_many_files_open_in_system ||
                           io->code() == std::errc::not_enough_memory);
}

/// Makes the sample of a folder's image: `place(pixels)` writes what becomes of the decoded pixels. False where the
/// image is skipped, and listed. All that is wrong with an image names its path.
template <class Place>
bool make_sample(const image_folder& folder, std::size_t index, const decode_options& decode,
                 const label_format& labels, on_error policy, image_workspace& workspace,
                 image_sample& into, const Place& place) {
  const std::string path = folder.path(index);
  try {
    place(workspace.decoder.decode_file(path, decode, workspace.memory));
  } catch (const error& e) {
    std::string reason = e.what();
    const std::string shown = printable(path);
    const bool is_named = reason.starts_with(shown);
    if (!is_named) reason.insert(0, shown + ": ");
    if (policy == on_error::skip && !is_shortage(e)) {
      into.skipped.push_back({path, std::move(reason)});
      return false;
    }
    if (is_named) throw;
    throw error(reason);
  }
  into.index = index;
  labels.write(folder.label(index), into.label);
  return true;
}

}  // namespace detail

struct image_sequence_options {
  /// The colours are those that the transform's format has channels for.
  decode_options decode = {};
  label_mode labels = label_mode::categorical;
  vggload::on_error on_error = vggload::on_error::stop;
  /// The memory that one image may take while it is made, its file included.
  std::size_t scratch_limit = std::numeric_limits<std::size_t>::max();
};

/// The images of a folder, one by one: each is read, decoded and transformed straight into its place. Nothing is
/// kept; a thread needs the memory of the image that it makes.
template <image_transform Transform>
class image_sequence {
 public:
  using value_type = image_sample;

  /// `resource`: where the memory for making an image comes from; several threads may ask it at once.
  template <host_accessible_resource Resource = page_resource>
  image_sequence(image_folder folder, Transform transform,
                 const image_sequence_options& options = {}, Resource resource = {})
      : folder_(std::move(folder)),
        transform_(std::move(transform)),
        options_(options),
        workspaces_(options.scratch_limit, std::move(resource)) {
    options_.decode.colour = colours_of(transform_.format().channels);
  }

  [[nodiscard]] const image_folder& folder() const noexcept { return folder_; }
  /// Number of images.
  [[nodiscard]] std::size_t size() const noexcept { return folder_.size(); }

  /// Makes the `index`-th image as it is in that epoch: `element(epoch, index)(sample)`, from any thread. Gives
  /// false where the image was skipped.
  /// @throws error that names the path where it cannot be read or decoded and is not to be skipped
  [[nodiscard]] auto element(std::uint64_t epoch, std::size_t index) const {
    return [this, epoch, index](image_sample& into) { return make(epoch, index, into); };
  }
  [[nodiscard]] auto operator[](std::size_t index) const { return element(epoch_, index); }

  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }
  void set_epoch(std::uint64_t epoch) noexcept { epoch_ = epoch; }
  void on_epoch_end() noexcept { ++epoch_; }

  /// One epoch, see `element_range`.
  [[nodiscard]] auto begin() { return element_iterator<image_sequence>(*this); }
  [[nodiscard]] static std::default_sentinel_t end() noexcept { return {}; }

  [[nodiscard]] std::size_t storage_bytes(std::size_t count) const {
    return image_batch::bytes(transform_.format(), labels(), count);
  }
  template <class Arena>
  [[nodiscard]] image_batch make_storage(Arena& arena, std::size_t count) const {
    return {arena, transform_.format(), labels(), count};
  }

  /// Bytes that the threads hold for making images, beside the batches.
  [[nodiscard]] std::size_t scratch_bytes() const { return workspaces_.held_bytes(); }

 private:
  static colour_mode colours_of(std::size_t channels) {
    switch (channels) {
      case 1: return colour_mode::grey;
      case 3: return colour_mode::rgb;
      case 4: return colour_mode::rgba;
      default: throw error("images have 1, 3 or 4 channels, not " + std::to_string(channels));
    }
  }

  [[nodiscard]] label_format labels() const noexcept {
    return {options_.labels, folder_.classes().size()};
  }

  bool make(std::uint64_t epoch, std::size_t index, image_sample& into) const {
    const image_workspace_pool::lease workspace(workspaces_);
    return detail::make_sample(folder_, index, options_.decode, labels(), options_.on_error,
                               *workspace, into, [&, this](const image_view& decoded) {
                                 transform_(decoded, epoch, index, workspace->memory, into);
                               });
  }

  image_folder folder_;
  Transform transform_;
  image_sequence_options options_;
  image_workspace_pool workspaces_;
  std::uint64_t epoch_ = 0;
};

}  // namespace vggload
