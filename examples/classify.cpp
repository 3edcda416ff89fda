// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Classifies images with a VGG16: its weights as they lie in the file, the preprocessing that belongs to
// them, the likeliest classes on standard output.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "command.hpp"
#include "npy_file.hpp"
#include "open_any.hpp"

#include <vggload/convert/overflow.hpp>
#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/decode_options.hpp>
#include <vggload/data/evaluation_transform.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_decoder.hpp>
#include <vggload/data/keras_augmentation.hpp>
#include <vggload/data/nearest_resize.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/row_major.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/network/forward.hpp>
#include <vggload/network/streamed_weights.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/footprint.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/names.hpp>

namespace {

using vggload::vgg16::weight_layout;

constexpr vggload::sample_format input_format{.height = 224, .width = 224};

struct options {
  std::string weights;
  std::vector<std::string> images;
  std::optional<std::string> input_npy;
  std::optional<std::string> output_npy;
  std::size_t top = 5;
  std::size_t batch = 1;
  unsigned threads = 0;
  std::optional<vggload::dtype> type;  // none: each weight keeps its own
  std::optional<std::uint64_t> memory_limit;
  std::optional<weight_layout> preprocess;  // none: that of the weights' layout
};

/// What is classified. `prepare` writes one input as the network wants it, [224, 224, 3].
struct inputs {
  std::size_t count;
  std::function<std::string(std::size_t index)> name;
  std::function<void(std::size_t index, std::span<float> into)> prepare;
};

/// Images as Keras' `load_img(target_size=(224, 224))` and `vgg16.preprocess_input` make them, or
/// torchvision's transform for its VGG16, to the bit.
inputs decoded_images(const std::vector<std::string>& paths, weight_layout convention) {
  const vggload::evaluation_transform torch(input_format);
  const vggload::keras_augmentation keras(input_format, {},
                                          {.preprocessing = vggload::preprocessing::caffe});
  const auto prepare = [=](const std::string& path, std::span<float> into) {
    vggload::image_decoder decoder;
    vggload::scratch memory;  // a photograph's pixels: nothing of them stays beside the network
    const vggload::image_view pixels = decoder.decode_file(path, {}, memory);
    if (convention == weight_layout::keras) {
      const vggload::image_view resized =
          vggload::nearest_resize(pixels, {input_format.height, input_format.width}, memory);
      return keras(resized, {}, memory, into);
    }
    std::uint64_t index = 0;
    std::vector<vggload::skipped_image> skipped;
    vggload::image_sample sample{std::as_writable_bytes(into), {}, index, skipped};
    torch(pixels, 0, 0, memory, sample);
  };
  return {paths.size(), [&paths](std::size_t index) { return paths[index]; },
          [&paths, prepare](std::size_t index, std::span<float> into) {
            const std::string& path = paths[index];
            try {
              vggload::detail::naming_out_of_memory(path, "preparing it",
                                                    [&] { prepare(path, into); });
            } catch (const vggload::error& e) {
              const std::string shown = vggload::printable(path);
              if (std::string_view(e.what()).starts_with(shown)) throw;
              throw vggload::error(shown + ": " + e.what());
            }
          }};
}

/// The rows of an array that somebody has prepared.
inputs prepared_images(const std::string& path) {
  const auto file = vggload::open_checkpoint<vggload::reader_list<vggload::npy_reader>>(path);
  const vggload::tensor_info& array = file.tensors().front();
  const vggload::shape& dims = array.shape;
  if (array.dtype != vggload::dtype::f32 || dims.rank() != 4 || dims[0] == 0 ||
      dims[1] != input_format.height || dims[2] != input_format.width ||
      dims[3] != input_format.channels) {
    throw vggload::error(vggload::printable(path) + ": the images are F32 [N, 224, 224, 3], not " +
                         std::string(vggload::dtype_name(array)) + " " + vggload::to_string(dims));
  }
  return {static_cast<std::size_t>(dims[0]),
          [path](std::size_t index) { return path + "[" + std::to_string(index) + "]"; },
          [file](std::size_t index, std::span<float> into) {
            vggload::read_row_major(file, 0, index * into.size_bytes(),
                                    std::as_writable_bytes(into));
          }};
}

/// The classes with the largest logits, from the likeliest on; of equal ones the first. NaNs come last.
std::vector<std::size_t> likeliest(std::span<const float> logits, std::size_t count) {
  std::vector<std::size_t> classes(logits.size());
  std::iota(classes.begin(), classes.end(), std::size_t{0});
  const auto middle =
      classes.begin() + static_cast<std::ptrdiff_t>(std::min(count, classes.size()));
  std::partial_sort(classes.begin(), middle, classes.end(), [&](std::size_t a, std::size_t b) {
    const bool a_is_number = !std::isnan(logits[a]);
    const bool b_is_number = !std::isnan(logits[b]);
    if (a_is_number != b_is_number) return a_is_number;
    return a_is_number && logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  classes.erase(middle, classes.end());
  return classes;
}

/// A line for each of the likeliest classes: name, rank, class and softmax of its logit, with tabs between.
std::string lines_of(const std::string& name, std::span<const float> logits, std::size_t count) {
  const std::vector<std::size_t> classes = likeliest(logits, count);
  const double largest = logits[classes.front()];
  const double sum = std::accumulate(
      logits.begin(), logits.end(), 0.0,
      [&](double before, float logit) { return before + std::exp(logit - largest); });
  std::string lines;
  for (std::size_t rank = 0; rank < classes.size(); ++rank) {
    const double score = std::exp(logits[classes[rank]] - largest) / sum;
    std::array<char, 96> text;
    std::snprintf(text.data(), text.size(), "\t%zu\t%zu\t%.6f\n", rank + 1, classes[rank],
                  // A NaN may have a sign, which says nothing.
                  std::isnan(score) ? std::numeric_limits<double>::quiet_NaN() : score);
    lines.append(vggload::printable(name)).append(text.data());
  }
  return lines;
}

/// Writes [inputs, classes] row by row; the file appears when all are there.
class logits_file {
 public:
  logits_file(const std::string& path, std::size_t inputs, std::size_t classes)
      : start_(command::npy_start(vggload::dtype::f32, {inputs, classes})),
        file_(path, start_.size() + inputs * classes * sizeof(float)) {
    file_.write_at(0, std::as_bytes(std::span(start_)));
  }
  /// `first`: elements before these.
  void write(std::size_t first, std::span<const float> logits) const {
    file_.write_at(start_.size() + first * sizeof(float), std::as_bytes(logits));
  }
  void commit() { file_.commit(); }

 private:
  std::string start_;
  vggload::atomic_output_file file_;
};

/// The weights: loaded, or left in their file where the memory limit is too small for them. They are loaded where they
/// fit beside the pass, because then they are read once and not for each batch.
class network {
 public:
  network(const vggload::checkpoint& file, const options& wanted, std::size_t batch,
          command::interruption& interrupted)
      : wanted_(wanted), streamed_(file, wanted.type, true, overflow) {
    if (wanted.memory_limit && !fits_loaded(*wanted.memory_limit, batch)) return;
    command::progress_bar bar("loading");
    const auto stream = command::stream_options(wanted.threads, interrupted, bar);
    loaded_.emplace(vggload::vgg16::load(file, {.dtype = wanted.type,
                                                .overflow = overflow,
                                                .threads = wanted.threads,
                                                .memory_limit = wanted.memory_limit,
                                                .stop = stream.stop,
                                                .progress = stream.progress}));
  }

  [[nodiscard]] weight_layout layout() const { return streamed_.layers().layout; }
  [[nodiscard]] std::size_t classes() const { return streamed_.layers().classes; }

  /// [images, classes], until the next call. `progress` is called for each layer.
  [[nodiscard]] std::span<const float> logits(
      std::span<const float> images,
      const std::function<void(const vggload::network::layer_progress&)>& progress) {
    const std::size_t batch = images.size() / input_format.values();
    return vggload::detail::naming_out_of_memory(wanted_.weights, "classifying", [&, this] {
      if (batch != batch_) {
        pass_.reset();  // its memory first
        const vggload::network::forward_options how{
            .batch = batch, .threads = wanted_.threads, .progress = progress};
        if (loaded_) {
          pass_.emplace(loaded_->weights(), how);
        } else {
          pass_.emplace(streamed_, how);
        }
        batch_ = batch;
      }
      return (*pass_)(images);
    });
  }

 private:
  // Weights that became infinite would classify nothing.
  static constexpr auto overflow = vggload::overflow_policy::refuse;

  /// Whether the weights fit beside the pass and its images. Throws `error` where those alone do not.
  [[nodiscard]] bool fits_loaded(std::uint64_t limit, std::size_t batch) const {
    const vggload::vgg16::binding& bound = streamed_.layers();
    const auto pass =
        vggload::vgg16::plan({.compute = vggload::dtype::f32,
                              .batch = batch,
                              .classes = bound.classes,
                              .threads = vggload::network::pass_threads(wanted_.threads)});
    const std::uint64_t images = batch * input_format.values() * sizeof(float);
    const std::uint64_t needed = images + pass.activations_bytes + pass.workspace_bytes;
    if (needed > limit) {
      throw vggload::error(vggload::printable(wanted_.weights) + ": the memory limit of " +
                           std::to_string(limit) +
                           " bytes cannot be kept: " + std::to_string(needed) + " are needed, " +
                           std::to_string(images) + " for the images of a batch, " +
                           std::to_string(pass.activations_bytes) + " for activations and " +
                           std::to_string(pass.workspace_bytes) + " for the workspace");
    }
    std::uint64_t weights = 0;
    for (std::size_t i = 0; i < bound.layers.size(); ++i) {
      const vggload::vgg16::layer& spec = bound.layers[i].spec;
      weights += spec.weights() * vggload::bits_of(streamed_.weight_type(i)) / 8 +
                 spec.outputs * std::uint64_t{vggload::bits_of(streamed_.bias_type(i))} / 8;
    }
    return weights <= limit - needed;
  }

  const options& wanted_;
  vggload::network::streamed_weights streamed_;
  std::optional<vggload::vgg16::model<>> loaded_;
  std::optional<vggload::network::forward_pass> pass_;
  std::size_t batch_ = 0;  // of the pass
};

void classify(const options& wanted) {
  command::interruption interrupted;
  std::optional<inputs> found;
  if (wanted.input_npy) found = prepared_images(*wanted.input_npy);
  const std::size_t count = found ? found->count : wanted.images.size();
  const std::size_t batch = std::min(wanted.batch, count);
  network net(command::open_any(wanted.weights), wanted, batch, interrupted);
  if (!found) found = decoded_images(wanted.images, wanted.preprocess.value_or(net.layout()));

  const std::size_t classes = net.classes();
  std::optional<logits_file> output;
  if (wanted.output_npy) output.emplace(*wanted.output_npy, count, classes);
  const std::size_t image_values = input_format.values();
  std::vector<float> images(batch * image_values);
  std::string lines;  // said when all is well
  command::progress_bar bar("classifying");
  std::size_t first = 0;
  const auto end_if_interrupted = [&] {
    interrupted.poll();
    if (!interrupted.token().stop_requested()) return;
    throw vggload::cancelled_error(vggload::printable(wanted.weights) + ": interrupted");
  };
  const auto progress = [&](const vggload::network::layer_progress& layer) {
    end_if_interrupted();
    const std::size_t now = std::min(batch, count - first);
    bar.show(first * layer.all + now * layer.done, count * layer.all);
  };
  for (; first < count; first += batch) {
    const auto now = std::span(images).first(std::min(batch, count - first) * image_values);
    for (std::size_t i = 0; i * image_values < now.size(); ++i) {
      end_if_interrupted();
      found->prepare(first + i, now.subspan(i * image_values, image_values));
    }
    const std::span<const float> logits = net.logits(now, progress);
    if (output) output->write(first * classes, logits);
    for (std::size_t i = 0; i * classes < logits.size(); ++i) {
      lines += lines_of(found->name(first + i), logits.subspan(i * classes, classes), wanted.top);
    }
  }
  if (output) output->commit();
  bar.clear();
  std::fwrite(lines.data(), 1, lines.size(), stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Classifies images with a VGG16.");
  options wanted;
  app.add_option(
         "FILE", wanted.weights,
         "The weights: safetensors or its shards' index, PyTorch, Keras, HDF5, NumPy, ONNX, "
         "GGUF")
      ->required();
  CLI::Option* const images =
      app.add_option("IMAGE", wanted.images, "JPEG, PNG, BMP, PPM, PGM or PBM");
  app.add_option("--top", wanted.top,
                 "Lines for each image, from the likeliest class on (default: 5)")
      ->transform(command::whole_number(1, 1U << 20U))
      ->type_name("K");
  app.add_option("--npy", wanted.output_npy, "Write the logits, float32 [images, classes]")
      ->type_name("OUT");
  app.add_option("--batch", wanted.batch, "Images that are classified at once (default: 1)")
      ->transform(command::whole_number(1, 1U << 20U))
      ->type_name("N");
  command::add_threads(app, wanted.threads);
  command::add_choice<std::optional<vggload::dtype>>(
      app, "--dtype", wanted.type,
      {{"keep", std::nullopt},
       {"f32", vggload::dtype::f32},
       {"f16", vggload::dtype::f16},
       {"bf16", vggload::dtype::bf16}},
      "Type of the weights in memory: keep (default), f32, f16 or bf16")
      ->type_name("TYPE");
  app.add_option(
         "--memory-limit", wanted.memory_limit,
         "Most memory for the weights and the pass, e.g. 64MiB; weights that do not fit are "
         "read from their file, layer by layer")
      ->transform(command::byte_size());
  command::add_choice<std::optional<weight_layout>>(
      app, "--preprocess", wanted.preprocess,
      {{"keras", weight_layout::keras}, {"torch", weight_layout::torch}},
      "How the weights want their images: keras or torch (default: as their layout in the file)")
      ->type_name("WHOSE");
  app.add_option("--input-npy", wanted.input_npy,
                 "Images that are prepared already, instead: float32 [images, 224, 224, 3]")
      ->type_name("FILE")
      ->excludes(images);
  app.callback([&] {
    if (wanted.images.empty() && !wanted.input_npy) {
      throw CLI::ValidationError("IMAGE", "at least one, or --input-npy, is wanted");
    }
  });
  return command::run(app, argc, argv, wanted.weights, [&] { classify(wanted); });
} catch (...) {
  return command::report_error("classify");
}
