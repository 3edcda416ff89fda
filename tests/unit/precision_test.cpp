// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Overflow policies, types by name and health, on their way through a stream.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/convert/health.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/convert_checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/stream.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;

namespace {

/// Tensors whose payloads are in memory.
class memory_reader {
 public:
  struct content {
    tensor_info info;
    std::vector<std::byte> bytes;
  };
  explicit memory_reader(std::vector<content> contents) {
    for (content& one : contents) {
      infos_.push_back(std::move(one.info));
      payloads_.push_back(std::move(one.bytes));
    }
  }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] static std::string_view format() noexcept { return "memory"; }
  [[nodiscard]] static std::uint64_t file_bytes() noexcept { return 0; }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return infos_; }
  [[nodiscard]] static std::span<const metadata_entry> metadata() noexcept { return {}; }
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    std::memcpy(out.data(), payloads_.at(tensor).data() + offset, out.size());
  }
  [[nodiscard]] static std::optional<std::span<const std::byte>> view(std::size_t) {
    return std::nullopt;
  }

 private:
  std::string path_ = "memory";
  std::vector<tensor_info> infos_;
  std::vector<std::vector<std::byte>> payloads_;
};

static_assert(weight_reader<memory_reader>);

template <class T>
memory_reader::content content(std::string name, dtype type, std::vector<std::uint64_t> dims,
                               const std::vector<T>& values,
                               element_order order = element_order::row_major) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  const std::uint64_t size = bytes.size();
  return {{std::move(name), type, shape(std::move(dims)), size, order}, std::move(bytes)};
}

/// 200,000 values, of which these are too large for FP16, at places in several windows and stripes.
std::vector<float> with_overflows(const std::vector<std::pair<std::size_t, float>>& large) {
  std::vector<float> values(200'000, 0.25F);
  for (const auto& [place, value] : large) values[place] = value;
  return values;
}

struct streamed {
  std::vector<std::uint16_t> values;
  stream_report report;
};

/// All tensors as FP16, one behind the other.
streamed stream_as_f16(const memory_reader& reader, stream_options options) {
  std::vector<transfer> transfers;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < reader.tensors().size(); ++i) {
    const tensor_info& info = reader.tensors()[i];
    transfers.push_back({i, dtype::f16, end});
    if (info.order != element_order::row_major) transfers.back().axes = axes_of(info);
    end += info.bytes * 16 / bits_of(info.dtype);
  }
  streamed result;
  result.values.resize(static_cast<std::size_t>(end / 2));
  std::vector<std::byte> windows(options.threads * std::size_t{8192});
  memory_sink sink(std::as_writable_bytes(std::span(result.values)));
  result.report = stream(reader, transfers, sink, windows, options);
  return result;
}

constexpr std::uint16_t quarter = 0x3400;  // 0.25 in FP16

}  // namespace

TEST_CASE("what overflows is kept as infinity and counted, or becomes the largest finite value") {
  const auto infinity = std::bit_cast<float>(0x7F800000U);
  const memory_reader reader(
      {content("small", dtype::f32, {4}, std::vector<float>(4, 0.25F)),
       content("large", dtype::f32, {200'000},
               with_overflows(
                   {{0, 65520.0F}, {131'071, -1e9F}, {131'072, infinity}, {199'999, 7e4F}}))});
  for (const unsigned threads : {1U, 2U, 5U}) {
    for (const bool health : {false, true}) {
      for (const auto policy : {overflow_policy::keep, overflow_policy::saturate}) {
        const streamed result = stream_as_f16(
            reader, {.threads = threads, .overflow = policy, .measure_health = health});
        INFO(threads, " threads, ", name_of(policy), health ? ", measured" : "");
        const bool keep = policy == overflow_policy::keep;
        CHECK(result.values[4 + 0] == (keep ? 0x7C00 : 0x7BFF));
        CHECK(result.values[4 + 131'071] == (keep ? 0xFC00 : 0xFBFF));
        CHECK(result.values[4 + 131'072] == 0x7C00);  // was infinite before
        CHECK(result.values[4 + 199'999] == (keep ? 0x7C00 : 0x7BFF));
        CHECK(result.values[4 + 1] == quarter);
        REQUIRE(result.report.overflowed.size() == 1);
        CHECK(result.report.overflowed[0].tensor == 1);
        CHECK(result.report.overflowed[0].to == dtype::f16);
        CHECK(result.report.overflowed[0].values == 3);
        CHECK(result.report.measured.size() == (health ? 2 : 0));
        if (health) CHECK(result.report.measured[1].health.overflowed == 3);
      }
    }
  }
}

TEST_CASE("refusing names the first value that does not fit, whatever the threads") {
  const memory_reader reader(
      {content("fits", dtype::f32, {100}, std::vector<float>(100, 0.25F)),
       content("one", dtype::f32, {2, 1000, 1, 100},
               with_overflows({{150'203, 123456.789F}, {190'000, 1e30F}, {199'999, -1e5F}})),
       content("two", dtype::f32, {200'000}, with_overflows({{0, 1e6F}}))});
  for (const unsigned threads : {1U, 2U, 7U}) {
    for (const bool health : {false, true}) {
      const auto message = message_of<overflow_error>([&] {
        stream_as_f16(
            reader,
            {.threads = threads, .overflow = overflow_policy::refuse, .measure_health = health});
      });
      CHECK(message ==
            "memory: tensor 'one': F32 123456.789 at [1, 502, 0, 3] exceeds F16, whose largest "
            "value is 65504");
    }
  }
}

TEST_CASE("the place of a refused value is that in the tensor, also where the order is another") {
  // Column-major [400, 500]: element 150,203 of the payload is at [203, 375].
  const memory_reader reader(
      {content("w", dtype::f32, {400, 500}, with_overflows({{150'203, -70000.0F}, {180'000, 1e9F}}),
               element_order::column_major)});
  for (const unsigned threads : {1U, 3U}) {
    const auto message = message_of<overflow_error>(
        [&] { stream_as_f16(reader, {.threads = threads, .overflow = overflow_policy::refuse}); });
    CHECK(message ==
          "memory: tensor 'w': F32 -70000 at [203, 375] exceeds F16, whose largest value is 65504");
  }
  const streamed saturated =
      stream_as_f16(reader, {.threads = 2, .overflow = overflow_policy::saturate});
  CHECK(saturated.values[203 * 500 + 375] == 0xFBFF);
  CHECK(saturated.values[0 * 500 + 450] == 0x7BFF);
  CHECK(saturated.report.overflowed.at(0).values == 2);
}

TEST_CASE("FP64 and BF16 overflow too, FP16 does not") {
  const memory_reader reader(
      {content("double", dtype::f64, {3}, std::vector<double>{1, 65520.0, -1e300}),
       content("brain", dtype::bf16, {3}, std::vector<std::uint16_t>{0x7F7F, 0x3F80, 0x7F80}),
       content("half", dtype::f16, {2}, std::vector<std::uint16_t>{0x7C00, 0x3C00})});
  const streamed result = stream_as_f16(reader, {.threads = 1});
  REQUIRE(result.report.overflowed.size() == 2);
  CHECK(result.report.overflowed[0].values == 2);
  CHECK(result.report.overflowed[1].values == 1);
  const auto message = message_of<overflow_error>(
      [&] { stream_as_f16(reader, {.threads = 1, .overflow = overflow_policy::refuse}); });
  CHECK(message.find("tensor 'double': F64 65520 at [1] exceeds F16") != std::string::npos);
}

TEST_CASE("every floating tensor is measured, moved ones too, and integers are not") {
  std::vector<float> values(100'000);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(static_cast<int>(i) - 50'000) * 1e-7F;
  }
  const memory_reader reader(
      {content("numbers", dtype::f32, {100'000}, values),
       content("steps", dtype::i64, {2}, std::vector<std::uint64_t>{1, 2}),
       content("eight", dtype::f8_e4m3, {4}, std::vector<std::uint8_t>{0x00, 0x38, 0xB8, 0x7F})});
  tensor_health expected;
  std::vector<std::byte> sink(values.size() * 2);
  find_measured_conversion(dtype::f32, dtype::f16, simd_level::scalar)(
      reinterpret_cast<const std::byte*>(values.data()), sink.data(), values.size(), expected);
  const test::temporary_folder folder;
  for (const unsigned threads : {1U, 4U}) {
    const auto converted =
        convert_checkpoint(checkpoint::from(memory_reader(reader)), folder.file("out"), dtype::f16,
                           {.threads = threads, .measure_health = true});
    REQUIRE(converted.measured.size() == 2);
    CHECK(converted.measured[0].health == expected);
    CHECK(converted.measured[0].to == dtype::f16);
    CHECK(converted.measured[1].tensor == 2);
    // 0, 1, -1, NaN
    const auto kept =
        convert_checkpoint(checkpoint::from(memory_reader(reader)), folder.file("out"),
                           std::nullopt, {.threads = threads, .measure_health = true});
    REQUIRE(kept.measured.size() == 2);
    CHECK(kept.measured[0].health.neg == expected.neg);
    CHECK(kept.measured[0].health.zero == 1);
    CHECK(kept.measured[0].health.max_abs == expected.max_abs);
    CHECK(kept.measured[0].health.max_relative_error == 0);
    for (const auto* const report : {&converted, &kept}) {
      const tensor_health& eight = report->measured[1].health;
      CHECK(eight.numel == 4);
      CHECK(eight.zero == 1);
      CHECK(eight.pos == 1);
      CHECK(eight.neg == 1);
      CHECK(eight.nan == 1);
      CHECK(eight.max_abs == 1);
    }
  }
}

TEST_CASE("tensors stay FP32 by name, and what is refused leaves no file") {
  const test::temporary_folder folder;
  const memory_reader reader({content("a.weight", dtype::f32, {2}, std::vector<float>{1, 1e6F}),
                              content("a.bias", dtype::f32, {2}, std::vector<float>{1e6F, 2}),
                              content("b.bias", dtype::f64, {1}, std::vector<double>{3}),
                              content("count", dtype::i64, {1}, std::vector<std::uint64_t>{7})});
  const auto source = checkpoint::from(memory_reader(reader));
  const auto is_bias = [](std::string_view name) { return name.ends_with("bias"); };
  const auto policy = dtype_policy(dtype::f16).keep_fp32(is_bias);
  CHECK(policy.storage_of(reader.tensors()[0]) == dtype::f16);
  CHECK(policy.storage_of(reader.tensors()[1]) == dtype::f32);
  CHECK(policy.storage_of(reader.tensors()[3]) == dtype::i64);
  CHECK(policy.compute_of(reader.tensors()[0]) == dtype::f32);
  const dtype_policy half(dtype::f16, dtype::f16);
  CHECK(half.compute_of(reader.tensors()[0]) == dtype::f16);
  CHECK(half.keep_fp32(is_bias).compute_of(reader.tensors()[1]) == dtype::f32);
  const auto both = policy.keep_fp32([](std::string_view name) { return name == "a.weight"; });
  CHECK(both.storage_of(reader.tensors()[0]) == dtype::f32);
  CHECK(both.storage_of(reader.tensors()[1]) == dtype::f32);

  const std::string out = folder.file("out");
  CHECK_THROWS_AS(
      convert_checkpoint(source, out, policy, {.threads = 2, .overflow = overflow_policy::refuse}),
      overflow_error);
  CHECK(folder.count() == 0);
  const auto report = convert_checkpoint(source, out, policy, {.threads = 2});
  REQUIRE(report.overflowed.size() == 1);
  CHECK(report.overflowed[0].tensor == 0);
  const checkpoint written = open_checkpoint(out);
  CHECK(written.tensors()[0].dtype == dtype::f16);
  CHECK(written.tensors()[1].dtype == dtype::f32);
  CHECK(written.tensors()[2].dtype == dtype::f32);
  CHECK(written.tensors()[3].dtype == dtype::i64);
  std::array<float, 2> bias;
  written.read(1, 0, std::as_writable_bytes(std::span(bias)));
  CHECK(bias == std::array<float, 2>{1e6F, 2});
  CHECK_NOTHROW(
      convert_checkpoint(source, out, both, {.threads = 2, .overflow = overflow_policy::refuse}));
}
