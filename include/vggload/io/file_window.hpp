// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/io/input_file.hpp>

namespace vggload::detail {

/// A buffer through which an index is read piece by piece: one read of the file for many small
/// numbers, never through a mapping.
class file_window {
 public:
  /// `capacity` bytes are read at a time, or what the file has.
  file_window(const input_file& file, std::size_t capacity)
      : file_(&file),
        buffer_(static_cast<std::size_t>(std::min<std::uint64_t>(capacity, file.size()))) {}

  /// The bytes from `offset` on that the window holds: `least` of them or more. The file must have
  /// these, and `least` must not exceed the capacity. Valid until the next call. Throws `io_error`.
  [[nodiscard]] std::span<const std::byte> from(std::uint64_t offset, std::size_t least) {
    if (offset < begin_ || !in_bounds(offset - begin_, least, held_)) {
      held_ = 0;
      const auto wanted = std::min<std::uint64_t>(buffer_.size(), file_->size() - offset);
      const auto bytes = std::span(buffer_).first(static_cast<std::size_t>(wanted));
      file_->read_at(offset, bytes);
      begin_ = offset;
      held_ = bytes.size();
    }
    const auto skipped = static_cast<std::size_t>(offset - begin_);
    return std::span<const std::byte>(buffer_).subspan(skipped, held_ - skipped);
  }

 private:
  const input_file* file_;
  std::vector<std::byte> buffer_;
  std::uint64_t begin_ = 0;
  std::size_t held_ = 0;
};

}  // namespace vggload::detail
