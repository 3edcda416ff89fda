// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <malloc.h>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/torch_reader.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/row_major.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"
#include "../support/zip_text.hpp"

using namespace vggload;
using test::message_of;
using test::number;
using test::zip_record;

namespace {

std::atomic<std::size_t> heap_bytes = 0;
std::atomic<std::size_t> heap_peak = 0;

}  // namespace

void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  void* const block = std::malloc(size == 0 ? 1 : size);
  const std::size_t now = heap_bytes += ::malloc_usable_size(block);
  if (now > heap_peak) heap_peak = now;
  return block;
}
void* operator new(std::size_t size) {
  void* const block = operator new(size, std::nothrow);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
// Inlined, it looks to GCC 12 as if free() got what another operator new gave.
[[gnu::noinline]] void operator delete(void* block) noexcept {
  if (block != nullptr) heap_bytes -= ::malloc_usable_size(block);
  std::free(block);
}
void operator delete(void* block, std::size_t) noexcept { operator delete(block); }

namespace {

// ---- pickles by hand: opcodes as in Python's pickletools ---------------------

using parts = std::vector<std::string>;

std::string joined(const parts& all) {
  std::string out;
  for (const std::string& part : all) out += part;
  return out;
}
std::string repeated(std::string_view what, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += what;
  return out;
}
std::string text(std::string_view value) {
  return "X" + number(value.size(), 4) + std::string(value);
}
std::string integer(std::int64_t value) {
  return "\x8A\x08" + number(static_cast<std::uint64_t>(value), 8);
}
std::string global(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return "c" + std::string(name.substr(0, dot)) + "\n" + std::string(name.substr(dot + 1)) + "\n";
}
std::string tuple(const parts& items) { return "(" + joined(items) + "t"; }
std::string list(const parts& items) { return "](" + joined(items) + "e"; }
std::string dict(const parts& keys_and_values) { return "}(" + joined(keys_and_values) + "u"; }
std::string pickled(const std::string& value) { return "\x80\x02" + value + "."; }
const std::string none = "N";
const std::string ordered_dict = global("collections.OrderedDict") + ")R";

std::string counts(const std::vector<std::int64_t>& values) {
  parts items;
  for (const std::int64_t value : values) items.push_back(integer(value));
  return tuple(items);
}
std::string storage(std::int64_t elements, std::string_view type = "torch.ByteStorage",
                    std::string_view key = "0", const parts& more = {}) {
  return tuple({text("storage"), global(type), text(key), text("cpu"), integer(elements),
                joined(more)}) +
         "Q";
}
std::string tensor(const std::string& storage, std::int64_t offset,
                   const std::vector<std::int64_t>& size, const std::vector<std::int64_t>& stride,
                   std::string_view function = "torch._utils._rebuild_tensor_v2") {
  return global(function) +
         tuple({storage, integer(offset), counts(size), counts(stride), "\x89", ordered_dict}) +
         "R";
}
/// Two bytes: all of `file`'s storage.
const std::string pair = tensor(storage(2), 0, {2}, {1});

/// A zip as torch.save writes it, its storages with bytes that count 0, 1, 2, ...
std::string file_of(const std::string& pickle, std::size_t storage_bytes = 2,
                    const std::vector<zip_record>& more = {}) {
  std::string bytes;
  for (std::size_t i = 0; i < storage_bytes; ++i) bytes += static_cast<char>(i);
  std::vector<zip_record> records{{.name = "a/data.pkl", .stored = pickle},
                                  {.name = "a/byteorder", .stored = "little"},
                                  {.name = "a/data/0", .stored = bytes}};
  records.insert(records.end(), more.begin(), more.end());
  return test::zip(records);
}
std::string file_with(const std::string& tensor, std::size_t storage_bytes = 2) {
  return file_of(pickled(dict({text("w"), tensor})), storage_bytes);
}

/// A zip of empty members.
std::string zip_of_names(const std::vector<std::string>& names) {
  std::vector<zip_record> records;
  for (const std::string& name : names) records.push_back({.name = name, .stored = ""});
  return test::zip(records);
}

torch_zip_reader open_zip(const test::temporary_folder& folder, std::string_view bytes) {
  return torch_zip_reader(input_file(folder.write("file", bytes)));
}
torch_legacy_reader open_legacy(const test::temporary_folder& folder, std::string_view bytes) {
  return torch_legacy_reader(input_file(folder.write("file", bytes)));
}

const std::string magic = pickled("\x8A\nl\xFC\x9C\x46\xF9 j\xA8P\x19");
const std::string version = pickled("M\xE9\x03");
const std::string system_info = pickled(dict({text("little_endian"), "\x88"}));
const std::string legacy_pair = tensor(storage(2, "torch.ByteStorage", "7", {none}), 0, {2}, {1});
const std::string legacy_object = pickled(dict({text("w"), legacy_pair}));
const std::string legacy_keys = pickled(list({text("7")}));
const std::string legacy_data = number(2, 8) + "\x05\x06";

std::vector<std::byte> bytes_of_tensor(const auto& reader, std::size_t tensor) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(reader.tensors()[tensor].bytes));
  reader.read(tensor, 0, bytes);
  return bytes;
}
std::vector<std::byte> bytes(std::initializer_list<unsigned> values) {
  std::vector<std::byte> out;
  for (const unsigned value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

struct refusal {
  const char* name;
  std::string file;
  const char* message;  // a part of it
};

/// Shows another reader's tensors in row-major order, as torch.load does.
template <class Reader>
class row_major_reader {
 public:
  explicit row_major_reader(Reader reader) : reader_(std::move(reader)) {}
  const std::string& path() const { return reader_.path(); }
  std::string_view format() const { return reader_.format(); }
  std::uint64_t file_bytes() const { return reader_.file_bytes(); }
  std::span<const tensor_info> tensors() const { return reader_.tensors(); }
  std::span<const metadata_entry> metadata() const { return reader_.metadata(); }
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    read_row_major(reader_, tensor, offset, out);
  }
  std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    if (reader_.tensors()[tensor].order != element_order::row_major) return std::nullopt;
    return reader_.view(tensor);
  }

 private:
  Reader reader_;
};

template <class Reader>
void check_refused(const test::temporary_folder& folder, const refusal& r) {
  INFO(std::string(r.name));
  const std::string path = folder.write("file", r.file);
  const std::string message = message_of<format_error>([&] { Reader{input_file(path)}; });
  INFO(message);
  CHECK(message.starts_with(path + ": "));
  CHECK(message.find(r.message) != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
}

}  // namespace

TEST_CASE("what torch.save wrote is read as torch.load reads it") {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(FIXTURES) + "/torch")) {
    if (entry.path().extension() != ".pth") continue;
    const std::string name = entry.path().filename().string();
    if (name.starts_with("zip")) {
      test::check_fixture(row_major_reader(torch_zip_reader(input_file(entry.path().string()))));
    } else {
      test::check_fixture(row_major_reader(torch_legacy_reader(input_file(entry.path().string()))));
    }
    ++files;
  }
  CHECK(files == 14);
}

TEST_CASE("dense tensors are views of the file, tied ones of the same bytes") {
  const auto check = [](const auto& reader) {
    const auto place = [&](std::string_view name) {
      const auto found = std::ranges::find(reader.tensors(), name, &tensor_info::name);
      REQUIRE(found != reader.tensors().end());
      return reader.view(static_cast<std::size_t>(found - reader.tensors().begin()));
    };
    const std::byte* const base = place("base")->data();
    CHECK(place("tied")->data() == base);
    CHECK(place("tied, another object")->data() == base);
    CHECK(place("rows")->data() == base + 2 * 20 * 4);
    CHECK(place("one element")->data() == base + (3 * 20 + 2 * 4 + 1) * 4);
    CHECK(place("one element")->size() == 4);
    CHECK(place("length 1 with an odd stride")->data() == base + 2 * 4 * 4);
    CHECK(place("parameter")->data() == base + 20 * 4);
    CHECK(place("image as rows"));
    CHECK(place("empty behind the end")->empty());
    CHECK(place("transposed")->data() == base);
    CHECK(place("frozen parameter")->data() == base + 20 * 4);
    for (const char* name :
         {"permuted", "columns", "every third row", "expanded", "sliding", "channels last"}) {
      INFO(std::string(name));
      CHECK_FALSE(place(name));
    }
  };
  const std::string fixtures = FIXTURES;
  torch_zip_reader reader(input_file(fixtures + "/torch/zip_views.pth"));
  check(reader);
  const std::byte* const first = reader.view(0)->data();
  torch_zip_reader moved = std::move(reader);
  CHECK(moved.view(0)->data() == first);
  check(torch_legacy_reader(input_file(fixtures + "/torch/legacy_views.pth")));
}

TEST_CASE("a payload has the order of its storage, which the tensor tells") {
  const test::temporary_folder folder;
  struct example {
    const char* name;
    std::vector<std::int64_t> size;
    std::vector<std::int64_t> stride;
    element_order order;
    std::vector<std::uint64_t> strides;  // of the payload
    std::vector<std::byte> payload;
    std::vector<std::byte> row_major;
    bool in_place;
  };
  constexpr auto rows = element_order::row_major;
  constexpr auto columns = element_order::column_major;
  const std::array examples{
      example{"a matrix",
              {2, 3},
              {3, 1},
              rows,
              {},
              bytes({0, 1, 2, 3, 4, 5}),
              bytes({0, 1, 2, 3, 4, 5}),
              true},
      example{"its transpose",
              {3, 2},
              {1, 3},
              columns,
              {},
              bytes({0, 1, 2, 3, 4, 5}),
              bytes({0, 3, 1, 4, 2, 5}),
              true},
      example{"a transpose with axes of 1",
              {1, 3, 1, 2},
              {9, 1, 0, 3},
              columns,
              {},
              bytes({0, 1, 2, 3, 4, 5}),
              bytes({0, 3, 1, 4, 2, 5}),
              true},
      // [1, 2, 2, 3] of channels, height, width: two channels for each place.
      example{"channels last",
              {1, 2, 2, 3},
              {12, 1, 6, 2},
              columns,
              {1, 1, 6, 2},
              bytes({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}),
              bytes({0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11}),
              false},
      example{"every second column",
              {2, 2},
              {4, 2},
              rows,
              {},
              bytes({0, 2, 4, 6}),
              bytes({0, 2, 4, 6}),
              false},
      example{"every second column of a transpose",
              {3, 2},
              {1, 6},
              columns,
              {},
              bytes({0, 1, 2, 6, 7, 8}),
              bytes({0, 6, 1, 7, 2, 8}),
              false},
      example{"a part of channels last",
              {2, 2, 2},
              {1, 6, 2},
              columns,
              {1, 4, 2},
              bytes({0, 1, 2, 3, 6, 7, 8, 9}),
              bytes({0, 2, 6, 8, 1, 3, 7, 9}),
              false},
      example{"a row that is repeated",
              {2, 3},
              {0, 1},
              rows,
              {},
              bytes({0, 1, 2, 0, 1, 2}),
              bytes({0, 1, 2, 0, 1, 2}),
              false},
      example{"a column that is repeated",
              {3, 2},
              {1, 0},
              rows,
              {},
              bytes({0, 0, 1, 1, 2, 2}),
              bytes({0, 0, 1, 1, 2, 2}),
              false},
      example{"a transpose that is repeated",
              {2, 3, 2},
              {0, 1, 3},
              columns,
              {6, 1, 3},
              bytes({0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}),
              bytes({0, 3, 1, 4, 2, 5, 0, 3, 1, 4, 2, 5}),
              false},
      example{"a sliding window, the other way",
              {3, 2},
              {1, 2},
              columns,
              {},
              bytes({0, 1, 2, 2, 3, 4}),
              bytes({0, 2, 1, 3, 2, 4}),
              false},
  };
  for (const example& e : examples) {
    INFO(std::string(e.name));
    const auto reader = open_zip(folder, file_with(tensor(storage(20), 0, e.size, e.stride), 20));
    const tensor_info& info = reader.tensors()[0];
    CHECK(info.order == e.order);
    CHECK(info.strides == e.strides);
    CHECK(is_permuted(info) == !e.strides.empty());
    CHECK(bytes_of_tensor(reader, 0) == e.payload);
    std::vector<std::byte> in_rows(static_cast<std::size_t>(info.bytes));
    read_row_major(reader, 0, 0, in_rows);
    CHECK(in_rows == e.row_major);
    const auto view = reader.view(0);
    CHECK(view.has_value() == e.in_place);
    if (view) CHECK(std::ranges::equal(*view, e.payload));
  }
}

TEST_CASE("the state dict is found in a training checkpoint, and which one is said") {
  const test::temporary_folder folder;
  const auto said = [&](const std::string& root) {
    const auto reader = open_zip(folder, file_of(pickled(root)));
    std::string names;
    for (const tensor_info& info : reader.tensors()) names += info.name + " ";
    for (const auto& [key, value] : reader.metadata()) names += key + "=" + value;
    return names;
  };
  const std::string inner = dict({text("x"), pair});
  const std::string other = dict({text("y"), pair});
  CHECK(said(inner) == "x ");
  CHECK(said(dict({text("epoch"), "K\x03", text("state_dict"), inner})) ==
        "x state_dict=state_dict");
  CHECK(said(dict({text("model"), inner})) == "x state_dict=model");
  CHECK(said(dict({text("model_state_dict"), inner})) == "x state_dict=model_state_dict");
  // The order of the keys in the file does not matter.
  CHECK(said(dict({text("model_state_dict"), other, text("model"), other, text("state_dict"),
                   inner})) == "x state_dict=state_dict");
  CHECK(said(dict({text("model_state_dict"), other, text("model"), inner})) ==
        "x state_dict=model");
  CHECK(said(dict({text("model"), dict({text("state_dict"), inner})})) ==
        "x state_dict=model.state_dict");
  // A tensor beside it does not hide it; what has no tensors is not it.
  CHECK(said(dict({text("best"), pair, text("model"), inner})) == "x state_dict=model");
  CHECK(said(dict({text("state_dict"), "}", text("model"), inner})) == "x state_dict=model");
  CHECK(said(dict({text("x"), pair, text("model"), "K\x01"})) == "x ");
  CHECK(said(dict({text("x"), pair, text("model"), "}"})) == "x ");
  // The most bytes win, however deep they are.
  const std::string more = tensor(storage(2), 0, {2, 4}, {1, 0});
  const std::string half = tensor(storage(2), 0, {1}, {1});
  const std::string step = dict({text("step"), half});
  CHECK(said(dict({text("model"), step, text("model_state_dict"), inner})) ==
        "x state_dict=model_state_dict");
  CHECK(said(dict({text("model_state_dict"), inner, text("state_dict"), step})) ==
        "x state_dict=model_state_dict");
  CHECK(said(dict({text("model"), dict({text("model_state_dict"), inner}), text("state_dict"),
                   step})) == "x state_dict=model.model_state_dict");
  // What a view repeats does not count.
  CHECK(said(dict({text("model"), dict({text("y"), more}), text("state_dict"), inner})) ==
        "x state_dict=state_dict");
  // What is no tensor is skipped, whatever its key.
  CHECK(said(dict({text("x"), pair, "K\x01", none, text("n"), "K\x01", text("f"),
                   "G" + number(0, 8), text("d"), inner, text("l"), list({pair}), text("s"),
                   storage(1), text("t"), global("torch.float32"), text("big"),
                   "\x8A\x09" + std::string(9, '\x7F')})) == "x ");
}

TEST_CASE("forms of pickles that few writers use") {
  const test::temporary_folder folder;
  const auto names = [&](const std::string& root) {
    const auto reader = open_zip(folder, file_of(pickled(root)));
    std::string out;
    for (const tensor_info& info : reader.tensors()) out += info.name + to_string(info.shape);
    return out;
  };
  SUBCASE("containers that change after they were memoised and contained") {
    CHECK(names("}q\x01(" + text("a") + pair + "u(" + text("b") + pair + "u" + text("c") + pair +
                "s") == "a[2]b[2]c[2]");
    // BUILD drops what is on top.
    CHECK(names("}" + text("model") + "}q\x02s" + "h\x02" + text("x") + pair + "sb") == "x[2]");
    CHECK(names("}q\x01}q\x02" + text("a") + pair + "sbh\x02" + text("b") + pair + "sb" + "h\x01" +
                text("c") + pair + "sb" + text("model") + "h\x02s") == "a[2]b[2]");
  }
  SUBCASE("a dict that contains itself") {
    CHECK(names("}q\x01(" + text("model") + "h\x01" + text("x") + pair + "u") == "x[2]");
  }
  SUBCASE("an OrderedDict of pairs, and one with an attribute") {
    const std::string type = global("collections.OrderedDict");
    CHECK(names(type + list({list({text("a"), pair}), tuple({text("b"), pair})}) + "\x85R") ==
          "a[2]b[2]");
    CHECK(names(ordered_dict + text("a") + pair + "s" + dict({text("_metadata"), ordered_dict}) +
                "b") == "a[2]");
  }
  SUBCASE("texts and numbers of every size") {
    CHECK(names(dict({"U\x03two", pair})) == "two[2]");
    const auto shaped = [&](const std::string& two, const std::string& zero) {
      return dict({text("w"), global("torch._utils._rebuild_tensor") +
                                  tuple({storage(2), zero, two + "\x85", "\x8A\x01\x01\x85"}) +
                                  "R"});
    };
    CHECK(names(shaped("K\x02", "\x8A" + number(0, 1))) == "w[2]");
    CHECK(names(shaped("M" + number(2, 2), "J" + number(0, 4))) == "w[2]");
    CHECK(names(shaped("\x8A\x02\x02" + number(0, 1), "K" + number(0, 1))) == "w[2]");
  }
  SUBCASE("sizes and strides that are lists, or a torch.Size") {
    const auto shaped = [&](const std::string& size, const std::string& stride) {
      return dict({text("w"),
                   global("torch._utils._rebuild_tensor_v2") +
                       tuple({storage(2), integer(0), size, stride, "\x89", ordered_dict}) + "R"});
    };
    const std::string size = global("torch.Size");
    CHECK(names(shaped(size + counts({1, 2}) + "\x85R", counts({2, 1}))) == "w[1, 2]");
    CHECK(names(shaped(size + list({integer(2)}) + "\x85R", counts({1}))) == "w[2]");
    CHECK(names(shaped(size + ")\x85R", ")")) == "w[]");
    CHECK(names(shaped(list({integer(1), integer(2)}),
                       "]K\x02"
                       "aK\x01"
                       "a")) == "w[1, 2]");
  }
  SUBCASE("far places in the memo") {
    CHECK(names("}(" + text("a") + pair + "r" + number(1000, 4) + text("b") + "j" +
                number(1000, 4) + "u") == "a[2]b[2]");
  }
  SUBCASE("a persistent id of 6, the last of which is None, in a zip") {
    CHECK(names(dict({text("a"), tensor(storage(2, "torch.ByteStorage", "0", {none}), 0, {2},
                                        {1})})) == "a[2]");
  }
}

TEST_CASE("what a pickle must not be, each with its message") {
  const test::temporary_folder folder;
  const auto refused = [](const char* name, const std::string& value, const char* message) {
    return refusal{name, file_of(pickled(value)), message};
  };
  const auto raw = [](const char* name, const std::string& pickle, const char* message) {
    return refusal{name, file_of(pickle), message};
  };
  const std::vector<refusal> refusals{
      raw("empty", "", "'a/data.pkl' is cut: 1 bytes at byte 0 are past its end, 0"),
      raw("protocol 0", "(dp0\n.", "does not begin with a protocol"),
      raw("protocol 1", "}q\x01.", "does not begin with a protocol"),
      raw("protocol 4", "\x80\x04\x95" + number(2, 8) + "}.", "is of protocol 4; 2, torch.save's"),
      raw("no STOP", "\x80\x02}", "is cut: 1 bytes at byte 3 are past its end, 3"),
      raw("cut in a number", "\x80\x02J\x01\x02", "is cut: 4 bytes at byte 3"),
      raw("cut in a text", "\x80\x02X" + number(9, 4) + "12345678",
          "is cut: 9 bytes at byte 7 are past its end, 15"),
      raw("a text beyond everything", "\x80\x02X" + number(UINT32_MAX, 4),
          "is cut: 4294967295 bytes at byte 7"),
      raw("cut in a global's name",
          "\x80\x02"
          "cos\nsystem",
          "is cut: 1 bytes at byte 12"),
      raw("bytes behind STOP", pickled("}") + "x", "'a/data.pkl' ends at byte 4 of its 5"),
      refused("a long name of a global", "c" + std::string(300, 'x'),
              "has a global's name of more than 256 bytes (at byte 2)"),
      refused("a second protocol", "\x80\x02}", "has opcode 0x80, which no state dict needs (at"),
      refused("a call of the shell", "cposix\nsystem\n" + text("echo") + "\x85R",
              "refers to 'posix.system', which is not executed: a state dict consists of tensors"),
      refused("eval", global("builtins.eval"), "refers to 'builtins.eval', which is not executed"),
      refused("a storage by a pickle in it", global("torch.storage._load_from_bytes"),
              "refers to 'torch.storage._load_from_bytes'"),
      refused("NumPy's scalar", global("numpy.core.multiarray.scalar"),
              "refers to 'numpy.core.multiarray.scalar'"),
      refused("a namespace", global("argparse.Namespace"), "refers to 'argparse.Namespace'"),
      refused("a whole module", global("torchvision.models.vgg.VGG"),
              "refers to 'torchvision.models.vgg.VGG', which is not executed"),
      refused("of torch, but not known", global("torch.load"), "refers to 'torch.load'"),
      refused("a storage of nothing", global("torch.Storage"), "refers to 'torch.Storage'"),
      refused("a storage without a class", global("torch.uint16Storage"),
              "refers to 'torch.uint16Storage'"),
      refused("an OrderedDict of another", global("builtins.OrderedDict"),
              "refers to 'builtins.OrderedDict'"),
      refused("a name that is no line", "cos\r\nsys\x1b\n", "refers to 'os\\x0d.sys\\x1b'"),
      refused("STOP with nothing", "", "takes a value that is not on the stack (at byte 2)"),
      refused("STOP with two", "NN", "ends with more than one value (at byte 4)"),
      refused("STOP with a mark", "N(", "takes a value that is not on the stack"),
      refused("STOP behind a mark", "(N", "ends with more than one value"),
      refused("a tuple of too little", "N\x86", "takes a value that is not on the stack (at byte"),
      refused("a tuple below the mark", "N(N\x86", "takes a value that is not on the stack"),
      refused("a tuple without a mark", "Nt", "takes a mark that is not there (at byte 3)"),
      refused("items without a mark", "}u", "takes a mark that is not there"),
      refused("items without a dict", "(u", "takes a value that is not on the stack"),
      refused("memo of nothing", "q\x01", "takes a value that is not on the stack"),
      refused("a dangling memo", "h\x05", "takes value 5 from the memo, which has none there"),
      refused("a hole in the memo", "Nq\x05h\x04", "takes value 4 from the memo"),
      refused("a dangling far memo", "j" + number(UINT32_MAX, 4),
              "takes value 4294967295 from the memo"),
      refused("a memo far off", "Nr" + number(UINT32_MAX, 4),
              "memoises value 4294967295, more than the 300000 that are allowed"),
      refused("append to a dict", "}Na", "appends to what is not a list (at byte 4)"),
      refused("append many to a tuple", ")(NNe", "appends to what is not a list"),
      refused("an item of a list", "]NNs", "sets an item of what is not a dict (at byte 5)"),
      refused("items of None", "N(NNu", "sets an item of what is not a dict"),
      refused("a key without a value", "}(NNNu", "sets a key without a value (at byte 7)"),
      refused("a state for a list", "]}b", "gives a state to what has none (at byte 4)"),
      refused("a call of a text", text("os") + ")R", "calls what is not a global"),
      refused("a call with a list", global("torch.Size") + "]R", "calls with what is not a tuple"),
      refused("a call with nothing below", ")R", "takes a value that is not on the stack"),
      refused("an OrderedDict of a dict", global("collections.OrderedDict") + "}\x85R",
              "makes an OrderedDict of what is not a list of pairs"),
      refused("of two lists", global("collections.OrderedDict") + "]]\x86R", "not a list of pairs"),
      refused("of numbers", global("collections.OrderedDict") + list({"K\x01"}) + "\x85R",
              "not a list of pairs"),
      refused("of an empty list", global("collections.OrderedDict") + list({"]"}) + "\x85R",
              "not a list of pairs"),
      refused("of a pair in two steps",
              global("collections.OrderedDict") +
                  list({"]" + text("w") + "a" + pair + "a" + text("x") + "a"}) + "\x85R",
              "not a list of pairs"),
      refused(
          "of a pair and more",
          global("collections.OrderedDict") + list({list({text("w"), "N"}) + pair + "a"}) + "\x85R",
          "not a list of pairs"),
      refused("of threes",
              global("collections.OrderedDict") + list({tuple({"N", "N", "N"})}) + "\x85R",
              "not a list of pairs"),
      refused("a persistent id that is a text", text("0") + "Q",
              "has a persistent id that is not a tuple"),
  };
  for (const refusal& r : refusals) check_refused<torch_zip_reader>(folder, r);
}

TEST_CASE("an opcode that no state dict needs is refused with its place") {
  const test::temporary_folder folder;
  constexpr std::string_view known = "NKMJGXUc]}()taesuqrhjQRb.\x88\x89\x8A\x85\x86\x87";
  constexpr std::string_view digits = "0123456789abcdef";
  std::size_t refused = 0;
  for (unsigned opcode = 0; opcode < 256; ++opcode) {
    if (known.find(static_cast<char>(opcode)) != std::string_view::npos) continue;
    std::string message = "has opcode 0x";
    message += digits[opcode / 16];
    message += digits[opcode % 16];
    const std::string file =
        file_of(pickled(")" + std::string(1, static_cast<char>(opcode)) + repeated("\n.", 9)));
    const std::string said = message_of<format_error>([&] { (void)open_zip(folder, file); });
    INFO(said);
    CHECK(said.find(message) != std::string::npos);
    CHECK(said.ends_with(", which no state dict needs (at byte 3)"));
    ++refused;
  }
  CHECK(refused == 256 - 31);
}

namespace {

/// Runs `action`, which must take less than a second and 16 MiB of heap.
void check_frugal(const auto& action) {
  const auto begin = std::chrono::steady_clock::now();
  const std::size_t heap = heap_bytes;
  heap_peak = heap;
  action();
  CHECK(heap_peak - heap < std::size_t{16} << 20U);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1));
}

}  // namespace

TEST_CASE("a bomb is refused at once, and takes little memory") {
  const test::temporary_folder folder;
  constexpr std::size_t million = 1'000'000;
  std::string memo;
  std::string memo_and_stack;
  for (std::size_t i = 0; i < million; ++i) {
    memo += "r" + number(i, 4);
    memo_and_stack += "Nr" + number(i, 4);
  }
  const std::string wide = "](" + repeated("N", 60'000) + "e";
  std::string memo_in_lists = "]";
  for (std::size_t i = 0; i < million; ++i) {
    if (i % 1000 == 0) memo_in_lists += "(";
    memo_in_lists += "M\xE8\x03r" + number(i, 4);
    if (i % 1000 == 999) memo_in_lists += "e";
  }
  std::string large_integers = "]";
  for (std::size_t i = 0; i < million / 2; ++i) {
    if (i % 1000 == 0) large_integers += "(";
    large_integers += integer(INT64_MAX);
    if (i % 1000 == 999) large_integers += "e";
  }
  const std::string ending = "\xFF";  // what follows is refused for itself
  const std::vector<refusal> bombs{
      {"lists", repeated("]", million) + repeated("a", million), "has more than the 65536 values"},
      {"lists by marks", repeated("](", million), "nests deeper than the 100 levels"},
      {"marks", repeated("(", million), "nests deeper than the 100 levels"},
      {"tuples", "N" + repeated("\x85", million), "nests deeper than the 100 levels"},
      {"lists of themselves",
       "]q\x01" + repeated("h\x01"
                           "a",
                           million),
       "nests deeper than"},
      {"calls",
       "}q\x01" + repeated(global("torch.Size") + "h\x01\x85Rq\x01"
                                                  "b",
                           1000),
       "nests deeper than the 100 levels"},
      {"a memo without end", "N" + memo,
       "memoises value 300000, more than the 300000 that are allowed"},
      {"a memo without end, in lists", memo_in_lists,
       "memoises value 300000, more than the 300000"},
      {"a memo and a stack without end", memo_and_stack, "has more than the 65536 values"},
      {"values without end", "]" + repeated("(" + repeated("N", 60'000) + "e", 100),
       "has 780004 values, more than the 750000 that are allowed"},
      {"lists of lists", repeated(wide, 20), "values, more than the 750000 that are allowed"},
      {"numbers in a list", "](" + repeated(repeated("K\x01", 30'000) + "e(", 30) + ending,
       "values, more than the 750000 that are allowed"},
      {"large numbers", large_integers + ending, "values, more than the 750000 that are allowed"},
      {"as many values and as much of the memo as are allowed",
       "](" + repeated(repeated("N", 50'000) + "e(", 14) + memo.substr(0, 5 * 300'000) + ending,
       "takes a value that is not on the stack"},
      {"dicts that are dropped", "}" + repeated("}b", million), "values, more than the 750000"},
      {"a text of 4 MiB", text(std::string(std::size_t{4} << 20U, 'x')),
       "has more than the 4194304 bytes that are allowed"},
  };
  for (const refusal& bomb : bombs) {
    INFO(std::string(bomb.name));
    for (const bool legacy : {false, true}) {
      const std::string path =
          folder.write("file", legacy ? magic + version + system_info + pickled(bomb.file)
                                      : file_of(pickled(bomb.file)));
      std::string message;
      check_frugal([&] {
        if (legacy) {
          message = message_of<format_error>([&] { torch_legacy_reader{input_file(path)}; });
        } else {
          message = message_of<format_error>([&] { torch_zip_reader{input_file(path)}; });
        }
      });
      INFO(message);
      CHECK(message.find(bomb.message) != std::string::npos);
    }
  }
}

TEST_CASE("a pickle of more than 4 MiB is refused, not read") {
  const test::temporary_folder folder;
  const std::string path = folder.write(
      "file", magic + version + system_info + "\x80\x02X" + number(std::uint64_t{64} << 20U, 4));
  std::filesystem::resize_file(path, std::uint64_t{70} << 20U);
  check_frugal([&] {
    CHECK(message_of<format_error>([&] { torch_legacy_reader{input_file(path)}; })
              .ends_with("the pickle of the object has more than the 4194304 bytes that are "
                         "allowed"));
  });
}

TEST_CASE("what is shared by many takes no longer, and no more memory") {
  const test::temporary_folder folder;
  const std::string long_text(1'000'000, 'x');
  const auto message = [&]<class Reader>(std::type_identity<Reader>, const std::string& bytes) {
    const std::string path = folder.write("file", bytes);
    std::string said;
    check_frugal([&] { said = message_of<format_error>([&] { Reader{input_file(path)}; }); });
    return said;
  };
  constexpr std::type_identity<torch_zip_reader> in_zip;
  SUBCASE("a tensor of a high rank under many names") {
    const std::vector<std::int64_t> ones(64, 1);
    std::string root = "}" + text("a") + tensor(storage(2), 0, ones, ones) + "q\x01s";
    for (std::size_t i = 0; i < 19'000; ++i) root += "U\x03" + number(i, 3) + "h\x01s";
    CHECK(message(in_zip, file_of(pickled(root)))
              .ends_with(": with its 64 dims there are 131136 in all, more than the 131072 that "
                         "are allowed"));
  }
  SUBCASE("a tensor under very many names") {
    std::string root = "}" + text("a") + pair + "q\x01s";
    for (std::size_t i = 0; i < 20'000; ++i) root += "U\x03" + number(i, 3) + "h\x01s";
    CHECK(message(in_zip, file_of(pickled(root)))
              .ends_with(": the state dict has more than the 20000 tensors that are allowed"));
  }
  SUBCASE("a long name of many tensors") {
    CHECK(message(in_zip, file_of(pickled("}" + text("a") + pair + "q\x01s" + text(long_text) +
                                          "q\x02h\x01s" + repeated("h\x02h\x01s", 19'000))))
              .ends_with("xxx...' occurs twice"));
  }
  SUBCASE("a long key of many storages") {
    const std::string object = "}" + text("storage") + "q\x01" + "b" + global("torch.ByteStorage") +
                               "q\x02" + "b" + text(long_text) + "q\x03" + "b" +
                               repeated("N(h\x01h\x02h\x03NK\x02NtQs", 40'000);
    CHECK(message(std::type_identity<torch_legacy_reader>(),
                  magic + version + system_info + pickled(object) + legacy_keys)
              .ends_with("the object has a persistent id that is not that of a storage"));
  }
  SUBCASE("large metadata of many tensors") {
    std::string root =
        "}" + global("torch._utils._rebuild_tensor_v2") + "q\x02" + "b" +
        dict({text("conj"), "\x88", repeated("NN", 30'000)}) + "q\x03" + "b" +
        tuple({storage(2), integer(0), counts({2}), counts({1}), "\x89", ordered_dict, "h\x03"}) +
        "q\x04" + "b";
    for (std::size_t i = 0; i < 20'000; ++i) root += "U\x03" + number(i, 3) + "h\x02h\x04Rs";
    const std::string path = folder.write("file", file_of(pickled(root)));
    check_frugal([&] {
      const torch_zip_reader reader{input_file(path)};
      CHECK(reader.tensors().size() == 20'000);
      CHECK(reader.tensors()[0].foreign_dtype == "uint8.conj");
    });
  }
}

TEST_CASE("what a state dict and its tensors must not be, each with its message") {
  const test::temporary_folder folder;
  const auto root = [](const char* name, const std::string& value, const char* message) {
    return refusal{name, file_of(pickled(value)), message};
  };
  const auto bad = [](const char* name, const std::string& tensor, const char* message) {
    return refusal{name, file_with(tensor), message};
  };
  constexpr std::int64_t large = std::int64_t{1} << 62U;
  constexpr const char* form =
      "tensor 'w': it is not rebuilt from a storage, an offset, and sizes and strides of one rank "
      "up to 64, none of them negative";
  const std::string rebuild = global("torch._utils._rebuild_tensor");
  const std::vector<refusal> refusals{
      root("None", none, "it holds a single value, not a state dict"),
      root("a number", "K\x01", "it holds a single value, not a state dict"),
      root("a list of tensors", list({pair, pair}), "it holds a list, not a state dict"),
      root("a tuple of tensors", tuple({pair, pair}), "it holds a tuple, not a state dict"),
      root("a size", global("torch.Size") + ")\x85R", "it holds a single value, not a state"),
      root("a lone tensor", pair, "it holds a lone tensor, which has no name"),
      root("an empty dict", "}",
           "there are no tensors in the dict, nor a dict of some under "
           "'state_dict', 'model' or 'model_state_dict'; its keys are: none"),
      root("a dict of others",
           dict({text("epoch"), "K\x01", text("net\n"), dict({text("x"), pair})}),
           "its keys are: 'epoch', 'net\\x0a'"),
      root("many keys", dict({text("1"), none, text("2"),  none, text("3"), none, text("4"), none,
                              text("5"), none, text("6"),  none, text("7"), none, text("8"), none,
                              text("9"), none, text("10"), none}),
           "its keys are: '1', '2', '3', '4', '5', '6', '7', '8', ..."),
      root("no tensors in the nested dict",
           dict({text("state_dict"), dict({text("model"), dict({text("x"), none})})}),
           "there are no tensors in the dict, nor a dict of some under 'state_dict', 'model' or "
           "'model_state_dict'; its keys are: 'state_dict'"),
      root("a nested dict that contains itself", "}q\x01(" + text("model") + "h\x01u",
           "there are no tensors in the dict, nor"),
      root("two nested dicts of one name",
           dict({text("model"), dict({text("x"), pair}), text("model"), dict({text("y"), pair})}),
           "the key 'model' occurs twice"),
      root("a tensor twice", dict({text("w"), pair, text("v"), pair, text("w"), pair}),
           "tensor 'w' occurs twice"),
      root("a key that is a number", dict({"K\x01", pair}),
           "a tensor's key in the state dict is not a text"),
      bad("no arguments", rebuild + ")R", form),
      bad("three arguments", rebuild + tuple({storage(2), integer(0), counts({2})}) + "R", form),
      bad("no storage", rebuild + tuple({none, integer(0), counts({2}), counts({1})}) + "R", form),
      bad("a storage's id alone",
          tensor(tuple({text("storage"), global("torch.ByteStorage"), text("0"), text("cpu"),
                        integer(2)}),
                 0, {2}, {1}),
          form),
      bad("an id of another",
          tensor(tuple({text("module"), global("torch.ByteStorage"), text("0"), text("cpu"),
                        integer(2)}) +
                     "Q",
                 0, {2}, {1}),
          form),
      bad("an id of four",
          tensor(
              tuple({text("storage"), global("torch.ByteStorage"), text("0"), text("cpu")}) + "Q",
              0, {2}, {1}),
          form),
      bad("an empty id", tensor(")Q", 0, {2}, {1}), form),
      bad("a storage of no class",
          tensor(tuple({text("storage"), text("torch.ByteStorage"), text("0"), text("cpu"),
                        integer(2)}) +
                     "Q",
                 0, {2}, {1}),
          form),
      bad("a storage of a tensor's class", tensor(storage(2, "torch.ByteTensor"), 0, {2}, {1}),
          form),
      bad("a storage of an OrderedDict", tensor(storage(2, "collections.OrderedDict"), 0, {2}, {1}),
          form),
      bad("a key that is a number",
          tensor(tuple({text("storage"), global("torch.ByteStorage"), integer(0), text("cpu"),
                        integer(2)}) +
                     "Q",
                 0, {2}, {1}),
          form),
      bad("a storage of negative size", tensor(storage(-2), 0, {2}, {1}), form),
      bad("a negative offset", tensor(storage(2), -1, {2}, {1}), form),
      bad("a negative size", tensor(storage(2), 0, {-2}, {1}), form),
      bad("a negative stride", tensor(storage(2), 1, {2}, {-1}), form),
      bad("a short negative offset",
          rebuild + tuple({storage(256), "\x8A\x01\xFF", counts({1}), counts({1})}) + "R", form),
      bad("an id of seven", tensor(storage(2, "torch.ByteStorage", "0", {none, none}), 0, {2}, {1}),
          form),
      bad("an offset beyond 64 bits",
          rebuild +
              tuple({storage(2), "\x8A\x09" + std::string(9, '\x01'), counts({2}), counts({1})}) +
              "R",
          form),
      bad("an offset that is a text",
          rebuild + tuple({storage(2), text("0"), counts({2}), counts({1})}) + "R", form),
      bad("a size that is a list of texts",
          rebuild + tuple({storage(2), integer(0), list({text("2")}), counts({1})}) + "R", form),
      bad("a size that is a list of 65",
          rebuild + tuple({storage(2), integer(0), list(parts(65, integer(1))), counts({1})}) + "R",
          form),
      bad("a size that is a dict",
          rebuild + tuple({storage(2), integer(0), "}", counts({1})}) + "R", form),
      bad("a size of nothing",
          rebuild + tuple({storage(2), integer(0), global("torch.Size") + ")R", counts({1})}) + "R",
          form),
      bad("a size of a number",
          rebuild +
              tuple({storage(2), integer(0), global("torch.Size") + "K\x02\x85R", counts({1})}) +
              "R",
          form),
      bad("a size that is a parameter",
          rebuild +
              tuple({storage(2), integer(0),
                     global("torch._utils._rebuild_parameter") + counts({2}) + "\x85R",
                     counts({1})}) +
              "R",
          form),
      bad("a size that is True",
          rebuild + tuple({storage(2), integer(0), "\x88\x85", counts({1})}) + "R", form),
      bad("a stride too many", tensor(storage(2), 0, {2}, {1, 1}), form),
      bad("no stride", tensor(storage(2), 0, {2}, {}), form),
      bad("a rank of 65",
          tensor(storage(2), 0, std::vector<std::int64_t>(65, 1), std::vector<std::int64_t>(65, 1)),
          form),
      bad("a parameter of nothing", global("torch._utils._rebuild_parameter") + ")R", form),
      bad("a parameter of a number",
          global("torch._utils._rebuild_parameter") + tuple({integer(2)}) + "R", form),
      bad("no type",
          tensor(storage(2, "torch.storage.UntypedStorage"), 0, {2}, {1},
                 "torch._utils._rebuild_tensor_v3"),
          form),
      bad("a type that is none",
          global("torch._utils._rebuild_tensor_v3") +
              tuple({storage(2), integer(0), counts({2}), counts({1}), "\x89", ordered_dict,
                     global("torch.ByteStorage")}) +
              "R",
          form),
      bad("a tensor that was not built", global("torch.ByteTensor") + ")R", form),
      bad("a tensor built of three",
          global("torch.ByteTensor") + ")R" + tuple({storage(2), integer(0), counts({2})}) + "b",
          form),
      bad("a tensor built of a list",
          global("torch.ByteTensor") + ")R" +
              list({storage(2), integer(0), counts({2}), counts({1})}) + "b",
          form),
      bad("one element more", tensor(storage(2), 0, {3}, {1}),
          "tensor 'w': [3] from offset 0 in steps of [1] reaches element 3, but its storage has 2"),
      bad("an offset too far", tensor(storage(2), 1, {2}, {1}), "reaches element 3, but its"),
      bad("a scalar behind the end", tensor(storage(2), 2, {}, {}),
          "tensor 'w': [] from offset 2 in steps of [] reaches element 3"),
      bad("a stride too far", tensor(storage(2), 0, {2}, {2}), "reaches element 3"),
      bad("a scalar of nothing", tensor(storage(0), 0, {}, {}), "its storage has 0"),
      bad("a stride of 0 behind the end", tensor(storage(2), 2, {5}, {0}), "reaches element 3"),
      bad("sums beyond 64 bits",
          tensor(storage(2), large, {2, 2, 2, 2}, {large, large, large, large}),
          "reaches beyond 64 bits, but"),
      bad("products beyond 64 bits", tensor(storage(2), 0, {large, 2}, {large, 1}),
          "reaches beyond 64 bits, but"),
      bad("elements beyond 64 bits", tensor(storage(2), 0, {large, large}, {0, 0}),
          "tensor 'w': uint8 [4611686018427387904, 4611686018427387904] has more bytes than a "
          "64-bit number can count"),
      bad("elements beyond 64 bits, then none", tensor(storage(2), 0, {large, large, 0}, {0, 0, 0}),
          "has more bytes than a 64-bit number can count"),
      bad("bytes beyond 64 bits", tensor(storage(2, "torch.DoubleStorage"), 0, {large}, {0}),
          "its storage has 2 elements of float64, which are 16 bytes, but member"),
      bad("a storage beyond 64 bits", tensor(storage(large, "torch.DoubleStorage"), 0, {2}, {1}),
          "tensor 'w': its storage's 4611686018427387904 elements are more bytes than a 64-bit"),
      bad("a storage that is larger than its member", tensor(storage(3), 0, {2}, {1}),
          "tensor 'w': its storage has 3 elements of uint8, which are 3 bytes, but member "
          "'a/data/0' has 2"),
      bad("a storage that is smaller", tensor(storage(1), 0, {1}, {1}), "which are 1 bytes, but"),
      bad("a storage of wider elements", tensor(storage(2, "torch.HalfStorage"), 0, {2}, {1}),
          "2 elements of float16, which are 4 bytes, but member 'a/data/0' has 2"),
      bad("a storage that is not there", tensor(storage(2, "torch.ByteStorage", "1"), 0, {2}, {1}),
          "tensor 'w': the zip has no member 'a/data/1'"),
      bad("a view outside of its storage",
          tensor(storage(2, "torch.ByteStorage", "0", {tuple({text("v"), integer(1), integer(2)})}),
                 0, {1}, {1}),
          form),
      bad("a tensor outside of its view",
          tensor(storage(2, "torch.ByteStorage", "0", {tuple({text("v"), integer(1), integer(1)})}),
                 0, {2}, {1}),
          "reaches element 2, but its storage has 1"),
      bad("a view of two",
          tensor(storage(2, "torch.ByteStorage", "0", {tuple({none, none})}), 0, {2}, {1}), form),
      {"a wider type than the storage has",
       file_with(global("torch._utils._rebuild_tensor_v3") +
                     tuple({storage(3, "torch.storage.UntypedStorage"), integer(0), counts({2}),
                            counts({1}), "\x89", ordered_dict, global("torch.uint16")}) +
                     "R",
                 3),
       "tensor 'w': [2] from offset 0 in steps of [1] reaches element 2, but its storage has 1"},
  };
  for (const refusal& r : refusals) check_refused<torch_zip_reader>(folder, r);
}

TEST_CASE("what the zip around it must not be, each with its message") {
  const test::temporary_folder folder;
  const std::string good = pickled(dict({text("w"), pair}));
  const std::string bytes("\x01\x02");
  const std::array refusals{
      refusal{"nothing in it", test::zip({}), "the zip has no member '/data.pkl'"},
      refusal{"another zip", test::zip({{.name = "a/b", .stored = "x"}}),
              "the zip has no member 'a/data.pkl'"},
      refusal{"in another folder", zip_of_names({"a/b", "b/data.pkl"}),
              "the zip has no member 'a/data.pkl'"},
      refusal{
          "a deflated pickle",
          test::zip({test::deflated("a/data.pkl", good), {.name = "a/data/0", .stored = bytes}}),
          "member 'a/data.pkl' is deflated, but PyTorch's are stored as they are"},
      refusal{
          "a deflated storage",
          test::zip({{.name = "a/data.pkl", .stored = good}, test::deflated("a/data/0", bytes)}),
          "tensor 'w': member 'a/data/0' is deflated"},
      refusal{"big-endian",
              test::zip({{.name = "a/data.pkl", .stored = good},
                         {.name = "a/byteorder", .stored = "big"},
                         {.name = "a/data/0", .stored = bytes}}),
              "its byte order is 'big'; only 'little' can be read"},
      refusal{"a storage twice",
              test::zip({{.name = "a/data.pkl", .stored = good},
                         {.name = "a/data/0", .stored = bytes},
                         {.name = "a/data/0", .stored = bytes}}),
              "member 'a/data/0': it is in the zip twice"},
      refusal{"no zip", good, "the file is cut, or no zip"},
  };
  for (const refusal& r : refusals) check_refused<torch_zip_reader>(folder, r);
}

TEST_CASE("what a legacy file must not be, each with its message") {
  const test::temporary_folder folder;
  const std::string begin = magic + version + system_info;
  const auto with_storages = [&](const parts& storages, const std::string& keys) {
    parts items;
    for (const std::string& s : storages) {
      items.push_back(text("w" + std::to_string(items.size())));
      items.push_back(tensor(s, 0, {2}, {1}));
    }
    return begin + pickled(dict(items)) + pickled(keys);
  };
  const std::string seven = storage(2, "torch.ByteStorage", "7", {none});
  const std::string eight = storage(2, "torch.ByteStorage", "8", {none});
  std::string tar = "sys_info" + std::string(249, '\0') + "ustar" + std::string(250, '\0');
  const std::vector<refusal> refusals{
      {"another number", pickled("K\x01") + version, "does not begin with the magic number"},
      {"nothing", "", "does not begin with the magic number"},
      {"the first byte alone", "\x80", "does not begin with the magic number"},
      {"a tar", tar, "it is a tar, as the first PyTorch wrote it"},
      {"the magic number alone", magic,
       "the pickle of the protocol's version is cut: 1 bytes at byte 0 are past its end, 0"},
      {"protocol 4", "\x80\x04\x95" + number(13, 8) + magic.substr(2) + version,
       "the pickle of the magic number is of protocol 4; 2, torch.save's default, is read"},
      {"another version", magic + pickled("M\xEA\x03"), "protocol's version is 1002, not 1001"},
      {"a version that is none", magic + pickled("N"), "protocol's version is no number, not 1001"},
      {"no system", magic + version, "the pickle of the writer's system is cut"},
      {"a system that is none", magic + version + pickled("N"),
       "it does not say whether its writer's machine was little-endian"},
      {"a system without an order", magic + version + pickled(dict({text("x"), "\x88"})),
       "it does not say whether"},
      {"big-endian", magic + version + pickled(dict({text("little_endian"), "\x89"})),
       "its writer's machine was big-endian; only little-endian is read"},
      {"no object", begin, "the pickle of the object is cut"},
      {"a call of the shell", begin + pickled(global("posix.system") + text("x") + "\x85R"),
       "the pickle of the object refers to 'posix.system', which is not executed"},
      {"no keys", begin + legacy_object, "the pickle of the storages' keys is cut"},
      {"keys that are a text", begin + legacy_object + pickled(text("7")),
       "its storages' keys are not a list"},
      {"a key that is a number", begin + legacy_object + pickled(list({"K\x07"})),
       "a storage's key is not a text"},
      {"no storages", begin + legacy_object + legacy_keys, "storage '7': it is to begin at byte "},
      {"storages cut in the count", begin + legacy_object + legacy_keys + "1234567",
       "storage '7': it is to begin at byte "},
      {"storages cut in the bytes", begin + legacy_object + legacy_keys + number(2, 8) + "x",
       "storage '7': its 2 bytes from offset "},
      {"another count", begin + legacy_object + legacy_keys + number(3, 8) + "xyz",
       "storage '7': it has 3 elements where it lies, but 2 in the object"},
      {"a negative count", begin + legacy_object + legacy_keys + number(UINT64_MAX, 8) + "xyz",
       "storage '7': it has 18446744073709551615 elements where it lies"},
      {"a key that is not in the object",
       begin + legacy_object + pickled(list({text("8")})) + legacy_data,
       "storage '8': nothing in the object refers to it"},
      {"a key twice",
       begin + legacy_object + pickled(list({text("7"), text("7")})) + legacy_data + legacy_data,
       "storage '7': it is in the file twice"},
      {"a storage that is not in the file",
       with_storages({seven, eight}, list({text("7")})) + legacy_data,
       "tensor 'w2': its storage '8' is not in the file"},
      {"no keys at all", begin + legacy_object + pickled("]"),
       "tensor 'w': its storage '7' is not in the file"},
      {"one storage of two sizes",
       with_storages({seven, storage(3, "torch.ByteStorage", "7", {none})}, list({text("7")})) +
           legacy_data,
       "tensor 'w2': its storage '7' has 2 bytes, but 3 elements of uint8 are 3"},
      {"a storage beyond 64 bits",
       with_storages({storage(INT64_MAX, "torch.DoubleStorage", "7", {none})}, "]"),
       "storage '7': its 9223372036854775807 elements are more bytes than a 64-bit"},
      {"a large storage",
       with_storages({storage(INT64_MAX, "torch.ByteStorage", "7", {none})}, list({text("7")})) +
           number(INT64_MAX, 8),
       "storage '7': its 9223372036854775807 bytes from offset"},
      {"another persistent id", begin + pickled(tuple({text("module"), none}) + "Q") + legacy_keys,
       "the object has a persistent id that is not that of a storage"},
  };
  for (const refusal& r : refusals) check_refused<torch_legacy_reader>(folder, r);
}

TEST_CASE("a legacy file may hold views of storages, and storages that nobody lists") {
  const test::temporary_folder folder;
  const std::string view = tuple({text("9"), integer(1), integer(2)});
  const std::string object =
      dict({text("state_dict"),
            dict({text("v"), tensor(storage(4, "torch.ShortStorage", "7", {view}), 1, {1}, {1})}),
            text("optimizer"), tensor(storage(1, "torch.LongStorage", "6", {none}), 0, {1}, {1})});
  const std::string file = magic + version + system_info + pickled(object) +
                           pickled(list({text("6"), text("7")})) + number(1, 8) + number(99, 8) +
                           number(4, 8) + std::string("\x01\x02\x03\x04\x05\x06\x07\x08");
  const auto reader = open_legacy(folder, file);
  REQUIRE(reader.tensors().size() == 1);
  CHECK(reader.tensors()[0].dtype == dtype::i16);
  CHECK(bytes_of_tensor(reader, 0) == bytes({5, 6}));
  CHECK((*reader.view(0))[0] == std::byte{5});
  CHECK(reader.file_bytes() == file.size());

  const auto plain = open_legacy(
      folder, magic + version + system_info + legacy_object + legacy_keys + legacy_data);
  CHECK(bytes_of_tensor(plain, 0) == bytes({5, 6}));
  CHECK(plain.metadata().empty());
}

TEST_CASE("a view that repeats its elements too often is listed, but not read") {
  const test::temporary_folder folder;
  const auto reader = open_zip(
      folder, file_of(pickled(dict({text("much"), tensor(storage(2), 0, {16, 2}, {0, 1}),
                                    text("too much"), tensor(storage(2), 1, {33}, {0}),
                                    text("endless"), tensor(storage(2), 0, {INT64_MAX}, {0})}))));
  REQUIRE(reader.tensors().size() == 3);
  CHECK(bytes_of_tensor(reader, 0)[31] == std::byte{1});
  CHECK(reader.tensors()[1].bytes == 33);
  CHECK(reader.tensors()[2].bytes == INT64_MAX);
  std::array<std::byte, 1> part;
  std::array<std::byte, 2> two;
  for (const std::size_t tensor : {1U, 2U}) {
    CHECK_FALSE(reader.view(tensor));
    CHECK(message_of<unsupported_error>([&] {
            reader.read(tensor, 0, part);
          }).ends_with(" bytes are a view of only 2, and more than 16 times as many are not made"));
  }
  CHECK(message_of<error>([&] {
          reader.read(0, 31, two);
        }).find("tensor 'much' has 32 bytes, so 2 from offset 31 cannot be read") !=
        std::string::npos);
}

TEST_CASE("a file is told by its first bytes") {
  const test::temporary_folder folder;
  const auto told = [&](std::string_view bytes) {
    const input_file file(folder.write("file", bytes));
    std::array<std::byte, 64> buffer;
    const auto head = std::span(buffer).first(
        static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), buffer.size())));
    file.read_at(0, head);
    std::string formats;
    if (torch_zip_reader::matches(file, head)) formats += "zip";
    if (torch_legacy_reader::matches(file, head)) formats += "legacy";
    return formats;
  };
  CHECK(told(file_of("")) == "zip");
  // Packed anew, in another order, or cut: still meant to be one.
  CHECK(told(zip_of_names({"a/", "a/x", "a/data.pkl"})) == "zip");
  CHECK(told(file_of("").substr(0, 60)) == "zip");
  CHECK(told(zip_of_names({std::string(80, 'a') + "/data.pkl"}).substr(0, 130)) == "zip");
  CHECK(told(magic) == "legacy");
  CHECK(told(magic.substr(0, 14)).empty());
  CHECK(told("sys_info" + std::string(249, '\0') + "ustar").find("legacy") == 0);
  CHECK(told("sys_info" + std::string(249, '\0') + "usta").empty());
  CHECK(told("sys_info2" + std::string(248, '\0') + "ustar").empty());
  CHECK(told("").empty());
  CHECK(told("PK").empty());
  CHECK(told("PK\x03\x04").empty());
  CHECK(told(file_of("").substr(0, 35)).empty());
  CHECK(told(test::zip({})).empty());
  CHECK(told(zip_of_names({"data.pkl"})).empty());
  CHECK(told(zip_of_names({"x/config.json", "data.pkl"})).empty());
  CHECK(told(pickled("}")).empty());
}
