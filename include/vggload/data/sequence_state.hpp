// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

#include <vggload/core/error.hpp>

namespace vggload {

/// Where in its epochs a sequence is. With the sequence itself, built again in the same way, this is
/// all that is needed to go on as if nothing had happened (`resume_from`).
struct sequence_state {
  std::uint64_t seed = 0;   // of the sequence, 0 where it has none: not used, but compared
  std::uint64_t epoch = 0;  // the first is 0
  std::uint64_t batch = 0;  // the next one of the epoch; the number of batches where all were given
  friend bool operator==(const sequence_state&, const sequence_state&) = default;
};

/// The state as one line of text, "seed=42 epoch=3 batch=17".
[[nodiscard]] inline std::string to_string(const sequence_state& state) {
  std::string text = "seed=";
  text += std::to_string(state.seed);
  text += " epoch=";
  text += std::to_string(state.epoch);
  text += " batch=";
  return text += std::to_string(state.batch);
}

/// Reads what `to_string` wrote, with or without a line's end behind it.
/// @throws format_error that shows the text, where it is anything else
[[nodiscard]] inline sequence_state parse_sequence_state(std::string_view text) {
  std::string_view rest = text;
  const auto number = [&](std::string_view name) {
    std::uint64_t value = 0;
    const bool named = rest.starts_with(name);
    if (named) rest.remove_prefix(name.size());
    const auto read = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (!named || read.ec != std::errc{}) {
      throw format_error(in_quotes(text) +
                         " is no state of a sequence, which looks like 'seed=42 epoch=3 batch=17'");
    }
    rest.remove_prefix(static_cast<std::size_t>(read.ptr - rest.data()));
    return value;
  };
  sequence_state state;
  state.seed = number("seed=");
  state.epoch = number(" epoch=");
  state.batch = number(" batch=");
  if (!rest.empty() && rest != "\n" && rest != "\r\n") {
    throw format_error(in_quotes(text) + " is no state of a sequence: it goes on after its end");
  }
  return state;
}

}  // namespace vggload
