// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <doctest/doctest.h>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>

#include "../support/message_of.hpp"

using namespace vggload;

namespace {
constexpr std::uint64_t max64 = std::numeric_limits<std::uint64_t>::max();
}

TEST_CASE("checked arithmetic gives nothing where the result does not fit") {
  CHECK(checked_add(max64 - 1, 1) == max64);
  CHECK_FALSE(checked_add(max64, 1));
  CHECK(checked_multiply(0, max64) == 0);
  CHECK(checked_multiply(max64, 0) == 0);
  CHECK(checked_multiply(std::uint64_t{1} << 32, (std::uint64_t{1} << 32) - 1) ==
        max64 - ((std::uint64_t{1} << 32) - 1));
  CHECK_FALSE(checked_multiply(std::uint64_t{1} << 32, std::uint64_t{1} << 32));
  CHECK(checked_align_up(0, 64) == 0);
  CHECK(checked_align_up(65, 64) == 128);
  CHECK_FALSE(checked_align_up(max64, 2));
}

TEST_CASE("in_bounds forms no sum that could wrap") {
  CHECK(in_bounds(0, 0, 0));
  CHECK(in_bounds(10, 0, 10));
  CHECK(in_bounds(3, 7, 10));
  CHECK_FALSE(in_bounds(3, 8, 10));
  CHECK_FALSE(in_bounds(11, 0, 10));
  CHECK_FALSE(in_bounds(2, max64, 10));
  CHECK_FALSE(in_bounds(max64, 2, 10));
}

TEST_CASE("dtypes have safetensors' names and widths") {
  CHECK(name_of(dtype::bf16) == "BF16");
  CHECK(name_of(dtype::boolean) == "BOOL");
  CHECK(name_of(dtype::u64) == "U64");
  CHECK(bits_of(dtype::f4) == 4);
  CHECK(bits_of(dtype::f6_e2m3) == 6);
  CHECK(bits_of(dtype::f8_e5m2) == 8);
  CHECK(bits_of(dtype::c64) == 64);
  for (unsigned i = 0; i <= static_cast<unsigned>(dtype::u64); ++i) {
    const auto type = static_cast<dtype>(i);
    CHECK(dtype_from_name(name_of(type)) == type);
  }
  CHECK_FALSE(dtype_from_name("f32"));
  CHECK_FALSE(dtype_from_name(""));
  CHECK(is_floating(dtype::f16));
  CHECK(is_floating(dtype::f8_e4m3));
  CHECK_FALSE(is_floating(dtype::i32));
  CHECK_FALSE(is_floating(dtype::boolean));
}

TEST_CASE("a shape counts its elements") {
  CHECK(shape{}.elements() == 1);
  CHECK(shape{64, 3, 3, 3}.elements() == 1728);
  CHECK(shape{5, 0}.elements() == 0);
  CHECK_FALSE(shape{max64, 2}.elements());
  CHECK_FALSE(shape{max64, 2, 0}.elements());  // the product overflows before the zero comes
  CHECK(shape{0, max64, 2}.elements() == 0);
  CHECK(shape{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2}.elements() == 2);  // rank 12
  CHECK(to_string(shape{4096, 25088}) == "[4096, 25088]");
  CHECK(to_string(shape{}) == "[]");
  CHECK(to_string(shape(std::vector<std::uint64_t>(16, 1))) ==
        "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]");
  CHECK(to_string(shape(std::vector<std::uint64_t>(1'000'000, 1))) ==
        "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ... of 1000000]");
}

TEST_CASE("the bytes of a tensor are whole and fit into 64 bits") {
  CHECK(bytes_of(dtype::f32, {64, 3, 3, 3}) == 6912);
  CHECK(bytes_of(dtype::f4, {3, 2}) == 3);
  CHECK_FALSE(bytes_of(dtype::f4, {3}));
  CHECK_FALSE(bytes_of(dtype::f64, {max64 / 4}));
}

TEST_CASE("a view gives its elements as their own type only") {
  alignas(8) std::array<std::byte, 16> bytes{};
  bytes[4] = std::byte{0x80};
  bytes[5] = std::byte{0x3F};  // 0x3F80 little-endian: 1.0 as bfloat16
  const tensor_view view(dtype::bf16, {2, 4}, bytes);
  CHECK(view.values<bfloat16>().size() == 8);
  CHECK(view.values<bfloat16>()[2].bits == 0x3F80);
  CHECK(view.values<bfloat16>().data() == static_cast<const void*>(bytes.data()));
  CHECK(test::message_of<error>([&] { (void)view.values<float16>(); }).find("BF16") !=
        std::string::npos);
  CHECK(test::message_of<error>([&] {
          (void)tensor_view(dtype::f32, {5}, bytes);
        }).find("16 bytes cannot show F32 [5]") != std::string::npos);

  const tensor_view shifted(dtype::f32, {3}, std::span(bytes).subspan(2, 12));
  CHECK(test::message_of<error>([&] { (void)shifted.values<float>(); }).find("not aligned") !=
        std::string::npos);
}

TEST_CASE("text from outside stays on one line and is cut") {
  CHECK(printable("a\nb\t\\\x7f") == "a\\x0ab\\x09\\\\\\x7f");
  CHECK(in_quotes("features.0.weight") == "'features.0.weight'");
  CHECK(in_quotes(std::string(1000, 'x')).size() == 205);
  CHECK(printable("\xC3\xA9\xC3\xA9", 1) == "\xC3\xA9...");  // not in the middle of a character
  // What is a line break or a control character beyond ASCII, and what only looks like it.
  CHECK(printable("\xC2\x85|\xC2\x9B|\xE2\x80\xA8|\xE2\x80\xA9") ==
        "\\xc2\\x85|\\xc2\\x9b|\\xe2\\x80\\xa8|\\xe2\\x80\\xa9");
  CHECK(printable("\xC2\xA0\xE2\x80\xA6") == "\xC2\xA0\xE2\x80\xA6");
}
