// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/memory/resource.hpp>

namespace vggload {

/// What a piece of memory is for.
enum class memory_role : std::uint8_t {
  weights,
  masters,  // FP32 copies of 16-bit weights that are trained
  activations,
  gradients,
  optimizer,
  workspace,  // of one operation: patches of a convolution, widened weights
  staging,    // on the way from the file: windows, pinned slots
  context,    // the CUDA context's own
  other,
};

[[nodiscard]] constexpr std::string_view name_of(memory_role role) noexcept {
  constexpr std::array<std::string_view, 9> names{"weights",   "masters",   "activations",
                                                  "gradients", "optimizer", "workspace",
                                                  "staging",   "context",   "other"};
  return names[static_cast<std::size_t>(role)];
}

/// What is to be known of a piece of memory beside its size. A mere name is one, too. Refers to
/// the texts: for arguments only.
struct memory_tag {
  std::string_view name;
  std::string_view layer = {};
  memory_role role = memory_role::other;

  template <std::convertible_to<std::string_view> Name>
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr memory_tag(const Name& its_name, std::string_view its_layer = {},
                       memory_role its_role = memory_role::other) noexcept
      : name(its_name), layer(its_layer), role(its_role) {}
};

/// Where memory is.
enum class memory_kind : std::uint8_t {
  host,
  pinned,  // host memory that a device reads and writes
  device,
  mapped_file,  // pages of a file, which the kernel drops when it needs them: never counted
};

[[nodiscard]] constexpr std::string_view name_of(memory_kind kind) noexcept {
  constexpr std::array<std::string_view, 4> names{"host", "pinned", "device", "mapped file"};
  return names[static_cast<std::size_t>(kind)];
}

[[nodiscard]] constexpr memory_kind kind_of(memory_access access) noexcept {
  if (access == memory_access::device) return memory_kind::device;
  return access == memory_access::host ? memory_kind::host : memory_kind::pinned;
}

/// Memory that was taken at once, in which pieces lie.
struct ledger_block {
  std::string name;
  memory_kind kind;
  std::uint64_t address;
  std::uint64_t bytes;
  bool live = true;
};

/// A tensor or another named piece of a block; or one that was planned or asked for and never came.
struct ledger_piece {
  static constexpr std::size_t no_block = SIZE_MAX;

  std::string name;
  std::string layer;
  memory_role role;
  std::uint64_t bytes;
  std::size_t block = no_block;  // its index
  std::uint64_t offset = 0;      // in the block
  bool live = false;
};

enum class ledger_event_kind : std::uint8_t {
  block_allocated,
  block_freed,
  allocated,
  freed,
  out_of_memory,
  sampled,
};

/// Something that happened to memory.
struct ledger_event {
  std::chrono::nanoseconds time;  // since the ledger was made
  ledger_event_kind kind;
  std::size_t index;    // of the block or piece; of out_of_memory: of the piece that was asked for
  std::uint64_t bytes;  // its size; of a sample the bytes that the process had resident
};

/// All that a ledger knows, at one moment.
struct ledger_snapshot {
  std::chrono::system_clock::time_point start;
  std::vector<ledger_block> blocks;
  std::vector<ledger_piece> pieces;
  std::vector<ledger_event> events;
  std::uint64_t live_bytes = 0;    // of pieces, without those in mapped files
  std::uint64_t peak_bytes = 0;    // the most that `live_bytes` has been
  std::size_t peak_event = 0;      // the event after which it first was
  std::uint64_t lost_events = 0;   // that could not be recorded: memory was out
  std::string out_of_memory_text;  // what the first such error said
};

/// The book of what memory is for: which tensor lies in which block, since when, and what was asked
/// for in vain. Arenas keep it where they are given one. It never throws: an entry that cannot be
/// made is counted as lost. From any number of threads.
class memory_ledger {
 public:
  static constexpr std::size_t no_block = ledger_piece::no_block;

  memory_ledger() { book_.start = std::chrono::system_clock::now(); }

  /// A piece that is going to be asked for. When it is allocated, under the same name, this entry
  /// becomes it.
  void plan(const memory_tag& tag, std::uint64_t bytes) noexcept {
    record([&, this] { (void)add_piece(tag, bytes); });
  }

  /// Returns the block's index, `no_block` where it could not be recorded.
  [[nodiscard]] std::size_t block_allocated(std::string_view name, memory_kind kind,
                                            std::uint64_t address, std::uint64_t bytes) noexcept {
    std::size_t index = no_block;
    record([&, this] {
      book_.blocks.push_back({std::string(name), kind, address, bytes});
      index = book_.blocks.size() - 1;
      add_event(ledger_event_kind::block_allocated, index, bytes);
    });
    return index;
  }

  /// A piece from `offset` of the block on, which `no_block` may be: nothing is recorded then.
  void allocated(std::size_t block, const memory_tag& tag, std::uint64_t offset,
                 std::uint64_t bytes) noexcept {
    if (block == no_block) return;
    record([&, this] {
      const std::size_t index = planned_or_new(tag, bytes);
      ledger_piece& piece = book_.pieces[index];
      add_event(ledger_event_kind::allocated, index, bytes);
      piece.block = block;
      piece.offset = offset;
      piece.live = true;
      if (book_.blocks[block].kind == memory_kind::mapped_file) return;
      book_.live_bytes += bytes;
      if (book_.live_bytes > book_.peak_bytes) {
        book_.peak_bytes = book_.live_bytes;
        book_.peak_event = book_.events.size() - 1;
      }
    });
  }

  /// The block and all pieces in it are free again.
  void block_freed(std::size_t block) noexcept {
    if (block == no_block) return;
    // Entries may be lost, where memory is out; what is free must not stay in the book as live.
    const std::scoped_lock lock(mutex_);
    const bool counts = book_.blocks[block].kind != memory_kind::mapped_file;
    for (std::size_t i = 0; i < book_.pieces.size(); ++i) {
      ledger_piece& piece = book_.pieces[i];
      if (piece.block != block || !piece.live) continue;
      piece.live = false;
      if (counts) book_.live_bytes -= piece.bytes;
      try_to([&, this] { add_event(ledger_event_kind::freed, i, piece.bytes); });
    }
    book_.blocks[block].live = false;
    try_to(
        [&, this] { add_event(ledger_event_kind::block_freed, block, book_.blocks[block].bytes); });
  }

  /// Somebody asked for memory that was not there. `text`: what the error says.
  void out_of_memory(const memory_tag& tag, std::uint64_t bytes, std::string_view text) noexcept {
    record([&, this] {
      const std::size_t index = planned_or_new(tag, bytes);
      add_event(ledger_event_kind::out_of_memory, index, bytes);
      if (book_.out_of_memory_text.empty()) book_.out_of_memory_text = text;
    });
  }

  /// What the process has resident now (`read_process_memory`): a point of the timeline.
  void sample(std::uint64_t resident_bytes) noexcept {
    record([&, this] { add_event(ledger_event_kind::sampled, 0, resident_bytes); });
  }

  /// A copy of the book. Throws std::bad_alloc.
  [[nodiscard]] ledger_snapshot snapshot() const {
    const std::scoped_lock lock(mutex_);
    return book_;
  }

  [[nodiscard]] std::uint64_t live_bytes() const noexcept {
    const std::scoped_lock lock(mutex_);
    return book_.live_bytes;
  }
  [[nodiscard]] std::uint64_t peak_bytes() const noexcept {
    const std::scoped_lock lock(mutex_);
    return book_.peak_bytes;
  }

 private:
  template <class Entry>
  void record(Entry&& entry) noexcept {
    const std::scoped_lock lock(mutex_);
    try_to(entry);
  }

  template <class Entry>
  void try_to(Entry&& entry) noexcept {
    try {
      entry();
    } catch (...) {
      ++book_.lost_events;
    }
  }

  void add_event(ledger_event_kind kind, std::size_t index, std::uint64_t bytes) {
    book_.events.push_back({std::chrono::steady_clock::now() - start_, kind, index, bytes});
  }

  std::size_t add_piece(const memory_tag& tag, std::uint64_t bytes) {
    book_.pieces.push_back({std::string(tag.name), std::string(tag.layer), tag.role, bytes});
    return book_.pieces.size() - 1;
  }

  /// The index of the piece that was planned under this name, or of a new one.
  std::size_t planned_or_new(const memory_tag& tag, std::uint64_t bytes) {
    const auto planned = std::ranges::find_if(book_.pieces, [&](const ledger_piece& piece) {
      return piece.block == no_block && piece.name == tag.name && piece.role == tag.role;
    });
    if (planned == book_.pieces.end()) return add_piece(tag, bytes);
    planned->bytes = bytes;
    return static_cast<std::size_t>(planned - book_.pieces.begin());
  }

  mutable std::mutex mutex_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  ledger_snapshot book_;
};

/// A block in a ledger, for as long as this lives; without a ledger nothing. Moves, never copies.
class ledger_entry {
 public:
  ledger_entry() = default;
  ledger_entry(std::shared_ptr<memory_ledger> ledger, std::string_view name, memory_kind kind,
               std::uint64_t address, std::uint64_t bytes) noexcept
      : ledger_(std::move(ledger)) {
    if (ledger_) block_ = ledger_->block_allocated(name, kind, address, bytes);
  }
  ledger_entry(ledger_entry&& other) noexcept
      : ledger_(std::move(other.ledger_)),
        block_(std::exchange(other.block_, memory_ledger::no_block)) {}
  ledger_entry& operator=(ledger_entry&& other) noexcept {
    ledger_entry moved(std::move(other));
    std::swap(ledger_, moved.ledger_);
    std::swap(block_, moved.block_);
    return *this;
  }
  ~ledger_entry() {
    if (ledger_) ledger_->block_freed(block_);
  }

  /// A piece from `offset` of the block on.
  void allocated(const memory_tag& tag, std::uint64_t offset, std::uint64_t bytes) noexcept {
    if (ledger_) ledger_->allocated(block_, tag, offset, bytes);
  }
  /// As `memory_ledger::out_of_memory`.
  void out_of_memory(const memory_tag& tag, std::uint64_t bytes, std::string_view text) noexcept {
    if (ledger_) ledger_->out_of_memory(tag, bytes, text);
  }

 private:
  std::shared_ptr<memory_ledger> ledger_;
  std::size_t block_ = memory_ledger::no_block;
};

}  // namespace vggload
