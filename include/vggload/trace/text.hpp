// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>

namespace vggload::detail {

/// How many bytes at the start of the text, which is not empty, are one well-formed character of
/// UTF-8; 0 where none is (Unicode, table 3-7).
[[nodiscard]] constexpr std::size_t leading_utf8_bytes(std::string_view text) noexcept {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  std::size_t size = 0;
  if (lead >= 0xC2 && lead <= 0xDF) size = 2;
  if (lead >= 0xE0 && lead <= 0xEF) size = 3;
  if (lead >= 0xF0 && lead <= 0xF4) size = 4;
  if (size == 0 || text.size() < size) return 0;
  // The second byte tells overlong forms, surrogates and what is beyond U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (std::size_t i = 2; i < size; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return 0;
  }
  return size;
}

/// The text with U+FFFD for each byte that is not UTF-8: names come from files, and Python's
/// pickle, protobuf and XML refuse a file for one wrong byte.
[[nodiscard]] inline std::string as_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t bytes = leading_utf8_bytes(text);
    out += bytes > 0 ? text.substr(0, bytes) : "\xEF\xBF\xBD";
    text.remove_prefix(bytes > 0 ? bytes : 1);
  }
  return out;
}

/// Text without control characters (`printable`) in XML, which cannot say all of Unicode.
[[nodiscard]] inline std::string xml_text(std::string_view text) {
  const std::string clean = as_utf8(text);
  std::string out;
  for (std::size_t i = 0; i < clean.size(); ++i) {
    const std::string_view rest = std::string_view(clean).substr(i);
    if (rest.starts_with("\xEF\xBF\xBE") || rest.starts_with("\xEF\xBF\xBF")) {
      out += "\xEF\xBF\xBD";  // U+FFFE and U+FFFF are no characters of XML
      i += 2;
      continue;
    }
    switch (clean[i]) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += clean[i];
    }
  }
  return out;
}

/// In fixed notation.
[[nodiscard]] inline std::string decimal(double value, int decimals) {
  std::array<char, 400> text;  // for the largest double, too
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value,
                                 std::chars_format::fixed, decimals);
  return {text.data(), end.ptr};
}

}  // namespace vggload::detail
