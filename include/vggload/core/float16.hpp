// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstdint>

namespace vggload {

/// IEEE 754 binary16 as it lies in memory: 1 sign, 5 exponent and 10 fraction bits. Storage only:
/// the arithmetic is the user's choice, the conversions are in `convert/`. Equality compares bits.
struct float16 {
  std::uint16_t bits;
  friend constexpr bool operator==(float16, float16) = default;
};

/// bfloat16 as it lies in memory: the upper half of an IEEE 754 binary32. Storage only, as
/// `float16`.
struct bfloat16 {
  std::uint16_t bits;
  friend constexpr bool operator==(bfloat16, bfloat16) = default;
};

static_assert(sizeof(float16) == 2 && sizeof(bfloat16) == 2);

}  // namespace vggload
