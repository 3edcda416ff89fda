// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A libcuda.so.1, libcudart.so.13 and libcudnn.so.9 for tests: the versions are the environment's.

#include <cstddef>
#include <cstdlib>

namespace {

int version_in(const char* variable) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoi(text);
}

/// -34 stands for error 34, which is what the toolkit's libcuda.so gives, a mere stub.
int give(const char* variable, int* version) {
  *version = version_in(variable);
  return *version < 0 ? -*version : 0;
}

}  // namespace

extern "C" {

int cuDriverGetVersion(int* version) { return give("FAKE_DRIVER", version); }
int cudaRuntimeGetVersion(int* version) { return give("FAKE_RUNTIME", version); }
std::size_t cudnnGetVersion() { return static_cast<std::size_t>(version_in("FAKE_CUDNN")); }
std::size_t cudnnGetCudartVersion() {
  return static_cast<std::size_t>(version_in("FAKE_CUDNN_CUDA"));
}

}  // extern "C"
