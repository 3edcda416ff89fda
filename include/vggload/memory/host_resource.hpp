// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>

#include <sys/mman.h>

#include <vggload/memory/aligned_mapping.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// Ordinary memory of the process. What is at least a huge page large comes from the kernel
/// directly, begins at a multiple of 2 MiB and is offered for transparent huge pages: filling it
/// then costs one page fault per 2 MiB, not one per 4 KiB. It goes back to the kernel when
/// deallocated. Its pages take memory when they are first written, and only as many as the bytes
/// asked for need. The rest comes from operator new.
class host_resource {
 public:
  static constexpr memory_access access = memory_access::host;

  /// Throws `out_of_memory` with the number of bytes.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    if (!is_mapped(bytes)) {
      void* address = ::operator new(std::max<std::size_t>(bytes, 1), std::align_val_t(alignment),
                                     std::nothrow);
      if (address == nullptr) fail(bytes);
      return address;
    }
    void* address = detail::map_aligned(bytes, std::max(alignment, detail::huge_page_bytes),
                                        PROT_READ | PROT_WRITE);
    if (address == nullptr) fail(bytes);
    return address;
  }

  void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
    if (is_mapped(bytes)) {
      ::munmap(address, bytes);
    } else {
      ::operator delete(address, std::align_val_t(alignment));
    }
  }

  friend bool operator==(host_resource, host_resource) = default;

 private:
  static constexpr bool is_mapped(std::size_t bytes) noexcept {
    return bytes >= detail::huge_page_bytes;
  }

  [[noreturn]] static void fail(std::size_t bytes) {
    throw out_of_memory(detail::fixed_text() << bytes << " bytes of host memory were refused", {},
                        bytes);
  }
};

static_assert(host_accessible_resource<host_resource>);

}  // namespace vggload
