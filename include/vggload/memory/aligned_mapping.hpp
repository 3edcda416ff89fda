// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <sys/mman.h>
#include <unistd.h>

namespace vggload::detail {

/// What the kernel backs by one translation on x86-64 and, with pages of 4 KiB, on Arm.
inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20U;

/// Maps memory of the kernel, private and zero, at a multiple of `alignment` (a power of two), with
/// that protection (PROT_...); as many whole pages as `bytes` need. Offered for transparent huge
/// pages. nullptr where it is refused. munmap(address, bytes) gives it back.
[[nodiscard]] inline void* map_aligned(std::size_t bytes, std::size_t alignment,
                                       int protection) noexcept {
  // Without MAP_NORESERVE: what can never fit is to be refused when it becomes writable, not killed
  // later. The kernel promises the alignment of a page only: ask for more and give back what lies
  // before and behind.
  if (alignment > std::numeric_limits<std::size_t>::max() / 2 ||
      bytes > std::numeric_limits<std::size_t>::max() - 2 * alignment) {
    return nullptr;
  }
  const auto page_bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t used = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  const std::size_t mapped = used + alignment;
  void* const address = ::mmap(nullptr, mapped, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(address);
  const std::size_t before =
      (alignment - reinterpret_cast<std::uintptr_t>(begin) % alignment) % alignment;
  if (before > 0) ::munmap(begin, before);
  if (mapped - before > used) ::munmap(begin + before + used, mapped - before - used);
  // Advice: where huge pages are switched off, small ones do.
  ::madvise(begin + before, used, MADV_HUGEPAGE);
  return begin + before;
}

}  // namespace vggload::detail
