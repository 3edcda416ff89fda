// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/weight_reader.hpp>

#include "message_of.hpp"
#include "temporary_folder.hpp"

namespace test {

/// As zlib.crc32 of Python, which gave the expected values; 8 hex digits.
inline std::string crc32_of(std::span<const std::byte> bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1U ^ ((crc & 1U) != 0 ? 0xEDB88320U : 0U);
  }
  std::string text(9, '\0');
  std::snprintf(text.data(), text.size(), "%08x", static_cast<unsigned>(~crc));
  text.pop_back();
  return text;
}

/// A payload read in windows, from the front to the back or the other way.
template <class Reader>
std::vector<std::byte> read_in_windows(const Reader& reader, std::size_t tensor, std::size_t window,
                                       bool backwards = false) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(reader.tensors()[tensor].bytes));
  std::vector<std::size_t> offsets;
  for (std::size_t offset = 0; offset < bytes.size(); offset += window) offsets.push_back(offset);
  if (backwards) std::ranges::reverse(offsets);
  for (const std::size_t offset : offsets) {
    reader.read(tensor, offset,
                std::span(bytes).subspan(offset, std::min(window, bytes.size() - offset)));
  }
  return bytes;
}

/// Compares a reader of row-major tensors with what the real library said of the same file, whole,
/// in windows that cut elements, from the back, and in place.
template <class Reader>
void check_fixture(const Reader& reader) {
  const std::string path = reader.path();
  const auto expected = nlohmann::json::parse(read_file(path + ".expected.json"));
  INFO(path);
  CHECK(reader.format() == expected["format"].get<std::string>());
  const auto& tensors = expected["tensors"];
  REQUIRE(reader.tensors().size() == tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const vggload::tensor_info& info = reader.tensors()[i];
    INFO(tensors[i].dump());
    CHECK(info.name == tensors[i]["name"].get<std::string>());
    CHECK(std::string(dtype_name(info)) == tensors[i]["dtype"].get<std::string>());
    CHECK(info.bytes == tensors[i]["bytes"].get<std::uint64_t>());
    const auto dims = info.shape.dims();
    CHECK(std::vector(dims.begin(), dims.end()) ==
          tensors[i]["shape"].get<std::vector<std::uint64_t>>());
    if (info.dtype == vggload::dtype::opaque) {
      CHECK_FALSE(tensors[i].contains("crc32"));
      CHECK_FALSE(reader.view(i));
      CHECK(message_of<vggload::unsupported_error>([&] {
              reader.read(i, 0, {});
            }).ends_with("'" + info.foreign_dtype + "', cannot be read"));
      continue;
    }
    const auto crc = tensors[i]["crc32"].get<std::string>();
    CHECK(crc32_of(read_in_windows(reader, i, 1U << 20U)) == crc);
    CHECK(crc32_of(read_in_windows(reader, i, 7)) == crc);
    CHECK(crc32_of(read_in_windows(reader, i, 1000, true)) == crc);
    CHECK(crc32_of(read_in_windows(reader, i, 4096)) == crc);
    if (const auto view = reader.view(i)) CHECK(crc32_of(*view) == crc);
  }
}

}  // namespace test
