// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// vgg16::load against the floor: a bare loop with the same threads that reads the same bytes in 256
// KiB windows and converts them with the widest instruction into fresh huge-page memory. Both in
// one run, alternating, so that a noisy machine disturbs both alike. Prints medians and their
// ratio.
//
//   bench_load FILE [THREADS [REPETITIONS]]      FILE: an FP32 VGG16 in safetensors

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <vggload/load/checkpoint.hpp>
#include <vggload/vgg16/load.hpp>

namespace {

constexpr std::size_t window_bytes = std::size_t{256} << 10U;

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
__attribute__((target("avx512f"))) void convert_512(const float* in, std::uint16_t* out,
                                                    std::size_t count) {
  for (std::size_t i = 0; i < count; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  }
}
__attribute__((target("avx,f16c"))) void convert_256(const float* in, std::uint16_t* out,
                                                     std::size_t count) {
  for (std::size_t i = 0; i < count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  }
}
#pragma GCC diagnostic pop
using bare_conversion = void (*)(const float*, std::uint16_t*, std::size_t);
bare_conversion widest() { return __builtin_cpu_supports("avx512f") ? &convert_512 : &convert_256; }
#else
#error "the floor is written for x86-64"
#endif

using clock_type = std::chrono::steady_clock;

double seconds_since(clock_type::time_point start) {
  return std::chrono::duration<double>(clock_type::now() - start).count();
}

/// The bare loop. Each thread takes every so-many-th 4 MiB of the file, which fill whole huge
/// pages.
double run_floor(const std::string& path, std::uint64_t begin, std::uint64_t bytes,
                 unsigned threads) {
  const auto start = clock_type::now();
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const std::size_t huge = std::size_t{2} << 20U;
  const std::size_t size = static_cast<std::size_t>(bytes) / 2;
  void* const block =
      ::mmap(nullptr, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (file < 0 || block == MAP_FAILED) std::abort();
  const auto address = (reinterpret_cast<std::uintptr_t>(block) + huge - 1) / huge * huge;
  auto* const out = reinterpret_cast<std::uint16_t*>(address);
  ::madvise(out, size, MADV_HUGEPAGE);
  const auto work = [&](unsigned worker) {
    const bare_conversion convert = widest();
    void* const buffer = std::aligned_alloc(64, window_bytes);
    const std::uint64_t stripe = 2 * huge;
    for (std::uint64_t s = worker * stripe; s < bytes; s += threads * stripe) {
      const std::uint64_t end = std::min(s + stripe, bytes);
      for (std::uint64_t offset = s; offset < end; offset += window_bytes) {
        const auto n =
            static_cast<std::size_t>(std::min<std::uint64_t>(window_bytes, end - offset));
        if (::pread(file, buffer, n, static_cast<::off_t>(begin + offset)) !=
            static_cast<::ssize_t>(n)) {
          std::abort();
        }
        convert(static_cast<const float*>(buffer), out + offset / 4, n / 4);
      }
    }
    std::free(buffer);
  };
  {
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
  }
  ::close(file);
  const double seconds = seconds_since(start);
  ::munmap(block, size + huge);
  return seconds;
}

double run_library(const std::string& path, unsigned threads) {
  const auto start = clock_type::now();
  const auto model = vggload::vgg16::load(path, {.threads = threads});
  return seconds_since(start);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2 || argc > 4) {
    std::fputs("usage: bench_load FILE [THREADS [REPETITIONS]]\n", stderr);
    return 2;
  }
  const std::string path = argv[1];
  const auto threads = static_cast<unsigned>(argc > 2 ? std::stoul(argv[2]) : 2);
  const int repetitions = argc > 3 ? std::stoi(argv[3]) : 31;
  const auto file = vggload::open_checkpoint(path);
  std::uint64_t bytes = 0;
  for (const auto& info : file.tensors()) bytes += info.bytes;
  const std::uint64_t begin = file.file_bytes() - bytes;

  std::vector<double> floors;
  std::vector<double> loads;
  run_library(path, threads);  // the page cache is warm from here on
  for (int i = 0; i < repetitions; ++i) {
    // Who goes first changes, in case one leaves the machine in a better state for the next.
    if (i % 2 == 0) floors.push_back(run_floor(path, begin, bytes, threads));
    loads.push_back(run_library(path, threads));
    if (i % 2 != 0) floors.push_back(run_floor(path, begin, bytes, threads));
  }
  const double floor = median(floors);
  const double load = median(loads);
  std::printf(
      "threads %u, %d repetitions: floor %.1f ms (%.2f GB/s), load %.1f ms (%.2f GB/s), "
      "ratio %.3f\n",
      threads, repetitions, 1e3 * floor, static_cast<double>(bytes) / floor / 1e9, 1e3 * load,
      static_cast<double>(bytes) / load / 1e9, load / floor);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return 1;
}
