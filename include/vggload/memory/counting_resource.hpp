// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// What went through a `counting_resource`. Bytes are those asked for.
struct memory_counts {
  std::uint64_t allocations = 0;
  std::uint64_t deallocations = 0;
  std::uint64_t bytes_in_use = 0;
  std::uint64_t peak_bytes = 0;
};

/// Counts what is allocated from another resource, so that "no second copy" can be asserted. The
/// counts belong to the caller and are shared by all copies of the handle; one thread at a time.
template <memory_resource Upstream = host_resource>
class counting_resource {
 public:
  static constexpr memory_access access = Upstream::access;

  /// `counts` must live as long as memory of this resource does.
  explicit counting_resource(memory_counts& counts, Upstream upstream = {})
      : counts_(&counts), upstream_(upstream) {}

  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment) {
    void* address = upstream_.allocate(bytes, alignment);
    ++counts_->allocations;
    counts_->bytes_in_use += bytes;
    counts_->peak_bytes = std::max(counts_->peak_bytes, counts_->bytes_in_use);
    return address;
  }

  void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
    upstream_.deallocate(address, bytes, alignment);
    ++counts_->deallocations;
    counts_->bytes_in_use -= bytes;
  }

  friend bool operator==(const counting_resource&, const counting_resource&) = default;

 private:
  memory_counts* counts_;
  Upstream upstream_;
};

static_assert(host_accessible_resource<counting_resource<>>);

}  // namespace vggload
