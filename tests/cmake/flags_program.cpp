// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Prints a digest of every conversion at every level, and what was counted. flags.cmake compiles it
// with one set of a consumer's flags after the other: the output must not change.

#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>

#include "../support/critical_patterns.hpp"
#include "../support/simd_levels.hpp"

int main() {
  using vggload::dtype;
  const auto patterns = test::critical_patterns();
  std::vector<std::byte> source(patterns.size() * 4);
  std::memcpy(source.data(), patterns.data(), source.size());
  for (const dtype from : {dtype::f16, dtype::bf16, dtype::f32, dtype::f64, dtype::f8_e5m2}) {
    for (const dtype to : {dtype::f16, dtype::bf16, dtype::f32, dtype::f64}) {
      for (const vggload::simd_level level : test::simd_levels()) {
        std::vector<std::byte> in = source;
        in.resize(in.size() / 8 * 8);
        const std::size_t count = in.size() * 8 / vggload::bits_of(from);
        std::vector<std::byte> out(count * vggload::bits_of(to) / 8);
        vggload::tensor_health h;
        vggload::find_measured_conversion(from, to, level)(in.data(), out.data(), count, h);
        std::uint64_t digest = 14695981039346656037U;  // FNV-1a
        for (const auto& bytes : {out, test::convert(from, to, level, in)}) {
          for (const std::byte byte : bytes) {
            digest = (digest ^ std::to_integer<std::uint64_t>(byte)) * 1099511628211U;
          }
        }
        std::uint64_t error = 0;  // as bits: printing is not what is tested
        std::uint64_t most = 0;
        std::memcpy(&error, &h.max_relative_error, sizeof(error));
        std::memcpy(&most, &h.max_abs, sizeof(most));
        std::printf("%s %s %d: %016" PRIx64, name_of(from).data(), name_of(to).data(),
                    static_cast<int>(level), digest);
        for (const std::uint64_t n : {h.numel, h.neg_inf, h.pos_inf, h.nan, h.neg, h.zero, h.pos,
                                      h.overflowed, h.flushed_to_zero, h.became_subnormal}) {
          std::printf(" %" PRIu64, n);
        }
        std::printf(" %016" PRIx64 " %016" PRIx64 "\n", most, error);
      }
    }
  }
}
