// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A conversion that does what sass.cmake looks for: single loads, conversions one by one, and an
// array that has no place in registers.

#include <cstddef>

#include <cuda_fp16.h>

#include <vggload/core/float16.hpp>

template <class To>
static __global__ void convert_kernel(const float* source, To* destination, std::size_t count) {
  std::size_t order[64];
  for (std::size_t i = 0; i < 64; ++i) order[source[i] > 0 ? i : 63 - i] = i;
  for (std::size_t i = threadIdx.x; i < count; i += blockDim.x) {
    destination[order[i % 64]].bits = __half_as_ushort(__float2half_rn(source[i]));
  }
}

void use(const float* source, vggload::float16* destination) {
  convert_kernel<<<1, 1>>>(source, destination, 1);
}
