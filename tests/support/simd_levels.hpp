// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>

namespace test {

/// All that this machine can run, and that are not the same code.
inline std::vector<vggload::simd_level> simd_levels() {
  using vggload::simd_level;
  const simd_level best = vggload::available_simd_level();
  std::vector<simd_level> all{simd_level::scalar};
  if (best == simd_level::neon) all.push_back(best);
  for (const simd_level level : {simd_level::avx2, simd_level::avx512, simd_level::avx512_bf16}) {
    if (level <= best) all.push_back(level);
  }
  return all;
}

inline std::vector<std::byte> convert(vggload::dtype from, vggload::dtype to,
                                      vggload::simd_level level,
                                      const std::vector<std::byte>& source) {
  const std::size_t count = source.size() * 8 / vggload::bits_of(from);
  std::vector<std::byte> out(count * vggload::bits_of(to) / 8);
  vggload::find_conversion(from, to, level)(source.data(), out.data(), count);
  return out;
}

}  // namespace test
