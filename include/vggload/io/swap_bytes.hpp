// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace vggload::detail {

template <class Word>
void swap_words(std::span<std::byte> bytes, Word (*swap)(Word) noexcept) noexcept {
  for (std::size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word)) {
    Word word = 0;
    std::memcpy(&word, &bytes[i], sizeof word);
    word = swap(word);
    std::memcpy(&bytes[i], &word, sizeof word);
  }
}

/// Turns each group of 1, 2, 4 or 8 bytes round, between big- and little-endian.
inline void swap_bytes(std::span<std::byte> bytes, std::size_t group) noexcept {
  using u16 = std::uint16_t;
  using u32 = std::uint32_t;
  using u64 = std::uint64_t;
  switch (group) {
    case 2:
      return swap_words<u16>(bytes, [](u16 w) noexcept -> u16 { return __builtin_bswap16(w); });
    case 4:
      return swap_words<u32>(bytes, [](u32 w) noexcept -> u32 { return __builtin_bswap32(w); });
    case 8:
      return swap_words<u64>(bytes, [](u64 w) noexcept -> u64 { return __builtin_bswap64(w); });
    default: return;
  }
}

}  // namespace vggload::detail
