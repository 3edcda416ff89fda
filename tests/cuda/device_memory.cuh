// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include <cuda_runtime.h>

#include <vggload/cuda/error.hpp>

/// Memory of the device for `count` values, uninitialised.
template <class T>
class device_memory {
 public:
  explicit device_memory(std::size_t count) : count_(count) {
    vggload::cuda::check(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
  }
  device_memory(const device_memory&) = delete;
  device_memory& operator=(const device_memory&) = delete;
  ~device_memory() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }

  /// Synchronises with the device's work so far, as a copy does.
  void set(const T* values, std::size_t count) {
    vggload::cuda::check(cudaMemcpy(data_, values, count * sizeof(T), cudaMemcpyHostToDevice),
                         "cudaMemcpy");
  }
  std::vector<T> get() const {
    std::vector<T> values(count_);
    vggload::cuda::check(
        cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
  void fill(int byte) {
    vggload::cuda::check(cudaMemset(data_, byte, count_ * sizeof(T)), "cudaMemset");
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};
