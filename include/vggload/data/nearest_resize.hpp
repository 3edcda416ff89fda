// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <vggload/data/exact_arithmetic.hpp>
#include <vggload/data/image.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload {

namespace detail {

/// Which of `from` pixels each of `to.size()` is, in Pillow's way: it adds up the step, so its rounding errors too
/// (the product gives other pixels for some sizes).
inline void nearest_positions(std::size_t from, std::span<std::uint32_t> to) noexcept {
  const double step = exact::quotient(static_cast<double>(from), static_cast<double>(to.size()));
  double position = exact::product(step, 0.5);
  for (std::uint32_t& pixel : to) {
    const auto whole = static_cast<std::uint32_t>(position);
    pixel = whole < from ? whole : static_cast<std::uint32_t>(from - 1);
    position = exact::sum(position, step);
  }
}

template <std::size_t Channels>
void copy_pixels(const std::uint8_t* row, std::span<const std::uint32_t> columns,
                 std::uint8_t* to) noexcept {
  for (const std::uint32_t column : columns) {
    std::memcpy(to, row + column * Channels, Channels);
    to += Channels;
  }
}

}  // namespace detail

/// The image in that size, each pixel a copy of one (Pillow's `Image.resize` with NEAREST, Keras' default). Where the
/// size is right already, the image itself; else in `memory`.
/// @throws what `memory` throws
[[nodiscard]] inline image_view nearest_resize(const image_view& image, image_size size,
                                               scratch& memory) {
  if (image.size() == size) return image;
  const std::size_t row_bytes = size.width * image.channels;
  const std::span<std::byte> pixels = memory.allocate(size.height * row_bytes);
  const auto positions = [&](std::size_t from, std::size_t count) {
    const std::span<std::byte> bytes = memory.allocate(count * sizeof(std::uint32_t));
    const std::span<std::uint32_t> all(reinterpret_cast<std::uint32_t*>(bytes.data()), count);
    detail::nearest_positions(from, all);
    return all;
  };
  const std::span<const std::uint32_t> rows = positions(image.height, size.height);
  const std::span<const std::uint32_t> columns = positions(image.width, size.width);
  auto* to = reinterpret_cast<std::uint8_t*>(pixels.data());
  for (std::size_t y = 0; y < size.height; ++y, to += row_bytes) {
    if (y > 0 && rows[y] == rows[y - 1]) {
      std::memcpy(to, to - row_bytes, row_bytes);
    } else if (image.channels == 1) {
      detail::copy_pixels<1>(image.row(rows[y]), columns, to);
    } else if (image.channels == 3) {
      detail::copy_pixels<3>(image.row(rows[y]), columns, to);
    } else {
      detail::copy_pixels<4>(image.row(rows[y]), columns, to);
    }
  }
  return {reinterpret_cast<const std::uint8_t*>(pixels.data()), size.height, size.width,
          image.channels, row_bytes};
}

}  // namespace vggload
