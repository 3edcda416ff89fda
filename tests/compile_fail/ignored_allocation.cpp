// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

void use(vggload::arena<vggload::host_resource>& memory) {
#ifdef MISTAKE
  memory.allocate("features.0.weight", 6912);
#else
  (void)memory.allocate("features.0.weight", 6912);
#endif
}
