// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>

#include <sys/mman.h>

#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// Whole pages straight from the kernel, and back to it: for few blocks that are replaced by larger ones, of which
/// an allocator for all sizes would keep what lies between. What is not written takes no memory.
class page_resource {
 public:
  static constexpr memory_access access = memory_access::host;

  /// `alignment`: that of a page at most. Throws `out_of_memory` with the number of bytes.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t /*alignment*/) {
    void* const address = ::mmap(nullptr, std::max<std::size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) {
      throw out_of_memory(detail::fixed_text() << bytes << " bytes of host memory were refused", {},
                          bytes);
    }
    return address;
  }

  void deallocate(void* address, std::size_t bytes, std::size_t /*alignment*/) noexcept {
    ::munmap(address, std::max<std::size_t>(bytes, 1));
  }

  friend bool operator==(page_resource, page_resource) = default;
};

static_assert(host_accessible_resource<page_resource>);

}  // namespace vggload
