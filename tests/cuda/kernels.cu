// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Every kernel of the library, to look at what the compiler makes of them; and one of two
// translation units of a program that both have them.

#include <vggload/cuda/transpose.cuh>

using namespace vggload;

namespace {

template <class To>
void use(const float* source, To* destination, cuda::health_accumulator* health) {
  cuda::convert(source, destination, 1, nullptr);
  cuda::convert_and_measure(source, destination, 1, health, nullptr);
  cuda::transpose({1, 1, 1, 1}, source, destination, nullptr);
  cuda::transpose_and_measure({1, 1, 1, 1}, source, destination, health, nullptr);
}

}  // namespace

const void* kernel_of_first_unit() {
  return reinterpret_cast<const void*>(&cuda::detail::convert_kernel<float16>);
}
const void* launch_of_first_unit() {
  return reinterpret_cast<const void*>(&cuda::convert<float16>);
}

void use_all(const float* source, void* destination, cuda::health_accumulator* health) {
  use(source, static_cast<float16*>(destination), health);
  use(source, static_cast<bfloat16*>(destination), health);
}
