// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/gguf_reader.hpp>
#include <vggload/io/input_file.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;

namespace {

std::string u32(std::uint32_t value) {
  std::string text;
  for (unsigned i = 0; i < 4; ++i) text += static_cast<char>(value >> (8 * i) & 0xFFU);
  return text;
}
std::string u64(std::uint64_t value) {
  return u32(static_cast<std::uint32_t>(value)) + u32(static_cast<std::uint32_t>(value >> 32U));
}
std::string text(std::string_view value) { return u64(value.size()) + std::string(value); }

std::string entry(std::string_view key, std::uint32_t type, std::string_view value) {
  return text(key) + u32(type) + std::string(value);
}
std::string alignment(std::uint32_t value) { return entry("general.alignment", 4, u32(value)); }

/// `dims` as the file has them: fastest first.
std::string tensor(std::string_view name, std::vector<std::uint64_t> dims, std::uint32_t type,
                   std::uint64_t offset) {
  std::string out = text(name) + u32(static_cast<std::uint32_t>(dims.size()));
  for (const std::uint64_t dim : dims) out += u64(dim);
  return out + u32(type) + u64(offset);
}

/// A whole file; its payload counts 0, 1, 2, ...
std::string gguf(const std::vector<std::string>& metadata, const std::vector<std::string>& tensors,
                 std::size_t data_bytes, std::size_t align = 32, std::uint32_t version = 3) {
  std::string file = "GGUF" + u32(version) + u64(tensors.size()) + u64(metadata.size());
  for (const auto& part : metadata) file += part;
  for (const auto& part : tensors) file += part;
  file.resize((file.size() + align - 1) / align * align, '\0');
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

gguf_reader open(const test::temporary_folder& folder, std::string_view bytes) {
  return gguf_reader(input_file(folder.write("file", bytes)));
}

constexpr std::uint32_t f32 = 0;
constexpr std::uint32_t q4_0 = 2;
constexpr std::uint32_t i8 = 24;

struct refusal {
  const char* name;
  std::string file;
  const char* message;  // a part of it
};

}  // namespace

TEST_CASE("what a GGUF file must not be, each with its message") {
  const std::string good = tensor("a", {2}, f32, 0);
  const std::string head = "GGUF" + u32(3);
  const std::array refusals{
      refusal{"empty", "", "the file has 0 bytes, but its header goes on with 4 from offset 0"},
      refusal{"another magic", "GGML" + u32(3) + u64(0) + u64(0), "does not begin with 'GGUF'"},
      refusal{"nothing behind the magic", "GGUF", "goes on with 4 from offset 4: version"},
      refusal{"version 1", "GGUF" + u32(1) + u64(0) + u64(0), "its version is 1, not 2 or 3"},
      refusal{"version 4", gguf({}, {}, 0, 32, 4), "its version is 4, not 2 or 3"},
      refusal{"big-endian", "GGUF" + u32(0x03000000) + u64(0) + u64(0),
              "big-endian files cannot be read"},
      refusal{"no counts", head, "goes on with 8 from offset 8: number of tensors"},
      refusal{"half the counts", head + u64(0), "from offset 16: number of metadata entries"},
      refusal{"2^60 tensors", head + u64(std::uint64_t{1} << 60U) + u64(0),
              "the header claims 1152921504606846976 tensors, more than the 20000"},
      refusal{"2^64 - 1 metadata entries", head + u64(0) + u64(UINT64_MAX),
              "the header claims 18446744073709551615 metadata entries, more than the 10000"},
      refusal{"tensors that are not there", head + u64(20'000) + u64(0),
              "the file has 24 bytes, but its header goes on with 8 from offset 24"},
      refusal{"metadata that is not there", head + u64(0) + u64(10'000),
              "the file has 24 bytes, but its header goes on with 8 from offset 24"},
      refusal{"a key past the end", head + u64(0) + u64(1) + u64(5) + "abcd",
              "goes on with 5 from offset 32: a key"},
      refusal{"a key that is too long", head + u64(0) + u64(1) + u64(65'536) + "abcd",
              "at byte 32: a key of 65536 bytes, more than the 65535 that are allowed"},
      refusal{"a key beyond all sums", head + u64(0) + u64(1) + u64(UINT64_MAX),
              "a key of 18446744073709551615 bytes"},
      refusal{"many long texts",
              gguf(std::vector<std::string>(65, entry("k", 8, text(std::string(65'000, 'x')))), {},
                   0),
              ": with a string of 65000 bytes the names and texts have 4225065, more than the "
              "4194304 that are allowed"},
      refusal{"many long keys",
              gguf(std::vector<std::string>(65, entry(std::string(65'000, 'k'), 7, "\1")), {}, 0),
              ": with a key of 65000 bytes the names and texts have 4225000, more than the"},
      refusal{"many long names of tensors",
              gguf({}, std::vector<std::string>(65, tensor(std::string(65'000, 'n'), {2}, f32, 0)),
                   0),
              ": with a tensor's name of 65000 bytes the names and texts have 4225000, more than"},
      refusal{"a value of unknown type", gguf({entry("k", 13, u64(0))}, {}, 0),
              "the value of 'k' in the metadata: unknown type 13"},
      refusal{"a value that is cut", head + u64(0) + u64(1) + entry("k", 12, u32(0)),
              "goes on with 8 from offset 37: a value"},
      refusal{"a string past the end", head + u64(0) + u64(1) + entry("k", 8, u64(9)),
              "goes on with 9 from offset 45: a string"},
      refusal{"a long string past the end", head + u64(0) + u64(1) + entry("k", 8, u64(1U << 30U)),
              "goes on with 1073741824 from offset 45: a string"},
      refusal{"a string beyond all sums", head + u64(0) + u64(1) + entry("k", 8, u64(UINT64_MAX)),
              "goes on with 18446744073709551615 from offset 45: a string"},
      refusal{"an array past the end",
              head + u64(0) + u64(1) + entry("k", 9, u32(4) + u64(3) + u64(0)),
              "goes on with 12 from offset 49: an array"},
      refusal{"an array beyond all sums",
              gguf({entry("k", 9, u32(12) + u64(std::uint64_t{1} << 61U))}, {}, 0),
              "the value of 'k' in the metadata: an array of 2305843009213693952 elements"},
      refusal{"an array of 2^60 strings",
              head + u64(0) + u64(1) + entry("k", 9, u32(8) + u64(std::uint64_t{1} << 60U)),
              "goes on with 8 from offset 49: length of a string"},
      refusal{"an array of 2^60 arrays",
              head + u64(0) + u64(1) + entry("k", 9, u32(9) + u64(std::uint64_t{1} << 60U)),
              "goes on with 4 from offset 49: type of an array"},
      refusal{"an array of unknown type", gguf({entry("k", 9, u32(77) + u64(1))}, {}, 0),
              "the value of 'k' in the metadata: unknown type 77"},
      refusal{"arrays in arrays without end",
              [&] {
                std::string nested;
                for (int i = 0; i < 100'000; ++i) nested += u32(9) + u64(1);
                return gguf({entry("k", 9, nested)}, {}, 0);
              }(),
              "the value of 'k' in the metadata: its arrays nest too deeply"},
      refusal{"a key twice", gguf({entry("k", 7, "\1"), entry("k", 0, "\1")}, {}, 0),
              "the key 'k' occurs twice in the metadata"},
      refusal{"alignment of another type", gguf({entry("general.alignment", 10, u64(32))}, {}, 0),
              "'general.alignment' is not an unsigned 32-bit number"},
      refusal{"alignment 0", gguf({alignment(0)}, {good}, 8),
              "'general.alignment' is 0, not a power of two"},
      refusal{"alignment 48", gguf({alignment(48)}, {good}, 8),
              "'general.alignment' is 48, not a power of two"},
      refusal{"alignment past the end", gguf({alignment(0x80000000U)}, {good}, 8),
              "tensor 'a': it takes 8 bytes from offset 0 of the data section, which has 0"},
      refusal{"a name that is too long", gguf({}, {u64(65'536) + std::string(65'536, 'x')}, 0),
              "a tensor's name of 65536 bytes, more than the 65535"},
      refusal{"five dims", gguf({}, {tensor("a", {1, 1, 1, 1, 2}, f32, 0)}, 8),
              "tensor 'a': it has 5 dims, more than the 4 that are allowed"},
      refusal{"2^32 - 1 dims", head + u64(1) + u64(0) + text("a") + u32(UINT32_MAX),
              "tensor 'a': it has 4294967295 dims"},
      refusal{"dims that are cut", head + u64(1) + u64(0) + text("a") + u32(4) + u64(1),
              "goes on with 8 from offset 45: a tensor's dims"},
      refusal{"elements beyond 64 bits",
              gguf({}, {tensor("a", {1U << 31U, 1U << 31U, 4}, f32, 0)}, 8),
              "tensor 'a': F32 [4, 2147483648, 2147483648] has more bytes than a 64-bit number"},
      refusal{"bytes beyond 64 bits", gguf({}, {tensor("a", {std::uint64_t{1} << 62U}, f32, 0)}, 8),
              "F32 [4611686018427387904] has more bytes than a 64-bit number can count"},
      refusal{"half a block", gguf({}, {tensor("a", {48, 2}, q4_0, 0)}, 64),
              "tensor 'a': Q4_0 [2, 48] has rows of 48 elements, which are no whole blocks of 32"},
      refusal{"a quantised scalar", gguf({}, {tensor("a", {}, q4_0, 0)}, 64),
              "Q4_0 [] has rows of 1 elements, which are no whole blocks of 32"},
      refusal{"an offset that is not aligned", gguf({}, {tensor("a", {2}, f32, 8)}, 64),
              "tensor 'a': its offset 8 is no multiple of the alignment, 32"},
      refusal{"a tensor of which half is there", gguf({}, {tensor("a", {4}, f32, 32)}, 40),
              "tensor 'a': it takes 16 bytes from offset 32 of the data section, which has 40"},
      refusal{"a tensor behind the end", gguf({}, {tensor("a", {2}, f32, 64)}, 32),
              "it takes 8 bytes from offset 64 of the data section, which has 32"},
      refusal{"an offset beyond all sums", gguf({}, {tensor("a", {8}, f32, UINT64_MAX - 31)}, 32),
              "it takes 32 bytes from offset 18446744073709551584"},
      refusal{"an overlap", gguf({}, {tensor("b", {2}, f32, 32), tensor("a", {10}, f32, 0)}, 64),
              "tensor 'b': it takes 8 bytes from offset 32, but tensor 'a' takes 40 bytes from"},
      refusal{"two names for the same bytes", gguf({}, {good, tensor("b", {2}, f32, 0)}, 8),
              "takes 8 bytes from offset 0, but tensor"},
      refusal{"an overlap of quantised blocks",
              gguf({}, {tensor("a", {64}, q4_0, 0), tensor("b", {2}, f32, 32)}, 64),
              "tensor 'b': it takes 8 bytes from offset 32, but tensor 'a' takes 36 bytes"},
      refusal{"a tensor twice", gguf({}, {good, tensor("a", {2}, f32, 32)}, 64),
              "tensor 'a' occurs twice"},
      refusal{"a name that is no line", gguf({}, {tensor("a\nb", {2}, f32, 8)}, 64),
              "tensor 'a\\x0ab': its offset 8"},
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

TEST_CASE("a header without end in a hole of a sparse file is refused soon") {
  const test::temporary_folder folder;
  const std::string path = folder.write(
      "file", "GGUF" + u32(3) + u64(0) + u64(1) + entry("k", 9, u32(8) + u64(UINT64_MAX)));
  REQUIRE(::truncate(path.c_str(), ::off_t{1} << 36U) == 0);
  CHECK(message_of<format_error>([&] {
          gguf_reader(input_file(path));
        }).ends_with("the header has more than the 268435456 bytes that are allowed"));
}

TEST_CASE("what a GGUF file may be") {
  const test::temporary_folder folder;
  SUBCASE("nothing at all") {
    const auto file = open(folder, "GGUF" + u32(3) + u64(0) + u64(0));
    CHECK(file.tensors().empty());
    CHECK(file.metadata().empty());
    CHECK(file.format() == "gguf");
    CHECK(file.file_bytes() == 24);
  }
  SUBCASE("version 2") {
    CHECK(open(folder, gguf({}, {tensor("a", {2}, f32, 0)}, 8, 32, 2)).tensors().size() == 1);
  }
  SUBCASE("dims in the other order, and the file's order of tensors") {
    const auto file =
        open(folder, gguf({}, {tensor("b", {4, 3, 2}, i8, 32), tensor("a", {5}, i8, 0)}, 32 + 24));
    REQUIRE(file.tensors().size() == 2);
    CHECK(file.tensors()[0].name == "b");
    CHECK(file.tensors()[0].shape == shape{2, 3, 4});
    CHECK(file.tensors()[1].bytes == 5);
    std::array<std::byte, 2> part;
    file.read(0, 22, part);
    CHECK(part == std::array{std::byte{54}, std::byte{55}});
    CHECK((*file.view(1))[4] == std::byte{4});
    CHECK(message_of<error>([&] {
            file.read(0, 23, part);
          }).find("tensor 'b' has 24 bytes, so 2 from offset 23 cannot be read") !=
          std::string::npos);
  }
  SUBCASE("another alignment, and none") {
    const auto wide = open(
        folder,
        gguf({alignment(512)}, {tensor("a", {2}, i8, 0), tensor("b", {2}, i8, 512)}, 514, 512));
    CHECK((*wide.view(1))[1] == std::byte{1});
    const auto narrow = open(
        folder, gguf({alignment(1)}, {tensor("a", {3}, i8, 0), tensor("b", {2}, i8, 3)}, 5, 1));
    CHECK((*narrow.view(1))[1] == std::byte{4});
  }
  SUBCASE("empty tensors and scalars") {
    const auto file = open(
        folder,
        gguf({}, {tensor("e", {7, 0}, f32, 0), tensor("s", {}, f32, 0), tensor("f", {0}, q4_0, 0)},
             4));
    CHECK(file.tensors()[0].shape == shape{0, 7});
    CHECK(file.tensors()[0].bytes == 0);
    CHECK(file.view(0)->empty());
    CHECK(file.tensors()[1].shape == shape{});
    CHECK(file.tensors()[1].bytes == 4);
    CHECK(file.tensors()[2].bytes == 0);
  }
  SUBCASE("types that nobody knows") {
    const auto file =
        open(folder, gguf({}, {tensor("a", {2, 3}, 99, 0), tensor("b", {2}, f32, 0)}, 8));
    CHECK(file.tensors()[0].dtype == dtype::opaque);
    CHECK(file.tensors()[0].foreign_dtype == "type 99");
    CHECK(file.tensors()[0].shape == shape{3, 2});
    CHECK(file.tensors()[0].bytes == 0);
    CHECK_FALSE(file.view(0));
    CHECK(message_of<unsupported_error>([&] {
            file.read(0, 0, {});
          }).ends_with("tensor 'a': its elements, 'type 99', cannot be read"));
    CHECK(file.tensors()[1].dtype == dtype::f32);
  }
  SUBCASE("metadata of every type, of which the strings are kept") {
    std::vector<std::string> entries{entry("s", 8, text("value")), entry("empty", 8, text("")),
                                     entry("long", 8, text(std::string(65'536, 'x'))),
                                     entry("limit", 8, text(std::string(65'535, 'x')))};
    const std::array<std::size_t, 13> sizes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (std::uint32_t type = 0; type < sizes.size(); ++type) {
      if (sizes[type] == 0) continue;
      entries.push_back(entry("k" + std::to_string(type), type, std::string(sizes[type], '\1')));
      entries.push_back(entry("a" + std::to_string(type), 9,
                              u32(type) + u64(3) + std::string(3 * sizes[type], '\1')));
    }
    entries.push_back(entry("strings", 9, u32(8) + u64(2) + text("") + text("ab")));
    std::string nested = u32(8) + u64(1) + text("ab");
    for (int depth = 1; depth < 8; ++depth) nested.insert(0, u32(9) + u64(1));
    entries.push_back(entry("nested", 9, nested));
    const auto file = open(folder, gguf(entries, {tensor("a", {2}, f32, 0)}, 8));
    REQUIRE(file.metadata().size() == 3);
    CHECK(file.metadata()[0] == metadata_entry("s", "value"));
    CHECK(file.metadata()[1] == metadata_entry("empty", ""));
    CHECK(file.metadata()[2].first == "limit");
    CHECK(file.tensors().size() == 1);
  }
}

TEST_CASE("GGUF files of the real writer say what its reader says") {
  for (const std::string name : {"mixed", "quantised", "aligned", "vocabulary"}) {
    test::check_fixture(gguf_reader(input_file(FIXTURES "/gguf/" + name + ".gguf")));
  }
  const gguf_reader mixed(input_file(FIXTURES "/gguf/mixed.gguf"));
  const std::vector<metadata_entry> expected{
      {"general.architecture", "vgg"}, {"general.name", "größe 🧠"}, {"line", "a\nb"}};
  CHECK(std::ranges::equal(mixed.metadata(), expected));
  for (std::size_t i = 0; i < mixed.tensors().size(); ++i) CHECK(mixed.view(i));
}

TEST_CASE("a GGUF file is known by its first four bytes") {
  const test::temporary_folder folder;
  const input_file file(folder.write("f", "x"));
  const auto matches = [&](std::string_view head) {
    return gguf_reader::matches(file, std::as_bytes(std::span(head)));
  };
  CHECK(matches("GGUF"));
  CHECK(matches("GGUF\3"));
  CHECK_FALSE(matches("GGU"));
  CHECK_FALSE(matches(""));
  CHECK_FALSE(matches("gguf"));
}

TEST_CASE("a GGUF file that became shorter is an error, not a signal") {
  const test::temporary_folder folder;
  const std::string path = folder.write("file", gguf({}, {tensor("a", {4096}, f32, 0)}, 16384));
  const gguf_reader file{input_file(path)};
  REQUIRE(::truncate(path.c_str(), 100) == 0);
  std::vector<std::byte> out(16384);
  CHECK(message_of<io_error>([&] { file.read(0, 0, out); }).find("the file ends at byte 100") !=
        std::string::npos);
}
