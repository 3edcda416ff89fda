// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace vggload {

// Every error of the library is an `error`, or an `out_of_memory` (memory/out_of_memory.hpp), which
// is a std::bad_alloc. what() is one line; where a file is concerned it begins with the file's
// name, and it names the tensor and the numbers that disagree.

/// The base of all errors but `out_of_memory`.
class error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The operating system refused an operation on a file, or the file changed while it was in use.
class io_error : public error {
 public:
  explicit io_error(const std::string& what, std::error_code code = {})
      : error(what), code_(code) {}

  /// The system's error, or none where the library itself saw that something is wrong.
  [[nodiscard]] std::error_code code() const noexcept { return code_; }

 private:
  std::error_code code_;
};

/// The bytes of a file are not what its format prescribes.
class format_error : public error {
 public:
  using error::error;
};

/// The tensors of a file are not those that the model needs.
class binding_error : public error {
 public:
  using error::error;
};

/// What was asked for is legal but cannot be done: a conversion between types that has no rule,
/// say.
class unsupported_error : public error {
 public:
  using error::error;
};

/// A value does not fit into the type that it is converted to, and that was to be refused.
class overflow_error : public error {
 public:
  using error::error;
};

/// A std::stop_token asked for the end.
class cancelled_error : public error {
 public:
  using error::error;
};

namespace detail {

/// How many bytes at the start of the text belong to a character that would break a line or steer a
/// terminal: a control character, U+0080 to U+009F among them, U+2028 or U+2029.
[[nodiscard]] constexpr std::size_t leading_control_bytes(std::string_view text) noexcept {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x20 || byte(0) == 0x7F) return 1;
  if (byte(0) == 0xC2 && text.size() > 1 && byte(1) < 0xA0) return 2;
  if (text.starts_with("\xE2\x80\xA8") || text.starts_with("\xE2\x80\xA9")) return 3;
  return 0;
}

}  // namespace detail

/// Text from outside (a path, a tensor's name) made fit for a one-line message: control characters
/// and backslashes are escaped, and what exceeds `limit` bytes is cut with an ellipsis.
[[nodiscard]] inline std::string printable(std::string_view text, std::size_t limit = 4096) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  std::size_t escaped_until = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // Not cut in the middle of a UTF-8 sequence.
    if (i >= limit && (byte & 0xC0U) != 0x80U) return out += "...";
    if (i >= escaped_until) escaped_until = i + detail::leading_control_bytes(text.substr(i));
    if (i < escaped_until) {
      out += "\\x";
      out += digits[byte >> 4U];
      out += digits[byte & 0xFU];
    } else if (text[i] == '\\') {
      out += "\\\\";
    } else {
      out += text[i];
    }
  }
  return out;
}

/// A tensor's name as it stands in messages: 'features.0.weight', long ones cut.
[[nodiscard]] inline std::string in_quotes(std::string_view name) {
  std::string text = "'";
  text += printable(name, 200);
  return text += '\'';
}

namespace detail {

/// Throws an `io_error` "<path>: <what>: <the system's words for errno>".
[[noreturn]] inline void throw_system_error(std::string_view path, const std::string& what,
                                            int error_number) {
  const std::error_code code(error_number, std::system_category());
  throw io_error(printable(path) + ": " + what + ": " + code.message(), code);
}

}  // namespace detail

}  // namespace vggload
