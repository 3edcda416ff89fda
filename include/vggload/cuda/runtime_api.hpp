// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <vggload/cuda/error.hpp>
#include <vggload/cuda/memory_api.hpp>

namespace vggload::cuda {

/// CUDA itself as a `memory_api`: the runtime, and the driver's calls for virtual memory, which are
/// asked of the runtime by name, so that nothing links libcuda and a program starts without one.
class runtime_api {
 public:
  using status = cudaError_t;
  using stream = cudaStream_t;
  using memory_handle = CUmemGenericAllocationHandle;
  using call_error = cuda_error;

  static constexpr status success = cudaSuccess;
  static constexpr status no_memory = cudaErrorMemoryAllocation;

  [[nodiscard]] status allocate_device(void*& address, std::size_t bytes) const noexcept {
    return cudaMalloc(&address, bytes);
  }
  [[nodiscard]] status free_device(void* address) const noexcept { return cudaFree(address); }

  [[nodiscard]] status allocate_device_async(void*& address, std::size_t bytes,
                                             stream order) const noexcept {
    return cudaMallocAsync(&address, bytes, order);
  }
  [[nodiscard]] status free_device_async(void* address, stream order) const noexcept {
    return cudaFreeAsync(address, order);
  }
  [[nodiscard]] status synchronize(stream order) const noexcept {
    return cudaStreamSynchronize(order);
  }

  [[nodiscard]] status allocate_pinned(void*& address, std::size_t bytes) const noexcept {
    return cudaMallocHost(&address, bytes);
  }
  [[nodiscard]] status free_pinned(void* address) const noexcept { return cudaFreeHost(address); }

  [[nodiscard]] status get_device_memory(std::size_t& free_bytes,
                                         std::size_t& total_bytes) const noexcept {
    return cudaMemGetInfo(&free_bytes, &total_bytes);
  }
  [[nodiscard]] status get_current_device(int& device) const noexcept {
    return cudaGetDevice(&device);
  }
  void clear_last_error() const noexcept { static_cast<void>(cudaGetLastError()); }

  [[nodiscard]] status get_granularity(std::size_t& bytes, int device) const noexcept {
    const CUmemAllocationProp properties = memory_of(device);
    return call_driver<PFN_cuMemGetAllocationGranularity_v10020>(
        "cuMemGetAllocationGranularity", &bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  }
  [[nodiscard]] status reserve_addresses(void*& address, std::size_t bytes,
                                         std::size_t alignment) const noexcept {
    CUdeviceptr begin = 0;
    const status result = call_driver<PFN_cuMemAddressReserve_v10020>(
        "cuMemAddressReserve", &begin, bytes, alignment, CUdeviceptr{0}, no_flags);
    address = reinterpret_cast<void*>(begin);
    return result;
  }
  [[nodiscard]] status free_addresses(void* address, std::size_t bytes) const noexcept {
    return call_driver<PFN_cuMemAddressFree_v10020>("cuMemAddressFree",
                                                    reinterpret_cast<CUdeviceptr>(address), bytes);
  }
  [[nodiscard]] status create_memory(memory_handle& handle, std::size_t bytes,
                                     int device) const noexcept {
    const CUmemAllocationProp properties = memory_of(device);
    return call_driver<PFN_cuMemCreate_v10020>("cuMemCreate", &handle, bytes, &properties,
                                               no_flags);
  }
  [[nodiscard]] status release_memory(memory_handle handle) const noexcept {
    return call_driver<PFN_cuMemRelease_v10020>("cuMemRelease", handle);
  }
  [[nodiscard]] status map_memory(void* address, std::size_t bytes,
                                  memory_handle handle) const noexcept {
    return call_driver<PFN_cuMemMap_v10020>("cuMemMap", reinterpret_cast<CUdeviceptr>(address),
                                            bytes, std::size_t{0}, handle, no_flags);
  }
  [[nodiscard]] status unmap_memory(void* address, std::size_t bytes) const noexcept {
    return call_driver<PFN_cuMemUnmap_v10020>("cuMemUnmap", reinterpret_cast<CUdeviceptr>(address),
                                              bytes);
  }
  [[nodiscard]] status allow_access(void* address, std::size_t bytes, int device) const noexcept {
    CUmemAccessDesc access{};
    access.location = memory_of(device).location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return call_driver<PFN_cuMemSetAccess_v10020>(
        "cuMemSetAccess", reinterpret_cast<CUdeviceptr>(address), bytes, &access, std::size_t{1});
  }

  friend bool operator==(runtime_api, runtime_api) = default;

 private:
  static constexpr unsigned long long no_flags = 0;

  [[nodiscard]] static CUmemAllocationProp memory_of(int device) noexcept {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;  // on its device; no other type moves it there
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device;
    return properties;
  }

  /// Calls the driver's function of that name, of the version that CUDA 10.2 brought. The numbers of
  /// the driver's errors are those of the runtime's that mean the same, since CUDA 10.1. Asked for
  /// each time: it costs next to nothing beside these calls, and there is no state to keep.
  template <class Function, class... Arguments>
  [[nodiscard]] static status call_driver(const char* name, Arguments... arguments) noexcept {
    void* function = nullptr;
#if CUDART_VERSION >= 12050
    constexpr unsigned int version = 10020;
    const status found =
        cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault);
#else
    const status found = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault);
#endif
    if (found != cudaSuccess) return found;
    if (function == nullptr) return cudaErrorNotSupported;
    return static_cast<status>(reinterpret_cast<Function>(function)(arguments...));
  }
};

static_assert(memory_api<runtime_api>);

}  // namespace vggload::cuda
