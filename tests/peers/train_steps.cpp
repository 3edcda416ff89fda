// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Trains a head from given weights on given features, for check_training.py:
//
//     train_steps DATA OUTPUT OPTIMIZER LEARNING_RATE WEIGHT_DECAY POLICY STEPS BATCH LAYER...
//
// DATA is a safetensors file with "features" [images, ...], "labels" [images, classes] and the first weights
// by the head's names, all F32. Batch after batch is taken in order, from the start again at the end; what
// is less than a batch is left out. Prints each step's loss and "updated" or "skipped", and writes the
// training's checkpoint to OUTPUT. A layer is flatten, global_average_pool, dense:UNITS or relu:UNITS.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/network/head_layer.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/optimizer.hpp>
#include <vggload/network/trainer.hpp>
#include <vggload/network/training_checkpoint.hpp>

namespace network = vggload::network;

namespace {

template <class Number>
Number number(std::string_view text) {
  Number value{};
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc{} || read.ptr != text.data() + text.size()) {
    throw vggload::error(vggload::in_quotes(text) + " is no number");
  }
  return value;
}

network::head_layer layer(std::string_view text) {
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  if (name == "flatten") return network::flatten();
  if (name == "global_average_pool") return network::global_average_pool();
  if (colon == std::string_view::npos || (name != "dense" && name != "relu")) {
    throw vggload::error(vggload::in_quotes(text) + " is no layer");
  }
  return network::dense(number<std::uint64_t>(text.substr(colon + 1)),
                        name == "relu" ? network::activation::relu : network::activation::linear);
}

network::optimizer_kind kind(std::string_view text) {
  using enum network::optimizer_kind;
  for (const network::optimizer_kind each : {sgd, momentum, adam}) {
    if (name_of(each) == text) return each;
  }
  throw vggload::error(vggload::in_quotes(text) + " is no optimizer");
}

/// A tensor's shape and values.
struct tensor {
  vggload::shape shape;
  std::vector<float> values;
};

tensor read(const vggload::safetensors_reader& file, std::string_view name) {
  const auto found = std::ranges::find(file.tensors(), name, &vggload::tensor_info::name);
  if (found == file.tensors().end() || found->dtype != vggload::dtype::f32) {
    throw vggload::error(file.path() + ": there is no F32 tensor " + vggload::in_quotes(name));
  }
  tensor read{found->shape, std::vector<float>(found->bytes / sizeof(float))};
  file.read(static_cast<std::size_t>(found - file.tensors().begin()), 0,
            std::as_writable_bytes(std::span(read.values)));
  return read;
}

void run(std::span<char*> arguments) {
  if (arguments.size() < 10) throw vggload::error("too few arguments");
  const vggload::safetensors_reader file{vggload::input_file(arguments[1])};
  const tensor features = read(file, "features");
  const tensor labels = read(file, "labels");
  const auto dims = features.shape.dims();
  const auto policy = network::precision_policy_from_name(arguments[6]);
  if (!policy) throw vggload::error(vggload::in_quotes(arguments[6]) + " is no policy");
  const auto batch = number<std::size_t>(arguments[8]);

  network::training_options options{
      .features = vggload::shape(std::vector<std::uint64_t>(dims.begin() + 1, dims.end())),
      .max_batch = batch,
      .policy = *policy,
      .optimizer = {.kind = kind(arguments[3]),
                    .learning_rate = number<double>(arguments[4]),
                    .weight_decay = number<double>(arguments[5])}};
  for (const std::string_view text : arguments.subspan(9)) options.layers.push_back(layer(text));
  network::trainer model(std::move(options));
  for (std::size_t i = 0; i < model.head().parameters().size(); ++i) {
    model.head().set_values(i, read(file, model.head().parameters()[i].name).values);
  }
  const std::size_t batches = dims[0] / batch;
  if (batches == 0) throw vggload::error("there are fewer images than a batch has");
  const auto steps = number<std::size_t>(arguments[7]);
  for (std::size_t step = 0; step < steps; ++step) {
    const std::size_t first = step % batches * batch;
    const auto part = [&](const tensor& from, std::size_t width) {
      return std::span(from.values).subspan(first * width, batch * width);
    };
    const network::step_result result = model.step(part(features, model.head().features()),
                                                   part(labels, model.head().classes()), batch);
    std::printf("%.17g %s\n", result.loss.sum / static_cast<double>(batch),
                result.updated ? "updated" : "skipped");
  }
  network::save_training(model, arguments[2]);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run({arguments, static_cast<std::size_t>(count)});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
  return 0;
}
