// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The other unit of the program of kernels.cu: both have all headers and all kernels, and neither
// launches what the other registered.

#include <cstdio>

#include <vggload/cuda/convert.cuh>
#include <vggload/cuda/transpose.cuh>

using namespace vggload;

const void* kernel_of_first_unit();
const void* launch_of_first_unit();

int main() {
  const bool own_kernel = kernel_of_first_unit() !=
                          reinterpret_cast<const void*>(&cuda::detail::convert_kernel<float16>);
  const bool own_launch =
      launch_of_first_unit() != reinterpret_cast<const void*>(&cuda::convert<float16>);
  std::printf("own kernel: %d, own launch: %d\n", own_kernel, own_launch);
  return own_kernel && own_launch ? 0 : 1;
}
