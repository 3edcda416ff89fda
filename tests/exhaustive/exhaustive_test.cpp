// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// All 2^32 values of FP32 to FP16 and to BF16, through every path that this machine has, with and
// without counting, against references that are made in another way (support/float_reference.hpp);
// the counts against numbers worked out from the formats. Minutes: ./dev test --exhaustive.
//
//   exhaustive_test [STRIDE]      every STRIDE-th block of 65,536 values only

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/health.hpp>
#include <vggload/core/dtype.hpp>

#include "../support/float_reference.hpp"
#include "../support/simd_levels.hpp"

namespace {

using vggload::dtype;
using vggload::tensor_health;

constexpr std::size_t block = 65536;
constexpr std::uint64_t blocks = (std::uint64_t{1} << 32U) / block;

struct path {
  dtype to;
  vggload::simd_level level;
  std::uint64_t wrong = 0;
  std::uint64_t wrong_when_counting = 0;
  tensor_health health = {};
};

template <class Reference>
void run_block(path& p, const std::vector<std::uint32_t>& source,
               const std::vector<std::uint16_t>& expected, Reference&& out) {
  const auto* const from = reinterpret_cast<const std::byte*>(source.data());
  auto* const to = reinterpret_cast<std::byte*>(out.data());
  vggload::find_conversion(dtype::f32, p.to, p.level)(from, to, block);
  for (std::size_t i = 0; i < block; ++i) p.wrong += out[i] != expected[i] ? 1U : 0U;
  vggload::find_measured_conversion(dtype::f32, p.to, p.level)(from, to, block, p.health);
  for (std::size_t i = 0; i < block; ++i) {
    p.wrong_when_counting += out[i] != expected[i] ? 1U : 0U;
  }
}

/// What all of FP32 holds: of 2^31 magnitudes that of zero, 0x7F7FFFFF finite ones, infinity and
/// 0x7FFFFF NaNs. FP16 overflows from 65520 on (0x477FF000) and flushes what is up to 2^-25
/// (0x33000000); its subnormals end at 2^-14 (0x38800000), to which rounds what is from 2^-14 -
/// 2^-25 on (0x387FE000). BF16 overflows from 0x7F7F8000 on and flushes what is up to 2^-134
/// (0x00008000).
tensor_health expected_health(dtype to) {
  tensor_health h;
  h.numel = std::uint64_t{1} << 32U;
  h.neg_inf = h.pos_inf = 1;
  h.nan = 2 * 0x7FFFFFU;
  h.zero = 2;
  h.neg = h.pos = 0x7F7FFFFF;
  h.max_abs = 0x1.FFFFFEp127;
  if (to == dtype::f16) {
    h.overflowed = 2 * (0x7F800000U - 0x477FF000U);
    h.flushed_to_zero = std::uint64_t{2} * 0x33000000U;
    h.became_subnormal = 2 * (0x387FE000U - 0x33000001U);
    // The one above 2^-25, which becomes 2^-24: 1 - 2^-22 or so, of 2^-25 (1 + 2^-23).
    h.max_relative_error = vggload::detail::divide_rounding_up(0x7FFFFF, 0x800001);
  } else {
    h.overflowed = 2 * (0x7F800000U - 0x7F7F8000U);
    h.flushed_to_zero = 2 * 0x8000U;
    h.max_relative_error = vggload::detail::divide_rounding_up(0x10000 - 0x8001, 0x8001);
  }
  return h;
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t stride = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  std::vector<path> paths;
  for (const dtype to : {dtype::f16, dtype::bf16}) {
    for (const vggload::simd_level level : test::simd_levels()) paths.push_back({to, level});
  }
  std::atomic<std::uint64_t> next = 0;
  std::mutex mutex;
  const auto work = [&] {
    std::vector<path> own = paths;
    std::vector<std::uint32_t> source(block);
    std::array<std::vector<std::uint16_t>, 2> expected;
    expected.fill(std::vector<std::uint16_t>(block));
    std::vector<std::uint16_t> out(block);
    for (std::uint64_t b = next.fetch_add(stride); b < blocks; b = next.fetch_add(stride)) {
      for (std::size_t i = 0; i < block; ++i) {
        source[i] = static_cast<std::uint32_t>(b * block + i);
        const auto value = std::bit_cast<float>(source[i]);
        expected[0][i] = test::reference_f16(value);
        expected[1][i] = test::reference_bf16(value);
      }
      for (path& p : own) run_block(p, source, expected[p.to == dtype::f16 ? 0 : 1], out);
      if (b % 4096 == 0) {
        std::fprintf(stderr, "%llu of %llu blocks\n", static_cast<unsigned long long>(b),
                     static_cast<unsigned long long>(blocks));
      }
    }
    const std::scoped_lock lock(mutex);
    for (std::size_t i = 0; i < paths.size(); ++i) {
      paths[i].wrong += own[i].wrong;
      paths[i].wrong_when_counting += own[i].wrong_when_counting;
      paths[i].health += own[i].health;
    }
  };
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < std::max(1U, std::thread::hardware_concurrency()); ++i) {
      threads.emplace_back(work);
    }
  }
  bool failed = false;
  for (const path& p : paths) {
    const bool counts = stride != 1 || p.health == expected_health(p.to);
    failed = failed || p.wrong != 0 || p.wrong_when_counting != 0 || !counts;
    constexpr std::array<const char*, 5> names{"scalar", "neon", "avx2", "avx512", "avx512_bf16"};
    std::printf("F32 to %-4s %-11s: %llu values, %llu wrong, %llu wrong when counting, counts %s\n",
                vggload::name_of(p.to).data(), names[static_cast<std::size_t>(p.level)],
                static_cast<unsigned long long>(p.health.numel),
                static_cast<unsigned long long>(p.wrong),
                static_cast<unsigned long long>(p.wrong_when_counting),
                stride != 1 ? "not checked"
                : counts    ? "right"
                            : "WRONG");
  }
  return failed ? 1 : 0;
}
