// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/onnx_reader.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;

namespace {

// ---- the wire format by hand ----

std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 128; value >>= 7U) out += static_cast<char>(0x80U | (value & 0x7FU));
  return out += static_cast<char>(value);
}
std::string tag(unsigned number, unsigned type) { return varint(number << 3U | type); }
std::string number(unsigned field, std::uint64_t value) { return tag(field, 0) + varint(value); }
std::string bytes(unsigned field, std::string_view value) {
  return tag(field, 2) + varint(value.size()) + std::string(value);
}
std::string little_endian(std::uint64_t value, unsigned count) {
  std::string out;
  for (unsigned i = 0; i < count; ++i) out += static_cast<char>(value >> (8 * i) & 0xFFU);
  return out;
}
std::string varints(const std::vector<std::uint64_t>& values) {
  std::string out;
  for (const std::uint64_t value : values) out += varint(value);
  return out;
}

// ---- a model by hand ----

constexpr std::uint64_t float_type = 1;
constexpr std::uint64_t string_type = 8;
constexpr std::uint64_t half_type = 10;
constexpr std::uint64_t double_type = 11;

std::string initializer(std::string_view tensor) { return bytes(5, tensor); }
std::string model(std::string_view graph, std::string_view behind = "") {
  return number(1, 10) + bytes(7, graph) + std::string(behind);
}
/// Dims, type and name, then the data fields as given.
std::string tensor(const std::vector<std::uint64_t>& dims, std::uint64_t type,
                   std::string_view data, std::string_view name = "a") {
  std::string out;
  for (const std::uint64_t dim : dims) out += number(1, dim);
  return out + number(2, type) + bytes(8, name) + std::string(data);
}
std::string model_of(const std::vector<std::uint64_t>& dims, std::uint64_t type,
                     std::string_view data) {
  return model(initializer(tensor(dims, type, data)));
}
std::string raw(std::size_t count) {
  std::string payload;
  for (std::size_t i = 0; i < count; ++i) payload += static_cast<char>(i);
  return bytes(9, payload);
}
std::string entry(std::string_view key, std::string_view value) {
  return bytes(13, bytes(1, key) + bytes(2, value));
}
/// In which file a tensor's data is.
std::string external(std::string_view location, std::string_view offset = "",
                     std::string_view length = "") {
  std::string out = number(14, 1) + entry("location", location);
  if (!offset.empty()) out += entry("offset", offset);
  if (!length.empty()) out += entry("length", length);
  return out;
}

onnx_reader open(const test::temporary_folder& folder, std::string_view file) {
  return onnx_reader(input_file(folder.write("model", file)));
}
std::string payload_of(const onnx_reader& file, std::size_t index = 0) {
  const auto payload = test::read_in_windows(file, index, 1U << 20U);
  return {reinterpret_cast<const char*>(payload.data()), payload.size()};
}

struct refusal {
  const char* name;
  std::string file;
  const char* message;  // a part of it
};

}  // namespace

TEST_CASE("what an ONNX model must not be, each with its message") {
  const std::string good = tensor({2}, float_type, raw(8));
  const std::array refusals{
      // The wire format.
      refusal{"empty", "", "the model has no graph"},
      refusal{"no graph", number(1, 10) + bytes(2, "producer"), "the model has no graph"},
      refusal{"a number as the graph", number(7, 3), "field 7 has the wrong wire type 0"},
      refusal{"field 0", number(0, 1), "at byte 0: no field begins with the number 0"},
      refusal{"a field number beyond 29 bits", varint(std::uint64_t{1} << 32U),
              "no field begins with the number 4294967296"},
      refusal{"a tag that is cut", "\x80", "at byte 0: a number that has no end"},
      refusal{"a tag of eleven bytes", std::string(11, '\x80') + "\1",
              "at byte 0: a number that has no end within its message, or more than 10 bytes"},
      refusal{"a group", tag(3, 3), "field 3 has the unknown wire type 3"},
      refusal{"wire type 7", tag(3, 7), "field 3 has the unknown wire type 7"},
      refusal{"a number that is cut", tag(1, 0), "at byte 1: a number that has no end"},
      refusal{"a length that is cut", tag(7, 2) + "\x80", "at byte 1: a number that has no end"},
      refusal{"32 bits that are cut", tag(30, 5) + "abc",
              "field 30 has 4 bytes, but only 3 are left"},
      refusal{"64 bits that are cut", tag(30, 1) + "abcdefg",
              "field 30 has 8 bytes, but only 7 are left"},
      refusal{"a graph past the end", tag(7, 2) + varint(5) + "abcd",
              "at byte 0: field 7 has 5 bytes, but only 4 are left"},
      refusal{"a graph beyond all sums", tag(7, 2) + varint(UINT64_MAX),
              "field 7 has 18446744073709551615 bytes, but only 0 are left"},
      refusal{"an initializer past its graph", model(tag(5, 2) + varint(9) + "abc", good),
              "field 5 has 9 bytes, but only 3 are left"},
      refusal{"a number past its message", model(initializer("\x10\x80")),
              "at byte 7: a number that has no end within its message"},
      refusal{"a name past its message",
              model(initializer(tag(8, 2) + varint(2) + "a") + bytes(10, "text")),
              "field 8 has 2 bytes, but only 1 are left"},
      refusal{"a number as an initializer", model(number(5, 1)), "field 5 has the wrong wire type"},
      refusal{"a number as a name", model(initializer(number(8, 1))), "field 8 has the wrong wire"},
      refusal{"a text as a type", model(initializer(bytes(2, "1"))), "field 2 has the wrong wire"},
      refusal{"a number as raw_data", model(initializer(number(9, 1))), "field 9 has the wrong"},
      refusal{"numbers of 64 bits as floats", model(initializer(tag(4, 1) + "12345678")),
              "field 4 has the wrong wire type 1"},
      refusal{"numbers of 32 bits as dims", model(initializer(tag(1, 5) + "1234")),
              "field 1 has the wrong wire type 5"},
      refusal{"a name that is too long",
              model(initializer(tensor({2}, float_type, raw(8), std::string(65'536, 'x')))),
              "a text of 65536 bytes, more than the 65535 that are allowed"},

      // What a tensor says.
      refusal{"no type", model(initializer(bytes(8, "a") + raw(8))),
              "tensor 'a': it has no data type"},
      refusal{"a negative dim", model_of({2, static_cast<std::uint64_t>(-3)}, float_type, raw(8)),
              "tensor 'a': it has a dim of -3"},
      refusal{"65 dims", model_of(std::vector<std::uint64_t>(65, 1), float_type, raw(4)),
              "a tensor has more than the 64 dims that are allowed"},
      refusal{"a million packed dims",
              model(initializer(bytes(1, std::string(1'000'000, '\1')) + bytes(8, "a"))),
              "a tensor has more than the 64 dims that are allowed"},
      refusal{"elements beyond 64 bits",
              model_of({1U << 31U, 1U << 31U, 1U << 31U}, float_type, raw(8)),
              "tensor 'a': F32 [2147483648, 2147483648, 2147483648] has more bits than a 64-bit"},
      refusal{"bits beyond 64 bits", model_of({std::uint64_t{1} << 60U}, float_type, raw(8)),
              "has more bits than a 64-bit number can count"},
      refusal{"a segment", model_of({2}, float_type, bytes(3, number(2, 1)) + raw(8)),
              "tensor 'a': it is only a segment of a tensor"},
      refusal{"data nowhere", model_of({2}, float_type, number(14, 2) + raw(8)),
              "tensor 'a': its data location is 2, neither 0 (the model) nor 1 (a file)"},
      refusal{"no data", model_of({2}, float_type, ""), "tensor 'a': it has no data"},
      refusal{"an empty list of data", model_of({2}, float_type, bytes(4, "")), "it has no data"},
      refusal{"raw data twice over", model_of({2}, float_type, raw(8) + bytes(4, "12345678")),
              "tensor 'a': its data is both in float_data and in raw_data"},
      refusal{"typed data twice over",
              model_of({1}, float_type, bytes(4, "1234") + bytes(10, "12345678")),
              "tensor 'a': its data is both in float_data and in double_data"},
      refusal{"raw data too short", model_of({3}, float_type, raw(8)),
              "tensor 'a': F32 [3] needs 12 bytes, but its raw_data has 8"},
      refusal{"raw data too long", model_of({}, float_type, raw(8)),
              "F32 [] needs 4 bytes, but its raw_data has 8"},
      refusal{"raw data of an empty tensor", model_of({0}, float_type, raw(4)),
              "F32 [0] needs 0 bytes, but its raw_data has 4"},
      refusal{"the last raw data counts", model_of({2}, float_type, raw(8) + raw(4)),
              "needs 8 bytes, but its raw_data has 4"},
      refusal{"floats in the field of doubles", model_of({1}, float_type, bytes(10, "12345678")),
              "tensor 'a': FLOAT does not belong into double_data"},
      refusal{"halves in the field of floats", model_of({1}, half_type, bytes(4, "1234")),
              "FLOAT16 does not belong into float_data"},
      refusal{"floats in the field of strings", model_of({1}, float_type, bytes(6, "1234")),
              "FLOAT does not belong into string_data"},
      refusal{"half a float", model_of({1}, float_type, bytes(4, "123456")),
              "float_data of 6 bytes, which are no whole numbers"},
      refusal{"a float too few", model_of({3}, float_type, bytes(4, "12345678")),
              "tensor 'a': F32 [3] needs 3 numbers, but its float_data has 2"},
      refusal{"a float too many", model_of({1}, float_type, bytes(4, "12345678")),
              "F32 [1] needs 1 numbers, but its float_data has 2"},
      refusal{"a float of a list too few", model_of({3}, float_type, tag(4, 5) + "1234"),
              "F32 [3] needs 3 numbers, but its float_data has 1"},
      refusal{"numbers that cannot be so many", model_of({3}, half_type, bytes(5, "\1\2")),
              "F16 [3] needs 3 numbers, but its int32_data has 1 to 2"},
      refusal{"numbers that cannot be so few", model_of({1}, half_type, bytes(5, raw(18))),
              "F16 [1] needs 1 numbers, but its int32_data has 2 to 20"},
      refusal{"numbers of an empty tensor", model_of({0}, half_type, bytes(5, "\1")),
              "F16 [0] needs 0 numbers, but its int32_data has 1"},
      refusal{"half a complex number", model_of({1}, 14, bytes(4, "1234")),
              "C64 [1] needs 2 numbers, but its float_data has 1"},
      refusal{"a tensor twice", model(initializer(good) + initializer(good)),
              "tensor 'a' occurs twice"},
      refusal{"a tensor in two pieces of the graph",
              model(initializer(good), bytes(7, initializer(good))), "tensor 'a' occurs twice"},
      refusal{"metadata twice",
              model("", bytes(14, bytes(1, "k")) + bytes(14, bytes(1, "k") + bytes(2, "v"))),
              "the key 'k' occurs twice in the metadata"},
      refusal{"a name that is no line", model(initializer(tensor({3}, float_type, raw(8), "a\nb"))),
              "tensor 'a\\x0ab': F32 [3] needs"},
      refusal{"a sparse tensor with a negative dim",
              model(bytes(15, bytes(1, good) + number(3, UINT64_MAX))),
              "tensor 'a': it has a dim of -1"},

      // Data in another file.
      refusal{"external and raw", model_of({2}, float_type, external("data") + raw(8)),
              "tensor 'a': its data is both in raw_data and in a file"},
      refusal{"no location", model_of({2}, float_type, number(14, 1)),
              "tensor 'a': its external_data has no location"},
      refusal{"two locations",
              model_of({2}, float_type, external("data") + entry("location", "data")),
              "external_data has the key 'location' twice"},
      refusal{"two offsets", model_of({2}, float_type, external("data", "0") + entry("offset", "")),
              "external_data has the key 'offset' twice"},
      refusal{"an empty location", model_of({2}, float_type, external("")),
              "tensor 'a': its file '' is not a name below the model's folder"},
      refusal{"an absolute location", model_of({2}, float_type, external("/etc/passwd")),
              "its file '/etc/passwd' is not a name below"},
      refusal{"the folder above", model_of({2}, float_type, external("../data")),
              "its file '../data' is not a name below"},
      refusal{"the folder above on the way", model_of({2}, float_type, external("sub/../data")),
              "its file 'sub/../data' is not a name below"},
      refusal{"the folder above at the end", model_of({2}, float_type, external("sub/..")),
              "its file 'sub/..' is not a name below"},
      refusal{"a NUL in the location",
              model_of({2}, float_type, external(std::string_view("data\0x", 6))),
              "its file 'data\\x00x' is not a name below"},
      refusal{"a link out of the folder", model_of({2}, float_type, external("outward")),
              "its file 'outward' is a link that leads out of the model's folder"},
      refusal{"a folder that is a link", model_of({2}, float_type, external("root/etc/passwd")),
              "its file 'root/etc/passwd' is a link that leads out of the model's folder"},
      refusal{"an offset that is no number", model_of({2}, float_type, external("data", "1x")),
              "the offset of its external_data is '1x', no number from 0 to 2^64 - 1"},
      refusal{"a negative offset", model_of({2}, float_type, external("data", "-1")),
              "the offset of its external_data is '-1', no number"},
      refusal{"an offset beyond 64 bits",
              model_of({2}, float_type, external("data", "18446744073709551616")), "no number"},
      refusal{"a length that is no number", model_of({2}, float_type, external("data", "0", " 8")),
              "the length of its external_data is ' 8', no number"},
      refusal{"an offset past the end", model_of({2}, float_type, external("data", "17")),
              "its 8 bytes from offset 17 are not in its file 'data', which has 16"},
      refusal{"an offset beyond all sums",
              model_of({2}, float_type, external("data", "18446744073709551615")),
              "its 8 bytes from offset 18446744073709551615 are not in its file 'data'"},
      refusal{"data past the end", model_of({2}, float_type, external("data", "9")),
              "its 8 bytes from offset 9 are not in its file 'data', which has 16"},
      refusal{"a length that is not the shape's",
              model_of({2}, float_type, external("data", "0", "12")),
              "F32 [2] needs 8 bytes, but its external_data has 12"},
      refusal{"a length beyond all sums",
              model_of({4}, 22, external("data", "1", "18446744073709551615")),
              "its 18446744073709551615 bytes from offset 1 are not in its file 'data'"},
      refusal{"a location that is too long",
              model_of({2}, float_type, external(std::string(70'000, 'x'))),
              "a text of 70000 bytes, more than the 65535"},
  };
  const test::temporary_folder folder;
  const test::temporary_folder elsewhere;
  folder.write("data", std::string(16, '\0'));
  std::filesystem::create_symlink(elsewhere.write("data", std::string(16, '\0')),
                                  folder.file("outward"));
  std::filesystem::create_symlink("/", folder.file("root"));
  for (const refusal& r : refusals) {
    INFO(std::string(r.name));
    const std::string message = message_of<format_error>([&] { open(folder, r.file); });
    CHECK(message.starts_with(folder.file("model") + ": "));
    INFO(message);
    CHECK(message.find(r.message) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
  }
}

TEST_CASE("an external file that cannot be opened is named with the tensor that needs it") {
  const test::temporary_folder folder;
  std::filesystem::create_directory(folder.file("folder"));
  std::filesystem::create_symlink("loop", folder.file("loop"));
  REQUIRE(::mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  const auto message = [&](const char* location) {
    return message_of<io_error>(
        [&] { open(folder, model_of({2}, float_type, external(location))); });
  };
  const std::string subject = folder.file("model") + ": tensor 'a': its file ";
  CHECK(message("none") == subject + "'none': No such file or directory");
  CHECK(message("none/none") == subject + "'none/none': No such file or directory");
  CHECK(message("loop") == subject + "'loop': Too many levels of symbolic links");
  CHECK(message("folder").starts_with(subject));
  CHECK(message("folder").ends_with("not a regular file"));
  CHECK(message("pipe").ends_with("not a regular file"));
}

TEST_CASE("counts that no real model has are refused") {
  const test::temporary_folder folder;
  const auto message = [&](const std::string& file) {
    return message_of<format_error>([&] { open(folder, file); });
  };
  std::string many;
  SUBCASE("initializers") {
    for (int i = 0; i <= 20'000; ++i) many += initializer(number(2, 8));
    CHECK(message(model(many)).find("more than the 20000 initializers that are allowed") !=
          std::string::npos);
  }
  SUBCASE("pieces of data") {
    for (int i = 0; i <= 100'000; ++i) many += bytes(5, "\1");
    CHECK(message(model_of({100'001}, half_type, many))
              .find("data come in more than the 100000 pieces that are allowed") !=
          std::string::npos);
  }
  SUBCASE("metadata") {
    for (int i = 0; i <= 10'000; ++i) many += bytes(14, "");
    CHECK(message(model("", many)).find("more than the 10000 metadata entries") !=
          std::string::npos);
  }
  SUBCASE("long metadata") {
    for (int i = 0; i < 65; ++i) many += bytes(14, bytes(2, std::string(65'000, 'x')));
    CHECK(message(model("", many))
              .find("with a text of 65000 bytes the names and the metadata have 4225000, more than "
                    "the 4194304 that are allowed") != std::string::npos);
  }
  SUBCASE("long names") {
    for (int i = 0; i < 65; ++i)
      many += initializer(bytes(8, std::string(65'000, 'x')) + number(2, 8));
    CHECK(message(model(many)).find("the names and the metadata have 4225000, more than") !=
          std::string::npos);
  }
  SUBCASE("dims") {
    const std::string wide = bytes(1, std::string(64, '\1')) + number(2, 8);
    for (int i = 0; i < 2'049; ++i) many += initializer(wide);
    CHECK(message(model(many)).find("more than the 131072 dims in all that are allowed") !=
          std::string::npos);
  }
  SUBCASE("files") {
    for (int i = 0; i <= 512; ++i) {
      const std::string name = "data" + std::to_string(i);
      folder.write(name, "1234");
      many += initializer(tensor({1}, float_type, external(name), name));
    }
    CHECK(message(model(many)).find("its file 'data512' is one more than the 512 that are") !=
          std::string::npos);
  }
}

TEST_CASE("what an ONNX model may be") {
  const test::temporary_folder folder;
  SUBCASE("an empty graph, and metadata") {
    const auto file = open(
        folder, model("", bytes(14, bytes(2, "v") + bytes(1, "k")) +
                              bytes(14, bytes(1, "long") + bytes(2, std::string(70'000, 'x')))));
    CHECK(file.tensors().empty());
    CHECK(file.format() == "onnx");
    REQUIRE(file.metadata().size() == 1);
    CHECK(file.metadata()[0] == metadata_entry("k", "v"));
  }
  SUBCASE("raw data is shown in place") {
    const auto file = open(folder, model_of({2, 1}, float_type, raw(8)));
    CHECK(file.tensors()[0].shape == shape{2, 1});
    CHECK_FALSE(file.tensors()[0].sequential);
    CHECK((*file.view(0))[7] == std::byte{7});
    CHECK(payload_of(file) == std::string("\0\1\2\3\4\5\6\7", 8));
    std::array<std::byte, 2> part;
    CHECK(message_of<error>([&] {
            file.read(0, 7, part);
          }).find("tensor 'a' has 8 bytes, so 2 from offset 7 cannot be read") !=
          std::string::npos);
  }
  SUBCASE("fields in any order, the last one counts, dims packed and not") {
    const auto file = open(
        folder, bytes(7, initializer(raw(8) + bytes(8, "x") + bytes(1, varints({3, 1})) +
                                     number(2, 7) + raw(6) + bytes(8, "b") + number(1, 2) +
                                     number(2, std::uint64_t{1} << 32U | 3U) + bytes(12, "t"))) +
                    number(1, 3));
    CHECK(file.tensors()[0].name == "b");
    CHECK(file.tensors()[0].shape == shape{3, 1, 2});
    CHECK(file.tensors()[0].dtype == dtype::i8);
    CHECK((*file.view(0))[5] == std::byte{5});
  }
  SUBCASE("a graph in pieces, unknown fields, nodes with tensors") {
    const std::string good = tensor({2}, float_type, raw(8));
    const auto file = open(
        folder, number(1, 8) + bytes(7, initializer(tensor({1}, 2, raw(1), "b")) + number(99, 5)) +
                    bytes(99, "unknown") + tag(98, 5) + "1234" + tag(97, 1) + "12345678" +
                    bytes(7, bytes(1, bytes(5, bytes(5, good))) + initializer(good)) +
                    bytes(20, bytes(1, initializer(good))));
    REQUIRE(file.tensors().size() == 2);
    CHECK(file.tensors()[0].name == "b");
    CHECK(file.tensors()[1].name == "a");
  }
  SUBCASE("a tensor without a name, and empty ones") {
    const auto file =
        open(folder, model(initializer(number(2, 1) + raw(4)) +
                           initializer(tensor({0, 3}, float_type, "", "none")) +
                           initializer(tensor({0}, float_type, raw(0), "raw")) +
                           initializer(tensor({2, 0}, half_type, bytes(5, ""), "typed"))));
    REQUIRE(file.tensors().size() == 4);
    CHECK(file.tensors()[0].name.empty());
    for (std::size_t i = 1; i < 4; ++i) {
      CHECK(file.tensors()[i].bytes == 0);
      CHECK(file.view(i)->empty());
      file.read(i, 0, {});
    }
  }
  SUBCASE("external data that is not meant is ignored") {
    const auto file = open(folder, model_of({2}, float_type, entry("location", "/x") + raw(8)));
    CHECK((*file.view(0))[7] == std::byte{7});
  }
  SUBCASE("what cannot be read is listed with what it takes") {
    const auto file =
        open(folder,
             model(initializer(tensor({3}, 22, raw(2), "int4")) +
                   initializer(tensor({3}, 25, bytes(5, "\1"), "uint2")) +
                   initializer(tensor({2}, string_type, bytes(6, "abc") + bytes(6, "de"), "text")) +
                   initializer(tensor({2}, 77, raw(5), "new")) +
                   initializer(tensor({2}, static_cast<std::uint64_t>(-1), "", "odd")) +
                   bytes(15, number(3, 5) + bytes(1, tensor({1}, double_type, raw(8), "sparse")))));
    const std::array<const char*, 6> types{"INT4",    "UINT2",   "STRING",
                                           "type 77", "type -1", "sparse DOUBLE"};
    const std::array<std::uint64_t, 6> sizes{2, 1, 5, 5, 0, 26};
    REQUIRE(file.tensors().size() == 6);
    for (std::size_t i = 0; i < 6; ++i) {
      CHECK(file.tensors()[i].dtype == dtype::opaque);
      CHECK(file.tensors()[i].foreign_dtype == types[i]);
      CHECK(file.tensors()[i].bytes == sizes[i]);
      CHECK_FALSE(file.view(i));
    }
    CHECK(file.tensors()[5].shape == shape{5});
    CHECK(message_of<unsupported_error>([&] {
            file.read(0, 0, {});
          }).ends_with("tensor 'int4': its elements, 'INT4', cannot be read"));
  }
}

TEST_CASE("typed data is what the numbers say, cut to the element's size") {
  const test::temporary_folder folder;
  SUBCASE("floats in one piece are shown in place") {
    const auto file = open(folder, model_of({2}, float_type, bytes(4, "12345678")));
    CHECK_FALSE(file.tensors()[0].sequential);
    CHECK((*file.view(0))[7] == std::byte{'8'});
    CHECK(payload_of(file) == "12345678");
  }
  SUBCASE("doubles in one piece are shown in place") {
    const auto file = open(folder, model_of({1}, double_type, bytes(10, "12345678")));
    CHECK((*file.view(0))[7] == std::byte{'8'});
  }
  SUBCASE("complex numbers are two floats") {
    CHECK(open(folder, model_of({1}, 14, bytes(4, "12345678"))).view(0)->size() == 8);
    const auto file = open(folder, model_of({1}, 14, tag(4, 5) + "1234" + tag(4, 5) + "5678"));
    CHECK(payload_of(file) == "12345678");
  }
  SUBCASE("floats in pieces, packed and not, with others between") {
    const auto file =
        open(folder, model_of({7}, float_type,
                              tag(4, 5) + "aaaa" + tag(4, 5) + "bbbb" + bytes(12, "doc") +
                                  tag(4, 5) + "cccc" + bytes(4, "ddddeeee") + bytes(4, "") +
                                  bytes(4, "ffff") + tag(4, 5) + "gggg"));
    CHECK(file.tensors()[0].sequential);
    CHECK_FALSE(file.view(0));
    CHECK(payload_of(file) == "aaaabbbbccccddddeeeeffffgggg");
    const auto cut = test::read_in_windows(file, 0, 3, true);
    CHECK(cut == test::read_in_windows(file, 0, 28));
  }
  SUBCASE("floats in two packed pieces") {
    const auto file =
        open(folder,
             model_of({3}, float_type, bytes(4, "aaaabbbb") + bytes(12, "doc") + bytes(4, "cccc")));
    CHECK_FALSE(file.view(0));
    CHECK(payload_of(file) == "aaaabbbbcccc");
  }
  SUBCASE("floats that changed since the file was opened") {
    const std::string good = model_of({2}, float_type, tag(4, 5) + "aaaa" + tag(4, 5) + "bbbb");
    const auto file = open(folder, good);
    folder.write("model", good.substr(0, good.size() - 5) + std::string("\x80\x80\0bb", 5));
    std::array<std::byte, 8> all;
    CHECK(message_of<format_error>([&] { file.read(0, 0, all); }).find(": a number that is cut") !=
          std::string::npos);
  }
  SUBCASE("integers of every size and sign") {
    const std::vector<std::uint64_t> values{0,
                                            1,
                                            127,
                                            128,
                                            255,
                                            256,
                                            65535,
                                            0x7FFFFFFF,
                                            static_cast<std::uint64_t>(-1),
                                            static_cast<std::uint64_t>(-32768),
                                            UINT32_MAX};
    struct row {
      std::uint64_t type;
      unsigned field;
      dtype expected;
      unsigned size;
    };
    for (const row r :
         {row{2, 5, dtype::u8, 1}, row{3, 5, dtype::i8, 1}, row{4, 5, dtype::u16, 2},
          row{5, 5, dtype::i16, 2}, row{6, 5, dtype::i32, 4}, row{7, 7, dtype::i64, 8},
          row{9, 5, dtype::boolean, 1}, row{10, 5, dtype::f16, 2}, row{12, 11, dtype::u32, 4},
          row{13, 11, dtype::u64, 8}, row{16, 5, dtype::bf16, 2}, row{17, 5, dtype::f8_e4m3, 1},
          row{18, 5, dtype::f8_e4m3fnuz, 1}, row{19, 5, dtype::f8_e5m2, 1},
          row{20, 5, dtype::f8_e5m2fnuz, 1}, row{24, 5, dtype::f8_e8m0, 1}}) {
      INFO(r.type);
      std::string expected;
      std::string one_by_one;
      for (const std::uint64_t value : values) {
        expected += little_endian(value, r.size);
        one_by_one += number(r.field, value);
      }
      for (const std::string& data : {bytes(r.field, varints(values)), one_by_one}) {
        const auto file = open(folder, model_of({values.size()}, r.type, data));
        CHECK(file.tensors()[0].dtype == r.expected);
        CHECK(file.tensors()[0].bytes == expected.size());
        CHECK(file.tensors()[0].sequential);
        CHECK(payload_of(file) == expected);
      }
    }
  }
  SUBCASE("that there are too few numbers is seen when the last one is read") {
    const auto file = open(folder, model_of({4}, half_type, bytes(5, varints({300, 300, 300}))));
    std::array<std::byte, 6> there;
    file.read(0, 0, there);
    std::array<std::byte, 2> last;
    CHECK(message_of<format_error>([&] { file.read(0, 6, last); }) ==
          folder.file("model") +
              ": tensor 'a': its int32_data has fewer than the 4 numbers of its shape");
  }
  SUBCASE("that there are too many, too") {
    for (const std::string& data :
         {bytes(5, varints({300, 300, 300})), bytes(5, varints({1, 2})) + bytes(5, "\1")}) {
      const auto file = open(folder, model_of({2}, half_type, data));
      std::array<std::byte, 4> all;
      CHECK(message_of<format_error>([&] {
              file.read(0, 0, all);
            }).ends_with("its int32_data has more than the 2 numbers of its shape"));
    }
  }
  SUBCASE("a number that its piece cuts") {
    const auto file = open(folder, model_of({2}, half_type, bytes(5, "\1\x80")));
    std::array<std::byte, 4> all;
    CHECK(message_of<format_error>([&] {
            file.read(0, 0, all);
          }).find("a number that has no end within its message") != std::string::npos);
  }
}

TEST_CASE("long typed data is the same in any order of reads, from many threads") {
  const test::temporary_folder folder;
  // One to five bytes a number, in two pieces, over many of the reader's blocks.
  constexpr std::uint64_t count = 50'000;
  std::string expected;
  std::array<std::string, 2> pieces;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t value = i * 2654435761U % (std::uint64_t{1} << (7 * (i % 5 + 1)));
    expected += little_endian(value, 4);
    pieces[i < 12'345 ? 0 : 1] += varint(value);
  }
  const auto check = [&](const onnx_reader& file, std::size_t window, bool backwards) {
    const auto payload = test::read_in_windows(file, 0, window, backwards);
    return std::memcmp(payload.data(), expected.data(), expected.size()) == 0;
  };
  const std::string model_file =
      model_of({count}, 12, bytes(11, pieces[0]) + bytes(12, "x") + bytes(11, pieces[1]));
  CHECK(check(open(folder, model_file), 1U << 20U, false));
  CHECK(check(open(folder, model_file), 999, false));
  CHECK(check(open(folder, model_file), 999, true));
  CHECK(check(open(folder, model_file), 16384, true));
  const auto shared = open(folder, model_file);
  std::atomic<int> failures = 0;
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        if (!check(shared, 1001 * (i + 1), i % 2 == 0)) ++failures;
      });
    }
  }
  CHECK(failures == 0);
}

namespace {

/// What the process has read from files so far.
std::uint64_t bytes_read() {
  constexpr std::string_view key = "rchar: ";
  const std::string text = test::read_file("/proc/self/io");
  REQUIRE(text.starts_with(key));
  return std::stoull(text.substr(key.size()));
}

}  // namespace

TEST_CASE("a window of typed data costs no more than the way from the last known place") {
  const test::temporary_folder folder;
  constexpr std::size_t count = 500'000;
  const auto file = open(folder, model_of({count}, half_type, bytes(5, std::string(count, '\1'))));
  for (const bool backwards : {false, true}) {
    INFO(backwards);
    const std::uint64_t before = bytes_read();
    (void)test::read_in_windows(file, 0, 2048, backwards);
    // 489 windows, each 4096 numbers away from a known place at most, through a buffer of 16 KiB.
    // Without known places it would be 120 MB.
    CHECK(bytes_read() - before < 20'000'000);
  }
}

TEST_CASE("external data is read from its file, which is opened once") {
  const test::temporary_folder folder;
  folder.write("sub/data", "0123456789abcdef");
  std::filesystem::create_symlink("sub/data", folder.file("link"));
  const std::string file_text =
      model(initializer(tensor({2}, float_type, external("sub/data", "8", "8"), "a")) +
            initializer(tensor({1}, float_type, external("sub/data"), "b")) +
            initializer(tensor({1}, double_type,
                               external("./sub//data", "4") + entry("checksum", "x"), "c")) +
            initializer(tensor({16}, 2, external("link", "0"), "d")) +
            initializer(tensor({0}, float_type, external("link", "16"), "e")) +
            initializer(tensor({5}, 22, external("link", "10"), "f")) +
            initializer(tensor({1}, float_type, raw(4), "g")));
  onnx_reader opened = open(folder, file_text);
  const onnx_reader file = std::move(opened);
  REQUIRE(file.tensors().size() == 7);
  CHECK(payload_of(file, 0) == "89abcdef");
  CHECK(payload_of(file, 1) == "0123");
  CHECK(payload_of(file, 2) == "456789ab");
  CHECK(payload_of(file, 3) == "0123456789abcdef");
  CHECK((*file.view(2))[0] == std::byte{'4'});
  CHECK(file.view(4)->empty());
  CHECK(file.tensors()[5].foreign_dtype == "INT4");
  CHECK(file.tensors()[5].bytes == 6);
  CHECK(payload_of(file, 6) == std::string("\0\1\2\3", 4));
  CHECK(file.file_bytes() == file_text.size() + 16);
  CHECK(file.path() == folder.file("model"));
  std::array<std::byte, 4> part;
  CHECK(message_of<error>([&] {
          file.read(1, 1, part);
        }).find("model: tensor 'b' has 4 bytes, so 4 from offset 1 cannot be read") !=
        std::string::npos);
}

TEST_CASE("a model in the current folder finds its data there") {
  const test::temporary_folder folder;
  folder.write("data", "12345678");
  folder.write("model", model_of({2}, float_type, external("data")));
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  CHECK(payload_of(onnx_reader(input_file("model"))) == "12345678");
  std::filesystem::current_path(before);
}

TEST_CASE("ONNX models of the real writer say what its reader says") {
  for (const std::string name :
       {"raw", "typed", "long_typed", "opaque", "external", "external_files/model", "empty"}) {
    test::check_fixture(onnx_reader(input_file(FIXTURES "/onnx/" + name + ".onnx")));
  }
  const onnx_reader file(input_file(FIXTURES "/onnx/raw.onnx"));
  const std::vector<metadata_entry> expected{{"author", "größe"}, {"task", "line\nbreak"}};
  CHECK(std::ranges::equal(file.metadata(), expected));
  for (std::size_t i = 0; i < file.tensors().size(); ++i) CHECK(file.view(i));
  const onnx_reader external_file(input_file(FIXTURES "/onnx/external.onnx"));
  for (std::size_t i = 0; i < external_file.tensors().size(); ++i) CHECK(external_file.view(i));
}

TEST_CASE("an ONNX model is known by its outermost fields") {
  const test::temporary_folder folder;
  const auto matches = [&](std::string_view text) {
    const input_file file(folder.write("f", text));
    return onnx_reader::matches(file, std::as_bytes(std::span(text)));
  };
  CHECK(matches(model("")));
  CHECK(matches(model(initializer(tensor({2}, float_type, raw(8))))));
  CHECK(matches(bytes(7, "") + number(1, 3)));
  // Fields of versions to come, or of other people, wherever they stand and whatever their type.
  const std::string unknown = bytes(2000, "text") + number(9, 77) + tag(100, 5) + "1234" +
                              tag(2001, 1) + std::string("12345678");
  CHECK(matches(model("", unknown)));
  CHECK(matches(unknown + model("")));
  CHECK(open(folder, unknown + model(initializer(tensor({2}, float_type, raw(8))), unknown))
            .tensors()
            .size() == 1);
  CHECK_FALSE(matches(unknown));
  CHECK_FALSE(matches(unknown + number(1, 10)));
  CHECK_FALSE(matches(unknown + bytes(7, "")));
  CHECK_FALSE(matches(model("", bytes(2000, "text").substr(0, 5))));
  CHECK_FALSE(matches(model("", tag(2000, 3))));
  CHECK_FALSE(matches(unknown + number(1, 10) + bytes(7, "graph").substr(0, 4)));
  CHECK(matches(number(1, 8) + bytes(2, "p") + bytes(3, "v") + bytes(4, "d") + number(5, 1) +
                bytes(6, "t") + bytes(8, number(2, 7)) + bytes(7, "") + bytes(14, "") +
                bytes(20, "") + bytes(25, "") + bytes(26, "")));
  // A model that is cut is one, so that the message says so.
  CHECK(matches(model(std::string(100, 'x')).substr(0, 50)));
  CHECK_FALSE(matches(""));
  CHECK_FALSE(matches(number(1, 8)));
  CHECK_FALSE(matches(bytes(7, "")));
  CHECK_FALSE(matches(bytes(7, "x").substr(0, 2)));
  CHECK_FALSE(matches(model("", "\x80")));
  CHECK_FALSE(matches(model("", number(7, 1))));
  CHECK_FALSE(matches(model("", bytes(1, "x"))));
  CHECK_FALSE(matches(model("", bytes(14, "abc").substr(0, 4))));
  CHECK_FALSE(matches(model("", tag(2, 2) + varint(UINT64_MAX))));
  CHECK_FALSE(matches(model("", std::string(1, '\0'))));
  CHECK_FALSE(matches("\x89HDF\r\n\x1a\n"));
  CHECK_FALSE(matches("PK\3\4"));
  CHECK_FALSE(matches("GGUF"));
  CHECK_FALSE(matches(R"({"weight_map":{}})"));
  CHECK_FALSE(matches(std::string(1000, '\0')));
  CHECK_FALSE(matches(std::string(1000, '\x80')));
  CHECK_FALSE(matches("\x80\x02\x8a\x0al\xfc\x9c"));
  for (const std::string name : {"raw", "typed", "opaque", "external", "empty"}) {
    CHECK(matches(test::read_file(FIXTURES "/onnx/" + name + ".onnx")));
  }
  // Nothing is thrown although the file is shorter than it was.
  const std::string path = folder.write("f", model(std::string(100'000, 'x')));
  const input_file file(path);
  REQUIRE(::truncate(path.c_str(), 0) == 0);
  CHECK_FALSE(onnx_reader::matches(file, {}));
}

TEST_CASE("an ONNX model that became shorter is an error, not a signal") {
  const test::temporary_folder folder;
  for (const auto& [type, data] :
       {std::pair(float_type, raw(40'000)),
        std::pair(std::uint64_t{6}, bytes(5, std::string(10'000, '\1')))}) {
    const auto file = open(folder, model_of({10'000}, type, data));
    REQUIRE(::truncate(folder.file("model").c_str(), 50) == 0);
    std::vector<std::byte> out(40'000);
    CHECK(message_of<io_error>([&] { file.read(0, 0, out); }).find("the file ends at byte 50") !=
          std::string::npos);
  }
}
