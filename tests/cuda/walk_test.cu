// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Walks through launches on the host, block by block and thread by thread, with the code that the
// device runs. What is left to a GPU: the instructions behind `__CUDA_ARCH__` (element.cuh), the
// atomics and the barriers.

#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "support.hpp"

using namespace vggload;
using cuda::launch_position;
using counts = cuda::health_counts<std::uint32_t>;

namespace {

struct launch {
  unsigned blocks;
  unsigned threads;
};
const std::vector<launch> launches{{1, 1}, {1, 32}, {2, 32}, {3, 64}, {5, 33}, {4, 256}};

/// Memory between two pages that nobody may touch: going beyond it ends the test.
class guarded_memory {
 public:
  guarded_memory(std::size_t bytes)
      : page_(static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))),
        size_((bytes + page_ - 1) / page_ * page_) {
    void* const all =
        ::mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(all != MAP_FAILED);
    begin_ = static_cast<std::byte*>(all) + page_;
    REQUIRE(::mprotect(begin_, size_, PROT_READ | PROT_WRITE) == 0);
  }
  guarded_memory(const guarded_memory&) = delete;
  guarded_memory& operator=(const guarded_memory&) = delete;
  ~guarded_memory() { ::munmap(begin_ - page_, size_ + 2 * page_); }

  std::byte* begin() const { return begin_; }
  std::byte* end() const { return begin_ + size_; }

 private:
  std::size_t page_;
  std::size_t size_;
  std::byte* begin_ = nullptr;
};

/// Runs `share(position, mine, block)` for every thread, as the kernels do.
template <class Share>
tensor_health walk(launch size, std::size_t count, Share share) {
  cuda::health_accumulator total{};
  for (unsigned b = 0; b < size.blocks; ++b) {
    counts block{};
    for (unsigned t = 0; t < size.threads; ++t) {
      counts mine{};
      share(launch_position{b, t, size.blocks, size.threads}, mine, block);
      cuda::detail::merge(block, mine);
    }
    cuda::detail::merge(total.counts, block);
  }
  total.numel = count;
  return cuda::to_health(total);
}

/// As the block of a transposing kernel.
template <class To, bool Measured>
tensor_health walk_transposition(launch size, const cuda::hwio_shape& shape, const float* source,
                                 To* destination) {
  const cuda::detail::transposition matrix(shape);
  cuda::health_accumulator total{};
  for (unsigned b = 0; b < size.blocks; ++b) {
    counts block{};
    for (std::size_t tile = b; tile < matrix.tiles(); tile += size.blocks) {
      cuda::detail::transpose_buffer buffer;
      for (unsigned t = 0; t < cuda::detail::threads_per_block; ++t) {
        cuda::detail::read_tile(t, matrix, tile, source, buffer);
      }
      for (unsigned t = 0; t < cuda::detail::threads_per_block; ++t) {
        counts mine{};
        cuda::detail::write_tile<To, Measured>(t, matrix, tile, buffer, destination, mine, block);
        cuda::detail::merge(block, mine);
      }
    }
    cuda::detail::merge(total.counts, block);
  }
  total.numel = cuda::detail::count_elements(shape);
  return cuda::to_health(total);
}

template <class To>
bool same(const std::vector<To>& expected, const std::byte* results) {
  return expected.empty() ||
         std::memcmp(expected.data(), results, expected.size() * sizeof(To)) == 0;
}

bool untouched(const std::byte* begin, const std::byte* end) {
  return std::all_of(begin, end, [](std::byte b) { return b == std::byte{0xA5}; });
}

template <class To>
void check_values(const std::vector<float>& values, launch size) {
  const expected_conversion<To> expected(values);
  std::vector<To> results(values.size());
  // The standard library aligns large memory to 16 bytes: most elements are in groups.
  const auto health =
      walk(size, values.size(), [&](launch_position where, counts& mine, counts& block) {
        cuda::detail::convert_share<To, true>(where, values.data(), results.data(), values.size(),
                                              mine, block);
      });
  CHECK(results == expected.results);
  CHECK(health == expected.health);
  std::vector<To> unmeasured(values.size());
  walk(size, values.size(), [&](launch_position where, counts& mine, counts& block) {
    cuda::detail::convert_share<To, false>(where, values.data(), unmeasured.data(), values.size(),
                                           mine, block);
  });
  CHECK(unmeasured == expected.results);
}

}  // namespace

TEST_CASE_TEMPLATE("results and health are those of the host", To, float16, bfloat16) {
  const launch size{3, 64};
  const std::vector<float> critical = critical_values();
  check_values<To>(critical, size);
  // Groups of eight that are rare in one place only, and those that are not.
  for (std::size_t place = 0; place < 8; ++place) {
    std::vector<float> values = common_values(8 * critical.size() / 64, 0.02F);
    for (std::size_t g = 0; g < values.size() / 8; g += 2) {
      values[8 * g + place] = critical[g * 61 % critical.size()];
    }
    check_values<To>(values, size);
  }
  for (const float deviation : {1e-6F, 1e-4F, 0.02F, 1.0F, 3e4F}) {
    check_values<To>(common_values(50'000, deviation), size);
  }
  check_values<To>(std::vector<float>(1000, 0.0F), size);
  check_values<To>(std::vector<float>(1000, -0.0F), size);
  check_values<To>(std::vector<float>(1000, 1.0F / 3), size);
  check_values<To>(std::vector<float>(1000, -1.0F), size);
}

TEST_CASE_TEMPLATE("each error alone is the host's", To, float16, bfloat16) {
  std::mt19937 random(3);
  for (int i = 0; i < 200'000; ++i) {
    const std::vector<float> value{std::bit_cast<float>(static_cast<std::uint32_t>(random()))};
    const expected_conversion<To> expected(value);
    counts mine{};
    counts block{};
    const std::uint16_t result = cuda::detail::narrow<To>(value[0]);
    cuda::detail::count_element<To>(value[0], result, mine, block);
    REQUIRE(result == expected.results[0].bits);
    REQUIRE(cuda::to_health({1,
                             {mine.neg_inf, mine.pos_inf, mine.nan, mine.neg, mine.zero,
                              mine.overflowed, mine.flushed_to_zero, mine.became_subnormal,
                              mine.max_abs, block.max_relative_error}}) == expected.health);
  }
}

TEST_CASE_TEMPLATE("nothing but the elements is touched, at any alignment", To, float16, bfloat16) {
  const std::vector<float> values = critical_values();
  const guarded_memory source_memory(4096);
  const guarded_memory destination_memory(4096);
  for (const std::size_t count : {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 65, 100, 515}) {
    for (std::size_t from = 0; from < 8; ++from) {
      for (std::size_t to = 0; to < 8; ++to) {
        const launch size = launches[(from + to + count) % launches.size()];
        const auto first = static_cast<std::ptrdiff_t>(count * 13 + from * 8'191 + to * 40'009);
        const std::vector<float> part(
            values.begin() + first % 100'000,
            values.begin() + first % 100'000 + static_cast<std::ptrdiff_t>(count));
        const expected_conversion<To> expected(part);
        // At the end of its memory: of eight counts, all remainders occur in either way.
        for (const bool at_end : {false, true}) {
          std::byte* const source = at_end
                                        ? source_memory.end() - 4 * count - 4 * from * (count % 2)
                                        : source_memory.begin() + 4 * from;
          std::byte* const destination =
              at_end ? destination_memory.end() - 2 * count - 2 * to * (count % 2)
                     : destination_memory.begin() + 2 * to;
          if (count != 0) std::memcpy(source, part.data(), 4 * count);
          std::fill(destination_memory.begin(), destination_memory.end(), std::byte{0xA5});
          const auto health =
              walk(size, count, [&](launch_position where, counts& mine, counts& block) {
                cuda::detail::convert_share<To, true>(where, reinterpret_cast<const float*>(source),
                                                      reinterpret_cast<To*>(destination), count,
                                                      mine, block);
              });
          REQUIRE(same(expected.results, destination));
          REQUIRE(health == expected.health);
          REQUIRE(untouched(destination_memory.begin(), destination));
          REQUIRE(untouched(destination + 2 * count, destination_memory.end()));
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("a group is looked at again only where it raises the largest error", To, float16,
                   bfloat16) {
  const std::vector<float> values = common_values(8000, 0.02F);
  const expected_conversion<To> expected(values);
  counts block{};
  block.max_relative_error =
      std::bit_cast<std::uint32_t>(static_cast<float>(expected.health.max_relative_error));
  std::size_t again = 0;
  std::size_t again_at_first = 0;
  for (std::size_t first = 0; first < values.size(); first += 8) {
    const cuda::detail::element_group<To> group(values.data() + first);
    REQUIRE(!group.has_rare());
    counts mine{};
    if (cuda::detail::count_group(group, mine, block)) ++again;
    if (cuda::detail::count_group(group, mine, counts{})) ++again_at_first;
  }
  CHECK(again == 0);
  CHECK(again_at_first == values.size() / 8);
}

TEST_CASE("each element belongs to one thread, and groups are aligned") {
  for (const launch size : launches) {
    for (std::uintptr_t from = 0; from < 16; from += 4) {
      for (std::uintptr_t to = 0; to < 16; to += 2) {
        for (std::size_t count = 0; count < 70; ++count) {
          const cuda::detail::element_pieces pieces = cuda::detail::split(from, to, count);
          std::vector<int> times(count);
          for (unsigned b = 0; b < size.blocks; ++b) {
            for (unsigned t = 0; t < size.threads; ++t) {
              cuda::detail::for_each_piece(
                  {b, t, size.blocks, size.threads}, pieces,
                  [&](std::size_t first) {
                    REQUIRE(first + 8 <= count);
                    REQUIRE((from + 4 * first) % 16 == 0);
                    REQUIRE((to + 2 * first) % 16 == 0);
                    for (std::size_t i = 0; i < 8; ++i) ++times[first + i];
                  },
                  [&](std::size_t i) {
                    REQUIRE(i < count);
                    ++times[i];
                  });
            }
          }
          REQUIRE(std::count(times.begin(), times.end(), 1) == static_cast<std::ptrdiff_t>(count));
        }
      }
    }
  }
  // Where both can be aligned, few are single.
  CHECK(cuda::detail::split(0, 0, 1024).groups == 128);
  CHECK(cuda::detail::split(4, 2, 1024).head == 7);
  CHECK(cuda::detail::split(4, 2, 1024).groups == 127);
  CHECK(cuda::detail::split(4, 0, 1024).groups == 0);
}

TEST_CASE("indexes beyond 32 bits") {
  const std::size_t many = (std::size_t{1} << 32U) + 12'345;
  for (const std::size_t count : {many - 12'346, many, 5 * many}) {
    for (const std::uintptr_t to : {std::uintptr_t{0}, std::uintptr_t{6}}) {
      const auto pieces = cuda::detail::split(2 * to, to, count);
      REQUIRE(pieces.groups > count / 8 - 2);
      const launch size{1056, 256};
      for (const unsigned index : {0U, 1U, 255U, 256U, 1055U * 256U, 1056U * 256U - 1U}) {
        const launch_position where{index / 256, index % 256, size.blocks, size.threads};
        std::size_t expected = index;
        cuda::detail::for_each_piece(
            where, pieces,
            [&](std::size_t first) {
              if (first != pieces.head + 8 * expected) FAIL_CHECK("group ", first);
              expected += where.stride();
            },
            [&](std::size_t i) {
              CHECK((i < pieces.head || i >= pieces.head + 8 * pieces.groups));
              CHECK(i < count);
            });
        CHECK(expected >= pieces.groups);
        CHECK(expected < pieces.groups + where.stride());
      }
    }
    // Where there are no groups.
    const auto single = cuda::detail::split(4, 0, count);
    CHECK(single.groups == 0);
    std::size_t expected = 270'335;
    cuda::detail::for_each_piece(
        {1055, 255, 1056, 256}, single, [](std::size_t) { FAIL_CHECK("a group"); },
        [&](std::size_t i) {
          if (i != expected) FAIL_CHECK("element ", i);
          expected += std::size_t{1056} * 256;
        });
    CHECK(expected >= count);
    CHECK(expected < count + std::size_t{1056} * 256);
  }
}

TEST_CASE("the number of blocks") {
  using cuda::detail::number_of_blocks;
  CHECK(number_of_blocks(1056, 0, 0) == 1);
  CHECK(number_of_blocks(1056, 1, 1) == 1);
  CHECK(number_of_blocks(1056, 256, 2048) == 1);
  CHECK(number_of_blocks(1056, 257, 2050) == 2);
  CHECK(number_of_blocks(1056, 12'845'056, 102'760'448) == 1056);
  // One block never has 2^32 elements, which its counts could not hold.
  for (unsigned bits = 31; bits < 62; ++bits) {
    for (const std::size_t resident : {1, 7, 1000}) {
      const std::size_t elements = (std::size_t{1} << bits) - 1;
      const std::size_t blocks = number_of_blocks(resident, elements / 8, elements);
      // Groups do not divide evenly.
      CHECK(elements / blocks + (blocks > 1 ? 4096 : 0) <= 0xFFFFFFFF);
    }
  }
}

TEST_CASE("the device's comparison of a ratio is exact") {
  // The device multiplies towards zero, to 24 bits; the host compares exact products.
  const auto as_device = [](float distance, float magnitude, float most) {
    const double exact = double{magnitude} * double{most};
    auto product = static_cast<float>(exact);
    if (double{product} > exact) product = std::nextafter(product, 0.0F);
    return distance > product;
  };
  std::mt19937 random(2);
  std::uniform_int_distribution<std::uint32_t> significands(1U << 23U, (1U << 24U) - 1);
  for (int i = 0; i < 200'000; ++i) {
    const std::uint32_t significand = significands(random);
    const std::uint32_t distance = random() % 4097;
    // A maximum that comes from nearly the same ratio.
    const std::uint32_t other = significand + random() % 3 - 1;
    const float most = cuda::detail::divide_rounding_up(distance + random() % 2, other);
    const auto d = static_cast<float>(distance);
    const auto s = static_cast<float>(significand);
    REQUIRE(as_device(d, s, most) == cuda::detail::exceeds(d, s, most));
  }
}

TEST_CASE_TEMPLATE("transpositions", To, float16, bfloat16) {
  const std::vector<float> critical = critical_values();
  for (const cuda::hwio_shape& shape : transposed_shapes()) {
    const std::size_t count = cuda::detail::count_elements(shape);
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = critical[i * 7919 % critical.size()];
    const expected_conversion<To> expected(transposed(shape, values));
    const guarded_memory source(4 * count);
    const guarded_memory destination(2 * count);
    for (const bool at_end : {false, true}) {
      std::byte* const from = at_end ? source.end() - 4 * count : source.begin();
      std::byte* const to = at_end ? destination.end() - 2 * count : destination.begin();
      std::memcpy(from, values.data(), 4 * count);
      std::fill(destination.begin(), destination.end(), std::byte{0xA5});
      const auto health = walk_transposition<To, true>(
          {3, 0}, shape, reinterpret_cast<const float*>(from), reinterpret_cast<To*>(to));
      CHECK(same(expected.results, to));
      CHECK(health == expected.health);
      CHECK(untouched(destination.begin(), to));
      CHECK(untouched(to + 2 * count, destination.end()));
    }
  }
}

TEST_CASE("a tile is read and written once, and memory in long runs") {
  for (const cuda::hwio_shape& shape :
       {cuda::hwio_shape{3, 3, 64, 128}, cuda::hwio_shape{2, 3, 5, 7},
        cuda::hwio_shape{3, 3, 1'000'003, 1'000'033}}) {
    const cuda::detail::transposition matrix(shape);
    const bool small = matrix.tiles() < 10'000;
    for (const std::size_t tile : {std::size_t{0}, matrix.tiles() / 2, matrix.tiles() - 1}) {
      constexpr std::size_t none = ~std::size_t{0};
      std::vector<std::size_t> sources(cuda::detail::tile_columns * cuda::detail::tile_rows, none);
      for (unsigned t = 0; t < cuda::detail::threads_per_block; ++t) {
        cuda::detail::for_each_read(
            t, matrix, tile, [&](unsigned column, unsigned row, std::size_t index) {
              std::size_t& place = sources[column * cuda::detail::tile_rows + row];
              REQUIRE(place == none);
              place = index;
              // The lanes of a warp beside each other.
              if (row > 0)
                REQUIRE(index == sources[column * cuda::detail::tile_rows + row - 1] + 1);
            });
      }
      std::size_t written = 0;
      for (unsigned t = 0; t < cuda::detail::threads_per_block; ++t) {
        cuda::detail::for_each_write(t, matrix, tile,
                                     [&](unsigned column, unsigned row, std::size_t index) {
                                       const std::size_t position = index % matrix.positions;
                                       const std::size_t in = index / matrix.positions % shape.in;
                                       const std::size_t out = index / matrix.positions / shape.in;
                                       REQUIRE(out < shape.out);
                                       REQUIRE(sources[column * cuda::detail::tile_rows + row] ==
                                               (position * shape.in + in) * shape.out + out);
                                       ++written;
                                     });
      }
      CHECK(written == sources.size() - static_cast<std::size_t>(
                                            std::count(sources.begin(), sources.end(), none)));
      if (small) CHECK(written > 0);
    }
  }
}

TEST_CASE("what the kernels cannot do is refused before the launch") {
  alignas(16) std::byte memory[256];
  const auto source = [&](std::size_t at) { return reinterpret_cast<const float*>(memory + at); };
  const auto destination = [&](std::size_t at) { return reinterpret_cast<float16*>(memory + at); };
  CHECK_THROWS_AS(cuda::convert(source(2), destination(128), 8, nullptr), unsupported_error);
  CHECK_THROWS_AS(cuda::convert(source(0), destination(129), 8, nullptr), unsupported_error);
  CHECK_THROWS_AS(cuda::convert(source(0), destination(0), 8, nullptr), unsupported_error);
  CHECK_THROWS_AS(cuda::convert(source(0), destination(30), 8, nullptr), unsupported_error);
  CHECK_THROWS_AS(cuda::convert(source(14), destination(0), 8, nullptr), unsupported_error);
  CHECK_THROWS_AS(cuda::transpose({1, 2, 2, 2}, source(0), destination(2), nullptr),
                  unsupported_error);
  const std::size_t huge = std::size_t{1} << 31U;
  CHECK_THROWS_AS(static_cast<void>(cuda::detail::count_elements({1, huge, huge, 1})),
                  unsupported_error);
  CHECK(cuda::detail::count_elements({1, huge, huge / 2, 1}) == huge * huge / 2);
  // Side by side is right, and nothing is nothing to do.
  CHECK_NOTHROW(cuda::detail::check_memory(source(0), destination(32), 8));
  CHECK_NOTHROW(cuda::detail::check_memory(source(16), destination(0), 8));
  CHECK_NOTHROW(cuda::convert(source(0), destination(0), 0, nullptr));
  CHECK_NOTHROW(cuda::transpose({3, 3, 0, 8}, source(0), destination(0), nullptr));
}

TEST_CASE("errors name the call and say what CUDA says") {
  CHECK_NOTHROW(cuda::check(cudaSuccess, "cudaMalloc"));
  try {
    cuda::check(cudaErrorInvalidValue, "cudaMemcpy");
    FAIL("no exception");
  } catch (const error& e) {
    CHECK(std::string(e.what()) == "cudaMemcpy: cudaErrorInvalidValue: invalid argument");
  }
  try {
    cuda::check(cudaErrorMemoryAllocation, "cudaMalloc");
    FAIL("no exception");
  } catch (const out_of_memory& e) {
    CHECK(std::string(e.what()) == "cudaMalloc: out of memory");
  }
}
