// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/data/prefetch.hpp>

struct device_resource {
#ifdef MISTAKE
  static constexpr vggload::memory_access access = vggload::memory_access::device;
#else
  static constexpr vggload::memory_access access = vggload::memory_access::host_and_device;
#endif
  void* allocate(std::size_t bytes, std::size_t alignment);
  void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept;
};

auto read_ahead() { return vggload::prefetch({}, device_resource()); }
