// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vggload/core/error.hpp>

namespace vggload {

/// A file that appears under its name whole or not at all: it is written in the same folder without a
/// name, or under a temporary one where the file system knows no files without, and renamed by
/// `commit`; without `commit` nothing is left of it. A file that stood under the name is replaced, so
/// one may read the old file meanwhile. Neither moves nor copies.
class atomic_output_file {
 public:
  /// Creates the temporary file with `size` bytes reserved on the disk, so that a full disk shows
  /// before anything is written. Throws `io_error`, also where something other than a file has the
  /// name.
  atomic_output_file(std::string path, std::uint64_t size) : path_(std::move(path)) {
    if (path_.empty()) throw io_error("'': not the name of a file");
    resolve_link();
    struct ::stat status {};
    const bool replaces = ::stat(target_.c_str(), &status) == 0;
    if (replaces && !S_ISREG(status.st_mode)) {
      // Renaming over a device or a folder would destroy it or fail late.
      throw io_error(printable(path_) + ": not a regular file");
    }
    create_temporary();
    try {
      // Who may read the old file is who may read the new one.
      if (replaces && ::fchmod(descriptor_, status.st_mode & 07777U) != 0) {
        fail("cannot set the permissions", errno);
      }
      reserve(size);
    } catch (...) {
      discard();
      throw;
    }
  }
  atomic_output_file(const atomic_output_file&) = delete;
  atomic_output_file& operator=(const atomic_output_file&) = delete;
  ~atomic_output_file() { discard(); }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// Writes the bytes at `offset`. From several threads at once, to disjoint places. Throws
  /// `io_error`.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes) const {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ::ssize_t count = ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done,
                                       static_cast<::off_t>(offset + done));
      if (count < 0) {
        if (errno == EINTR) continue;
        fail("cannot write " + std::to_string(bytes.size()) + " bytes at offset " +
                 std::to_string(offset),
             errno);
      }
      done += static_cast<std::size_t>(count);
    }
  }

  /// Gives the file its name. Throws `io_error`, and the file is gone then. It is in the system's
  /// hands, not yet surely on the disk: who needs that syncs the folder's file system.
  void commit() {
    close();
    if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("cannot rename to", errno);
    temporary_.clear();
  }

  /// As `commit`, for small files that are written again and again. What is renamed over another
  /// file ext4 starts to write to the disk at once, in case the power fails, and where the disk is
  /// busy that takes milliseconds for each file. Here the two swap names, and the old one is removed:
  /// one sees the same, but after a power failure the file may be there and empty.
  void commit_lazily() {
#ifdef RENAME_EXCHANGE  // glibc has it, other libraries only lately
    close();
    struct ::stat status {};
    if (::lstat(target_.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
        ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) ==
            0) {
      return discard();
    }
#endif
    commit();  // there is no old file, or the file system cannot swap
  }

 private:
  [[noreturn]] void fail(const std::string& what, int code) const {
    detail::throw_system_error(path_, what, code);
  }

  /// Where the name is a link, what it leads to is written, and the link stays.
  void resolve_link() {
    struct ::stat status {};
    target_ = path_;
    if (::lstat(path_.c_str(), &status) != 0 || !S_ISLNK(status.st_mode)) return;
    const std::unique_ptr<char, decltype(&std::free)> resolved(::realpath(path_.c_str(), nullptr),
                                                               &std::free);
    // A pipe or a socket has a link in /proc that leads to no name; stat() sees what it is.
    if (resolved) target_ = resolved.get();
  }

  void create_temporary() {
#ifdef O_TMPFILE
    // Without a name nothing is left of it, however the process ends. Not every file system can, and the name is given by
    // way of /proc.
    const std::size_t slash = target_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : target_.substr(0, slash + 1);
    if (::access("/proc/self/fd", X_OK) == 0) {
      descriptor_ = ::open(folder.c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
      if (descriptor_ >= 0) return;
    }
#endif
    // open and not mkstemp: the file gets the user's umask, not 0600.
    take_temporary_name("cannot create", [&, this](const char* name) {
      descriptor_ = ::open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      return descriptor_ >= 0;
    });
  }

  void close() {
    if (descriptor_ < 0) return;
    if (temporary_.empty()) {
      const std::string nameless = "/proc/self/fd/" + std::to_string(descriptor_);
      take_temporary_name("cannot give a name to", [&](const char* name) {
        return ::linkat(AT_FDCWD, nameless.c_str(), AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0;
      });
    }
    // This is where some file systems report that a write failed.
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot close", errno);
  }

  /// Tries names until `take` succeeds with one.
  template <class Take>
  void take_temporary_name(const char* what, const Take& take) {
    for (unsigned attempt = 0;; ++attempt) {
      std::string name =
          target_ + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
      if (take(name.c_str())) {
        temporary_ = std::move(name);
        return;
      }
      if (errno != EEXIST || attempt == 1000) fail(what, errno);
    }
  }

  void reserve(std::uint64_t size) const {
    if (size == 0) return;
    // Not posix_fallocate: where the file system cannot reserve, that writes into every block.
    if (::fallocate(descriptor_, 0, 0, static_cast<::off_t>(size)) == 0) return;
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
      fail("cannot reserve " + std::to_string(size) + " bytes", errno);
    }
    if (::ftruncate(descriptor_, static_cast<::off_t>(size)) != 0) {
      fail("cannot set the size to " + std::to_string(size) + " bytes", errno);
    }
  }

  void discard() noexcept {
    if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }

  std::string path_;
  std::string target_;  // path_, links resolved
  std::string temporary_;
  int descriptor_ = -1;
};

}  // namespace vggload
