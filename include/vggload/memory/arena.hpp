// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// A named piece of an arena: `bytes` from `offset` on.
struct arena_allocation {
  std::string name;
  std::string layer;
  memory_role role;
  std::size_t offset;
  std::size_t bytes;
};

/// One block of a resource, given out piece by piece from its start on and freed as a whole. It is
/// as large as its budget, no byte more, so one sizes it exactly beforehand; every piece has a
/// name. Over a `reserving_resource` the budget is a range of addresses, and memory comes with the
/// pieces. Owns the block: moves, never copies, and what it gave out lives as long as it does.
template <memory_resource Resource>
class arena {
 public:
  /// Addresses of pieces are multiples of this where nothing else is asked for: a cache line, and
  /// the widest vector.
  static constexpr std::size_t default_alignment = 64;

  /// Allocates the block. Throws what the resource throws. Where there is a ledger, the block is
  /// entered under `name`, and so is each piece.
  explicit arena(std::size_t budget_bytes, Resource resource = {},
                 std::shared_ptr<memory_ledger> ledger = nullptr, std::string_view name = "arena")
      : resource_(std::move(resource)), capacity_(budget_bytes) {
    if (capacity_ == 0) return;
    data_ = static_cast<std::byte*>(resource_.allocate(capacity_, default_alignment));
    entry_ = ledger_entry(std::move(ledger), name, kind_of(Resource::access),
                          reinterpret_cast<std::uintptr_t>(data_), capacity_);
  }

  arena(arena&& other) noexcept
      : resource_(std::move(other.resource_)),
        data_(std::exchange(other.data_, nullptr)),
        capacity_(std::exchange(other.capacity_, 0)),
        used_(std::exchange(other.used_, 0)),
        committed_(std::exchange(other.committed_, 0)),
        allocations_(std::move(other.allocations_)),
        entry_(std::move(other.entry_)) {}
  arena& operator=(arena&& other) noexcept {
    arena moved(std::move(other));
    std::swap(resource_, moved.resource_);
    std::swap(data_, moved.data_);
    std::swap(capacity_, moved.capacity_);
    std::swap(used_, moved.used_);
    std::swap(committed_, moved.committed_);
    std::swap(allocations_, moved.allocations_);
    std::swap(entry_, moved.entry_);
    return *this;
  }
  ~arena() {
    entry_ = {};  // before another block can have its address
    if (data_ != nullptr) resource_.deallocate(data_, capacity_, default_alignment);
  }

  /// The next piece, uninitialised, at a multiple of `alignment` (a power of two up to
  /// `default_alignment`). Throws `out_of_memory` that names the piece and the budget, with a report
  /// of what is in the arena, where it does not fit; the arena is unchanged then, as it is when the
  /// resource cannot commit.
  [[nodiscard]] memory_span<Resource::access> allocate(const memory_tag& tag, std::size_t bytes,
                                                       std::size_t alignment = default_alignment) {
    const auto begin = checked_align_up(used_, alignment);
    if (!begin || !in_bounds(*begin, bytes, capacity_)) {
      fail(tag, bytes,
           detail::fixed_text() << "tensor '" << tag.name.substr(0, 200) << "' needs " << bytes
                                << " bytes, but " << used_ << " of the arena's " << capacity_
                                << " are in use");
    }
    const auto offset = static_cast<std::size_t>(*begin);
    allocations_.push_back(
        {std::string(tag.name), std::string(tag.layer), tag.role, offset, bytes});
    if constexpr (reserving_resource<Resource>) commit(tag, offset + bytes, bytes);
    used_ = offset + bytes;
    entry_.allocated(tag, offset, bytes);
    return {data_ + offset, bytes};
  }

  /// The whole block, given out or not.
  [[nodiscard]] memory_span<Resource::access> block() const noexcept { return {data_, capacity_}; }
  /// Bytes of the block that have memory behind them: all of them, but over a `reserving_resource`.
  [[nodiscard]] std::size_t committed() const noexcept {
    return reserving_resource<Resource> ? committed_ : capacity_;
  }
  /// Bytes of the block: the budget.
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// Bytes given out, the padding between pieces included.
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  /// The pieces, in order: what fills the memory.
  [[nodiscard]] std::span<const arena_allocation> allocations() const noexcept {
    return allocations_;
  }

 private:
  void commit(const memory_tag& tag, std::size_t wanted,
              std::size_t bytes) requires(reserving_resource<Resource>) {
    if (wanted <= committed_) return;
    try {
      committed_ = resource_.commit(data_, committed_, wanted);
    } catch (const std::bad_alloc& e) {
      allocations_.pop_back();
      fail(tag, bytes,
           detail::fixed_text() << "tensor '" << tag.name.substr(0, 200) << "' needs " << bytes
                                << " bytes: " << e.what() << "; the arena has " << committed_
                                << " of the " << capacity_ << " that it reserved");
    } catch (...) {
      allocations_.pop_back();
      throw;
    }
  }

  [[noreturn]] void fail(const memory_tag& tag, std::size_t bytes,
                         const detail::fixed_text& message) {
    entry_.out_of_memory(tag, bytes, message.view());
    throw out_of_memory(message, tag.name, bytes, detail::try_report([&, this] {
                          memory_report report;
                          report.tensor = tag.name;
                          report.requested = bytes;
                          report.place = name_of(kind_of(Resource::access));
                          report.place += " memory of the arena";
                          report.limit = capacity_;
                          if (!reserving_resource<Resource>) {  // there the block is but addresses
                            report.total = capacity_;
                            report.free = report.largest_free = capacity_ - used_;
                          }
                          std::vector<sized_tensor> live;
                          for (const arena_allocation& piece : allocations_) {
                            live.push_back({piece.name, piece.layer, piece.role, piece.bytes});
                          }
                          report.live = tensor_summary(std::move(live));
                          return report;
                        }));
  }

  [[no_unique_address]] Resource resource_;
  std::byte* data_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::size_t committed_ = 0;
  std::vector<arena_allocation> allocations_;
  ledger_entry entry_;
};

}  // namespace vggload
