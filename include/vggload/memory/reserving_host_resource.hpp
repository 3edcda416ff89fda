// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>

#include <sys/mman.h>

#include <vggload/core/checked.hpp>
#include <vggload/memory/aligned_mapping.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// Memory of the process whose addresses come first: for a block that grows to a size that is not
/// known beforehand, without ever being copied.
///
/// The addresses are mapped without any access and become readable and writable when they are
/// committed. Reserving plainly and leaving it to overcommit would be less code, but then nothing
/// would be refused at a commit, and the process would be killed at a first touch instead; like this
/// the kernel counts what is committed, and a touch of what is not faults where it happens. It is
/// also what `cuda::virtual_device_resource` does with a device's memory.
class reserving_host_resource {
 public:
  static constexpr memory_access access = memory_access::host;

  /// Memory is committed in units of this: huge pages, since a page's protection is that of all of
  /// it. Only what is written takes memory of the machine.
  static constexpr std::size_t granularity = detail::huge_page_bytes;

  /// Reserves addresses for `bytes`, at least one, at a multiple of `alignment` and of
  /// `granularity`. They cannot be touched before they are committed.
  /// @throws out_of_memory with the number of bytes, where the process may have no more addresses
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    const auto reserved = checked_align_up(std::max<std::size_t>(bytes, 1), granularity);
    void* address =
        reserved ? detail::map_aligned(*reserved, std::max(alignment, granularity), PROT_NONE)
                 : nullptr;
    if (address == nullptr) {
      throw out_of_memory(detail::fixed_text() << bytes << " bytes of host addresses were refused",
                          {}, bytes);
    }
    return address;
  }

  /// Puts memory, zero, behind the first `wanted` bytes of the block at least, of which the first
  /// `committed` have it already, and returns how many have it now: a multiple of `granularity`.
  /// @throws out_of_memory with the number of bytes, where the kernel promises no more memory;
  /// nothing has changed then
  [[nodiscard]] std::size_t commit(void* block, std::size_t committed, std::size_t wanted) {
    if (wanted <= committed) return committed;
    const std::size_t now = (wanted + granularity - 1) / granularity * granularity;
    if (::mprotect(static_cast<std::byte*>(block) + committed, now - committed,
                   PROT_READ | PROT_WRITE) != 0) {
      throw out_of_memory(
          detail::fixed_text() << now - committed << " bytes of host memory were refused", {},
          now - committed);
    }
    return now;
  }

  /// Takes back addresses and memory; the kernel has them at once.
  void deallocate(void* block, std::size_t bytes, std::size_t /*alignment*/) noexcept {
    const std::size_t reserved =
        (std::max<std::size_t>(bytes, 1) + granularity - 1) / granularity * granularity;
    ::munmap(block, reserved);
  }

  friend bool operator==(reserving_host_resource, reserving_host_resource) = default;
};

static_assert(host_accessible_resource<reserving_host_resource> &&
              reserving_resource<reserving_host_resource>);

}  // namespace vggload
