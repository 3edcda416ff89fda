// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <utility>

#include <vggload/core/error.hpp>

namespace vggload {

struct memory_report;

namespace detail {

/// A one-line message that is put together without allocating, for the moment when memory is out.
/// What does not fit is cut; control characters become '?'.
template <std::size_t Capacity>
class basic_fixed_text {
 public:
  basic_fixed_text& operator<<(std::string_view text) noexcept {
    while (!text.empty() && size_ < characters_.size() - 1) {
      const std::size_t control_bytes = leading_control_bytes(text);
      characters_[size_++] = control_bytes > 0 ? '?' : text.front();
      text.remove_prefix(std::max<std::size_t>(control_bytes, 1));
    }
    characters_[size_] = '\0';
    return *this;
  }
  basic_fixed_text& operator<<(std::uint64_t number) noexcept {
    std::array<char, 20> digits;
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
    return *this << std::string_view(digits.data(), end);
  }

  [[nodiscard]] const char* c_str() const noexcept { return characters_.data(); }
  [[nodiscard]] std::string_view view() const noexcept { return {characters_.data(), size_}; }

 private:
  std::array<char, Capacity> characters_{};
  std::size_t size_ = 0;
};

/// Room for the longest path and the numbers behind it.
using fixed_text = basic_fixed_text<4096 + 1024>;

}  // namespace detail

/// Memory is out, or a limit would be passed. Carries its text in itself: making, copying and
/// reading one never allocates.
class out_of_memory : public std::bad_alloc {
 public:
  /// `message`: the whole line. `tensor`: who asked, or the largest of those that did; empty where
  /// no tensor is to blame. `requested`: bytes that were wanted. `report`: what filled the memory.
  out_of_memory(const detail::fixed_text& message, std::string_view tensor, std::uint64_t requested,
                std::shared_ptr<const memory_report> report = {}) noexcept
      : message_(message), requested_(requested), report_(std::move(report)) {
    tensor_ << tensor.substr(0, 200);
  }

  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }
  [[nodiscard]] std::string_view tensor() const noexcept { return tensor_.view(); }
  [[nodiscard]] std::uint64_t requested() const noexcept { return requested_; }
  /// What filled the memory (memory/memory_report.hpp); nullptr where nobody made a report, or
  /// making it failed, which hides nothing of the error itself.
  [[nodiscard]] const std::shared_ptr<const memory_report>& report() const noexcept {
    return report_;
  }

 private:
  detail::fixed_text message_;
  detail::basic_fixed_text<256> tensor_;
  std::uint64_t requested_;
  std::shared_ptr<const memory_report> report_;
};

namespace detail {

/// Calls `make`, which gives a report; nullptr where it throws: no report hides the error that it
/// is about.
template <class Make>
[[nodiscard]] std::shared_ptr<const memory_report> try_report(Make&& make) noexcept {
  try {
    return std::make_shared<const memory_report>(make());
  } catch (...) {
    return nullptr;
  }
}

/// Runs `action`. What it throws for want of memory comes out as an `out_of_memory` that begins
/// with the file's name.
template <class Action>
decltype(auto) naming_out_of_memory(std::string_view path, std::string_view doing,
                                    Action&& action) {
  try {
    return action();
  } catch (const out_of_memory& e) {
    if (std::string_view(e.what()).starts_with(path)) throw;
    throw out_of_memory(fixed_text() << path << ": " << e.what(), e.tensor(), e.requested(),
                        e.report());
  } catch (const std::bad_alloc&) {
    throw out_of_memory(fixed_text() << path << ": out of memory while " << doing, {}, 0);
  }
}

}  // namespace detail

}  // namespace vggload
