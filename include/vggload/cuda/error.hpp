// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include <vggload/core/error.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload::cuda {

/// CUDA refused a call. what() is one line: "cudaMalloc: cudaErrorMemoryAllocation: out of memory".
/// Kernels run later than the call that launched them: the error may be that of an earlier one.
class cuda_error : public error {
 public:
  cuda_error(const std::string& call, cudaError_t code)
      : error(call + ": " + cudaGetErrorName(code) + ": " + cudaGetErrorString(code)),
        code_(code) {}

  [[nodiscard]] cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

/// Throws an `out_of_memory` where that is what CUDA says, and a `cuda_error` for any other `code`
/// but success. `call` is the name of the function that returned it.
inline void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  // CUDA remembers the error too; who asks for the last one later must not find this one.
  static_cast<void>(cudaGetLastError());
  if (code == cudaErrorMemoryAllocation) {
    throw out_of_memory(vggload::detail::fixed_text() << call << ": " << cudaGetErrorString(code),
                        {}, 0);
  }
  throw cuda_error(call, code);
}

}  // namespace vggload::cuda
