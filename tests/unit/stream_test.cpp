// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/convert/convert.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/convert_checkpoint.hpp>
#include <vggload/load/stream.hpp>

#include "../support/fake_reader.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::fake_reader;
using test::message_of;

namespace {

/// Tensors that are larger than a stripe, smaller than a window, empty, of odd sizes and of several
/// types.
std::vector<tensor_info> mixed_tensors() {
  return {fake_reader::info("large", dtype::f32, {1'500'001}),
          fake_reader::info("small", dtype::f32, {3}),
          fake_reader::info("empty", dtype::f32, {0}),
          fake_reader::info("half", dtype::f16, {100'001}),
          fake_reader::info("bytes", dtype::u8, {3'000'001}),
          fake_reader::info("double", dtype::f64, {70'001}),
          fake_reader::info("scalar", dtype::bf16, {})};
}

/// What a tensor converts to, element by element with the scalar code.
std::vector<std::byte> expected_bytes(const tensor_info& info, std::size_t index, dtype to) {
  std::vector<std::byte> source(static_cast<std::size_t>(info.bytes));
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = fake_reader::byte_at(index, i);
  if (info.dtype == to) return source;
  const std::size_t count = source.size() * 8 / bits_of(info.dtype);
  std::vector<std::byte> out(count * bits_of(to) / 8);
  find_conversion(info.dtype, to, simd_level::scalar)(source.data(), out.data(), count);
  return out;
}

struct layout {
  std::vector<transfer> transfers;
  std::vector<std::byte> expected;
};

/// All floating tensors as `to`, one after the other with a gap of `gap` bytes, which must stay as
/// it is.
layout lay_out(std::span<const tensor_info> tensors, dtype to, std::size_t gap) {
  layout result;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const dtype type = is_floating(tensors[i].dtype) ? to : tensors[i].dtype;
    result.transfers.push_back({i, type, result.expected.size()});
    const auto bytes = expected_bytes(tensors[i], i, type);
    result.expected.insert(result.expected.end(), bytes.begin(), bytes.end());
    result.expected.insert(result.expected.end(), gap, std::byte{0xEE});
  }
  return result;
}

}  // namespace

TEST_CASE("every byte gets to its place, for any number of threads and size of windows") {
  const auto tensors = mixed_tensors();
  for (const dtype to : {dtype::f16, dtype::f32}) {
    const layout wanted = lay_out(tensors, to, 7);
    for (const unsigned threads : {1U, 2U, 5U}) {
      for (const std::size_t window : {std::size_t{17}, std::size_t{4096}, std::size_t{262144}}) {
        if (window == 17 && threads > 1) continue;  // slow, and no different
        const fake_reader reader(tensors);
        std::vector<std::byte> out(wanted.expected.size(), std::byte{0xEE});
        std::vector<std::byte> windows(window * threads);
        memory_sink sink(out);
        const auto report = stream(reader, wanted.transfers, sink, windows, {.threads = threads});
        INFO(name_of(to), " ", threads, " threads, window ", window);
        CHECK(out == wanted.expected);
        CHECK(reader.history()->largest_read <= window);
        CHECK(report.read_bytes == reader.file_bytes());
        CHECK(report.written_bytes == wanted.expected.size() - 7 * tensors.size());
        CHECK(report.threads == threads);
      }
    }
  }
}

TEST_CASE("a sequential tensor is read by one thread, from its start to its end") {
  auto tensors = mixed_tensors();
  for (auto& info : tensors) info.sequential = true;
  const layout wanted = lay_out(tensors, dtype::f16, 0);
  for (const unsigned threads : {1U, 4U}) {
    const fake_reader reader(tensors);
    std::vector<std::byte> out(wanted.expected.size());
    std::vector<std::byte> windows(threads * std::size_t{4096});
    memory_sink sink(out);
    stream(reader, wanted.transfers, sink, windows, {.threads = threads});
    CHECK(out == wanted.expected);
    CHECK(reader.history()->backward_reads == 0);
  }
}

TEST_CASE("what is column-major in a file becomes row-major in a converted one") {
  const test::temporary_folder folder;
  const std::vector<std::uint64_t> dims{70, 3, 1, 41, 2};
  std::uint64_t elements = 1;
  for (const std::uint64_t dim : dims) elements *= dim;
  for (const bool sequential : {false, true}) {
    for (const auto to : {std::optional<dtype>(), std::optional(dtype::f16)}) {
      std::vector<tensor_info> tensors{fake_reader::info("before", dtype::f32, {5}),
                                       fake_reader::info("matrix", dtype::f32, shape(dims)),
                                       fake_reader::info("bytes", dtype::u8, shape(dims)),
                                       fake_reader::info("empty", dtype::f32, {3, 0, 2})};
      for (auto& info : tensors) {
        info.order = element_order::column_major;
        info.sequential = sequential;
      }
      const fake_reader reader(tensors);
      const std::string path = folder.file("out");
      convert_checkpoint(checkpoint::from(reader), path, to, {.threads = 2});
      const checkpoint out = open_checkpoint(path);
      if (sequential) CHECK(reader.history()->backward_reads == 0);
      for (std::size_t t = 1; t < 3; ++t) {
        const dtype type = is_floating(tensors[t].dtype) && to ? *to : tensors[t].dtype;
        const auto expected = expected_bytes(tensors[t], t, type);
        const std::size_t size = bits_of(type) / 8;
        const auto got = out.view(t).value();
        REQUIRE(got.size() == expected.size());
        std::size_t wrong = 0;
        for (std::uint64_t e = 0; e < elements; ++e) {
          // Row-major: the last axis runs fastest; in the file the first one does.
          std::uint64_t rest = e;
          std::array<std::uint64_t, 5> index{};
          for (std::size_t axis = 5; axis-- > 0;) {
            index[axis] = rest % dims[axis];
            rest /= dims[axis];
          }
          std::uint64_t place = 0;
          for (std::size_t axis = 5; axis-- > 0;) place = place * dims[axis] + index[axis];
          wrong += std::memcmp(&got[e * size], &expected[place * size], size) == 0 ? 0U : 1U;
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("progress rises to the whole, on the caller's thread") {
  const auto tensors = mixed_tensors();
  const layout wanted = lay_out(tensors, dtype::f16, 0);
  const fake_reader reader(tensors);
  std::vector<std::byte> out(wanted.expected.size());
  std::vector<std::byte> windows(3 * 65536);
  memory_sink sink(out);
  const auto caller = std::this_thread::get_id();
  for (const unsigned threads : {1U, 3U}) {
    std::uint64_t last = 0;
    std::size_t calls = 0;
    stream(reader, wanted.transfers, sink, windows,
           {.threads = threads, .progress = [&](const stream_progress& progress) {
              CHECK(std::this_thread::get_id() == caller);
              CHECK(progress.done_bytes >= last);
              CHECK(progress.total_bytes == reader.file_bytes());
              last = progress.done_bytes;
              ++calls;
            }});
    CHECK(last == reader.file_bytes());
    // Of several threads the others may be quick enough to leave the caller nothing but the end.
    CHECK(calls > (threads == 1 ? 1 : 0));
  }
}

TEST_CASE("a stop ends the stream soon, with an error that says how far it was") {
  const auto tensors = mixed_tensors();
  const layout wanted = lay_out(tensors, dtype::f16, 0);
  for (const unsigned threads : {1U, 4U}) {
    const fake_reader reader(tensors);
    reader.history()->stop_at_read = 10;
    std::vector<std::byte> out(wanted.expected.size());
    std::vector<std::byte> windows(threads * std::size_t{4096});
    memory_sink sink(out);
    const auto message = message_of<cancelled_error>([&] {
      stream(reader, wanted.transfers, sink, windows,
             {.threads = threads, .stop = reader.history()->stop.get_token()});
    });
    CHECK(message.starts_with("fake file: cancelled after "));
    CHECK(message.ends_with(" of " + std::to_string(reader.file_bytes()) + " bytes"));
    CHECK(reader.history()->reads < 1000);
  }
}

TEST_CASE("an error in any thread ends all of them and names the tensor") {
  const auto tensors = mixed_tensors();
  const layout wanted = lay_out(tensors, dtype::f16, 0);
  for (const unsigned threads : {1U, 4U}) {
    for (const std::uint64_t at : {0U, 1U, 100U, 400U}) {
      const fake_reader reader(tensors);
      reader.history()->fail_at_read = at;
      std::vector<std::byte> out(wanted.expected.size());
      std::vector<std::byte> windows(threads * std::size_t{4096});
      memory_sink sink(out);
      const auto message = message_of<io_error>(
          [&] { stream(reader, wanted.transfers, sink, windows, {.threads = threads}); });
      CHECK(message.starts_with("fake file: injected (tensor '"));
      CHECK(reader.history()->reads < at + 1000);
    }
  }
}

TEST_CASE("what cannot be streamed is refused before anything is read") {
  const fake_reader reader(
      {fake_reader::info("a", dtype::i32, {4}), fake_reader::info("b", dtype::f32, {4})});
  std::vector<std::byte> out(100);
  std::vector<std::byte> windows(4096);
  memory_sink sink(out);
  const auto attempt = [&](std::vector<transfer> transfers, std::size_t window) {
    return message_of<error>(
        [&] { stream(reader, transfers, sink, std::span(windows).first(window), {.threads = 1}); });
  };
  CHECK(attempt({{0, dtype::f16, 0}}, 4096) ==
        "fake file: tensor 'a': I32 cannot be converted to F16");
  CHECK(attempt({{0, dtype::i32, 0}, {1, dtype::f16, 8}}, 4096)
            .find("tensor 'b': its place in the destination, 8 bytes from 8 on, is not behind") !=
        std::string::npos);
  CHECK(attempt({{1, dtype::f16, UINT64_MAX - 2}}, 4096).find("is not behind") !=
        std::string::npos);
  CHECK(attempt({{1, dtype::f16, 0}}, 3) == "fake file: windows of 3 bytes are too small");
  CHECK(reader.history()->reads == 0);
}

TEST_CASE("nothing to stream is no error") {
  const fake_reader reader(mixed_tensors());
  std::vector<std::byte> windows(64);
  memory_sink sink({});
  CHECK(stream(reader, {}, sink, windows, {.threads = 2}).written_bytes == 0);
}

TEST_CASE("a checkpoint is converted to a file, floating tensors only") {
  const test::temporary_folder folder;
  const auto tensors = mixed_tensors();
  for (const auto to :
       {std::optional(dtype::f16), std::optional(dtype::bf16), std::optional<dtype>()}) {
    for (const unsigned threads : {1U, 3U}) {
      const std::string path = folder.file("out");
      convert_checkpoint(checkpoint::from(fake_reader(tensors)), path, to, {.threads = threads});
      const checkpoint out = open_checkpoint(path);
      REQUIRE(out.tensors().size() == tensors.size());
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        const dtype type = to && is_floating(tensors[i].dtype) ? *to : tensors[i].dtype;
        CHECK(out.tensors()[i].name == tensors[i].name);
        CHECK(out.tensors()[i].dtype == type);
        CHECK(out.tensors()[i].shape == tensors[i].shape);
        CHECK(std::ranges::equal(out.view(i).value(), expected_bytes(tensors[i], i, type)));
      }
    }
  }
  CHECK(folder.count() == 1);
}

TEST_CASE("a conversion that fails leaves what was there") {
  const test::temporary_folder folder;
  const std::string path = folder.write("out", "old");
  const fake_reader reader(mixed_tensors());
  reader.history()->fail_at_read = 5;
  CHECK_THROWS_AS(convert_checkpoint(checkpoint::from(reader), path, dtype::f16, {.threads = 2}),
                  io_error);
  CHECK_THROWS_AS(
      convert_checkpoint(checkpoint::from(fake_reader({fake_reader::info("a", dtype::f4, {2})})),
                         path, dtype::f16, {.threads = 1}),
      unsupported_error);
  CHECK(test::read_file(path) == "old");
  CHECK(folder.count() == 1);
}

TEST_CASE("a file may be converted onto itself") {
  const test::temporary_folder folder;
  const std::string path = folder.file("file");
  convert_checkpoint(checkpoint::from(fake_reader(mixed_tensors())), path, std::nullopt,
                     {.threads = 1});
  convert_checkpoint(open_checkpoint(path), path, dtype::f16, {.threads = 2});
  const auto tensors = mixed_tensors();
  CHECK(std::ranges::equal(open_checkpoint(path).view(0).value(),
                           expected_bytes(tensors[0], 0, dtype::f16)));
}

TEST_CASE("several threads may look into and read one checkpoint at the same time") {
  const test::temporary_folder folder;
  const std::string path = folder.file("file");
  convert_checkpoint(checkpoint::from(fake_reader(mixed_tensors())), path, std::nullopt,
                     {.threads = 1});
  const checkpoint file = open_checkpoint(path);
  std::vector<int> same(4);
  {
    std::vector<std::jthread> threads;
    for (int& all_same : same) {
      threads.emplace_back([&file, &all_same] {
        all_same = 1;
        for (std::size_t i = 0; i < file.tensors().size(); ++i) {
          const auto view = file.view(i).value();
          std::vector<std::byte> read(view.size());
          file.read(i, 0, read);
          if (!std::ranges::equal(view, read)) all_same = 0;
        }
      });
    }
  }
  CHECK(same == std::vector<int>{1, 1, 1, 1});
}
