// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include <vggload/core/checked.hpp>

namespace vggload {

/// One axis of a tensor that is not dense or not in order: `count` steps of `stride` bytes each.
struct strided_axis {
  std::uint64_t count;
  std::uint64_t stride;
};

namespace detail {

/// Reads bytes [offset, offset + out.size()) of a row of elements that can only be read whole:
/// `read_elements(index, bytes)` fills `bytes`, a multiple of `element_bytes` (up to 16).
template <class ReadElements>
void read_whole_elements(std::size_t element_bytes, std::uint64_t offset, std::span<std::byte> out,
                         ReadElements&& read_elements) {
  const auto read_part = [&](std::span<std::byte> part) {
    std::array<std::byte, 16> element;
    read_elements(offset / element_bytes, std::span(element).first(element_bytes));
    std::memcpy(part.data(), element.data() + offset % element_bytes, part.size());
    offset += part.size();
    out = out.subspan(part.size());
  };
  if (const std::size_t inside = offset % element_bytes; inside != 0 && !out.empty()) {
    read_part(out.first(std::min(element_bytes - inside, out.size())));
  }
  const auto whole = out.first(out.size() / element_bytes * element_bytes);
  if (!whole.empty()) {
    read_elements(offset / element_bytes, whole);
    offset += whole.size();
    out = out.subspan(whole.size());
  }
  if (!out.empty()) read_part(out);
}

/// Elements that lie in steps of any size, also of none (one element seen many times).
class strided_layout {
 public:
  /// `axes`: slowest first, of a tensor whose elements are all within 64 bits of bytes and none of
  /// whose counts is 0.
  strided_layout(std::span<const strided_axis> axes, std::size_t element_bytes)
      : element_bytes_(element_bytes) {
    // Axes of one step do not matter, and two that run on in one stride are one: what is left has
    // at most 64 axes, as each doubles the number of elements at least.
    for (const strided_axis& axis : axes) {
      if (axis.count == 1) continue;
      const auto whole = checked_multiply(axis.count, axis.stride);
      if (!axes_.empty() && whole == axes_.back().stride) {
        axes_.back() = {axes_.back().count * axis.count, axis.stride};
      } else {
        axes_.push_back(axis);
      }
    }
  }

  [[nodiscard]] std::size_t element_bytes() const noexcept { return element_bytes_; }
  [[nodiscard]] std::span<const strided_axis> axes() const noexcept { return axes_; }
  /// Whether the elements follow each other without gaps.
  [[nodiscard]] bool is_dense() const noexcept {
    return axes_.empty() || (axes_.size() == 1 && axes_.front().stride == element_bytes_);
  }

 private:
  std::vector<strided_axis> axes_;
  std::size_t element_bytes_;
};

/// Gathers elements of a strided tensor through reads of runs, as large as they come; see
/// `read_strided`.
template <class Read>
class strided_gather {
 public:
  strided_gather(std::size_t element_bytes, Read& read)
      : element_bytes_(element_bytes), read_(read) {}

  /// Elements [first, first + out.size() / element_bytes) in row-major order; the tensor's first
  /// byte is at `source`.
  void rows(std::span<const strided_axis> axes, std::uint64_t source, std::uint64_t first,
            std::span<std::byte> out) {
    if (out.empty()) return;
    if (axes.empty()) {
      read_(source, out);
      return;
    }
    const strided_axis outer = axes.front();
    std::uint64_t row = 1;  // elements
    for (const strided_axis& axis : axes.subspan(1)) row *= axis.count;
    source += first / row * outer.stride;
    first %= row;
    std::uint64_t count = out.size() / element_bytes_;
    if (first > 0 || count < row) {
      const std::uint64_t part = std::min(count, row - first);
      rows(axes.subspan(1), source, first, take(out, part));
      source += outer.stride;
      count -= part;
    }
    if (const std::uint64_t whole = count / row; whole > 0) {
      std::array<axis_of_box, 64> box;
      std::uint64_t out_stride = take_bytes(row);
      box[0] = {whole, outer.stride, out_stride};
      for (std::size_t i = 1; i < axes.size(); ++i) {
        out_stride /= axes[i].count;
        box[i] = {axes[i].count, axes[i].stride, out_stride};
      }
      const auto used = std::span(box).first(axes.size());
      std::ranges::stable_sort(used, std::greater(), &axis_of_box::stride);
      const auto part = take(out, whole * row);
      read_box(used, source, part.data());
      source += whole * outer.stride;
    }
    rows(axes.subspan(1), source, 0, out);
  }

 private:
  struct axis_of_box {
    std::uint64_t count = 1;
    std::uint64_t stride = 0;      // bytes in the source
    std::uint64_t out_stride = 0;  // bytes
  };

  /// What is read at a time where more than one run is.
  static constexpr std::size_t scratch_bytes = std::size_t{32} << 10U;
  /// Gaps are read too, up to so many bytes for each useful one: a read has a cost of its own.
  static constexpr std::uint64_t most_waste = 16;

  [[nodiscard]] std::uint64_t take_bytes(std::uint64_t elements) const {
    return elements * element_bytes_;
  }
  [[nodiscard]] std::span<std::byte> take(std::span<std::byte>& out, std::uint64_t elements) const {
    const auto part = out.first(static_cast<std::size_t>(take_bytes(elements)));
    out = out.subspan(part.size());
    return part;
  }

  /// Axes by falling stride in the source.
  void read_box(std::span<axis_of_box> axes, std::uint64_t source, std::byte* out) {
    if (axes.size() == 1 && axes[0].stride == element_bytes_ &&
        axes[0].out_stride == element_bytes_) {
      read_(source, std::span(out, static_cast<std::size_t>(axes[0].count * element_bytes_)));
      return;
    }
    std::uint64_t extent = element_bytes_;
    std::uint64_t useful = element_bytes_;
    for (const axis_of_box& axis : axes) {
      extent += (axis.count - 1) * axis.stride;
      if (axis.stride > 0) useful *= axis.count;
    }
    if (extent <= scratch_bytes && extent / most_waste <= useful) {
      read_(source, std::span(scratch_).first(static_cast<std::size_t>(extent)));
      scatter(axes, scratch_.data(), out);
      return;
    }
    // The axis with the longest steps that can still be halved.
    const auto axis = std::ranges::find_if(axes, [](const axis_of_box& a) { return a.count > 1; });
    const std::uint64_t count = axis->count;
    axis->count = count / 2;
    read_box(axes, source, out);
    axis->count = count - count / 2;
    read_box(axes, source + count / 2 * axis->stride, out + count / 2 * axis->out_stride);
    axis->count = count;
  }

  void scatter(std::span<const axis_of_box> axes, const std::byte* source, std::byte* out) const {
    // Copies of a fixed size are fast.
    switch (element_bytes_) {
      case 1: return scatter<1>(axes, source, out);
      case 2: return scatter<2>(axes, source, out);
      case 4: return scatter<4>(axes, source, out);
      case 8: return scatter<8>(axes, source, out);
      default: return scatter<16>(axes, source, out);
    }
  }
  template <std::size_t ElementBytes>
  static void scatter(std::span<const axis_of_box> axes, const std::byte* source, std::byte* out) {
    if (axes.empty()) {
      std::memcpy(out, source, ElementBytes);
      return;
    }
    const axis_of_box axis = axes.front();
    for (std::uint64_t i = 0; i < axis.count; ++i) {
      if (axes.size() > 1) {
        scatter<ElementBytes>(axes.subspan(1), source, out);
      } else {
        std::memcpy(out, source, ElementBytes);
      }
      source += axis.stride;
      out += axis.out_stride;
    }
  }

  std::size_t element_bytes_;
  Read& read_;
  std::array<std::byte, scratch_bytes> scratch_;
};

/// Fills `out` with bytes of the dense row-major payload that a strided tensor has, from `offset`
/// on. `read(offset, bytes)` reads from where the tensor lies, its first element at offset 0.
template <class Read>
void read_strided(const strided_layout& layout, std::uint64_t offset, std::span<std::byte> out,
                  Read&& read) {
  strided_gather<Read> gather(layout.element_bytes(), read);
  read_whole_elements(layout.element_bytes(), offset, out,
                      [&](std::uint64_t first, std::span<std::byte> elements) {
                        gather.rows(layout.axes(), 0, first, elements);
                      });
}

}  // namespace detail

}  // namespace vggload
