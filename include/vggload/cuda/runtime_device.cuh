// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <cuda_runtime.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/cuda/convert.cuh>
#include <vggload/cuda/error.hpp>
#include <vggload/cuda/health.hpp>
#include <vggload/cuda/memory_report.hpp>
#include <vggload/cuda/resources.hpp>
#include <vggload/cuda/stream.hpp>
#include <vggload/cuda/upload_engine.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload::cuda {

// Of each translation unit its own, like the kernels that it launches.
namespace {

/// The CUDA device that was current when this was made. See `upload_device`. Made by a thread whose
/// current device it stays until the load is done.
class runtime_device {
 public:
  using device_resource = cuda::device_resource;
  using pinned_resource = cuda::pinned_resource;
  using stream = cuda_stream;
  using event = cuda_event;

  /// Creates the device's context, where there is none, and loads the kernels: neither is to be
  /// taken for a part of the first upload.
  /// @throws cuda_error where there is no device
  /// @throws out_of_memory where the device has no room for a context, with a report of who has it
  runtime_device() {
    check(cudaGetDevice(&device_), "cudaGetDevice");
    try {
      static_cast<void>(detail::resident_blocks(&detail::convert_and_measure_kernel<float16>));
      static_cast<void>(detail::resident_blocks(&detail::convert_and_measure_kernel<bfloat16>));
    } catch (const out_of_memory& e) {
      throw out_of_memory(vggload::detail::fixed_text() << "CUDA's context: " << e.what(), {}, 0,
                          vggload::detail::try_report([this] {
                            memory_report report;
                            describe(report, 0);
                            return report;
                          }));
    }
  }

  /// As NVIDIA calls it.
  [[nodiscard]] std::string name() const {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device_), "cudaGetDeviceProperties");
    return properties.name;
  }

  void copy_to_device(std::byte* to, std::span<const std::byte> from, stream& order) const {
    make_current();
    check(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, order.get()),
          "cudaMemcpyAsync");
  }
  void set_zero(std::byte* to, std::size_t bytes, stream& order) const {
    make_current();
    check(cudaMemsetAsync(to, 0, bytes, order.get()), "cudaMemsetAsync");
  }
  void convert(dtype to, const std::byte* source, std::byte* destination, std::size_t count,
               health_accumulator* health, stream& order) const {
    make_current();
    const auto* const values = reinterpret_cast<const float*>(source);
    if (to == dtype::f16) {
      convert_and_measure(values, reinterpret_cast<float16*>(destination), count, health,
                          order.get());
    } else {
      convert_and_measure(values, reinterpret_cast<bfloat16*>(destination), count, health,
                          order.get());
    }
  }
  void record(event& place, stream& order) const {
    make_current();
    check(cudaEventRecord(place.get(), order.get()), "cudaEventRecord");
  }
  void wait(stream& order, event& place) const {
    make_current();
    check(cudaStreamWaitEvent(order.get(), place.get(), 0), "cudaStreamWaitEvent");
  }
  void synchronize(event& place) const {
    make_current();
    check(cudaEventSynchronize(place.get()), "cudaEventSynchronize");
  }
  void copy_to_host(std::span<std::byte> to, const std::byte* from) const {
    check(cudaMemcpy(to.data(), from, to.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  }
  void drain(stream& order) const noexcept {
    if (cudaStreamSynchronize(order.get()) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }
  void describe(memory_report& report, std::uint64_t allocated) const noexcept {
    std::array<char, 32> bus_id{};
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    // The error that the report is about is CUDA's last one no more; another is not to take its
    // place.
    const bool is_known = cudaDeviceGetPCIBusId(bus_id.data(), static_cast<int>(bus_id.size()),
                                                device_) == cudaSuccess;
    const bool is_counted = cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess;
    if (!is_known || !is_counted) static_cast<void>(cudaGetLastError());
    gpu_memory memory{.pci_bus_id = bus_id.data(), .total = {}, .free = {}, .allocated = allocated};
    if (is_counted) {
      memory.total = total_bytes;
      memory.free = free_bytes;
    }
    add_gpu(report, memory);
    if (is_counted) report.largest_free = largest_block(free_bytes);
  }

 private:
  /// A new thread's current device is the first: there a kernel would go, and a copy would make a
  /// context, of hundreds of MiB, on a device that has nothing to do with it.
  void make_current() const { check(cudaSetDevice(device_), "cudaSetDevice"); }

  /// The largest block that could be had, in steps of 2 MiB: found by trying, as CUDA does not tell.
  [[nodiscard]] static std::size_t largest_block(std::size_t free_bytes) noexcept {
    constexpr std::size_t step = std::size_t{2} << 20U;
    std::size_t least = 0;
    std::size_t most = free_bytes / step;
    while (least < most) {
      const std::size_t middle = least + (most - least + 1) / 2;
      void* block = nullptr;
      if (cudaMalloc(&block, middle * step) == cudaSuccess) {
        static_cast<void>(cudaFree(block));
        least = middle;
      } else {
        static_cast<void>(cudaGetLastError());
        most = middle - 1;
      }
    }
    return least * step;
  }

  int device_ = 0;
};

static_assert(upload_device<runtime_device>);

}  // namespace

}  // namespace vggload::cuda
