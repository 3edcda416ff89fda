// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/io/sharded_safetensors_reader.hpp>
#include <vggload/load/checkpoint.hpp>

#include "../support/message_of.hpp"
#include "../support/safetensors_text.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;
using test::safetensors;
using test::safetensors_with_length;

namespace {

safetensors_reader open(const test::temporary_folder& folder, std::string_view bytes) {
  return safetensors_reader(input_file(folder.write("file", bytes)));
}

std::string entry(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return R"({"dtype":")" + std::string(dtype) + R"(","shape":)" + std::string(shape) +
         R"(,"data_offsets":)" + std::string(offsets) + "}";
}

struct refusal {
  const char* name;
  std::string file;
  const char* message;  // a part of it
};

}  // namespace

TEST_CASE("what a safetensors file must not be, each with its message") {
  const std::string good = entry("F32", "[2]", "[0,8]");
  const std::array refusals{
      refusal{"empty file", "", "the file has 0 bytes, too few for the 8-byte length"},
      refusal{"seven bytes", "1234567", "the file has 7 bytes"},
      refusal{"length over the limit", safetensors_with_length(100'000'001, "{}", 0),
              "said to have 100000001 bytes, more than the 100000000"},
      refusal{"length past the end", safetensors_with_length(3, "{}", 0),
              "said to have 3 bytes, but the file has only 10"},
      refusal{"length beyond all sums", safetensors_with_length(UINT64_MAX, "{}", 0),
              "said to have 18446744073709551615 bytes"},
      refusal{"no header", safetensors("", 0), "is not valid JSON in UTF-8"},
      refusal{"broken JSON", safetensors(R"({"a":)", 0), "goes wrong at byte 6 of 5"},
      refusal{"not UTF-8", safetensors("{\"\xFF\":" + good + "}", 8), "is not valid JSON in UTF-8"},
      refusal{"a lone surrogate", safetensors(R"({"\ud800":)" + good + "}", 8), "not valid JSON"},
      refusal{"byte order mark", safetensors("\xEF\xBB\xBF{}", 0), "byte order mark"},
      refusal{"NUL behind the header", safetensors(std::string("{}\0", 3), 0), "a NUL at byte 2"},
      refusal{"text behind the object", safetensors("{} x", 0), "is not valid JSON"},
      refusal{"a comment", safetensors("{/* */}", 0), "is not valid JSON"},
      refusal{"an array", safetensors("[]", 0), "the header is not a JSON object"},
      refusal{"a number", safetensors("1", 0), "the header is not a JSON object"},
      refusal{"an entry that is a list", safetensors(R"({"a":["F32",[2],[0,8]]})", 8),
              "tensor 'a': its entry is not a JSON object"},
      refusal{"an entry that is null", safetensors(R"({"a":null})", 0), "its entry is not a JSON"},
      refusal{"deep nesting", safetensors(R"({"a":)" + std::string(100'000, '['), 0),
              "tensor 'a': its entry is not a JSON object"},
      refusal{"deep nesting in metadata", safetensors(R"({"__metadata__":{"k":[[[[)", 0),
              "the value of 'k' in '__metadata__' is not a string"},
      refusal{"unknown dtype", safetensors(R"({"a":)" + entry("F33", "[2]", "[0,8]") + "}", 8),
              "tensor 'a': unknown dtype 'F33'"},
      refusal{"dtype in lower case",
              safetensors(R"({"a":)" + entry("f32", "[2]", "[0,8]") + "}", 8),
              "unknown dtype 'f32'"},
      refusal{"dtype that is a number",
              safetensors(R"({"a":{"dtype":1,"shape":[2],"data_offsets":[0,8]}})", 8),
              "tensor 'a': its dtype is not a string"},
      refusal{"negative dim", safetensors(R"({"a":)" + entry("F32", "[-2]", "[0,8]") + "}", 8),
              "its shape is not a list of whole numbers"},
      refusal{"dim minus zero", safetensors(R"({"a":)" + entry("F32", "[-0]", "[0,0]") + "}", 0),
              "its shape is not a list of whole numbers"},
      refusal{"fractional dim", safetensors(R"({"a":)" + entry("F32", "[2.0]", "[0,8]") + "}", 8),
              "its shape is not a list of whole numbers"},
      refusal{"dim beyond 64 bits",
              safetensors(R"({"a":)" + entry("F32", "[18446744073709551616]", "[0,8]") + "}", 8),
              "its shape is not a list of whole numbers from 0 to 2^64 - 1"},
      refusal{"shape in a shape", safetensors(R"({"a":)" + entry("F32", "[[2]]", "[0,8]") + "}", 8),
              "its shape is not a list"},
      refusal{"shape null", safetensors(R"({"a":)" + entry("F32", "null", "[0,8]") + "}", 8),
              "its shape is not a list"},
      refusal{"one offset", safetensors(R"({"a":)" + entry("F32", "[2]", "[8]") + "}", 8),
              "data_offsets has 1 numbers, not 2"},
      refusal{"three offsets", safetensors(R"({"a":)" + entry("F32", "[2]", "[0,8,8]") + "}", 8),
              "data_offsets has 3 numbers, not 2"},
      refusal{"no dtype", safetensors(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8),
              "tensor 'a': the field 'dtype' is missing"},
      refusal{"no shape", safetensors(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8),
              "the field 'shape' is missing"},
      refusal{"no offsets", safetensors(R"({"a":{"dtype":"F32","shape":[2]}})", 8),
              "the field 'data_offsets' is missing"},
      refusal{
          "a field twice",
          safetensors(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
          "tensor 'a': the field 'dtype' occurs twice"},
      refusal{"unknown field",
              safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8),
              "tensor 'a': unknown field 'x'"},
      refusal{"metadata that is a list", safetensors(R"({"__metadata__":[]})", 0),
              "'__metadata__' is not a JSON object"},
      refusal{"metadata with a number", safetensors(R"({"__metadata__":{"k":1}})", 0),
              "the value of 'k' in '__metadata__' is not a string"},
      refusal{"metadata twice", safetensors(R"({"__metadata__":{},"__metadata__":{}})", 0),
              "the key '__metadata__' occurs twice"},
      refusal{"metadata key twice", safetensors(R"({"__metadata__":{"k":"1","k":"2"}})", 0),
              "the key 'k' occurs twice in '__metadata__'"},
      refusal{"a tensor twice",
              safetensors(R"({"a":)" + good + R"(,"b":)" + entry("F32", "[1]", "[8,12]") +
                              R"(,"a":)" + entry("F32", "[2]", "[12,20]") + "}",
                          20),
              "tensor 'a' occurs twice"},
      refusal{"a hole before the first",
              safetensors(R"({"a":)" + entry("F32", "[2]", "[4,12]") + "}", 12),
              "tensor 'a': data_offsets [4, 12] leave a hole: the tensor before ends at 0"},
      refusal{
          "a hole between",
          safetensors(R"({"a":)" + good + R"(,"b":)" + entry("F32", "[1]", "[12,16]") + "}", 16),
          "tensor 'b': data_offsets [12, 16] leave a hole: the tensor before ends at 8"},
      refusal{"an overlap",
              safetensors(R"({"a":)" + good + R"(,"b":)" + entry("F32", "[2]", "[4,12]") + "}", 12),
              "tensor 'b': data_offsets [4, 12] overlap the tensor before, which ends at 8"},
      refusal{"two names for the same bytes",
              safetensors(R"({"a":)" + good + R"(,"b":)" + good + "}", 8),
              "overlap the tensor before"},
      refusal{"end before begin",
              safetensors(R"({"a":)" + entry("F32", "[2]", "[0,8]") + R"(,"b":)" +
                              entry("F32", "[2]", "[8,0]") + "}",
                          8),
              "end before they begin"},
      refusal{
          "a wrapping end",
          safetensors(
              R"({"a":)" + entry("U8", "[18446744073709551615]", "[0,18446744073709551615]") + "}",
              0),
          "U8 [18446744073709551615] has more bits than a 64-bit number can count"},
      refusal{"elements beyond 64 bits",
              safetensors(R"({"a":)" + entry("F32", "[4294967296,4294967296]", "[0,8]") + "}", 8),
              "F32 [4294967296, 4294967296] has more bits than a 64-bit number can count"},
      refusal{"elements beyond 64 bits, then zero",
              safetensors(R"({"a":)" + entry("F32", "[4294967296,4294967296,0]", "[0,0]") + "}", 0),
              "has more bits than a 64-bit number can count"},
      refusal{"half a byte", safetensors(R"({"a":)" + entry("F4", "[3]", "[0,2]") + "}", 2),
              "F4 [3] has 12 bits, which is not a whole number of bytes"},
      refusal{"size that is not the shape's",
              safetensors(R"({"a":)" + entry("F32", "[3]", "[0,8]") + "}", 8),
              "tensor 'a': F32 [3] needs 12 bytes, but data_offsets [0, 8] hold 8"},
      refusal{"bytes behind the last tensor", safetensors(R"({"a":)" + good + "}", 9),
              "the tensors end at byte 8 behind the header, but 9 bytes are there"},
      refusal{"a last tensor that is cut", safetensors(R"({"a":)" + good + "}", 7),
              "the tensors end at byte 8 behind the header, but 7 bytes are there"},
      refusal{"a name that is no line",
              safetensors(R"({"a\nb":)" + entry("F32", "[3]", "[0,8]") + "}", 8),
              "tensor 'a\\x0ab': F32"},
  };
  const test::temporary_folder folder;
  for (const refusal& r : refusals) {
    INFO(std::string(r.name));
    const std::string message = message_of<format_error>([&] { open(folder, r.file); });
    CHECK(message.starts_with(folder.file("file") + ": "));
    INFO(message);
    CHECK(message.find(r.message) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
  }
}

TEST_CASE("what a safetensors file may be") {
  const test::temporary_folder folder;
  SUBCASE("nothing at all") {
    CHECK(open(folder, safetensors("{}", 0)).tensors().empty());
    CHECK(open(folder, safetensors(R"( {"__metadata__":null} )", 0)).metadata().empty());
  }
  SUBCASE("white space around the header and in it") {
    const auto file =
        open(folder, safetensors("\t\r\n {\"a\" : " + entry("U8", "[ 2 ]", "[0, 2]") + "}  ", 2));
    CHECK(file.tensors()[0].name == "a");
  }
  SUBCASE("so much white space before it that the first bytes are nothing else") {
    const std::string padded =
        safetensors(std::string(40, ' ') + R"({"a":)" + entry("U8", "[2]", "[0,2]") + "}", 2);
    CHECK(open_checkpoint(folder.write("file", padded)).tensors()[0].name == "a");
    folder.write("shard", safetensors(R"({"b":)" + entry("U8", "[2]", "[0,2]") + "}", 2));
    for (const std::size_t blanks : {1U, 7U, 8U, 15U, 16U, 17U, 5000U}) {
      const std::string index = std::string(blanks, '\n') + R"({"weight_map":{"b":"shard"}})";
      INFO(blanks);
      CHECK(open_checkpoint(folder.write("index", index)).tensors()[0].name == "b");
    }
  }
  SUBCASE("tensors in another order than their bytes, empty ones among them") {
    const auto file = open(folder, safetensors(R"({"b":)" + entry("U8", "[2]", "[1,3]") +
                                                   R"(,"e":)" + entry("F32", "[0,7]", "[1,1]") +
                                                   R"(,"a":)" + entry("I8", "[]", "[0,1]") + "}",
                                               3));
    REQUIRE(file.tensors().size() == 3);
    CHECK(file.tensors()[0].name == "b");
    CHECK(file.tensors()[1].bytes == 0);
    CHECK(file.tensors()[2].shape == shape{});
    std::array<std::byte, 2> part;
    file.read(0, 0, part);
    CHECK(part == std::array{std::byte{1}, std::byte{2}});
    CHECK((*file.view(0))[1] == std::byte{2});
    CHECK(file.view(1)->empty());
  }
  SUBCASE("a high rank") {
    const auto file = open(
        folder, safetensors(R"({"a":)" + entry("U8", "[1,1,1,1,1,1,1,1,1,2]", "[0,2]") + "}", 2));
    CHECK(file.tensors()[0].shape.rank() == 10);
  }
}

TEST_CASE("a read outside a tensor is refused and names it") {
  const test::temporary_folder folder;
  const auto file = open(folder, safetensors(R"({"a":)" + entry("U8", "[2]", "[0,2]") + "}", 2));
  std::array<std::byte, 2> part;
  CHECK(message_of<error>([&] {
          file.read(0, 1, part);
        }).find("tensor 'a' has 2 bytes, so 2 from offset 1 cannot be read") != std::string::npos);
}

TEST_CASE("a file in an unknown format is refused with its first bytes") {
  const test::temporary_folder folder;
  CHECK(message_of<format_error>(
            [&] { (void)open_checkpoint(folder.write("f", "\x80\x02hello, world")); })
            .ends_with("not a checkpoint in a known format: 14 bytes, the first are 80 02 68 65 6c "
                       "6c 6f 2c"));
  CHECK(message_of<format_error>([&] {
          (void)open_checkpoint(folder.write("f", ""));
        }).ends_with("not a checkpoint in a known format: 0 bytes"));
  // A length of 123 begins with the byte '{' and is still no JSON text.
  const std::string header = R"({"a":)" + entry("U8", "[2]", "[0,2]") + "}";
  const std::string padded = header + std::string(123 - header.size(), ' ');
  CHECK(open_checkpoint(folder.write("f", safetensors(padded, 2))).tensors().size() == 1);
}

TEST_CASE("shards are one checkpoint in the index's order") {
  const test::temporary_folder folder;
  folder.write("one",
               safetensors(R"({"__metadata__":{"format":"pt"},"a":)" + entry("U8", "[2]", "[0,2]") +
                               R"(,"c":)" + entry("U8", "[1]", "[2,3]") + "}",
                           3));
  folder.write("sub/two", safetensors(R"({"b":)" + entry("I8", "[4]", "[0,4]") + "}", 4));
  const auto index = [&](const std::string& map) {
    return folder.write(
        "index", R"({"metadata":{"total_size":7,"x":[{"y":null}]},"weight_map":)" + map + "}");
  };
  const auto message = [&](const std::string& map) {
    return message_of<error>([&] { (void)open_checkpoint(index(map)); });
  };

  const checkpoint file = open_checkpoint(index(R"({"c":"one","b":"sub/two","a":"one"})"));
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.format() == "safetensors");
  CHECK(file.tensors()[0].name == "c");
  CHECK(file.tensors()[1].name == "b");
  CHECK(file.metadata()[0].second == "pt");
  std::array<std::byte, 1> part;
  file.read(0, 0, part);
  CHECK(part[0] == std::byte{2});
  CHECK(file.view(1)->size() == 4);
  CHECK(file.file_bytes() == std::filesystem::file_size(folder.file("index")) +
                                 std::filesystem::file_size(folder.file("one")) +
                                 std::filesystem::file_size(folder.file("sub/two")));

  CHECK(message(R"({"a":"one","c":"one","b":"../two"})")
            .find("tensor 'b': its file '../two' is not a name below the index's folder") !=
        std::string::npos);
  CHECK(message(R"({"a":"sub/../one"})").find("is not a name below") != std::string::npos);
  CHECK(message(R"({"a":")" + folder.file("one") + R"("})").find("is not a name below") !=
        std::string::npos);
  CHECK(message(R"({"a":""})").find("is not a name below") != std::string::npos);
  CHECK(message(R"({"a":"one\u0000"})").find("is not a name below") != std::string::npos);
  CHECK(message(R"({"a":"none"})")
            .find("tensor 'a': its shard " + folder.file("none") + ": cannot open: No such file") !=
        std::string::npos);
  CHECK(
      message(R"({"a":"one","c":"one","b":"one"})").find("tensor 'b' is not in its shard 'one'") !=
      std::string::npos);
  // Both shards are opened, and still the index must say the right one.
  CHECK(message(R"({"a":"sub/two","c":"one","b":"sub/two"})")
            .find("tensor 'a' is not in its shard 'sub/two'") != std::string::npos);
  CHECK(message(R"({"a":"one","b":"sub/two"})").find("tensor 'c' in the shard") !=
        std::string::npos);
  CHECK(message(R"({"a":"one","a":"one"})").find("tensor 'a' occurs twice in 'weight_map'") !=
        std::string::npos);
  CHECK(message(R"({"a":1})").find("tensor 'a': its file's name is not a string") !=
        std::string::npos);
  CHECK(message("[]").find("'weight_map' is not a JSON object") != std::string::npos);
  folder.write("copy", safetensors(R"({"a":)" + entry("U8", "[2]", "[0,2]") + "}", 2));
  CHECK(message(R"({"a":"one","c":"one","b":"copy"})").find("tensor 'a' is in two shards") !=
        std::string::npos);

  const auto raw = [&](const std::string& text) {
    return message_of<format_error>([&] { (void)open_checkpoint(folder.write("index", text)); });
  };
  CHECK(raw("{}").find("the index has no 'weight_map'") != std::string::npos);
  CHECK(raw(R"({"weight_map":{},"weight_map":{}})").find("'weight_map' occurs twice") !=
        std::string::npos);
  CHECK(raw(R"({"weight_map":{},"other":1})").find("unknown field 'other'") != std::string::npos);
  CHECK(raw(R"({"metadata":)" + std::string(100'000, '[')).find("nests too deeply") !=
        std::string::npos);
  std::filesystem::resize_file(folder.write("index", R"({"weight_map":{}})"), 100'000'001);
  CHECK(message_of<format_error>([&] {
          (void)open_checkpoint(folder.file("index"));
        }).find("the index has 100000001 bytes, more than the 100000000 that are allowed") !=
        std::string::npos);
}

TEST_CASE("what is written is read back, in order, at aligned places") {
  const test::temporary_folder folder;
  const std::string path = folder.file("out");
  const std::vector<tensor_info> infos{{"z \"quoted\"\n", dtype::f16, {2, 2}, 0},
                                       {"empty", dtype::f32, {0}, 0},
                                       {"a", dtype::u8, {}, 0}};
  const std::vector<metadata_entry> metadata{{"format", "pt"}, {"k\\", "\xC3\xA9"}};
  {
    safetensors_writer writer(path, infos, metadata);
    CHECK(writer.data_bytes() == 9);
    CHECK(writer.data_offset(2) == 8);
    const std::array<std::byte, 9> bytes{std::byte{1}, std::byte{2}, std::byte{3}};
    writer.write_data(4, std::span(bytes).subspan(4));
    CHECK(message_of<error>([&] {
            writer.commit();
          }).ends_with("5 of 9 bytes of tensors were written"));
    CHECK(message_of<error>([&] {
            writer.write_data(8, std::span(bytes).first(2));
          }).ends_with("2 bytes at offset 8 do not fit into 9 bytes of tensors"));
    writer.write_data(0, std::span(bytes).first(4));
    writer.commit();
  }
  const std::string file = test::read_file(path);
  CHECK((file.size() - 9) % 64 == 0);
  const safetensors_reader reader{input_file(path)};
  REQUIRE(reader.tensors().size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(reader.tensors()[i].name == infos[i].name);
    CHECK(reader.tensors()[i].dtype == infos[i].dtype);
    CHECK(reader.tensors()[i].shape == infos[i].shape);
  }
  CHECK(std::vector<metadata_entry>(reader.metadata().begin(), reader.metadata().end()) ==
        metadata);
  CHECK((*reader.view(0))[2] == std::byte{3});
}

TEST_CASE("the writer refuses what no reader would take, and leaves nothing") {
  const test::temporary_folder folder;
  const auto message = [&](std::vector<tensor_info> infos) {
    return message_of<error>([&] { safetensors_writer(folder.file("out"), infos); });
  };
  CHECK(message({{"a", dtype::u8, {1}, 0}, {"a", dtype::u8, {1}, 0}})
            .ends_with("tensor 'a' is to be written twice"));
  CHECK(message({{"__metadata__", dtype::u8, {1}, 0}})
            .ends_with("no tensor can have the name '__metadata__'"));
  CHECK(message({{"a", dtype::f64, {UINT64_MAX, 2}, 0}}).find("has no size that a file can have") !=
        std::string::npos);
  std::vector<tensor_info> huge;
  for (const char* const name : {"a", "b", "c", "d", "e"}) {
    huge.push_back({name, dtype::u8, {UINT64_MAX / 8}, 0});
  }
  CHECK(message(huge).ends_with("a file for 11529215046068469755 bytes of tensors is too large"));
  CHECK(message({{"\xFF", dtype::u8, {1}, 0}}).find("is not UTF-8") != std::string::npos);
  std::string long_name;
  long_name.resize(60'000'000, 'n');
  CHECK(message({{long_name + "1", dtype::u8, {1}, 0}, {long_name + "2", dtype::u8, {1}, 0}})
            .find("more than the 100000000") != std::string::npos);
  CHECK(folder.count() == 0);
}
