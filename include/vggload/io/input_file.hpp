// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>

namespace vggload {

/// A regular file open for reading: an owned descriptor and the size at opening. Moves, never
/// copies. `read_at` may be called from several threads at once.
class input_file {
 public:
  /// Throws `io_error` where the file cannot be opened or is no regular file (a directory, a pipe).
  explicit input_file(std::string path) : path_(std::move(path)) {
    // O_NONBLOCK: opening a pipe that nobody writes to must end in an error, not wait for ever.
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) fail("cannot open", errno);
    struct ::stat status {};
    if (::fstat(descriptor_, &status) != 0) {
      const int code = errno;
      close();
      fail("cannot be examined", code);
    }
    if (!S_ISREG(status.st_mode)) {
      close();
      throw io_error(printable(path_) + ": not a regular file");
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  input_file(input_file&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        size_(std::exchange(other.size_, 0)) {}
  input_file& operator=(input_file&& other) noexcept {
    input_file moved(std::move(other));
    std::swap(path_, moved.path_);
    std::swap(descriptor_, moved.descriptor_);
    std::swap(size_, moved.size_);
    return *this;
  }
  ~input_file() { close(); }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
  /// Bytes in the file when it was opened.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// Fills `out` with the bytes from `offset` on. Throws `io_error` where the system refuses, and
  /// where the file ends before: one that has become shorter since it was opened is an error, never
  /// a signal.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const {
    if (!in_bounds(offset, out.size(), size_)) fail_short(offset, out.size(), size_);
    std::size_t done = 0;
    while (done < out.size()) {
      const ::ssize_t count = ::pread(descriptor_, out.data() + done, out.size() - done,
                                      static_cast<::off_t>(offset + done));
      if (count < 0) {
        if (errno == EINTR) continue;
        fail("cannot read " + std::to_string(out.size()) + " bytes at offset " +
                 std::to_string(offset),
             errno);
      }
      if (count == 0) fail_short(offset, out.size(), std::min(offset + done, size_now()));
      done += static_cast<std::size_t>(count);
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what, int code) const {
    detail::throw_system_error(path_, what, code);
  }
  /// The file may have become shorter.
  [[nodiscard]] std::uint64_t size_now() const noexcept {
    struct ::stat status {};
    return ::fstat(descriptor_, &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : size_;
  }
  [[noreturn]] void fail_short(std::uint64_t offset, std::size_t wanted, std::uint64_t end) const {
    throw io_error(printable(path_) + ": the file ends at byte " + std::to_string(end) + " but " +
                   std::to_string(wanted) + " bytes from offset " + std::to_string(offset) +
                   " were to be read (it had " + std::to_string(size_) + " bytes when opened)");
  }
  void close() noexcept {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }

  std::string path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace vggload
