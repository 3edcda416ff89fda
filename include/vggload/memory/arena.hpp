// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// A named piece of an arena: `bytes` from `offset` on.
struct arena_allocation {
  std::string name;
  std::size_t offset;
  std::size_t bytes;
};

/// One block of a resource, given out piece by piece from its start on and freed as a whole. It is
/// as large as its budget, no byte more, so one sizes it exactly beforehand; every piece has a
/// name. Owns the block: moves, never copies, and what it gave out lives as long as it does.
template <memory_resource Resource>
class arena {
 public:
  /// Addresses of pieces are multiples of this where nothing else is asked for: a cache line, and
  /// the widest vector.
  static constexpr std::size_t default_alignment = 64;

  /// Allocates the block. Throws what the resource throws.
  explicit arena(std::size_t budget_bytes, Resource resource = {})
      : resource_(std::move(resource)), capacity_(budget_bytes) {
    if (capacity_ > 0) {
      data_ = static_cast<std::byte*>(resource_.allocate(capacity_, default_alignment));
    }
  }

  arena(arena&& other) noexcept
      : resource_(std::move(other.resource_)),
        data_(std::exchange(other.data_, nullptr)),
        capacity_(std::exchange(other.capacity_, 0)),
        used_(std::exchange(other.used_, 0)),
        allocations_(std::move(other.allocations_)) {}
  arena& operator=(arena&& other) noexcept {
    arena moved(std::move(other));
    std::swap(resource_, moved.resource_);
    std::swap(data_, moved.data_);
    std::swap(capacity_, moved.capacity_);
    std::swap(used_, moved.used_);
    std::swap(allocations_, moved.allocations_);
    return *this;
  }
  ~arena() {
    if (data_ != nullptr) resource_.deallocate(data_, capacity_, default_alignment);
  }

  /// The next piece, uninitialised, at a multiple of `alignment` (a power of two up to
  /// `default_alignment`). Throws `out_of_memory` that names the piece and the budget where it does
  /// not fit; the arena is unchanged then.
  [[nodiscard]] memory_span<Resource::access> allocate(std::string_view name, std::size_t bytes,
                                                       std::size_t alignment = default_alignment) {
    const auto begin = checked_align_up(used_, alignment);
    if (!begin || !in_bounds(*begin, bytes, capacity_)) {
      throw out_of_memory(detail::fixed_text() << "tensor '" << name.substr(0, 200) << "' needs "
                                               << bytes << " bytes, but " << used_
                                               << " of the arena's " << capacity_ << " are in use",
                          name, bytes);
    }
    const auto offset = static_cast<std::size_t>(*begin);
    allocations_.push_back({std::string(name), offset, bytes});
    used_ = offset + bytes;
    return {data_ + offset, bytes};
  }

  /// The whole block, given out or not.
  [[nodiscard]] memory_span<Resource::access> block() const noexcept { return {data_, capacity_}; }
  /// Bytes of the block: the budget.
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// Bytes given out, the padding between pieces included.
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  /// The pieces, in order: what fills the memory.
  [[nodiscard]] std::span<const arena_allocation> allocations() const noexcept {
    return allocations_;
  }

 private:
  [[no_unique_address]] Resource resource_;
  std::byte* data_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::vector<arena_allocation> allocations_;
};

}  // namespace vggload
