// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <vggload/core/error.hpp>

namespace vggload::detail {

[[nodiscard]] constexpr bool is_json_white_space(std::byte b) noexcept {
  return b == std::byte{' '} || b == std::byte{'\t'} || b == std::byte{'\n'} ||
         b == std::byte{'\r'};
}

/// What a JSON text consists of, one piece after the other. Headers of checkpoints are read as
/// events and not as a tree, because a tree hides duplicate keys and grows before its depth can be
/// judged.
enum class json_event {
  null,
  boolean,
  unsigned_number,
  other_number,  // negative, fractional, or beyond 64 bits
  string,
  key,
  begin_object,
  end_object,
  begin_array,
  end_array,
};

/// Who is told the events. Refuses by throwing. An interface and no template, so that the parser
/// behind is compiled once for all formats.
class json_event_handler {
 public:
  json_event_handler() = default;
  json_event_handler(const json_event_handler&) = delete;
  json_event_handler& operator=(const json_event_handler&) = delete;
  virtual ~json_event_handler() = default;

  /// `number` belongs to `unsigned_number`, `text` to `key` and `string`, from which it may be
  /// moved.
  virtual void on_event(json_event event, std::uint64_t number, std::string& text) = 0;
};

/// Adapts a handler to nlohmann's SAX interface.
class json_event_adapter {
 public:
  explicit json_event_adapter(json_event_handler& handler) : handler_(handler) {}

  bool null() { return emit(json_event::null); }
  bool boolean(bool) { return emit(json_event::boolean); }
  bool number_integer(std::int64_t) { return emit(json_event::other_number); }
  bool number_unsigned(std::uint64_t value) { return emit(json_event::unsigned_number, value); }
  bool number_float(double, const std::string&) { return emit(json_event::other_number); }
  bool string(std::string& text) { return emit(json_event::string, 0, text); }
  bool key(std::string& text) { return emit(json_event::key, 0, text); }
  bool start_object(std::size_t) { return emit(json_event::begin_object); }
  bool end_object() { return emit(json_event::end_object); }
  bool start_array(std::size_t) { return emit(json_event::begin_array); }
  bool end_array() { return emit(json_event::end_array); }
  template <class Binary>
  bool binary(Binary&) {
    return false;  // exists in no JSON text
  }
  template <class Exception>
  bool parse_error(std::size_t position, const std::string&, const Exception&) {
    error_position_ = position;
    return false;
  }

  [[nodiscard]] std::size_t error_position() const noexcept { return error_position_; }

 private:
  bool emit(json_event event, std::uint64_t number = 0) {
    handler_.on_event(event, number, no_text_);
    return true;
  }
  bool emit(json_event event, std::uint64_t number, std::string& text) {
    handler_.on_event(event, number, text);
    return true;
  }

  json_event_handler& handler_;
  std::string no_text_;
  std::size_t error_position_ = 0;
};

/// Feeds the events of one JSON text (UTF-8, nothing but white space after it) to `handler`. Throws
/// `format_error` "<where> is not valid JSON ..." where the text is none, and what the handler
/// throws.
inline void parse_json_events(std::string_view text, const std::string& where,
                              json_event_handler& handler) {
  // The parser behind skips a byte order mark and takes a NUL for the end; JSON allows neither.
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  if (text.substr(0, 3) == byte_order_mark) {
    throw format_error(where + " is not valid JSON: it begins with a byte order mark");
  }
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw format_error(where + " is not valid JSON: it has a NUL at byte " + std::to_string(nul));
  }
  json_event_adapter adapter(handler);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &adapter)) {
    throw format_error(where + " is not valid JSON in UTF-8: it goes wrong at byte " +
                       std::to_string(adapter.error_position()) + " of " +
                       std::to_string(text.size()));
  }
}

}  // namespace vggload::detail
