// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include <vggload/io/strided_read.hpp>

namespace vggload::detail {

/// A box cut out of a tensor: `count` elements from `begin` on along each axis.
struct permuted_box {
  static constexpr std::size_t most_axes = 64;

  std::array<std::uint64_t, most_axes> begin;
  std::array<std::uint64_t, most_axes> count;
  std::uint64_t elements;
};

/// How the elements of a tensor get into another order without a second copy: box by box, each
/// small enough for a window, and so shaped that both what is read of it and what is written are
/// long runs. (Row by row one of the two would be runs of one element, and a call of the system for
/// each.)
class permutation {
 public:
  /// `layout`: the tensor's axes in the order that they have in the destination, which is dense and
  /// row-major, with their strides in the source, which is dense as well. No box has more than
  /// `most_elements`. `onwards`: boxes follow each other in the source, and each is one run there.
  permutation(const strided_layout& layout, std::uint64_t most_elements, bool onwards)
      : element_bytes_(layout.element_bytes()),
        axes_(layout.axes().begin(), layout.axes().end()),
        box_(axes_.size()),
        by_stride_(axes_.size()) {
    std::iota(by_stride_.begin(), by_stride_.end(), std::size_t{0});
    std::ranges::sort(by_stride_, std::greater(),
                      [this](std::size_t a) { return axes_[a].stride; });
    for (std::size_t a = 0; a < axes_.size(); ++a) box_[a] = axes_[a].count;
    while (elements_of(box_) > most_elements) {
      std::uint64_t& count = box_[onwards ? slowest() : best_to_halve()];
      count = (count + 1) / 2;
    }
    for (std::size_t a = 0; a < axes_.size(); ++a) boxes_ *= boxes_along(a);
  }

  [[nodiscard]] std::uint64_t boxes() const noexcept { return boxes_; }

  /// One of the boxes, which are numbered in the order of the source.
  [[nodiscard]] permuted_box box(std::uint64_t number) const noexcept {
    permuted_box box;
    box.elements = 1;
    for (std::size_t i = by_stride_.size(); i-- > 0;) {
      const std::size_t a = by_stride_[i];
      box.begin[a] = number % boxes_along(a) * box_[a];
      number /= boxes_along(a);
      box.count[a] = std::min(box_[a], axes_[a].count - box.begin[a]);
      box.elements *= box.count[a];
    }
    return box;
  }

  /// Calls `run(byte in the source, elements)` for all runs of a box, in the source's order.
  template <class Run>
  void for_each_source_run(const permuted_box& box, Run&& run) const {
    std::uint64_t first = 0;
    for (std::size_t a = 0; a < axes_.size(); ++a) first += box.begin[a] * axes_[a].stride;
    walk(
        by_stride_, [this](std::size_t a) { return axes_[a].stride; }, element_bytes_, box, first,
        run);
  }

  /// Calls `run(element in the destination, elements)` for all runs of a box, in the destination's
  /// order.
  template <class Run>
  void for_each_destination_run(const permuted_box& box, Run&& run) const {
    std::vector<std::size_t> order(axes_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::vector<std::uint64_t> strides(axes_.size());
    std::uint64_t stride = 1;
    std::uint64_t first = 0;
    for (std::size_t a = axes_.size(); a-- > 0;) {
      strides[a] = stride;
      first += box.begin[a] * stride;
      stride *= axes_[a].count;
    }
    walk(
        order, [&](std::size_t a) { return strides[a]; }, 1, box, first, run);
  }

  /// Puts a box that stands in the source's order into the destination's.
  void permute(const permuted_box& box, const std::byte* from, std::byte* to,
               std::size_t element_bytes) const noexcept {
    std::array<std::uint64_t, permuted_box::most_axes> strides{};
    std::uint64_t stride = element_bytes;
    for (std::size_t i = by_stride_.size(); i-- > 0;) {
      strides[by_stride_[i]] = stride;
      stride *= box.count[by_stride_[i]];
    }
    switch (element_bytes) {
      case 1: gather<std::uint8_t>(box, 0, strides, from, to); break;
      case 2: gather<std::uint16_t>(box, 0, strides, from, to); break;
      case 4: gather<std::uint32_t>(box, 0, strides, from, to); break;
      default: gather<std::uint64_t>(box, 0, strides, from, to); break;
    }
  }

 private:
  [[nodiscard]] static std::uint64_t elements_of(std::span<const std::uint64_t> box) noexcept {
    std::uint64_t product = 1;
    for (const std::uint64_t count : box) product *= count;
    return product;
  }
  [[nodiscard]] std::uint64_t boxes_along(std::size_t axis) const noexcept {
    return (axes_[axis].count + box_[axis] - 1) / box_[axis];
  }

  [[nodiscard]] std::size_t slowest() const noexcept {
    return *std::ranges::find_if(by_stride_, [this](std::size_t a) { return box_[a] > 1; });
  }

  /// The axis whose halving leaves the longest runs.
  [[nodiscard]] std::size_t best_to_halve() noexcept {
    std::size_t best = slowest();
    double least = 0;
    for (std::size_t a = 0; a < axes_.size(); ++a) {
      if (box_[a] == 1) continue;
      const std::uint64_t count = box_[a];
      box_[a] = (count + 1) / 2;
      const double runs_per_element =
          1.0 / static_cast<double>(source_run()) + 1.0 / static_cast<double>(destination_run());
      box_[a] = count;
      if (least == 0 || runs_per_element < least) {
        least = runs_per_element;
        best = a;
      }
    }
    return best;
  }

  /// Elements of a box that follow each other in the source.
  [[nodiscard]] std::uint64_t source_run() const noexcept {
    std::uint64_t run = 1;
    for (std::size_t i = by_stride_.size(); i-- > 0;) {
      run *= box_[by_stride_[i]];
      if (box_[by_stride_[i]] < axes_[by_stride_[i]].count) break;
    }
    return run;
  }
  [[nodiscard]] std::uint64_t destination_run() const noexcept {
    std::uint64_t run = 1;
    for (std::size_t a = axes_.size(); a-- > 0;) {
      run *= box_[a];
      if (box_[a] < axes_[a].count) break;
    }
    return run;
  }

  /// Walks a box along the axes in `order`, slowest first, of which the last ones that are whole
  /// make one run.
  template <class Stride, class Run>
  void walk(std::span<const std::size_t> order, const Stride& stride, std::uint64_t unit,
            const permuted_box& box, std::uint64_t first, Run& run) const {
    std::size_t outer = order.size();
    std::uint64_t length = 1;
    while (outer > 0 && stride(order[outer - 1]) == length * unit) {
      const std::size_t a = order[--outer];
      length *= box.count[a];
      if (box.count[a] < axes_[a].count) break;
    }
    std::array<std::uint64_t, permuted_box::most_axes> index{};
    for (;;) {
      std::uint64_t at = first;
      for (std::size_t i = 0; i < outer; ++i) at += index[i] * stride(order[i]);
      run(at, length);
      std::size_t i = outer;
      while (i > 0 && ++index[i - 1] == box.count[order[i - 1]]) index[--i] = 0;
      if (i == 0) return;
    }
  }

  template <class Element>
  std::byte* gather(const permuted_box& box, std::size_t axis,
                    std::span<const std::uint64_t> strides, const std::byte* from,
                    std::byte* to) const noexcept {
    if (axis == axes_.size()) {
      std::memcpy(to, from, sizeof(Element));
      return to + sizeof(Element);
    }
    const std::uint64_t count = box.count[axis];
    const std::uint64_t stride = strides[axis];
    if (axis + 1 < axes_.size()) {
      for (std::uint64_t i = 0; i < count; ++i) {
        to = gather<Element>(box, axis + 1, strides, from + i * stride, to);
      }
      return to;
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      std::memcpy(to, from + i * stride, sizeof(Element));
      to += sizeof(Element);
    }
    return to;
  }

  std::size_t element_bytes_;
  std::vector<strided_axis> axes_;      // in the destination's order
  std::vector<std::uint64_t> box_;      // largest count along each
  std::vector<std::size_t> by_stride_;  // axes in the source's order
  std::uint64_t boxes_ = 1;
};

}  // namespace vggload::detail
