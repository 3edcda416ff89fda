// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/row_major.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"
#include "../support/zip_text.hpp"

using namespace vggload;
using test::message_of;
using test::number;
using test::zip;
using test::zip_record;

namespace {

/// An array file: the header's text, then bytes that count 0, 1, 2, ...
std::string npy(std::string_view header, std::size_t data_bytes) {
  std::string file = "\x93NUMPY\x01";
  file += '\0';
  file += number(header.size(), 2);
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

std::string header(std::string_view type, std::string_view shape, bool fortran = false) {
  return "{'descr': '" + std::string(type) + "', 'fortran_order': " + (fortran ? "True" : "False") +
         ", 'shape': " + std::string(shape) + ", }\n";
}

npy_reader open(const test::temporary_folder& folder, std::string_view bytes) {
  return npy_reader(input_file(folder.write("file", bytes)));
}

}  // namespace

TEST_CASE("what an array of NumPy's must not be, each with its message") {
  struct refusal {
    const char* name;
    std::string file;
    const char* message;
  };
  const std::array refusals{
      refusal{"magic only", "\x93NUMPY", "it has 6 bytes, too few for NumPy's header"},
      refusal{"version 4", "\x93NUMPY\x04" + std::string(20, '\0'), "version 4 of NumPy's format"},
      refusal{"version 0", "\x93NUMPY" + std::string(20, '\0'), "version 0 of NumPy's format"},
      refusal{"a header past the end", npy("{}", 0).substr(0, 10),
              "said to have 2 bytes, but there are only 10"},
      refusal{"a huge header", "\x93NUMPY\x02" + std::string(1, '\0') + number(0xFFFFFFFF, 4),
              "said to have 4294967295 bytes, more than the 65536"},
      refusal{"no dict", npy("[]", 0), "'{' is missing"},
      refusal{"an empty dict", npy("{}", 0), "it lacks 'descr', 'fortran_order' or 'shape'"},
      refusal{"a dict that does not end", npy("{'descr': '<f4'", 0),
              "a comma or a brace is missing"},
      refusal{"a string that does not end", npy("{'descr: ", 0), "a string does not end"},
      refusal{"an escape", npy("{'de\\x73cr': '<f4'}", 0), "a string has an escape"},
      refusal{"a key that is none", npy("{1: 2}", 0), "a string is missing"},
      refusal{"an unknown key", npy("{'x': 1}", 0), "it has the unknown key 'x'"},
      refusal{"a key twice", npy("{'fortran_order': True, 'fortran_order': True}", 0),
              "'fortran_order' occurs twice"},
      refusal{"text behind", npy(header("<f4", "()") + "import os", 4), "something follows it"},
      refusal{"an expression", npy(header("<f4", "(1+1,)"), 8), "shape is no tuple"},
      refusal{"a call", npy("{'descr': __import__('os')}", 0), "a string is missing"},
      refusal{"order that is no bool", npy("{'fortran_order': 1}", 0), "fortran_order is no bool"},
      refusal{"shape that is a list", npy(header("<f4", "[1]"), 4), "'(' is missing"},
      refusal{"shape that is a number", npy(header("<f4", "(1)"), 4), "shape is no tuple"},
      refusal{"negative dim", npy(header("<f4", "(-1,)"), 4), "whole numbers below 2^64"},
      refusal{"fractional dim", npy(header("<f4", "(1.0,)"), 4), "shape is no tuple"},
      refusal{"dim beyond 64 bits", npy(header("<f4", "(18446744073709551616,)"), 4),
              "whole numbers below 2^64"},
      refusal{"no type", npy(header("", "()"), 4), "descr '' is no type"},
      refusal{"an order alone", npy(header("<", "()"), 4), "descr '<' is no type"},
      refusal{"a type without size", npy(header("<f", "()"), 4), "descr '<f' is no type"},
      refusal{"text beyond all sums", npy(header("<U9223372036854775807", "()"), 4), "is no type"},
      refusal{"a list that does not end", npy("{'descr': [('a', '<f4')", 4), "a list does not end"},
      refusal{"a field's name that does not end", npy("{'descr': [('a\\'", 4),
              "a string does not end"},
      refusal{"a field's name that ends in an escape", npy("{'descr': [('a\\", 4),
              "a string does not end"},
      refusal{"too few bytes", npy(header("<f4", "(3,)"), 11),
              "F32 [3] needs 12 bytes, but 11 follow the header"},
      refusal{"too many bytes", npy(header("<f4", "(3,)"), 13), "needs 12 bytes, but 13 follow"},
      refusal{"elements beyond all sums", npy(header("<f4", "(4294967296, 4294967296)"), 4),
              "has more bytes than 64 bits count"},
      refusal{"bytes beyond all sums", npy(header("<f8", "(4611686018427387904,)"), 4),
              "has more bytes than 64 bits count"},
      refusal{"text of the wrong size", npy(header("<U3", "(2,)"), 23),
              "<U3 [2] needs 24 bytes, but 23"},
  };
  const test::temporary_folder folder;
  for (const refusal& r : refusals) {
    INFO(std::string(r.name));
    std::string message = message_of<format_error>([&] { (void)open(folder, r.file); });
    CHECK(message.starts_with(folder.file("file") + ": "));
    INFO(message);
    CHECK(message.find(r.message) != std::string::npos);
    // In a zip the tensor is named too.
    if (r.file.size() < 10) continue;
    message = message_of<format_error>([&] {
      npz_reader(
          input_file(folder.write("zip", zip({zip_record{.name = "a.npy", .stored = r.file}}))));
    });
    CHECK(message.starts_with(folder.file("zip") + ": tensor 'a': "));
  }
}

TEST_CASE("what a header may be") {
  const test::temporary_folder folder;
  const auto shape_of = [&](std::string_view text, std::size_t bytes) {
    return open(folder, npy(text, bytes)).tensors()[0].shape;
  };
  CHECK(shape_of(header("<f4", "()"), 4) == shape{});
  CHECK(shape_of(header("<f4", "(2L, 3L)"), 24) == shape{2, 3});
  CHECK(shape_of(header("|u1", "(2,3)"), 6) == shape{2, 3});
  CHECK(shape_of(header("<f4", "(0, 18446744073709551615)"), 0) == shape{0, UINT64_MAX});
  CHECK(shape_of("{\"shape\":(2,),\"fortran_order\":False,\"descr\":\"=f4\"}", 8) == shape{2});
  CHECK(shape_of(header("|O", "(2,)"), 77) == shape{2});
  // np.zeros(3, [("a\\b", "f4"), ("q'\"x", "f4"), ("ü\n", "f4")]), as np.save writes it.
  CHECK(shape_of("{'descr': [('a\\\\b', '<f4'), ('q\\'\"x', '<f4'), ('\xFC\\n', '<f4')], "
                 "'fortran_order': False, 'shape': (3,), }\n",
                 36) == shape{3});
}

TEST_CASE("more arrays than any real file has are refused") {
  const test::temporary_folder folder;
  std::vector<zip_record> records;
  for (int i = 0; i <= 16'384; ++i)
    records.push_back({.name = std::to_string(i) + ".npy", .stored = ""});
  CHECK(message_of<format_error>([&] {
          npz_reader(input_file(folder.write("file", zip(records))));
        }).ends_with(": it has 16385 arrays, more than the 16384 that are allowed"));
}

TEST_CASE("Fortran's order is told, not changed") {
  const test::temporary_folder folder;
  const auto file = open(folder, npy(header("|u1", "(2, 3)", true), 6));
  CHECK(file.tensors()[0].order == element_order::column_major);
  CHECK((*file.view(0))[1] == std::byte{1});
  std::array<std::byte, 6> bytes;
  file.read(0, 0, bytes);
  CHECK(bytes[1] == std::byte{1});
  // a[i][j] stands at i + 2 * j.
  read_row_major(file, 0, 0, bytes);
  CHECK(bytes == std::array{std::byte{0}, std::byte{2}, std::byte{4}, std::byte{1}, std::byte{3},
                            std::byte{5}});
  std::array<std::byte, 2> part;
  read_row_major(file, 0, 2, part);
  CHECK(part == std::array{std::byte{4}, std::byte{1}});
  CHECK(open(folder, npy(header("|u1", "(6,)", true), 6)).tensors()[0].order ==
        element_order::row_major);
}

TEST_CASE("big-endian elements are turned round, wherever a window begins") {
  const test::temporary_folder folder;
  const auto file = open(folder, npy(header(">u4", "(3,)"), 12));
  CHECK_FALSE(file.view(0));
  const std::string expected("\3\2\1\0\7\6\5\4\13\12\11\10", 12);
  for (std::size_t begin = 0; begin <= 12; ++begin) {
    for (std::size_t size = 0; begin + size <= 12; ++size) {
      std::string part(size, '\0');
      file.read(0, begin, std::as_writable_bytes(std::span(part)));
      CHECK(part == expected.substr(begin, size));
    }
  }
  std::string past(2, '\0');
  CHECK_THROWS_AS(file.read(0, 11, std::as_writable_bytes(std::span(past))), error);
}

TEST_CASE("what numpy would unpickle is listed and never read") {
  const test::temporary_folder folder;
  const auto file = open(folder, npy(header("|O", "(2,)"), 50));
  CHECK(dtype_name(file.tensors()[0]) == "object");
  CHECK(file.tensors()[0].bytes == 50);
  CHECK_FALSE(file.view(0));
  std::array<std::byte, 1> part;
  CHECK(message_of<unsupported_error>([&] { file.read(0, 0, part); }) ==
        folder.file("file") + ": tensor 'array': its elements, 'object', cannot be read");
}

TEST_CASE("a zip is recognised by its arrays, whatever else is in it") {
  const test::temporary_folder folder;
  const zip_record array{.name = "a.npy", .stored = npy(header("|u1", "(2,)"), 2)};
  const zip_record other{.name = "readme.txt", .stored = "hello"};
  const checkpoint file = open_checkpoint(folder.write("zip", zip({other, array})));
  CHECK(file.format() == "npz");
  REQUIRE(file.tensors().size() == 1);
  CHECK(file.tensors()[0].name == "a");
  CHECK(file.view(0)->size() == 2);
  CHECK(message_of<format_error>([&] {
          (void)open_checkpoint(folder.write("zip", zip({other})));
        }).find("not a checkpoint in a known format") != std::string::npos);
}
