// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <vggload/convert/convert.hpp>
#include <vggload/convert/health.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>

#include "../support/critical_patterns.hpp"
#include "../support/simd_levels.hpp"

using namespace vggload;
using test::simd_levels;

namespace {

constexpr std::array<dtype, 4> types{dtype::f16, dtype::bf16, dtype::f32, dtype::f64};

struct measured {
  std::vector<std::byte> result;
  tensor_health health;
};

measured measure(dtype from, dtype to, simd_level level, const std::vector<std::byte>& source) {
  const std::size_t count = source.size() * 8 / bits_of(from);
  measured m{std::vector<std::byte>(count * bits_of(to) / 8), {}};
  find_measured_conversion(from, to, level)(source.data(), m.result.data(), count, m.health);
  return m;
}

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

tensor_health health_of(dtype to, const std::vector<float>& values, simd_level level) {
  return measure(dtype::f32, to, level, bytes_of(values)).health;
}

}  // namespace

TEST_CASE("a small tensor, counted by hand") {
  const auto infinity = std::bit_cast<float>(0x7F800000U);
  const auto nan = std::bit_cast<float>(0x7FC00000U);
  const std::vector<float> values{1.0F,   -2.0F,    0.0F,     -0.0F,     infinity, -infinity,
                                  nan,    -nan,     65504.0F, 65520.0F,  -1e30F,   0x1p-25F,
                                  -1e-9F, 0x1p-24F, -1e-5F,   0x1p-149F, 0.5F};
  for (const simd_level level : simd_levels()) {
    INFO("level ", static_cast<int>(level));
    // Alone in scalar code, and among many so that vectors meet them.
    for (const std::size_t copies : {1U, 64U}) {
      std::vector<float> many;
      for (std::size_t i = 0; i < copies; ++i)
        many.insert(many.end(), values.begin(), values.end());
      const tensor_health h = health_of(dtype::f16, many, level);
      CHECK(h.numel == 17 * copies);
      CHECK(h.pos_inf == 1 * copies);
      CHECK(h.neg_inf == 1 * copies);
      CHECK(h.nan == 2 * copies);
      CHECK(h.zero == 2 * copies);
      CHECK(h.neg == 4 * copies);  // -2, -1e30, -1e-9, -1e-5
      CHECK(h.pos == 7 * copies);
      CHECK(h.overflowed == 2 * copies);        // 65520, -1e30
      CHECK(h.flushed_to_zero == 3 * copies);   // 2^-25, -1e-9, 2^-149
      CHECK(h.became_subnormal == 2 * copies);  // 2^-24, -1e-5
      CHECK(h.max_abs == 1e30F);
      // -1e-5 is nearest to -168 * 2^-24; the quotient, which FP64 has to 53 bits, rounded up to 24.
      const double exact = std::fabs(double{-1e-5F} - -168 * 0x1p-24) / double{1e-5F};
      CHECK(h.max_relative_error >= exact);
      CHECK(h.max_relative_error < exact * (1 + 0x1p-22));
      CHECK(static_cast<double>(static_cast<float>(h.max_relative_error)) == h.max_relative_error);
    }
  }
}

TEST_CASE("relative errors that can be worked out by hand") {
  for (const simd_level level : simd_levels()) {
    INFO("level ", static_cast<int>(level));
    const auto error = [level](dtype to, float value) {
      return health_of(to, std::vector<float>(40, value), level).max_relative_error;
    };
    CHECK(error(dtype::f16, 1.0F) == 0);
    CHECK(error(dtype::f16, 1.0F / 1024) == 0);
    // Half way between 1 and 1 + 2^-10: 2^-11 of 1 + 2^-11 = 2049 * 2^-11, so 1 / 2049.
    CHECK(error(dtype::f16, 1.0F + 0x1p-11F) == detail::divide_rounding_up(1, 2049));
    CHECK(detail::divide_rounding_up(1, 2049) > 1.0 / 2049);
    CHECK(detail::divide_rounding_up(1, 2049) < 1.0 / 2049 * (1 + 0x1p-22));
    // 1.5 * 2^-25 becomes 2^-24: a third.
    CHECK(error(dtype::f16, 0x1.8p-25F) == 0x1.555556p-2);
    CHECK(error(dtype::f16, 0x1p-26F) == 0);  // flushed: counted apart
    CHECK(error(dtype::f16, 1e6F) == 0);      // overflowed: likewise
    // Half way between 1 and 1 + 2^-7: 1 / 257.
    CHECK(error(dtype::bf16, 1.0F + 0x1p-8F) == detail::divide_rounding_up(1, 257));
    // A subnormal of FP32: 3 * 2^-135 becomes 4 * 2^-135 = 2^-133, the smallest of BF16: a third.
    CHECK(error(dtype::bf16, 0x1.8p-134F) == 0x1.555556p-2);
    CHECK(error(dtype::f32, 0.1F) == 0);
  }
}

TEST_CASE("all levels count the same and convert the same, whatever the types and the values") {
  std::mt19937_64 random(7);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
  const auto patterns = test::critical_patterns();
  std::vector<std::vector<std::byte>> sources;
  sources.push_back(bytes_of(patterns));
  {
    std::normal_distribution<float> weights(0, 0.02F);  // what a network has
    std::vector<float> values(20'011);
    for (float& value : values) value = weights(random);
    sources.push_back(bytes_of(values));
    for (std::size_t i = 0; i < values.size(); i += 3) values[i] = 0;
    sources.push_back(bytes_of(values));
    for (float& value : values) value *= 1e-4F;  // mostly subnormal in FP16
    sources.push_back(bytes_of(values));
    for (float& value : values) value *= 1e-30F;  // for BF16 likewise
    sources.push_back(bytes_of(values));
    for (float& value : values) value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    sources.push_back(bytes_of(values));
  }
  for (const auto& source : sources) {
    for (const dtype from : types) {
      for (const dtype to : types) {
        std::vector<std::byte> in = source;
        in.resize(in.size() / 8 * 8);
        if (from == dtype::f64) in = test::convert(dtype::f32, dtype::f64, simd_level::scalar, in);
        const measured expected = measure(from, to, simd_level::scalar, in);
        for (const simd_level level : simd_levels()) {
          INFO(name_of(from), " to ", name_of(to), " level ", static_cast<int>(level));
          const measured m = measure(from, to, level, in);
          CHECK(m.health == expected.health);
          if (from == to) {
            CHECK(m.result == in);
          } else {
            CHECK(m.result == test::convert(from, to, simd_level::scalar, in));
          }
        }
        const tensor_health& h = expected.health;
        CHECK(h.numel == in.size() * 8 / bits_of(from));
        CHECK(h.neg_inf + h.pos_inf + h.nan + h.neg + h.zero + h.pos == h.numel);
      }
    }
  }
}

TEST_CASE("all levels count FP64 the same: numbers that no smaller type holds, of every size") {
  std::mt19937_64 random(11);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
  std::vector<double> values(30'011);
  for (double& value : values) {
    // 53 random bits, from 2^-170 to 2^150: what FP32, BF16 and FP16 hold and what they do not.
    const int exponent = static_cast<int>(random() % 320) - 170;
    value = std::ldexp(static_cast<double>(random() >> 11U | 1U), exponent - 53);
    if (random() % 2 == 0) value = -value;
  }
  for (std::size_t i = 0; i < values.size(); i += 7) {
    values[i] = std::bit_cast<double>(random());  // anything: huge, tiny, infinite, NaN
  }
  std::vector<double> usual(30'011);
  for (double& value : usual) value = std::ldexp(static_cast<double>(random() >> 11U), -60);
  for (const auto& source : {bytes_of(values), bytes_of(usual)}) {
    for (const dtype to : types) {
      const measured expected = measure(dtype::f64, to, simd_level::scalar, source);
      for (const simd_level level : simd_levels()) {
        INFO("to ", name_of(to), " level ", static_cast<int>(level));
        const measured m = measure(dtype::f64, to, level, source);
        CHECK(m.health == expected.health);
        CHECK(m.result == expected.result);
        std::vector<std::byte> place = source;
        tensor_health health;
        find_measured_conversion(dtype::f64, to, level)(place.data(), place.data(), values.size(),
                                                        health);
        place.resize(expected.result.size());
        CHECK(place == expected.result);
        CHECK(health == expected.health);
      }
    }
  }
}

#if defined(__x86_64__)
TEST_CASE("a mode in which subnormal numbers are zero does not change what is counted") {
  // One of them alone, in a block that vectors count, and merged.
  const std::vector<double> few{5e-324, 1e-310, -2e-308};
  std::vector<double> many(2000, 1e-310);
  many[1999] = -2e-308;
  for (const dtype to : types) {
    for (const auto& source : {bytes_of(few), bytes_of(many)}) {
      const tensor_health expected = measure(dtype::f64, to, simd_level::scalar, source).health;
      CHECK(expected.max_abs == 2e-308);
      for (const simd_level level : simd_levels()) {
        const unsigned before = _mm_getcsr();
        _mm_setcsr(before | 0x8040U);  // flush to zero, denormals are zero
        const tensor_health health = measure(dtype::f64, to, level, source).health;
        tensor_health merged;
        merged += health;
        _mm_setcsr(before);
        CHECK(health == expected);
        CHECK(merged == expected);
      }
    }
  }
}
#endif

TEST_CASE("parts merge to the whole, whatever their order") {
  const auto source = bytes_of(test::critical_patterns());
  for (const dtype to : {dtype::f16, dtype::bf16}) {
    const tensor_health whole = measure(dtype::f32, to, simd_level::scalar, source).health;
    for (const simd_level level : simd_levels()) {
      tensor_health forwards;
      std::vector<tensor_health> parts;
      for (std::size_t begin = 0; begin < source.size(); begin += 4 * 1013) {
        const std::size_t end = std::min(source.size(), begin + 4 * 1013);
        const std::vector<std::byte> part(source.begin() + static_cast<std::ptrdiff_t>(begin),
                                          source.begin() + static_cast<std::ptrdiff_t>(end));
        parts.push_back(measure(dtype::f32, to, level, part).health);
        forwards += parts.back();
      }
      tensor_health backwards;
      for (std::size_t i = parts.size(); i-- > 0;) backwards += parts[i];
      CHECK(forwards == whole);
      CHECK(backwards == whole);
    }
  }
}

TEST_CASE("counting while narrowing in place, and past the caches") {
  std::vector<float> values((std::size_t{4} << 20U) + 77);
  std::mt19937 random(3);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
  for (float& value : values) value = static_cast<float>(random()) * 0x1p-40F;
  const auto source = bytes_of(values);
  const measured expected = measure(dtype::f32, dtype::f16, simd_level::scalar, source);
  for (const simd_level level : simd_levels()) {
    CHECK(measure(dtype::f32, dtype::f16, level, source).health == expected.health);
    CHECK(measure(dtype::f32, dtype::f16, level, source).result == expected.result);
    std::vector<std::byte> place = source;
    tensor_health health;
    find_measured_conversion(dtype::f32, dtype::f16, level)(place.data(), place.data(),
                                                            values.size(), health);
    place.resize(expected.result.size());
    CHECK(place == expected.result);
    CHECK(health == expected.health);
  }
}

TEST_CASE("what an overflow is, and what saturating makes of it") {
  const auto infinity = std::bit_cast<float>(0x7F800000U);
  const std::vector<float> values{1.0F, 65520.0F, infinity, -1e9F, -infinity, 65504.0F};
  const auto source = bytes_of(values);
  auto result = test::convert(dtype::f32, dtype::f16, simd_level::scalar, source);
  std::vector<std::size_t> found;
  detail::for_each_overflow(dtype::f32, dtype::f16, source.data(), result.data(), values.size(),
                            [&](std::size_t i, double value, std::byte* place) {
                              CHECK(value == static_cast<double>(values[i]));
                              found.push_back(i);
                              detail::make_finite(dtype::f16, place);
                            });
  CHECK(found == std::vector<std::size_t>{1, 3});
  std::array<std::uint16_t, 6> bits;
  std::memcpy(bits.data(), result.data(), sizeof(bits));
  CHECK(bits == std::array<std::uint16_t, 6>{0x3C00, 0x7BFF, 0x7C00, 0xFBFF, 0xFC00, 0x7BFF});
  CHECK(largest_finite(dtype::f16) == 65504);
  CHECK(largest_finite(dtype::bf16) == 0x1.FEp127);
  CHECK(largest_finite(dtype::f32) == 0x1.FFFFFEp127);
}
