// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <vggload/core/error.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload::cuda {

/// The calls of CUDA that hand out memory, as a type: the resources below `cuda/` are templates over
/// it and include no header of CUDA's. `runtime_api` is the real one; a test puts a fake in its
/// place, on any machine. A cheap handle; each function is the call of CUDA's that its comment
/// names, returns what that returned, and does nothing else.
///
/// - `status`: what a call returns; `success` and `no_memory` are two of its values.
/// - `stream`: an order of work on a device; `memory_handle`: physical memory without an address.
/// - `call_error(call, status)`: the error for all that is not for want of memory.
template <class Api>
concept memory_api = std::copyable<Api> && std::equality_comparable<Api> &&
    std::derived_from<typename Api::call_error, error> &&
    std::constructible_from<typename Api::call_error, const char*, typename Api::status> &&
    std::same_as<const typename Api::status, decltype(Api::success)> &&
    std::same_as<const typename Api::status, decltype(Api::no_memory)> &&
    requires(const Api& api, void*& address, std::size_t bytes, std::size_t& count, int device,
             int& found_device, typename Api::stream stream, typename Api::memory_handle handle,
             typename Api::memory_handle& created) {
  // cudaMalloc, cudaFree
  { api.allocate_device(address, bytes) }
  noexcept->std::same_as<typename Api::status>;
  { api.free_device(address) }
  noexcept->std::same_as<typename Api::status>;
  // cudaMallocAsync, cudaFreeAsync
  { api.allocate_device_async(address, bytes, stream) }
  noexcept->std::same_as<typename Api::status>;
  { api.free_device_async(address, stream) }
  noexcept->std::same_as<typename Api::status>;
  // cudaStreamSynchronize
  { api.synchronize(stream) }
  noexcept->std::same_as<typename Api::status>;
  // cudaMallocHost, cudaFreeHost
  { api.allocate_pinned(address, bytes) }
  noexcept->std::same_as<typename Api::status>;
  { api.free_pinned(address) }
  noexcept->std::same_as<typename Api::status>;
  // cudaMemGetInfo: free and total bytes of the current device
  { api.get_device_memory(count, count) }
  noexcept->std::same_as<typename Api::status>;
  // cudaGetDevice
  { api.get_current_device(found_device) }
  noexcept->std::same_as<typename Api::status>;
  // cudaGetLastError: CUDA remembers an error until it is asked for
  { api.clear_last_error() }
  noexcept->std::same_as<void>;
  // cuMemGetAllocationGranularity, the minimum
  { api.get_granularity(count, device) }
  noexcept->std::same_as<typename Api::status>;
  // cuMemAddressReserve, cuMemAddressFree
  { api.reserve_addresses(address, bytes, bytes) }
  noexcept->std::same_as<typename Api::status>;
  { api.free_addresses(address, bytes) }
  noexcept->std::same_as<typename Api::status>;
  // cuMemCreate, cuMemRelease
  { api.create_memory(created, bytes, device) }
  noexcept->std::same_as<typename Api::status>;
  { api.release_memory(handle) }
  noexcept->std::same_as<typename Api::status>;
  // cuMemMap of the whole handle, cuMemUnmap
  { api.map_memory(address, bytes, handle) }
  noexcept->std::same_as<typename Api::status>;
  { api.unmap_memory(address, bytes) }
  noexcept->std::same_as<typename Api::status>;
  // cuMemSetAccess: reading and writing by the device
  { api.allow_access(address, bytes, device) }
  noexcept->std::same_as<typename Api::status>;
};

namespace detail {

/// Throws what a refused allocation of `bytes` is: an `out_of_memory` with the numbers where memory
/// is out, `Api::call_error` otherwise. `of`: what kind of memory. Leaves no error behind that a
/// later call would find.
template <memory_api Api>
[[noreturn]] void throw_refusal(const Api& api, typename Api::status status, const char* call,
                                std::size_t bytes, std::string_view of) {
  api.clear_last_error();
  if (status != Api::no_memory) throw typename Api::call_error(call, status);
  vggload::detail::fixed_text text;
  text << call << ": " << bytes << " bytes of " << of << " memory were refused";
  if (of == "device") {
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    if (api.get_device_memory(free_bytes, total_bytes) == Api::success) {
      text << "; " << free_bytes << " of the device's " << total_bytes << " are free";
    } else {
      api.clear_last_error();
    }
  }
  throw out_of_memory(text, {}, bytes);
}

/// Throws an `unsupported_error` where `alignment` is not a power of two up to `limit`, which is
/// what `call` promises.
inline void require_alignment(std::size_t alignment, std::size_t limit, const char* call) {
  if (std::has_single_bit(alignment) && alignment <= limit) return;
  throw unsupported_error(std::string(call) + ": an alignment of " + std::to_string(alignment) +
                          " bytes was asked for; it is a power of two up to " +
                          std::to_string(limit));
}

[[nodiscard]] inline bool is_aligned(const void* address, std::size_t alignment) noexcept {
  return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
}

/// Ends a call that cannot throw: an error that CUDA remembers is forgotten.
template <memory_api Api>
void forget_refusal(const Api& api, typename Api::status status) noexcept {
  if (status != Api::success) api.clear_last_error();
}

}  // namespace detail

}  // namespace vggload::cuda
