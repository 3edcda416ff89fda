// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/load/checkpoint.hpp>

#include "../support/simd_levels.hpp"

using namespace vggload;

namespace {

std::vector<std::byte> read_tensor(const checkpoint& file, std::size_t index) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(file.tensors()[index].bytes));
  file.read(index, 0, bytes);
  return bytes;
}

}  // namespace

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
        for (const simd_level level : test::simd_levels()) {
          INFO(path, " ", info.name, " level ", static_cast<int>(level));
          CHECK(test::convert(info.dtype, t.to, level, read_tensor(from, i)) ==
                read_tensor(expected, *match));
          ++compared;
        }
      }
    }
  }
  CHECK(compared > 0);
}
