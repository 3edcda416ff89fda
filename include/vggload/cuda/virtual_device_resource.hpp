// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/cuda/memory_api.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload::cuda {

/// Memory of a device whose addresses come first, by the driver's virtual memory management: for a
/// block that grows to a size that is not known beforehand, without ever being copied. The device is
/// the one that is current when the addresses are reserved; other devices do not reach the memory.
///
/// What is mapped where has to be known when the block is given back, because the driver unmaps only
/// what was mapped at once. The handles that were copied from one another share that knowledge, and
/// are equal; one that was made anew does not know their blocks. Any thread may use any handle.
/// `virtual_device_resource` (cuda/resources.hpp) is this over CUDA itself.
template <memory_api Api>
class basic_virtual_device_resource {
 public:
  static constexpr memory_access access = memory_access::device;

  basic_virtual_device_resource() = default;
  explicit basic_virtual_device_resource(Api api) : api_(std::move(api)) {}

  /// Reserves addresses for `bytes`, at least one, at a multiple of the device's granularity
  /// (2 MiB). Nothing is behind them before they are committed. Does not wait for work.
  /// @throws out_of_memory with the number of bytes, where there are no more addresses
  /// @throws unsupported_error where `alignment` is more than the granularity or no power of two
  /// @throws Api::call_error for every other refusal: no device, or one without virtual memory
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    require_context(bytes);
    block made;
    require(api_.get_current_device(made.device), "cudaGetDevice", bytes);
    require(api_.get_granularity(made.granularity, made.device), "cuMemGetAllocationGranularity",
            bytes);
    detail::require_alignment(alignment, made.granularity, "cuMemAddressReserve");
    const auto reserved = checked_align_up(std::max<std::size_t>(bytes, 1), made.granularity);
    if (!reserved) refuse(Api::no_memory, "cuMemAddressReserve", bytes, "addresses for device");
    made.reserved = *reserved;
    void* address = nullptr;
    const auto status = api_.reserve_addresses(address, made.reserved, made.granularity);
    if (status != Api::success) {
      refuse(status, "cuMemAddressReserve", bytes, "addresses for device");
    }
    try {
      const std::scoped_lock lock(blocks_->mutex);
      blocks_->of.emplace(address, std::move(made));
    } catch (...) {
      detail::forget_refusal(api_, api_.free_addresses(address, *reserved));
      throw;
    }
    return address;
  }

  /// Puts memory, uninitialised, behind the first `wanted` bytes of the block at least, of which the
  /// first `committed` have it already, and returns how many have it now: a multiple of the
  /// granularity. May wait for work of the device; the memory is ready on every stream at once.
  /// @throws out_of_memory with the number of bytes and what is free, where the device has no more;
  /// nothing has changed then
  /// @throws Api::call_error for every other refusal; nothing has changed then
  [[nodiscard]] std::size_t commit(void* address, std::size_t committed, std::size_t wanted) {
    if (wanted <= committed) return committed;
    const std::scoped_lock lock(blocks_->mutex);
    block& grown = blocks_->of.at(address);
    const std::size_t now =
        (wanted + grown.granularity - 1) / grown.granularity * grown.granularity;
    const std::size_t bytes = now - committed;
    grown.mappings.reserve(grown.mappings.size() + 1);
    require_context(bytes);

    typename Api::memory_handle memory{};
    require(api_.create_memory(memory, bytes, grown.device), "cuMemCreate", bytes);
    std::byte* const begin = static_cast<std::byte*>(address) + committed;
    const auto mapped = api_.map_memory(begin, bytes, memory);
    // A mapping keeps its memory without the handle.
    detail::forget_refusal(api_, api_.release_memory(memory));
    require(mapped, "cuMemMap", bytes);
    const auto allowed = api_.allow_access(begin, bytes, grown.device);
    if (allowed != Api::success) {
      detail::forget_refusal(api_, api_.unmap_memory(begin, bytes));
      require(allowed, "cuMemSetAccess", bytes);
    }
    grown.mappings.push_back(bytes);
    return now;
  }

  /// Takes back addresses and memory. Does not wait: no work may still use them.
  void deallocate(void* address, std::size_t /*bytes*/, std::size_t /*alignment*/) noexcept {
    block freed;
    {
      const std::scoped_lock lock(blocks_->mutex);
      freed = std::move(blocks_->of.at(address));  // ends the program where the block is not ours
      blocks_->of.erase(address);
    }
    detail::forget_refusal(api_, api_.free_device(nullptr));  // as require_context does
    auto* begin = static_cast<std::byte*>(address);
    for (const std::size_t bytes : freed.mappings) {
      detail::forget_refusal(api_, api_.unmap_memory(begin, bytes));
      begin += bytes;
    }
    detail::forget_refusal(api_, api_.free_addresses(address, freed.reserved));
  }

  friend bool operator==(const basic_virtual_device_resource&,
                         const basic_virtual_device_resource&) = default;

 private:
  struct block {
    int device = 0;
    std::size_t granularity = 0;
    std::size_t reserved = 0;           // bytes of addresses
    std::vector<std::size_t> mappings;  // bytes of each, one behind the other from the start on
  };
  struct block_list {
    std::mutex mutex;
    std::map<void*, block> of;
  };

  [[noreturn]] void refuse(typename Api::status status, const char* call, std::size_t bytes,
                           const char* of) const {
    detail::throw_refusal(api_, status, call, bytes, of);
  }
  void require(typename Api::status status, const char* call, std::size_t bytes) const {
    if (status != Api::success) refuse(status, call, bytes, "device");
  }
  /// The driver's calls want the runtime's context on this thread; cudaFree of nothing makes it.
  void require_context(std::size_t bytes) const {
    require(api_.free_device(nullptr), "cudaFree", bytes);
  }

  [[no_unique_address]] Api api_;
  std::shared_ptr<block_list> blocks_ = std::make_shared<block_list>();
};

}  // namespace vggload::cuda
