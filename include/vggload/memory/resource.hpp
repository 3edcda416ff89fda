// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <span>

namespace vggload {

/// Who may touch a resource's memory.
enum class memory_access { host, device, host_and_device };

[[nodiscard]] constexpr bool is_host_accessible(memory_access access) noexcept {
  return access != memory_access::device;
}

/// A source of memory, a cheap handle that is copied around.
///
/// - `R::access` says in the type who may touch the memory.
/// - `allocate(bytes, alignment)`: uninitialised memory of at least one byte at a multiple of
///   `alignment`, a power of two. Throws std::bad_alloc or what derives from it.
/// - `deallocate(address, bytes, alignment)`: takes it back, with the numbers it was asked with.
template <class R>
concept memory_resource = std::copyable<R> &&
    std::same_as<const memory_access, decltype(R::access)> &&
    requires(R& resource, void* address, std::size_t bytes, std::size_t alignment) {
  { resource.allocate(bytes, alignment) } -> std::same_as<void*>;
  { resource.deallocate(address, bytes, alignment) }
  noexcept->std::same_as<void>;
};

/// A resource whose memory host code may read and write.
template <class R>
concept host_accessible_resource = memory_resource<R> && is_host_accessible(R::access);

/// A resource that gives out addresses first and memory later: for a block whose size is not known
/// beforehand. `allocate` only reserves; memory is behind an address from `commit` on.
///
/// - `commit(block, committed, wanted)`: puts memory behind the first `wanted` bytes of the block at
///   least; the first `committed` have it already. Returns how many have it now, a whole number of the
///   resource's units or the whole block. Throws std::bad_alloc or what derives from it; nothing has changed then.
/// - `deallocate(block, bytes, alignment)` takes back addresses and memory.
template <class R>
concept reserving_resource = memory_resource<R> &&
    requires(R& resource, void* block, std::size_t committed, std::size_t wanted) {
  { resource.commit(block, committed, wanted) } -> std::same_as<std::size_t>;
};

/// The address and size of memory that belongs to somebody else, with who may touch it in the type:
/// becomes a std::span by itself where the host may, and does not compile as one where it may not.
template <memory_access Access>
class memory_span {
 public:
  constexpr memory_span() = default;
  constexpr memory_span(std::byte* data, std::size_t size) noexcept : data_(data), size_(size) {}

  [[nodiscard]] constexpr std::byte* data() const noexcept { return data_; }
  [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }

  constexpr operator std::span<std::byte>() const noexcept  // NOLINT(google-explicit-constructor)
      requires(is_host_accessible(Access)) {
    return {data_, size_};
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace vggload
