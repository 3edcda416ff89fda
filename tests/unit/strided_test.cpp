// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/io/strided_read.hpp>
#include <vggload/load/permutation.hpp>

using namespace vggload;
using detail::permutation;
using detail::strided_layout;

namespace {

/// Where each element of a strided tensor lies, in row-major order: by counting all indices up.
std::vector<std::uint64_t> places(std::span<const strided_axis> axes) {
  std::uint64_t elements = 1;
  for (const strided_axis& axis : axes) elements *= axis.count;
  std::vector<std::uint64_t> result(elements);
  for (std::uint64_t e = 0; e < elements; ++e) {
    std::uint64_t rest = e;
    for (std::size_t a = axes.size(); a-- > 0;) {
      result[e] += rest % axes[a].count * axes[a].stride;
      rest /= axes[a].count;
    }
  }
  return result;
}

}  // namespace

TEST_CASE("a strided tensor is gathered, whatever its strides and wherever the window") {
  std::mt19937 random(1);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same cases each time
  const auto below = [&random](std::uint64_t n) { return random() % n; };
  std::vector<std::byte> source(100'000);
  for (std::byte& b : source) b = static_cast<std::byte>(random());
  for (int i = 0; i < 3000; ++i) {
    const std::size_t size = std::size_t{1} << below(4);
    std::vector<strided_axis> axes(below(5));
    std::uint64_t extent = size;
    for (strided_axis& axis : axes) {
      axis = {1 + below(9), size * (below(3) == 0 ? below(4) : below(2000))};
      extent += (axis.count - 1) * axis.stride;
    }
    if (extent > source.size()) continue;
    std::vector<std::byte> expected;
    for (const std::uint64_t place : places(axes)) {
      for (std::size_t b = 0; b < size; ++b) expected.push_back(source[place + b]);
    }
    const std::size_t offset = below(expected.size());
    std::vector<std::byte> got(below(expected.size() - offset + 1));
    bool inside = true;
    detail::read_strided(strided_layout(axes, size), offset, got,
                         [&](std::uint64_t at, std::span<std::byte> out) {
                           inside = inside && at + out.size() <= extent;
                           if (inside) std::memcpy(out.data(), &source[at], out.size());
                         });
    REQUIRE(inside);
    REQUIRE(
        std::equal(got.begin(), got.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset)));
  }
}

TEST_CASE("gathering reads runs, not elements, and not all that lies between them") {
  const auto reads = [](std::vector<strided_axis> axes, std::size_t bytes) {
    std::pair<std::size_t, std::size_t> calls_and_bytes;
    std::vector<std::byte> out(bytes);
    detail::read_strided(strided_layout(axes, 4), 0, out,
                         [&](std::uint64_t, std::span<std::byte> part) {
                           ++calls_and_bytes.first;
                           calls_and_bytes.second += part.size();
                         });
    return calls_and_bytes;
  };
  // Dense: one read. A matrix on its side, 100 rows at a time: a run of 100 for each column.
  CHECK(reads({{1000, 4000}, {1000, 4}}, 4'000'000) ==
        std::pair(std::size_t{1}, std::size_t{4'000'000}));
  CHECK(reads({{10'000, 4}, {5'000, 40'000}}, 100 * 20'000) ==
        std::pair(std::size_t{5'000}, std::size_t{5'000 * 400}));
  // Every second element: what lies between is read too.
  CHECK(reads({{100'000, 8}}, 400'000).first < 50);
  // One element seen very often.
  CHECK(reads({{100'000, 0}}, 400'000).first < 50);
}

TEST_CASE("boxes cover a tensor once, with every element in its place") {
  std::mt19937 random(2);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same cases each time
  const auto below = [&random](std::uint64_t n) { return random() % n; };
  for (int i = 0; i < 2000; ++i) {
    std::vector<strided_axis> axes(below(5));
    std::uint64_t elements = 1;
    for (strided_axis& axis : axes) elements *= axis.count = 1 + below(9);
    // Dense, with the axes in any order.
    std::vector<std::size_t> order(axes.size());
    for (std::size_t a = 0; a < order.size(); ++a) order[a] = a;
    std::ranges::shuffle(order, random);
    std::uint64_t stride = 4;
    for (const std::size_t a : order) {
      axes[a].stride = stride;
      stride *= axes[a].count;
    }
    std::vector<std::uint32_t> source(elements);
    for (std::uint32_t& value : source) value = static_cast<std::uint32_t>(random());
    std::vector<std::uint32_t> expected;
    for (const std::uint64_t place : places(axes)) expected.push_back(source[place / 4]);

    const bool onwards = below(2) == 0;
    const std::uint64_t most = 1 + below(200);
    const permutation plan(strided_layout(axes, 4), most, onwards);
    std::vector<std::uint32_t> got(elements, 0xFFFFFFFF);
    std::uint64_t source_end = 0;
    std::uint64_t covered = 0;
    for (std::uint64_t b = 0; b < plan.boxes(); ++b) {
      const auto box = plan.box(b);
      REQUIRE(box.elements <= most);
      covered += box.elements;
      std::vector<std::uint32_t> from;
      plan.for_each_source_run(box, [&](std::uint64_t byte, std::uint64_t count) {
        if (onwards) REQUIRE(byte == source_end);
        source_end = byte + 4 * count;
        for (std::uint64_t e = 0; e < count; ++e) from.push_back(source[byte / 4 + e]);
      });
      std::vector<std::uint32_t> to(from.size());
      plan.permute(box, std::as_bytes(std::span(from)).data(),
                   std::as_writable_bytes(std::span(to)).data(), 4);
      auto next = to.begin();
      plan.for_each_destination_run(box, [&](std::uint64_t element, std::uint64_t count) {
        for (std::uint64_t e = 0; e < count; ++e) got[element + e] = *next++;
      });
    }
    REQUIRE(covered == elements);
    REQUIRE(got == expected);
  }
}

TEST_CASE("fc1 is turned in boxes with long runs on both sides") {
  const permutation plan(strided_layout(std::vector<strided_axis>{{4096, 4}, {25088, 4 * 4096}}, 4),
                         262'144, false);
  const auto box = plan.box(0);
  std::size_t runs = 0;
  plan.for_each_source_run(box, [&](std::uint64_t, std::uint64_t) { ++runs; });
  plan.for_each_destination_run(box, [&](std::uint64_t, std::uint64_t) { ++runs; });
  // A square of 512 would have 1024.
  CHECK(box.elements > 100'000);
  CHECK(static_cast<double>(runs) / static_cast<double>(box.elements) < 1.2 * 1024 / 262'144);
}
