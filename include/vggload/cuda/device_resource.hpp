// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include <vggload/cuda/memory_api.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload::cuda {

/// Memory of the device that is current when it is allocated, by cudaMalloc. Any thread may use it
/// and give it back, whatever its current device is. `device_resource` (cuda/resources.hpp) is this
/// over CUDA itself.
template <memory_api Api>
class basic_device_resource {
 public:
  static constexpr memory_access access = memory_access::device;

  /// What CUDA promises of every address (CUDA C++ Programming Guide, "Device Memory Accesses").
  static constexpr std::size_t max_alignment = 256;

  basic_device_resource() = default;
  explicit basic_device_resource(Api api) : api_(std::move(api)) {}

  /// `bytes`, at least one, uninitialised, at a multiple of 256 whatever smaller `alignment` is
  /// asked for. May wait for work of the device; the memory is ready on every stream at once.
  /// @throws out_of_memory with the number of bytes and what is free, where the device has no more
  /// @throws unsupported_error where `alignment` is more than `max_alignment` or no power of two
  /// @throws Api::call_error for every other refusal: no device, or the error of earlier work
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    detail::require_alignment(alignment, max_alignment, "cudaMalloc");
    void* address = nullptr;
    const auto status = api_.allocate_device(address, std::max<std::size_t>(bytes, 1));
    if (status != Api::success) detail::throw_refusal(api_, status, "cudaMalloc", bytes, "device");
    return address;
  }

  /// Waits for the device's work, as cudaFree does, so that nothing still uses the memory.
  void deallocate(void* address, std::size_t /*bytes*/, std::size_t /*alignment*/) noexcept {
    detail::forget_refusal(api_, api_.free_device(address));
  }

  friend bool operator==(const basic_device_resource&, const basic_device_resource&) = default;

 private:
  [[no_unique_address]] Api api_;
};

}  // namespace vggload::cuda
