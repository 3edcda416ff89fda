// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <bit>
#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <vggload/convert/convert.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/load/checkpoint.hpp>

using namespace vggload;

namespace {

const std::array<dtype, 4> types{dtype::f16, dtype::bf16, dtype::f32, dtype::f64};

std::vector<simd_level> levels() {
  std::vector<simd_level> all;
  for (const simd_level level : {simd_level::scalar, simd_level::avx2, simd_level::avx512}) {
    if (level <= available_simd_level()) all.push_back(level);
  }
  return all;
}

std::vector<std::byte> convert(dtype from, dtype to, simd_level level,
                               const std::vector<std::byte>& source) {
  const std::size_t count = source.size() * 8 / bits_of(from);
  std::vector<std::byte> out(count * bits_of(to) / 8);
  find_conversion(from, to, level)(source.data(), out.data(), count);
  return out;
}

std::vector<std::byte> read_tensor(const checkpoint& file, std::size_t index) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(file.tensors()[index].bytes));
  file.read(index, 0, bytes);
  return bytes;
}

/// FP32 bit patterns that a stride over all of them leaves out: around each rounding border of both
/// 16-bit types, in every binade.
std::vector<std::uint32_t> critical_patterns() {
  std::vector<std::uint32_t> patterns;
  for (std::uint32_t exponent = 0; exponent < 512; ++exponent) {
    const std::uint32_t base = exponent << 23U;
    for (unsigned bit = 0; bit < 23; ++bit) {
      for (const std::uint32_t around : {0U, 1U, ~0U}) {
        patterns.push_back((base | 1U << bit) + around);
        patterns.push_back((base | 3U << bit) + around);
        patterns.push_back((base | (0x7FFFFFU >> bit << bit)) + around);
      }
    }
  }
  return patterns;
}

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

TEST_CASE("what numpy and ml_dtypes converted comes out the same at every level") {
  // tests/fixtures/make_fixtures.py wrote each source and what the libraries (or exact fractions,
  // where they round twice) make of it.
  struct target {
    const char* suffix;
    dtype to;
  };
  std::size_t compared = 0;
  for (const std::string source : {"f16", "bf16", "f32", "f64", "f8"}) {
    const std::string stem = std::string(FIXTURES) + "/rounding_" + source;
    const checkpoint from = open_checkpoint(stem + ".safetensors");
    for (const target t : {target{"f16", dtype::f16}, {"bf16", dtype::bf16}, {"f32", dtype::f32}}) {
      if (source == t.suffix) continue;
      const std::string path = stem + "_as_" + t.suffix + ".safetensors";
      if (source == "f32" && t.to == dtype::f32) continue;
      const checkpoint expected = open_checkpoint(path);
      for (std::size_t i = 0; i < from.tensors().size(); ++i) {
        const auto& info = from.tensors()[i];
        const auto match = expected.find(info.name);
        REQUIRE(match);
        for (const simd_level level : levels()) {
          INFO(path, " ", info.name, " level ", static_cast<int>(level));
          CHECK(convert(info.dtype, t.to, level, read_tensor(from, i)) ==
                read_tensor(expected, *match));
          ++compared;
        }
      }
    }
  }
  CHECK(compared > 0);
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
    const auto expected = std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
    if (convert_to<float16>(value).bits != expected) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("FP16 to FP32 equals the compiler's own conversion, all of it") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto value =
        static_cast<float>(std::bit_cast<_Float16>(static_cast<std::uint16_t>(bits)));
    const auto ours = convert_to<float>(float16{static_cast<std::uint16_t>(bits)});
    if (std::bit_cast<std::uint32_t>(ours) != std::bit_cast<std::uint32_t>(value)) {
      FAIL_CHECK("differs at " << bits);
    }
  }
}
#endif

TEST_CASE("all levels give the same bits, for every count and alignment") {
  const auto patterns = critical_patterns();
  for (const dtype from : types) {
    for (const dtype to : types) {
      const std::size_t from_size = bits_of(from) / 8;
      const std::size_t to_size = bits_of(to) / 8;
      std::vector<std::byte> source(patterns.size() * sizeof(std::uint32_t));
      std::memcpy(source.data(), patterns.data(), source.size());
      const auto expected = convert(from, to, simd_level::scalar, source);
      for (const simd_level level : levels()) {
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
  for (const simd_level level : levels()) {
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

TEST_CASE("the rounding mode and the flushing of subnormals do not matter") {
  std::vector<std::byte> source(4 * 64);
  for (std::uint32_t i = 0; i < 64; ++i) {
    const std::uint32_t bits = i % 2 == 0 ? 0x33000001U + i * 0x00012345U : i * 0x00001111U;
    std::memcpy(source.data() + 4 * i, &bits, 4);
  }
  for (const dtype to : {dtype::f16, dtype::bf16, dtype::f64}) {
    for (const simd_level level : levels()) {
      const auto expected = convert(dtype::f32, to, level, source);
      for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
        std::fesetround(mode);
#if defined(__x86_64__)
        const unsigned before = _mm_getcsr();
        _mm_setcsr(before | 0x8040U);  // flush to zero, denormals are zero
#endif
        const auto converted = convert(dtype::f32, to, level, source);
#if defined(__x86_64__)
        _mm_setcsr(before);
#endif
        std::fesetround(FE_TONEAREST);
        CHECK(converted == expected);
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
