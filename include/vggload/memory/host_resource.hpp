// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

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
    return map(bytes, std::max(alignment, huge_page_bytes));
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
  static constexpr std::size_t huge_page_bytes = std::size_t{2} << 20U;

  static constexpr bool is_mapped(std::size_t bytes) noexcept { return bytes >= huge_page_bytes; }

  [[noreturn]] static void fail(std::size_t bytes) {
    throw out_of_memory(detail::fixed_text() << bytes << " bytes of host memory were refused", {},
                        bytes);
  }

  [[nodiscard]] static void* map(std::size_t bytes, std::size_t alignment) {
    // Without MAP_NORESERVE: what can never fit is to be refused here, not killed later. The kernel
    // promises the alignment of a page only: ask for more and give back what lies before and
    // behind.
    if (bytes > std::numeric_limits<std::size_t>::max() - 2 * alignment) fail(bytes);
    const auto page_bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t used = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    const std::size_t mapped = used + alignment;
    void* address =
        ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) fail(bytes);
    auto* const begin = static_cast<std::byte*>(address);
    const std::size_t before =
        (alignment - reinterpret_cast<std::uintptr_t>(begin) % alignment) % alignment;
    if (before > 0) ::munmap(begin, before);
    if (mapped - before > used) ::munmap(begin + before + used, mapped - before - used);
    // Advice: where huge pages are switched off, small ones do.
    ::madvise(begin + before, used, MADV_HUGEPAGE);
    return begin + before;
  }
};

static_assert(host_accessible_resource<host_resource>);

}  // namespace vggload
