// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/trace/replay.hpp>
#include <vggload/trace/text.hpp>

namespace vggload {

namespace detail {

/// Writes a pickle of protocol 2 made of dicts, lists, texts and numbers. By hand: that takes ten
/// opcodes, and no C++ library in use writes pickles. Only opcodes that the reader in torch's page
/// knows, too (unpickle in torch/utils/viz/MemoryViz.js); what each does: pickletools.py of CPython.
class pickle_writer {
 public:
  pickle_writer() : bytes_("\x80\x02") {}

  void begin_dict() { bytes_ += '}'; }
  void begin_list() { bytes_ += ']'; }
  void text(std::string_view value) {
    const std::string utf8 = as_utf8(value);
    bytes_ += 'X';
    little_endian(utf8.size(), 4);
    bytes_ += utf8;
  }
  void number(std::uint64_t value) {
    if (value < 0x100) {
      bytes_ += 'K';
      little_endian(value, 1);
    } else if (value < 0x80000000U) {
      bytes_ += 'J';
      little_endian(value, 4);
    } else {
      // Signed: nine bytes where the eighth has its highest bit set.
      const unsigned size = value >> 63U == 0 ? 8 : 9;
      ((bytes_ += '\x8A') += static_cast<char>(size));
      little_endian(value, 8);
      bytes_.append(size - 8, '\0');
    }
  }
  /// The value that was just written becomes the last one of the list before it.
  void append() { bytes_ += 'a'; }
  /// The key and the value that were just written become an entry of the dict before them.
  void set() { bytes_ += 's'; }

  void field(std::string_view key, std::string_view value) {
    text(key);
    text(value);
    set();
  }
  void field(std::string_view key, std::uint64_t value) {
    text(key);
    number(value);
    set();
  }

  [[nodiscard]] std::string take() && { return std::move(bytes_ += '.'); }

 private:
  void little_endian(std::uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) bytes_ += static_cast<char>(value >> 8U * i & 0xFFU);
  }

  std::string bytes_;
};

class memory_viz_writer {
 public:
  explicit memory_viz_writer(const ledger_snapshot& ledger) : ledger_(ledger) {}

  [[nodiscard]] std::string write() && {
    pickle_.begin_dict();
    pickle_.text("segments");
    pickle_.begin_list();
    for (std::size_t i = 0; i < ledger_.blocks.size(); ++i) {
      if (ledger_.blocks[i].live && ledger_.blocks[i].bytes > 0) segment(i);
    }
    pickle_.set();
    pickle_.text("device_traces");
    pickle_.begin_list();
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      pickle_.begin_list();
      trace(static_cast<memory_kind>(kind));
      pickle_.append();
    }
    pickle_.set();
    return std::move(pickle_).take();
  }

 private:
  static constexpr std::size_t kinds = 4;  // of `memory_kind`

  /// Whether the page can show it: empty pieces share their address with what follows.
  [[nodiscard]] bool shown(const ledger_piece& piece) const {
    return piece.block != ledger_piece::no_block && piece.bytes > 0 &&
           in_bounds(piece.offset, piece.bytes, ledger_.blocks[piece.block].bytes);
  }

  void segment(std::size_t index) {
    const ledger_block& block = ledger_.blocks[index];
    std::vector<const ledger_piece*> pieces;
    for (const ledger_piece& piece : ledger_.pieces) {
      if (piece.block == index && piece.live && shown(piece)) pieces.push_back(&piece);
    }
    std::ranges::stable_sort(pieces, {}, &ledger_piece::offset);
    pickle_.begin_dict();
    pickle_.field("device", static_cast<std::uint64_t>(block.kind));
    pickle_.field("address", block.address);
    pickle_.field("total_size", block.bytes);
    pickle_.field("stream", std::uint64_t{0});
    pickle_.field("segment_type", name_of(block.kind));
    pickle_.text("blocks");
    pickle_.begin_list();
    std::uint64_t end = 0;
    std::uint64_t allocated = 0;
    for (const ledger_piece* piece : pieces) {
      if (piece->offset < end) continue;  // a tensor that shares the bytes of another
      gap(piece->offset - end);
      state("active_allocated", piece->bytes);
      frames(block, piece->name);
      pickle_.append();
      end = piece->offset + piece->bytes;
      allocated += piece->bytes;
    }
    gap(block.bytes - end);
    pickle_.set();
    pickle_.field("allocated_size", allocated);
    pickle_.field("active_size", allocated);
    frames(block, block.name);
    pickle_.append();
  }

  void gap(std::uint64_t bytes) {
    if (bytes == 0) return;
    state("inactive", bytes);
    pickle_.text("frames");
    pickle_.begin_list();
    pickle_.set();
    pickle_.append();
  }

  /// Begins a block of a segment.
  void state(std::string_view name, std::uint64_t bytes) {
    pickle_.begin_dict();
    pickle_.field("size", bytes);
    pickle_.field("requested_size", bytes);
    pickle_.field("state", name);
  }

  /// The stack of an allocation is one frame: the tensor, in its block.
  void frames(const ledger_block& block, std::string_view name) {
    pickle_.text("frames");
    pickle_.begin_list();
    pickle_.begin_dict();
    pickle_.field("filename", block.name);
    pickle_.field("line", std::uint64_t{0});
    pickle_.field("name", name);
    pickle_.append();
    pickle_.set();
  }

  void trace(memory_kind kind) {
    // The ledger does not say of which memory there was not enough: it goes with the block before it.
    auto last_kind = memory_kind::host;
    std::uint64_t free = 0;  // in the blocks of this kind
    for (const ledger_event& event : ledger_.events) {
      switch (event.kind) {
        case ledger_event_kind::block_allocated:
        case ledger_event_kind::block_freed: {
          const ledger_block& block = ledger_.blocks[event.index];
          const bool allocated = event.kind == ledger_event_kind::block_allocated;
          if (allocated) last_kind = block.kind;
          if (block.kind != kind || block.bytes == 0) break;
          free = allocated ? free + block.bytes : free - block.bytes;
          // Where any event has a category, the page asks for one that is unknown and, in some
          // versions, fails where there is none.
          action(allocated ? "segment_alloc" : "segment_free", event, block.address, block,
                 block.name, allocated ? "unknown" : "");
          break;
        }
        case ledger_event_kind::allocated:
        case ledger_event_kind::freed: {
          const ledger_piece& piece = ledger_.pieces[event.index];
          if (!shown(piece)) break;
          const ledger_block& block = ledger_.blocks[piece.block];
          if (block.kind != kind) break;
          const std::uint64_t address = block.address + piece.offset;
          if (event.kind == ledger_event_kind::allocated) {
            free -= piece.bytes;
            action("alloc", event, address, block, piece.name, role_text(ledger_, piece));
          } else {
            free += piece.bytes;
            action("free_requested", event, address, block, piece.name);
            action("free_completed", event, address, block, piece.name);
          }
          break;
        }
        case ledger_event_kind::out_of_memory:
          if (last_kind == kind) {
            const ledger_block nowhere{"out of memory", kind, 0, 0};
            // The page wants the bytes that are free on the device; known are those in the blocks.
            action("oom", event, free, nowhere, ledger_.pieces[event.index].name);
          }
          break;
        case ledger_event_kind::sampled: break;
      }
    }
  }

  void action(std::string_view name, const ledger_event& event, std::uint64_t address,
              const ledger_block& block, std::string_view tensor, std::string_view category = {}) {
    pickle_.begin_dict();
    pickle_.field("action", name);
    pickle_.field(name == "oom" ? "device_free" : "addr", address);
    pickle_.field("size", event.bytes);
    pickle_.field("stream", std::uint64_t{0});
    const auto time = ledger_.start.time_since_epoch() + event.time;
    const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(time).count();
    pickle_.field("time_us", static_cast<std::uint64_t>(microseconds));
    if (!category.empty()) pickle_.field("category", category);
    frames(block, tensor);
    pickle_.append();
  }

  const ledger_snapshot& ledger_;
  pickle_writer pickle_;
};

}  // namespace detail

/// The ledger as a snapshot that https://pytorch.org/memory_viz and torch.cuda._memory_viz open: a
/// pickle. Each kind of memory is a "device": 0 the host's, 1 pinned, 2 the GPU's, 3 mapped files.
/// A block is a segment; the tensor's name is the one frame of its stack. (The format:
/// torch/cuda/_memory_viz.py and torch/utils/viz/process_alloc_data.js of PyTorch.)
[[nodiscard]] inline std::string memory_viz_pickle(const ledger_snapshot& ledger) {
  return detail::memory_viz_writer(ledger).write();
}

}  // namespace vggload
