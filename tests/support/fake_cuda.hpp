// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>

#include <vggload/cuda/memory_api.hpp>
#include <vggload/memory/aligned_mapping.hpp>

namespace test {

enum class fake_status { success, no_memory, invalid_value, unsupported };

/// What a `fake_cuda` throws for everything that is not want of memory.
class fake_cuda_error : public vggload::error {
 public:
  fake_cuda_error(const char* call, fake_status status)
      : vggload::error(std::string(call) + ": fake error " +
                       std::to_string(static_cast<int>(status))),
        status_(status) {}

  [[nodiscard]] fake_status status() const { return status_; }

 private:
  fake_status status_;
};

/// A device that is host memory: as much of it as the test says, any call failing as it says, and
/// strict about who gives back what. One thread at a time.
///
/// Memory that was given back is overwritten and kept until the end, so that a write to it is seen;
/// addresses that are reserved and not backed, or backed and not open, cannot be touched.
class fake_driver {
 public:
  explicit fake_driver(std::size_t device_bytes = std::size_t{64} << 20U)
      : device_bytes_(device_bytes), host_bytes_(device_bytes) {}
  fake_driver(const fake_driver&) = delete;
  fake_driver& operator=(const fake_driver&) = delete;
  ~fake_driver() {
    for (const auto& [address, block] : blocks_) std::free(block.storage);
    for (const auto& [address, block] : freed_) std::free(block.storage);
    for (const auto& [address, range] : ranges_) ::munmap(address, range.bytes);
  }

  /// From now on the call with this number, counted from 0, fails so, and that one only.
  void fail_call(std::uint64_t number, fake_status status) {
    failing_call_ = calls_ + number;
    failure_ = status;
  }
  /// Lets the current device be another one.
  void set_device(int device) { device_ = device; }
  /// Lets pinned memory begin anywhere.
  void misalign_pinned() { pinned_offset_ = 64; }

  /// Calls so far, those that failed included.
  [[nodiscard]] std::uint64_t calls() const { return calls_; }
  /// The error that cudaGetLastError would tell.
  [[nodiscard]] fake_status last_error() const { return last_error_; }
  /// Bytes of the device and of pinned memory in use.
  [[nodiscard]] std::size_t device_bytes_in_use() const { return device_bytes_in_use_; }
  [[nodiscard]] std::size_t host_bytes_in_use() const { return host_bytes_in_use_; }
  /// Streams whose work was waited for, in order, and those that memory came from and went back to.
  [[nodiscard]] const std::vector<void*>& synchronized() const { return synchronized_; }
  [[nodiscard]] const std::vector<void*>& allocated_on() const { return allocated_on_; }
  [[nodiscard]] const std::vector<void*>& freed_on() const { return freed_on_; }
  /// The device on which memory was made last.
  [[nodiscard]] std::optional<int> device_of_last_memory() const { return device_of_last_memory_; }

  /// What is wrong: misuse of a call, a write to memory that was given back, and what was not given
  /// back. Empty where all is well.
  [[nodiscard]] std::vector<std::string> faults() const {
    std::vector<std::string> found = misuses_;
    for (const auto& [address, block] : freed_) {
      const auto* const begin = static_cast<const std::uint8_t*>(address);
      if (!std::all_of(begin, begin + block.bytes,
                       [](std::uint8_t byte) { return byte == poison; })) {
        found.emplace_back("memory was written after it was given back");
      }
    }
    if (!blocks_.empty()) found.push_back(std::to_string(blocks_.size()) + " blocks leaked");
    if (!ranges_.empty()) found.push_back(std::to_string(ranges_.size()) + " ranges leaked");
    if (!handles_.empty()) found.push_back(std::to_string(handles_.size()) + " handles leaked");
    if (device_bytes_in_use_ != 0) found.emplace_back("memory of the device leaked");
    if (host_bytes_in_use_ != 0) found.emplace_back("pinned memory leaked");
    return found;
  }

 private:
  friend class fake_cuda;

  static constexpr std::uint8_t poison = 0xDD;
  static constexpr std::uint8_t uninitialised = 0xCD;
  static constexpr std::size_t granularity = std::size_t{64} << 10U;
  static constexpr std::size_t addressable_bytes = std::size_t{1} << 40U;

  enum class kind { device, device_async, pinned };
  struct owned_block {
    std::size_t bytes;
    kind from;
    void* storage;  // what std::free takes
  };
  struct mapping {
    std::size_t bytes;
    std::uint64_t handle;
  };
  struct address_range {
    std::size_t bytes;
    std::map<std::byte*, mapping> mappings;
  };
  struct physical {
    std::size_t bytes;
    bool released;
    bool mapped;
  };

  [[nodiscard]] fake_status finish(fake_status status) {
    if (status != fake_status::success) last_error_ = status;
    return status;
  }
  /// Counts a call; the status that it fails with by order, if it does.
  [[nodiscard]] std::optional<fake_status> begin_call() {
    return calls_++ == failing_call_ ? std::optional(finish(failure_)) : std::nullopt;
  }
  fake_status misuse(const char* what) {
    misuses_.emplace_back(what);
    return finish(fake_status::invalid_value);
  }

  [[nodiscard]] fake_status allocate(void*& address, std::size_t bytes, kind from) {
    if (const auto failure = begin_call()) return *failure;
    if (bytes == 0) {
      address = nullptr;  // as cudaMalloc does
      return fake_status::success;
    }
    const bool pinned = from == kind::pinned;
    std::size_t& in_use = pinned ? host_bytes_in_use_ : device_bytes_in_use_;
    if (bytes > (pinned ? host_bytes_ : device_bytes_) - in_use) {
      return finish(fake_status::no_memory);
    }
    const std::size_t alignment = pinned ? 4096 : 256;
    const std::size_t offset = pinned ? pinned_offset_ : 0;
    void* const storage =
        std::aligned_alloc(alignment, (offset + bytes + alignment - 1) / alignment * alignment);
    address = static_cast<std::byte*>(storage) + offset;
    std::memset(address, uninitialised, bytes);
    blocks_[address] = {bytes, from, storage};
    in_use += bytes;
    return fake_status::success;
  }
  [[nodiscard]] fake_status free(void* address, kind from) {
    if (const auto failure = begin_call()) return *failure;
    if (address == nullptr) return fake_status::success;
    const auto found = blocks_.find(address);
    if (found == blocks_.end()) return misuse("what is no block, or no longer, was given back");
    if (found->second.from != from) return misuse("a block was given back to another call");
    std::memset(address, poison, found->second.bytes);
    freed_.emplace_back(address, found->second);
    (from == kind::pinned ? host_bytes_in_use_ : device_bytes_in_use_) -= found->second.bytes;
    blocks_.erase(found);
    return fake_status::success;
  }

  [[nodiscard]] address_range* range_of(const std::byte* address, std::size_t bytes) {
    for (auto& [begin, candidate] : ranges_) {
      const auto* const first = static_cast<const std::byte*>(begin);
      if (address >= first && address + bytes <= first + candidate.bytes) return &candidate;
    }
    return nullptr;
  }
  void drop_if_unused(std::uint64_t handle) {
    const physical& memory = handles_.at(handle);
    if (!memory.released || memory.mapped) return;
    device_bytes_in_use_ -= memory.bytes;
    handles_.erase(handle);
  }

  std::size_t device_bytes_;
  std::size_t host_bytes_;
  std::size_t device_bytes_in_use_ = 0;
  std::size_t host_bytes_in_use_ = 0;
  int device_ = 0;
  std::size_t pinned_offset_ = 0;
  std::uint64_t calls_ = 0;
  std::optional<std::uint64_t> failing_call_;
  fake_status failure_ = fake_status::success;
  fake_status last_error_ = fake_status::success;
  std::map<void*, owned_block> blocks_;
  std::vector<std::pair<void*, owned_block>> freed_;
  std::map<void*, address_range> ranges_;
  std::map<std::uint64_t, physical> handles_;
  std::uint64_t next_handle_ = 1;
  std::vector<std::string> misuses_;
  std::vector<void*> synchronized_;
  std::vector<void*> allocated_on_;
  std::vector<void*> freed_on_;
  std::optional<int> device_of_last_memory_;
};

/// The `memory_api` of a `fake_driver`, which must live as long.
class fake_cuda {
 public:
  using status = fake_status;
  using stream = void*;
  using memory_handle = std::uint64_t;
  using call_error = fake_cuda_error;

  static constexpr status success = fake_status::success;
  static constexpr status no_memory = fake_status::no_memory;

  explicit fake_cuda(fake_driver& driver) : driver_(&driver) {}

  [[nodiscard]] status allocate_device(void*& address, std::size_t bytes) const noexcept {
    return driver_->allocate(address, bytes, fake_driver::kind::device);
  }
  [[nodiscard]] status free_device(void* address) const noexcept {
    return driver_->free(address, fake_driver::kind::device);
  }
  [[nodiscard]] status allocate_device_async(void*& address, std::size_t bytes,
                                             stream order) const noexcept {
    driver_->allocated_on_.push_back(order);
    return driver_->allocate(address, bytes, fake_driver::kind::device_async);
  }
  [[nodiscard]] status free_device_async(void* address, stream order) const noexcept {
    driver_->freed_on_.push_back(order);
    return driver_->free(address, fake_driver::kind::device_async);
  }
  [[nodiscard]] status synchronize(stream order) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    driver_->synchronized_.push_back(order);
    return success;
  }
  [[nodiscard]] status allocate_pinned(void*& address, std::size_t bytes) const noexcept {
    return driver_->allocate(address, bytes, fake_driver::kind::pinned);
  }
  [[nodiscard]] status free_pinned(void* address) const noexcept {
    return driver_->free(address, fake_driver::kind::pinned);
  }
  [[nodiscard]] status get_device_memory(std::size_t& free_bytes,
                                         std::size_t& total_bytes) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    total_bytes = driver_->device_bytes_;
    free_bytes = driver_->device_bytes_ - driver_->device_bytes_in_use_;
    return success;
  }
  [[nodiscard]] status get_current_device(int& device) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    device = driver_->device_;
    return success;
  }
  void clear_last_error() const noexcept { driver_->last_error_ = success; }

  [[nodiscard]] status get_granularity(std::size_t& bytes, int /*device*/) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    bytes = fake_driver::granularity;
    return success;
  }
  [[nodiscard]] status reserve_addresses(void*& address, std::size_t bytes,
                                         std::size_t alignment) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    if (bytes == 0 || bytes % fake_driver::granularity != 0) {
      return driver_->misuse("a range of no multiple of the granularity");
    }
    if (bytes > fake_driver::addressable_bytes) return driver_->finish(no_memory);
    address = vggload::detail::map_aligned(bytes, alignment, PROT_NONE);
    if (address == nullptr) return driver_->finish(no_memory);
    driver_->ranges_[address] = {bytes, {}};
    return success;
  }
  [[nodiscard]] status free_addresses(void* address, std::size_t bytes) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    const auto found = driver_->ranges_.find(address);
    if (found == driver_->ranges_.end()) return driver_->misuse("no such range");
    if (found->second.bytes != bytes) return driver_->misuse("a range of another size");
    if (!found->second.mappings.empty()) return driver_->misuse("the range is still mapped");
    ::munmap(address, bytes);
    driver_->ranges_.erase(found);
    return success;
  }
  [[nodiscard]] status create_memory(memory_handle& handle, std::size_t bytes,
                                     int device) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    if (bytes == 0 || bytes % fake_driver::granularity != 0) {
      return driver_->misuse("memory of no multiple of the granularity");
    }
    if (bytes > driver_->device_bytes_ - driver_->device_bytes_in_use_) {
      return driver_->finish(no_memory);
    }
    handle = driver_->next_handle_++;
    driver_->handles_[handle] = {bytes, false, false};
    driver_->device_bytes_in_use_ += bytes;
    driver_->device_of_last_memory_ = device;
    return success;
  }
  [[nodiscard]] status release_memory(memory_handle handle) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    const auto found = driver_->handles_.find(handle);
    if (found == driver_->handles_.end() || found->second.released) {
      return driver_->misuse("no such memory, or it was released");
    }
    found->second.released = true;
    driver_->drop_if_unused(handle);
    return success;
  }
  [[nodiscard]] status map_memory(void* address, std::size_t bytes,
                                  memory_handle handle) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    auto* const begin = static_cast<std::byte*>(address);
    const auto memory = driver_->handles_.find(handle);
    fake_driver::address_range* const range = driver_->range_of(begin, bytes);
    if (range == nullptr || memory == driver_->handles_.end() || memory->second.mapped ||
        memory->second.released || memory->second.bytes != bytes) {
      return driver_->misuse("a mapping outside a range, or of other memory");
    }
    for (const auto& [other, mapping] : range->mappings) {
      if (begin < other + mapping.bytes && other < begin + bytes) {
        return driver_->misuse("a mapping over another");
      }
    }
    memory->second.mapped = true;
    range->mappings[begin] = {bytes, handle};
    return success;
  }
  [[nodiscard]] status unmap_memory(void* address, std::size_t bytes) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    auto* const begin = static_cast<std::byte*>(address);
    fake_driver::address_range* const range = driver_->range_of(begin, bytes);
    if (range == nullptr) return driver_->misuse("an unmapping outside a range");
    const auto found = range->mappings.find(begin);
    if (found == range->mappings.end() || found->second.bytes != bytes) {
      return driver_->misuse("an unmapping of what is no mapping");
    }
    const memory_handle handle = found->second.handle;
    range->mappings.erase(found);
    ::madvise(begin, bytes, MADV_DONTNEED);
    ::mprotect(begin, bytes, PROT_NONE);
    driver_->handles_.at(handle).mapped = false;
    driver_->drop_if_unused(handle);
    return success;
  }
  [[nodiscard]] status allow_access(void* address, std::size_t bytes,
                                    int /*device*/) const noexcept {
    if (const auto failure = driver_->begin_call()) return *failure;
    auto* const begin = static_cast<std::byte*>(address);
    fake_driver::address_range* const range = driver_->range_of(begin, bytes);
    if (range == nullptr || !range->mappings.contains(begin)) {
      return driver_->misuse("access to what is not mapped");
    }
    ::mprotect(begin, bytes, PROT_READ | PROT_WRITE);
    std::memset(begin, fake_driver::uninitialised, bytes);
    return success;
  }

  friend bool operator==(fake_cuda, fake_cuda) = default;

 private:
  fake_driver* driver_;
};

static_assert(vggload::cuda::memory_api<fake_cuda>);

}  // namespace test
