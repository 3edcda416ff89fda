// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include <vggload/cuda/memory_api.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload::cuda {

/// Memory of a stream's device from the driver's pool, by cudaMallocAsync: taking and giving it
/// back are steps in the order of the stream, like a kernel, so nothing waits and what was given
/// back is soon taken again.
///
/// So the memory is ready for work on that stream behind the allocation. Work on other streams, and
/// copies that are ordered by none, come after an event of that stream or `synchronize()`; and they
/// have to be done, or waited for by that stream, before the memory is given back.
/// `async_device_resource` (cuda/resources.hpp) is this over CUDA itself.
template <memory_api Api>
class basic_async_device_resource {
 public:
  using stream = typename Api::stream;

  static constexpr memory_access access = memory_access::device;

  /// What CUDA promises of every address (CUDA C++ Programming Guide, "Device Memory Accesses").
  static constexpr std::size_t max_alignment = 256;

  /// `order`: where `allocate` and `deallocate` stand unless another stream is named. Belongs to the
  /// caller and must live until the memory has been given back.
  explicit basic_async_device_resource(stream order, Api api = {})
      : order_(order), api_(std::move(api)) {}

  /// `bytes`, at least one, uninitialised, at a multiple of 256 whatever smaller `alignment` is
  /// asked for. Does not wait; ready in the order of the stream.
  /// @throws out_of_memory with the number of bytes and what is free, where the device has no more
  /// @throws unsupported_error where `alignment` is more than `max_alignment` or no power of two
  /// @throws Api::call_error for every other refusal: no device, no pools on it, or the error of
  /// earlier work
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    return allocate(bytes, alignment, order_);
  }
  /// The same in the order of another stream.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment, stream order) {
    detail::require_alignment(alignment, max_alignment, "cudaMallocAsync");
    void* address = nullptr;
    const auto status = api_.allocate_device_async(address, std::max<std::size_t>(bytes, 1), order);
    if (status != Api::success) {
      detail::throw_refusal(api_, status, "cudaMallocAsync", bytes, "device");
    }
    return address;
  }

  /// Gives the memory back behind the work that is on the stream so far. Does not wait.
  void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
    deallocate(address, bytes, alignment, order_);
  }
  /// The same in the order of another stream.
  void deallocate(void* address, std::size_t /*bytes*/, std::size_t /*alignment*/,
                  stream order) noexcept {
    detail::forget_refusal(api_, api_.free_device_async(address, order));
  }

  /// Waits for the work on the stream so far: what was allocated is ready everywhere then.
  /// @throws Api::call_error with the error of that work
  void synchronize() const {
    const auto status = api_.synchronize(order_);
    if (status == Api::success) return;
    api_.clear_last_error();
    throw typename Api::call_error("cudaStreamSynchronize", status);
  }

  /// Whether they take from the same pool in the order of the same stream.
  friend bool operator==(const basic_async_device_resource&,
                         const basic_async_device_resource&) = default;

 private:
  stream order_;
  [[no_unique_address]] Api api_;
};

}  // namespace vggload::cuda
