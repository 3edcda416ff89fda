// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>

namespace vggload {

/// What a file says of one of its tensors. `bytes` is the dense payload: elements * bits / 8.
struct tensor_info {
  std::string name;
  vggload::dtype dtype;
  vggload::shape shape;
  std::uint64_t bytes;
};

/// Free text that a file carries beside its tensors ("format" -> "pt").
using metadata_entry = std::pair<std::string, std::string>;

/// A file of named tensors whose payloads can be read by windows.
///
/// - `path()` names the file in messages; `format()` is the format's short name ("safetensors").
/// - `file_bytes()`: the size of the file, or of all files where there are several.
/// - `tensors()`: in the file's own listing order. A tensor's index in it is its handle.
/// - `metadata()`: the file's free text, empty for formats without.
/// - `read(tensor, offset, out)` fills `out` with the payload's bytes from `offset` on: row-major,
///   little-endian. Throws `io_error`. From several threads at once.
/// - `view(tensor)` gives the whole payload in place, or nothing where it does not lie whole in the
///   file (compressed, in pieces) or the file cannot be mapped. Valid as long as the reader is,
///   which may be moved meanwhile.
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

}  // namespace vggload
