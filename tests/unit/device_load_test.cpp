// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What is uploaded to a device, how it gets there and what becomes of errors: over a device that is
// none (tests/support/fake_device.hpp), so on any machine. tests/cuda/upload_test.cu is this on a GPU.

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/cuda/load_vgg16.hpp>
#include <vggload/cuda/upload_engine.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/load/upload_ring.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>
#include <vggload/vgg16/load.hpp>

#include "../support/fake_device.hpp"
#include "../support/fake_reader.hpp"
#include "../support/message_of.hpp"

using namespace vggload;
using cuda::upload_conversion;
using test::fake_device;
using test::fake_reader;
using test::message_of;

namespace {

constexpr std::array conversions{upload_conversion::on_device, upload_conversion::while_staging,
                                 upload_conversion::by_measurement};

/// `fake_reader` with one value in two tensors that FP16 cannot hold.
class overflowing_reader : public fake_reader {
 public:
  using fake_reader::fake_reader;
  static constexpr std::uint64_t element = 17;

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    fake_reader::read(tensor, offset, out);
    if (tensor != 4 && tensor != 24) return;
    const float value = 1e6F;
    std::array<std::byte, sizeof value> bytes{};
    std::memcpy(bytes.data(), &value, sizeof value);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const std::uint64_t at = element * sizeof value + i;
      if (at >= offset && at - offset < out.size())
        out[static_cast<std::size_t>(at - offset)] = bytes[i];
    }
  }
};

static_assert(weight_reader<overflowing_reader>);

std::vector<tensor_info> tensors(dtype type = dtype::f32) {
  return test::vgg16_tensors("torchvision", false, 1000, type);
}

template <class Resource>
void check_equal(const cuda::device_model<Resource>& loaded, const vgg16::model<>& expected) {
  CHECK(loaded.layout() == expected.weights().layout());
  REQUIRE(loaded.layers().size() == expected.weights().layers().size());
  for (std::size_t i = 0; i < loaded.layers().size(); ++i) {
    const auto& layer = loaded.layers()[i];
    const auto& host = expected.weights().layers()[i];
    CAPTURE(host.spec.name);
    CHECK(layer.spec.name == host.spec.name);
    for (const auto& [device, view] :
         {std::pair(&layer.weight, &host.weight), std::pair(&layer.bias, &host.bias)}) {
      CHECK(device->dtype == view->dtype());
      CHECK(device->shape == view->shape());
      CHECK(device->order == view->order());
      // The fake device's bytes lie in the host's memory.
      REQUIRE(device->bytes.size() == view->bytes().size());
      const bool equal =
          std::memcmp(device->bytes.data(), view->bytes().data(), view->bytes().size()) == 0;
      CHECK(equal);
    }
  }
}

double rate(const cuda::upload_stage& stage) {
  return static_cast<double>(stage.source_bytes) / stage.seconds;
}

/// Nothing that was taken is still held.
void check_all_given_back() {
  CHECK(fake_device::history().device_bytes == 0);
  CHECK(fake_device::history().pinned_bytes == 0);
  CHECK(fake_device::history().live_streams == 0);
  CHECK(fake_device::history().live_events == 0);
}

}  // namespace

// Host code cannot read what is on a device.
static_assert(!std::convertible_to<decltype(cuda::device_tensor::bytes), std::span<std::byte>>);
static_assert(
    !std::convertible_to<decltype(cuda::device_tensor::bytes), std::span<const std::byte>>);
static_assert(!std::copyable<cuda::device_model<fake_device::device_resource>>);
static_assert(
    std::is_nothrow_move_constructible_v<cuda::device_model<fake_device::device_resource>>);

TEST_CASE("a device has what the host would have, however it is converted") {
  const checkpoint source = checkpoint::from(fake_reader(tensors()));
  constexpr std::uint64_t source_bytes = 14'714'688 * 4;  // the parameters without the top
  for (const dtype type : {dtype::f16, dtype::bf16}) {
    const auto expected = vgg16::load(source, {.dtype = type, .include_top = false});
    for (const upload_conversion conversion : conversions) {
      for (const unsigned threads : {1U, 3U, 16U}) {
        CAPTURE(std::string(name_of(conversion)));
        CAPTURE(threads);
        fake_device::reset();
        stream_progress last{};
        {
          const auto loaded =
              cuda::load_vgg16(source,
                               {.load = {.dtype = type,
                                         .include_top = false,
                                         .threads = threads,
                                         .progress =
                                             [&](const stream_progress& now) {
                                               CHECK(now.done_bytes >= last.done_bytes);
                                               last = now;
                                             }},
                                .conversion = conversion},
                               fake_device());
          check_equal(loaded, expected);
          CHECK(last.done_bytes == source_bytes);
          CHECK(last.total_bytes == source_bytes);

          const auto& report = loaded.report();
          CHECK(report.destination_bytes == source_bytes / 2);
          CHECK(report.copied_bytes == source_bytes / 2);
          CHECK(report.mapped_bytes == 0);
          CHECK(report.tensors == 26);
          CHECK(report.family == "torchvision");
          CHECK(report.ring_bytes == 16 << 20);
          CHECK(report.windows_bytes <= std::uint64_t{4} << 20U);
          CHECK(report.uploaded_bytes == fake_device::history().copied_bytes);
          CHECK(fake_device::history().most_pinned_bytes == report.ring_bytes);
          CHECK(fake_device::history().device_bytes == report.destination_bytes);
          CHECK(fake_device::history().most_device_bytes ==
                report.destination_bytes + report.device_window_bytes);
          switch (conversion) {
            case upload_conversion::on_device:
              CHECK(report.uploaded_bytes == source_bytes);
              CHECK(report.stages.size() == 1);
              CHECK(report.conversion == conversion);
              break;
            case upload_conversion::while_staging:
              CHECK(report.uploaded_bytes == source_bytes / 2);
              CHECK(report.device_window_bytes == 0);
              CHECK(fake_device::history().conversions == 0);
              CHECK(report.stages.size() == 1);
              CHECK(report.conversion == conversion);
              break;
            case upload_conversion::by_measurement:
              // Each trial ends with the weight that makes it 24 MiB: block4_conv3's, whose bias of
              // 512 is the second's, and block5_conv3's.
              REQUIRE(report.stages.size() == 3);
              CHECK(report.stages[0].conversion == upload_conversion::on_device);
              CHECK(report.stages[0].source_bytes == (7'635'264 - 512) * 4);
              CHECK(report.stages[0].uploaded_bytes == report.stages[0].source_bytes);
              CHECK(report.stages[1].conversion == upload_conversion::while_staging);
              CHECK(report.stages[1].source_bytes == 7'079'424 * 4);
              CHECK(report.stages[1].uploaded_bytes == 7'079'424 * 2);
              CHECK(report.stages[2].conversion == report.conversion);
              CHECK(report.stages[2].source_bytes == 512 * 4);
              CHECK((report.conversion == upload_conversion::on_device) ==
                    (rate(report.stages[0]) > rate(report.stages[1])));
              break;
          }
        }
        check_all_given_back();
      }
    }
  }
}

TEST_CASE("types that the device does not convert are the host's or go as they are") {
  fake_device::reset();
  struct row {
    dtype from;
    dtype to;
  };
  for (const auto& [from, to] : {row{dtype::f16, dtype::f16}, row{dtype::f32, dtype::f32},
                                 row{dtype::f16, dtype::f32}, row{dtype::f64, dtype::f16}}) {
    const checkpoint source = checkpoint::from(fake_reader(tensors(from)));
    const auto expected = vgg16::load(source, {.dtype = to, .include_top = false});
    const auto loaded = cuda::load_vgg16(source,
                                         {.load = {.dtype = to, .include_top = false, .threads = 2},
                                          .conversion = upload_conversion::on_device},
                                         fake_device());
    check_equal(loaded, expected);
    CHECK(loaded.report().conversion == upload_conversion::while_staging);
    CHECK(loaded.report().uploaded_bytes == loaded.report().destination_bytes);
    CHECK(fake_device::history().conversions == 0);
  }
}

TEST_CASE("tensors of several types in one load, one of them in an order of its own") {
  auto infos = tensors();
  for (std::size_t i = 1; i < infos.size(); i += 4) {
    infos[i] = fake_reader::info(infos[i].name, dtype::f64, infos[i].shape);
  }
  // The payload's axes stand as [in, out, 3, 3].
  auto& permuted = infos[6];
  const std::uint64_t out = permuted.shape[0];
  const std::uint64_t in = permuted.shape[1];
  permuted.strides = {9 * 4, 9 * out * 4, 3 * 4, 4};
  permuted.order = element_order::column_major;
  REQUIRE(in * out * 9 * 4 == permuted.bytes);
  const checkpoint source = checkpoint::from(fake_reader(infos));
  const dtype_policy types = dtype_policy(dtype::f16).keep_fp32([](std::string_view name) {
    return name.ends_with("bias");
  });
  const auto expected = vgg16::load(source, {.dtype = types, .include_top = false});
  for (const upload_conversion conversion : conversions) {
    for (const unsigned threads : {1U, 4U}) {
      fake_device::reset();
      const auto loaded =
          cuda::load_vgg16(source,
                           {.load = {.dtype = types, .include_top = false, .threads = threads},
                            .conversion = conversion},
                           fake_device());
      check_equal(loaded, expected);
    }
  }
}

TEST_CASE("what overflows is told wherever it is converted, in the order of the layers") {
  const checkpoint source = checkpoint::from(overflowing_reader(tensors()));
  for (const upload_conversion conversion : conversions) {
    fake_device::reset();
    const auto loaded = cuda::load_vgg16(
        source, {.load = {.include_top = false, .threads = 2}, .conversion = conversion},
        fake_device());
    const auto& overflowed = loaded.report().overflowed;
    REQUIRE(overflowed.size() == 2);
    CHECK(overflowed[0].tensor == 4);
    CHECK(overflowed[1].tensor == 24);
    for (const auto& one : overflowed) {
      CHECK(one.to == dtype::f16);
      CHECK(one.values == 1);
    }
  }
}

TEST_CASE("health and overflow policies are the host's: staged, or refused") {
  const checkpoint source = checkpoint::from(overflowing_reader(tensors()));
  const auto load = [&](const vgg16::load_options& options, upload_conversion conversion) {
    fake_device::reset();
    return cuda::load_vgg16(source, {.load = options, .conversion = conversion}, fake_device());
  };
  const vgg16::load_options measured{.measure_health = true, .include_top = false, .threads = 2};
  const auto loaded = load(measured, upload_conversion::by_measurement);
  CHECK(loaded.report().conversion == upload_conversion::while_staging);
  CHECK(loaded.report().device_window_bytes == 0);
  CHECK(loaded.report().measured.size() == 26);
  CHECK(
      message_of<unsupported_error>(
          [&] { static_cast<void>(load(measured, upload_conversion::on_device)); }) ==
      "fake file: a conversion on the device neither measures the health of weights nor looks for "
      "what overflows: convert while staging");
  const vgg16::load_options refusing{
      .overflow = overflow_policy::refuse, .include_top = false, .threads = 2};
  CHECK(message_of<overflow_error>([&] {
          static_cast<void>(load(refusing, upload_conversion::by_measurement));
        }).starts_with("fake file: tensor 'features.5.weight': F32 1000000 at "));
  check_all_given_back();
}

TEST_CASE("the device's refusals come through at every call, and everything is given back") {
  const checkpoint source = checkpoint::from(fake_reader(tensors()));
  for (const upload_conversion conversion : conversions) {
    const auto load = [&] {
      static_cast<void>(cuda::load_vgg16(
          source, {.load = {.include_top = false, .threads = 3}, .conversion = conversion},
          fake_device()));
    };
    auto& history = fake_device::reset();
    load();
    const std::uint64_t calls = history.calls;
    REQUIRE(calls > 30);
    for (std::uint64_t call = 0; call < calls; call += 1 + calls / 11) {
      CAPTURE(call);
      fake_device::reset().fail_at_call = call;
      CHECK(message_of<error>(load) == "injected: device");
      check_all_given_back();
    }
  }
}

TEST_CASE("a reader's error and a cancellation leave nothing behind") {
  for (const upload_conversion conversion : conversions) {
    fake_device::reset();
    const fake_reader reader(tensors());
    const auto load = [&, source = checkpoint::from(reader)] {
      static_cast<void>(cuda::load_vgg16(
          source,
          {.load = {.include_top = false, .threads = 2, .stop = reader.history()->stop.get_token()},
           .conversion = conversion},
          fake_device()));
    };
    reader.history()->fail_at_read = 40;
    CHECK(message_of<io_error>(load).starts_with("fake file: injected (tensor 'features."));
    check_all_given_back();
    CHECK(fake_device::history().dropped_steps == 0);
    reader.history()->fail_at_read = UINT64_MAX;
    reader.history()->reads = 0;
    reader.history()->stop_at_read = 40;
    CHECK(message_of<cancelled_error>(load).starts_with("fake file: cancelled after "));
    CHECK(reader.history()->reads < 50);
    check_all_given_back();
    CHECK(fake_device::history().dropped_steps == 0);
  }
}

TEST_CASE("an out of memory of the device comes before the first read, with what would fit") {
  const fake_reader reader(tensors());
  const checkpoint source = checkpoint::from(reader);
  const auto ledger = std::make_shared<memory_ledger>();
  fake_device::reset().capacity = 40'000'000;  // FP16 needs 29,429,376, FP32 twice as much
  try {
    static_cast<void>(cuda::load_vgg16(
        source,
        {.load = {.dtype = dtype::f32, .include_top = false, .threads = 2, .ledger = ledger},
         .ring_bytes = 1 << 20},
        fake_device()));
    FAIL_CHECK("no exception");
  } catch (const out_of_memory& e) {
    CHECK(
        std::string(e.what()) ==
        "fake file: 58858752 bytes for the weights on the device could not be allocated (the fake "
        "device is full); the largest tensor, 'features.19.weight', takes 9437184; this would "
        "fit: as F16 (29429376 bytes)");
    REQUIRE(e.report());
    CHECK(e.report()->place == "memory of the fake device");
    CHECK(e.report()->free == 40'000'000);
  }
  CHECK(reader.history()->reads == 0);
  CHECK(ledger->snapshot().out_of_memory_text.find("the weights on the device") !=
        std::string::npos);
  check_all_given_back();

  // A window that does not fit beside the weights: they are what fills the device, and nothing else.
  fake_device::reset().capacity = 29'429'376 + 1000;
  try {
    static_cast<void>(cuda::load_vgg16(source,
                                       {.load = {.include_top = false, .threads = 2},
                                        .conversion = upload_conversion::on_device,
                                        .ring_bytes = 1 << 20},
                                       fake_device()));
    FAIL_CHECK("no exception");
  } catch (const out_of_memory& e) {
    REQUIRE(e.report());
    CHECK(e.report()->live.roles.at(0) ==
          std::pair<memory_role, std::uint64_t>{memory_role::weights, 29'429'376});
    CHECK(e.report()->live.largest.at(0).layer == "block4_conv2");
    CHECK(e.report()->free == 1000);
    CHECK(e.report()->context_bytes == 0);
  }
  check_all_given_back();

  // Where nobody insists, the host converts, and nothing of the window is left in the ledger.
  fake_device::reset().capacity = 29'429'376 + 1000;
  CHECK(cuda::load_vgg16(source,
                         {.load = {.include_top = false, .threads = 2}, .ring_bytes = 1 << 20},
                         fake_device())
            .report()
            .conversion == upload_conversion::while_staging);
  check_all_given_back();

  // What is said to fit fits, to the byte.
  fake_device::reset();
  const std::uint64_t promised = 29'429'376 + (1 << 20) + 4096;
  const auto message = message_of<out_of_memory>([&] {
    static_cast<void>(cuda::load_vgg16(
        source,
        {.load = {.dtype = dtype::f32, .include_top = false, .memory_limit = promised},
         .ring_bytes = 1 << 20},
        fake_device()));
  });
  CHECK(message.ends_with("this would fit: as F16 (" + std::to_string(promised) + " bytes)"));
  CHECK(cuda::load_vgg16(
            source,
            {.load = {.include_top = false, .memory_limit = promised}, .ring_bytes = 1 << 20},
            fake_device())
            .report()
            .destination_bytes == 29'429'376);
  check_all_given_back();

  // The limit is for everything: destination, ring, window and windows.
  fake_device::reset();
  const std::uint64_t least = 29'429'376 + (1 << 20) + 4096;
  const auto load = [&](std::uint64_t limit) {
    return cuda::load_vgg16(source,
                            {.load = {.include_top = false, .threads = 2, .memory_limit = limit},
                             .conversion = upload_conversion::while_staging,
                             .ring_bytes = 1 << 20},
                            fake_device());
  };
  CHECK(load(least).report().windows_bytes == 4096);
  const std::uint64_t reads = reader.history()->reads;
  CHECK(message_of<out_of_memory>([&] {
          static_cast<void>(load(least - 1));
        }).starts_with("fake file: the memory limit of "));
  CHECK(reader.history()->reads == reads);
}

TEST_CASE("a ring may have any size from two small slots for each worker on") {
  const fake_reader reader(tensors());
  const checkpoint source = checkpoint::from(reader);
  for (const std::size_t ring_bytes : {std::size_t{16'384}, std::size_t{2'000'001}}) {
    for (const auto conversion : {upload_conversion::on_device, upload_conversion::while_staging}) {
      fake_device::reset();
      const auto model = cuda::load_vgg16(source,
                                          {.load = {.include_top = false, .threads = 2},
                                           .conversion = conversion,
                                           .ring_bytes = ring_bytes},
                                          fake_device());
      CHECK(model.report().copied_bytes == 29'429'376);
      CHECK(model.report().ring_bytes == ring_bytes);
    }
    check_all_given_back();
  }
}

TEST_CASE("a ring that is too small is refused before anything is taken") {
  const checkpoint source = checkpoint::from(fake_reader(tensors()));
  fake_device::reset();
  CHECK(message_of<error>([&] {
          static_cast<void>(cuda::load_vgg16(
              source, {.load = {.include_top = false, .threads = 4}, .ring_bytes = 32'767},
              fake_device()));
        }) ==
        "a ring of 32767 bytes is too small for 4 workers: each needs two slots of 4096 bytes");
  CHECK(fake_device::history().most_device_bytes == 0);
}

TEST_CASE("trials take whole tensors of 24 MiB or more each, and the rest is left") {
  constexpr std::uint64_t mib = std::uint64_t{1} << 20U;
  using list = std::vector<std::uint64_t>;
  const auto ends = [](const list& bytes) { return cuda::detail::trial_ends(bytes); };
  CHECK(ends({}) == std::pair<std::size_t, std::size_t>(0, 0));
  CHECK(ends({24 * mib}) == std::pair<std::size_t, std::size_t>(1, 1));
  CHECK(ends({24 * mib - 1, 1, 24 * mib, 5}) == std::pair<std::size_t, std::size_t>(2, 3));
  CHECK(ends({10 * mib, 10 * mib, 10 * mib, 100 * mib, 1, 1}) ==
        std::pair<std::size_t, std::size_t>(3, 4));
}

TEST_CASE("a run of staged bytes is cut where segments meet, and gaps are no one's") {
  std::vector<std::byte> memory(100);
  std::byte* const base = memory.data();
  const std::vector<cuda::upload_segment> segments{
      {0, 10, base}, {10, 10, base}, {10, 20, base + 50}, {32, 40, base + 70}};
  std::vector<std::byte> staged(40);
  struct piece {
    std::size_t segment;
    std::ptrdiff_t from;
    std::size_t bytes;
    std::uint64_t at;
    bool operator==(const piece&) const = default;
  };
  const auto pieces = [&](std::uint64_t offset, std::size_t bytes) {
    std::vector<piece> found;
    cuda::detail::for_each_piece(
        std::span(segments), offset, std::span<const std::byte>(staged).first(bytes),
        [&](const cuda::upload_segment& segment, std::span<const std::byte> part,
            std::uint64_t at) {
          found.push_back({static_cast<std::size_t>(&segment - segments.data()),
                           part.data() - staged.data(), part.size(), at});
        });
    return found;
  };
  CHECK(pieces(0, 10) == std::vector<piece>{{0, 0, 10, 0}});
  CHECK(pieces(4, 3) == std::vector<piece>{{0, 0, 3, 4}});
  CHECK(pieces(4, 31) == std::vector<piece>{{0, 0, 6, 4}, {2, 6, 10, 0}, {3, 28, 3, 0}});
  CHECK(pieces(20, 12).empty());
  CHECK(pieces(39, 1) == std::vector<piece>{{3, 0, 1, 7}});
}

TEST_CASE("the device refuses to convert a part of an element") {
  fake_device::reset();
  fake_device device;
  std::vector<std::byte> ring(8192);
  std::vector<std::byte> memory(16384);
  cuda::health_accumulator health{};
  cuda::upload_engine<fake_device> engine(device,
                                          {{0, 100, memory.data() + 8192, dtype::f16, &health}},
                                          ring, {memory.data(), 8192}, 1);
  CHECK(message_of<error>([&] { engine.submit(0, std::span(ring).first(6), 4); }) ==
        "FP32 elements for a conversion on the device are staged in parts");
  engine.drain();
}
