// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace vggload::detail {

/// The number at the start of `bytes`, which must be long enough. All formats here are
/// little-endian; so must the machine be, as payloads are shown in place.
template <std::unsigned_integral T>
[[nodiscard]] T load_little_endian(std::span<const std::byte> bytes) noexcept {
  static_assert(std::endian::native == std::endian::little);
  T value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

/// Numbers at fixed places of a record, which must hold them.
class little_endian_reader {
 public:
  explicit little_endian_reader(std::span<const std::byte> record) noexcept : record_(record) {}

  [[nodiscard]] std::uint16_t u16(std::size_t at) const noexcept {
    return load_little_endian<std::uint16_t>(record_.subspan(at));
  }
  [[nodiscard]] std::uint32_t u32(std::size_t at) const noexcept {
    return load_little_endian<std::uint32_t>(record_.subspan(at));
  }
  [[nodiscard]] std::uint64_t u64(std::size_t at) const noexcept {
    return load_little_endian<std::uint64_t>(record_.subspan(at));
  }

 private:
  std::span<const std::byte> record_;
};

[[nodiscard]] inline std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace vggload::detail
