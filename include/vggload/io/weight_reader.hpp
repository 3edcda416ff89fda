// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/strided_read.hpp>

namespace vggload {

/// What a file says of one of its tensors.
struct tensor_info {
  std::string name;
  vggload::dtype dtype;
  vggload::shape shape;
  /// Of the dense payload: elements * bits / 8. For opaque elements what they take in the file.
  std::uint64_t bytes;
  /// Of the elements in the payload; see `strides` for what is neither.
  element_order order = element_order::row_major;
  /// Compressed or in chunks: what is read onwards costs once, what is read again from the start on
  /// costs anew.
  bool sequential = false;
  /// The file's own name of elements that are opaque: "Q4_0", "object".
  std::string foreign_dtype = {};
  /// Where the payload is dense, but its axes stand in an order that is neither row- nor
  /// column-major (PyTorch's channels_last): the bytes from one step along each axis to the next.
  /// `order` is column_major then, since it is not row-major. Empty everywhere else.
  std::vector<std::uint64_t> strides = {};
};

/// Whether the payload's axes stand in an order of their own, which `strides` tells.
[[nodiscard]] inline bool is_permuted(const tensor_info& info) noexcept {
  return !info.strides.empty();
}

/// The name of a tensor's element type, whether the library can read it or not.
[[nodiscard]] inline std::string_view dtype_name(const tensor_info& info) noexcept {
  return info.dtype == dtype::opaque ? std::string_view(info.foreign_dtype) : name_of(info.dtype);
}

/// Free text that a file carries beside its tensors ("format" -> "pt").
using metadata_entry = std::pair<std::string, std::string>;

/// A file of named tensors whose payloads can be read by windows.
///
/// - `path()` names the file in messages; `format()` is the format's short name ("safetensors").
/// - `file_bytes()`: the size of the file, or of all files where there are several.
/// - `tensors()`: in the file's own listing order. A tensor's index in it is its handle.
/// - `metadata()`: the file's free text, empty for formats without.
/// - `read(tensor, offset, out)` fills `out` with the payload's bytes from `offset` on: dense, in
///   the order that `tensors()` says, little-endian. Throws `io_error`, and `unsupported_error` for
///   opaque elements. From several threads at once.
/// - `view(tensor)` gives the whole payload in place, or nothing where it does not lie so in the
///   file (compressed, in pieces, strided, permuted, big-endian) or the file cannot be mapped. Valid
///   as long as the reader is, which may be moved meanwhile.
template <class R>
concept weight_reader = std::movable<R> &&
    requires(const R& reader, std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) {
  { reader.path() } -> std::convertible_to<std::string_view>;
  { reader.format() } -> std::convertible_to<std::string_view>;
  { reader.file_bytes() } -> std::same_as<std::uint64_t>;
  { reader.tensors() } -> std::same_as<std::span<const tensor_info>>;
  { reader.metadata() } -> std::same_as<std::span<const metadata_entry>>;
  { reader.read(tensor, offset, out) } -> std::same_as<void>;
  { reader.view(tensor) } -> std::same_as<std::optional<std::span<const std::byte>>>;
};

/// The tensor's axes with their strides in the payload, which is not empty.
[[nodiscard]] inline std::vector<strided_axis> axes_of(const tensor_info& info) {
  std::vector<strided_axis> axes;
  for (const std::uint64_t dim : info.shape.dims()) axes.push_back({dim, 0});
  if (is_permuted(info)) {
    for (std::size_t i = 0; i < axes.size(); ++i) axes[i].stride = info.strides[i];
    return axes;
  }
  std::uint64_t stride = bits_of(info.dtype) / 8;
  const auto follow = [&stride](strided_axis& axis) {
    axis.stride = stride;
    stride *= axis.count;
  };
  if (info.order == element_order::row_major) {
    std::ranges::for_each(axes.rbegin(), axes.rend(), follow);
  } else {
    std::ranges::for_each(axes, follow);
  }
  return axes;
}

namespace detail {

/// Refuses what no `read` can give: opaque elements, and bytes outside the payload.
inline void check_window(std::string_view path, const tensor_info& info, std::uint64_t offset,
                         std::uint64_t count) {
  const auto subject = [&] { return printable(path) + ": tensor " + in_quotes(info.name); };
  if (info.dtype == dtype::opaque) {
    throw unsupported_error(subject() + ": its elements, " + in_quotes(info.foreign_dtype) +
                            ", cannot be read");
  }
  if (!in_bounds(offset, count, info.bytes)) {
    throw error(subject() + " has " + std::to_string(info.bytes) + " bytes, so " +
                std::to_string(count) + " from offset " + std::to_string(offset) +
                " cannot be read");
  }
}

}  // namespace detail

}  // namespace vggload
