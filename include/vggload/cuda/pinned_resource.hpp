// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include <vggload/cuda/memory_api.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload::cuda {

/// Page-locked memory of the host, by cudaMallocHost: copies to and from a device are asynchronous
/// only with such memory, and kernels of every device reach it under the same address (Unified
/// Virtual Addressing), so both sides may touch it. Locking is slow, 1 to 2 GB/s, and takes the
/// pages from everyone else: allocate once, and not much. `pinned_resource` (cuda/resources.hpp) is
/// this over CUDA itself.
template <memory_api Api>
class basic_pinned_resource {
 public:
  static constexpr memory_access access = memory_access::host_and_device;

  /// Whole pages are locked, and an allocation begins with one. CUDA does not write that down, so
  /// each address is looked at.
  static constexpr std::size_t max_alignment = 4096;

  basic_pinned_resource() = default;
  explicit basic_pinned_resource(Api api) : api_(std::move(api)) {}

  /// `bytes`, at least one, uninitialised, resident at once. Synchronous; creates the context of the
  /// current device where there is none yet.
  /// @throws out_of_memory with the number of bytes, where the system locks no more
  /// @throws unsupported_error where `alignment` is more than `max_alignment` or no power of two, or
  /// not what CUDA gave
  /// @throws Api::call_error for every other refusal: no device, or the error of earlier work
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    detail::require_alignment(alignment, max_alignment, "cudaMallocHost");
    void* address = nullptr;
    const auto status = api_.allocate_pinned(address, std::max<std::size_t>(bytes, 1));
    if (status != Api::success) {
      detail::throw_refusal(api_, status, "cudaMallocHost", bytes, "pinned host");
    }
    if (!detail::is_aligned(address, alignment)) {
      deallocate(address, bytes, alignment);
      throw unsupported_error("cudaMallocHost: the address is no multiple of " +
                              std::to_string(alignment));
    }
    return address;
  }

  /// No copy and no kernel may still use the memory: wait for their stream or event before.
  void deallocate(void* address, std::size_t /*bytes*/, std::size_t /*alignment*/) noexcept {
    detail::forget_refusal(api_, api_.free_pinned(address));
  }

  friend bool operator==(const basic_pinned_resource&, const basic_pinned_resource&) = default;

 private:
  [[no_unique_address]] Api api_;
};

}  // namespace vggload::cuda
