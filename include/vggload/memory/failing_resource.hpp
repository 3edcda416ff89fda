// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// Lets a number of allocations pass and refuses all that follow with std::bad_alloc, so that every
/// path out of a failure can be walked in a test. The number belongs to the caller; one thread at a
/// time.
template <memory_resource Upstream = host_resource>
class failing_resource {
 public:
  static constexpr memory_access access = Upstream::access;

  /// `remaining`, the allocations that still pass, must live as long as memory of this resource
  /// does.
  explicit failing_resource(std::uint64_t& remaining, Upstream upstream = {})
      : remaining_(&remaining), upstream_(upstream) {}

  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    if (*remaining_ == 0) throw std::bad_alloc();
    --*remaining_;
    return upstream_.allocate(bytes, alignment);
  }

  void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
    upstream_.deallocate(address, bytes, alignment);
  }

  friend bool operator==(const failing_resource&, const failing_resource&) = default;

 private:
  std::uint64_t* remaining_;
  Upstream upstream_;
};

static_assert(host_accessible_resource<failing_resource<>>);

}  // namespace vggload
