// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/inflate.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/swap_bytes.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/io/zip_archive.hpp>

namespace vggload {

namespace detail {

/// What the header of an array in NumPy's format says.
struct npy_header {
  vggload::dtype dtype = dtype::opaque;
  std::string foreign_dtype;
  std::uint64_t item_bytes = 0;
  /// Bytes that are to be turned round where the file is big-endian: an element's, or half of a
  /// complex one's. 1: as they are.
  std::size_t swapped_bytes = 1;
  bool any_size = false;  // what follows is not elements of one size
  bool column_major = false;
  vggload::shape shape;
  std::uint64_t data_offset = 0;
};

/// Reads the header's text: a Python literal, {'descr': '<f4', 'fortran_order': False, 'shape':
/// (3, 4), }. Format: NumPy Enhancement Proposal 1; `numpy.lib.format`.
class npy_header_parser {
 public:
  /// `where` stands before each message.
  npy_header_parser(std::string_view text, std::string where)
      : text_(text), where_(std::move(where)) {}

  [[nodiscard]] npy_header parse() {
    expect('{');
    while (!accept('}')) {
      const std::string key = parse_string();
      expect(':');
      parse_value(key);
      if (!accept(',') && peek() != '}') fail("a comma or a brace is missing");
    }
    if (peek() != '\0') fail("something follows it");
    if (fields_seen_ != (descr | fortran_order | shape_field)) {
      fail("it lacks 'descr', 'fortran_order' or 'shape'");
    }
    return std::move(header_);
  }

 private:
  enum field : unsigned { descr = 1, fortran_order = 2, shape_field = 4 };

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(where_ + ": its header is not NumPy's: " + what + " (byte " +
                       std::to_string(position_) + " of " + std::to_string(text_.size()) + ")");
  }

  /// The next character that is no blank; NUL at the end.
  char peek() {
    while (position_ < text_.size() &&
           (text_[position_] == ' ' || text_[position_] == '\n' || text_[position_] == '\t')) {
      ++position_;
    }
    return position_ < text_.size() ? text_[position_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c || c == '\0') return false;
    ++position_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(std::string("'") + c + "' is missing");
  }
  bool accept_word(std::string_view word) {
    peek();
    if (!text_.substr(position_).starts_with(word)) return false;
    position_ += word.size();
    return true;
  }

  std::string parse_string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail("a string is missing");
    const std::size_t end = text_.find(quote, ++position_);
    if (end == std::string_view::npos) fail("a string does not end");
    const std::string_view value = text_.substr(position_, end - position_);
    // No name of a field or type has an escape.
    if (value.find('\\') != std::string_view::npos) fail("a string has an escape");
    position_ = end + 1;
    return std::string(value);
  }

  void parse_value(const std::string& key) {
    const unsigned which = key == "descr"           ? descr
                           : key == "fortran_order" ? fortran_order
                           : key == "shape"         ? shape_field
                                                    : 0U;
    if (which == 0) fail("it has the unknown key " + in_quotes(key));
    if ((fields_seen_ & which) != 0) fail("the key " + in_quotes(key) + " occurs twice");
    fields_seen_ |= which;
    if (which == fortran_order) {
      header_.column_major = accept_word("True");
      if (!header_.column_major && !accept_word("False")) fail("fortran_order is no bool");
    } else if (which == shape_field) {
      parse_shape();
    } else if (peek() == '[') {
      skip_record();
    } else {
      read_type(parse_string());
    }
  }

  void parse_shape() {
    std::vector<std::uint64_t> dims;
    expect('(');
    while (!accept(')')) {
      peek();
      std::uint64_t dim = 0;
      const auto [end, code] =
          std::from_chars(text_.data() + position_, text_.data() + text_.size(), dim);
      if (code != std::errc()) fail("shape is not a tuple of whole numbers below 2^64");
      position_ = static_cast<std::size_t>(end - text_.data());
      accept('L');  // Python 2 wrote long integers so
      dims.push_back(dim);
      if (!accept(',') && (peek() != ')' || dims.size() == 1)) fail("shape is no tuple");
    }
    header_.shape = shape(std::move(dims));
  }

  /// Passes over a string whose value does not matter, so that it may have escapes.
  void skip_string() {
    const char quote = peek();
    for (++position_; position_ < text_.size(); ++position_) {
      if (text_[position_] == quote) {
        ++position_;
        return;
      }
      if (text_[position_] == '\\') ++position_;
    }
    fail("a string does not end");
  }

  /// A list of fields: a record. It can be listed, but its size is not worked out.
  void skip_record() {
    std::size_t depth = 0;
    do {
      const char c = peek();
      if (c == '\0') fail("a list does not end");
      if (c == '\'' || c == '"') {
        skip_string();
        continue;
      }
      if (c == '[' || c == '(') ++depth;
      if (c == ']' || c == ')') --depth;
      ++position_;
    } while (depth > 0);
    header_.foreign_dtype = "record";
    header_.any_size = true;
  }

  /// '<f4', '>i8', '|b1', '|O', '<U7', '<M8[ns]'.
  void read_type(const std::string& type) {
    std::string_view rest = type;
    const char order = rest.empty() ? '\0' : rest.front();
    if (order == '<' || order == '>' || order == '|' || order == '=') rest.remove_prefix(1);
    if (rest.empty()) fail("descr " + in_quotes(type) + " is no type");
    const char kind = rest.front();
    std::uint64_t size = 0;
    const auto [end, code] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), size);
    header_.foreign_dtype = type;
    if (kind == 'O') {
      header_.foreign_dtype = "object";
      header_.any_size = true;
      return;
    }
    if (code != std::errc()) fail("descr " + in_quotes(type) + " is no type");
    header_.item_bytes = size;
    if (kind == 'U') {
      const auto bytes = checked_multiply(size, 4);  // UTF-32
      if (!bytes) fail("descr " + in_quotes(type) + " is no type");
      header_.item_bytes = *bytes;
    }
    if (end != rest.data() + rest.size()) return;  // '<M8[ns]': opaque
    struct known {
      char kind;
      std::uint64_t size;
      dtype type;
    };
    static constexpr std::array<known, 13> known_types{{{'f', 2, dtype::f16},
                                                        {'f', 4, dtype::f32},
                                                        {'f', 8, dtype::f64},
                                                        {'i', 1, dtype::i8},
                                                        {'i', 2, dtype::i16},
                                                        {'i', 4, dtype::i32},
                                                        {'i', 8, dtype::i64},
                                                        {'u', 1, dtype::u8},
                                                        {'u', 2, dtype::u16},
                                                        {'u', 4, dtype::u32},
                                                        {'u', 8, dtype::u64},
                                                        {'b', 1, dtype::boolean},
                                                        {'c', 8, dtype::c64}}};
    for (const known& candidate : known_types) {
      if (candidate.kind != kind || candidate.size != size) continue;
      header_.dtype = candidate.type;
      header_.foreign_dtype.clear();
      if (order == '>') header_.swapped_bytes = static_cast<std::size_t>(kind == 'c' ? 4 : size);
    }
  }

  std::string_view text_;
  std::string where_;
  std::size_t position_ = 0;
  unsigned fields_seen_ = 0;
  npy_header header_;
};

/// Reads an array's header. `read(offset, bytes)` reads the array's bytes, of which there are
/// `size`.
template <class Read>
[[nodiscard]] npy_header read_npy_header(std::uint64_t size, const std::string& where,
                                         Read&& read) {
  // numpy itself takes no more than 10,000 without being told to.
  constexpr std::uint64_t max_header_bytes = std::uint64_t{64} << 10U;
  const auto fail = [&](const std::string& what) { throw format_error(where + ": " + what); };
  const auto too_short = [&] {
    fail("it has " + std::to_string(size) + " bytes, too few for NumPy's header");
  };
  // Most headers end here; reading more costs nothing.
  std::array<std::byte, 128> buffer;
  const auto head = std::span(buffer).first(
      static_cast<std::size_t>(std::min<std::uint64_t>(size, buffer.size())));
  read(std::uint64_t{0}, head);
  constexpr std::size_t version_1_prefix = 10;
  constexpr std::size_t version_2_prefix = 12;
  if (head.size() < version_1_prefix) too_short();
  if (!text_of(head).starts_with("\x93NUMPY")) fail("it does not begin like an array of NumPy's");
  const auto major = std::to_integer<unsigned>(head[6]);
  if (major < 1 || major > 3) {
    fail("version " + std::to_string(major) + " of NumPy's format is unknown");
  }
  const std::size_t prefix = major == 1 ? version_1_prefix : version_2_prefix;
  if (head.size() < prefix) too_short();
  const little_endian_reader numbers(head);
  const std::uint64_t length = major == 1 ? numbers.u16(8) : numbers.u32(8);
  if (length > max_header_bytes) {
    fail("the header is said to have " + std::to_string(length) + " bytes, more than the " +
         std::to_string(max_header_bytes) + " that are allowed");
  }
  if (!in_bounds(prefix, length, size)) {
    fail("the header is said to have " + std::to_string(length) + " bytes, but there are only " +
         std::to_string(size) + " in all");
  }
  std::vector<std::byte> text(static_cast<std::size_t>(length));
  if (prefix + text.size() <= head.size()) {
    std::ranges::copy(head.subspan(prefix, text.size()), text.begin());
  } else {
    read(std::uint64_t{prefix}, std::span(text));
  }
  npy_header header = npy_header_parser(text_of(text), where).parse();
  header.data_offset = prefix + length;
  return header;
}

/// What an array is as a tensor. `size`: the array's bytes with its header.
[[nodiscard]] inline tensor_info npy_tensor(std::string name, npy_header& header,
                                            std::uint64_t size, const std::string& where) {
  tensor_info info{std::move(name), header.dtype, std::move(header.shape), 0};
  info.foreign_dtype = std::move(header.foreign_dtype);
  info.bytes = size - header.data_offset;
  if (header.any_size) return info;
  // numpy writes an array of one axis, or none, in either order.
  if (header.column_major && info.shape.rank() > 1) info.order = element_order::column_major;
  const auto elements = info.shape.elements();
  const auto bytes = elements ? checked_multiply(*elements, header.item_bytes) : std::nullopt;
  const auto type = [&] { return std::string(dtype_name(info)) + " " + to_string(info.shape); };
  if (!bytes) throw format_error(where + ": " + type() + " has more bytes than 64 bits count");
  if (*bytes != info.bytes) {
    throw format_error(where + ": " + type() + " needs " + std::to_string(*bytes) + " bytes, but " +
                       std::to_string(info.bytes) + " follow the header");
  }
  return info;
}

}  // namespace detail

/// One array in NumPy's format (`numpy.save`), listed as a tensor named "array". Little-endian ones
/// can be looked at in place, in C order and in Fortran's, which the tensor's `order` tells. What
/// numpy would unpickle (objects) is listed and never read. A model of `weight_reader`.
class npy_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit npy_reader(input_file file) : file_(std::make_unique<mapped_file>(std::move(file))) {
    const std::string where = printable(path());
    header_ = detail::read_npy_header(
        file_->size(), where,
        [this](std::uint64_t offset, std::span<std::byte> out) { file_->read_at(offset, out); });
    tensor_.push_back(detail::npy_tensor("array", header_, file_->size(), where));
  }

  [[nodiscard]] static bool matches(const input_file& /*file*/,
                                    std::span<const std::byte> head) noexcept {
    constexpr std::array magic{std::byte{0x93}, std::byte{'N'}, std::byte{'U'},
                               std::byte{'M'},  std::byte{'P'}, std::byte{'Y'}};
    return head.size() >= magic.size() && std::ranges::equal(head.first(magic.size()), magic);
  }

  [[nodiscard]] const std::string& path() const noexcept { return file_->path(); }
  [[nodiscard]] std::string_view format() const noexcept { return "npy"; }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_->size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensor_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return {}; }

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    detail::check_window(path(), tensor_[tensor], offset, out.size());
    detail::read_whole_elements(header_.swapped_bytes, offset, out,
                                [&, this](std::uint64_t element, std::span<std::byte> bytes) {
                                  const std::uint64_t at = element * header_.swapped_bytes;
                                  file_->read_at(header_.data_offset + at, bytes);
                                  detail::swap_bytes(bytes, header_.swapped_bytes);
                                });
  }

  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    if (tensor_[tensor].dtype == dtype::opaque || header_.swapped_bytes > 1) return std::nullopt;
    return file_->view(header_.data_offset, tensor_[tensor].bytes);
  }

 private:
  std::unique_ptr<const mapped_file> file_;
  detail::npy_header header_;
  std::vector<tensor_info> tensor_;
};

static_assert(weight_reader<npy_reader>);

/// Several arrays in a zip (`numpy.savez`, `savez_compressed`), each a member NAME.npy: stored ones
/// as `npy_reader` has them, deflated ones unpacked while they are read. Other members are passed
/// over. A model of `weight_reader`.
class npz_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit npz_reader(input_file file) : file_(std::make_unique<mapped_file>(std::move(file))) {
    const zip_archive archive(file_->file());
    const auto arrays = static_cast<std::size_t>(
        std::ranges::count_if(archive.members(), is_array, &zip_member::name));
    if (arrays > max_arrays) {
      throw format_error(printable(path()) + ": it has " + std::to_string(arrays) +
                         " arrays, more than the " + std::to_string(max_arrays) +
                         " that are allowed");
    }
    tensors_.reserve(arrays);
    arrays_.reserve(arrays);
    for (const zip_member& member : archive.members()) {
      if (is_array(member.name)) add(member);
    }
  }

  /// A zip with arrays in it, or with nothing.
  [[nodiscard]] static bool matches(const input_file& file, std::span<const std::byte> head) {
    if (!zip_archive::matches(head)) return false;
    const std::vector<std::string> names = zip_archive::names(file);
    return names.empty() || std::ranges::any_of(names, is_array);
  }

  [[nodiscard]] const std::string& path() const noexcept { return file_->path(); }
  [[nodiscard]] std::string_view format() const noexcept { return "npz"; }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_->size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return {}; }

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    detail::check_window(path(), tensors_[tensor], offset, out.size());
    const array& source = *arrays_[tensor];
    detail::read_whole_elements(
        source.swapped_bytes, offset, out,
        [&, this](std::uint64_t element, std::span<std::byte> bytes) {
          source.read(*file_, source.data_offset + element * source.swapped_bytes, bytes);
          detail::swap_bytes(bytes, source.swapped_bytes);
        });
  }

  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    const array& source = *arrays_[tensor];
    if (tensors_[tensor].dtype == dtype::opaque || source.unpacked || source.swapped_bytes > 1) {
      return std::nullopt;
    }
    return file_->view(source.member.data_offset + source.data_offset, tensors_[tensor].bytes);
  }

 private:
  /// One member. Stays where it is, as what unpacks it points to it.
  struct array {
    zip_member member;
    std::unique_ptr<detail::inflated_member> unpacked;  // none where it is stored as it is
    std::size_t swapped_bytes = 1;
    std::uint64_t data_offset = 0;  // in the member

    void read(const mapped_file& file, std::uint64_t offset, std::span<std::byte> out) const {
      if (unpacked) {
        unpacked->read(offset, out);
      } else {
        file.read_at(member.data_offset + offset, out);
      }
    }
  };

  static constexpr std::string_view ending = ".npy";
  /// Far above any real file's; as many take some 10 MiB.
  static constexpr std::size_t max_arrays = 16'384;

  [[nodiscard]] static bool is_array(const std::string& name) { return name.ends_with(ending); }

  void add(const zip_member& member) {
    auto source = std::make_unique<array>();
    source->member = member;
    // Anew behind the header: what stands in the middle of a member takes some 100 KiB.
    const auto begin = [&, this] {
      if (!member.deflated) return;
      source->unpacked = std::make_unique<detail::inflated_member>(*file_, source->member);
    };
    begin();
    std::string name = member.name.substr(0, member.name.size() - ending.size());
    const std::string where = printable(path()) + ": tensor " + in_quotes(name);
    detail::npy_header header = detail::read_npy_header(
        member.bytes, where, [&, this](std::uint64_t offset, std::span<std::byte> out) {
          source->read(*file_, offset, out);
        });
    begin();
    source->swapped_bytes = header.swapped_bytes;
    source->data_offset = header.data_offset;
    tensors_.push_back(detail::npy_tensor(std::move(name), header, member.bytes, where));
    tensors_.back().sequential = member.deflated;
    arrays_.push_back(std::move(source));
  }

  std::unique_ptr<const mapped_file> file_;
  std::vector<tensor_info> tensors_;
  std::vector<std::unique_ptr<array>> arrays_;
};

static_assert(weight_reader<npz_reader>);

}  // namespace vggload
