// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

/// Fills `out` with bytes of a tensor's elements in row-major order, from `offset` on, whatever
/// their order in the file. For what is column-major there, the larger `out` is, the less is read
/// twice: a window of a few MiB does. Throws what the reader throws.
template <weight_reader Reader>
void read_row_major(const Reader& reader, std::size_t tensor, std::uint64_t offset,
                    std::span<std::byte> out) {
  const tensor_info& info = reader.tensors()[tensor];
  if (info.order == element_order::row_major) {
    reader.read(tensor, offset, out);
    return;
  }
  detail::check_window(reader.path(), info, offset, out.size());
  if (out.empty()) return;
  const detail::strided_layout layout(axes_of(info), bits_of(info.dtype) / 8);
  detail::read_strided(layout, offset, out, [&](std::uint64_t at, std::span<std::byte> bytes) {
    reader.read(tensor, at, bytes);
  });
}

/// The same of what a view shows.
inline void read_row_major(const tensor_view& view, std::uint64_t offset,
                           std::span<std::byte> out) {
  const auto read = [&](std::uint64_t at, std::span<std::byte> bytes) {
    std::ranges::copy(view.bytes().subspan(static_cast<std::size_t>(at), bytes.size()),
                      bytes.begin());
  };
  if (view.order() == element_order::row_major || out.empty()) {
    read(offset, out);
    return;
  }
  const tensor_info info{{}, view.dtype(), view.shape(), view.bytes().size(), view.order()};
  const detail::strided_layout layout(axes_of(info), bits_of(view.dtype()) / 8);
  detail::read_strided(layout, offset, out, read);
}

}  // namespace vggload
