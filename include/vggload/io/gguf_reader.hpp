// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/file_window.hpp>
#include <vggload/io/find_duplicate.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

namespace detail {

/// Limits on a header and what it may claim, all far above any real file's, and such that it takes
/// no more than 16 MiB before it is refused. Without the first one an array of empty strings in a
/// hole of a sparse file could be walked for hours.
inline constexpr std::uint64_t gguf_max_header_bytes = std::uint64_t{256} << 20U;
inline constexpr std::uint64_t gguf_max_tensors = 20'000;
inline constexpr std::uint64_t gguf_max_metadata = 10'000;
inline constexpr std::uint64_t gguf_max_text_bytes = 65'535;  // of keys too, as the format says
inline constexpr std::uint64_t gguf_max_kept_bytes = std::uint64_t{4} << 20U;  // of all texts
inline constexpr unsigned gguf_max_array_depth = 8;
inline constexpr std::uint32_t gguf_max_rank = 4;

/// How elements of one type lie in a file: in blocks along the fastest axis, of one element where
/// the type is not quantised.
struct gguf_type {
  std::uint32_t number;
  std::string_view name;
  vggload::dtype dtype;
  std::uint16_t block_elements;
  std::uint16_t block_bytes;
};

// `GGMLQuantizationType` and `GGML_QUANT_SIZES` of the Python package gguf 0.19.
inline constexpr std::array<gguf_type, 34> gguf_types{{
    {0, "F32", dtype::f32, 1, 4},
    {1, "F16", dtype::f16, 1, 2},
    {2, "Q4_0", dtype::opaque, 32, 18},
    {3, "Q4_1", dtype::opaque, 32, 20},
    {6, "Q5_0", dtype::opaque, 32, 22},
    {7, "Q5_1", dtype::opaque, 32, 24},
    {8, "Q8_0", dtype::opaque, 32, 34},
    {9, "Q8_1", dtype::opaque, 32, 40},
    {10, "Q2_K", dtype::opaque, 256, 84},
    {11, "Q3_K", dtype::opaque, 256, 110},
    {12, "Q4_K", dtype::opaque, 256, 144},
    {13, "Q5_K", dtype::opaque, 256, 176},
    {14, "Q6_K", dtype::opaque, 256, 210},
    {15, "Q8_K", dtype::opaque, 256, 292},
    {16, "IQ2_XXS", dtype::opaque, 256, 66},
    {17, "IQ2_XS", dtype::opaque, 256, 74},
    {18, "IQ3_XXS", dtype::opaque, 256, 98},
    {19, "IQ1_S", dtype::opaque, 256, 50},
    {20, "IQ4_NL", dtype::opaque, 32, 18},
    {21, "IQ3_S", dtype::opaque, 256, 110},
    {22, "IQ2_S", dtype::opaque, 256, 82},
    {23, "IQ4_XS", dtype::opaque, 256, 136},
    {24, "I8", dtype::i8, 1, 1},
    {25, "I16", dtype::i16, 1, 2},
    {26, "I32", dtype::i32, 1, 4},
    {27, "I64", dtype::i64, 1, 8},
    {28, "F64", dtype::f64, 1, 8},
    {29, "IQ1_M", dtype::opaque, 256, 56},
    {30, "BF16", dtype::bf16, 1, 2},
    {34, "TQ1_0", dtype::opaque, 256, 54},
    {35, "TQ2_0", dtype::opaque, 256, 66},
    {39, "MXFP4", dtype::opaque, 32, 17},
    {40, "NVFP4", dtype::opaque, 64, 36},
    {41, "Q1_0", dtype::opaque, 128, 18},
}};

/// Reads a file's header from its first byte to its last: metadata and tensor infos. What it finds
/// is checked as far as it can be before the place of the payloads is known.
class gguf_header_parser {
 public:
  struct entry {
    tensor_info info;
    std::uint64_t offset;  // of the payload, from the start of the data section on
  };

  explicit gguf_header_parser(const input_file& file)
      : file_(file), window_(file, std::size_t{64} << 10U) {}

  void parse() {
    if (number<std::uint32_t>("magic number") != gguf_magic) {
      fail("the file does not begin with 'GGUF'");
    }
    const auto version = number<std::uint32_t>("version");
    // As the reference's reader tells the files of big-endian machines.
    if ((version & 0xFFFFU) == 0) fail("big-endian files cannot be read");
    if (version != 2 && version != 3) {
      fail("its version is " + std::to_string(version) + ", not 2 or 3");
    }
    const auto tensor_count = number<std::uint64_t>("number of tensors");
    check_count(tensor_count, gguf_max_tensors, "tensors");
    const auto metadata_count = number<std::uint64_t>("number of metadata entries");
    check_count(metadata_count, gguf_max_metadata, "metadata entries");
    for (std::uint64_t i = 0; i < metadata_count; ++i) parse_metadata();
    const std::string* twice = find_duplicate(keys_, std::identity());
    if (twice != nullptr) fail("the key " + in_quotes(*twice) + " occurs twice in the metadata");
    entries.reserve(static_cast<std::size_t>(tensor_count));
    for (std::uint64_t i = 0; i < tensor_count; ++i) parse_tensor();
    twice =
        find_duplicate(entries, [](const entry& e) -> const std::string& { return e.info.name; });
    if (twice != nullptr) fail("tensor " + in_quotes(*twice) + " occurs twice");
    header_bytes = position_;
  }

  std::vector<entry> entries;
  std::vector<metadata_entry> metadata;
  std::uint32_t alignment = 32;
  std::uint64_t header_bytes = 0;

 private:
  static constexpr std::uint32_t gguf_magic = 0x46554747;  // "GGUF"

  // `gguf_type` in ggml's gguf.h.
  enum value_type : std::uint32_t { uint32 = 4, string = 8, array = 9 };

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": " + what);
  }
  void check_count(std::uint64_t count, std::uint64_t most, const char* what) const {
    if (count > most) {
      fail("the header claims " + std::to_string(count) + " " + what + ", more than the " +
           std::to_string(most) + " that are allowed");
    }
  }

  /// `what`, here and below: the message's word for that which does not fit into the file.
  void require(std::uint64_t count, std::string_view what) const {
    if (!in_bounds(position_, count, file_.size())) {
      fail("the file has " + std::to_string(file_.size()) + " bytes, but its header goes on with " +
           std::to_string(count) + " from offset " + std::to_string(position_) + ": " +
           std::string(what));
    }
    if (position_ + count > gguf_max_header_bytes) {
      fail("the header has more than the " + std::to_string(gguf_max_header_bytes) +
           " bytes that are allowed");
    }
  }
  template <std::unsigned_integral T>
  [[nodiscard]] T number(std::string_view what) {
    require(sizeof(T), what);
    const T value = load_little_endian<T>(window_.from(position_, sizeof(T)));
    position_ += sizeof(T);
    return value;
  }
  void skip(std::uint64_t count, std::string_view what) {
    require(count, what);
    position_ += count;
  }
  [[nodiscard]] std::string text(std::uint64_t length, std::string_view what) {
    require(length, what);
    const auto count = static_cast<std::size_t>(length);
    kept_bytes_ += length;
    if (kept_bytes_ > gguf_max_kept_bytes) {
      fail("at byte " + std::to_string(position_) + ": with " + std::string(what) + " of " +
           std::to_string(length) + " bytes the names and texts have " +
           std::to_string(kept_bytes_) + ", more than the " + std::to_string(gguf_max_kept_bytes) +
           " that are allowed");
    }
    position_ += length;
    return text_of(window_.from(position_ - length, count).first(count));
  }
  [[nodiscard]] std::string name(std::string_view what) {
    const auto length = number<std::uint64_t>(what);
    if (length > gguf_max_text_bytes) {
      fail("at byte " + std::to_string(position_) + ": " + std::string(what) + " of " +
           std::to_string(length) + " bytes, more than the " + std::to_string(gguf_max_text_bytes) +
           " that are allowed");
    }
    return text(length, what);
  }

  void parse_metadata() {
    keys_.push_back(name("a key"));
    const auto type = number<std::uint32_t>("type of a value");
    if (keys_.back() == "general.alignment") {
      if (type != uint32) fail("'general.alignment' is not an unsigned 32-bit number");
      alignment = number<std::uint32_t>("'general.alignment'");
      if (!std::has_single_bit(alignment)) {
        fail("'general.alignment' is " + std::to_string(alignment) + ", not a power of two");
      }
      return;
    }
    if (type == string) {
      const auto length = number<std::uint64_t>("length of a string");
      if (length <= gguf_max_text_bytes) {
        metadata.emplace_back(keys_.back(), text(length, "a string"));
      } else {
        skip(length, "a string");
      }
      return;
    }
    skip_value(type, 0);
  }

  /// Bytes of a value, if all of its type have as many.
  [[nodiscard]] static std::optional<std::uint64_t> bytes_of_value(std::uint32_t type) noexcept {
    constexpr std::array<std::uint8_t, 13> sizes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type >= sizes.size() || sizes[type] == 0) return std::nullopt;
    return sizes[type];
  }

  void skip_value(std::uint32_t type, unsigned depth) {
    if (const auto bytes = bytes_of_value(type)) {
      skip(*bytes, "a value");
    } else if (type == string) {
      skip(number<std::uint64_t>("length of a string"), "a string");
    } else if (type == array) {
      if (depth == gguf_max_array_depth) fail_value("its arrays nest too deeply");
      skip_array(depth + 1);
    } else {
      fail_value("unknown type " + std::to_string(type));
    }
  }
  [[noreturn]] void fail_value(const std::string& what) const {
    fail("the value of " + in_quotes(keys_.back()) + " in the metadata: " + what);
  }

  void skip_array(unsigned depth) {
    const auto type = number<std::uint32_t>("type of an array");
    const auto count = number<std::uint64_t>("length of an array");
    if (const auto bytes = bytes_of_value(type)) {
      const auto whole = checked_multiply(count, *bytes);
      if (!whole) fail_value("an array of " + std::to_string(count) + " elements");
      skip(*whole, "an array");
      return;
    }
    // Each element takes bytes of the file, so the file's end ends this, whatever the count.
    for (std::uint64_t i = 0; i < count; ++i) skip_value(type, depth);
  }

  void parse_tensor() {
    tensor_info info{name("a tensor's name"), dtype::opaque, {}, 0};
    const auto fail_tensor = [&, this](const std::string& what) {
      fail("tensor " + in_quotes(info.name) + ": " + what);
    };
    const auto rank = number<std::uint32_t>("a tensor's number of dims");
    if (rank > gguf_max_rank) {
      fail_tensor("it has " + std::to_string(rank) + " dims, more than the " +
                  std::to_string(gguf_max_rank) + " that are allowed");
    }
    std::vector<std::uint64_t> dims(rank);
    for (auto& dim : dims) dim = number<std::uint64_t>("a tensor's dims");
    std::ranges::reverse(dims);
    const std::uint64_t row = dims.empty() ? 1 : dims.back();
    info.shape = shape(std::move(dims));
    const auto type_number = number<std::uint32_t>("a tensor's type");
    const auto offset = number<std::uint64_t>("a tensor's offset");

    const auto type = std::ranges::find(gguf_types, type_number, &gguf_type::number);
    if (type == gguf_types.end()) {
      // Of a version to come, or of one long gone: how many bytes it takes cannot be known.
      info.foreign_dtype = "type " + std::to_string(type_number);
    } else {
      const auto type_and_shape = [&] {
        return std::string(type->name) + " " + to_string(info.shape);
      };
      const auto elements = info.shape.elements();
      const auto bytes = elements
                             ? checked_multiply(*elements / type->block_elements, type->block_bytes)
                             : std::nullopt;
      if (!bytes) fail_tensor(type_and_shape() + " has more bytes than a 64-bit number can count");
      if (row % type->block_elements != 0) {
        fail_tensor(type_and_shape() + " has rows of " + std::to_string(row) +
                    " elements, which are no whole blocks of " +
                    std::to_string(type->block_elements));
      }
      info.bytes = *bytes;
      info.dtype = type->dtype;
      if (info.dtype == dtype::opaque) info.foreign_dtype = type->name;
    }
    entries.push_back({std::move(info), offset});
  }

  const input_file& file_;
  file_window window_;
  std::uint64_t position_ = 0;
  std::uint64_t kept_bytes_ = 0;  // of keys, names and values
  std::vector<std::string> keys_;
};

}  // namespace detail

/// A file in the GGUF format of ggml and llama.cpp, versions 2 and 3, little-endian: metadata and
/// tensor infos in front, the payloads uncompressed behind them. Format:
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
///
/// Tensors are listed in the file's order, their dims slowest first, which is the reverse of the
/// file's. Quantised elements are opaque, with ggml's name of them; so are those of types that the
/// library does not know ("type 99"), whose bytes cannot be known and are 0. `metadata()` has the
/// values that are strings of up to 65,535 bytes.
///
/// Opening reads the header alone, by windows, and skips arrays whatever they say of their lengths.
/// It refuses (`format_error`) what is cut, tensors that overlap or do not lie at a multiple of the
/// file's alignment, duplicate names and keys, and counts and depths beyond those of any real file.
/// A model of `weight_reader`.
class gguf_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit gguf_reader(input_file file) : file_(std::make_unique<mapped_file>(std::move(file))) {
    detail::gguf_header_parser header(file_->file());
    header.parse();
    metadata_ = std::move(header.metadata);
    place(header);
    tensors_.reserve(header.entries.size());
    for (auto& entry : header.entries) tensors_.push_back(std::move(entry.info));
  }

  /// Whether a file that begins with these bytes is meant to be one: they spell "GGUF".
  [[nodiscard]] static bool matches(const input_file& /*file*/,
                                    std::span<const std::byte> head) noexcept {
    constexpr std::array magic{std::byte{'G'}, std::byte{'G'}, std::byte{'U'}, std::byte{'F'}};
    return head.size() >= magic.size() && std::ranges::equal(head.first(magic.size()), magic);
  }

  [[nodiscard]] const std::string& path() const noexcept { return file_->path(); }
  [[nodiscard]] std::string_view format() const noexcept { return "gguf"; }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_->size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return metadata_; }

  /// Throws `io_error`, and `unsupported_error` for opaque elements.
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    detail::check_window(path(), tensors_[tensor], offset, out.size());
    file_->read_at(offsets_[tensor] + offset, out);
  }

  /// The payload in place; nothing for opaque elements and where the file cannot be mapped.
  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    if (tensors_[tensor].dtype == dtype::opaque) return std::nullopt;
    return file_->view(offsets_[tensor], tensors_[tensor].bytes);
  }

 private:
  /// Finds where each payload lies in the file, and checks that it is there and overlaps no other.
  void place(const detail::gguf_header_parser& header) {
    using entry = detail::gguf_header_parser::entry;
    const auto fail = [this](const entry& e, const std::string& what) {
      throw format_error(printable(path()) + ": tensor " + in_quotes(e.info.name) + ": " + what);
    };
    const auto place_of = [](const entry& e) {
      return std::to_string(e.info.bytes) + " bytes from offset " + std::to_string(e.offset);
    };
    // The header lies in the file, whose size is far below 2^64.
    const std::uint64_t data_begin = *checked_align_up(header.header_bytes, header.alignment);
    const std::uint64_t data_bytes = file_->size() - std::min(data_begin, file_->size());
    offsets_.reserve(header.entries.size());
    std::vector<const entry*> by_offset;
    by_offset.reserve(header.entries.size());
    for (const entry& e : header.entries) {
      if (e.offset % header.alignment != 0) {
        fail(e, "its offset " + std::to_string(e.offset) + " is no multiple of the alignment, " +
                    std::to_string(header.alignment));
      }
      if (!in_bounds(e.offset, e.info.bytes, data_bytes)) {
        fail(e, "it takes " + place_of(e) + " of the data section, which has " +
                    std::to_string(data_bytes));
      }
      offsets_.push_back(data_begin + e.offset);
      if (e.info.bytes > 0) by_offset.push_back(&e);
    }
    std::ranges::sort(by_offset, {}, [](const entry* e) { return e->offset; });
    const auto overlap = std::ranges::adjacent_find(by_offset, [](const entry* a, const entry* b) {
      return b->offset - a->offset < a->info.bytes;
    });
    if (overlap != by_offset.end()) {
      const entry& before = **overlap;
      const entry& after = **std::next(overlap);
      fail(after, "it takes " + place_of(after) + ", but tensor " + in_quotes(before.info.name) +
                      " takes " + place_of(before));
    }
  }

  std::unique_ptr<const mapped_file> file_;
  std::vector<tensor_info> tensors_;
  std::vector<std::uint64_t> offsets_;  // of each payload, from the start of the file on
  std::vector<metadata_entry> metadata_;
};

static_assert(weight_reader<gguf_reader>);

}  // namespace vggload
