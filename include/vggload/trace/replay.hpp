// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <vggload/memory/ledger.hpp>

namespace vggload::detail {

/// Whether a piece lies in the pages of a file, which hold no memory of their own.
[[nodiscard]] inline bool in_mapped_file(const ledger_snapshot& ledger, const ledger_piece& piece) {
  return piece.block != ledger_piece::no_block &&
         ledger.blocks[piece.block].kind == memory_kind::mapped_file;
}

/// "weights", or "mapped_weights" where a file has them.
[[nodiscard]] inline std::string role_text(const ledger_snapshot& ledger,
                                           const ledger_piece& piece) {
  std::string text = in_mapped_file(ledger, piece) ? "mapped_" : "";
  return text += name_of(piece.role);
}

[[nodiscard]] inline bool ran_out(const ledger_snapshot& ledger) {
  return std::ranges::find(ledger.events, ledger_event_kind::out_of_memory, &ledger_event::kind) !=
         ledger.events.end();
}

/// Which pieces are live after the first `count` events.
[[nodiscard]] inline std::vector<bool> live_after(const ledger_snapshot& ledger,
                                                  std::size_t count) {
  std::vector<bool> live(ledger.pieces.size());
  for (std::size_t i = 0; i < std::min(count, ledger.events.size()); ++i) {
    const ledger_event& event = ledger.events[i];
    if (event.kind == ledger_event_kind::allocated) live[event.index] = true;
    if (event.kind == ledger_event_kind::freed) live[event.index] = false;
  }
  return live;
}

/// How many events there are up to the moment when mapped files had the most pieces: a peak of their
/// own, as the ledger's does not count them.
[[nodiscard]] inline std::size_t events_to_mapped_peak(const ledger_snapshot& ledger) {
  std::uint64_t mapped = 0;
  std::uint64_t most = 0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < ledger.events.size(); ++i) {
    const ledger_event& event = ledger.events[i];
    const bool allocated = event.kind == ledger_event_kind::allocated;
    if (!allocated && event.kind != ledger_event_kind::freed) continue;
    if (!in_mapped_file(ledger, ledger.pieces[event.index])) continue;
    mapped = allocated ? mapped + event.bytes : mapped - event.bytes;
    if (mapped <= most) continue;
    most = mapped;
    count = i + 1;
  }
  return count;
}

/// What is to be shown of a ledger in one picture: the pieces that are live at the peak and, where
/// memory ran out, those that were planned or asked for and never came. Without empty ones.
[[nodiscard]] inline std::vector<const ledger_piece*> pieces_at_peak(
    const ledger_snapshot& ledger) {
  const auto live = live_after(ledger, ledger.peak_bytes > 0 ? ledger.peak_event + 1 : 0);
  const auto mapped = live_after(ledger, events_to_mapped_peak(ledger));
  const bool with_missing = ran_out(ledger);
  std::vector<const ledger_piece*> pieces;
  for (std::size_t i = 0; i < ledger.pieces.size(); ++i) {
    const ledger_piece& piece = ledger.pieces[i];
    const bool came = piece.block != ledger_piece::no_block;
    const bool shown = !came ? with_missing : in_mapped_file(ledger, piece) ? mapped[i] : live[i];
    if (shown && piece.bytes > 0) pieces.push_back(&piece);
  }
  return pieces;
}

}  // namespace vggload::detail
