// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

namespace vggload {

namespace detail {

/// One of the kernel's files of lines such as "VmRSS:     1234 kB", read without allocating. Of
/// those that are used here the lines wanted are in the first 4 KiB.
class kernel_counters {
 public:
  explicit kernel_counters(const char* path) noexcept {
    const int descriptor = ::open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    const ::ssize_t size = ::read(descriptor, buffer_.data(), buffer_.size());
    ::close(descriptor);
    if (size > 0) text_ = {buffer_.data(), static_cast<std::size_t>(size)};
  }
  kernel_counters(const kernel_counters&) = delete;
  kernel_counters& operator=(const kernel_counters&) = delete;

  /// The bytes on the line that begins with `key`; nothing where there is none.
  [[nodiscard]] std::optional<std::uint64_t> bytes(std::string_view key) const noexcept {
    const std::size_t line = text_.find(key);
    if (line == std::string_view::npos) return std::nullopt;
    const std::size_t digits = text_.find_first_of("0123456789", line);
    if (digits == std::string_view::npos) return std::nullopt;
    std::uint64_t kibibytes = 0;
    std::from_chars(text_.data() + digits, text_.data() + text_.size(), kibibytes);
    return kibibytes * 1024;
  }

 private:
  std::array<char, 4096> buffer_;
  std::string_view text_;
};

}  // namespace detail

/// What the kernel counts for this process, in bytes: pages of its own and of mapped files alike.
/// On recent kernels the counts lag by up to some dozens of pages per processor.
struct process_memory {
  std::uint64_t resident;       // VmRSS
  std::uint64_t peak_resident;  // VmHWM, since the start or the last `reset_peak_resident`
};

/// Reads /proc/self/status without allocating; nothing where there is none.
[[nodiscard]] inline std::optional<process_memory> read_process_memory() noexcept {
  const detail::kernel_counters status("/proc/self/status");
  const auto resident = status.bytes("VmRSS:");
  const auto peak = status.bytes("VmHWM:");
  if (!resident || !peak) return std::nullopt;
  return process_memory{*resident, *peak};
}

/// The memory of the machine, in bytes.
struct host_memory {
  std::uint64_t total;
  /// What this process can still get: what the kernel has or can take back from its caches, but no
  /// more than its limit of address space (`ulimit -v`) leaves. The limits of control groups are not
  /// looked at.
  std::uint64_t available;
};

/// Reads /proc/meminfo without allocating; nothing where there is none.
[[nodiscard]] inline std::optional<host_memory> read_host_memory() noexcept {
  const detail::kernel_counters info("/proc/meminfo");
  const auto total = info.bytes("MemTotal:");
  auto available = info.bytes("MemAvailable:");
  if (!total || !available) return std::nullopt;
  ::rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const auto used = detail::kernel_counters("/proc/self/status").bytes("VmSize:").value_or(0);
    available = std::min<std::uint64_t>(
        *available, limit.rlim_cur - std::min<std::uint64_t>(used, limit.rlim_cur));
  }
  return host_memory{*total, *available};
}

/// Makes the peak begin anew at what is resident now. False where the system does not allow it.
inline bool reset_peak_resident() noexcept {
  const int descriptor = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  const bool done = ::write(descriptor, "5", 1) == 1;
  ::close(descriptor);
  return done;
}

}  // namespace vggload
