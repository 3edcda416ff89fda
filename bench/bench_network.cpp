// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Seconds of VGG16's forward pass: bench_network FILE BATCH THREADS DTYPE MEMORY_LIMIT [READ_AHEAD]
// DTYPE: of the weights in memory, f32, f16, bf16 or keep. MEMORY_LIMIT: bytes of the pass that reads its weights from the
// file each time; 0: they are loaded. READ_AHEAD: bytes that are read before they are used. Answers each line on standard
// input with the seconds of one pass, so that bench/network_peers.py can let it take turns with others.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/data/random.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/network/forward.hpp>
#include <vggload/network/streamed_weights.hpp>
#include <vggload/vgg16/load.hpp>

namespace {

/// Runs a pass for each line.
void answer(vggload::network::forward_pass& pass, std::size_t batch) {
  vggload::counter_random random(1, 0, 0);
  std::vector<float> images(batch * 224 * 224 * 3);
  for (float& value : images) value = static_cast<float>(random.uniform(-2, 2));
  while (std::getchar() == '\n') {
    const auto start = std::chrono::steady_clock::now();
    (void)pass(images);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%.6f\n", seconds.count());
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::map<std::string, std::optional<vggload::dtype>> types{{"f32", vggload::dtype::f32},
                                                                   {"f16", vggload::dtype::f16},
                                                                   {"bf16", vggload::dtype::bf16},
                                                                   {"keep", std::nullopt}};
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 5 || arguments.size() > 6 || !types.contains(arguments[3])) {
    std::fputs(
        "usage: bench_network FILE BATCH THREADS f32|f16|bf16|keep MEMORY_LIMIT [READ_AHEAD]\n",
        stderr);
    return 2;
  }
  const std::size_t batch = std::stoul(arguments[1]);
  const std::uint64_t limit = std::stoull(arguments[4]);
  vggload::network::forward_options options{
      .batch = batch, .threads = static_cast<unsigned>(std::stoul(arguments[2]))};
  if (arguments.size() == 6) options.read_ahead_bytes = std::stoull(arguments[5]);
  const vggload::checkpoint file = vggload::open_checkpoint(arguments[0]);
  if (limit > 0) {
    options.memory_limit = limit;
    const vggload::network::streamed_weights weights(file, types.at(arguments[3]));
    vggload::network::forward_pass pass(weights, options);
    answer(pass, batch);
  } else {
    const auto model = vggload::vgg16::load(file, {.dtype = types.at(arguments[3])});
    vggload::network::forward_pass pass(model.weights(), options);
    answer(pass, batch);
  }
} catch (const std::exception& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return EXIT_FAILURE;
} catch (...) {
  return EXIT_FAILURE;
}
