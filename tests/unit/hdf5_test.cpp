// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <zlib.h>

#include <hdf5.h>

#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/gguf_reader.hpp>
#include <vggload/io/hdf5_reader.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/keras_reader.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/load/checkpoint.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"
#include "../support/zip_text.hpp"

using namespace vggload;
using test::message_of;
using test::number;

namespace {

const std::string fixtures = FIXTURES "/hdf5/";
constexpr bool old_library = !H5_VERSION_GE(1, 14, 0);

using dims_list = std::vector<hsize_t>;

/// How a dataset is to be made.
struct making {
  hid_t type = H5T_IEEE_F32LE;
  dims_list dims = {4};
  dims_list chunk = {};  // empty: contiguous
  bool deflated = false;
  bool compact = false;
  bool growing = false;  // without a limit
  bool shuffled = false;
  bool summed = false;  // with a checksum
  std::optional<float> fill = {};
  std::vector<float> values = {};
};

hid_t make_dataset(hid_t file, const char* name, const making& what) {
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  const auto rank = static_cast<int>(what.dims.size());
  if (!what.chunk.empty()) H5Pset_chunk(creation, rank, what.chunk.data());
  if (what.shuffled) H5Pset_shuffle(creation);
  if (what.deflated) H5Pset_deflate(creation, 6);
  if (what.summed) H5Pset_fletcher32(creation);
  if (what.fill) H5Pset_fill_value(creation, H5T_NATIVE_FLOAT, &*what.fill);
  if (what.compact) H5Pset_layout(creation, H5D_COMPACT);
  const dims_list limits(what.dims.size(), H5S_UNLIMITED);
  const hid_t space =
      H5Screate_simple(rank, what.dims.data(), what.growing ? limits.data() : nullptr);
  const hid_t dataset =
      H5Dcreate2(file, name, what.type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  if (!what.values.empty()) {
    H5Dwrite(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, what.values.data());
  }
  H5Sclose(space);
  H5Pclose(creation);
  return dataset;
}

void add(hid_t file, const char* name, const making& what) {
  const hid_t dataset = make_dataset(file, name, what);
  REQUIRE(dataset >= 0);
  H5Dclose(dataset);
}

void add_group(hid_t parent, const char* name, const std::function<void(hid_t)>& fill) {
  const hid_t group = H5Gcreate2(parent, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  REQUIRE(group >= 0);
  fill(group);
  H5Gclose(group);
}

/// Puts a chunk into the file as it is, whatever the filters and the size say.
void add_chunk(hid_t file, const char* name, const making& what, const std::string& bytes,
               std::uint32_t skipped_filters = 0) {
  const hid_t dataset = make_dataset(file, name, what);
  const dims_list origin(what.dims.size(), 0);
  REQUIRE(H5Dwrite_chunk(dataset, H5P_DEFAULT, skipped_filters, origin.data(), bytes.size(),
                         bytes.data()) >= 0);
  H5Dclose(dataset);
}

std::string zlib_of(const std::string& bytes) {
  std::string out(::compressBound(bytes.size()), '\0');
  uLongf size = out.size();
  ::compress(reinterpret_cast<Bytef*>(out.data()), &size,
             reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  out.resize(size);
  return out;
}

/// Writes a file with libhdf5 in its oldest form; returns the path.
std::string write(const test::temporary_folder& folder, const std::function<void(hid_t)>& fill,
                  H5F_libver_t oldest = H5F_LIBVER_EARLIEST) {
  const std::string path = folder.file("file");
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, oldest, H5F_LIBVER_V110);
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  REQUIRE(file >= 0);
  fill(file);
  H5Fclose(file);
  H5Pclose(access);
  return path;
}

/// The file with the bytes at the one place where `from` stands replaced.
std::string patched(const test::temporary_folder& folder, const std::string& path,
                    const std::string& from, const std::string& to, std::size_t skip = 0) {
  std::string bytes = test::read_file(path);
  const std::size_t at = bytes.find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(bytes.find(from, at + 1) == std::string::npos);
  bytes.replace(at + skip, to.size(), to);
  return folder.write("file", bytes);
}

std::vector<float> counted(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

std::vector<float> floats_of(const auto& reader, std::size_t tensor) {
  std::vector<float> values(static_cast<std::size_t>(reader.tensors()[tensor].bytes / 4));
  reader.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

struct refusal {
  const char* name;
  std::function<void(hid_t)> fill;
  const char* message;  // a part of it
};

/// A tree of groups in which each level has the next one twice.
void add_lattice(hid_t file, unsigned levels, const std::string& name) {
  hid_t group = H5Gcreate2(file, "0", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  for (unsigned i = 1; i < levels; ++i) {
    const hid_t next =
        H5Gcreate2(group, (name + "a").c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_hard(next, ".", group, (name + "b").c_str(), H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(group);
    group = next;
  }
  H5Gclose(group);
}

}  // namespace

TEST_CASE("what h5py and Keras wrote is read as h5py reads it") {
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(fixtures)) {
    const std::string path = entry.path().string();
    if (!std::filesystem::exists(path + ".expected.json")) continue;
    if (path.ends_with(".keras")) {
      test::check_fixture(keras_reader(input_file(path)));
    } else {
      test::check_fixture(hdf5_reader(input_file(path)));
    }
    ++files;
  }
  CHECK(files == 18);
}

TEST_CASE("what is too new for libhdf5 is listed, and does not stop the others") {
  // The layout message of packed chunks has a new version in HDF5 2.0, a bool's type in 1.12, too.
  const hdf5_reader reader{input_file(fixtures + "latest_gzip.h5")};
  REQUIRE(reader.tensors().size() == 3);
  CHECK(reader.tensors()[0].shape == shape{4, 4});
  CHECK(reader.tensors()[1].shape == shape{64});
  const std::array gzip{"gzip", "F32"};
  const std::array mask{"mask", "BOOL"};
  std::size_t tensor = 0;
  for (const auto& [name, type] : {gzip, mask}) {
    if (H5_VERSION_GE(2, 0, 0)) {
      CHECK(dtype_name(reader.tensors()[tensor]) == type);
    } else {
      const std::string message =
          message_of<unsupported_error>([&] { reader.read(tensor, 0, {}); });
      INFO(message);
      CHECK(message.find("tensor '" + std::string(name) + "': its elements, '" + type +
                         " (too new for libhdf5 1.") != std::string::npos);
    }
    ++tensor;
  }
  // Another bool is read all the same; more of them, with other types, are in latest_types.h5.
  CHECK(test::read_in_windows(reader, 2, 3) ==
        std::vector{std::byte{1}, std::byte{0}, std::byte{1}, std::byte{0}});
}

TEST_CASE("what an HDF5 file must not be, each with its message") {
  const std::array refusals{
      refusal{"soft link",
              [](hid_t f) { H5Lcreate_soft("/x", f, "l\n", H5P_DEFAULT, H5P_DEFAULT); },
              "'l\\x0a' is a soft link; links are not followed"},
      refusal{"external link",
              [](hid_t f) {
                H5Lcreate_external("/etc/passwd", "/x", f, "l", H5P_DEFAULT, H5P_DEFAULT);
              },
              "'l' is an external link; links are not followed"},
      refusal{"link in a group",
              [](hid_t f) {
                add_group(f, "g", [](hid_t g) {
                  add(g, "a", {});
                  H5Lcreate_soft("a", g, "l", H5P_DEFAULT, H5P_DEFAULT);
                });
              },
              "'g/l' is a soft link"},
      refusal{"user-defined link",
              [](hid_t f) {
                H5L_class_t kind{};
                kind.version = H5L_LINK_CLASS_T_VERS;
                kind.id = static_cast<H5L_type_t>(100);
                kind.trav_func = [](auto...) -> hid_t { return -1; };
                H5Lregister(&kind);
                H5Lcreate_ud(f, "l", kind.id, "value", 5, H5P_DEFAULT, H5P_DEFAULT);
                H5Lunregister(kind.id);
              },
              "'l' is a user-defined link"},
      refusal{"elements in another file",
              [](hid_t f) {
                const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
                H5Pset_external(creation, "/etc/passwd", 0, 16);
                const hsize_t dim = 4;
                const hid_t space = H5Screate_simple(1, &dim, nullptr);
                H5Dclose(
                    H5Dcreate2(f, "a", H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
                H5Sclose(space);
                H5Pclose(creation);
              },
              "tensor 'a': its elements are in other files (external)"},
      refusal{"elements of another dataset",
              [](hid_t f) {
                const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
                const hsize_t dim = 4;
                const hid_t space = H5Screate_simple(1, &dim, nullptr);
                H5Pset_virtual(creation, space, "other.h5", "/a", space);
                H5Dclose(
                    H5Dcreate2(f, "a", H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
                H5Sclose(space);
                H5Pclose(creation);
              },
              "tensor 'a': its elements are those of other datasets (virtual)"},
      refusal{"a group in itself",
              [](hid_t f) {
                add_group(f, "g", [f](hid_t g) {
                  H5Lcreate_hard(f, "g", g, "g", H5P_DEFAULT, H5P_DEFAULT);
                });
              },
              "nests deeper than the 64 levels that are allowed"},
      refusal{"the root in a group",
              [](hid_t f) {
                add_group(f, "g", [f](hid_t g) {
                  H5Lcreate_hard(f, "/", g, "up", H5P_DEFAULT, H5P_DEFAULT);
                });
              },
              "nests deeper than the 64 levels that are allowed"},
      refusal{"2^39 groups", [](hid_t f) { add_lattice(f, 40, ""); },
              "more than the 32768 objects"},
      refusal{"2^13 groups with names like books",
              [](hid_t f) { add_lattice(f, 14, std::string(2000, 'n')); },
              "8388608 bytes of names that are allowed"},
      refusal{"a large header with 20,000 names",
              [](hid_t f) {
                const hid_t dataset = make_dataset(f, "a", {});
                const hsize_t count = 60'000;
                const hid_t space = H5Screate_simple(1, &count, nullptr);
                for (unsigned i = 0; i < 8; ++i) {
                  const std::string name = std::to_string(i);
                  H5Aclose(H5Acreate2(dataset, name.c_str(), H5T_STD_U8LE, space, H5P_DEFAULT,
                                      H5P_DEFAULT));
                }
                H5Sclose(space);
                H5Dclose(dataset);
                for (unsigned i = 0; i < 20'000; ++i) {
                  H5Lcreate_hard(f, "a", f, std::to_string(i).c_str(), H5P_DEFAULT, H5P_DEFAULT);
                }
              },
              "each as often as it has a name, have more bytes than the file and 33554432"},
      refusal{"gigabytes that were never written",
              [](hid_t f) { add(f, "a", {.dims = {1U << 30}}); },
              "tensor 'a': F32 [1073741824] has 4294967296 bytes, but only 0 are stored"},
      refusal{"the same in chunks",
              [](hid_t f) { add(f, "a", {.dims = {1U << 30}, .chunk = {1024}}); },
              "F32 [1073741824] has 4294967296 bytes, but only 0 are stored"},
      refusal{"the same but for one chunk",
              [](hid_t f) {
                add_chunk(f, "a", {.dims = {1U << 24}, .chunk = {1024}}, std::string(4096, 'x'));
              },
              "F32 [16777216] has 67108864 bytes, but only 4096 are stored"},
      refusal{"more than deflate can pack",
              [](hid_t f) {
                add_chunk(f, "a", {.dims = {1U << 24}, .chunk = {1024}, .deflated = true},
                          zlib_of(std::string(4096, 'x')));
              },
              "F32 [16777216] has 67108864 bytes, but only"},
      refusal{"more bytes than can be counted",
              [](hid_t f) {
                add(f, "a", {.dims = {1U << 31, 1U << 31, 1U << 31}, .chunk = {1, 1, 1}});
              },
              "tensor 'a': F32 [2147483648, 2147483648, 2147483648] has more bytes than 64 bits "
              "can count"},
      refusal{"a large chunk", [](hid_t f) { add(f, "a", {.chunk = {1U << 25}, .growing = true}); },
              "tensor 'a': its chunks are F32 [33554432], not some bytes of [4], up to 67108864"},
      refusal{"a large chunk of nothing",
              [](hid_t f) { add(f, "a", {.chunk = {1U << 19}, .growing = true}); },
              "tensor 'a': a chunk of it, F32 [524288] has 2097152 bytes, but only 0 are stored"},
      refusal{"a large chunk of little",
              [](hid_t f) {
                add_chunk(f, "a", {.chunk = {1U << 19}, .deflated = true, .growing = true},
                          zlib_of("little"));
              },
              "a chunk of it, F32 [524288] has 2097152 bytes, but only 14 are stored"},
  };
  const test::temporary_folder folder;
  for (const H5F_libver_t oldest : {H5F_LIBVER_EARLIEST, H5F_LIBVER_V110}) {
    for (const refusal& r : refusals) {
      INFO(std::string(r.name));
      const std::string path = write(folder, r.fill, oldest);
      const auto begin = std::chrono::steady_clock::now();
      const std::string message = message_of<format_error>([&] { hdf5_reader{input_file(path)}; });
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
      INFO(message);
      CHECK(message.starts_with(path + ": "));
      CHECK(message.find(r.message) != std::string::npos);
      CHECK(message.find('\n') == std::string::npos);
    }
  }
}

TEST_CASE("what is damaged is refused") {
  const test::temporary_folder folder;
  const auto message = [&](const std::string& path) {
    return message_of<format_error>([&] { hdf5_reader{input_file(path)}; });
  };
  const auto is_refused = [&](const std::string& path, const char* part) {
    const std::string text = message(path);
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
    CHECK(text.find('\n') == std::string::npos);
  };
  SUBCASE("no HDF5 file at all") {
    is_refused(folder.write("f", ""), ": no HDF5 signature is in the file's 0 bytes");
    is_refused(folder.write("f", std::string(600, 'x')), "no HDF5 signature");
    is_refused(folder.write("f", "\x89HDF\r\n\x1A\n"), "its offsets and lengths");
    is_refused(folder.write("f", "\x89HDF\r\n\x1A\n" + std::string(100, '\x08')),
               "the root group: its header at offset 578721382704613384 is damaged, ");
  }
  SUBCASE("the end is missing") {
    std::string bytes = test::read_file(fixtures + "official_2016.h5");
    bytes.pop_back();
    is_refused(folder.write("f", bytes), "as an HDF5 file: libhdf5 ");
    CHECK(message(folder.write("f", bytes)).find("truncated file") != std::string::npos);
  }
  SUBCASE("a payload outside the file") {
    hid_t offset_of = -1;
    std::uint64_t offset = 0;
    const std::string path = write(folder, [&](hid_t f) {
      offset_of = make_dataset(f, "a", {.values = counted(4)});
      offset = H5Dget_offset(offset_of);
      H5Dclose(offset_of);
    });
    const std::string place = number(offset, 8) + number(16, 8);
    const auto size = std::filesystem::file_size(path);
    const std::string part = "tensor 'a': its 16 bytes from offset " + std::to_string(size - 15) +
                             " on are not in the file's " + std::to_string(size);
    is_refused(patched(folder, path, place, number(size - 15, 8)),
               old_library ? part.c_str() : "object 'a': libhdf5 1.");
  }
  SUBCASE("a compact payload that is too short") {
    const std::string path = write(folder, [&](hid_t f) {
      add(f, "a", {.compact = true, .values = {1.5F, 2.5F, 3.5F, 4.5F}});
    });
    // Version 3, compact, 16 bytes.
    const std::string layout = number(3, 1) + number(0, 1) + number(16, 2);
    is_refused(patched(folder, path, layout, number(3, 1) + number(0, 1) + number(8, 2)),
               old_library ? "tensor 'a': F32 [4] needs 16 bytes, but 8 are stored" : "'a': ");
  }
  // The following made libhdf5 1.10 crash or fill the memory; the last one does so to 1.14, too.
  const char* const header = " is damaged, or too new for libhdf5 ";
  SUBCASE("a chunk without bytes") {
    const std::string path =
        write(folder, [](hid_t f) { add(f, "a", {.dims = {77}, .chunk = {55}}); });
    is_refused(patched(folder, path, number(55, 4) + number(4, 4), number(0, 4)), header);
  }
  SUBCASE("a chunk of another rank") {
    const std::string path = write(folder, [](hid_t f) {
      add(f, "a", {.dims = {77, 99}, .chunk = {55, 33}});
    });
    // Version 3, chunked, rank 3 with the elements' size.
    is_refused(patched(folder, path, number(3, 1) + number(2, 1) + number(3, 1), number(2, 1), 2),
               header);
  }
  SUBCASE("an enumeration with more values than are there") {
    const auto make = [](hid_t f) {
      const hid_t type = H5Tenum_create(H5T_STD_I8LE);
      const std::array<signed char, 2> values{0, 1};
      H5Tenum_insert(type, "FALSE", &values[0]);
      H5Tenum_insert(type, "TRUE", &values[1]);
      add(f, "a", {.type = type});
      H5Tclose(type);
    };
    const std::string path = write(folder, make);
    // Version 1, class 8, two members, one byte.
    const std::string type = number(0x18, 1) + number(2, 3) + number(1, 4);
    is_refused(patched(folder, path, type, number(0xFFFF, 2), 1), header);
    const std::string with_base = number(2, 3) + number(1, 4) + number(0x0810, 4) + number(1, 4);
    write(folder, make);
    is_refused(patched(folder, path, with_base,
                       number(2, 3) + number(1 << 20, 4) + number(0x0810, 4) + number(1 << 20, 4)),
               header);
  }
  SUBCASE("a fill value that is longer than its message, or shorter than an element") {
    const std::string fill = number(4, 4) + std::string("\x00\x50\x9A\x44", 4);
    std::size_t messages = 0;
    for (const H5F_libver_t oldest : {H5F_LIBVER_EARLIEST, H5F_LIBVER_V110}) {
      const std::string bytes = test::read_file(write(
          folder, [](hid_t f) { add(f, "a", {.fill = 1234.5F}); }, oldest));
      // The older form of the message may stand beside the newer one.
      for (std::size_t at = bytes.find(fill); at != std::string::npos;
           at = bytes.find(fill, at + 1)) {
        for (const std::uint64_t size : {0x7F000000U, 3U}) {
          std::string damaged = bytes;
          is_refused(folder.write("file", damaged.replace(at, 4, number(size, 4))), header);
        }
        ++messages;
      }
    }
    CHECK(messages == 3);
    write(
        folder, [](hid_t f) { add(f, "a", {.fill = 1234.5F}); }, H5F_LIBVER_V110);
    is_refused(patched(folder, folder.file("file"), fill, number(3, 4)), header);
  }
  SUBCASE("a filter's name without an end") {
    const std::string path =
        write(folder, [](hid_t f) { add(f, "a", {.chunk = {4}, .deflated = true}); });
    is_refused(patched(folder, path, std::string("deflate\0", 8), "deflates"), header);
  }
  SUBCASE("more filters than there are") {
    const std::string path =
        write(folder, [](hid_t f) { add(f, "a", {.chunk = {4}, .deflated = true}); });
    // Version 1, one filter, which is deflate.
    const std::string filters = number(0x0101, 8) + number(1, 2) + number(8, 2);
    is_refused(patched(folder, path, filters, number(0x2001, 2)), header);
  }
  SUBCASE("a link without a name") {
    const std::string path = write(folder, [](hid_t f) {
      // Links whose order is kept are messages of the group, and before version 2 have no checksum.
      const hid_t creation = H5Pcreate(H5P_GROUP_CREATE);
      H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED);
      const hid_t group = H5Gcreate2(f, "g", H5P_DEFAULT, creation, H5P_DEFAULT);
      add(group, "first", {});
      add(group, "second", {});
      H5Gclose(group);
      H5Pclose(creation);
    });
    CHECK(hdf5_reader(input_file(path)).tensors().size() == 2);
    is_refused(patched(folder, path, number(6, 1) + "second", number(0, 1)), header);
  }
  SUBCASE("a list of free places in a group's names that does not end") {
    const std::string path = write(folder, [](hid_t f) { add(f, "a", {}); });
    std::string bytes = test::read_file(path);
    const std::size_t heap = bytes.find("HEAP");
    REQUIRE(heap != std::string::npos);
    const auto free = static_cast<std::size_t>(detail::load_little_endian<std::uint64_t>(
        std::as_bytes(std::span(bytes)).subspan(heap + 16)));
    const auto names = static_cast<std::size_t>(detail::load_little_endian<std::uint64_t>(
        std::as_bytes(std::span(bytes)).subspan(heap + 24)));
    bytes.replace(names + free, 8, number(free, 8));
    is_refused(folder.write("file", bytes), "the root group: its header at offset 96 is damaged, ");
  }
}

TEST_CASE("offsets of four bytes are refused") {
  const test::temporary_folder folder;
  const std::string path = folder.file("file");
  const hid_t creation = H5Pcreate(H5P_FILE_CREATE);
  H5Pset_sizes(creation, 4, 4);
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, H5P_DEFAULT);
  add(file, "a", {.values = counted(4)});
  H5Fclose(file);
  H5Pclose(creation);
  CHECK(message_of<format_error>([&] { hdf5_reader{input_file(path)}; })
            .ends_with("its offsets and lengths are not of 8 bytes, as those of all writers of "
                       "today"));
}

TEST_CASE("chunks that are not what they should be are refused when they are read") {
  const test::temporary_folder folder;
  const making packed{.chunk = {4}, .deflated = true};
  const auto message = [&](const making& what, const std::string& chunk) {
    const std::string path = write(folder, [&](hid_t f) { add_chunk(f, "a", what, chunk); });
    const hdf5_reader reader{input_file(path)};
    const auto begin = std::chrono::steady_clock::now();
    const std::string text = message_of<format_error>([&] { floats_of(reader, 0); });
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1));
    CHECK(text.starts_with(path + ": tensor 'a': "));
    return text;
  };
  CHECK(message(packed, std::string(16, 'x'))
            .ends_with("a chunk of 16 deflated bytes is damaged: it does not unpack to 16"));
  CHECK(message(packed, zlib_of(std::string(15, 'x'))).find("does not unpack to 16") !=
        std::string::npos);
  CHECK(message(packed, zlib_of(std::string(17, 'x'))).find("does not unpack to 16") !=
        std::string::npos);
  const std::string whole = zlib_of(std::string(16, 'x'));
  CHECK(message(packed, whole.substr(0, whole.size() - 1)).find("does not unpack to 16") !=
        std::string::npos);
  // Without a filter: more bytes than a chunk has, and fewer.
  CHECK_FALSE(message({.chunk = {4}}, std::string(100, 'x')).empty());
  CHECK_FALSE(message({.chunk = {4}}, std::string(10'000, 'x')).empty());
  CHECK_FALSE(message({.chunk = {4}}, std::string(15, 'x')).empty());
  // Some hundred KiB that would unpack to some hundred MiB.
  const making large{.dims = {1U << 18}, .chunk = {1U << 18}, .deflated = true};
  std::string zeros;
  zeros.resize(300'000'000);
  CHECK(message(large, zlib_of(zeros)).find("does not unpack to 1048576") != std::string::npos);
  CHECK(message(packed, std::string(2000, 'x'))
            .ends_with("a chunk of 16 bytes is said to be packed into 2000"));
}

TEST_CASE("chunks behind which a filter did not work are taken as they are") {
  const test::temporary_folder folder;
  const std::vector<float> values = counted(4);
  const std::string bytes(reinterpret_cast<const char*>(values.data()), 16);
  const std::string path = write(
      folder, [&](hid_t f) { add_chunk(f, "a", {.chunk = {4}, .deflated = true}, bytes, 1); });
  CHECK(floats_of(hdf5_reader(input_file(path)), 0) == values);
}

TEST_CASE("a shuffle of other elements is a filter that is not known") {
  const test::temporary_folder folder;
  const std::string path = write(
      folder, [](hid_t f) { add(f, "a", {.chunk = {4}, .shuffled = true, .values = counted(4)}); });
  CHECK(floats_of(hdf5_reader(input_file(path)), 0) == counted(4));
  const std::string name("shuffle\0", 8);
  const hdf5_reader other(
      input_file(patched(folder, path, name + number(4, 4), name + number(2, 4))));
  CHECK(dtype_name(other.tensors()[0]) == "F32 through filter 2 (shuffle)");
  CHECK(other.tensors()[0].bytes == 16);
}

TEST_CASE("a file that becomes shorter is an error, never a signal") {
  const test::temporary_folder folder;
  const std::string path = write(folder, [](hid_t f) {
    add(f, "chunks", {.dims = {4096}, .chunk = {1024}, .values = counted(4096)});
    add(f, "whole", {.dims = {4096}, .values = counted(4096)});
  });
  const hdf5_reader reader{input_file(path)};
  REQUIRE(reader.tensors()[1].name == "whole");
  std::filesystem::resize_file(path, 1000);
  for (const std::size_t tensor : {0U, 1U}) {
    CHECK(message_of<io_error>([&] {
            floats_of(reader, tensor);
          }).find(path + ": the file ends at byte ") == 0);
  }
}

TEST_CASE("contiguous payloads are shown in place, others are not") {
  hdf5_reader reader(input_file(fixtures + "layouts_v110.h5"));
  const auto find = [&](std::string_view name) {
    const auto found = std::ranges::find(reader.tensors(), name, &tensor_info::name);
    REQUIRE(found != reader.tensors().end());
    return static_cast<std::size_t>(found - reader.tensors().begin());
  };
  const auto view = reader.view(find("contiguous"));
  REQUIRE(view);
  CHECK(view->size() == 5 * 7 * 4);
  CHECK(reader.view(find("empty, in chunks"))->empty());
  for (const char* const name : {"chunks", "compact", "gzip", "never written"}) {
    INFO(std::string(name));
    CHECK_FALSE(reader.view(find(name)));
  }
  CHECK(reader.tensors()[find("gzip")].sequential);
  CHECK(reader.tensors()[find("chunks")].sequential);
  CHECK_FALSE(reader.tensors()[find("contiguous")].sequential);

  const std::byte* const first = view->data();
  const std::size_t contiguous = find("contiguous");
  hdf5_reader moved = std::move(reader);
  CHECK(moved.view(contiguous)->data() == first);
  CHECK(moved.metadata().empty());
  CHECK(moved.file_bytes() == std::filesystem::file_size(fixtures + "layouts_v110.h5"));
  // Big-endian ones are turned around, so not shown.
  const hdf5_reader numbers(input_file(fixtures + "numbers_v110.h5"));
  for (std::size_t i = 0; i < numbers.tensors().size(); ++i) {
    const std::string& name = numbers.tensors()[i].name;
    const bool turned = (name[0] == '>' && name[2] != '1') || name == "big-endian scalar";
    INFO(name);
    CHECK(numbers.view(i).has_value() == !turned);
  }
}

TEST_CASE("a reading is a read of the same bytes, whatever the windows and the chunks") {
  const test::temporary_folder folder;
  const std::vector<dims_list> chunks{{1, 1, 1}, {5, 7, 9}, {1, 7, 9}, {1, 1, 9}, {2, 3, 4},
                                      {5, 1, 1}, {1, 7, 1}, {5, 7, 1}, {5, 1, 9}, {3, 7, 9}};
  const std::vector<float> values = counted(std::size_t{5} * 7 * 9);
  for (const dims_list& chunk : chunks) {
    const std::string path = write(folder, [&](hid_t f) {
      add(f, "a", {.dims = {5, 7, 9}, .chunk = chunk, .deflated = true, .values = values});
    });
    const hdf5_reader reader{input_file(path)};
    INFO(to_string(shape(std::vector<std::uint64_t>(chunk.begin(), chunk.end()))));
    CHECK(floats_of(reader, 0) == values);
    const auto whole = std::as_bytes(std::span(values));
    for (std::size_t begin = 0; begin < whole.size(); begin += 37) {
      for (const std::size_t size : {1U, 3U, 4U, 35U, 36U, 253U}) {
        std::vector<std::byte> part(std::min<std::size_t>(size, whole.size() - begin));
        reader.read(0, begin, part);
        CHECK(std::ranges::equal(part, whole.subspan(begin, part.size())));
      }
    }
  }
}

TEST_CASE("chunks as tall as the tensor are unpacked once for each band of rows") {
  // Rows of chunks of 8 MiB and, more than a band of 64 MiB holds, of 66 and 68 MiB.
  const test::temporary_folder folder;
  for (const dims_list& dims : {dims_list{2048, 1024}, {17408, 1000}, {2, 8704, 2048}}) {
    const std::size_t rows = dims[dims.size() - 2];
    const std::size_t columns = dims.back();
    const std::size_t planes = dims.size() == 3 ? dims[0] : 1;
    dims_list chunk(dims.size(), 2);
    chunk[chunk.size() - 2] = rows;
    chunk.back() = 16;
    const std::vector<float> values = counted(planes * rows * columns);
    for (const bool deflated : {false, true}) {
      if (deflated && rows > 2048) continue;
      INFO(rows);
      INFO(deflated);
      const std::string path = write(folder, [&](hid_t f) {
        add(f, "a", {.dims = dims, .chunk = chunk, .deflated = deflated, .values = values});
      });
      const hdf5_reader reader{input_file(path)};
      const auto whole = std::as_bytes(std::span(values));
      std::vector<std::byte> window(std::size_t{256} << 10U);
      const auto begin = std::chrono::steady_clock::now();
      bool same = true;
      for (std::size_t at = 0; at < whole.size(); at += window.size()) {
        const auto part = std::span(window).first(std::min(window.size(), whole.size() - at));
        reader.read(0, at, part);
        same = same && std::ranges::equal(part, whole.subspan(at, part.size()));
      }
      CHECK(same);
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
      reader.read(0, 4 * (columns * rows / 2 + 3), std::span(window).first(4000));
      CHECK(std::ranges::equal(std::span(window).first(4000),
                               whole.subspan(4 * (columns * rows / 2 + 3), 4000)));
    }
  }
}

TEST_CASE("what was never written costs nothing, and what would cost much is refused") {
  const test::temporary_folder folder;
  const auto seconds = [&](const std::function<void(hid_t)>& fill) {
    const std::string path = write(folder, fill);
    const auto begin = std::chrono::steady_clock::now();
    const hdf5_reader reader{input_file(path)};
    for (std::size_t i = 0; i < reader.tensors().size(); ++i) {
      const auto values = floats_of(reader, i);
      CHECK(std::ranges::count(values, 2.5F) == static_cast<std::ptrdiff_t>(values.size()));
    }
    return std::chrono::steady_clock::now() - begin;
  };
  const making tiny{.dims = {1U << 18}, .chunk = {1}, .fill = 2.5F};
  CHECK(seconds([&](hid_t f) {
          for (unsigned i = 0; i < 16; ++i) add(f, std::to_string(i).c_str(), tiny);
        }) < std::chrono::seconds(1));
  const auto message = [&](const std::function<void(hid_t)>& fill) {
    const std::string path = write(folder, fill);
    const auto begin = std::chrono::steady_clock::now();
    std::string text = message_of<format_error>([&] { hdf5_reader{input_file(path)}; });
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1));
    return text;
  };
  CHECK(message([&](hid_t f) {
          for (unsigned i = 0; i < 17; ++i) add(f, std::to_string(i).c_str(), tiny);
        })
            .ends_with("it and others have more than 16777216 bytes together, of which hardly any "
                       "are stored"));
  // One chunk of many was written.
  CHECK(message([&](hid_t f) {
          add_chunk(f, "a", tiny, std::string(4, 'x'));
        }).find("tensor 'a': its chunks of [1] are, with those of others, more than 6") !=
        std::string::npos);
  // Columns of 1.5 GiB, all zeros.
  CHECK(message([&](hid_t f) {
          const making tall{.dims = {1U << 17, 3000}, .chunk = {1U << 17, 100}, .deflated = true};
          const hid_t dataset = make_dataset(f, "a", tall);
          const std::string zeros = zlib_of(std::string(std::size_t{100} << 19U, '\0'));
          for (hsize_t column = 0; column < 3000; column += 100) {
            const dims_list origin{0, column};
            H5Dwrite_chunk(dataset, H5P_DEFAULT, 0, origin.data(), zeros.size(), zeros.data());
          }
          H5Dclose(dataset);
        }).find("would have to be unpacked more than 16 times to read it row by row") !=
        std::string::npos);
}

TEST_CASE("filters that are libhdf5's own, alone and together") {
  const test::temporary_folder folder;
  const std::vector<float> values = counted(60);
  for (unsigned bits = 0; bits < 8; ++bits) {
    making what{.dims = {6, 10}, .chunk = {4, 3}, .values = values};
    what.shuffled = (bits & 1U) != 0;
    what.deflated = (bits & 2U) != 0;
    what.summed = (bits & 4U) != 0;
    const std::string path = write(folder, [&](hid_t f) { add(f, "a", what); });
    CHECK(floats_of(hdf5_reader(input_file(path)), 0) == values);
  }
  // Behind its checksum, the chunk is not what it was. By hand: the words 1, 2, 3, and 4 give 10
  // and 1 + 3 + 6 + 10 = 20.
  const making summed{.dims = {2}, .chunk = {2}, .summed = true};
  const std::string words("\0\1\0\2\0\3\0\4", 8);
  const auto read = [&](const std::string& chunk) {
    const std::string path = write(folder, [&](hid_t f) { add_chunk(f, "a", summed, chunk); });
    const hdf5_reader reader{input_file(path)};
    std::string bytes(8, '\0');
    try {
      reader.read(0, 0, std::as_writable_bytes(std::span(bytes)));
    } catch (const format_error& e) {
      return std::string(e.what());
    }
    return bytes;
  };
  CHECK(read(words + number(20U << 16U | 10U, 4)) == words);
  // As HDF5 1.6.2 wrote it.
  CHECK(read(words + number(20U << 24U | 10U << 8U, 4)) == words);
  CHECK(read(words + number(20U << 16U | 11U, 4))
            .find("a chunk of 8 bytes does not have its "
                  "checksum") != std::string::npos);
  CHECK(read("xyz").find("a chunk of 3 bytes lacks its checksum") != std::string::npos);
  CHECK(read(words + words + number(0, 4)).find("does not have its checksum") != std::string::npos);
}

TEST_CASE("scaled elements that are damaged are refused when they are read") {
  const test::temporary_folder folder;
  const auto message = [&](const std::string& chunk) {
    const std::string path = write(folder, [&](hid_t f) {
      const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
      const hsize_t dim = 6;
      H5Pset_chunk(creation, 1, &dim);
      H5Pset_scaleoffset(creation, H5Z_SO_INT, 0);
      const hid_t space = H5Screate_simple(1, &dim, nullptr);
      const hid_t dataset =
          H5Dcreate2(f, "a", H5T_STD_U16LE, space, H5P_DEFAULT, creation, H5P_DEFAULT);
      const hsize_t origin = 0;
      H5Dwrite_chunk(dataset, H5P_DEFAULT, 0, &origin, chunk.size(), chunk.data());
      H5Dclose(dataset);
      H5Sclose(space);
      H5Pclose(creation);
    });
    const hdf5_reader reader{input_file(path)};
    std::string bytes(12, '\0');
    try {
      reader.read(0, 0, std::as_writable_bytes(std::span(bytes)));
    } catch (const format_error& e) {
      return std::string(e.what());
    }
    return bytes;
  };
  // By hand: 4 bits each, the smallest is 256; 0, 1, 2, 3, 4, and all bits, the fill value 0.
  const auto head = [](std::uint64_t bits, std::uint64_t number_bytes) {
    return number(bits, 4) + number(number_bytes, 1) + number(256, 8) + std::string(8, '\0');
  };
  CHECK(message(head(4, 8) + "\x01\x23\x4F") == std::string("\0\1\1\1\2\1\3\1\4\1\0\0", 12));
  CHECK(message(head(16, 8) + "abcdefghijkl") == "abcdefghijkl");
  CHECK(message(head(4, 8) + "\x01\x23")
            .find("a chunk of 6 scaled elements needs 24 bytes, but 23 "
                  "are in the file") != std::string::npos);
  CHECK(message("x").find("needs 21 bytes, but 1 are in the file") != std::string::npos);
  CHECK(message(head(17, 8) + std::string(100, 'x')).find("of 17 bits each is damaged") !=
        std::string::npos);
  CHECK(message(head(0xFFFFFFFF, 8)).find("of 4294967295 bits each is damaged") !=
        std::string::npos);
  CHECK(message(head(4, 9) + "abc").find("is damaged") != std::string::npos);
}

TEST_CASE("a type that has a name is no tensor") {
  const test::temporary_folder folder;
  for (const H5F_libver_t oldest : {H5F_LIBVER_EARLIEST, H5F_LIBVER_V110}) {
    const auto make = [](hid_t f) {
      const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
      H5Tcommit2(f, "type", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
      add(f, "a", {.type = type, .values = counted(4)});
      add(f, "b", {.type = type, .fill = 2.5F});
      H5Tclose(type);
    };
    const hdf5_reader reader{input_file(write(folder, make, oldest))};
    REQUIRE(reader.tensors().size() == 2);
    CHECK(reader.tensors()[0].dtype == dtype::f32);
    CHECK(floats_of(reader, 0) == counted(4));
    CHECK(floats_of(reader, 1) == std::vector<float>(4, 2.5F));
  }
}

TEST_CASE("a long row of chunks that are read again and again") {
  // More chunks than are kept, read in windows that cut them, from many tensors in turn.
  const test::temporary_folder folder;
  const std::vector<float> values = counted(std::size_t{64} * 40);
  const std::string path = write(folder, [&](hid_t f) {
    for (unsigned i = 0; i < 12; ++i) {
      add(f, std::to_string(i).c_str(),
          {.dims = {64, 40}, .chunk = {10, 3}, .deflated = true, .values = values});
    }
  });
  const hdf5_reader reader{input_file(path)};
  const auto whole = std::as_bytes(std::span(values));
  for (std::size_t begin = 0; begin < whole.size(); begin += 1000) {
    for (std::size_t tensor = 0; tensor < 12; ++tensor) {
      std::vector<std::byte> part(std::min<std::size_t>(1000, whole.size() - begin));
      reader.read(tensor, begin, part);
      CHECK(std::ranges::equal(part, whole.subspan(begin, part.size())));
    }
  }
}

TEST_CASE("reads from several threads and readers at once") {
  const std::string path = fixtures + "layouts_earliest.h5";
  const hdf5_reader shared{input_file(path)};
  std::vector<std::vector<std::byte>> expected;
  for (std::size_t i = 0; i < shared.tensors().size(); ++i) {
    expected.push_back(test::read_in_windows(shared, i, 1U << 20U));
  }
  std::array<bool, 4> same{};
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < same.size(); ++t) {
      threads.emplace_back([&, t] {
        bool all = true;
        for (int round = 0; round < 5; ++round) {
          const hdf5_reader own{input_file(path)};
          for (std::size_t i = 0; i < expected.size(); ++i) {
            const std::size_t tensor = (i + t * 3) % expected.size();
            all = all && test::read_in_windows(shared, tensor, 10 + t) == expected[tensor];
            all = all && test::read_in_windows(own, tensor, 64) == expected[tensor];
          }
        }
        same[t] = all;
      });
    }
  }
  CHECK(std::ranges::count(same, true) == 4);
}

TEST_CASE("an application's own handling of libhdf5's errors is left alone") {
  H5E_auto2_t before = nullptr;
  H5E_auto2_t after = nullptr;
  void* data = nullptr;
  H5Eget_auto2(H5E_DEFAULT, &before, &data);
  REQUIRE((before != nullptr));
  { const hdf5_reader reader{input_file(fixtures + "nothing.h5")}; }
  H5Eget_auto2(H5E_DEFAULT, &after, &data);
  CHECK((before == after));
  CHECK(H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL) == 0);
}

TEST_CASE("an HDF5 file is told by its signature, wherever that may be") {
  const test::temporary_folder folder;
  const auto matches = [&](const std::string& bytes) {
    return hdf5_reader::matches(input_file(folder.write("f", bytes)), {});
  };
  const std::string signature = "\x89HDF\r\n\x1A\n";
  CHECK(matches(signature));
  CHECK(matches(std::string(512, 'x') + signature));
  CHECK(matches(std::string(1024, 'x') + signature));
  CHECK(matches(std::string(8192, 'x') + signature));
  CHECK_FALSE(matches(""));
  CHECK_FALSE(matches(signature.substr(0, 7)));
  CHECK_FALSE(matches(std::string(256, 'x') + signature));
  CHECK_FALSE(matches(std::string(1536, 'x') + signature));
  CHECK_FALSE(matches("x" + signature));
  CHECK_FALSE(hdf5_reader::matches(input_file(fixtures + "keras_model.keras"), {}));
}

TEST_CASE("an HDF5 file in another file's payload does not make it one") {
  const test::temporary_folder folder;
  // Behind its user block of 1024 bytes.
  const std::string weights = test::read_file(fixtures + "user_block.h5").substr(1024);
  const auto padded = [](std::string begin, std::size_t bytes) {
    begin.resize(bytes, ' ');
    return begin;
  };
  const auto check = [&](const std::string& bytes, std::string_view format) {
    const std::string path = folder.write("f", bytes);
    INFO(format);
    CHECK(open_checkpoint<reader_list<hdf5_reader, keras_reader, npz_reader, gguf_reader,
                                      npy_reader, safetensors_reader>>(path)
              .format() == format);
    CHECK(open_checkpoint<reader_list<safetensors_reader, npy_reader, npz_reader, gguf_reader,
                                      keras_reader, hdf5_reader>>(path)
              .format() == format);
  };
  const std::string size = std::to_string(weights.size());
  std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': (" + size + ",), }";
  header = padded(header, 512 - 11) + "\n";
  check("\x93NUMPY\x01" + std::string(1, '\0') + number(header.size(), 2) + header + weights,
        "npy");
  header = padded(
      R"({"a":{"dtype":"U8","shape":[)" + size + R"(],"data_offsets":[0,)" + size + "]}}", 512 - 8);
  check(number(header.size(), 8) + header + weights, "safetensors");
  for (const std::size_t at : {512U, 4096U}) {
    const std::string name = "model.weights.h5";
    const std::string begin =
        test::zip({{.name = "x", .stored = ""}, {.name = name, .stored = ""}});
    const std::size_t head_bytes = begin.find(name) + name.size();
    const std::string zip = test::zip({{.name = "x", .stored = std::string(at - head_bytes, 'x')},
                                       {.name = name, .stored = weights}});
    REQUIRE(zip.find(weights) == at);
    check(zip, "keras");
  }
  // No tensors, a text as metadata: "GGUF", version 3, and one entry that is a string.
  const std::string key = number(1, 8) + "k" + number(8, 4);
  const std::string gguf = "GGUF" + number(3, 4) + number(0, 8) + number(1, 8) + key;
  const std::size_t pad = 512 - gguf.size() - 8;
  check(gguf + number(pad + weights.size(), 8) + std::string(pad, 'x') + weights, "gguf");
  // The first bytes of a pickle and of an ONNX file by torch.
  for (const std::string& begin :
       {std::string("\x80\x02}q\x01X"), std::string("\x08\x08\x12\x07pytorch")}) {
    const std::string bytes = padded(begin, 512) + weights;
    CHECK_FALSE(hdf5_reader::matches(input_file(folder.write("f", bytes)),
                                     std::as_bytes(std::span(bytes)).first(64)));
  }
  // A user block of zeros could be the length of a safetensors header.
  check(std::string(512, '\0') + weights, "hdf5");
  check(padded("a text", 2048) + weights, "hdf5");
}

namespace {

/// An attribute that is a list of texts of one length, or of any length each.
void add_texts(hid_t object, const char* name, const std::vector<std::string>& texts,
               std::size_t length = 0) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, length == 0 ? H5T_VARIABLE : length);
  const hsize_t count = texts.size();
  const hid_t space = H5Screate_simple(1, &count, nullptr);
  const hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  REQUIRE(attribute >= 0);
  std::vector<const char*> pointers;
  std::string fixed;
  for (const std::string& text : texts) {
    pointers.push_back(text.c_str());
    fixed += text + std::string(length == 0 ? 0 : length - text.size(), '\0');
  }
  const void* data = fixed.data();
  if (length == 0) data = pointers.data();
  if (count > 0) REQUIRE(H5Awrite(attribute, type, data) >= 0);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
}

/// Two layers and one without weights.
void add_keras_file(hid_t f, const std::vector<std::string>& layers,
                    const std::vector<std::string>& weights, std::size_t length) {
  add_texts(f, "layer_names", layers, length);
  add(f, "unlisted", {});
  add_group(f, "a", [&](hid_t g) {
    add(g, "k", {});
    add(g, "b", {});
    add_texts(g, "weight_names", weights, length);
  });
  add_group(f, "pool", [](hid_t g) { add_texts(g, "weight_names", {}); });
  add_group(f, "c", [&](hid_t g) {
    add(g, "k", {});
    add_texts(g, "weight_names", {"k"}, length);
  });
}

std::string list_in(const std::string& path) {
  const hdf5_reader reader{input_file(path)};
  return reader.metadata().empty() ? "none" : reader.metadata()[0].second;
}

}  // namespace

TEST_CASE("the attributes of Keras' old format list its weights") {
  CHECK(list_in(fixtures + "official_2016.h5") ==
        "block1_conv1/block1_conv1_W_1:0\nblock1_conv1/block1_conv1_b_1:0\n\n"
        "fc1/fc1_W_1:0\nfc1/fc1_b_1:0\n\n"
        "predictions/predictions_W_1:0\npredictions/predictions_b_1:0\n");
  const auto expected = [](const std::string& prefix) {
    std::string text;
    for (const std::string layer : {"block1_conv1", "fc1", "predictions"}) {
      const std::string path = prefix + layer + "/" + layer;
      text += (text.empty() ? "" : "\n") + path + "/kernel\n" + path + "/bias\n";
    }
    return text;
  };
  // Texts of one length, and of any length in a full model.
  CHECK(list_in(fixtures + "keras_classic.h5") == expected(""));
  CHECK(list_in(fixtures + "keras_model.h5") == expected("model_weights/"));
  CHECK(list_in(fixtures + "keras.weights.h5") == "none");

  const test::temporary_folder folder;
  for (const H5F_libver_t oldest : {H5F_LIBVER_EARLIEST, H5F_LIBVER_V110}) {
    const auto list = [&](const std::function<void(hid_t)>& fill) {
      return list_in(write(folder, fill, oldest));
    };
    for (const std::size_t length : {0U, 9U}) {
      CHECK(list([&](hid_t f) {
              add_keras_file(f, {"c", "pool", "a"}, {"k", "b"}, length);
            }) == "c/k\n\na/k\na/b\n");
      // Whatever leads nowhere, out of its group, or to the same place twice.
      const std::vector<std::vector<std::string>> wrong{
          {"k", "x"}, {"../c/k"}, {"/c/k"}, {"k", "k"}, {"./k"}, {"k", ""}, {"../a/k", "b"}};
      for (const auto& weights : wrong) {
        CHECK(list([&](hid_t f) { add_keras_file(f, {"a", "c"}, weights, length); }) == "none");
      }
      for (const std::vector<std::string>& layers : std::vector<std::vector<std::string>>{
               {"a", "x"}, {"a", "a"}, {"a", "unlisted"}, {"a", "."}, {"..", "a"}, {""}}) {
        CHECK(list([&](hid_t f) { add_keras_file(f, layers, {"k"}, length); }) == "none");
      }
      // In parts; one that is missing.
      const auto in_parts = [&](const char* last) {
        return list([&](hid_t f) {
          add_texts(f, "layer_names0", {"b"}, length);
          add_texts(f, last, {"a"}, length);
          for (const char* const name : {"a", "b"}) {
            add_group(f, name, [&](hid_t g) {
              add(g, "k", {});
              add_texts(g, "weight_names", {"k"}, length);
            });
          }
        });
      };
      CHECK(in_parts("layer_names1") == "b/k\n\na/k\n");
      CHECK(in_parts("layer_names2") == "none");
      CHECK(in_parts("layer_names") == "none");
    }
    CHECK(list([](hid_t f) {  // numbers
            const hsize_t count = 3;
            const hid_t space = H5Screate_simple(1, &count, nullptr);
            H5Aclose(H5Acreate2(f, "layer_names", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT));
            H5Sclose(space);
          }) == "none");
    // A layer without the attribute.
    CHECK(list([](hid_t f) {
            add_texts(f, "layer_names", {"a"}, 5);
            add_group(f, "a", [](hid_t g) { add(g, "k", {}); });
          }) == "none");
  }
}

TEST_CASE("two bytes without a meaning are BF16 where an attribute says so") {
  const test::temporary_folder folder;
  const auto type_of = [&](const std::vector<std::string>& names, std::size_t length) {
    const std::string path = write(folder, [&](hid_t f) {
      const hid_t type = H5Tcreate(H5T_OPAQUE, 2);
      const hid_t dataset = make_dataset(f, "a", {.type = type});
      if (!names.empty()) add_texts(dataset, "dtype", names, length);
      H5Dclose(dataset);
      H5Tclose(type);
    });
    return std::string(dtype_name(hdf5_reader(input_file(path)).tensors()[0]));
  };
  CHECK(type_of({"bfloat16"}, 0) == "BF16");
  CHECK(type_of({"bfloat16"}, 8) == "BF16");
  CHECK(type_of({"float16"}, 0) == "opaque");
  CHECK(type_of({"bfloat16", "bfloat16"}, 0) == "opaque");
  CHECK(type_of({}, 0) == "opaque");
}

TEST_CASE("lists of names that are damaged, or without end, do not count") {
  const test::temporary_folder folder;
  const std::string path = write(folder, [](hid_t f) {
    add_keras_file(f, {"a", "c"}, {"k", "b"}, 0);
  });
  const std::string good = test::read_file(path);
  CHECK(list_in(path) == "a/k\na/b\n\nc/k\n");
  const std::size_t heap = good.find("GCOL");
  REQUIRE(heap != std::string::npos);
  for (const std::size_t at : {heap, heap + 8, heap + 16, heap + 24}) {
    for (const std::uint64_t value :
         {std::uint64_t{0}, std::uint64_t{1} << 40U, ~std::uint64_t{0}}) {
      std::string damaged = good;
      damaged.replace(at, 8, number(value, 8));
      CHECK(list_in(folder.write("file", damaged)) == "none");
    }
  }
  // 4000 times one text of 60,000 bytes.
  const std::string long_name(60'000, 'n');
  write(folder, [&](hid_t f) {
    add_texts(f, "layer_names", std::vector<std::string>(4000, "n"));
    add_texts(f, "text", {long_name});
  });
  std::string bytes = test::read_file(path);
  const std::size_t text = bytes.find(long_name);
  REQUIRE(text != std::string::npos);
  const std::size_t its_heap = bytes.rfind("GCOL", text);
  const std::string first = number(1, 4) + number(bytes.find("GCOL"), 8);
  for (std::size_t at = 0; (at = bytes.find(first, at)) != std::string::npos; at += 16) {
    bytes.replace(at, 16, number(60'000, 4) + number(its_heap, 8) + number(1, 4));
  }
  const auto begin = std::chrono::steady_clock::now();
  CHECK(list_in(folder.write("file", bytes)) == "none");
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1));
}

TEST_CASE("weights in a zip are found where they are stored") {
  const test::temporary_folder folder;
  const auto head_of = [](const std::string& bytes) {
    return std::as_bytes(std::span(bytes)).first(std::min<std::size_t>(bytes.size(), 64));
  };
  const auto matches = [&](const std::string& bytes) {
    return keras_reader::matches(input_file(folder.write("f", bytes)), head_of(bytes));
  };
  const auto message = [&](const std::string& bytes) {
    return message_of<format_error>([&] { keras_reader{input_file(folder.write("f", bytes))}; });
  };
  const std::string weights = test::read_file(fixtures + "keras_classic.h5");
  const std::string good = test::zip({test::deflated("config.json", std::string(99, ' ')),
                                      {.name = "model.weights.h5", .stored = weights}});
  CHECK(matches(good));
  {
    const keras_reader reader(input_file(folder.write("f", good)));
    const hdf5_reader plain(input_file(fixtures + "keras_classic.h5"));
    CHECK(reader.format() == "keras");
    CHECK(reader.file_bytes() == good.size());
    REQUIRE(reader.tensors().size() == plain.tensors().size());
    for (std::size_t i = 0; i < plain.tensors().size(); ++i) {
      CHECK(floats_of(reader, i) == floats_of(plain, i));
      CHECK(std::ranges::equal(*reader.view(i), *plain.view(i)));
    }
  }
  CHECK(matches(test::read_file(fixtures + "keras_model.keras")));
  CHECK_FALSE(matches(weights));
  CHECK_FALSE(matches(test::zip({{.name = "x/model.weights.h5", .stored = weights}})));
  CHECK_FALSE(matches(good.substr(0, good.size() - 1)));

  const std::string packed = test::read_file(fixtures + "weights_deflated.keras");
  CHECK(matches(packed));
  CHECK(message(packed).ends_with(
      "member 'model.weights.h5' is deflated, so libhdf5 cannot read it in place: unpack it, or "
      "store it uncompressed as Keras does"));
  CHECK(message(test::zip({{.name = "x", .stored = "x"}}))
            .ends_with("member 'model.weights.h5' is not in the zip"));
  CHECK(message(test::zip({{.name = "model.weights.h5", .stored = "no HDF5"}}))
            .find("no HDF5 signature") != std::string::npos);
  // What is behind the member is no part of it.
  CHECK(message(test::zip(
                    {{.name = "model.weights.h5", .stored = weights.substr(0, weights.size() - 1)},
                     {.name = "x", .stored = std::string(100, 'x')}}))
            .find("truncated file") != std::string::npos);
}
