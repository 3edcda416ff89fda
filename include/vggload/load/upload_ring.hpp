// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/load/stream.hpp>

namespace vggload {

/// What copies bytes from host memory to a destination out of the host's reach while its caller goes
/// on. Copies are made from numbered slots of host memory. A slot has one copy under way at most,
/// so the slot's number tells which copy is meant.
///
/// - `submit(slot, staged, offset)`: begins the copy of `staged`, all of it in the slot, to `offset`
///   of the destination, and does not wait for it. Where it throws, the copy may be under way all the
///   same, until `drain`.
/// - `wait(slot)`: returns when the copy that was last submitted from the slot is complete. Copies may
///   complete in any order, and none may depend on another call to complete.
/// - `drain()`: returns when no copy is under way, whatever has failed before.
///
/// All may be called from several threads at once, `submit` and `wait` each with slots of its own.
/// Both throw where the copy, or one before it, failed.
template <class E>
concept copy_engine = requires(E& engine, std::size_t slot, std::span<const std::byte> staged,
                               std::uint64_t offset) {
  { engine.submit(slot, staged, offset) } -> std::same_as<void>;
  { engine.wait(slot) } -> std::same_as<void>;
  { engine.drain() }
  noexcept->std::same_as<void>;
};

/// How a ring's memory is divided: into equal slots, as many for each worker.
struct ring_geometry {
  unsigned workers = 1;
  std::size_t slots_per_worker = 0;
  std::size_t slot_bytes = 0;

  [[nodiscard]] std::size_t slots() const noexcept { return workers * slots_per_worker; }
};

/// What a ring usually takes: 4 slots of the largest size.
inline constexpr std::size_t preferred_ring_bytes = std::size_t{16} << 20U;
/// Longer copies are no faster, and the first one would begin later.
inline constexpr std::size_t largest_slot_bytes = std::size_t{4} << 20U;
/// Slots begin at multiples of a page: good for every copy and every vector.
inline constexpr std::size_t slot_alignment = std::size_t{4} << 10U;

/// Divides a ring among `workers`, at least 1: two slots for each or, where slots have their largest
/// size, more. 16 MiB are 4 slots of 4 MiB for one worker, and 32 of 512 KiB for 16. Throws `error`
/// where two slots for each would have less than `slot_alignment` bytes.
[[nodiscard]] inline ring_geometry divide_ring(std::size_t bytes, unsigned workers) {
  const std::size_t share = bytes / workers;
  ring_geometry ring;
  ring.workers = workers;
  ring.slot_bytes = std::min(largest_slot_bytes, share / 2 / slot_alignment * slot_alignment);
  if (ring.slot_bytes == 0) {
    throw error("a ring of " + std::to_string(bytes) + " bytes is too small for " +
                std::to_string(workers) + " workers: each needs two slots of " +
                std::to_string(slot_alignment) + " bytes");
  }
  ring.slots_per_worker = share / ring.slot_bytes;
  return ring;
}

/// A destination that is reached by copies from a ring of host memory: windows are filled in the
/// ring's slots, and a slot is submitted to the engine as one copy when the next window does not
/// continue it. Waits for nothing but a slot to fill, so that copies and reading overlap.
///
/// Each worker has slots of its own and takes them in turn. It waits only for a copy from one of its
/// own slots, which is submitted by then and needs nobody to complete: workers cannot block each
/// other, whatever their number, and share nothing that would have to be locked. While one slot is
/// filled, the worker's others are under way.
///
/// Owns neither the engine nor the memory. After an error from the engine it can only be destroyed.
template <copy_engine Engine>
class upload_ring {
 public:
  /// `memory`: the slots, as `divide_ring` divides them among `workers`; throws what that throws.
  upload_ring(Engine& engine, std::span<std::byte> memory, unsigned workers)
      : engine_(engine),
        memory_(memory),
        geometry_(divide_ring(memory.size(), workers)),
        lanes_(workers) {}
  upload_ring(const upload_ring&) = delete;
  upload_ring& operator=(const upload_ring&) = delete;
  /// Waits for the copies that are under way; what was not submitted is lost.
  ~upload_ring() { engine_.drain(); }

  [[nodiscard]] const ring_geometry& geometry() const noexcept { return geometry_; }

  /// Throws what the engine throws, and `error` where the window is larger than a slot.
  [[nodiscard]] std::span<std::byte> begin_window(unsigned worker, std::uint64_t offset,
                                                  std::size_t bytes) {
    if (bytes > geometry_.slot_bytes) {
      throw error("a window of " + std::to_string(bytes) + " bytes does not fit into a slot of " +
                  std::to_string(geometry_.slot_bytes));
    }
    lane& mine = lanes_[worker];
    const bool continues =
        offset == mine.offset + mine.filled && bytes <= geometry_.slot_bytes - mine.filled;
    if (mine.filled > 0 && !continues) submit(worker);
    if (mine.filled == 0 && mine.submitted >= geometry_.slots_per_worker) {
      engine_.wait(slot_of(worker, mine.submitted));
    }
    return slot_memory(slot_of(worker, mine.submitted)).subspan(mine.filled, bytes);
  }

  void end_window(unsigned worker, std::uint64_t offset, std::span<std::byte> window) noexcept {
    lane& mine = lanes_[worker];
    if (mine.filled == 0) mine.offset = offset;
    mine.filled += window.size();
  }

  /// Submits what is filled and waits until everything has arrived. Called once, after the last
  /// window, when no worker is at work. Throws what the engine throws.
  void finish() {
    for (unsigned worker = 0; worker < geometry_.workers; ++worker) {
      if (lanes_[worker].filled > 0) submit(worker);
    }
    for (unsigned worker = 0; worker < geometry_.workers; ++worker) {
      const std::uint64_t submitted = lanes_[worker].submitted;
      std::uint64_t copy =
          submitted - std::min<std::uint64_t>(submitted, geometry_.slots_per_worker);
      for (; copy < submitted; ++copy) engine_.wait(slot_of(worker, copy));
    }
  }

 private:
  /// What a worker is at. In a cache line of its own: workers write theirs all the time.
  struct alignas(64) lane {
    std::uint64_t submitted = 0;  // copies; so it is also the number of the one that is filled
    std::uint64_t offset = 0;     // in the destination, of the slot that is filled
    std::size_t filled = 0;       // bytes of that slot
  };

  [[nodiscard]] std::size_t slot_of(unsigned worker, std::uint64_t copy) const noexcept {
    return worker * geometry_.slots_per_worker +
           static_cast<std::size_t>(copy % geometry_.slots_per_worker);
  }
  [[nodiscard]] std::span<std::byte> slot_memory(std::size_t slot) const noexcept {
    return memory_.subspan(slot * geometry_.slot_bytes, geometry_.slot_bytes);
  }

  void submit(unsigned worker) {
    lane& mine = lanes_[worker];
    const std::size_t slot = slot_of(worker, mine.submitted);
    engine_.submit(slot, slot_memory(slot).first(mine.filled), mine.offset);
    ++mine.submitted;
    mine.filled = 0;
  }

  Engine& engine_;
  std::span<std::byte> memory_;
  ring_geometry geometry_;
  std::vector<lane> lanes_;  // one for each worker
};

}  // namespace vggload
