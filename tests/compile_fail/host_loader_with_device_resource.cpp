// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/vgg16/load.hpp>

struct device_resource : vggload::host_resource {
#ifdef MISTAKE
  static constexpr vggload::memory_access access = vggload::memory_access::device;
#endif
};

void load() { (void)vggload::vgg16::load("file", {}, device_resource()); }
