// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace test {

/// The bytes of a safetensors file, put together by hand: `length` says what the first 8 bytes
/// claim.
inline std::string safetensors_with_length(std::uint64_t length, std::string_view header,
                                           std::size_t data_bytes) {
  std::string file;
  for (unsigned i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i) & 0xFFU);
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

/// The same with the true length. The payload's bytes count 0, 1, 2, ...
inline std::string safetensors(std::string_view header, std::size_t data_bytes) {
  return safetensors_with_length(header.size(), header, data_bytes);
}

}  // namespace test
