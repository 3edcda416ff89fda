// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Each conversion at each level that the processor has, with and without counting, in the
// second-level cache (64 Ki elements) and beyond all caches (64 Mi elements), beside memcpy of as
// many bytes, Eigen's cast, a plain loop and the bare instruction. All in one run, repetitions in
// random order; medians. Bytes per second count what is read and written. At the end the ratios that
// docs/benchmarks.md has bars for.
//
// Google Benchmark's own options apply: --benchmark_filter=F32_to_F16 ...

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

#include "other_conversions.hpp"

namespace {

using vggload::dtype;
using vggload::simd_level;

constexpr std::int64_t in_cache = std::int64_t{64} << 10;
constexpr std::int64_t beyond = std::int64_t{64} << 20;

struct pair {
  dtype from;
  dtype to;

  [[nodiscard]] std::string name() const {
    return std::string(name_of(from)) + "_to_" + std::string(name_of(to));
  }
  [[nodiscard]] std::size_t bytes(std::size_t count) const {
    return count * (vggload::bits_of(from) + vggload::bits_of(to)) / 8;
  }
};

/// Weights as networks have them: normal, with a deviation of 0.02.
void fill(const vggload::arena<vggload::host_resource>& memory, dtype type) {
  std::mt19937 random(1);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same each time
  std::normal_distribution<float> weights(0, 0.02F);
  std::vector<float> values(65536);
  for (float& value : values) value = weights(random);
  const std::size_t size = vggload::bits_of(type) / 8;
  const auto convert = vggload::find_conversion(dtype::f32, type);
  for (std::size_t at = 0; at < memory.block().size(); at += values.size() * size) {
    convert(reinterpret_cast<const std::byte*>(values.data()), memory.block().data() + at,
            std::min(values.size(), (memory.block().size() - at) / size));
  }
}

template <class Function>
void run(benchmark::State& state, pair types, Function&& function) {
  const auto count = static_cast<std::size_t>(state.range(0));
  const vggload::arena<vggload::host_resource> in(count * vggload::bits_of(types.from) / 8);
  const vggload::arena<vggload::host_resource> out(count * vggload::bits_of(types.to) / 8);
  fill(in, types.from);
  std::memset(out.block().data(), 0, out.block().size());
  for (auto _ : state) {
    function(in.block().data(), out.block().data(), count);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(types.bytes(count)));
}

template <class Function>
void add(pair types, const std::string& what, Function function) {
  benchmark::RegisterBenchmark((types.name() + "/" + what).c_str(),
                               [=](benchmark::State& state) { run(state, types, function); })
      ->Arg(in_cache)
      ->Arg(beyond);
}

void add_all(pair types) {
  add(types, "memcpy", [types](const std::byte* in, std::byte* out, std::size_t count) {
    // Half of the bytes are read, half written; no buffer is larger than what it would copy.
    const std::size_t half = types.bytes(count) / 2;
    const std::size_t most =
        count * std::min(vggload::bits_of(types.from), vggload::bits_of(types.to)) / 8;
    for (std::size_t done = 0; done < half; done += most) {
      std::memcpy(out, in, std::min(most, half - done));
    }
  });
  if (const auto other = bench::find_eigen_cast(types.from, types.to)) add(types, "eigen", other);
  if (const auto other = bench::find_plain_loop(types.from, types.to)) add(types, "plain", other);
  if (const auto other = bench::find_bare_loop(types.from, types.to)) add(types, "bare", other);
  struct level {
    simd_level value;
    const char* name;
  };
  for (const level l : {level{simd_level::scalar, "scalar"},
                        {simd_level::neon, "neon"},
                        {simd_level::avx2, "avx2"},
                        {simd_level::avx512, "avx512"},
                        {simd_level::avx512_bf16, "avx512_bf16"}}) {
    const simd_level best = vggload::available_simd_level();
    if (l.value > best || (l.value == simd_level::neon && best != simd_level::neon)) continue;
    const std::string name = l.value == best ? "best" : l.name;
    add(types, name, vggload::find_conversion(types.from, types.to, l.value));
    const auto measured = vggload::find_measured_conversion(types.from, types.to, l.value);
    add(types, name + "_health", [measured](const std::byte* in, std::byte* out, std::size_t n) {
      vggload::tensor_health health;
      measured(in, out, n, health);
      benchmark::DoNotOptimize(health);
    });
  }
}

/// Keeps the medians for the ratios.
class reporter : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.aggregate_name == "median") {
        medians_[run.run_name.function_name + "/" + run.run_name.args] = run.GetAdjustedCPUTime();
      }
    }
    ConsoleReporter::ReportRuns(runs);
  }

  /// How many times as fast as `other` `ours` is: times are of the same work.
  void print_ratio(pair types, const std::string& other, const std::string& ours,
                   std::int64_t count, const char* bar) const {
    const auto time = [&](const std::string& what) -> std::optional<double> {
      const auto found = medians_.find(types.name() + "/" + what + "/" + std::to_string(count));
      if (found == medians_.end()) return std::nullopt;
      return found->second;
    };
    const auto a = time(other);
    const auto b = time(ours);
    if (!a || !b) return;
    std::printf("%-13s %-9s %-14s %-8s %6.2f  %s\n", types.name().c_str(), ours.c_str(),
                other.c_str(), count == in_cache ? "in cache" : "beyond", *a / *b, bar);
  }

 private:
  std::map<std::string, double> medians_;
};

}  // namespace

int main(int argc, char** argv) {
  std::vector<pair> pairs;
  for (const dtype from : {dtype::f32, dtype::f16, dtype::bf16, dtype::f64}) {
    for (const dtype to : {dtype::f16, dtype::bf16, dtype::f32, dtype::f64}) {
      if (from != to) pairs.push_back({from, to});
    }
  }
  for (const pair types : pairs) add_all(types);
  std::vector<char*> arguments(argv, argv + argc);
  std::vector<std::string> defaults{
      "--benchmark_enable_random_interleaving=true", "--benchmark_repetitions=9",
      "--benchmark_report_aggregates_only=true", "--benchmark_min_time=0.02"};
  for (std::string& one : defaults) arguments.insert(arguments.begin() + 1, one.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  reporter display;
  benchmark::RunSpecifiedBenchmarks(&display);

  std::printf("\n%-13s %-9s %-14s %-8s %6s  bar\n", "conversion", "ours", "over", "where", "ratio");
  for (const pair types : pairs) {
    display.print_ratio(types, "bare", "best", in_cache, ">= 0.9");
    display.print_ratio(types, "memcpy", "best", beyond, ">= 0.95");
    display.print_ratio(types, "best", "best_health", beyond, ">= 0.87 (1 / 1.15)");
    for (const std::int64_t where : {in_cache, beyond}) {
      display.print_ratio(types, "eigen", "best", where, ">= 1");
      display.print_ratio(types, "plain", "best", where, "");
    }
  }
}
