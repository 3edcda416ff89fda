// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/core/error.hpp>
#include <vggload/io/inflate.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/zip_archive.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"
#include "../support/zip_text.hpp"

using namespace vggload;
using test::deflated;
using test::message_of;
using test::number;
using test::zip;
using test::zip_record;

namespace {

zip_archive open(const test::temporary_folder& folder, std::string_view bytes) {
  return zip_archive(input_file(folder.write("file", bytes)));
}

std::string text(std::size_t size) {
  std::string bytes;
  for (std::size_t i = 0; i < size; ++i) bytes += static_cast<char>(i * i / 7 % 251);
  return bytes;
}

}  // namespace

TEST_CASE("a zip's members lie where its local headers end") {
  const test::temporary_folder folder;
  const std::string file =
      zip({zip_record{.name = "one",
                      .stored = "first",
                      .local_extra = number(0x4246, 2) + number(3, 2) + "xxx"},
           zip_record{.name = "", .stored = ""}, deflated("two", text(1000)),
           // Python's zipfile leaves the sizes for behind the bytes where it cannot go back.
           zip_record{.name = "late", .stored = "bytes", .flags = 8, .local_bytes = 0}},
          {.comment = "a comment"});
  const zip_archive archive = open(folder, file);
  REQUIRE(archive.members().size() == 4);
  const zip_member& one = archive.members()[0];
  CHECK(one.name == "one");
  CHECK(file.substr(one.data_offset, one.stored_bytes) == "first");
  CHECK(one.bytes == 5);
  CHECK_FALSE(one.deflated);
  CHECK(archive.find("two")->deflated);
  CHECK(archive.find("two")->bytes == 1000);
  CHECK(archive.find("")->bytes == 0);
  CHECK(archive.find("none") == nullptr);
  CHECK(archive.find("zzz") == nullptr);
  CHECK(open(folder, zip({})).members().empty());
}

TEST_CASE("zip64 numbers are taken from where they stand") {
  const test::temporary_folder folder;
  zip_record large{.name = "a", .stored = "abc"};
  large.bytes = large.stored_bytes = large.local_bytes = 0xFFFFFFFF;
  large.extra = large.local_extra = number(1, 2) + number(16, 2) + number(3, 8) + number(3, 8);
  const zip_archive archive = open(folder, zip({large}, {.zip64 = true}));
  CHECK(archive.members()[0].bytes == 3);
  CHECK(archive.members()[0].stored_bytes == 3);
  CHECK(open(folder, zip({large}, {.zip64 = true, .markers = false})).members().size() == 1);
}

TEST_CASE("what a zip must not be, each with its message") {
  struct refusal {
    const char* name;
    std::string file;
    const char* message;
  };
  const zip_record a{.name = "a", .stored = "abc"};
  const zip_record b{.name = "b", .stored = "defg"};
  const auto with = [](auto change) {
    zip_record record{.name = "a", .stored = "abc"};
    change(record);
    return zip({record});
  };
  zip_record huge{.name = "a", .stored = "abc", .bytes = 0xFFFFFFFF};
  huge.extra = huge.local_extra = number(1, 2) + number(8, 2) + number(UINT64_MAX, 8);
  huge.local_bytes = 0xFFFFFFFF;
  zip_record bomb = huge;
  bomb.method = bomb.local_method = 8;
  const std::array refusals{
      refusal{"nothing", "", "has 0 bytes, too few for a zip"},
      refusal{"no directory", std::string(100, 'x'), "directory was not found"},
      refusal{"a cut file", zip({a, b}).substr(0, 60), "directory was not found"},
      refusal{"bytes behind the end", zip({a}) + "x", "directory was not found"},
      refusal{"bytes before the start", "x" + zip({a}), "directory is said to be"},
      refusal{"several disks", zip({a}, {.disk = 1}), "split over several disks"},
      refusal{"more entries than fit", zip({a}, {.more_entries = 1}),
              "2 entries, but only 47 bytes"},
      refusal{"an entry too many",
              zip({zip_record{.name = std::string(50, 'n'), .stored = ""}}, {.more_entries = 1}),
              "directory ends in the middle of an entry"},
      refusal{"many more", zip({a}, {.more_entries = 60000}), "60001 entries, but only 47 bytes"},
      refusal{"fewer entries", zip({a, b}, {.more_entries = -1}), "47 bytes follow the zip's last"},
      refusal{"a directory elsewhere", zip({a}, {.directory_shift = 1}), "but its end is at"},
      refusal{"a zip64 directory beyond all sums",
              zip({a}, {.directory_shift = -100, .zip64 = true}),
              "directory is said to be 47 bytes from offset 18446744073709551550"},
      refusal{"two records that differ",
              zip({a}, {.zip64 = true, .markers = false, .other_bytes = 1}),
              "the zip's two records of its directory differ"},
      refusal{"2^60 entries", zip({a}, {.more_entries = std::int64_t{1} << 60, .zip64 = true}),
              "1152921504606846977 entries, but only 47 bytes"},
      refusal{"the same name twice", zip({a, a}), "member 'a': it is in the zip twice"},
      refusal{"another local name", with([](zip_record& r) { r.local_name = "b"; }),
              "member 'a': its header and the zip's directory differ in its name"},
      refusal{"another local method", with([](zip_record& r) { r.local_method = 8; }),
              "differ in its method"},
      refusal{"another local size", with([](zip_record& r) { r.local_bytes = 4; }),
              "differ in its size"},
      refusal{"another local size, which is said to follow", with([](zip_record& r) {
                r.flags = 8;
                r.local_bytes = 4;
              }),
              "member 'a': its header and the zip's directory differ in its size"},
      refusal{"more entries than any checkpoint has",
              zip(std::vector<zip_record>(32'769, {.name = "", .stored = ""}), {.zip64 = true}),
              "said to have 32769 entries, more than the 32768 that are allowed"},
      refusal{"a directory that is too large",
              zip(std::vector<zip_record>(70, {.name = std::string(60'000, 'x'), .stored = ""})),
              "bytes, more than the 4194304 that are allowed"},
      refusal{"an unknown method", with([](zip_record& r) { r.method = r.local_method = 12; }),
              "member 'a': it is packed by method 12"},
      refusal{"encryption", with([](zip_record& r) { r.flags = 1; }), "'a': it is encrypted"},
      refusal{"stored, but not its size", with([](zip_record& r) { r.bytes = r.local_bytes = 2; }),
              "said to take 3 bytes and to have 2"},
      refusal{"past the end",
              with([](zip_record& r) { r.stored_bytes = r.bytes = r.local_bytes = 300; }),
              "its 300 bytes from offset 31 are not in the file's"},
      refusal{"into the directory",
              with([](zip_record& r) { r.stored_bytes = r.bytes = r.local_bytes = 5; }),
              "member 'a': it overlaps the zip's directory"},
      refusal{
          "two records in one place",
          zip({a,
               zip_record{.name = "a2", .stored = "abc", .local_name = "a", .header_shift = -34}}),
          "member 'a2': its header and the zip's directory differ in its name"},
      refusal{"a header past the end", with([](zip_record& r) { r.header_shift = 5000; }),
              "its header is said to be at offset 5000, outside the file's 103 bytes"},
      refusal{"no header there", with([](zip_record& r) { r.header_shift = 1; }),
              "member 'a': no header is at offset 1"},
      refusal{"a size beyond all sums", zip({huge}),
              "said to take 3 bytes and to have 18446744073709551615"},
      refusal{"a bomb", zip({bomb}), "3 deflated bytes cannot unpack to the 18446744073709551615"},
      refusal{"a short zip64 field", with([](zip_record& r) {
                r.bytes = 0xFFFFFFFF;
                r.extra = number(1, 2) + number(4, 2) + number(0, 4);
              }),
              "its zip64 field is too short"},
  };
  const test::temporary_folder folder;
  for (const refusal& r : refusals) {
    INFO(std::string(r.name));
    const std::string message = message_of<format_error>([&] { (void)open(folder, r.file); });
    CHECK(message.starts_with(folder.file("file") + ": "));
    INFO(message);
    CHECK(message.find(r.message) != std::string::npos);
  }
}

TEST_CASE("numbers that follow the bytes are zero before them, or right") {
  const test::temporary_folder folder;
  // As Python's zipfile writes to a pipe: flag 3, and zeros; the central entry has the numbers.
  std::string late = zip({zip_record{.name = "a", .stored = "abc", .flags = 8}});
  const auto put = [&](std::size_t offset, std::uint64_t value) {
    late.replace(offset, 4, number(value, 4));
  };
  CHECK(open(folder, late).members().size() == 1);
  put(14, 0);
  put(18, 0);
  put(22, 0);
  CHECK(open(folder, late).members().size() == 1);
  for (const std::size_t offset : {14U, 18U, 22U}) {
    put(offset, 2);
    CHECK(message_of<format_error>([&] {
            (void)open(folder, late);
          }).find("member 'a': its header and the zip's directory differ in its") !=
          std::string::npos);
    put(offset, 0);
  }
}

TEST_CASE("a zip is told by its first bytes, and what begins so by chance is none") {
  const auto told = [](std::string_view head) {
    return zip_archive::matches(std::as_bytes(std::span(head)));
  };
  CHECK(told(zip({})));
  CHECK(told(zip({deflated("a", "bytes")})));
  CHECK(told("PK\x03\x04"));
  CHECK_FALSE(told("PK\x03"));
  CHECK_FALSE(told("PK\x01\x02"));
  // The length of a safetensors file's header, 67,324,752, and its text.
  for (const char* text : {"{\"", "{}", "{ ", "{\n", " {", "\n{"}) {
    CHECK_FALSE(told(number(67'324'752, 8) + text));
  }
}

TEST_CASE("records that overlap are refused") {
  // A second header inside the first record's bytes.
  zip_record outer{.name = "outer", .stored = zip({zip_record{.name = "in", .stored = "xy"}})};
  zip_record inner{.name = "in", .stored = "xy"};
  inner.header_shift = -static_cast<std::int64_t>(outer.stored.size());
  const test::temporary_folder folder;
  CHECK(message_of<format_error>([&] {
          (void)open(folder, zip({outer, inner}));
        }).find("member 'outer': it overlaps member 'in'") != std::string::npos);
}

TEST_CASE("a deflated member can be read anywhere, also backwards") {
  const std::string bytes = text(300'000);
  const test::temporary_folder folder;
  const mapped_file file{input_file(folder.write("file", zip({deflated("a", bytes)})))};
  const zip_archive archive(file.file());
  detail::inflated_member member(file, archive.members()[0]);
  for (const std::size_t offset : {0U, 100'000U, 100'001U, 5U, 299'999U, 250'000U, 0U, 300'000U}) {
    std::string part(std::min<std::size_t>(bytes.size() - offset, 70'000), '\0');
    member.read(offset, std::as_writable_bytes(std::span(part)));
    CHECK(part == bytes.substr(offset, part.size()));
  }
}

TEST_CASE("a deflated member that is not what the zip says is refused when it is read") {
  const test::temporary_folder folder;
  const std::string bytes = text(1000);
  const auto message = [&](zip_record record) {
    const mapped_file file{input_file(folder.write("file", zip({record})))};
    const zip_archive archive(file.file());
    detail::inflated_member member(file, archive.members()[0]);
    std::vector<std::byte> out(archive.members()[0].bytes);
    return message_of<format_error>([&] { member.read(0, out); });
  };
  zip_record record = deflated("a", bytes);
  record.bytes = record.local_bytes = 1001;
  CHECK(message(record).find("member 'a': it unpacks to 1000 bytes, not the 1001") !=
        std::string::npos);
  record = deflated("a", bytes);
  record.crc32 ^= 1U;
  CHECK(message(record).find("does not have the CRC-32") != std::string::npos);
  record = deflated("a", bytes);
  record.bytes = record.local_bytes = 999;
  CHECK(message(record).find("does not have the CRC-32") != std::string::npos);
  record = deflated("a", bytes);
  record.stored.resize(record.stored.size() / 2);
  record.stored_bytes = record.stored.size();
  CHECK(message(record).find("bytes, not the 1000") != std::string::npos);
  record = deflated("a", bytes);
  record.stored[0] = '\xFF';
  CHECK(message(record).find("its deflated bytes are damaged") != std::string::npos);
}
