// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Writes a VGG16 checkpoint of the real size with random weights: He initialisation (normal,
// variance 2 / fan_in; He et al., "Delving Deep into Rectifiers", 2015), biases zero, names and
// order of torchvision.

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <numbers>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "command.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>

namespace {

using vggload::vgg16::layer;

/// One of the file's tensors and what its values are drawn from.
struct generated_tensor {
  vggload::tensor_info info;
  double deviation;  // 0: all zero
};

std::vector<generated_tensor> make_tensors(bool include_top, std::uint32_t classes) {
  const auto& names = vggload::vgg16::name_maps.front();  // torchvision
  std::vector<generated_tensor> tensors;
  for (std::size_t i = 0; i < vggload::vgg16::layer_count(include_top); ++i) {
    layer spec = vggload::vgg16::layers[i];
    if (i + 1 == vggload::vgg16::layers.size()) spec.outputs = classes;
    const bool conv = spec.kind == vggload::vgg16::layer_kind::conv;
    const vggload::shape weight = conv ? vggload::shape{spec.outputs, spec.inputs, 3, 3}
                                       : vggload::shape{spec.outputs, spec.inputs};
    const double fan_in = spec.inputs * (conv ? 9.0 : 1.0);
    tensors.push_back({{vggload::vgg16::name_in(names, {i, false}), vggload::dtype::f32, weight,
                        4 * spec.weights()},
                       std::sqrt(2.0 / fan_in)});
    tensors.push_back({{vggload::vgg16::name_in(names, {i, true}),
                        vggload::dtype::f32,
                        {spec.outputs},
                        4 * std::uint64_t{spec.outputs}},
                       0.0});
  }
  return tensors;
}

/// The output function of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014). Numbers are drawn by their place, so that any thread can make any part.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// Fills the values from `first` (even) on with normal numbers, two from each pair of draws (Box
/// and Muller).
void fill_normal(std::span<float> values, std::uint64_t key, std::uint64_t first,
                 double deviation) {
  constexpr std::uint64_t step = 0x9E3779B97F4A7C15U;
  for (std::size_t i = 0; i < values.size(); i += 2) {
    const std::uint64_t counter = key + (first + i) * step;
    // In (0, 1], so that the logarithm is finite.
    const double radius_draw = static_cast<double>((mix(counter) >> 11U) + 1) * 0x1p-53;
    const double angle_draw = static_cast<double>(mix(counter + step) >> 11U) * 0x1p-53;
    const double radius = deviation * std::sqrt(-2.0 * std::log(radius_draw));
    const double angle = 2.0 * std::numbers::pi * angle_draw;
    values[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < values.size()) values[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

/// Generates and writes all tensors, window by window, from all processors.
class generator {
 public:
  generator(vggload::safetensors_writer& writer, const std::vector<generated_tensor>& tensors,
            std::uint64_t seed)
      : writer_(writer), tensors_(tensors), seed_(seed) {}

  void run(command::interruption& interrupted, command::progress_bar& bar) {
    {
      std::vector<std::jthread> threads;
      try {
        for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) {
          threads.emplace_back([this] { work([] { return true; }); });
        }
      } catch (const std::system_error&) {
        // No further thread to be had: those that are there do the work.
      }
      work([&] {
        interrupted.poll();
        bar.show(next_ * window_bytes, writer_.data_bytes());
        return !interrupted.token().stop_requested();
      });
    }
    if (error_) std::rethrow_exception(error_);
    if (interrupted.token().stop_requested()) {
      throw vggload::cancelled_error(writer_.path() + ": cancelled");
    }
  }

 private:
  static constexpr std::size_t window_values = std::size_t{64} << 10U;
  static constexpr std::uint64_t window_bytes = window_values * sizeof(float);

  template <class Continue>
  void work(Continue go_on) {
    try {
      std::vector<float> values(window_values);
      while (!failed_) {
        if (!go_on()) {
          failed_ = true;
          return;
        }
        const std::uint64_t begin = next_.fetch_add(1) * window_bytes;
        if (begin >= writer_.data_bytes()) return;
        write_range(values, begin, std::min(begin + window_bytes, writer_.data_bytes()));
      }
    } catch (...) {
      const std::scoped_lock lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      failed_ = true;
    }
  }

  void write_range(std::vector<float>& values, std::uint64_t begin, std::uint64_t end) {
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      const std::uint64_t tensor_begin = writer_.data_offset(t);
      const std::uint64_t from = std::max(begin, tensor_begin);
      const std::uint64_t to = std::min(end, tensor_begin + tensors_[t].info.bytes);
      if (from >= to) continue;
      // Even, as the draws come in pairs: windows and tensors begin at even values.
      const std::uint64_t first = (from - tensor_begin) / sizeof(float);
      const auto window =
          std::span(values).first(static_cast<std::size_t>((to - from) / sizeof(float)));
      fill_normal(window, mix(seed_ + mix(t + 1)), first, tensors_[t].deviation);
      writer_.write_data(from, std::as_bytes(window));
    }
  }

  vggload::safetensors_writer& writer_;
  const std::vector<generated_tensor>& tensors_;
  std::uint64_t seed_;
  std::atomic<std::uint64_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app(
      "Writes a VGG16 checkpoint (safetensors, FP32, torchvision's names) with random weights.");
  std::string path;
  std::uint64_t seed = 0;
  bool no_top = false;
  std::uint32_t classes = 1000;
  app.add_option("OUT", path, "The file to write")->required();
  app.add_option("--seed", seed, "Seed of the random numbers (default 0)")
      ->transform(command::whole_number(0, UINT64_MAX))
      ->type_name("N");
  auto* const no_top_flag = app.add_flag("--no-top", no_top, "Without the three dense layers");
  app.add_option("--classes", classes, "Outputs of the last layer (default 1000)")
      ->transform(command::whole_number(1, 1'000'000))
      ->type_name("N")
      ->excludes(no_top_flag);
  return command::run(app, argc, argv, path, [&] {
    const auto tensors = make_tensors(!no_top, classes);
    std::vector<vggload::tensor_info> infos;
    for (const auto& tensor : tensors) infos.push_back(tensor.info);
    const vggload::metadata_entry format{"format", "pt"};
    // Before the writer: what it creates must go when a signal comes.
    command::interruption interrupted;
    vggload::safetensors_writer writer(path, infos, {&format, 1});
    command::progress_bar bar("writing");
    generator(writer, tensors, seed).run(interrupted, bar);
    writer.commit();
  });
} catch (...) {
  return command::report_error("make_checkpoint");
}
