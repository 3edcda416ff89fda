// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/page_resource.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// Memory for one image at a time: pieces are taken one after another and given back all at once.
/// Grows to what the largest image took and stays there, as one block, so that in steady state nothing is allocated. For
/// one thread at a time. Owns its blocks; no copies, no moves.
class scratch {
 public:
  static constexpr std::size_t alignment = 64;

  /// `limit_bytes`: of all pieces together. Allocates nothing yet.
  template <host_accessible_resource Resource = page_resource>
  explicit scratch(std::size_t limit_bytes = std::numeric_limits<std::size_t>::max(),
                   Resource resource = {})
      : limit_(limit_bytes),
        allocate_([resource](std::size_t bytes) mutable {
          return static_cast<std::byte*>(resource.allocate(bytes, alignment));
        }),
        deallocate_([resource](std::byte* address, std::size_t bytes) mutable {
          resource.deallocate(address, bytes, alignment);
        }) {}
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  ~scratch() { release(); }

  /// The next piece, uninitialised, at a multiple of `alignment`. Stays valid until `reset`.
  /// @throws out_of_memory with the numbers where the limit would be passed, or what the resource
  /// throws; what was taken before stays valid
  [[nodiscard]] std::span<std::byte> allocate(std::size_t bytes) {
    const auto rounded = checked_align_up(bytes, alignment);
    const std::size_t used = used_;
    if (!rounded || *rounded > limit_ || used > limit_ - *rounded) {
      throw out_of_memory(detail::fixed_text() << bytes << " bytes are needed beside " << used
                                               << ", the limit for one image is " << limit_,
                          {}, bytes);
    }
    const auto size = static_cast<std::size_t>(*rounded);
    if (blocks_.empty() || size > blocks_.back().bytes - offset_) add_block(size);
    std::byte* const address = blocks_.back().data + offset_;
    offset_ += size;
    used_ += size;
    peak_ = std::max(peak_, used_);
    return {address, bytes};
  }

  /// Takes all pieces back. Where several blocks were needed, the next piece finds one that is as large
  /// as all of them.
  void reset() noexcept {
    if (blocks_.size() > 1) release();
    offset_ = used_ = 0;
  }

  /// Bytes held.
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// The most bytes that were taken between two resets, the padding between pieces included.
  [[nodiscard]] std::size_t peak() const noexcept { return peak_; }

 private:
  // Blocks are a multiple of this: pieces are often but a few bytes larger than those before.
  static constexpr std::size_t granularity = std::size_t{64} << 10U;

  struct memory_block {
    std::byte* data;
    std::size_t bytes;
  };

  void add_block(std::size_t bytes) {
    // The first is as large as all that was ever taken, so that several become one.
    const std::size_t wanted = blocks_.empty() ? std::max(bytes, peak_) : bytes;
    const auto rounded = checked_align_up(wanted, granularity);
    blocks_.reserve(blocks_.size() + 1);
    const auto size = rounded ? static_cast<std::size_t>(*rounded) : wanted;
    blocks_.push_back({allocate_(size), size});
    capacity_ += size;
    offset_ = 0;
  }

  void release() noexcept {
    for (const memory_block& block : blocks_) deallocate_(block.data, block.bytes);
    blocks_.clear();
    capacity_ = offset_ = 0;
  }

  std::size_t limit_;
  std::function<std::byte*(std::size_t)> allocate_;
  std::function<void(std::byte*, std::size_t)> deallocate_;
  std::vector<memory_block> blocks_;
  std::size_t capacity_ = 0;
  std::size_t offset_ = 0;  // in the last block
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
};

}  // namespace vggload
