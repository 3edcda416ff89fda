// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <utility>

#include <sys/mman.h>

#include <vggload/io/input_file.hpp>

namespace vggload {

/// A read-only memory mapping of a whole file. Moves, never copies; the bytes live as long as it
/// does, the `input_file` may be closed before.
///
/// What looking through a mapping requires: the file must not be made shorter while the mapping is
/// in use, or the access past the new end raises SIGBUS. Who cannot promise that reads
/// (`input_file::read_at`) instead of looking.
class file_mapping {
 public:
  /// Maps nothing.
  file_mapping() = default;

  /// Maps the file. The result is empty (`operator bool`) where the system refuses: some network
  /// and FUSE file systems cannot map, and an address space limit can be too low. Readers then fall
  /// back to reads.
  explicit file_mapping(const input_file& file) noexcept {
    if (file.size() == 0 || file.size() > std::numeric_limits<std::size_t>::max()) return;
    const auto size = static_cast<std::size_t>(file.size());
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (address == MAP_FAILED) return;
    bytes_ = {static_cast<const std::byte*>(address), size};
  }

  file_mapping(file_mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  file_mapping& operator=(file_mapping&& other) noexcept {
    file_mapping moved(std::move(other));
    std::swap(bytes_, moved.bytes_);
    return *this;
  }
  ~file_mapping() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  [[nodiscard]] explicit operator bool() const noexcept { return !bytes_.empty(); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace vggload
