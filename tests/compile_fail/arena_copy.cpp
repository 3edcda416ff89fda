// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <utility>

#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

void use(vggload::arena<vggload::host_resource> memory) {
#ifdef MISTAKE
  vggload::arena<vggload::host_resource> second(memory);
#else
  vggload::arena<vggload::host_resource> second(std::move(memory));
#endif
}
