// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zlib.h>

#include <hdf5.h>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/hdf5_object_check.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/swap_bytes.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

namespace detail {

/// libhdf5 need not be built for threads, and its state is the process's: so is this lock on it.
inline std::mutex hdf5_mutex;

/// Held around all calls of libhdf5. Keeps it from printing its errors meanwhile.
class hdf5_lock {
 public:
  hdf5_lock() : lock_(hdf5_mutex) {
    H5Eget_auto2(H5E_DEFAULT, &print_, &print_data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  hdf5_lock(const hdf5_lock&) = delete;
  hdf5_lock& operator=(const hdf5_lock&) = delete;
  ~hdf5_lock() { H5Eset_auto2(H5E_DEFAULT, print_, print_data_); }

 private:
  std::scoped_lock<std::mutex> lock_;
  H5E_auto2_t print_ = nullptr;
  void* print_data_ = nullptr;
};

/// An owned identifier of libhdf5; negative where the call that should give it failed.
template <herr_t (*Close)(hid_t)>
class hdf5_handle {
 public:
  explicit hdf5_handle(hid_t id = H5I_INVALID_HID) noexcept : id_(id) {}
  hdf5_handle(hdf5_handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  hdf5_handle& operator=(hdf5_handle&& other) noexcept {
    hdf5_handle moved(std::move(other));
    std::swap(id_, moved.id_);
    return *this;
  }
  ~hdf5_handle() {
    if (id_ >= 0) Close(id_);
  }

  [[nodiscard]] hid_t get() const noexcept { return id_; }

 private:
  hid_t id_;
};

using hdf5_object = hdf5_handle<H5Oclose>;
using hdf5_dataset = hdf5_handle<H5Dclose>;
using hdf5_space = hdf5_handle<H5Sclose>;
using hdf5_type = hdf5_handle<H5Tclose>;
using hdf5_properties = hdf5_handle<H5Pclose>;

/// Where the signature is within a place: at 0, 512, 1024, 2048, ..., after a "user block".
template <class File>
[[nodiscard]] std::optional<std::uint64_t> find_hdf5_signature(const File& file, hdf5_place place) {
  constexpr std::string_view signature = "\x89HDF\r\n\x1A\n";
  for (std::uint64_t offset = 0; in_bounds(offset, signature.size(), place.bytes);
       offset = offset == 0 ? 512 : 2 * offset) {
    std::array<char, signature.size()> bytes;
    file.read_at(place.offset + offset, std::as_writable_bytes(std::span(bytes)));
    if (std::string_view(bytes.data(), bytes.size()) == signature) return offset;
  }
  return std::nullopt;
}

/// Whether a file begins as one of another format does, so that what looks like HDF5 further on is
/// a part of its payload and not an HDF5 file behind a user block.
template <class File>
[[nodiscard]] bool begins_another_format(const File& file, std::span<const std::byte> head) {
  const std::string begin = text_of(head);
  const std::string_view text(begin);
  for (const std::string_view magic : {"PK\3\4", "PK\5\6", "\x93NUMPY", "GGUF"}) {
    if (text.starts_with(magic)) return true;
  }
  if (text.size() < 9) return false;
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  // Pickles of protocol 2 to 5, as torch writes them.
  if (at(0) == 0x80 && at(1) >= 2 && at(1) <= 5) return true;
  // ONNX: its version, which comes first and is small, and then another field of a model.
  constexpr std::string_view model_fields = "\x12\x1A\x22\x28\x32\x3A\x42\x72\xA2\xCA";
  if (at(0) == 0x08 && at(1) < 0x20 && model_fields.find(text[2]) != std::string_view::npos)
    return true;
  // safetensors: the length of a header that is in the file and begins with a brace.
  const auto header_bytes = load_little_endian<std::uint64_t>(head);
  return header_bytes > 0 && in_bounds(8, header_bytes, file.size()) && text[8] == '{';
}

/// What libhdf5 reads from. It copies this; what changes is behind a pointer.
struct hdf5_source {
  struct state {
    std::exception_ptr error;  // why a read failed
    /// Of payloads, that may be read: libhdf5 is told a buffer, but not how long it is.
    std::size_t raw_bytes = no_limit;
    static constexpr std::size_t no_limit = std::numeric_limits<std::size_t>::max();
  };
  const mapped_file* file;
  hdf5_place place;
  state* now;
};

/// libhdf5's way to the bytes (a "virtual file driver"): through the descriptor that is open
/// anyway, from any offset on, for reading alone, and never past the end.
struct hdf5_driver : H5FD_t {
  hdf5_source source;
  haddr_t end_of_allocation;

  [[nodiscard]] static H5FD_class_t description() noexcept {
    H5FD_class_t driver{};
#ifdef H5FD_CLASS_VERSION
    driver.version = H5FD_CLASS_VERSION;
    driver.value = 511;  // the last of those that are free for use within a project
#endif
    driver.name = "vggload";
    driver.maxaddr = static_cast<haddr_t>(std::numeric_limits<std::int64_t>::max());
    driver.fc_degree = H5F_CLOSE_STRONG;
    driver.fapl_size = sizeof(hdf5_source);
    driver.open = open;
    driver.close = close;
    driver.cmp = compare;
    driver.get_eoa = [](const H5FD_t* file, H5FD_mem_t) { return self(file).end_of_allocation; };
    driver.set_eoa = set_end_of_allocation;
    driver.get_eof = [](const H5FD_t* file, H5FD_mem_t) -> haddr_t {
      return self(file).source.place.bytes;
    };
    driver.read = read;
    driver.write = [](H5FD_t*, H5FD_mem_t, hid_t, haddr_t, std::size_t, const void*) -> herr_t {
      return -1;
    };
    const std::array<H5FD_mem_t, H5FD_MEM_NTYPES> one_kind = H5FD_FLMAP_SINGLE;
    std::ranges::copy(one_kind, driver.fl_map);
    return driver;
  }

 private:
  [[nodiscard]] static const hdf5_driver& self(const H5FD_t* file) noexcept {
    return *static_cast<const hdf5_driver*>(file);
  }
  static H5FD_t* open(const char*, unsigned, hid_t properties, haddr_t) noexcept {
    const auto* source = static_cast<const hdf5_source*>(H5Pget_driver_info(properties));
    return source == nullptr ? nullptr : new (std::nothrow) hdf5_driver{{}, *source, 0};
  }
  static herr_t close(H5FD_t* file) noexcept {
    delete static_cast<hdf5_driver*>(file);
    return 0;
  }
  /// Whether two are the same file, whose state libhdf5 then shares.
  static int compare(const H5FD_t* a, const H5FD_t* b) noexcept {
    const std::less<> before;
    if (before(self(a).source.now, self(b).source.now)) return -1;
    return before(self(b).source.now, self(a).source.now) ? 1 : 0;
  }
  static herr_t set_end_of_allocation(H5FD_t* file, H5FD_mem_t, haddr_t end) noexcept {
    static_cast<hdf5_driver*>(file)->end_of_allocation = end;
    return 0;
  }
  static herr_t read(H5FD_t* file, H5FD_mem_t kind, hid_t, haddr_t offset, std::size_t count,
                     void* out) noexcept {
    const hdf5_source& source = self(file).source;
    if (!in_bounds(offset, count, source.place.bytes)) return -1;
    if (kind == H5FD_MEM_DRAW && source.now->raw_bytes != hdf5_source::state::no_limit) {
      if (count > source.now->raw_bytes) return -1;
      source.now->raw_bytes -= count;
    }
    try {
      source.file->read_at(source.place.offset + offset, {static_cast<std::byte*>(out), count});
    } catch (...) {
      source.now->error = std::current_exception();
      return -1;
    }
    return 0;
  }
};

/// Objects and bytes of names in a file; no writer of weights comes near.
inline constexpr std::size_t hdf5_max_objects = 32'768;
inline constexpr std::size_t hdf5_max_name_bytes = std::size_t{8} << 20U;
inline constexpr unsigned hdf5_max_depth = 64;
/// Of objects' headers, beside as many as the file has: an object may have many names.
inline constexpr std::uint64_t hdf5_max_header_bytes = std::uint64_t{32} << 20U;
/// A chunk is read as a whole.
inline constexpr std::uint64_t hdf5_max_chunk_bytes = std::uint64_t{64} << 20U;
/// Of a payload in chunks, as many rows are unpacked at a time as these hold: of the one that is
/// read, and at least of each that is read beside it; and of all of them together.
inline constexpr std::uint64_t hdf5_band_bytes = std::uint64_t{64} << 20U;
inline constexpr std::uint64_t hdf5_least_band_bytes = std::uint64_t{8} << 20U;
inline constexpr std::uint64_t hdf5_all_bands_bytes = std::uint64_t{128} << 20U;
/// How often a chunk may be unpacked, as a band does not hold all of its rows.
inline constexpr std::uint64_t hdf5_max_passes = 16;
/// Chunks to look for, beside one for each four bytes of the file.
inline constexpr std::uint64_t hdf5_few_chunks = 65'536;
/// How many bytes of a payload may come from one that is stored, if the payload is not small:
/// deflate gives 1032 at most. Without a filter only what was never written takes no space.
inline constexpr std::uint64_t hdf5_max_deflate_ratio = 1100;
inline constexpr std::uint64_t hdf5_max_ratio = 16;
inline constexpr std::uint64_t hdf5_small_bytes = std::uint64_t{1} << 20U;
/// And of all small ones together that are larger than that.
inline constexpr std::uint64_t hdf5_all_small_bytes = std::uint64_t{16} << 20U;
/// Big-endian elements that are read and turned around at a time.
inline constexpr std::uint64_t hdf5_turned_elements = 4096;

/// One HDF5 file, or a part of a file that is one, in the hands of libhdf5. All but the plain
/// getters must be called, and the object made and destroyed, under a `hdf5_lock`.
class hdf5_session {
 public:
  hdf5_session(hdf5_place place, input_file file)
      : file_(std::move(file)), source_{&file_, place, &state_} {
    skip_user_block();
    open_file();
    const hdf5_object root(check(H5Oopen(hdf5_.get(), "/", H5P_DEFAULT), "its root group"));
    std::string path;
    list_group(root.get(), path, 0);
    sort_by_path();
    list_keras_weights();
  }
  // libhdf5 has the address of what it reads from.
  hdf5_session(const hdf5_session&) = delete;
  hdf5_session& operator=(const hdf5_session&) = delete;

  [[nodiscard]] const mapped_file& file() const noexcept { return file_; }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return metadata_; }
  /// Where the payload begins in the file, if it lies there as it is to be.
  [[nodiscard]] std::optional<std::uint64_t> offset_of(std::size_t tensor) const noexcept {
    return payloads_[tensor].big_endian ? std::nullopt : payloads_[tensor].offset;
  }

  /// A window of a payload that does not lie in the file as it is to be.
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) {
    const payload& place = payloads_[tensor];
    const std::size_t element_bytes = bits_of(tensors_[tensor].dtype) / 8;
    if (place.never_written) return fill_with(place.fill, element_bytes, offset, out);
    if (place.offset) return read_turned(*place.offset, element_bytes, offset, out);
    const bool to_the_end = offset + out.size() == tensors_[tensor].bytes;
    open_tensor& from = open(tensor);
    while (!out.empty()) {
      if (offset < from.begin || offset - from.begin >= from.band.size()) load_band(from, offset);
      const auto left = std::span(from.band).subspan(static_cast<std::size_t>(offset - from.begin));
      const auto part = left.first(std::min(left.size(), out.size()));
      std::memcpy(out.data(), part.data(), part.size());
      offset += part.size();
      out = out.subspan(part.size());
    }
    if (!to_the_end) return;
    open_tensors_.pop_back();
    if (open_tensors_.empty()) packed_ = unpacked_ = chunk_ = {};
  }

 private:
  using coordinates = std::array<hsize_t, H5S_MAX_RANK>;

  /// How the rows of a payload in chunks are unpacked: so many of one axis at a time, all of the
  /// axes behind it and one of those before.
  struct band_plan {
    std::size_t axis = 0;
    std::uint64_t rows = 0;
    std::uint64_t row_bytes = 0;
    std::uint64_t passes = 0;  // so often a chunk is unpacked
  };
  using filter_values = std::array<unsigned, 20>;
  struct used_filter {
    H5Z_filter_t id;
    std::uint32_t skipped_by;  // the bit of a chunk's mask
  };
  /// Where a tensor's bytes come from.
  struct payload {
    std::optional<std::uint64_t> offset = {};  // in the file, if they lie there in one piece
    bool big_endian = false;
    bool chunked = false;
    bool never_written = false;
    std::array<std::byte, 8> fill = {};     // an element that was never written, little-endian
    std::vector<used_filter> filters = {};  // in the order in which the writer used them
    filter_values scale = {};               // of scaleoffset
    shape chunk = {};
    [[nodiscard]] bool has(H5Z_filter_t id) const {
      return std::ranges::find(filters, id, &used_filter::id) != filters.end();
    }
  };
  struct open_tensor {
    std::size_t tensor;
    hdf5_dataset dataset;
    band_plan plan;
    // The bytes of the payload that are there.
    std::uint64_t begin = 0;
    std::vector<std::byte> band = {};
  };
  struct link {
    std::string name;
    H5L_type_t type;
    std::uint64_t address = 0;  // of the object's header
  };
  struct link_list {
    hdf5_session* session;
    const std::string* path;  // of the group
    std::vector<link> links = {};
    std::exception_ptr error = nullptr;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": " + what);
  }
  [[noreturn]] void fail(const std::string& tensor, const std::string& what) const {
    fail("tensor " + in_quotes(tensor) + ": " + what);
  }

  [[noreturn]] void fail_header(const std::string& subject, std::uint64_t address) const {
    fail(subject + ": its header at offset " + std::to_string(address) +
         " is damaged, or too new for " + library());
  }

  /// Refuses a negative result: the file's own error if there is one, else libhdf5's.
  template <class Result>
  Result check(Result result, const std::string& subject) {
    if (result >= 0) return result;
    throw_read_error();
    std::string reason;
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_description, &reason);
    fail(subject + ": " + library() + " says " + in_quotes(reason));
  }
  template <class Result>
  Result check_tensor(Result result, const std::string& name) {
    if (result >= 0) return result;
    return check(result, "tensor " + in_quotes(name));
  }
  /// "libhdf5 1.10.8": a file can be fine and too new for it.
  [[nodiscard]] static std::string library() {
    unsigned major = 0;
    unsigned minor = 0;
    unsigned release = 0;
    H5get_libversion(&major, &minor, &release);
    return "libhdf5 " + std::to_string(major) + '.' + std::to_string(minor) + '.' +
           std::to_string(release);
  }
  void throw_read_error() {
    if (state_.error) std::rethrow_exception(std::exchange(state_.error, nullptr));
  }
  static herr_t first_description(unsigned index, const H5E_error2_t* entry, void* data) noexcept {
    try {
      if (index == 0 && entry->desc != nullptr) *static_cast<std::string*>(data) = entry->desc;
    } catch (...) {
      return -1;  // the message goes without
    }
    return 0;
  }

  [[nodiscard]] hdf5_object_check object_check() const {
    constexpr unsigned newest_type = H5_VERSION_GE(2, 0, 0) ? 5 : H5_VERSION_GE(1, 12, 0) ? 4 : 3;
    return {file_, source_.place, H5_VERSION_GE(2, 0, 0) ? 5U : 4U, newest_type};
  }

  /// libhdf5 is shown what is behind, and so all its addresses are from there.
  void skip_user_block() {
    const auto offset = find_hdf5_signature(file_, source_.place);
    if (!offset)
      fail("no HDF5 signature is in the file's " + std::to_string(file_.size()) + " bytes");
    source_.place = {source_.place.offset + *offset, source_.place.bytes - *offset};
    const hdf5_object_check check = object_check();
    const auto root = check.root();
    if (!root) fail("its offsets and lengths are not of 8 bytes, as those of all writers of today");
    header_bytes_left_ = hdf5_max_header_bytes + source_.place.bytes;
    if (!check.is_sound(*root, header_bytes_left_)) {
      fail_header("the root group", *root);
    }
    groups_.emplace("", *root);
  }

  void open_file() {
    const std::string subject = "as an HDF5 file";
    const H5FD_class_t description = hdf5_driver::description();
    const hdf5_handle<H5FDunregister> driver(check(H5FDregister(&description), subject));
    const hdf5_properties access(check(H5Pcreate(H5P_FILE_ACCESS), subject));
    check(H5Pset_driver(access.get(), driver.get(), &source_), subject);
    check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG), subject);
    // What is only listed needs no cache of chunks.
    check(H5Pset_cache(access.get(), 0, 0, 0, 0), subject);
    hdf5_ =
        hdf5_handle<H5Fclose>(check(H5Fopen("checkpoint", H5F_ACC_RDONLY, access.get()), subject));
  }

  void list_group(hid_t group, std::string& path, unsigned depth) {
    if (depth > hdf5_max_depth) {
      fail("group " + in_quotes(path) + " nests deeper than the " + std::to_string(hdf5_max_depth) +
           " levels that are allowed");
    }
    link_list list{this, &path};
    const herr_t result = H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, on_link, &list);
    if (list.error) std::rethrow_exception(list.error);
    check(result, "group " + in_quotes(path));
    const std::size_t path_bytes = path.size();
    for (const link& each : list.links) {
      if (!path.empty()) path += '/';
      path += each.name;
      list_object(group, each, path, depth);
      path.resize(path_bytes);
    }
  }

  static herr_t on_link([[maybe_unused]] hid_t group, const char* name, const H5L_info_t* info,
                        void* data) noexcept {
    auto& list = *static_cast<link_list*>(data);
    try {
      list.session->count_link(list.path->size() + std::strlen(name) + 1);
      link& each = list.links.emplace_back();
      each.name = name;
      each.type = info->type;
      if (each.type != H5L_TYPE_HARD) return 0;
#if H5_VERSION_GE(1, 12, 0)
      haddr_t address = HADDR_UNDEF;
      H5VLnative_token_to_addr(group, info->u.token, &address);
      each.address = address;
#else
      each.address = info->u.address;
#endif
    } catch (...) {
      list.error = std::current_exception();
      return -1;
    }
    return 0;
  }

  /// A group may be linked from many, and from within itself: so links are counted, not objects.
  void count_link(std::size_t name_bytes) {
    if (++links_ > hdf5_max_objects) {
      fail("more than the " + std::to_string(hdf5_max_objects) + " objects that are allowed");
    }
    name_bytes_ += name_bytes;
    if (name_bytes_ > hdf5_max_name_bytes) {
      fail("more than the " + std::to_string(hdf5_max_name_bytes) +
           " bytes of names that are allowed");
    }
  }

  void list_object(hid_t group, const link& each, std::string& path, unsigned depth) {
    if (each.type != H5L_TYPE_HARD) {
      fail(in_quotes(path) + " is " +
           (each.type == H5L_TYPE_SOFT       ? "a soft"
            : each.type == H5L_TYPE_EXTERNAL ? "an external"
                                             : "a user-defined") +
           " link; links are not followed");
    }
    if (each.name.empty() || each.name == "." || each.name.find('/') != std::string::npos) {
      fail(in_quotes(path) + " ends in " + in_quotes(each.name) + ", which is no name");
    }
    auto described = object_check().describe(each.address, header_bytes_left_);
    if (!described && header_bytes_left_ == 0) {
      fail("object " + in_quotes(path) +
           ": the headers up to it, each as often as it has a name, "
           "have more bytes than the file and " +
           std::to_string(hdf5_max_header_bytes));
    }
    if (!described) fail_header("object " + in_quotes(path), each.address);
    if (described->too_new) return list_too_new(*described, path);
    const hdf5_object object(
        check(H5Oopen(group, each.name.c_str(), H5P_DEFAULT), "object " + in_quotes(path)));
    switch (H5Iget_type(object.get())) {
      case H5I_GROUP:
        groups_.emplace(path, each.address);
        return list_group(object.get(), path, depth + 1);
      case H5I_DATASET: return list_dataset(object.get(), path, each.address);
      default: return;  // a named type
    }
  }

  [[noreturn]] void fail_virtual(const std::string& name) const {
    fail(name, "its elements are those of other datasets (virtual)");
  }
  [[noreturn]] void fail_external(const std::string& name) const {
    fail(name, "its elements are in other files (external)");
  }

  /// What this libhdf5 cannot open does not keep the others from being read. h5py's bool is so since
  /// HDF5 1.12 in files for it; it can be read where it lies in one piece.
  void list_too_new(hdf5_description& described, const std::string& name) {
    if (!described.is_dataset) return;  // a named type
    if (described.is_virtual) fail_virtual(name);
    if (described.is_external) fail_external(name);
    tensor_info info{name, dtype::opaque, shape(std::move(described.dims)), 0};
    if (described.has_no_place) info.shape = shape{0};
    payload place;
    if (described.place &&
        in_bounds(described.place->offset, described.place->bytes, source_.place.bytes)) {
      info.bytes = described.place->bytes;
      if (described.type == "BOOL" && info.shape.elements() == info.bytes) {
        info.dtype = dtype::boolean;
        place.offset = source_.place.offset + described.place->offset;
      }
    }
    if (described.type == "BOOL" && info.shape.elements() == 0U) {
      info.dtype = dtype::boolean;
      info.bytes = 0;
      place.offset = 0;
    }
    if (info.dtype == dtype::opaque) {
      info.foreign_dtype = std::move(described.type);
      if (described.is_number) info.foreign_dtype += " (too new for " + library() + ")";
    }
    tensors_.push_back(std::move(info));
    payloads_.push_back(std::move(place));
  }

  void list_dataset(hid_t dataset, const std::string& name, std::uint64_t header) {
    const hdf5_properties creation(check_tensor(H5Dget_create_plist(dataset), name));
    const H5D_layout_t layout = check_tensor(H5Pget_layout(creation.get()), name);
    if (layout == H5D_VIRTUAL) fail_virtual(name);
    if (check_tensor(H5Pget_external_count(creation.get()), name) > 0) fail_external(name);
    tensor_info info{name, dtype::opaque, read_shape(dataset, name), H5Dget_storage_size(dataset)};
    if (info.bytes > source_.place.bytes) {
      fail(name, "it is said to take " + std::to_string(info.bytes) + " bytes of the file's " +
                     std::to_string(source_.place.bytes));
    }
    const hdf5_type type(check_tensor(H5Dget_type(dataset), name));
    set_type(info, type.get(), header);
    payload place;
    set_filters(place, info, creation.get());
    if (info.dtype != dtype::opaque) {
      place.big_endian = bits_of(info.dtype) > 8 && H5Tget_order(type.get()) == H5T_ORDER_BE;
      set_pieces(place, info, dataset, creation.get(), layout);
      if (!place.offset) set_fill(place, info, creation.get(), type.get());
    }
    tensors_.push_back(std::move(info));
    payloads_.push_back(std::move(place));
  }

  [[nodiscard]] shape read_shape(hid_t dataset, const std::string& name) {
    const hdf5_space space(check_tensor(H5Dget_space(dataset), name));
    // A dataset without a place for any element.
    if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) return shape{0};
    std::array<hsize_t, H5S_MAX_RANK> dims;
    const int rank =
        check_tensor(H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr), name);
    return shape(std::vector<std::uint64_t>(dims.begin(), dims.begin() + rank));
  }

  /// Sets `dtype`, or `foreign_dtype` where the library cannot read such elements.
  void set_type(tensor_info& info, hid_t type, std::uint64_t header) {
    const std::size_t bytes = H5Tget_size(type);
    const H5T_class_t kind = H5Tget_class(type);
    if (kind == H5T_INTEGER || kind == H5T_FLOAT) {
      const hdf5_type little = in_little_endian(type);
      for (const auto& [dtype, id] : number_types()) {
        if (H5Tequal(little.get(), id.get()) > 0) info.dtype = dtype;
      }
      info.foreign_dtype = (kind == H5T_FLOAT ? "float" : "integer") + std::to_string(8 * bytes);
    } else if (kind == H5T_ENUM && is_bool(type)) {
      info.dtype = dtype::boolean;
    } else if (kind == H5T_OPAQUE && bytes == 2 && is_keras_bfloat16(header)) {
      info.dtype = dtype::bf16;
    } else {
      info.foreign_dtype = hdf5_class_name(static_cast<std::size_t>(kind));
    }
    if (info.dtype != dtype::opaque) info.foreign_dtype.clear();
  }

  /// Keras' bfloat16: h5py knows none, so the elements are two bytes without a meaning, and an
  /// attribute says it.
  [[nodiscard]] bool is_keras_bfloat16(std::uint64_t header) {
    const auto type = object_check().texts(header, "dtype", header_bytes_left_);
    return type && type->size() == 1 && type->front() == "bfloat16";
  }

  /// The number types that the library can read, all little-endian.
  [[nodiscard]] static std::array<std::pair<dtype, hdf5_type>, 12> number_types() {
    const auto copy = [](hid_t type) { return hdf5_type(H5Tcopy(type)); };
    const auto float16 = [](std::size_t exponent_bits, std::size_t bias) {
      hdf5_type type(H5Tcopy(H5T_IEEE_F32LE));
      const std::size_t mantissa_bits = 15 - exponent_bits;
      H5Tset_fields(type.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
      H5Tset_size(type.get(), 2);
      H5Tset_ebias(type.get(), bias);
      return type;
    };
    return {{{dtype::u8, copy(H5T_STD_U8LE)},
             {dtype::i8, copy(H5T_STD_I8LE)},
             {dtype::u16, copy(H5T_STD_U16LE)},
             {dtype::i16, copy(H5T_STD_I16LE)},
             {dtype::u32, copy(H5T_STD_U32LE)},
             {dtype::i32, copy(H5T_STD_I32LE)},
             {dtype::u64, copy(H5T_STD_U64LE)},
             {dtype::i64, copy(H5T_STD_I64LE)},
             {dtype::f16, float16(5, 15)},
             {dtype::bf16, float16(8, 127)},
             {dtype::f32, copy(H5T_IEEE_F32LE)},
             {dtype::f64, copy(H5T_IEEE_F64LE)}}};
  }

  /// A number type with its bytes turned around if need be.
  [[nodiscard]] static hdf5_type in_little_endian(hid_t type) {
    hdf5_type copy(H5Tcopy(type));
    if (H5Tget_order(type) == H5T_ORDER_BE) H5Tset_order(copy.get(), H5T_ORDER_LE);
    return copy;
  }

  /// Whether this is how h5py writes a bool: one byte, FALSE 0 and TRUE 1.
  [[nodiscard]] static bool is_bool(hid_t type) {
    if (H5Tget_size(type) != 1 || H5Tget_nmembers(type) != 2) return false;
    constexpr std::array<std::string_view, 2> names{"FALSE", "TRUE"};
    for (unsigned i = 0; i < 2; ++i) {
      const std::unique_ptr<char, herr_t (*)(void*)> name(H5Tget_member_name(type, i),
                                                          H5free_memory);
      unsigned char value = 0xFF;
      if (name == nullptr || names[i] != name.get()) return false;
      if (H5Tget_member_value(type, i, &value) < 0 || value != i) return false;
    }
    return true;
  }

  /// Elements behind other filters than those that h5py's users choose ("gzip", "shuffle",
  /// "fletcher32", "scaleoffset") are opaque.
  void set_filters(payload& place, tensor_info& info, hid_t creation) {
    const int count = check_tensor(H5Pget_nfilters(creation), info.name);
    for (unsigned i = 0; i < static_cast<unsigned>(count) && info.dtype != dtype::opaque; ++i) {
      std::array<char, 64> name{};
      filter_values values{};
      std::size_t value_count = values.size();
      unsigned flags = 0;
      const H5Z_filter_t filter =
          check_tensor(H5Pget_filter2(creation, i, &flags, &value_count, values.data(),
                                      name.size() - 1, name.data(), nullptr),
                       info.name);
      const bool known =
          (filter == H5Z_FILTER_SHUFFLE && i == 0 && values[0] == bits_of(info.dtype) / 8) ||
          (filter == H5Z_FILTER_SCALEOFFSET && count == 1 && is_known_scale(info, values)) ||
          filter == H5Z_FILTER_DEFLATE || filter == H5Z_FILTER_FLETCHER32;
      if (known && !place.has(filter)) {
        place.filters.push_back({filter, std::uint32_t{1} << i});
        if (filter == H5Z_FILTER_SCALEOFFSET) place.scale = values;
      } else {
        info.foreign_dtype = std::string(name_of(info.dtype)) + " through filter " +
                             std::to_string(filter) + " (" + name.data() + ")";
        info.dtype = dtype::opaque;
      }
    }
  }

  /// Whether these are the numbers with which libhdf5 packs such elements: integers less their
  /// smallest, and floats rounded to some decimal digits.
  [[nodiscard]] static bool is_known_scale(const tensor_info& info, const filter_values& values) {
    constexpr unsigned integers = 2;  // kinds of scale
    constexpr unsigned decimal = 0;
    const bool floating = info.dtype == dtype::f32 || info.dtype == dtype::f64;
    if (is_floating(info.dtype) != floating || info.dtype == dtype::boolean) return false;
    return values[0] == (floating ? decimal : integers) && values[3] == (floating ? 1 : 0) &&
           values[4] == bits_of(info.dtype) / 8 && values[7] <= 1;
  }

  /// Sets `bytes` and `sequential` and how the payload is read; checks all numbers that this
  /// depends on.
  void set_pieces(payload& place, tensor_info& info, hid_t dataset, hid_t creation,
                  H5D_layout_t layout) {
    const std::uint64_t stored = std::exchange(info.bytes, 0);
    const auto type_and_shape = [&](const shape& value) {
      return std::string(name_of(info.dtype)) + " " + to_string(value);
    };
    const auto bytes = bytes_of(info.dtype, info.shape);
    if (!bytes) {
      fail(info.name, type_and_shape(info.shape) + " has more bytes than 64 bits can count");
    }
    info.bytes = *bytes;
    if (*bytes == 0) {
      place = {0};
      return;
    }
    const haddr_t offset = layout == H5D_CONTIGUOUS ? H5Dget_offset(dataset) : HADDR_UNDEF;
    if ((layout == H5D_COMPACT || offset != HADDR_UNDEF) && stored < *bytes) {
      fail(info.name, type_and_shape(info.shape) + " needs " + std::to_string(*bytes) +
                          " bytes, but " + std::to_string(stored) + " are stored");
    }
    if (offset != HADDR_UNDEF) {
      if (!in_bounds(offset, *bytes, source_.place.bytes)) {
        fail(info.name, "its " + std::to_string(*bytes) + " bytes from offset " +
                            std::to_string(offset) + " on are not in the file's " +
                            std::to_string(source_.place.bytes));
      }
      place.offset = source_.place.offset + offset;
      if (!place.big_endian) return;
    }
    place.chunked = layout == H5D_CHUNKED;
    place.chunk = info.shape;
    const std::uint64_t ratio = place.has(H5Z_FILTER_DEFLATE) || place.has(H5Z_FILTER_SCALEOFFSET)
                                    ? hdf5_max_deflate_ratio
                                    : hdf5_max_ratio;
    const auto check_stored = [&, this](const char* what, const shape& value, std::uint64_t count) {
      if (count <= hdf5_small_bytes || count / ratio <= stored) return;
      fail(info.name, what + type_and_shape(value) + " has " + std::to_string(count) +
                          " bytes, but only " + std::to_string(stored) + " are stored");
    };
    check_stored("", info.shape, *bytes);
    if (*bytes / ratio > stored) small_bytes_ += *bytes;
    if (small_bytes_ > hdf5_all_small_bytes) {
      fail(info.name, "it and others have more than " + std::to_string(hdf5_all_small_bytes) +
                          " bytes together, of which hardly any are stored");
    }
    if (place.offset) return;
    place.never_written = layout == H5D_CONTIGUOUS || (place.chunked && stored == 0);
    if (place.chunked) {
      info.sequential = !place.never_written;
      coordinates dims;
      const int rank = check_tensor(H5Pget_chunk(creation, H5S_MAX_RANK, dims.data()), info.name);
      place.chunk = shape(std::vector<std::uint64_t>(dims.begin(), dims.begin() + rank));
      const auto chunk_bytes = bytes_of(info.dtype, place.chunk).value_or(0);
      if (place.chunk.rank() != info.shape.rank() || chunk_bytes == 0 ||
          chunk_bytes > hdf5_max_chunk_bytes) {
        fail(info.name, "its chunks are " + type_and_shape(place.chunk) + ", not some bytes of " +
                            to_string(info.shape) + ", up to " +
                            std::to_string(hdf5_max_chunk_bytes));
      }
      check_stored("a chunk of it, ", place.chunk, chunk_bytes);
      if (!place.never_written) check_cost(info, place);
    }
  }

  /// Whether the payload can be read with some memory and in some time.
  void check_cost(const tensor_info& info, const payload& place) {
    std::optional<std::uint64_t> count = 1;
    for (std::size_t axis = 0; axis < info.shape.rank() && count; ++axis) {
      count = checked_multiply(*count, chunks_along(info, place, axis));
    }
    // What is in the file takes some bytes there, if only of an index.
    const std::uint64_t most = hdf5_few_chunks + source_.place.bytes / 4;
    if (!count || *count > most - std::min(most, chunks_)) {
      fail(info.name, "its chunks of " + to_string(place.chunk) +
                          " are, with those of others, more than " + std::to_string(most) +
                          ", far more than the file's " + std::to_string(source_.place.bytes) +
                          " bytes can hold");
    }
    chunks_ += *count;
    if (plan_band(info, place, hdf5_band_bytes).passes > hdf5_max_passes) {
      fail(info.name, "its chunks of " + to_string(place.chunk) + " elements of " +
                          to_string(info.shape) +
                          " lie so that each would have to be unpacked more than " +
                          std::to_string(hdf5_max_passes) + " times to read it row by row");
    }
  }
  [[nodiscard]] static std::uint64_t chunks_along(const tensor_info& info, const payload& place,
                                                  std::size_t axis) {
    return (info.shape[axis] - 1) / place.chunk[axis] + 1;
  }

  /// The most rows, of one row of chunks, whose bytes are no more than these.
  [[nodiscard]] static band_plan plan_band(const tensor_info& info, const payload& place,
                                           std::uint64_t most_bytes) {
    const std::size_t rank = info.shape.rank();
    band_plan plan{0, 1, info.bytes, 1};
    for (std::size_t axis = 0; axis < rank; ++axis) {
      plan.axis = axis;
      plan.row_bytes /= info.shape[axis];
      const std::uint64_t rows = std::min(place.chunk[axis], info.shape[axis]);
      plan.rows = std::clamp<std::uint64_t>(most_bytes / plan.row_bytes, 1, rows);
      if ((rows > 1 && plan.row_bytes <= most_bytes) || axis + 1 == rank) {
        plan.passes *= (rows - 1) / plan.rows + 1;
        break;
      }
      // All of its rows that are in a chunk, one by one.
      plan.passes = checked_multiply(plan.passes, rows).value_or(UINT64_MAX);
    }
    return plan;
  }

  void set_fill(payload& place, const tensor_info& info, hid_t creation, hid_t type) {
    H5D_fill_value_t defined = H5D_FILL_VALUE_ERROR;
    check_tensor(H5Pfill_value_defined(creation, &defined), info.name);
    const std::size_t bytes = bits_of(info.dtype) / 8;
    if (defined == H5D_FILL_VALUE_UNDEFINED || H5Tget_size(type) != bytes) return;
    check_tensor(H5Pget_fill_value(creation, type, place.fill.data()), info.name);
    if (place.big_endian) swap_bytes(std::span(place.fill).first(bytes), bytes);
  }

  void sort_by_path() {
    std::vector<std::size_t> order(tensors_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto name = [this](std::size_t i) -> std::string_view { return tensors_[i].name; };
    std::ranges::sort(order, {}, name);
    const auto twice = std::ranges::adjacent_find(order, {}, name);
    if (twice != order.end()) fail(tensors_[*twice].name, "it is in the file twice");
    std::vector<tensor_info> tensors;
    std::vector<payload> payloads;
    tensors.reserve(order.size());
    payloads.reserve(order.size());
    for (const std::size_t i : order) {
      tensors.push_back(std::move(tensors_[i]));
      payloads.push_back(std::move(payloads_[i]));
    }
    tensors_ = std::move(tensors);
    payloads_ = std::move(payloads);
  }

  /// Keras' old format says by attributes which datasets are weights, and in which order: of the
  /// file or its group "model_weights" `layer_names`, and of each of these `weight_names`
  /// (keras/src/legacy/saving/legacy_h5_format.py). Both count if each name is that of a group or
  /// dataset here, once; otherwise the file is one like any other.
  void list_keras_weights() {
    for (const std::string_view prefix : {"", "model_weights"}) {
      const auto group = groups_.find(prefix);
      if (group == groups_.end()) continue;
      if (auto list = keras_weights(prefix, group->second); list && !list->empty()) {
        metadata_.emplace_back("keras_weights", *std::move(list));
        return;
      }
    }
  }

  /// The datasets' names, a line each, and an empty line between layers.
  [[nodiscard]] std::optional<std::string> keras_weights(std::string_view prefix,
                                                         std::uint64_t group) const {
    const hdf5_object_check check = object_check();
    std::uint64_t bytes_left = 2 * hdf5_max_name_bytes;
    const auto layers = check.texts(group, "layer_names", bytes_left);
    if (!layers || has_duplicate(*layers)) return std::nullopt;
    std::vector<bool> listed(tensors_.size());
    std::string text;
    for (const std::string& layer : *layers) {
      std::string path(prefix);
      if (!path.empty()) path += '/';
      path += layer;
      const auto found = groups_.find(path);
      if (found == groups_.end()) return std::nullopt;
      const auto weights = check.texts(found->second, "weight_names", bytes_left);
      if (!weights) return std::nullopt;
      if (!weights->empty() && !text.empty()) text += '\n';
      for (const std::string& weight : *weights) {
        std::string name = path;
        name.append("/").append(weight);
        const auto tensor = std::ranges::lower_bound(tensors_, name, {}, &tensor_info::name);
        const auto index = static_cast<std::size_t>(tensor - tensors_.begin());
        if (tensor == tensors_.end() || tensor->name != name || listed[index] ||
            name.find('\n') != std::string::npos) {
          return std::nullopt;
        }
        listed[index] = true;
        text.append(name).append("\n");
      }
    }
    return text;
  }
  [[nodiscard]] static bool has_duplicate(std::vector<std::string> names) {
    std::ranges::sort(names);
    return std::ranges::adjacent_find(names) != names.end();
  }

  static void fill_with(const std::array<std::byte, 8>& element, std::size_t element_bytes,
                        std::uint64_t offset, std::span<std::byte> out) {
    if (std::ranges::count(std::span(element).first(element_bytes), element[0]) ==
        static_cast<std::ptrdiff_t>(element_bytes)) {
      std::ranges::fill(out, element[0]);
      return;
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = element[(offset + i) % element_bytes];
  }

  /// A window of big-endian elements that lie in one piece.
  void read_turned(std::uint64_t place, std::size_t element_bytes, std::uint64_t offset,
                   std::span<std::byte> out) {
    while (!out.empty()) {
      const std::uint64_t skip = offset % element_bytes;
      const std::uint64_t elements = std::min<std::uint64_t>(
          hdf5_turned_elements, (skip + out.size() + element_bytes - 1) / element_bytes);
      chunk_.resize(static_cast<std::size_t>(elements * element_bytes));
      file_.read_at(place + offset - skip, chunk_);
      swap_bytes(chunk_, element_bytes);
      const auto left = std::span(chunk_).subspan(static_cast<std::size_t>(skip));
      const auto part = left.first(std::min(left.size(), out.size()));
      std::ranges::copy(part, out.begin());
      offset += part.size();
      out = out.subspan(part.size());
    }
  }

  /// A tensor stays open, for its band, until it is read to its end; some threads may each be in one
  /// of their own. The one asked for becomes the last of the list.
  [[nodiscard]] open_tensor& open(std::size_t tensor) {
    constexpr std::size_t most = 16;
    const auto found = std::ranges::find(open_tensors_, tensor, &open_tensor::tensor);
    if (found != open_tensors_.end()) {
      std::rotate(found, found + 1, open_tensors_.end());
      return open_tensors_.back();
    }
    const tensor_info& info = tensors_[tensor];
    hdf5_dataset dataset(
        check_tensor(H5Dopen2(hdf5_.get(), info.name.c_str(), H5P_DEFAULT), info.name));
    const auto bytes_of_bands = [&, this] {
      std::uint64_t bytes = 0;
      for (const open_tensor& each : open_tensors_) bytes += each.plan.rows * each.plan.row_bytes;
      return bytes;
    };
    // What others leave; but not so little that it would be unpacked again and again.
    const std::uint64_t others = std::min(hdf5_band_bytes, bytes_of_bands());
    std::uint64_t most_bytes = std::max(hdf5_least_band_bytes, hdf5_band_bytes - others);
    band_plan plan = plan_band(info, payloads_[tensor], most_bytes);
    while (plan.passes > hdf5_max_passes && most_bytes < hdf5_band_bytes) {
      most_bytes *= 2;
      plan = plan_band(info, payloads_[tensor], most_bytes);
    }
    while (!open_tensors_.empty() &&
           (open_tensors_.size() == most ||
            bytes_of_bands() > hdf5_all_bands_bytes - plan.rows * plan.row_bytes)) {
      open_tensors_.erase(open_tensors_.begin());
    }
    open_tensors_.push_back({tensor, std::move(dataset), plan});
    return open_tensors_.back();
  }

  /// Unpacks the rows around a byte of the payload.
  void load_band(open_tensor& from, std::uint64_t offset) {
    const tensor_info& info = tensors_[from.tensor];
    const payload& place = payloads_[from.tensor];
    const std::size_t element_bytes = bits_of(info.dtype) / 8;
    from.begin = 0;
    from.band.clear();  // until it is there
    if (!place.chunked) {
      std::vector<std::byte> whole(static_cast<std::size_t>(info.bytes));
      read_whole(from, whole);
      if (place.big_endian) swap_bytes(whole, element_bytes);
      from.band = std::move(whole);
      return;
    }
    // From where on, and how many, in each axis.
    const std::size_t axis = from.plan.axis;
    coordinates start{};
    coordinates count{};
    std::uint64_t row = offset / from.plan.row_bytes;
    for (std::size_t i = axis + 1; i-- > 0;) {
      start[i] = row % info.shape[i];
      row /= info.shape[i];
      count[i] = 1;
    }
    const std::uint64_t first = start[axis] / place.chunk[axis] * place.chunk[axis];
    start[axis] -= (start[axis] - first) % from.plan.rows;
    count[axis] = std::min<std::uint64_t>(
        {from.plan.rows, first + place.chunk[axis] - start[axis], info.shape[axis] - start[axis]});
    for (std::size_t i = axis + 1; i < info.shape.rank(); ++i) count[i] = info.shape[i];
    std::uint64_t begin = 0;
    for (std::size_t i = 0; i <= axis; ++i) begin = begin * info.shape[i] + start[i];

    std::vector<std::byte> band = std::move(from.band);
    band.resize(static_cast<std::size_t>(count[axis] * from.plan.row_bytes));
    coordinates origin{};
    for (std::size_t i = 0; i <= axis; ++i) origin[i] = start[i] / place.chunk[i] * place.chunk[i];
    bool more = true;
    while (more) {
      unpack_into(from, origin, start, count, band);
      // The next chunk along the axes of which the band has all.
      more = false;
      for (std::size_t i = info.shape.rank(); i-- > axis + 1 && !more;) {
        origin[i] += place.chunk[i];
        more = origin[i] < info.shape[i];
        if (!more) origin[i] = 0;
      }
    }
    if (place.big_endian) swap_bytes(band, element_bytes);
    from.begin = begin * from.plan.row_bytes;
    from.band = std::move(band);
  }

  /// Copies what a chunk and a band have in common into the band.
  void unpack_into(const open_tensor& from, const coordinates& origin, const coordinates& start,
                   const coordinates& count, std::span<std::byte> band) {
    const tensor_info& info = tensors_[from.tensor];
    const payload& place = payloads_[from.tensor];
    const std::size_t element_bytes = bits_of(info.dtype) / 8;
    const auto chunk_bytes = static_cast<std::size_t>(*place.chunk.elements() * element_bytes);
    bool same = chunk_bytes == band.size();
    for (std::size_t i = 0; i < info.shape.rank(); ++i) {
      same = same && origin[i] == start[i] && count[i] == place.chunk[i];
    }
    if (!same) chunk_.resize(chunk_bytes);
    const std::span<std::byte> out = same ? band : std::span(chunk_);
    if (!read_chunk(from, origin, out)) {
      std::array<std::byte, 8> fill = place.fill;
      // All is turned around in the end.
      if (place.big_endian) swap_bytes(std::span(fill).first(element_bytes), element_bytes);
      fill_with(fill, element_bytes, 0, out);
    }
    if (same) return;
    std::vector<copied_axis> axes;
    std::size_t run = element_bytes;
    std::uint64_t in_chunk = element_bytes;
    std::uint64_t in_band = element_bytes;
    const std::byte* source = chunk_.data();
    std::byte* target = band.data();
    bool whole = true;  // the axes so far lie in both one after the other
    for (std::size_t i = info.shape.rank(); i-- > 0;) {
      const auto low = std::max<std::uint64_t>(origin[i], start[i]);
      const auto high = std::min<std::uint64_t>(origin[i] + place.chunk[i], start[i] + count[i]);
      source += (low - origin[i]) * in_chunk;
      target += (low - start[i]) * in_band;
      if (whole) {
        run *= static_cast<std::size_t>(high - low);
      } else if (high - low > 1) {
        axes.push_back({high - low, in_chunk, in_band});
      }
      in_chunk *= place.chunk[i];
      in_band *= count[i];
      whole = whole && in_chunk == in_band && run == in_band;
    }
    copy_box(source, target, axes, run);
  }
  struct copied_axis {
    std::uint64_t count;
    std::uint64_t source_stride;
    std::uint64_t target_stride;
  };
  static void copy_box(const std::byte* source, std::byte* target,
                       std::span<const copied_axis> axes, std::size_t run) {
    if (axes.empty()) {
      std::memcpy(target, source, run);
      return;
    }
    const copied_axis& axis = axes.back();
    for (std::uint64_t i = 0; i < axis.count; ++i) {
      copy_box(source + i * axis.source_stride, target + i * axis.target_stride,
               axes.first(axes.size() - 1), run);
    }
  }

  /// Reads and unpacks a chunk; libhdf5 only says where it is, as it does not check what it unpacks.
  /// False where the chunk was never written.
  bool read_chunk(const open_tensor& from, const coordinates& origin, std::span<std::byte> out) {
    const payload& place = payloads_[from.tensor];
    const std::string& name = tensors_[from.tensor].name;
    const hid_t dataset = from.dataset.get();
    hsize_t stored = 0;
#if H5_VERSION_GE(1, 10, 5)
    haddr_t place_in_file = HADDR_UNDEF;
    unsigned mask = 0;
    check_tensor(H5Dget_chunk_info_by_coord(dataset, origin.data(), &mask, &place_in_file, &stored),
                 name);
#else
    // An error, too, where the chunk was never written.
    if (H5Dget_chunk_storage_size(dataset, origin.data(), &stored) < 0) {
      throw_read_error();
      return false;
    }
#endif
    if (stored == 0) return false;
    // What deflate cannot make smaller it leaves almost as it is.
    if (stored > 2 * out.size() + 1024) {
      fail(name, "a chunk of " + std::to_string(out.size()) + " bytes is said to be packed into " +
                     std::to_string(stored));
    }
    packed_.resize(static_cast<std::size_t>(stored));
    std::uint32_t skipped_filters = 0;
    state_.raw_bytes = packed_.size();
#if H5_VERSION_GE(2, 0, 0)
    std::size_t packed_bytes = packed_.size();
    const herr_t result = H5Dread_chunk2(dataset, H5P_DEFAULT, origin.data(), &skipped_filters,
                                         packed_.data(), &packed_bytes);
#else
    const herr_t result =
        H5Dread_chunk(dataset, H5P_DEFAULT, origin.data(), &skipped_filters, packed_.data());
#endif
    const std::size_t missing = std::exchange(state_.raw_bytes, hdf5_source::state::no_limit);
    check_tensor(result, name);
    if (missing > 0) {
      fail(name, "a chunk of " + std::to_string(packed_.size()) + " bytes lacks " +
                     std::to_string(missing) + " in the file");
    }

    // The bytes behind each filter, as far as they are known: deflate's are what it makes of them.
    std::vector<used_filter> used;
    std::size_t bytes = out.size();
    std::size_t deflated_bytes = 0;
    for (const used_filter& each : place.filters) {
      if ((skipped_filters & each.skipped_by) != 0) continue;
      used.push_back(each);
      if (each.id == H5Z_FILTER_FLETCHER32) bytes += checksum_bytes;
      if (each.id == H5Z_FILTER_DEFLATE) deflated_bytes = bytes;
    }
    while (!used.empty()) {
      const H5Z_filter_t id = used.back().id;
      used.pop_back();
      if (id == H5Z_FILTER_FLETCHER32) {
        check_sum(name);
      } else if (id == H5Z_FILTER_SCALEOFFSET) {
        unscale(name, place, out, bits_of(tensors_[from.tensor].dtype) / 8);
        return true;  // it is the only one
      } else if (id == H5Z_FILTER_SHUFFLE) {
        check_unpacked(name, out.size());
        unshuffle(packed_, out, bits_of(tensors_[from.tensor].dtype) / 8);
        return true;  // it is the first that a writer uses
      } else if (used.empty()) {
        inflate_chunk(name, out);
        return true;
      } else {
        unpacked_.resize(deflated_bytes);
        inflate_chunk(name, unpacked_);
        packed_.swap(unpacked_);
      }
    }
    check_unpacked(name, out.size());
    std::ranges::copy(packed_, out.begin());
    return true;
  }

  void check_unpacked(const std::string& name, std::size_t bytes) const {
    if (packed_.size() == bytes) return;
    fail(name, "a chunk of " + std::to_string(bytes) + " bytes has " +
                   std::to_string(packed_.size()) + " in the file");
  }

  /// First come the first bytes of all elements, then all second ones, ...
  static void unshuffle(std::span<const std::byte> bytes, std::span<std::byte> out,
                        std::size_t element_bytes) {
    const std::size_t elements = out.size() / element_bytes;
    for (std::size_t i = 0; i < elements; ++i) {
      for (std::size_t byte = 0; byte < element_bytes; ++byte) {
        out[i * element_bytes + byte] = bytes[byte * elements + i];
      }
    }
  }

  /// What H5Zscaleoffset.c of libhdf5 packs: the bits of an element, the smallest of all, and from
  /// byte 21 on the elements less that, with so many bits each, the highest first. All bits set is
  /// the fill value, if there is one.
  void unscale(const std::string& name, const payload& place, std::span<std::byte> out,
               std::size_t element_bytes) const {
    constexpr std::size_t head_bytes = 21;
    const std::size_t elements = out.size() / element_bytes;
    const auto need = [&, this](std::size_t bytes) {
      if (packed_.size() >= bytes) return;
      fail(name, "a chunk of " + std::to_string(elements) + " scaled elements needs " +
                     std::to_string(bytes) + " bytes, but " + std::to_string(packed_.size()) +
                     " are in the file");
    };
    need(head_bytes);
    const little_endian_reader head(packed_);
    const std::size_t bits = head.u32(0);
    const std::uint64_t smallest = head.u64(5);
    if (bits > 8 * element_bytes || packed_[4] != std::byte{8} || place.scale[2] != elements) {
      fail(name, "a chunk of " + std::to_string(elements) + " scaled elements of " +
                     std::to_string(bits) + " bits each is damaged");
    }
    need(head_bytes + (elements * bits + 7) / 8);
    const auto packed = std::span(packed_).subspan(head_bytes);
    if (bits == 8 * element_bytes) {
      std::ranges::copy(packed.first(out.size()), out.begin());
      // Raw, in the byte order of the machine that wrote it.
      if (place.big_endian) swap_bytes(out, element_bytes);
      return;
    }
    const std::uint64_t all_set = (std::uint64_t{1} << bits) - 1;
    const std::uint64_t fill = std::uint64_t{place.scale[9]} << 32U | place.scale[8];
    const double scale = std::pow(10.0, static_cast<int>(place.scale[1]));
    const auto value_of = [&]<class Float, class Bits>(std::uint64_t value, Float, Bits) {
      const auto least = std::bit_cast<Float>(static_cast<Bits>(smallest));
      const Float sum = static_cast<Float>(value) / static_cast<Float>(scale) + least;
      return std::uint64_t{std::bit_cast<Bits>(sum)};
    };
    const bool floating = place.scale[3] == 1;
    std::size_t at = 0;
    for (std::size_t i = 0; i < elements; ++i) {
      std::uint64_t value = 0;
      for (std::size_t left = bits; left > 0;) {
        const std::size_t in_byte = std::min(left, 8 - at % 8);
        const auto byte = std::to_integer<std::uint64_t>(packed[at / 8]);
        value = value << in_byte | (byte >> (8 - at % 8 - in_byte) & ((1U << in_byte) - 1));
        at += in_byte;
        left -= in_byte;
      }
      if (place.scale[7] == 1 && value == all_set) {
        value = fill;
      } else if (!floating) {
        value += smallest;
      } else if (element_bytes == 4) {
        value = value_of(value, float{}, std::uint32_t{});
      } else {
        value = value_of(value, double{}, std::uint64_t{});
      }
      std::memcpy(&out[i * element_bytes], &value, element_bytes);
    }
    // All is turned around in the end.
    if (place.big_endian) swap_bytes(out, element_bytes);
  }

  /// Takes Fletcher's checksum off the end of `packed_` and compares it.
  void check_sum(const std::string& name) {
    if (packed_.size() < checksum_bytes) {
      fail(name, "a chunk of " + std::to_string(packed_.size()) + " bytes lacks its checksum");
    }
    const std::size_t bytes = packed_.size() - checksum_bytes;
    const auto stored = load_little_endian<std::uint32_t>(std::span(packed_).subspan(bytes));
    packed_.resize(bytes);
    const std::uint32_t sum = fletcher32(packed_);
    // HDF5 before 1.6.3 wrote both halves with their bytes turned around.
    const std::uint32_t turned = (sum & 0x00FF00FFU) << 8U | (sum >> 8U & 0x00FF00FFU);
    if (stored != sum && stored != turned) {
      fail(name, "a chunk of " + std::to_string(bytes) + " bytes does not have its checksum");
    }
  }

  /// `H5_checksum_fletcher32` of libhdf5: of big-endian words, modulo 65535.
  [[nodiscard]] static std::uint32_t fletcher32(std::span<const std::byte> bytes) {
    std::uint64_t first = 0;
    std::uint64_t second = 0;
    const auto fold = [](std::uint64_t sum) { return (sum & 0xFFFFU) + (sum >> 16U); };
    for (std::size_t i = 0; i < bytes.size(); i += 2) {
      const auto high = std::to_integer<std::uint32_t>(bytes[i]);
      const auto low = i + 1 < bytes.size() ? std::to_integer<std::uint32_t>(bytes[i + 1]) : 0U;
      first += high << 8U | low;
      second += first;
      if (i % 720 == 718) {
        first = fold(first);
        second = fold(second);
      }
    }
    while (first > 0xFFFFU) first = fold(first);
    while (second > 0xFFFFU) second = fold(second);
    return static_cast<std::uint32_t>(second << 16U | first);
  }

  /// Unpacks `packed_`.
  void inflate_chunk(const std::string& name, std::span<std::byte> out) const {
    uLongf unpacked = out.size();
    const int code = ::uncompress(reinterpret_cast<Bytef*>(out.data()), &unpacked,
                                  reinterpret_cast<const Bytef*>(packed_.data()), packed_.size());
    if (code == Z_MEM_ERROR) throw std::bad_alloc();
    if (code != Z_OK || unpacked != out.size()) {
      fail(name, "a chunk of " + std::to_string(packed_.size()) +
                     " deflated bytes is damaged: it does not unpack to " +
                     std::to_string(out.size()));
    }
  }

  /// Lets libhdf5 read what lies in the index itself (compact).
  void read_whole(const open_tensor& from, std::span<std::byte> out) {
    const tensor_info& info = tensors_[from.tensor];
    const hid_t dataset = from.dataset.get();
    const hdf5_type type(check_tensor(H5Dget_type(dataset), info.name));
    const hdf5_space space(check_tensor(H5Dget_space(dataset), info.name));
    if (H5Tget_size(type.get()) != bits_of(info.dtype) / 8 ||
        check_tensor(H5Sget_simple_extent_npoints(space.get()), info.name) !=
            static_cast<hssize_t>(*info.shape.elements())) {
      fail(info.name, "it is no longer what it was when the file was opened");
    }
    check_tensor(H5Dread(dataset, type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()),
                 info.name);
  }

  static constexpr std::size_t checksum_bytes = 4;  // of fletcher32

  mapped_file file_;
  hdf5_source::state state_;
  hdf5_source source_;
  hdf5_handle<H5Fclose> hdf5_;
  std::size_t links_ = 0;
  std::size_t name_bytes_ = 0;
  std::uint64_t header_bytes_left_ = 0;
  std::map<std::string, std::uint64_t, std::less<>> groups_;  // paths and headers' addresses
  std::vector<tensor_info> tensors_;
  std::vector<metadata_entry> metadata_;
  std::vector<payload> payloads_;
  std::vector<open_tensor> open_tensors_;
  std::uint64_t small_bytes_ = 0;  // of payloads that are larger than what is stored would allow
  std::uint64_t chunks_ = 0;
  std::vector<std::byte> packed_;  // a chunk on its way
  std::vector<std::byte> unpacked_;
  std::vector<std::byte> chunk_;
};

/// What the readers of HDF5 have in common.
class hdf5_reader_base {
 public:
  [[nodiscard]] const std::string& path() const noexcept { return session_->file().path(); }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return session_->file().size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept {
    return session_->tensors();
  }
  /// `keras_weights` where the attributes of Keras' old format say which datasets are weights: their
  /// names in the order of the layers, a line each and an empty line between two layers.
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept {
    return session_->metadata();
  }

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    check_window(path(), tensors()[tensor], offset, out.size());
    if (const auto place = session_->offset_of(tensor)) {
      session_->file().read_at(*place + offset, out);
    } else {
      const hdf5_lock lock;
      session_->read(tensor, offset, out);
    }
  }

  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    const auto place = session_->offset_of(tensor);
    if (!place) return std::nullopt;
    return session_->file().view(*place, tensors()[tensor].bytes);
  }

 protected:
  /// `place` must lie in the file.
  hdf5_reader_base(hdf5_place place, input_file file) {
    const hdf5_lock lock;
    session_.reset(new hdf5_session(place, std::move(file)));
  }

 private:
  struct close_under_lock {
    void operator()(hdf5_session* session) const {
      const hdf5_lock lock;
      delete session;
    }
  };
  std::unique_ptr<hdf5_session, close_under_lock> session_;
};

}  // namespace detail

/// Any HDF5 file, through libhdf5 (target `vggload::hdf5`): all its datasets, by path and without
/// the leading "/". Format: https://support.hdfgroup.org/documentation/hdf5/latest/_s_p_e_c.html.
///
/// - Integers of 8 to 64 bits, IEEE floats of 16 to 64 bits and bfloat16 in either byte order, and
///   the bool of h5py can be read, and Keras' bfloat16; all else is opaque. Scalars have the shape
///   [], and datasets without a place for elements (H5S_NULL) the shape [0].
/// - Contiguous little-endian payloads are read and shown where they lie, without libhdf5. The
///   others are gathered or unpacked by it; all readers of a process then wait for each other, and
///   so they do for opening and closing. An application that calls libhdf5 itself, from another
///   thread meanwhile, needs one that is built for threads (H5_HAVE_THREADSAFE).
/// - Keras' old format lists a network's weights in attributes; so does then `metadata()`, with the
///   entry `keras_weights`.
/// - Refused (`format_error`) are links other than hard ones, datasets in other files (external) or
///   in other datasets (virtual), groups in a circle, and payloads far larger than what is stored.
///
/// A model of `weight_reader`.
class hdf5_reader : public detail::hdf5_reader_base {
 public:
  /// Throws `io_error` and `format_error`.
  explicit hdf5_reader(input_file file) : hdf5_reader_base{{0, file.size()}, std::move(file)} {}

  /// Whether an HDF5 signature is where one may be: at 0 or, behind a user block, at 512, 1024, 2048,
  /// ... Another format's first bytes are no user block: any payload may hold an HDF5 file. Throws
  /// `io_error`.
  [[nodiscard]] static bool matches(const input_file& file, std::span<const std::byte> head) {
    return !detail::begins_another_format(file, head) &&
           detail::find_hdf5_signature(file, {0, file.size()}).has_value();
  }

  [[nodiscard]] std::string_view format() const noexcept { return "hdf5"; }
};

static_assert(weight_reader<hdf5_reader>);

}  // namespace vggload
