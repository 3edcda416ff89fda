// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Trains a classifier of the images in a folder: a new head on VGG16's convolutions, which stay as they are. Says
// beforehand what that takes, and can be stopped at any moment and goes on where it was.

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "image_options.hpp"
#include "open_any.hpp"
#include "training_chart.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/data/augmentation.hpp>
#include <vggload/data/batch.hpp>
#include <vggload/data/fast_augmentation.hpp>
#include <vggload/data/image_batch.hpp>
#include <vggload/data/image_folder.hpp>
#include <vggload/data/image_sequence.hpp>
#include <vggload/data/map.hpp>
#include <vggload/data/shuffle.hpp>
#include <vggload/data/take.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/network/feature_cache.hpp>
#include <vggload/network/fit.hpp>
#include <vggload/network/frozen_base.hpp>
#include <vggload/network/mixed_precision.hpp>
#include <vggload/network/optimizer.hpp>
#include <vggload/network/stored_features.hpp>
#include <vggload/network/streamed_weights.hpp>
#include <vggload/network/trainer.hpp>
#include <vggload/network/training_checkpoint.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/names.hpp>

namespace {

namespace network = vggload::network;
namespace vgg16 = vggload::vgg16;
using command::grouped;
using vggload::printable;

/// Features of images for validation that are kept in memory; more are made anew for each epoch.
constexpr std::uint64_t most_kept_bytes = std::uint64_t{64} << 20U;
/// Pixels that go through the base at once: eight images of 128 x 128. Twice as many are not faster.
constexpr std::size_t group_pixels = std::size_t{8} * 128 * 128;
/// Batches that the features' means and deviations are measured on.
constexpr std::size_t measured_batches = 8;
/// Beside the end of each epoch, a checkpoint is written after a batch where the last one is older.
constexpr std::chrono::seconds checkpoint_interval{5};

enum class weight_preprocessing { by_layout, keras, torch };

struct options {
  std::string folder;
  std::string weights;
  std::uint64_t epochs = 10;
  std::size_t batch = 16;
  std::uint64_t seed = 0;
  network::optimizer_kind optimizer = network::optimizer_kind::adam;
  std::optional<double> learning_rate;
  network::precision_policy policy = network::precision_policy::f32;
  double validation_split = 0.2;
  vggload::image_size target{128, 128};
  vggload::augmentation changes{
      .width_shift_range = 0.05, .height_shift_range = 0.05, .zoom_range = {0.9, 1.1}};
  weight_preprocessing preprocessing = weight_preprocessing::by_layout;
  std::string checkpoint = "fine_tune.safetensors";
  std::string cache;  // a folder; empty: none
  std::optional<std::uint64_t> memory_limit;
  std::string svg = "fine_tune.svg";
  unsigned threads = 0;
  bool json = false;
};

/// Adam: a third of its usual rate, since hundreds of images make thousands of features, which a few large steps
/// fit by heart.
double learning_rate_of(const options& wanted) {
  const bool adam = wanted.optimizer == network::optimizer_kind::adam;
  return wanted.learning_rate.value_or(adam ? 3e-4
                                            : network::default_learning_rate(wanted.optimizer));
}

/// The images to learn from, and those to validate with.
struct image_folders {
  vggload::image_folder training;
  vggload::image_folder validation;
};

image_folders list_images(const options& wanted) {
  const auto part = [&](vggload::folder_subset subset) {
    return vggload::image_folder(wanted.folder,
                                 {.validation_split = wanted.validation_split, .subset = subset});
  };
  image_folders folders{part(vggload::folder_subset::training),
                        part(vggload::folder_subset::validation)};
  const auto fail = [&](const std::string& what) {
    throw vggload::error(printable(wanted.folder) + ": " + what);
  };
  const std::size_t classes = folders.training.classes().size();
  if (classes < 2)
    fail("a classifier needs two folders of images at least, not " + grouped(classes));
  std::vector<std::size_t> images(classes);
  for (std::size_t i = 0; i < folders.training.size(); ++i) ++images[folders.training.label(i)];
  for (std::size_t i = 0; i < classes; ++i) {
    if (images[i] == 0)
      fail("no images to train the class " + vggload::in_quotes(folders.training.classes()[i]) +
           " with");
  }
  if (wanted.validation_split > 0 && folders.validation.size() == 0) {
    fail("the classes have too few images to take a part of " +
         std::to_string(wanted.validation_split) + " for validation");
  }
  return folders;
}

/// What of the images decides how a training goes: their names and sizes. `with_times`: what tells in addition that
/// a file may have been written anew.
std::string listing_of(const vggload::image_folder& folder, bool with_times) {
  command::crc32 crc;
  for (std::size_t i = 0; i < folder.size(); ++i) {
    const std::string path = folder.path(i);
    struct ::stat status {};
    if (::stat(path.c_str(), &status) != 0) {
      vggload::detail::throw_system_error(path, "cannot be examined", errno);
    }
    std::string line(folder.name(i));
    line += '\0';
    line += std::to_string(status.st_size);
    if (with_times) {
      line += ' ';
      line += std::to_string(status.st_mtim.tv_sec);
      line += '.';
      line += std::to_string(status.st_mtim.tv_nsec);
    }
    line += '\n';
    crc.update(std::as_bytes(std::span(line)));
  }
  return grouped(folder.size()) + " of " + grouped(folder.classes().size()) + " classes, " +
         crc.hex();
}

/// Tells the base's weights from others.
std::string identity_of(const vggload::checkpoint& file, const vgg16::binding& bound) {
  command::crc32 crc;
  std::vector<std::byte> window(command::digest_window_bytes);
  const auto add = [&](std::size_t tensor) {
    const vggload::tensor_info& info = file.tensors()[tensor];
    const std::string text = std::string(vggload::dtype_name(info)) + to_string(info.shape);
    crc.update(std::as_bytes(std::span(text)));
    crc.update(file, tensor, window);
  };
  for (const vgg16::bound_layer& layer : bound.layers) {
    add(layer.weight);
    add(layer.bias);
  }
  return std::string(name_of(bound.layout)) + " layout, " + crc.hex();
}

/// What takes how many bytes.
struct memory_row {
  std::string name;
  std::uint64_t bytes;
  std::string note;
};

struct memory_plan {
  std::vector<memory_row> rows = {};
  std::uint64_t mapped_bytes = 0;  // of weights that stay in their file, and are in no row
  std::uint64_t total_bytes = 0;
  std::size_t group = 1;         // images that go through the base at once
  bool streams_weights = false;  // they are read in each pass, and not loaded
  bool keeps_validation = false;
};

/// Everything that is the same for each epoch.
struct training_setup {
  const options& wanted;
  const image_folders& folders;
  const vggload::checkpoint& file;
  vgg16::binding bound;
  network::training_options training = {};
  network::frozen_base_options base = {};
  vggload::normalisation values = {};
  std::shared_ptr<vggload::memory_ledger> ledger;

  [[nodiscard]] network::feature_format features() const {
    return {static_cast<std::size_t>(training.features.elements().value()),
            folders.training.classes().size()};
  }
  [[nodiscard]] bool is_cached() const { return !wanted.cache.empty(); }
  /// All that follows the base.
  [[nodiscard]] std::string layers() const {
    return "unit_normalization, " + to_string(std::span(training.layers));
  }
};

vggload::preprocessing preprocessing_of(const options& wanted, vgg16::weight_layout layout) {
  const bool keras = wanted.preprocessing == weight_preprocessing::by_layout
                         ? layout == vgg16::weight_layout::keras
                         : wanted.preprocessing == weight_preprocessing::keras;
  return keras ? vggload::preprocessing::caffe : vggload::preprocessing::torch;
}

training_setup set_up(const options& wanted, const image_folders& folders,
                      const vggload::checkpoint& file) {
  training_setup setup{.wanted = wanted,
                       .folders = folders,
                       .file = file,
                       .bound = vgg16::bind(file, false),
                       .ledger = std::make_shared<vggload::memory_ledger>()};
  setup.base = {.height = wanted.target.height,
                .width = wanted.target.width,
                .threads = wanted.threads,
                .ledger = setup.ledger};
  setup.values.preprocessing = preprocessing_of(wanted, setup.bound.layout);
  // Flattened: where in the image something is tells the head more than the means of few maps would. Normalized:
  // whatever the weights are, features have a scale that the learning rate is right for; and limited, because most
  // features are mostly 0, and a few images do not tell the deviation of those.
  setup.training = {
      .features = network::feature_shape(setup.base),
      .layers = {network::flatten(), network::normalization(3),
                 network::dense(256, network::activation::relu), network::dropout(0.5),
                 network::dense(folders.training.classes().size())},
      .max_batch = wanted.batch,
      .policy = wanted.policy,
      .optimizer = {.kind = wanted.optimizer, .learning_rate = learning_rate_of(wanted)},
      .seed = wanted.seed,
      .ledger = setup.ledger};
  return setup;
}

/// Throws `error` where what is written would replace what is read or written besides, and `io_error` where a file cannot
/// be made: an hour of training later is too late.
void check_outputs(const options& wanted) {
  const auto check = [&](const std::string& path, const std::string& option,
                         const std::string& other, const std::string& what) {
    std::error_code none_there;
    if (path != other && !std::filesystem::equivalent(path, other, none_there)) return;
    throw vggload::error(printable(path) + ": " + option + " would replace " + what);
  };
  check(wanted.checkpoint, "--checkpoint", wanted.weights, "the weights");
  check(wanted.svg, "--svg", wanted.weights, "the weights");
  check(wanted.svg, "--svg", wanted.checkpoint, "the checkpoint");
  for (const std::string& path : {wanted.checkpoint, wanted.svg}) {
    const vggload::atomic_output_file removed(path, 1);
  }
}

/// What the weights are loaded as: what the file has where that can be computed with, else FP32.
vgg16::load_options load_options_of(const training_setup& setup) {
  std::optional<vggload::dtype> type;
  for (const vgg16::bound_layer& layer : setup.bound.layers) {
    for (const std::size_t tensor : {layer.weight, layer.bias}) {
      const vggload::dtype found = setup.file.tensors()[tensor].dtype;
      const bool usable = found == vggload::dtype::f32 || found == vggload::dtype::f16 ||
                          found == vggload::dtype::bf16;
      if (!usable) type = vggload::dtype::f32;
    }
  }
  return {
      .dtype = type, .include_top = false, .threads = setup.wanted.threads, .ledger = setup.ledger};
}

/// All that is going to be allocated but for what one image takes while it is decoded, with `group` images going
/// through the base at once.
memory_plan plan_memory(const training_setup& setup, std::size_t group, bool streams_weights) {
  using vggload::memory_role;
  const options& wanted = setup.wanted;
  memory_plan plan{.group = group, .streams_weights = streams_weights};
  const auto add = [&](const std::string& name, std::uint64_t bytes, const std::string& note) {
    plan.rows.push_back({name, bytes, note});
    plan.total_bytes += bytes;
  };

  if (streams_weights) {
    add("weights", 0, "read from the file in each pass");
  } else {
    const auto weights =
        vgg16::detail::choose_sources(setup.file, setup.bound, load_options_of(setup).dtype, false);
    for (const auto& weight : weights) {
      if (weight.mapped) plan.mapped_bytes += weight.bytes;
    }
    add("weights", vgg16::detail::arena_bytes(setup.file, weights, vgg16::detail::piece_alignment),
        plan.mapped_bytes > 0 ? "+ " + grouped(plan.mapped_bytes) + " mapped, in no memory" : "");
  }

  network::frozen_base_options base_options = setup.base;
  base_options.batch = group;
  const network::frozen_base_footprint base = network::plan_frozen_base(base_options);
  add("activations", base.activations_bytes,
      "of the base, " + grouped(group) + (group == 1 ? " image" : " images") + " at once");
  add("workspace", base.workspace_bytes + base.staging_bytes, "of the base");

  const network::head_footprint head = network::plan_training(setup.training);
  const std::uint64_t optimizer = head.bytes(memory_role::optimizer);
  const std::uint64_t gradients = head.bytes(memory_role::gradients);
  const std::uint64_t parameters =
      head.bytes(memory_role::weights) + head.bytes(memory_role::masters);
  add("head", parameters, setup.layers());
  add("gradients", gradients, "of the head");
  add("optimizer", optimizer, std::string(name_of(wanted.optimizer)));
  add("head's activations", head.total_bytes - parameters - gradients - optimizer,
      std::string(name_of(wanted.policy)));

  const network::feature_format features = setup.features();
  const std::size_t classes = features.classes;
  const std::uint64_t images =
      vggload::image_batch::bytes({.height = wanted.target.height, .width = wanted.target.width},
                                  {vggload::label_mode::categorical, classes}, wanted.batch);
  const std::size_t validation = setup.folders.validation.size();
  const std::uint64_t kept = network::feature_batch::bytes(features, validation);
  plan.keeps_validation = validation > 0 && !setup.is_cached() && kept <= most_kept_bytes;
  // The images of training and validation have a batch each.
  const bool both = validation > 0 && !setup.is_cached();
  add("batches of images", images * (both ? 2 : 1),
      std::to_string(wanted.batch) + " x " + std::to_string(wanted.target.height) + " x " +
          std::to_string(wanted.target.width) + " x 3 F32" + (both ? ", twice" : ""));
  add("batches of features",
      network::feature_batch::bytes(features, wanted.batch) * (validation > 0 ? 2 : 1),
      std::to_string(wanted.batch) + " x " + to_string(setup.training.features) + " F32" +
          (validation > 0 ? ", twice" : ""));
  if (plan.keeps_validation) {
    add("validation", kept, "features of " + grouped(validation) + " images");
  }
  return plan;
}

/// With weights in memory and as many images at once as the limit allows. A limit counts what is mapped, too.
memory_plan plan_memory(const training_setup& setup) {
  const vggload::image_size target = setup.wanted.target;
  const std::size_t most =
      std::clamp<std::size_t>(group_pixels / (target.height * target.width), 1, setup.wanted.batch);
  const auto limit = setup.wanted.memory_limit;
  if (!limit) return plan_memory(setup, most, false);
  memory_plan plan;
  for (const bool streams_weights : {false, true}) {
    for (std::size_t group = most; group > 0; --group) {
      plan = plan_memory(setup, group, streams_weights);
      if (plan.total_bytes + plan.mapped_bytes <= *limit) return plan;
    }
  }
  throw vggload::error(printable(setup.file.path()) + ": the memory limit of " +
                       std::to_string(*limit) +
                       " bytes cannot be kept: " + std::to_string(plan.total_bytes) +
                       " are needed with one image at once and weights that are not loaded; a "
                       "smaller --target or --batch takes less");
}

void print_plan(const training_setup& setup, const memory_plan& plan) {
  const options& wanted = setup.wanted;
  const auto row = [](const std::string& name, const std::string& value, const std::string& note) {
    std::printf("  %-20s %14s  %s\n", name.c_str(), value.c_str(), note.c_str());
  };
  const auto& training = setup.folders.training;
  std::string classes;
  constexpr std::size_t most = 4;
  for (const auto& name : training.classes().first(std::min(training.classes().size(), most))) {
    classes.append(classes.empty() ? "" : ", ").append(printable(name, 40));
  }
  if (training.classes().size() > most) classes += ", ...";
  std::printf("fine-tuning VGG16 for the images in %s\n", printable(wanted.folder).c_str());
  row("classes", grouped(training.classes().size()), classes);
  row("images", grouped(training.size()),
      setup.is_cached() ? "as they are: features in a cache are not augmented"
                        : "augmented anew in each epoch");
  row("for validation", grouped(setup.folders.validation.size()), "");
  row("weights of the base", std::string(name_of(setup.bound.layout)),
      "layout, frozen; images prepared as " +
          std::string(setup.values.preprocessing == vggload::preprocessing::caffe
                          ? "Keras does for its weights"
                          : "torchvision does for its weights"));
  std::printf("memory in bytes\n");
  for (const memory_row& one : plan.rows) row(one.name, grouped(one.bytes), one.note);
  row("in all", grouped(plan.total_bytes), "and what the largest image takes to be decoded");
  std::fflush(stdout);
}

/// The base and what goes through it; made when it is first needed, since a cache may have all there is to know.
class feature_maker {
 public:
  feature_maker(const training_setup& setup, const memory_plan& plan)
      : setup_(setup), plan_(plan), options_(setup.base) {
    options_.batch = plan.group;
  }

  network::frozen_base& base() {
    if (base_) return *base_;
    const vgg16::load_options load = load_options_of(setup_);
    if (plan_.streams_weights) {
      streamed_.emplace(setup_.file, load.dtype, false);
      base_ = std::make_unique<network::frozen_base>(*streamed_, options_);
    } else {
      model_.emplace(vgg16::load(setup_.file, load));
      base_ = network::freeze(*model_, options_);
    }
    return *base_;
  }

  /// The images of a folder, one by one, changed or as they are.
  [[nodiscard]] auto images(const vggload::image_folder& folder, bool changed) const {
    const vggload::sample_format format{.height = options_.height, .width = options_.width};
    return vggload::image_sequence(
        folder,
        vggload::fast_augmentation(format,
                                   changed ? setup_.wanted.changes : vggload::augmentation{},
                                   setup_.values, setup_.wanted.seed),
        {.decode = {.at_least = setup_.wanted.target},
         .scratch_limit = static_cast<std::size_t>(
             setup_.wanted.memory_limit.value_or(std::numeric_limits<std::size_t>::max()) -
             (setup_.wanted.memory_limit ? plan_.total_bytes + plan_.mapped_bytes : 0))});
  }

  /// The features of a folder's images as they are, in its order.
  [[nodiscard]] auto plain(const vggload::image_folder& folder) {
    return images(folder, false) | vggload::batch(setup_.wanted.batch) |
           network::features(base(), setup_.ledger);
  }

 private:
  const training_setup& setup_;
  const memory_plan& plan_;
  network::frozen_base_options options_;
  std::optional<vgg16::model<>> model_;                // where it is loaded,
  std::optional<network::streamed_weights> streamed_;  // or else
  std::unique_ptr<network::frozen_base> base_;
};

/// What becomes of all features before the head has them.
auto same_length() { return vggload::map(&network::unit_normalization); }

/// After each batch, which takes long to make, a signal is looked for.
auto polled(command::interruption& interrupted) {
  return vggload::map([&interrupted](network::feature_batch&) { interrupted.poll(); });
}

/// A training on its way: what it has come to is printed, drawn and saved.
class training_run {
 public:
  training_run(const training_setup& setup, const memory_plan& plan,
               command::interruption& interrupted)
      : setup_(setup),
        plan_(plan),
        interrupted_(interrupted),
        maker_(setup, plan),
        trainer_(setup.training),
        context_(make_context()) {}

  void run() {
    resume();
    const bool finished = progress().epoch >= setup_.wanted.epochs;
    if (!finished && setup_.is_cached()) {
      train_on_cache();
    } else if (!finished) {
      train_on_images();
    }
    draw();
    if (setup_.wanted.json) print_json();
  }

 private:
  [[nodiscard]] const network::training_progress& progress() const { return trainer_.progress(); }

  /// What a checkpoint must agree in, beside the head and how it is trained.
  [[nodiscard]] std::vector<vggload::metadata_entry> make_context() const {
    const options& wanted = setup_.wanted;
    const auto text = [](double value) { return network::detail::exact_text(value); };
    const std::string changes = "shift " + text(wanted.changes.width_shift_range) + ", zoom " +
                                text(wanted.changes.zoom_range.low) + " to " +
                                text(wanted.changes.zoom_range.high) + ", shear " +
                                text(wanted.changes.shear_range) +
                                (wanted.changes.horizontal_flip ? ", flip" : "");
    return {{"base", identity_of(setup_.file, setup_.bound)},
            {"preprocessing",
             setup_.values.preprocessing == vggload::preprocessing::caffe ? "keras" : "torch"},
            {"target",
             std::to_string(wanted.target.height) + "x" + std::to_string(wanted.target.width)},
            {"batch", std::to_string(wanted.batch)},
            {"images", listing_of(setup_.folders.training, false)},
            {"validation_images", listing_of(setup_.folders.validation, false)},
            {"features_in_front", "unit_normalization"},
            {"augmentation", setup_.is_cached() ? "none, cached features" : changes}};
  }

  void resume() {
    const std::string& path = setup_.wanted.checkpoint;
    if (::access(path.c_str(), F_OK) != 0) return;
    network::resume_training(trainer_, path, context_);
    resumed_ = {progress().epoch, progress().batch};
    if (setup_.wanted.json) return;
    const std::string epoch = std::to_string(progress().epoch);
    std::printf("resumed %s: %s of %s epochs are done%s\n", printable(path).c_str(), epoch.c_str(),
                std::to_string(setup_.wanted.epochs).c_str(),
                progress().epoch >= setup_.wanted.epochs ? ", nothing is left to do" : "");
    std::fflush(stdout);
  }

  void train_on_images() {
    auto training = maker_.images(setup_.folders.training, true) |
                    vggload::shuffle(setup_.wanted.seed) | vggload::batch(setup_.wanted.batch) |
                    network::features(maker_.base(), setup_.ledger) | same_length() |
                    polled(interrupted_);
    measure(training | vggload::take(measured_batches));
    if (setup_.folders.validation.size() == 0) {
      fit(training, nullptr);
    } else if (plan_.keeps_validation) {
      auto kept = collect("validation images", setup_.folders.validation,
                          [&](const auto& batches, const auto& how) {
                            return network::keep_features(batches, batches.format(),
                                                          setup_.folders.validation.size(), how);
                          });
      auto validation = kept | vggload::batch(setup_.wanted.batch) | same_length();
      fit(training, &validation);
    } else {
      auto validation =
          maker_.plain(setup_.folders.validation) | same_length() | polled(interrupted_);
      fit(training, &validation);
    }
  }

  void train_on_cache() {
    make_folder(setup_.wanted.cache);
    const auto stored = [&](const char* name, const vggload::image_folder& folder) {
      return cached(setup_.wanted.cache + "/" + name + ".safetensors", name, folder);
    };
    auto images = stored("training", setup_.folders.training);
    auto training = images | vggload::shuffle(setup_.wanted.seed) |
                    vggload::batch(setup_.wanted.batch) | same_length();
    measure(training);
    if (setup_.folders.validation.size() == 0) {
      fit(training, nullptr);
    } else {
      auto validation = stored("validation", setup_.folders.validation) |
                        vggload::batch(setup_.wanted.batch) | same_length();
      fit(training, &validation);
    }
  }

  static void make_folder(const std::string& path) {
    if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
      vggload::detail::throw_system_error(path, "cannot make the folder", errno);
    }
  }

  /// The features of a folder's images from a file, which is written where it is not there or of other images.
  network::stored_features cached(const std::string& path, const char* name,
                                  const vggload::image_folder& folder) {
    std::string key = "base " + context_[0].second;
    key += "; prepared as for " + context_[1].second + "; " + context_[2].second + "; images " +
           listing_of(folder, true);
    const network::feature_format format = setup_.features();
    auto found = network::find_feature_cache(path, key, format, folder.size());
    std::string said = "used";
    if (found.state == network::cache_state::missing) said = "made";
    if (found.state == network::cache_state::stale)
      said = "made anew, it was of other images, weights or options";
    if (found.state == network::cache_state::damaged) said = "made anew: " + found.reason;
    if (!setup_.wanted.json) {
      std::printf("cache %s: %s\n", printable(path).c_str(), said.c_str());
      std::fflush(stdout);
    }
    if (found.features) return *std::move(found.features);
    return collect(name + std::string(" images"), folder,
                   [&](const auto& batches, const auto& how) {
                     network::write_feature_cache(path, key, batches, format, folder.size(), how);
                     auto written = network::find_feature_cache(path, key, format, folder.size());
                     if (!written.features) {
                       throw vggload::error(printable(path) +
                                            ": somebody else replaced it meanwhile; two trainings "
                                            "of different images want two folders");
                     }
                     return *std::move(written.features);
                   });
  }

  [[noreturn]] void end_interrupted(const std::string& where) const {
    throw vggload::cancelled_error(printable(setup_.wanted.folder) + ": interrupted " + where);
  }

  /// Lets `make` run all of a folder's images through the base.
  template <class Make>
  network::stored_features collect(const std::string& what, const vggload::image_folder& folder,
                                   const Make& make) {
    command::progress_bar bar(what);
    const auto batches = maker_.plain(folder);
    try {
      return make(batches, network::collect_options{.stop = interrupted_.token(),
                                                    .progress =
                                                        [&](std::size_t done, std::size_t all) {
                                                          interrupted_.poll();
                                                          bar.show(done, all);
                                                        },
                                                    .ledger = setup_.ledger});
    } catch (const vggload::cancelled_error&) {
      end_interrupted("while features were made");
    }
  }

  /// Where the training begins: what scale the features have.
  template <class Batches>
  void measure(Batches&& batches) {
    if (progress().steps > 0) return;
    const auto looked_at = vggload::map([this](network::feature_batch& batch) {
      if (interrupted_.token().stop_requested()) end_interrupted("before the first step");
      if (!std::ranges::all_of(batch.features(),
                               [](float value) { return std::isfinite(value); })) {
        throw vggload::error(printable(setup_.wanted.weights) +
                             ": the features of the images are not finite, so the weights are not, "
                             "or too large");
      }
    });
    network::adapt_normalization(trainer_.head(), std::forward<Batches>(batches) | looked_at);
  }

  /// `validation`: a sequence, or nullptr.
  template <class Training, class Validation>
  void fit(Training& training, Validation validation) {
    command::progress_bar bar("training");
    auto saved = std::chrono::steady_clock::now();
    const auto save = [&] {
      network::save_training(trainer_, setup_.wanted.checkpoint, context_);
      saved = std::chrono::steady_clock::now();
    };
    bool updated = false;  // in this epoch,
    bool skipped = false;  // a step
    const network::fit_options how{
        .epochs = setup_.wanted.epochs,
        .stop = interrupted_.token(),
        .on_batch =
            [&](const network::batch_report& report) {
              interrupted_.poll();
              (report.updated ? updated : skipped) = true;
              const std::uint64_t all = setup_.wanted.epochs * report.batches;
              std::array<char, 32> loss;
              std::snprintf(loss.data(), loss.size(), " loss %.4f", report.sums.mean_loss());
              const std::string beside = epoch_of(report.epoch) + loss.data();
              bar.show(report.epoch * report.batches + report.batch, all, beside);
              const auto age = std::chrono::steady_clock::now() - saved;
              if (age >= checkpoint_interval || interrupted_.token().stop_requested()) save();
            },
        .on_epoch =
            [&](const network::epoch_report& report) {
              bar.clear();
              if (!setup_.wanted.json) print_epoch(report.epoch, report.metrics);
              if (skipped && !updated) {
                std::fprintf(
                    stderr,
                    "%s: no step counted, all gradients overflowed FP16; their scale is now %g\n",
                    epoch_of(report.epoch).c_str(), trainer_.loss_scale().value());
              }
              updated = skipped = false;
              // The line first: a training that is killed in between says it once more, and not never.
              save();
              draw();
            }};
    network::fit_end end{};
    if constexpr (std::is_null_pointer_v<Validation>) {
      end = network::fit(trainer_, training, how);
    } else {
      end = network::fit(trainer_, training, *validation, how);
    }
    if (end != network::fit_end::interrupted) return;
    save();
    end_interrupted("in epoch " + std::to_string(progress().epoch + 1) + "; " +
                    printable(setup_.wanted.checkpoint) + " is where it goes on");
  }

  /// "epoch 3/10"; the first is 0.
  [[nodiscard]] std::string epoch_of(std::uint64_t epoch) const {
    return "epoch " + std::to_string(epoch + 1) + "/" + std::to_string(setup_.wanted.epochs);
  }

  void print_epoch(std::uint64_t epoch, const network::epoch_metrics& metrics) const {
    std::printf("%s loss %.4f accuracy %.4f", epoch_of(epoch).c_str(), metrics.loss,
                metrics.accuracy);
    if (metrics.val_loss) {
      std::printf(" val_loss %.4f val_accuracy %.4f", *metrics.val_loss, *metrics.val_accuracy);
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  /// The curve so far.
  void draw() const {
    const std::string heading = "Fine-tuning VGG16 for " + printable(setup_.wanted.folder, 60);
    const std::string text =
        command::training_chart(progress().history, setup_.wanted.epochs, heading).draw();
    vggload::atomic_output_file file(setup_.wanted.svg, text.size());
    file.write_at(0, std::as_bytes(std::span(text)));
    file.commit_lazily();
  }

  void print_json() const {
    const options& wanted = setup_.wanted;
    nlohmann::ordered_json plan;
    for (const memory_row& row : plan_.rows) plan[row.name] = row.bytes;
    nlohmann::ordered_json history = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < progress().history.size(); ++i) {
      const network::epoch_metrics& epoch = progress().history[i];
      history.push_back({{"epoch", i + 1}, {"loss", epoch.loss}, {"accuracy", epoch.accuracy}});
      if (!epoch.val_loss) continue;
      history.back()["val_loss"] = *epoch.val_loss;
      history.back()["val_accuracy"] = *epoch.val_accuracy;
    }
    const auto folder = setup_.folders.training.classes();
    nlohmann::ordered_json json{{"folder", wanted.folder},
                                {"file", wanted.weights},
                                {"classes", std::vector<std::string>(folder.begin(), folder.end())},
                                {"images", setup_.folders.training.size()},
                                {"validation_images", setup_.folders.validation.size()},
                                {"layout", name_of(setup_.bound.layout)},
                                {"preprocessing", context_[1].second},
                                {"target", {wanted.target.height, wanted.target.width}},
                                {"layers", setup_.layers()},
                                {"epochs", wanted.epochs},
                                {"batch", wanted.batch},
                                {"seed", wanted.seed},
                                {"optimizer", name_of(wanted.optimizer)},
                                {"learning_rate", setup_.training.optimizer.learning_rate},
                                {"policy", name_of(wanted.policy)},
                                {"augmentation", context_.back().second},
                                {"images_at_once", plan_.group},
                                {"plan_bytes", std::move(plan)},
                                {"planned_bytes", plan_.total_bytes},
                                {"mapped_bytes", plan_.mapped_bytes},
                                {"streams_weights", plan_.streams_weights},
                                {"peak_bytes", setup_.ledger->peak_bytes()},
                                {"checkpoint", wanted.checkpoint},
                                {"svg", wanted.svg},
                                {"resumed", nullptr},
                                {"history", std::move(history)}};
    if (resumed_) json["resumed"] = {{"epoch", resumed_->first}, {"batch", resumed_->second}};
    std::printf("%s\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  }

  const training_setup& setup_;
  const memory_plan& plan_;
  command::interruption& interrupted_;
  feature_maker maker_;
  network::trainer trainer_;
  std::vector<vggload::metadata_entry> context_;
  std::optional<std::pair<std::uint64_t, std::uint64_t>> resumed_;  // epoch and batch
};

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app(
      "Trains a classifier of a folder's images: a new head on VGG16's frozen convolutions.");
  options wanted;
  double zoom = 0.1;
  app.add_option("DIR", wanted.folder, "A folder with a subfolder of images for each class")
      ->required();
  app.add_option("FILE", wanted.weights, "A VGG16 in any format, with or without its top")
      ->required();
  app.add_option("--epochs", wanted.epochs, "How often all images are gone through (default: 10)")
      ->transform(command::whole_number(1, 1U << 20U))
      ->type_name("N");
  app.add_option("--batch", wanted.batch, "Images that a step learns from (default: 16)")
      ->transform(command::whole_number(1, 1U << 16U))
      ->type_name("N");
  app.add_option("--seed", wanted.seed, "Of all that is random (default: 0)")
      ->transform(command::whole_number(0, std::numeric_limits<std::uint32_t>::max()))
      ->type_name("N");
  command::add_choice<network::optimizer_kind>(app, "--optimizer", wanted.optimizer,
                                               {{"sgd", network::optimizer_kind::sgd},
                                                {"momentum", network::optimizer_kind::momentum},
                                                {"adam", network::optimizer_kind::adam}},
                                               "How weights are updated (default: adam)")
      ->type_name("sgd|momentum|adam");
  app.add_option("--learning-rate", wanted.learning_rate,
                 "Of the optimizer (default: 0.0003 for adam, else 0.01)")
      ->check(command::real_number(1e-12, 1e6))
      ->type_name("X");
  command::add_choice<network::precision_policy>(
      app, "--policy", wanted.policy,
      {{"f32", network::precision_policy::f32},
       {"mixed_float16", network::precision_policy::mixed_float16},
       {"mixed_bfloat16", network::precision_policy::mixed_bfloat16}},
      "What the head computes with (default: f32)")
      ->type_name("f32|mixed_float16|mixed_bfloat16");
  app.add_option("--validation-split", wanted.validation_split,
                 "Which part of each class is kept for validation (default: 0.2)")
      ->check(command::real_number(0, 0.99))
      ->type_name("V");
  app.add_option("--checkpoint", wanted.checkpoint,
                 "Where the training is saved, and goes on from (default: fine_tune.safetensors)")
      ->type_name("FILE");
  auto* const cache =
      app.add_option("--cache", wanted.cache,
                     "Keep the images' features in this folder, and look at the images once")
          ->check(command::not_empty())
          ->type_name("DIR");
  app.add_option("--memory-limit", wanted.memory_limit,
                 "Most memory for all that is planned, e.g. 300MiB")
      ->transform(command::byte_size());
  app.add_option("--svg", wanted.svg, "Where the curve is drawn (default: fine_tune.svg)")
      ->type_name("FILE");
  app.add_option_function<std::string>(
         "--target",
         [&](const std::string& text) {
           const auto size = *command::parse_height_and_width(text);
           wanted.target = {static_cast<std::size_t>(size.first),
                            static_cast<std::size_t>(size.second)};
         },
         "Height and width that images are brought to, at least 32x32 (default: 128x128)")
      ->check(command::height_and_width())
      ->check(CLI::Validator(
          [](const std::string& text) -> std::string {
            const auto size = command::parse_height_and_width(text);
            const bool fits = size && size->first >= 32 && size->second >= 32 &&
                              size->first <= 4096 && size->second <= 4096;
            return fits ? "" : "VGG16 looks at 32x32 to 4096x4096 pixels";
          },
          ""))
      ->type_name("HxW");
  app.add_option("--zoom", zoom, "Zoom by factors from 1 - Z to 1 + Z (default: 0.1)")
      ->check(command::real_number(0, 0.9))
      ->type_name("Z")
      ->excludes(cache);
  app.add_option("--shear", wanted.changes.shear_range,
                 "Shear by up to D degrees to both sides (default: 0)")
      ->check(command::real_number(0, 80))
      ->type_name("D")
      ->excludes(cache);
  app.add_flag("--hflip", wanted.changes.horizontal_flip,
               "Exchange left and right of each second image")
      ->excludes(cache);
  command::add_choice<weight_preprocessing>(
      app, "--preprocess", wanted.preprocessing,
      {{"keras", weight_preprocessing::keras}, {"torch", weight_preprocessing::torch}},
      "Whose weights they are (default: told by their layout)")
      ->type_name("keras|torch");
  command::add_threads(app, wanted.threads);
  app.add_flag("--json", wanted.json, "One JSON document instead of the lines");
  return command::run(app, argc, argv, wanted.folder, [&] {
    check_outputs(wanted);
    wanted.changes.zoom_range = {1 - zoom, 1 + zoom};
    command::interruption interrupted;
    const image_folders folders = list_images(wanted);
    wanted.batch =
        std::min(wanted.batch, folders.training.size());  // no room for images that are not there
    const vggload::checkpoint file = command::open_any(wanted.weights);
    const training_setup setup = set_up(wanted, folders, file);
    const memory_plan plan = plan_memory(setup);
    if (!wanted.json) print_plan(setup, plan);
    training_run(setup, plan, interrupted).run();
  });
} catch (...) {
  return command::report_error("fine_tune");
}
