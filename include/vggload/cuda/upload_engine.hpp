// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/cuda/health.hpp>
#include <vggload/load/upload_ring.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload::cuda {

/// A device to upload to, as a type: what is built on it includes no header of CUDA's, and a test
/// puts a fake in its place, on any machine. `runtime_device` (cuda/runtime_device.cuh) is CUDA
/// itself. A handle; all may be called from several threads at once, and all but the last three
/// throw where the device refuses, or tells of an earlier error.
///
/// - `stream`, `event`: an order of work, and a place in it; move-only, made by their default
///   constructors.
/// - `copy_to_device(to, from, order)`, `set_zero(to, bytes, order)`: begin, and do not wait.
/// - `convert(to, source, destination, count, health, order)`: begins the conversion of `count` FP32
///   elements, both in memory of the device, to `to`, F16 or BF16; adds to `*health`.
/// - `record(place, order)`, `wait(order, place)`: put the event behind what is in the stream, and
///   what comes into the stream behind the event.
/// - `synchronize(place)`: returns when the device has come to the event.
/// - `copy_to_host(to, from)`: returns when the bytes are there.
/// - `drain(order)`: returns when the stream's work is done, or can no longer be done.
/// - `describe(report, allocated)`: tells what memory the device has and who holds it, as far as can be
///   known; `allocated`: bytes that this program has there.
template <class D>
concept upload_device = std::copyable<D> && memory_resource<typename D::device_resource> &&
    host_accessible_resource<typename D::pinned_resource> &&
    std::default_initializable<typename D::stream> &&
    std::default_initializable<typename D::event> &&
    requires(const D& device, std::byte* address, const std::byte* source,
             std::span<const std::byte> bytes, std::span<std::byte> room, std::size_t count,
             dtype type, health_accumulator* health, typename D::stream& order,
             typename D::event& place, memory_report& report) {
  device.copy_to_device(address, bytes, order);
  device.set_zero(address, count, order);
  device.convert(type, source, address, count, health, order);
  device.record(place, order);
  device.wait(order, place);
  device.synchronize(place);
  device.copy_to_host(room, source);
  { device.drain(order) }
  noexcept->std::same_as<void>;
  { device.describe(report, std::uint64_t{}) }
  noexcept->std::same_as<void>;
};

/// Whether a device converts between these types itself.
[[nodiscard]] constexpr bool is_converted_on_device(dtype from, dtype to) noexcept {
  return from == dtype::f32 && (to == dtype::f16 || to == dtype::bf16);
}

/// What becomes of a range of the bytes that are staged: of one tensor's.
struct upload_segment {
  std::uint64_t begin;  // in the range of all that is staged
  std::uint64_t end;
  std::byte* destination;  // on the device
  /// Nothing: the bytes are copied as they are. Otherwise FP32 is staged and converted on the
  /// device; begin and end are then multiples of 4.
  std::optional<dtype> converted = {};
  health_accumulator* health = nullptr;  // on the device, where that converts
};

namespace detail {

/// Calls `on_piece(segment, piece, at)` for what lies in each segment of the bytes staged for
/// `offset`; `at` is the piece's place in the segment. `segments` are in order.
template <class OnPiece>
void for_each_piece(std::span<const upload_segment> segments, std::uint64_t offset,
                    std::span<const std::byte> staged, const OnPiece& on_piece) {
  const std::uint64_t end = offset + staged.size();
  auto s = std::ranges::upper_bound(segments, offset, {}, &upload_segment::end);
  for (; s != segments.end() && s->begin < end; ++s) {
    const std::uint64_t from = std::max(offset, s->begin);
    const std::uint64_t to = std::min(end, s->end);
    if (from == to) continue;  // an empty tensor
    on_piece(*s,
             staged.subspan(static_cast<std::size_t>(from - offset),
                            static_cast<std::size_t>(to - from)),
             from - s->begin);
  }
}

}  // namespace detail

/// Copies from a ring of pinned memory to a device; what is to be converted there goes by way of a
/// window of the device's memory.
///
/// The window mirrors the ring: each slot has its own place there, so that a copy overwrites
/// nothing that a kernel still reads, because the slot is not filled again before its kernel is
/// done. All copies are on one stream, because they share one path to the device and several streams would
/// only take turns; all kernels are on a second one, where each waits for its slot's copy. So the
/// path never waits for a kernel. One event for each slot tells the host when its memory is free
/// again; nothing waits for the device as a whole.
template <upload_device Device>
class upload_engine {
 public:
  /// `ring`: the pinned memory that slots are cut from. `window`: as large, or empty where no
  /// segment is converted on the device. Owns neither. Throws what the device throws.
  upload_engine(Device device, std::vector<upload_segment> segments,
                std::span<const std::byte> ring, memory_span<memory_access::device> window,
                std::size_t slots)
      : device_(std::move(device)),
        segments_(std::move(segments)),
        ring_(ring),
        window_(window),
        slots_(slots) {}

  void submit(std::size_t slot, std::span<const std::byte> staged, std::uint64_t offset) {
    bool converts = false;
    detail::for_each_piece(segments_, offset, staged,
                           [&, this](const upload_segment& segment,
                                     std::span<const std::byte> piece, std::uint64_t at) {
                             converts = converts || segment.converted;
                             std::byte* const to =
                                 segment.converted ? mirrored(piece) : segment.destination + at;
                             device_.copy_to_device(to, piece, copies_);
                           });
    events& places = slots_[slot];
    if (!converts) {
      device_.record(places.done, copies_);
      return;
    }
    device_.record(places.copied, copies_);
    device_.wait(conversions_, places.copied);
    detail::for_each_piece(
        segments_, offset, staged,
        [&, this](const upload_segment& segment, std::span<const std::byte> piece,
                  std::uint64_t at) {
          if (!segment.converted) return;
          if (at % sizeof(float) != 0 || piece.size() % sizeof(float) != 0) {
            throw error("FP32 elements for a conversion on the device are staged in parts");
          }
          const std::uint64_t converted_at = at / sizeof(float) * sizeof(float16);
          device_.convert(*segment.converted, mirrored(piece), segment.destination + converted_at,
                          piece.size() / sizeof(float), segment.health, conversions_);
        });
    device_.record(places.done, conversions_);
  }

  void wait(std::size_t slot) { device_.synchronize(slots_[slot].done); }

  void drain() noexcept {
    device_.drain(copies_);
    device_.drain(conversions_);
  }

 private:
  struct events {
    typename Device::event copied;
    typename Device::event done;  // with the copy and the conversion
  };

  [[nodiscard]] std::byte* mirrored(std::span<const std::byte> piece) const noexcept {
    return window_.data() + (piece.data() - ring_.data());
  }

  Device device_;
  std::vector<upload_segment> segments_;
  std::span<const std::byte> ring_;
  memory_span<memory_access::device> window_;
  typename Device::stream copies_;
  typename Device::stream conversions_;
  std::vector<events> slots_;
};

}  // namespace vggload::cuda
