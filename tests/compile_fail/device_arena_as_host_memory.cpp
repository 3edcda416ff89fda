// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <span>

#include <vggload/cuda/device_resource.hpp>
#include <vggload/cuda/pinned_resource.hpp>
#include <vggload/memory/arena.hpp>

#include "../support/fake_cuda.hpp"

#ifdef MISTAKE
using resource = vggload::cuda::basic_device_resource<test::fake_cuda>;
#else
using resource = vggload::cuda::basic_pinned_resource<test::fake_cuda>;
#endif

std::span<std::byte> place(vggload::arena<resource>& memory) {
  return memory.allocate("features.0.weight", 6912);
}
