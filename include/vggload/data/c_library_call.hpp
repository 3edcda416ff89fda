// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstddef>
#include <exception>
#include <span>
#include <string_view>
#include <utility>

#include <vggload/data/decoded_rows.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload::detail {

/// Calls of a C library that reports errors through a callback which must not return, and may not throw: the library is
/// built without unwinding. `leave` jumps out of the callback, over the library's frames, back into `run`.
class c_library_call {
 public:
  /// Calls `action`, which calls the library and has no object with a destructor while it does. False where
  /// `leave` was called meanwhile.
  template <class Action>
  [[nodiscard]] bool run(const Action& action) {
    // NOLINTNEXTLINE(cert-err52-cpp): the libraries leave no other way
    if (setjmp(return_point_) != 0) return false;
    action();
    return true;
  }

  /// For the library's callbacks, within `run` only.
  [[noreturn]] void leave(std::string_view message) noexcept {
    const std::size_t size = std::min(message.size(), message_.size());
    std::copy_n(message.begin(), size, message_.begin());
    message_size_ = size;
    leave();
  }
  [[noreturn]] void leave() noexcept {
    // NOLINTNEXTLINE(cert-err52-cpp)
    std::longjmp(return_point_, 1);
  }

  /// Memory for the library; nullptr where `memory` refuses, which `fail` then throws again.
  [[nodiscard]] void* allocate(scratch& memory, std::size_t bytes) noexcept {
    try {
      return memory.allocate(bytes).data();
    } catch (...) {
      refused_ = std::current_exception();
      return nullptr;
    }
  }

  /// Throws what `leave` was called for: what memory was refused with, or a `format_error` with the message.
  [[noreturn]] void fail(std::string_view path) {
    if (refused_) std::rethrow_exception(std::exchange(refused_, nullptr));
    fail_image(path, {message_.data(), message_size_});
  }

 private:
  std::jmp_buf return_point_{};
  std::array<char, 256> message_{};
  std::size_t message_size_ = 0;
  std::exception_ptr refused_;
};

}  // namespace vggload::detail
