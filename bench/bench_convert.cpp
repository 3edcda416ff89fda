// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Each conversion at each level that the processor has, in the second-level cache (64 Ki elements)
// and beyond all caches (64 Mi elements), beside memcpy of as many bytes. Bytes per second count
// what is read and written.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include <benchmark/benchmark.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

namespace {

using vggload::dtype;
using vggload::simd_level;

void run_conversion(benchmark::State& state, dtype from, dtype to, simd_level level) {
  const auto count = static_cast<std::size_t>(state.range(0));
  const std::size_t in_bytes = count * vggload::bits_of(from) / 8;
  const std::size_t out_bytes = count * vggload::bits_of(to) / 8;
  const vggload::arena<vggload::host_resource> in(in_bytes);
  const vggload::arena<vggload::host_resource> out(out_bytes);
  std::memset(in.block().data(), 0x3C, in_bytes);  // ordinary numbers in every type
  std::memset(out.block().data(), 0, out_bytes);
  const vggload::conversion convert = vggload::find_conversion(from, to, level);
  for (auto _ : state) {
    convert(in.block().data(), out.block().data(), count);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(in_bytes + out_bytes));
}

/// As many bytes read and written as an FP32 to FP16 conversion of the same count has.
void run_memcpy(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0)) * 3;
  const vggload::arena<vggload::host_resource> in(bytes);
  const vggload::arena<vggload::host_resource> out(bytes);
  std::memset(in.block().data(), 0x3C, bytes);
  std::memset(out.block().data(), 0, bytes);
  for (auto _ : state) {
    std::memcpy(out.block().data(), in.block().data(), bytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * 2 * static_cast<std::int64_t>(bytes));
}

}  // namespace

int main(int argc, char** argv) {
  constexpr std::int64_t in_cache = std::int64_t{64} << 10;
  constexpr std::int64_t beyond = std::int64_t{64} << 20;
  benchmark::RegisterBenchmark("memcpy", &run_memcpy)->Arg(in_cache)->Arg(beyond);
  struct pair {
    dtype from;
    dtype to;
  };
  for (const pair p : {pair{dtype::f32, dtype::f16}, pair{dtype::f32, dtype::bf16},
                       pair{dtype::f16, dtype::f32}, pair{dtype::bf16, dtype::f32},
                       pair{dtype::f16, dtype::bf16}, pair{dtype::bf16, dtype::f16}}) {
    for (const simd_level level : {simd_level::avx512, simd_level::avx2, simd_level::scalar}) {
      if (level > vggload::available_simd_level()) continue;
      const char* const suffix = level == simd_level::avx512 ? "/avx512"
                                 : level == simd_level::avx2 ? "/avx2"
                                                             : "/scalar";
      const std::string name = std::string(name_of(p.from)) + "_to_" + std::string(name_of(p.to));
      benchmark::RegisterBenchmark(
          (name + suffix).c_str(),
          [=](benchmark::State& state) { run_conversion(state, p.from, p.to, level); })
          ->Arg(in_cache)
          ->Arg(beyond);
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
