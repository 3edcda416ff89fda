// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Goes through the batches of an image folder as a training would, and says how fast; writes them for
// numpy.load where that is wanted.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "command.hpp"
#include "image_options.hpp"
#include "npy_file.hpp"

#include <vggload/core/error.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/prefetch.hpp>

namespace {

using command::grouped;

struct options {
  command::image_options images;
  std::size_t epochs = 1;
  std::string npy;  // prefix of the files; empty: none
};

/// PREFIX-EEEE-BBBB-x.npy and -y.npy.
void write_batch(const std::string& prefix, std::size_t epoch, std::size_t number,
                 const vggload::image_batch& batch) {
  std::array<char, 64> numbers;
  std::snprintf(numbers.data(), numbers.size(), "-%04zu-%04zu-", epoch, number);
  const std::string start = prefix + numbers.data();
  command::write_npy(start + "x.npy", batch.images());
  if (batch.labels().shape() != vggload::shape{batch.size(), 0}) {
    command::write_npy(start + "y.npy", batch.labels());
  }
}

/// Says once of each image that was skipped why.
class skipped_images {
 public:
  void add(const vggload::image_batch& batch) {
    count_ += batch.skipped().size();
    for (const vggload::skipped_image& image : batch.skipped()) {
      if (!said_.insert(image.path).second) continue;
      std::fprintf(stderr, "skipped: %s\n", image.reason.c_str());
    }
  }
  /// Of an epoch; begins anew.
  std::size_t take_count() { return std::exchange(count_, 0); }

 private:
  std::set<std::string> said_;
  std::size_t count_ = 0;
};

/// What is read, and what that takes of memory.
template <class Ready, class Source>
void report_pipeline(const options& wanted, const Ready& ready, const Source& source) {
  const vggload::image_folder& folder = source.folder();
  std::printf("images from %s\n", vggload::printable(folder.root()).c_str());
  constexpr std::size_t most = 4;
  std::string classes;
  for (const std::string& name : folder.classes().first(std::min(folder.classes().size(), most))) {
    classes.append(classes.empty() ? "" : ", ").append(vggload::printable(name, 40));
  }
  if (folder.classes().size() > most) classes += ", ...";
  const auto line = [](const char* name, const std::string& value, const std::string& rest) {
    std::printf("  %-24s %14s  %s\n", name, value.c_str(), rest.c_str());
  };
  line("images", grouped(folder.size()),
       "in " + grouped(folder.classes().size()) + " classes: " + classes);
  line("mode", wanted.images.exact ? "exact" : "fast",
       wanted.images.exact ? "bit for bit Keras' ImageDataGenerator"
                           : "decoded, resized and augmented in one pass");
  line("bytes of batches", grouped(ready.memory_bytes()),
       std::to_string(ready.slots()) + " slots of " + std::to_string(wanted.images.batch) + " x " +
           std::to_string(wanted.images.target.height) + " x " +
           std::to_string(wanted.images.target.width) + " x 3 F32");
  line("bytes of workers", grouped(source.scratch_bytes()),
       std::to_string(ready.workers()) + " workers, as large as their largest image");
}

template <class Batches, class Source>
void make_batches(Batches& batches, const Source& source, const options& wanted,
                  command::interruption& interrupted) {
  using clock = std::chrono::steady_clock;
  auto start = clock::now();
  auto ready = vggload::detail::naming_out_of_memory(
      vggload::printable(wanted.images.folder), "making room for the batches",
      [&] { return batches | vggload::prefetch({.workers = wanted.images.workers}); });
  skipped_images skipped;
  for (std::size_t epoch = 0; epoch < wanted.epochs; ++epoch) {
    const auto seconds = [&] {
      return std::chrono::duration<double>(clock::now() - start).count();
    };
    std::size_t images = 0;
    std::size_t number = 0;
    {
      command::progress_bar bar("epoch " + std::to_string(epoch));
      for (const vggload::image_batch& batch : ready) {
        interrupted.poll();
        if (interrupted.token().stop_requested()) {
          throw vggload::cancelled_error(vggload::printable(wanted.images.folder) +
                                         ": interrupted");
        }
        if (!batch.skipped().empty()) bar.clear();
        skipped.add(batch);
        if (!wanted.npy.empty()) write_batch(wanted.npy, epoch, number, batch);
        images += batch.size();
        ++number;
        std::array<char, 48> speed;
        std::snprintf(speed.data(), speed.size(), "%.0f images/s",
                      static_cast<double>(images) / seconds());
        bar.show(number, ready.size(), speed.data());
      }
    }
    const double taken = seconds();
    // Only now: what is refused says nothing else.
    if (epoch == 0) report_pipeline(wanted, ready, source);
    std::printf("epoch %zu: %s images in %s batches, %zu skipped, %.3f s, %.1f images/s\n", epoch,
                grouped(images).c_str(), grouped(number).c_str(), skipped.take_count(), taken,
                static_cast<double>(images) / taken);
    std::fflush(stdout);
    start = clock::now();
  }
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Goes through the batches of an image folder, and says how fast that is.");
  options wanted;
  command::add_image_options(app, wanted.images);
  app.add_option("--rescale", wanted.images.rescale, "Multiply the values by R, such as 1/255")
      ->transform(command::factor())
      ->type_name("R");
  command::add_choice<vggload::label_mode>(app, "--class-mode", wanted.images.labels,
                                           {{"categorical", vggload::label_mode::categorical},
                                            {"binary", vggload::label_mode::binary},
                                            {"sparse", vggload::label_mode::sparse},
                                            {"none", vggload::label_mode::none}},
                                           "What the labels are (default: categorical)")
      ->type_name("MODE");
  app.add_option("--epochs", wanted.epochs, "How often (default: 1)")
      ->transform(command::whole_number(1, 1U << 20U))
      ->type_name("N");
  app.add_option("--npy", wanted.npy,
                 "Write PREFIX-EEEE-BBBB-x.npy and -y.npy for each epoch and batch, from 0000 on")
      ->check(command::not_empty())
      ->type_name("PREFIX");
  return command::run(app, argc, argv, wanted.images.folder, [&] {
    command::interruption interrupted;
    vggload::image_folder folder = command::list_images(wanted.images);
    command::with_batches(wanted.images, std::move(folder), [&](auto& batches, const auto& source) {
      make_batches(batches, source, wanted, interrupted);
    });
  });
} catch (...) {
  return command::report_error("make_batches");
}
