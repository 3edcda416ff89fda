// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <bit>
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <vggload/convert/convert.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/core/dtype.hpp>

#include "../support/critical_patterns.hpp"
#include "../support/float_reference.hpp"
#include "../support/simd_levels.hpp"

using namespace vggload;
using test::convert;
using test::critical_patterns;
using test::simd_levels;

namespace {

const std::array<dtype, 4> types{dtype::f16, dtype::bf16, dtype::f32, dtype::f64};

}  // namespace

TEST_CASE("known values, worked out by hand") {
  const auto f16 = [](float value) { return convert_to<float16>(value).bits; };
  CHECK(f16(0.0F) == 0x0000);
  CHECK(f16(-0.0F) == 0x8000);
  CHECK(f16(1.0F) == 0x3C00);
  CHECK(f16(-2.0F) == 0xC000);
  CHECK(f16(65504.0F) == 0x7BFF);                           // the largest
  CHECK(f16(std::bit_cast<float>(0x477FEFFFU)) == 0x7BFF);  // just below 65520
  CHECK(f16(65520.0F) == 0x7C00);                           // half way to 65536: to even, infinity
  CHECK(f16(0x1p-14F) == 0x0400);                           // the smallest normal
  CHECK(f16(0x1p-24F) == 0x0001);                           // the smallest subnormal
  CHECK(f16(0x1p-25F) == 0x0000);                           // half of it: to even, zero
  CHECK(f16(0x1.000002p-25F) == 0x0001);                    // a little more
  CHECK(f16(0x1.8p-24F) == 0x0002);                         // half way between 1 and 2: to even
  CHECK(f16(1.0F + 0x1p-11F) == 0x3C00);                    // half way: to even, down
  CHECK(f16(1.0F + 0x3p-11F) == 0x3C02);                    // half way: to even, up
  CHECK(f16(std::bit_cast<float>(0x7F800001U)) ==
        0x7E00);  // signalling: quiet, its low payload is lost
  CHECK(f16(std::bit_cast<float>(0xFFC02000U)) == 0xFE01);  // sign and upper payload stay

  const auto bf16 = [](std::uint32_t bits) {
    return convert_to<bfloat16>(std::bit_cast<float>(bits)).bits;
  };
  CHECK(bf16(0x3F808000U) == 0x3F80);  // half way: to even, down
  CHECK(bf16(0x3F818000U) == 0x3F82);  // half way: to even, up
  CHECK(bf16(0x7F7FFFFFU) == 0x7F80);  // the largest FP32 rounds to infinity
  CHECK(bf16(0x00000001U) == 0x0000);
  CHECK(bf16(0x00008001U) == 0x0001);  // subnormal
  CHECK(bf16(0xFF800001U) == 0xFFC0);

  // 1 + 2^-11 + 2^-40 is above half way for FP16, but FP32 in between would round it to half way.
  CHECK(convert_to<float16>(1.0 + 0x1p-11 + 0x1p-40).bits == 0x3C01);
  CHECK(convert_to<float>(0x1p-150) == 0.0F);
  CHECK(convert_to<float>(0x1.8p-149) == 0x1p-148F);
  CHECK(convert_to<double>(float16{0x0001}) == 0x1p-24);
}

#if defined(__FLT16_MANT_DIG__)
TEST_CASE("FP32 to FP16 equals the compiler's own conversion") {
  // Every 1009th pattern (a prime: all endings occur) and the critical ones.
  std::vector<std::uint32_t> patterns = critical_patterns();
  for (std::uint64_t bits = 0; bits <= 0xFFFFFFFFU; bits += 1009) {
    patterns.push_back(static_cast<std::uint32_t>(bits));
  }
  std::size_t wrong = 0;
  for (const std::uint32_t bits : patterns) {
    const auto value = std::bit_cast<float>(bits);
    if (convert_to<float16>(value).bits != test::reference_f16(value)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("FP64 to FP16 is rounded once: around every value of FP16 and every middle of two") {
  std::vector<double> values;
  for (std::uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const auto here =
        static_cast<double>(convert_to<float>(float16{static_cast<std::uint16_t>(bits)}));
    const double next =
        bits == 0x7BFF
            ? 65536.0
            : static_cast<double>(convert_to<float>(float16{static_cast<std::uint16_t>(bits + 1)}));
    // A neighbour in FP64, and one that FP32 cannot tell from the middle.
    for (const double middle : {here, (here + next) / 2}) {
      for (const double relative : {0.0, 0x1p-52, -0x1p-52, 0x1p-30, -0x1p-30}) {
        values.push_back(middle * (1 + relative));
        values.push_back(-values.back());
      }
    }
  }
  std::vector<std::byte> source(values.size() * sizeof(double));
  std::memcpy(source.data(), values.data(), source.size());
  for (const simd_level level : simd_levels()) {
    const auto out = convert(dtype::f64, dtype::f16, level, source);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, out.data() + 2 * i, 2);
      if (bits != test::reference_f16(values[i])) ++wrong;
    }
    INFO("level ", static_cast<int>(level));
    CHECK(wrong == 0);
  }
}

TEST_CASE("FP16 to FP32 equals the compiler's own conversion, all of it") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto value =
        static_cast<float>(std::bit_cast<test::compiler_f16>(static_cast<std::uint16_t>(bits)));
    const auto ours = convert_to<float>(float16{static_cast<std::uint16_t>(bits)});
    if (std::bit_cast<std::uint32_t>(ours) != std::bit_cast<std::uint32_t>(value)) {
      FAIL_CHECK("differs at " << bits);
    }
  }
}
#endif

TEST_CASE("FP32 to BF16 goes to the nearest") {
  std::vector<std::uint32_t> patterns = critical_patterns();
  for (std::uint64_t bits = 0; bits <= 0xFFFFFFFFU; bits += 10007) {
    patterns.push_back(static_cast<std::uint32_t>(bits));
  }
  std::size_t wrong = 0;
  for (const std::uint32_t bits : patterns) {
    const auto value = std::bit_cast<float>(bits);
    if (convert_to<bfloat16>(value).bits != test::reference_bf16(value)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("all levels give the same bits, for every count and alignment") {
  const auto patterns = critical_patterns();
  for (const dtype from : types) {
    for (const dtype to : types) {
      const std::size_t from_size = bits_of(from) / 8;
      const std::size_t to_size = bits_of(to) / 8;
      std::vector<std::byte> source(patterns.size() * sizeof(std::uint32_t));
      std::memcpy(source.data(), patterns.data(), source.size());
      const auto expected = convert(from, to, simd_level::scalar, source);
      for (const simd_level level : simd_levels()) {
        INFO(name_of(from), " to ", name_of(to), " level ", static_cast<int>(level));
        CHECK(convert(from, to, level, source) == expected);
        // Counts around the vector widths, one byte off alignment, with guards behind the end.
        for (std::size_t count = 0; count < 70; ++count) {
          std::vector<std::byte> in(1 + count * from_size);
          std::memcpy(in.data() + 1, source.data() + 1000 * from_size, count * from_size);
          std::vector<std::byte> out(1 + count * to_size + 8, std::byte{0xA5});
          find_conversion(from, to, level)(in.data() + 1, out.data() + 1, count);
          CHECK(std::memcmp(out.data() + 1, expected.data() + 1000 * to_size, count * to_size) ==
                0);
          CHECK(out[0] == std::byte{0xA5});
          CHECK(out[1 + count * to_size] == std::byte{0xA5});
        }
      }
    }
  }
}

TEST_CASE("narrowing in place works") {
  for (const simd_level level : simd_levels()) {
    for (const dtype to : {dtype::f16, dtype::bf16}) {
      const auto patterns = critical_patterns();
      std::vector<std::byte> bytes(patterns.size() * 4);
      std::memcpy(bytes.data(), patterns.data(), bytes.size());
      const auto expected = convert(dtype::f32, to, simd_level::scalar, bytes);
      find_conversion(dtype::f32, to, level)(bytes.data(), bytes.data(), patterns.size());
      CHECK(std::memcmp(bytes.data(), expected.data(), expected.size()) == 0);
    }
  }
}

TEST_CASE("what is written past the caches is the same") {
  // 8 MiB and a little of 16-bit elements: there the destination's alignment begins to matter.
  const std::size_t count = (std::size_t{4} << 20U) + 1077;
  std::vector<std::byte> source(count * 8 + 1);
  std::uint64_t state = 1;
  for (std::size_t i = 0; i + 8 <= source.size(); i += 8) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    std::memcpy(source.data() + i, &state, 8);
  }
  std::vector<std::byte> expected(count * 4);
  std::vector<std::byte> out(count * 4 + 128);
  for (const dtype from : {dtype::f64, dtype::f32, dtype::bf16}) {
    for (const dtype to : {dtype::f16, dtype::bf16, dtype::f32}) {
      if (from == to) continue;
      const std::size_t bytes = count * bits_of(to) / 8;
      find_conversion(from, to, simd_level::scalar)(source.data() + 1, expected.data(), count);
      for (const simd_level level : simd_levels()) {
        for (const std::size_t offset : {0U, 6U, 60U, 1U}) {
          std::ranges::fill(out, std::byte{0xA5});
          find_conversion(from, to, level)(source.data() + 1, out.data() + offset, count);
          INFO(name_of(from), " to ", name_of(to), " level ", static_cast<int>(level), " + ",
               offset);
          CHECK(std::memcmp(out.data() + offset, expected.data(), bytes) == 0);
          if (offset > 0) CHECK(out[offset - 1] == std::byte{0xA5});
          CHECK(out[offset + bytes] == std::byte{0xA5});
        }
      }
    }
  }
}

TEST_CASE("a conversion says where a finite value may have become infinite, and no other time") {
  const auto said = [](dtype from, dtype to, float value, simd_level level, std::size_t place) {
    std::vector<float> values(100, 0.5F);
    values[place] = value;
    std::vector<std::byte> plain(values.size() * sizeof(float));
    std::memcpy(plain.data(), values.data(), plain.size());
    const auto source = convert(dtype::f32, from, simd_level::scalar, plain);
    std::vector<std::byte> out(800);
    return find_conversion(from, to, level)(source.data(), out.data(), values.size());
  };
  const auto infinity = std::bit_cast<float>(0x7F800000U);
  for (const simd_level level : simd_levels()) {
    for (const std::size_t place : {0U, 31U, 99U}) {
      CHECK(said(dtype::f32, dtype::f16, 65520.0F, level, place));
      CHECK(said(dtype::f32, dtype::f16, -1e30F, level, place));
      CHECK(said(dtype::f32, dtype::f16, infinity, level, place));
      CHECK_FALSE(said(dtype::f32, dtype::f16, -65504.0F, level, place));
      CHECK_FALSE(said(dtype::f32, dtype::f16, 65519.9F, level, place));
      CHECK(said(dtype::bf16, dtype::f16, 1e10F, level, place));
      CHECK(said(dtype::f64, dtype::f16, 1e10F, level, place));
      CHECK(said(dtype::f32, dtype::bf16, std::bit_cast<float>(0x7F7FFFFFU), level, place));
      CHECK_FALSE(said(dtype::f32, dtype::bf16, 1e38F, level, place));
      // These cannot overflow, whatever is in them.
      CHECK_FALSE(said(dtype::f16, dtype::f32, infinity, level, place));
      CHECK_FALSE(said(dtype::f16, dtype::bf16, infinity, level, place));
      CHECK_FALSE(said(dtype::f32, dtype::f64, infinity, level, place));
      CHECK_FALSE(said(dtype::f32, dtype::f32, infinity, level, place));
    }
    const double large = 1e39;
    std::array<std::byte, 4> out;
    CHECK(find_conversion(dtype::f64, dtype::f32, level)(reinterpret_cast<const std::byte*>(&large),
                                                         out.data(), 1));
  }
}

TEST_CASE("rounding mode, flushing of subnormals and traps do not matter, and stay as they are") {
  std::vector<std::byte> singles(4 * 64);
  for (std::uint32_t i = 0; i < 64; ++i) {
    const std::uint32_t bits = i % 4 == 0   ? 0x33000001U + i * 0x00012345U
                               : i % 4 == 1 ? i * 0x00001111U
                               : i % 4 == 2 ? 0x7F800001U + i
                                            : 0x477FEFFFU + i;
    std::memcpy(singles.data() + 4 * i, &bits, 4);
  }
  for (const dtype from : types) {
    for (const dtype to : types) {
      std::vector<std::byte> source = singles;
      if (from != dtype::f32) source = convert(dtype::f32, from, simd_level::scalar, singles);
      const auto expected = convert(from, to, simd_level::scalar, source);
      for (const simd_level level : simd_levels()) {
        INFO(name_of(from), " to ", name_of(to), " level ", static_cast<int>(level));
        for (const int mode : {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
          std::fesetround(mode);
#if defined(__x86_64__)
          const unsigned before = _mm_getcsr();
          // Flush to zero, denormals are zero; every exception traps.
          const unsigned hostile = ((before | 0x8040U) & ~0x1FBFU);
          _mm_setcsr(hostile);
#endif
          std::vector<std::byte> converted(expected.size());
          find_conversion(from, to, level)(source.data(), converted.data(), 64);
#if defined(__x86_64__)
          const unsigned after = _mm_getcsr();
          _mm_setcsr(before);
          CHECK(after == hostile);
#endif
          CHECK(std::fegetround() == mode);
          std::fesetround(FE_TONEAREST);
          CHECK(converted == expected);
        }
      }
    }
  }
}

TEST_CASE("there is a conversion between floating types only") {
  CHECK_FALSE(bool(find_conversion(dtype::i32, dtype::f16)));
  CHECK_FALSE(bool(find_conversion(dtype::f32, dtype::i8)));
  CHECK_FALSE(bool(find_conversion(dtype::f4, dtype::f16)));
  CHECK_FALSE(bool(find_conversion(dtype::f32, dtype::f8_e4m3)));
  CHECK(bool(find_conversion(dtype::f8_e4m3, dtype::f16)));
}
