// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include <vggload/data/exact_arithmetic.hpp>

namespace vggload::detail {

/// NumPy's pairwise sum of adjacent floats: halves until at most 128 remain, these with eight accumulators
/// (numpy/_core/src/umath/loops_utils.h.src).
[[nodiscard]] inline float pairwise_sum(std::span<const float> values) noexcept {
  using exact::sum;
  const std::size_t count = values.size();
  if (count < 8) {
    float total = -0.0F;
    for (const float value : values) total = sum(total, value);
    return total;
  }
  if (count <= 128) {
    exact::quad low = exact::load_quad(values.data());
    exact::quad high = exact::load_quad(values.data() + 4);
    const std::size_t whole = count / 8 * 8;
    for (std::size_t i = 8; i < whole; i += 8) {
      low = sum(low, exact::load_quad(values.data() + i));
      high = sum(high, exact::load_quad(values.data() + i + 4));
    }
    float total = sum(sum(sum(low[0], low[1]), sum(low[2], low[3])),
                      sum(sum(high[0], high[1]), sum(high[2], high[3])));
    for (std::size_t i = whole; i < count; ++i) total = sum(total, values[i]);
    return total;
  }
  const std::size_t half = count / 2 / 8 * 8;
  return sum(pairwise_sum(values.first(half)), pairwise_sum(values.subspan(half)));
}

/// How an axis of an array lies in memory: how many there are, and whether it runs backwards. A flipped
/// NumPy array is a view with a negative stride.
struct array_axis {
  std::size_t count;
  bool reversed;
};

/// `np.sum(x)` of all values of a float32 array (NumPy 2.4). `values`: in the order of the axes, outermost
/// first, as if all ran forwards; `axes`: how they lie in memory, dense but for the direction. NumPy joins
/// neighbouring axes that run the same way; if that leaves one, the sum is pairwise throughout. Else it adds
/// up pieces: as many whole steps of an axis as fit into its buffer of 8192 values.
[[nodiscard]] inline float numpy_sum(std::span<const float> values,
                                     std::span<const array_axis, 3> axes) noexcept {
  constexpr std::size_t buffer = 8192;
  std::array<array_axis, 3> joined{};
  std::size_t rank = 0;
  for (const array_axis& axis : axes) {
    if (axis.count == 1) continue;
    if (rank > 0 && joined[rank - 1].reversed == axis.reversed) {
      joined[rank - 1].count *= axis.count;
    } else {
      joined[rank++] = axis;
    }
  }
  // Added to a positive zero, as all sums of NumPy's are: negative zeros do not stay so.
  if (rank <= 1) return exact::sum(0.0F, pairwise_sum(values));
  std::size_t step = 1;
  std::size_t axis = rank;  // one behind the innermost that does not fit with all within it
  while (axis > 0 && step * joined[axis - 1].count <= buffer) step *= joined[--axis].count;
  if (axis == 0) return exact::sum(0.0F, pairwise_sum(values));
  const std::size_t row = step * joined[axis - 1].count;
  // The innermost axis needs no buffer, and is never cut.
  const std::size_t piece = axis == rank ? row : buffer / step * step;
  float total = 0;
  for (std::size_t begin = 0; begin < values.size(); begin += row) {
    for (std::size_t done = 0; done < row; done += piece) {
      total = exact::sum(total,
                         pairwise_sum(values.subspan(begin + done, std::min(piece, row - done))));
    }
  }
  return total;
}

}  // namespace vggload::detail
