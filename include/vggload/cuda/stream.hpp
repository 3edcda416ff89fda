// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <utility>

#include <cuda_runtime_api.h>

#include <vggload/cuda/error.hpp>

namespace vggload::cuda {

/// An order of work on the device that was current when it was made. Owns the stream: moves, never
/// copies. Does not wait for the stream that all share by default.
class cuda_stream {
 public:
  /// @throws cuda_error
  cuda_stream() {
    check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  cuda_stream(cuda_stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  cuda_stream& operator=(cuda_stream&& other) noexcept {
    cuda_stream moved(std::move(other));
    std::swap(handle_, moved.handle_);
    return *this;
  }
  /// Returns at once; the work that is on the stream is still done.
  ~cuda_stream() {
    if (handle_ == nullptr) return;
    if (cudaStreamDestroy(handle_) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }

  [[nodiscard]] cudaStream_t get() const noexcept { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

/// A place in a stream that others can wait for, on the device that was current when it was made.
/// Owns the event: moves, never copies. Takes no times, which would slow the stream down, and a
/// thread that waits for it leaves its processor to those that have something to do.
class cuda_event {
 public:
  /// @throws cuda_error
  cuda_event() {
    check(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming | cudaEventBlockingSync),
          "cudaEventCreateWithFlags");
  }
  cuda_event(cuda_event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  cuda_event& operator=(cuda_event&& other) noexcept {
    cuda_event moved(std::move(other));
    std::swap(handle_, moved.handle_);
    return *this;
  }
  ~cuda_event() {
    if (handle_ == nullptr) return;
    if (cudaEventDestroy(handle_) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }

  [[nodiscard]] cudaEvent_t get() const noexcept { return handle_; }

 private:
  cudaEvent_t handle_ = nullptr;
};

}  // namespace vggload::cuda
