// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <vggload/core/checked.hpp>
#include <vggload/io/file_mapping.hpp>
#include <vggload/io/input_file.hpp>

namespace vggload {

/// A file that can be read, and be looked at where the file system allows it. It is mapped when the
/// first view is asked for and not before, so that a load that only reads takes no address space
/// for the file. All const members may be called from several threads at once. Neither moves nor
/// copies (it has a mutex): a reader that moves holds it in a smart pointer.
class mapped_file {
 public:
  /// Throws what `input_file` throws.
  explicit mapped_file(input_file file) : file_(std::move(file)) {}
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;

  [[nodiscard]] const input_file& file() const noexcept { return file_; }
  [[nodiscard]] const std::string& path() const noexcept { return file_.path(); }
  [[nodiscard]] std::uint64_t size() const noexcept { return file_.size(); }

  /// As `input_file::read_at`.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const { file_.read_at(offset, out); }

  /// The bytes [offset, offset + count) in place, or nothing where the file cannot be mapped or
  /// they lie outside. Valid as long as this object is. What `file_mapping` says of files that
  /// shrink applies.
  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::uint64_t offset,
                                                               std::uint64_t count) const {
    if (!in_bounds(offset, count, file_.size())) return std::nullopt;
    const std::scoped_lock lock(mutex_);
    if (!mapping_) mapping_.emplace(file_);
    if (!*mapping_) return std::nullopt;
    return mapping_->bytes().subspan(static_cast<std::size_t>(offset),
                                     static_cast<std::size_t>(count));
  }

 private:
  input_file file_;
  mutable std::mutex mutex_;
  mutable std::optional<file_mapping> mapping_;  // none: not tried yet
};

}  // namespace vggload
