// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>
#include <utility>

#include <dlfcn.h>

namespace vggload::cuda {

/// A shared library that is looked for at run time, where the dynamic linker looks (LD_LIBRARY_PATH
/// among them), so that a program starts without it. Unloaded at the end, unless somebody else uses
/// it. Moves, never copies.
class shared_library {
 public:
  /// Where it cannot be loaded, `reason` says why. Throws std::bad_alloc.
  explicit shared_library(const char* name) : handle_(::dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ != nullptr) return;
    // NOLINTNEXTLINE(concurrency-mt-unsafe): glibc keeps one text for each thread
    const char* const why = ::dlerror();
    reason_ = why != nullptr ? why : name;
  }
  shared_library(shared_library&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), reason_(std::move(other.reason_)) {}
  shared_library& operator=(shared_library&& other) noexcept {
    shared_library moved(std::move(other));
    std::swap(handle_, moved.handle_);
    std::swap(reason_, moved.reason_);
    return *this;
  }
  ~shared_library() {
    if (handle_ != nullptr) ::dlclose(handle_);
  }

  [[nodiscard]] explicit operator bool() const noexcept { return handle_ != nullptr; }
  /// The dynamic linker's words, which name the library; empty where it was loaded.
  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }

  /// One of its functions, of C linkage; nullptr where it has none of that name. Nobody checks that
  /// `Function` is its type.
  template <class Function>
  [[nodiscard]] Function* function(const char* name) const noexcept {
    if (handle_ == nullptr) return nullptr;
    return reinterpret_cast<Function*>(::dlsym(handle_, name));
  }

 private:
  void* handle_;
  std::string reason_;
};

}  // namespace vggload::cuda
