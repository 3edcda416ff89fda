#include <cstdio>
#include <exception>

#include <vggload/vggload.hpp>

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  // FP32 in the file, FP16 in memory: converted on the way, never there twice.
  const auto model = vggload::vgg16::load(argv[1], {.dtype = vggload::dtype::f16});
  for (const auto& layer : model.weights().layers()) {
    const auto values = layer.weight.values<vggload::float16>();
    std::printf("%-12s %12zu weights, the first is %+f\n", layer.spec.name.data(), values.size(),
                static_cast<double>(vggload::convert_to<float>(values.front())));
  }
  std::printf("%zu bytes in memory\n", model.memory().capacity());
} catch (const std::exception& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return 1;
}
