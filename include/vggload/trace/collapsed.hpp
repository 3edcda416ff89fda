// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include <vggload/core/error.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/trace/replay.hpp>
#include <vggload/trace/text.hpp>

namespace vggload {

namespace detail {

/// A name as a frame of a stack. ';' parts frames and a newline lines; and flamegraph.pl takes a
/// number after white space for the count.
[[nodiscard]] inline std::string stack_frame(std::string_view name) {
  if (name.empty()) return "(none)";
  const std::string text = as_utf8(name);
  std::string frame;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t control_bytes = leading_control_bytes(rest);
    const bool replaced = control_bytes > 0 || rest.front() == ' ' || rest.front() == ';';
    frame += replaced ? '_' : rest.front();
    rest.remove_prefix(std::max<std::size_t>(control_bytes, 1));
  }
  return frame;
}

}  // namespace detail

/// What fills the memory at its peak, as collapsed stacks, one for each piece: lines
/// "role;layer;tensor bytes", which flamegraph.pl and speedscope.app open. Where memory ran out,
/// what was planned or asked for and never came is among them. The role of pieces in mapped files
/// is "mapped_weights": they hold no memory.
[[nodiscard]] inline std::string collapsed_stacks(const ledger_snapshot& ledger) {
  std::string text;
  for (const ledger_piece* piece : detail::pieces_at_peak(ledger)) {
    (text += detail::role_text(ledger, *piece)) += ';';
    (text += detail::stack_frame(piece->layer)) += ';';
    (text += detail::stack_frame(piece->name)) += ' ';
    (text += std::to_string(piece->bytes)) += '\n';
  }
  return text;
}

}  // namespace vggload
