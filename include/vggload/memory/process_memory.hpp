// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <fcntl.h>
#include <unistd.h>

namespace vggload {

/// What the kernel counts for this process, in bytes: pages of its own and of mapped files alike.
/// On recent kernels the counts lag by up to some dozens of pages per processor.
struct process_memory {
  std::uint64_t resident;       // VmRSS
  std::uint64_t peak_resident;  // VmHWM, since the start or the last `reset_peak_resident`
};

/// Reads /proc/self/status without allocating; nothing where there is none.
[[nodiscard]] inline std::optional<process_memory> read_process_memory() noexcept {
  const int descriptor = ::open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return std::nullopt;
  std::array<char, 4096> buffer;  // some 1.5 KiB are used; the two lines are in the first half
  const ::ssize_t size = ::read(descriptor, buffer.data(), buffer.size());
  ::close(descriptor);
  if (size <= 0) return std::nullopt;
  const std::string_view text(buffer.data(), static_cast<std::size_t>(size));
  const auto kibibytes = [text](std::string_view key) -> std::optional<std::uint64_t> {
    const std::size_t line = text.find(key);
    if (line == std::string_view::npos) return std::nullopt;
    const std::size_t digits = text.find_first_of("0123456789", line);
    if (digits == std::string_view::npos) return std::nullopt;
    std::uint64_t value = 0;
    std::from_chars(text.data() + digits, text.data() + text.size(), value);
    return value;
  };
  const auto resident = kibibytes("VmRSS:");
  const auto peak = kibibytes("VmHWM:");
  if (!resident || !peak) return std::nullopt;
  return process_memory{*resident * 1024, *peak * 1024};
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
