// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/convert_layout.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/names.hpp>

#include "../support/fake_reader.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::fake_reader;
using test::message_of;

namespace {

const vgg16::name_map& family(std::string_view name) {
  for (const auto& map : vgg16::name_maps) {
    if (map.family == name) return map;
  }
  throw error("no such family");
}

/// A file with the convolutions, about 59 MB as FP32, its bytes as `fake_reader` has them; `shift`
/// bytes of a first tensor displace all that follow.
std::string write_features(const test::temporary_folder& folder, std::uint64_t shift = 0) {
  auto tensors = test::vgg16_tensors("torchvision", false);
  if (shift > 0) tensors.insert(tensors.begin(), fake_reader::info("step", dtype::u8, {shift}));
  const std::string path = folder.file("features");
  safetensors_writer writer(path, tensors);
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    bytes.resize(static_cast<std::size_t>(tensors[i].bytes));
    for (std::size_t j = 0; j < bytes.size(); ++j) bytes[j] = fake_reader::byte_at(i, j);
    writer.write_data(writer.data_offset(i), bytes);
  }
  writer.commit();
  return path;
}

/// Whether a view shows tensor `index` of a fake file, converted to FP16 where it says so.
bool shows(const tensor_view& view, std::size_t index, dtype type) {
  const std::size_t count = view.bytes().size() * 8 / bits_of(type);
  std::vector<std::byte> source(4 * count);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = fake_reader::byte_at(index, i);
  if (type == dtype::f32)
    return std::memcmp(view.bytes().data(), source.data(), source.size()) == 0;
  std::vector<std::byte> expected(count * bits_of(type) / 8);
  find_conversion(dtype::f32, type, simd_level::scalar)(source.data(), expected.data(), count);
  return std::memcmp(view.bytes().data(), expected.data(), expected.size()) == 0;
}

}  // namespace

TEST_CASE("each family's names lead to their tensor") {
  // Left: as the files spell them (facts of the formats), not as the maps are written.
  struct example {
    const char* family;
    const char* name;
    std::size_t layer;
    bool is_bias;
  };
  for (const example& e : {
           example{"torchvision", "features.0.weight", 0, false},
           example{"torchvision", "features.28.bias", 12, true},
           example{"torchvision", "classifier.6.weight", 15, false},
           example{"torchvision", "module.classifier.3.bias", 14, true},
           example{"torchvision", "module._orig_mod.features.14.weight", 6, false},
           example{"timm", "pre_logits.fc1.weight", 13, false},
           example{"timm", "pre_logits.fc2.bias", 14, true},
           example{"timm", "head.fc.weight", 15, false},
           example{"jcjohnson", "classifier.1.weight", 13, false},
           example{"jcjohnson", "classifier.4.bias", 14, true},
           example{"ONNX model zoo", "vgg0_conv12_weight", 12, false},
           example{"ONNX model zoo", "vgg0_dense2_bias", 15, true},
           example{"Keras", "block1_conv1/block1_conv1_W_1:0", 0, false},
           example{"Keras", "block1_conv1/block1_conv1_b_1:0", 0, true},
           example{"Keras", "predictions/predictions_W_1:0", 15, false},
           example{"Keras", "fc2/fc2_W:0", 14, false},
           example{"Keras", "fc2/fc2_b:0", 14, true},
           example{"Keras", "block5_conv3/block5_conv3/kernel:0", 12, false},
           example{"Keras", "block1_conv1/sequential/block1_conv1/kernel", 0, false},
           example{"Keras", "model_weights/fc1/fc1/bias:0", 13, true},
           example{"Keras", "block2_conv1/kernel", 2, false},
           example{"Keras 3", "layers/conv2d/vars/0", 0, false},
           example{"Keras 3", "layers/conv2d_12/vars/1", 12, true},
           example{"Keras 3", "layers/dense_2/vars/0", 15, false},
       }) {
    INFO(std::string(e.family), " ", std::string(e.name));
    CHECK(vgg16::find_slot(family(e.family), e.name) == vgg16::tensor_slot{e.layer, e.is_bias});
  }
  for (const auto& map : vgg16::name_maps) {
    for (const char* const name :
         {"", "features.0", "features.1.weight", "features.0.weight.x", "optimizer/fc1/m",
          "optimizer_weights/adam/fc1/kernel", "xfeatures.0.weight", "block1_conv1",
          "block1_conv9/kernel", "kernel", "block1_conv1/gamma", "layers/conv2d_13/vars/0",
          "vgg0_conv13_weight"}) {
      INFO(std::string(map.family), " ", std::string(name));
      CHECK_FALSE(vgg16::find_slot(map, name));
    }
  }
}

TEST_CASE("every family binds, in network order") {
  for (const auto& map : vgg16::name_maps) {
    for (const bool include_top : {true, false}) {
      INFO(std::string(map.family), include_top);
      const fake_reader reader(test::vgg16_tensors(map.family, include_top, 10));
      const auto bound = vgg16::bind(reader, include_top);
      // Without the top three families are alike, and the first one counts.
      if (include_top) CHECK(bound.family == map.family);
      CHECK(bound.layout == map.layout);
      CHECK(bound.classes == (include_top ? 10 : 0));
      REQUIRE(bound.layers.size() == (include_top ? 16 : 13));
      for (std::size_t i = 0; i < bound.layers.size(); ++i) {
        CHECK(bound.layers[i].weight == 2 * i);
        CHECK(bound.layers[i].bias == 2 * i + 1);
      }
      CHECK(bound.skipped.empty());
    }
  }
}

TEST_CASE("a dense layer that is written as a convolution is the same bytes") {
  auto tensors = test::vgg16_tensors("timm", true);
  tensors[26].shape = {4096, 512, 7, 7};
  tensors[28].shape = {4096, 4096, 1, 1};
  const auto bound = vgg16::bind(fake_reader(tensors));
  CHECK(bound.layers[13].weight_shape == shape{4096, 25088});
  CHECK(bound.layers[14].weight_shape == shape{4096, 4096});
}

TEST_CASE("all that does not fit is said at once") {
  auto tensors = test::vgg16_tensors("torchvision", true);
  tensors[0].shape = {64, 4, 3, 3};      // misshapen
  tensors[5].name = "features.99.bias";  // one missing, one extra
  tensors[7].dtype = dtype::i32;         // no weights
  tensors.back().shape = {999};          // not as many as the last weight has
  tensors.push_back(fake_reader::info("num_batches", dtype::i64, {}));  // a counter: skipped
  tensors.push_back(fake_reader::info("module.features.2.weight", dtype::f32, {1}));  // twice
  const auto message = message_of<binding_error>([&] { (void)vgg16::bind(fake_reader(tensors)); });
  CHECK(message ==
        "fake file: its tensors do not make a VGG16 under the names of torchvision"
        "; missing (1): 'features.5.bias'"
        "; extra (2): 'features.99.bias' F32 [128], 'module.features.2.weight' F32 [1] (beside "
        "'features.2.weight')"
        "; misshapen (3): 'features.0.weight' F32 [64, 4, 3, 3] where [64, 3, 3, 3] is needed"
        ", 'features.7.bias' I32 [128], whose elements cannot be weights"
        ", 'classifier.6.bias' F32 [999] where [1000] is needed");
}

TEST_CASE("a file without a top, and one that is something else, get their own words") {
  CHECK(message_of<binding_error>(
            [] { (void)vgg16::bind(fake_reader(test::vgg16_tensors("torchvision", false))); })
            .ends_with(
                "missing (6): 'classifier.0.weight', 'classifier.0.bias', 'classifier.3.weight', "
                "'classifier.3.bias', 'classifier.6.weight', 'classifier.6.bias'; the file has no "
                "top: load it without"));
  CHECK(message_of<binding_error>([] {
          (void)vgg16::bind(fake_reader({fake_reader::info("conv1.weight", dtype::f32, {1})}));
        }) ==
        "fake file: none of its 1 tensors has a name of VGG16's (known are the names of "
        "torchvision, timm, jcjohnson, ONNX model zoo, Keras, Keras 3); it begins with "
        "'conv1.weight'");
}

TEST_CASE("what training leaves beside the weights is skipped, and named") {
  auto tensors = test::vgg16_tensors("Keras", true);
  const std::size_t weights = tensors.size();
  tensors.push_back(fake_reader::info("optimizer/vars/2", dtype::f32, {3, 3, 3, 64}));
  tensors.push_back(fake_reader::info("optimizer_weights/adam/m/block1_conv9", dtype::f32, {64}));
  tensors.push_back(fake_reader::info("learning_rate", dtype::f32, {}));
  tensors.push_back(fake_reader::info("mask", dtype::boolean, {5, 5}));
  const auto bound = vgg16::bind(fake_reader(tensors));
  CHECK(bound.skipped == std::vector<std::size_t>{weights, weights + 1, weights + 2, weights + 3});
}

namespace {

/// Tensors as a Keras file of the old format lists them: with the layers' weights in its metadata.
class listing_reader : public fake_reader {
 public:
  explicit listing_reader(std::vector<tensor_info> tensors, const std::string& weights)
      : fake_reader(std::move(tensors)), metadata_{{"keras_weights", weights}} {}
  std::span<const metadata_entry> metadata() const { return metadata_; }

 private:
  std::vector<metadata_entry> metadata_;
};

/// Keras' weights under names of `layer` and `weight`, sorted as HDF5 files list them; and the list.
std::pair<std::vector<tensor_info>, std::string> keras_file(bool include_top, const auto& name_of) {
  auto tensors = test::vgg16_tensors("Keras", include_top, 10);
  std::string list;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].name = name_of(i / 2, i % 2);
    list += (i > 0 && i % 2 == 0 ? "\n" : "") + tensors[i].name + "\n";
  }
  std::ranges::sort(tensors, {}, &tensor_info::name);
  return {tensors, list};
}

}  // namespace

TEST_CASE("the order in which a Keras file lists its weights counts, not their names") {
  const auto numbered = [](const std::string& stem, std::size_t number) {
    return number == 0 ? stem : stem + "_" + std::to_string(number);
  };
  const auto keras_2 = [&](std::size_t layer, std::size_t weight) {
    return "model_weights/" +
           (layer < 13 ? numbered("conv2d", layer + 40) : numbered("dense", layer - 13)) +
           (weight == 0 ? "/kernel:0" : "/bias:0");
  };
  const auto keras_1 = [&](std::size_t layer, std::size_t weight) {
    const std::string name = "convolution2d_" + std::to_string(layer);
    return name + "/" + name + (weight == 0 ? "_W_2:0" : "_b_2:0");
  };
  const auto params = [&](std::size_t layer, std::size_t weight) {
    return "layer_" + std::to_string(layer) + "/param_" + std::to_string(weight);
  };
  // Names that would say something else.
  const auto wrong = [&](std::size_t layer, std::size_t weight) {
    return std::string(vgg16::layers[15 - layer].name) + (weight == 0 ? "/bias" : "/kernel");
  };
  const auto check = [](bool include_top, const auto& name_of) {
    auto [tensors, list] = keras_file(include_top, name_of);
    tensors.push_back(fake_reader::info("zz/unlisted", dtype::f32, {3, 3}));
    const listing_reader reader(tensors, list);
    for (const bool with_top : {true, false}) {
      if (with_top && !include_top) continue;
      const auto bound = vgg16::bind(reader, with_top);
      CHECK(bound.family == "Keras");
      CHECK(bound.layout == vgg16::weight_layout::keras);
      REQUIRE(bound.layers.size() == (with_top ? 16 : 13));
      for (std::size_t i = 0; i < bound.layers.size(); ++i) {
        CHECK(tensors[bound.layers[i].weight].name == name_of(i, 0));
        CHECK(tensors[bound.layers[i].bias].name == name_of(i, 1));
      }
      CHECK(bound.skipped.size() == (include_top && !with_top ? 7 : 1));
      CHECK(bound.skipped.back() == tensors.size() - 1);
    }
  };
  for (const bool include_top : {true, false}) {
    check(include_top, keras_2);
    check(include_top, keras_1);
    check(include_top, params);
    check(include_top, wrong);
  }
}

TEST_CASE("names count where the order of a Keras file's list says nothing") {
  // A network within a network, whose last block alone is trained: its weights come first.
  auto tensors = test::vgg16_tensors("Keras", false);
  std::string list;
  for (tensor_info& tensor : tensors) tensor.name.insert(0, "vgg16/");
  for (std::size_t i = 20; i < 26; ++i) list += tensors[i].name + "\n";
  for (std::size_t i = 0; i < 20; ++i) list += tensors[i].name + "\n";
  const auto nested = vgg16::bind(listing_reader(tensors, list), false);
  for (std::size_t i = 0; i < 13; ++i) CHECK(nested.layers[i].weight == 2 * i);
  // In a line: without names of VGG16's, all is in the network's order.
  const auto in_a_line = [](std::size_t layer, std::size_t weight) {
    return std::to_string(layer) + "/" + std::to_string(weight);
  };
  auto [plain, lines] = keras_file(false, in_a_line);
  lines.clear();
  for (std::size_t i = 0; i < 26; ++i) lines += in_a_line(i / 2, i % 2) + "\n";
  CHECK(vgg16::bind(listing_reader(plain, lines), false).layers.size() == 13);
  // A list of another file's names is none.
  const auto torch = test::vgg16_tensors("torchvision", true);
  CHECK(vgg16::bind(listing_reader(torch, "conv2d/kernel\nconv2d/bias\n")).family == "torchvision");
  CHECK(vgg16::bind(listing_reader(torch, torch[0].name + "\n" + torch[0].name + "\n")).family ==
        "torchvision");
}

TEST_CASE("a listed network that is no VGG16 is told what does not fit") {
  const auto name_of = [](std::size_t layer, std::size_t weight) {
    return "l" + std::to_string(10 + layer) + "/" + std::to_string(weight);
  };
  const auto [tensors, list] = keras_file(false, name_of);
  const auto message = [](const auto& infos, const std::string& lines) {
    return message_of<binding_error>([&] { (void)vgg16::bind(listing_reader(infos, lines)); });
  };
  CHECK(message(tensors, list) ==
        "fake file: its tensors do not make a VGG16 in the order in which its attributes list them"
        "; missing (6): 'fc1/kernel', 'fc1/bias', 'fc2/kernel', 'fc2/bias', 'predictions/kernel', "
        "'predictions/bias'; the file has no top: load it without");
  auto other = tensors;
  other[0].shape = {3, 3, 1, 64};
  CHECK(message(other, list).find("misshapen (1): 'l10/0' F32 [3, 3, 1, 64] where") !=
        std::string::npos);
}

TEST_CASE("no classes at all is misshapen") {
  auto tensors = test::vgg16_tensors("torchvision", true);
  tensors[30] = fake_reader::info(tensors[30].name, dtype::f32, {0, 4096});
  tensors[31] = fake_reader::info(tensors[31].name, dtype::f32, {0});
  CHECK(message_of<binding_error>([&] { (void)vgg16::bind(fake_reader(tensors)); })
            .ends_with("misshapen (2): 'classifier.6.weight' F32 [0, 4096] where [1000, 4096] is "
                       "needed, 'classifier.6.bias' F32 [0] where [1000] is needed"));
}

TEST_CASE("a message about very many tensors stays readable") {
  std::vector<tensor_info> tensors = test::vgg16_tensors("torchvision", true);
  for (int i = 0; i < 10'000; ++i) {
    tensors.push_back(fake_reader::info("extra" + std::to_string(i), dtype::f32, {2}));
  }
  const auto message = message_of<binding_error>([&] { (void)vgg16::bind(fake_reader(tensors)); });
  CHECK(message.find("extra (10000): 'extra0'") != std::string::npos);
  CHECK(message.ends_with(", ..."));
  CHECK(message.size() < 5000);
}

TEST_CASE("FP16 is loaded into one exact block, beside it only the windows") {
  memory_counts counts;
  const auto source = checkpoint::from(fake_reader(test::vgg16_tensors("torchvision", true)));
  // The top is skipped, which keeps the test small; the file has it.
  for (const unsigned threads : {1U, 2U}) {
    counts = {};
    const auto model = vgg16::load(source, {.include_top = false, .threads = threads},
                                   counting_resource<>(counts));
    CHECK(counts.bytes_in_use == 2 * 14'714'688);
    CHECK(counts.peak_bytes == 2 * 14'714'688 + threads * 262'144);
    CHECK(counts.allocations == 2);
    const auto& report = model.report();
    CHECK(report.destination_bytes == 2 * 14'714'688);
    CHECK(report.copied_bytes == 2 * 14'714'688);
    CHECK(report.mapped_bytes == 0);
    CHECK(report.tensors == 26);
    CHECK(report.threads == threads);
    CHECK(report.skipped == std::vector<std::string>{"classifier.0.weight", "classifier.0.bias",
                                                     "classifier.3.weight", "classifier.3.bias",
                                                     "classifier.6.weight", "classifier.6.bias"});
    CHECK(model.memory().allocations().size() == 26);
    CHECK(model.memory().allocations()[2].name == "features.2.weight");
    REQUIRE(model.weights().layers().size() == 13);
    CHECK(model.weights().parameters() == 14'714'688);
    CHECK(model.weights().dense().empty());
    for (std::size_t i = 0; i < 13; ++i) {
      CHECK(shows(model.weights().layers()[i].weight, 2 * i, dtype::f16));
      CHECK(shows(model.weights().layers()[i].bias, 2 * i + 1, dtype::f16));
    }
    CHECK(&model.weights()["block1_conv2"] == &model.weights().convs()[1]);
    CHECK(message_of<error>([&] { (void)model.weights()["fc1"]; }).find("no layer 'fc1'") !=
          std::string::npos);
  }
  CHECK(counts.bytes_in_use == 0);
}

TEST_CASE("FP32 from an FP32 file is views, and no memory at all") {
  const test::temporary_folder folder;
  memory_counts counts;
  std::optional model =
      vgg16::load(write_features(folder), {.dtype = dtype::f32, .include_top = false},
                  counting_resource<>(counts));
  CHECK(counts.allocations == 0);
  CHECK(model->report().copied_bytes == 0);
  CHECK(model->report().mapped_bytes == 4 * 14'714'688);
  // The views live as long as the model, wherever it is.
  const auto moved = *std::move(model);
  model.reset();  // NOLINT(bugprone-use-after-move): to show that the views do not need it
  for (std::size_t i = 0; i < 13; ++i) {
    CHECK(shows(moved.weights().layers()[i].weight, 2 * i, dtype::f32));
    CHECK(moved.weights().layers()[i].weight.values<float>().size() == vgg16::layers[i].weights());
  }
}

TEST_CASE("tensors that are not aligned in the file are shown as bytes, or copied on request") {
  const test::temporary_folder folder;
  const std::string path = write_features(folder, 1);
  const auto mapped = vgg16::load(path, {.dtype = dtype::f32, .include_top = false});
  CHECK(mapped.report().copied_bytes == 0);
  CHECK(shows(mapped.weights().layers()[12].weight, 25, dtype::f32));
  CHECK(message_of<error>([&] {
          (void)mapped.weights().layers()[12].weight.values<float>();
        }).find("not aligned") != std::string::npos);
  const auto model =
      vgg16::load(path, {.dtype = dtype::f32, .include_top = false, .aligned = true});
  CHECK(model.report().skipped == std::vector<std::string>{"step"});
  CHECK(model.report().mapped_bytes == 0);
  CHECK(model.report().copied_bytes == 4 * 14'714'688);
  CHECK(shows(model.weights().layers()[12].weight, 25, dtype::f32));
  CHECK_NOTHROW((void)model.weights().layers()[12].weight.values<float>());
}

TEST_CASE("a memory limit is kept, or refused before anything is read") {
  const fake_reader reader(test::vgg16_tensors("torchvision", false));
  const auto source = checkpoint::from(reader);
  constexpr std::uint64_t destination = 2 * 14'714'688;
  memory_counts counts;
  const auto load = [&](std::uint64_t limit) {
    return vgg16::load(source, {.include_top = false, .threads = 2, .memory_limit = limit},
                       counting_resource<>(counts));
  };
  (void)load(destination + 20'000);
  CHECK(counts.peak_bytes == destination + 2 * 8192);
  const std::uint64_t reads = reader.history()->reads;
  counts = {};
  try {
    (void)load(destination);
    FAIL("the limit is passed");
  } catch (const out_of_memory& e) {
    CHECK(std::string(e.what()) ==
          "fake file: the memory limit of 29429376 bytes cannot be kept: the destination needs "
          "29429376 bytes and a window at least 4096; the largest tensor, 'features.19.weight', "
          "takes 4718592; this would fit: streamed in windows, without keeping it (4096 bytes)");
    CHECK(e.tensor() == "features.19.weight");
  }
  CHECK(reader.history()->reads == reads);
  CHECK(counts.allocations == 0);
}

TEST_CASE("one byte too few: the error says what would fit, and its report what was wanted") {
  const fake_reader reader(test::vgg16_tensors("torchvision", true));
  const auto source = checkpoint::from(reader);
  constexpr std::uint64_t as_f32 = 4 * 138'357'544;
  constexpr std::uint64_t window = 4096;
  const auto ledger = std::make_shared<memory_ledger>();
  const auto refuse = [&](dtype_policy type, std::uint64_t limit) {
    try {
      (void)vgg16::load(source, {.dtype = type, .memory_limit = limit, .ledger = ledger});
    } catch (const out_of_memory& e) {
      return e;
    }
    FAIL("the limit is passed");
    return out_of_memory({}, {}, 0);
  };
  // The file is FP32 that cannot be mapped: FP16 and the convolutions alone are less, and both.
  const out_of_memory error = refuse(dtype::f32, as_f32 + window - 1);
  CHECK(std::string(error.what())
            .ends_with(
                "; this would fit: as F16 (276719184 bytes), without the top (58862848 bytes), as "
                "F16 without "
                "the top (29433472 bytes), streamed in windows, without keeping it (4096 bytes)"));
  CHECK(reader.history()->reads == 0);
  REQUIRE(error.report());
  const memory_report& report = *error.report();
  CHECK(report.tensor == "classifier.0.weight");
  CHECK(report.requested == 411'041'792);
  CHECK(report.requested_at_once == as_f32);
  CHECK(report.limit == as_f32 + window - 1);
  CHECK(report.total.value_or(0) > report.free.value_or(1));
  CHECK(report.live.largest.empty());
  REQUIRE(report.planned.largest.size() == 10);
  CHECK(report.planned.largest[0].name == "classifier.0.weight");
  CHECK(report.planned.largest[0].layer == "fc1");
  CHECK(report.planned.largest[0].bytes == 411'041'792);
  CHECK(report.planned.largest[1].layer == "fc2");
  CHECK(report.planned.others == 22);
  CHECK(report.planned.roles ==
        std::vector<std::pair<memory_role, std::uint64_t>>{{memory_role::weights, as_f32}});
  REQUIRE(report.alternatives.size() == 4);
  CHECK(report.alternatives[1].fits);
  // Under a small limit the report still tells them, and the line only what fits.
  const out_of_memory small = refuse(dtype::f32, 29'433'472);
  CHECK(std::string(small.what()).find("fit: as F16 without the top (29433472 bytes), streamed") !=
        std::string::npos);
  REQUIRE(small.report()->alternatives.size() == 4);
  CHECK_FALSE(small.report()->alternatives[0].fits);
  CHECK(std::string(refuse(dtype::f16, 100).what()).ends_with("takes 205520896"));
  // The exceptions of a policy count.
  const auto mixed = dtype_policy(dtype::f32).keep_fp32([](std::string_view name) {
    return name == "classifier.0.weight";
  });
  CHECK(std::string(refuse(mixed, as_f32).what()).find("as F16 (482240080 bytes)") !=
        std::string::npos);
  std::size_t out_of_memory_events = 0;
  for (const ledger_event& event : ledger->snapshot().events) {
    out_of_memory_events += event.kind == ledger_event_kind::out_of_memory ? 1 : 0;
  }
  CHECK(out_of_memory_events == 4);
}

TEST_CASE("a ledger knows each weight, the windows, and what is mapped") {
  const test::temporary_folder folder;
  const std::string path = write_features(folder);
  const auto ledger = std::make_shared<memory_ledger>();
  {
    const auto model = vgg16::load(path, {.include_top = false, .threads = 2, .ledger = ledger});
    const ledger_snapshot book = ledger->snapshot();
    CHECK(book.live_bytes == 2 * 14'714'688);
    CHECK(book.peak_bytes == 2 * 14'714'688 + 2 * 262'144);
    REQUIRE(book.blocks.size() == 2);
    CHECK(book.blocks[0].address ==
          reinterpret_cast<std::uintptr_t>(model.memory().block().data()));
    CHECK(book.blocks[1].name == "windows");
    CHECK_FALSE(book.blocks[1].live);
    REQUIRE(book.pieces.size() == 27);
    CHECK(book.pieces[2].name == "features.2.weight");
    CHECK(book.pieces[2].layer == "block1_conv2");
    CHECK(book.pieces[2].role == memory_role::weights);
    CHECK(book.pieces[2].bytes == 2 * 36'864);
    CHECK(book.pieces[2].offset == 2 * (1728 + 64));
    CHECK(book.pieces[2].live);
    CHECK(book.pieces[26].role == memory_role::staging);
    CHECK(book.lost_events == 0);
  }
  CHECK(ledger->live_bytes() == 0);
  {
    const auto model = vgg16::load(
        path, {.dtype = dtype::f32, .include_top = false, .threads = 2, .ledger = ledger});
    const ledger_snapshot book = ledger->snapshot();
    CHECK(book.live_bytes == 0);
    REQUIRE(book.blocks.size() == 3);
    CHECK(book.blocks[2].kind == memory_kind::mapped_file);
    CHECK(book.blocks[2].bytes == 4 * 14'714'688);
    CHECK(std::ranges::count(book.pieces, true, &ledger_piece::live) == 26);
    CHECK(live_tensors(book).largest.empty());
  }
  const ledger_snapshot book = ledger->snapshot();
  CHECK(std::ranges::count(book.pieces, true, &ledger_piece::live) == 0);
  // Each piece was planned or allocated once and freed once.
  CHECK(std::ranges::count(book.events, ledger_event_kind::allocated, &ledger_event::kind) == 53);
  CHECK(std::ranges::count(book.events, ledger_event_kind::freed, &ledger_event::kind) == 53);
}

TEST_CASE("a load can be stopped, and gives everything back") {
  memory_counts counts;
  std::stop_source stop;
  stop.request_stop();
  CHECK_THROWS_AS(
      (void)vgg16::load(checkpoint::from(fake_reader(test::vgg16_tensors("torchvision", false))),
                        {.include_top = false, .threads = 2, .stop = stop.get_token()},
                        counting_resource<>(counts)),
      cancelled_error);
  CHECK(counts.allocations == 2);
  CHECK(counts.bytes_in_use == 0);
}

TEST_CASE("a type that nothing converts to is refused") {
  const auto source = checkpoint::from(fake_reader(test::vgg16_tensors("torchvision", false)));
  CHECK(message_of<unsupported_error>([&] {
          (void)vgg16::load(source, {.dtype = dtype::i8, .include_top = false});
        }) == "fake file: tensor 'features.0.weight': F32 [64, 3, 3, 3] cannot be loaded as I8");
}

namespace {

/// Element `place` of tensor `index` of a fake file.
std::uint32_t element(std::size_t index, std::uint64_t place) {
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    bits |= std::to_integer<std::uint32_t>(fake_reader::byte_at(index, 4 * place + i)) << (8 * i);
  }
  return bits;
}

}  // namespace

TEST_CASE("another layout has other names and shapes, and each element in its place") {
  const test::temporary_folder folder;
  const std::string path = folder.file("out");
  for (const auto to : {vgg16::weight_layout::torch, vgg16::weight_layout::keras}) {
    const bool to_torch = to == vgg16::weight_layout::torch;
    auto tensors = test::vgg16_tensors(to_torch ? "Keras" : "jcjohnson", false);
    tensors.push_back(fake_reader::info("optimizer step", dtype::i64, {}));
    vgg16::convert_layout(checkpoint::from(fake_reader(tensors)), path, to, std::nullopt,
                          {.threads = 2});
    const checkpoint out = open_checkpoint(path);
    REQUIRE(out.tensors().size() == 26);
    CHECK(out.tensors()[2].name ==
          (to_torch ? "features.2.weight" : "block1_conv2/block1_conv2_W_1"));
    CHECK(out.tensors()[25].name ==
          (to_torch ? "features.28.bias" : "block5_conv3/block5_conv3_b_1"));
    for (const std::size_t layer : {0U, 1U, 12U}) {
      const std::uint64_t in = vgg16::layers[layer].inputs;
      const std::uint64_t outputs = vgg16::layers[layer].outputs;
      CHECK(out.tensors()[2 * layer].shape ==
            (to_torch ? shape{outputs, in, 3, 3} : shape{3, 3, in, outputs}));
      std::vector<std::uint32_t> got(vgg16::layers[layer].weights());
      out.read(2 * layer, 0, std::as_writable_bytes(std::span(got)));
      std::size_t wrong = 0;
      // T[o][i][h][w] = K[h][w][i][o]
      for (std::uint64_t o = 0; o < outputs; ++o) {
        for (std::uint64_t i = 0; i < in; ++i) {
          for (std::uint64_t hw = 0; hw < 9; ++hw) {
            const std::uint64_t torch = (o * in + i) * 9 + hw;
            const std::uint64_t keras = (hw * in + i) * outputs + o;
            wrong += got[to_torch ? torch : keras] != element(2 * layer, to_torch ? keras : torch)
                         ? 1U
                         : 0U;
          }
        }
      }
      CHECK(wrong == 0);
      out.read(2 * layer + 1, 0, std::as_writable_bytes(std::span(got).first(outputs)));
      CHECK(got[outputs - 1] == element(2 * layer + 1, outputs - 1));
    }
  }
}

TEST_CASE("the dense layers change their axes, fc1 the order in which it flattens the image") {
  struct example {
    const char* family;
    element_order order;
  };
  for (const example& e :
       {example{"Keras", element_order::row_major}, example{"Keras", element_order::column_major},
        example{"torchvision", element_order::row_major},
        example{"torchvision", element_order::column_major}}) {
    auto tensors = test::vgg16_tensors(e.family, true, 10);
    for (auto& info : tensors) info.order = e.order;
    const auto source = checkpoint::from(fake_reader(tensors));
    const auto bound = vgg16::bind(source);
    const bool to_torch = bound.layout == vgg16::weight_layout::keras;
    const auto other = to_torch ? vgg16::weight_layout::torch : vgg16::weight_layout::keras;
    // A matrix's element [row, column] in the file.
    const auto place = [&](std::uint64_t row, std::uint64_t column, const shape& dims) {
      return 4 * (e.order == element_order::row_major ? row * dims[1] + column
                                                      : column * dims[0] + row);
    };
    const auto at = [](const std::vector<strided_axis>& axes, std::vector<std::uint64_t> index) {
      std::uint64_t offset = 0;
      for (std::size_t i = 0; i < axes.size(); ++i) offset += index[i] * axes[i].stride;
      return offset;
    };
    const auto fc1 = vgg16::detail::convert_weight(source, bound.layers[13], bound.layout, other);
    const shape& dims = tensors[26].shape;
    REQUIRE(fc1.axes.size() == 3);
    CHECK(fc1.shape == (to_torch ? shape{4096, 25088} : shape{25088, 4096}));
    // T[o, c * 49 + h * 7 + w] = K[(h * 7 + w) * 512 + c, o]
    for (const std::uint64_t o : {0U, 5U, 4095U}) {
      for (const std::uint64_t c : {0U, 3U, 511U}) {
        for (const std::uint64_t p : {0U, 8U, 48U}) {
          if (to_torch) {
            CHECK(at(fc1.axes, {o, c, p}) == place(p * 512 + c, o, dims));
          } else {
            CHECK(at(fc1.axes, {p, c, o}) == place(o, c * 49 + p, dims));
          }
        }
      }
    }
    const auto top = vgg16::detail::convert_weight(source, bound.layers[15], bound.layout, other);
    CHECK(top.shape == (to_torch ? shape{10, 4096} : shape{4096, 10}));
    CHECK(at(top.axes,
             to_torch ? std::vector<std::uint64_t>{7, 9} : std::vector<std::uint64_t>{9, 7}) ==
          (to_torch ? place(9, 7, tensors[30].shape) : place(7, 9, tensors[30].shape)));
    // Into its own layout only the order changes.
    const auto same =
        vgg16::detail::convert_weight(source, bound.layers[14], bound.layout, bound.layout);
    CHECK(same.axes.empty() == (e.order == element_order::row_major));
  }
}

TEST_CASE("weights whose axes stand in an order of their own are loaded in row-major order") {
  auto tensors = test::vgg16_tensors("torchvision", false);
  // channels_last: [out, in, 3, 3] kept as [out, 3, 3, in].
  tensor_info& permuted = tensors[2];
  const auto dims = permuted.shape.dims();
  permuted.order = element_order::column_major;
  permuted.strides = {4 * dims[1] * 9, 4, 4 * dims[1] * 3, 4 * dims[1]};
  for (const auto type : {dtype::f32, dtype::f16}) {
    const auto model = vgg16::load(checkpoint::from(fake_reader(tensors)),
                                   {.dtype = type, .include_top = false, .threads = 2});
    const tensor_view& weight = model.weights().layers()[1].weight;
    CHECK(weight.order() == element_order::row_major);
    const auto bytes = weight.bytes();
    const std::size_t size = bits_of(type) / 8;
    std::size_t wrong = 0;
    std::size_t place = 0;
    for (std::size_t o = 0; o < dims[0]; ++o) {
      for (std::size_t i = 0; i < dims[1]; ++i) {
        for (std::size_t p = 0; p < 9; ++p, ++place) {
          const std::size_t source = o * dims[1] * 9 + p * dims[1] + i;
          std::array<std::byte, 4> element;
          for (std::size_t b = 0; b < 4; ++b) element[b] = fake_reader::byte_at(2, 4 * source + b);
          std::array<std::byte, 4> expected{};
          find_conversion(dtype::f32, type, simd_level::scalar)(element.data(), expected.data(), 1);
          if (std::memcmp(bytes.data() + size * place, expected.data(), size) != 0) ++wrong;
        }
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("biases stay FP32 by name, mapped in place, and all is measured") {
  const test::temporary_folder folder;
  const std::string path = write_features(folder);
  const auto is_bias = [](std::string_view name) { return name.ends_with(".bias"); };
  const auto model = vgg16::load(path, {.dtype = dtype_policy(dtype::f16).keep_fp32(is_bias),
                                        .measure_health = true,
                                        .include_top = false,
                                        .threads = 2});
  constexpr std::uint64_t biases = 64 * 2 + 128 * 2 + 256 * 3 + 512 * 6;
  CHECK(model.report().copied_bytes == 2 * (14'714'688 - biases));
  CHECK(model.report().mapped_bytes == 4 * biases);
  for (std::size_t i = 0; i < 13; ++i) {
    const auto& layer = model.weights().layers()[i];
    CHECK(layer.weight.dtype() == dtype::f16);
    CHECK(layer.bias.dtype() == dtype::f32);
    CHECK(shows(layer.weight, 2 * i, dtype::f16));
    CHECK(shows(layer.bias, 2 * i + 1, dtype::f32));
    // In the order of the layers, whatever was mapped.
    const auto& measured = model.report().measured;
    REQUIRE(measured.size() == 26);
    CHECK(measured[2 * i].tensor == 2 * i);
    CHECK(measured[2 * i].to == dtype::f16);
    CHECK(measured[2 * i].health.numel == vgg16::layers[i].weights());
    CHECK(measured[2 * i + 1].to == dtype::f32);
    CHECK(measured[2 * i + 1].health.overflowed == 0);
  }
  CHECK(model.report().overflowed.empty());

  // One weight that FP16 cannot hold.
  std::string bytes = test::read_file(path);
  const std::size_t data_begin = bytes.size() - 4 * std::size_t{14'714'688};
  const float large = -1e9F;
  std::memcpy(bytes.data() + data_begin, &large, sizeof(large));
  const std::string other = folder.write("large", bytes);
  CHECK(message_of<overflow_error>([&] {
          (void)vgg16::load(other, {.overflow = overflow_policy::refuse, .include_top = false});
        }) == other +
                  ": tensor 'features.0.weight': F32 -1e+09 at [0, 0, 0, 0] exceeds F16, whose "
                  "largest value is 65504");
  const auto saturated =
      vgg16::load(other, {.overflow = overflow_policy::saturate, .include_top = false});
  CHECK(saturated.report().overflowed.at(0).values == 1);
  CHECK(saturated.weights().layers()[0].weight.values<float16>()[0].bits == 0xFBFF);
}
