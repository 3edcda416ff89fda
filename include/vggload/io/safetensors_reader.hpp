// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
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
#include <vggload/io/find_duplicate.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/json_events.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

namespace detail {

/// A header longer than this is refused, as by the reference implementation.
inline constexpr std::uint64_t safetensors_max_header_bytes = 100'000'000;

/// Bytes of the header's length, a little-endian 64-bit number at the start of the file.
inline constexpr std::size_t safetensors_length_bytes = 8;

/// What one entry of the header says, before it is checked against the others.
struct safetensors_entry {
  tensor_info info;
  std::uint64_t begin = 0;  // data_offsets: from the end of the header on
  std::uint64_t end = 0;
};

/// Builds the entries from the header's JSON events; refuses what does not have this form:
///
///   {"__metadata__": {string: string},
///    name: {"dtype": string, "shape": [n...], "data_offsets": [n, n]}}
class safetensors_header_handler final : public json_event_handler {
 public:
  explicit safetensors_header_handler(const std::string& path) : path_(path) {}

  void on_event(json_event event, std::uint64_t number, std::string& text) override {
    switch (state_) {
      case state::start:
        if (event != json_event::begin_object) fail("the header is not a JSON object");
        state_ = state::top;
        return;
      case state::top:
        if (event == json_event::key) begin_member(text);
        return;  // otherwise end_object: the parser lets nothing else through here
      case state::metadata: on_metadata(event, text); return;
      case state::entry: on_entry(event, text); return;
      case state::dtype: on_dtype(event, text); return;
      case state::shape:
        on_number_list(event, number, "shape");
        if (state_ == state::entry) entries.back().info.shape = shape(std::exchange(list_, {}));
        return;
      case state::offsets:
        on_number_list(event, number, "data_offsets");
        if (state_ == state::entry) end_offsets();
        return;
    }
  }

  std::vector<safetensors_entry> entries;
  std::vector<metadata_entry> metadata;

 private:
  enum class state { start, top, metadata, entry, dtype, shape, offsets };
  enum field : unsigned { no_field = 0, dtype_field = 1, shape_field = 2, offsets_field = 4 };

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(path_) + ": " + what);
  }
  [[noreturn]] void fail_entry(const std::string& what) const {
    fail("tensor " + in_quotes(entries.back().info.name) + ": " + what);
  }

  void begin_member(std::string& key) {
    if (key == "__metadata__") {
      if (std::exchange(metadata_seen_, true)) fail("the key '__metadata__' occurs twice");
      state_ = state::metadata;
      metadata_open_ = false;
      return;
    }
    entries.emplace_back().info.name = std::move(key);
    fields_seen_ = no_field;
    entry_open_ = false;
    state_ = state::entry;
  }

  void on_metadata(json_event event, std::string& text) {
    if (!metadata_open_) {
      // The reference takes null for absent metadata.
      if (event == json_event::null) {
        state_ = state::top;
      } else if (event == json_event::begin_object) {
        metadata_open_ = true;
      } else {
        fail("'__metadata__' is not a JSON object");
      }
    } else if (event == json_event::key) {
      metadata.emplace_back(std::move(text), std::string());
    } else if (event == json_event::string) {
      metadata.back().second = std::move(text);
    } else if (event == json_event::end_object) {
      state_ = state::top;
    } else {
      fail("the value of " + in_quotes(metadata.back().first) +
           " in '__metadata__' is not a string");
    }
  }

  void on_entry(json_event event, std::string& text) {
    if (!entry_open_) {
      if (event != json_event::begin_object) fail_entry("its entry is not a JSON object");
      entry_open_ = true;
    } else if (event == json_event::key) {
      if (text == "dtype") {
        begin_field(dtype_field, text, state::dtype);
      } else if (text == "shape") {
        begin_field(shape_field, text, state::shape);
      } else if (text == "data_offsets") {
        begin_field(offsets_field, text, state::offsets);
      } else {
        fail_entry("unknown field " + in_quotes(text));
      }
    } else if (event == json_event::end_object) {
      require_field(dtype_field, "dtype");
      require_field(shape_field, "shape");
      require_field(offsets_field, "data_offsets");
      state_ = state::top;
    }
  }

  void begin_field(field which, const std::string& name, state next) {
    if ((fields_seen_ & which) != 0) fail_entry("the field " + in_quotes(name) + " occurs twice");
    fields_seen_ |= which;
    state_ = next;
  }
  void require_field(field which, const char* name) const {
    if ((fields_seen_ & which) == 0) fail_entry("the field " + in_quotes(name) + " is missing");
  }

  void on_dtype(json_event event, const std::string& text) {
    if (event != json_event::string) fail_entry("its dtype is not a string");
    const auto type = dtype_from_name(text);
    if (!type) fail_entry("unknown dtype " + in_quotes(text));
    entries.back().info.dtype = *type;
    state_ = state::entry;
  }

  void on_number_list(json_event event, std::uint64_t number, const char* name) {
    if (!in_list_ && event == json_event::begin_array) {
      in_list_ = true;
    } else if (in_list_ && event == json_event::unsigned_number) {
      list_.push_back(number);
    } else if (in_list_ && event == json_event::end_array) {
      in_list_ = false;
      state_ = state::entry;
    } else {
      fail_entry(std::string("its ") + name + " is not a list of whole numbers from 0 to 2^64 - 1");
    }
  }

  void end_offsets() {
    const auto offsets = std::exchange(list_, {});
    if (offsets.size() != 2) {
      fail_entry("data_offsets has " + std::to_string(offsets.size()) + " numbers, not 2");
    }
    entries.back().begin = offsets[0];
    entries.back().end = offsets[1];
  }

  const std::string& path_;
  state state_ = state::start;
  bool metadata_seen_ = false;
  bool metadata_open_ = false;
  bool entry_open_ = false;
  bool in_list_ = false;
  unsigned fields_seen_ = no_field;
  std::vector<std::uint64_t> list_;
};

}  // namespace detail

/// A file in the safetensors format: tensors are listed in the header's order and lie uncompressed
/// in one block behind it. Format: an 8-byte little-endian header length, the header in JSON, the
/// payloads; https://github.com/huggingface/safetensors, "Format".
///
/// Opening reads the header alone. It refuses (`format_error`) all that the reference
/// implementation refuses, and duplicate keys, unknown fields and nesting deeper than the format's;
/// nothing is allocated by a number of the file before that number is checked against the file's
/// size. A model of `weight_reader`.
class safetensors_reader {
 public:
  /// Throws `io_error` and `format_error`.
  explicit safetensors_reader(input_file file)
      : file_(std::make_unique<mapped_file>(std::move(file))) {
    const std::string header = read_header();
    detail::safetensors_header_handler handler(path());
    detail::parse_json_events(header, printable(path()) + ": the header", handler);
    metadata_ = std::move(handler.metadata);
    check(handler.entries);
    tensors_.reserve(handler.entries.size());
    offsets_.reserve(handler.entries.size());
    for (auto& entry : handler.entries) {
      offsets_.push_back(data_begin_ + entry.begin);
      tensors_.push_back(std::move(entry.info));
    }
  }

  /// Whether a file that begins with these bytes is meant to be one: the length's upper
  /// half is zero, or a JSON object begins behind it.
  [[nodiscard]] static bool matches(const input_file& /*file*/,
                                    std::span<const std::byte> head) noexcept {
    if (head.size() < detail::safetensors_length_bytes) return false;
    const bool small_length =
        std::ranges::all_of(head.subspan(4, 4), [](std::byte b) { return b == std::byte{0}; });
    if (small_length) return true;
    // Eight blanks in front of a brace are the start of a JSON text, not a length.
    const bool blank = std::ranges::all_of(
        head.first(8), [](std::byte b) { return detail::is_json_white_space(b); });
    return !blank && head.size() > 8 && head[8] == std::byte{'{'};
  }

  [[nodiscard]] const std::string& path() const noexcept { return file_->path(); }
  [[nodiscard]] std::string_view format() const noexcept { return "safetensors"; }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return file_->size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept { return metadata_; }

  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    detail::check_window(path(), tensors_[tensor], offset, out.size());
    file_->read_at(offsets_[tensor] + offset, out);
  }

  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    return file_->view(offsets_[tensor], tensors_[tensor].bytes);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(path()) + ": " + what);
  }

  [[nodiscard]] std::string read_header() {
    if (file_->size() < detail::safetensors_length_bytes) {
      fail("the file has " + std::to_string(file_->size()) +
           " bytes, too few for the 8-byte length of a safetensors header");
    }
    std::array<std::byte, detail::safetensors_length_bytes> length_bytes;
    file_->read_at(0, length_bytes);
    const auto length = detail::load_little_endian<std::uint64_t>(length_bytes);
    if (length > detail::safetensors_max_header_bytes) {
      fail("the header is said to have " + std::to_string(length) + " bytes, more than the " +
           std::to_string(detail::safetensors_max_header_bytes) + " that are allowed");
    }
    if (!in_bounds(length_bytes.size(), length, file_->size())) {
      fail("the header is said to have " + std::to_string(length) +
           " bytes, but the file has only " + std::to_string(file_->size()) +
           " with the 8 of the length");
    }
    std::string header(static_cast<std::size_t>(length), '\0');
    file_->read_at(length_bytes.size(), std::as_writable_bytes(std::span(header)));
    data_begin_ = length_bytes.size() + length;
    return header;
  }

  /// The checks that need all entries, in the reference's order; sets each tensor's `bytes`.
  void check(std::vector<detail::safetensors_entry>& entries) const {
    using detail::safetensors_entry;
    const std::string* twice = detail::find_duplicate(
        entries, [](const safetensors_entry& e) -> const std::string& { return e.info.name; });
    if (twice != nullptr) fail("tensor " + in_quotes(*twice) + " occurs twice");
    twice = detail::find_duplicate(
        metadata_, [](const metadata_entry& e) -> const std::string& { return e.first; });
    if (twice != nullptr) fail("the key " + in_quotes(*twice) + " occurs twice in '__metadata__'");

    std::vector<safetensors_entry*> by_offset;
    by_offset.reserve(entries.size());
    for (auto& entry : entries) by_offset.push_back(&entry);
    std::ranges::sort(by_offset, {},
                      [](const safetensors_entry* e) { return std::pair(e->begin, e->end); });
    std::uint64_t expected = 0;
    for (safetensors_entry* entry : by_offset) {
      const auto fail_entry = [&, this](const std::string& what) {
        fail("tensor " + in_quotes(entry->info.name) + ": " + what);
      };
      const auto offsets = [&] {
        return "data_offsets [" + std::to_string(entry->begin) + ", " + std::to_string(entry->end) +
               "]";
      };
      const auto type_and_shape = [&] {
        return std::string(name_of(entry->info.dtype)) + " " + to_string(entry->info.shape);
      };
      if (entry->begin > expected) {
        fail_entry(offsets() + " leave a hole: the tensor before ends at " +
                   std::to_string(expected));
      }
      if (entry->end < entry->begin) fail_entry(offsets() + " end before they begin");
      if (entry->begin < expected) {
        fail_entry(offsets() + " overlap the tensor before, which ends at " +
                   std::to_string(expected));
      }
      const auto elements = entry->info.shape.elements();
      const auto bits =
          elements ? checked_multiply(*elements, bits_of(entry->info.dtype)) : std::nullopt;
      if (!bits) fail_entry(type_and_shape() + " has more bits than a 64-bit number can count");
      if (*bits % 8 != 0) {
        fail_entry(type_and_shape() + " has " + std::to_string(*bits) +
                   " bits, which is not a whole number of bytes");
      }
      if (*bits / 8 != entry->end - entry->begin) {
        fail_entry(type_and_shape() + " needs " + std::to_string(*bits / 8) + " bytes, but " +
                   offsets() + " hold " + std::to_string(entry->end - entry->begin));
      }
      entry->info.bytes = *bits / 8;
      expected = entry->end;
    }
    if (const std::uint64_t data_bytes = file_->size() - data_begin_; expected != data_bytes) {
      fail("the tensors end at byte " + std::to_string(expected) + " behind the header, but " +
           std::to_string(data_bytes) + " bytes are there");
    }
  }

  std::unique_ptr<const mapped_file> file_;
  std::uint64_t data_begin_ = 0;
  std::vector<tensor_info> tensors_;
  std::vector<std::uint64_t> offsets_;  // of each payload, from the start of the file on
  std::vector<metadata_entry> metadata_;
};

static_assert(weight_reader<safetensors_reader>);

}  // namespace vggload
