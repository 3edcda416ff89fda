// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/io/find_duplicate.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/weight_reader.hpp>

namespace vggload {

/// Writes a safetensors file tensor by tensor or window by window, in any order and from several
/// threads, never holding a payload. The file appears whole with `commit` or not at all. The
/// payloads lie in the order of `tensors`, the first at a multiple of 64 bytes. Neither moves nor
/// copies.
class safetensors_writer {
 public:
  /// Lays the file out, reserves it on the disk and writes its header. `bytes` of each info is not
  /// looked at: dtype and shape decide. Throws `error` for a name that occurs twice or is
  /// "__metadata__", and for sizes that no file can have; `io_error` where the system refuses.
  safetensors_writer(std::string path, std::span<const tensor_info> tensors,
                     std::span<const metadata_entry> metadata = {})
      : path_(std::move(path)) {
    const std::string* twice = detail::find_duplicate(
        tensors, [](const tensor_info& info) -> const std::string& { return info.name; });
    if (twice != nullptr) fail("tensor " + in_quotes(*twice) + " is to be written twice");

    begins_.reserve(tensors.size() + 1);
    begins_.push_back(0);
    std::string header = header_of(tensors, metadata);
    if (header.size() > detail::safetensors_max_header_bytes - 64) {
      fail("the header would have " + std::to_string(header.size()) + " bytes, more than the " +
           std::to_string(detail::safetensors_max_header_bytes) + " that are allowed");
    }
    const auto header_end = checked_align_up(detail::safetensors_length_bytes + header.size(), 64);
    header.resize(static_cast<std::size_t>(*header_end) - detail::safetensors_length_bytes, ' ');
    const auto file_bytes = checked_add(*header_end, begins_.back());
    if (!file_bytes || *file_bytes > max_file_bytes) {
      fail("a file for " + std::to_string(begins_.back()) + " bytes of tensors is too large");
    }
    data_begin_ = *header_end;
    std::array<std::byte, detail::safetensors_length_bytes> length;
    for (std::size_t i = 0; i < length.size(); ++i) {
      length[i] = static_cast<std::byte>(header.size() >> (8 * i));
    }
    file_.emplace(path_, *file_bytes);
    file_->write_at(0, length);
    file_->write_at(length.size(), std::as_bytes(std::span(header)));
  }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// Bytes of all payloads. They form one range, [0, data_bytes()), in which `write_data` writes.
  [[nodiscard]] std::uint64_t data_bytes() const noexcept { return begins_.back(); }
  /// Where a tensor's payload begins in that range.
  [[nodiscard]] std::uint64_t data_offset(std::size_t tensor) const { return begins_[tensor]; }

  /// Writes bytes of the payloads, `offset` counted from the first one's start. From several
  /// threads at once, each byte once. Throws `io_error`, and `error` for a place outside.
  void write_data(std::uint64_t offset, std::span<const std::byte> bytes) {
    if (!in_bounds(offset, bytes.size(), data_bytes())) {
      fail(std::to_string(bytes.size()) + " bytes at offset " + std::to_string(offset) +
           " do not fit into " + std::to_string(data_bytes()) + " bytes of tensors");
    }
    file_->write_at(data_begin_ + offset, bytes);
    written_.fetch_add(bytes.size(), std::memory_order_relaxed);
  }

  /// Gives the file its name. Throws `error` where bytes are missing, and `io_error`.
  void commit() {
    if (const auto written = written_.load(std::memory_order_relaxed); written != data_bytes()) {
      fail(std::to_string(written) + " of " + std::to_string(data_bytes()) +
           " bytes of tensors were written");
    }
    file_->commit();
  }

 private:
  // off_t is signed.
  static constexpr std::uint64_t max_file_bytes = (std::uint64_t{1} << 63U) - 1;

  [[noreturn]] void fail(const std::string& what) const {
    throw error(printable(path_) + ": " + what);
  }

  /// The JSON text, its entries in the tensors' order; fills `begins_`.
  [[nodiscard]] std::string header_of(std::span<const tensor_info> tensors,
                                      std::span<const metadata_entry> metadata) {
    const auto quote = [this](const std::string& text) {
      try {
        return nlohmann::json(text).dump();
      } catch (const nlohmann::json::exception&) {
        fail("the name " + in_quotes(text) + " is not UTF-8");
      }
    };
    std::string header = "{";
    if (!metadata.empty()) {
      header += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata) {
        if (header.back() != '{') header += ',';
        header += quote(key) + ':' + quote(value);
      }
      header += '}';
    }
    for (const tensor_info& info : tensors) {
      if (info.name == "__metadata__") fail("no tensor can have the name '__metadata__'");
      const auto bytes = bytes_of(info.dtype, info.shape);
      const auto end = bytes ? checked_add(begins_.back(), *bytes) : std::nullopt;
      if (!end) {
        fail("tensor " + in_quotes(info.name) + ": " + std::string(name_of(info.dtype)) + " " +
             to_string(info.shape) + " has no size that a file can have");
      }
      if (header.size() > 1) header += ',';
      header += quote(info.name);
      header += ":{\"dtype\":\"";
      header += name_of(info.dtype);
      header += "\",\"shape\":[";
      for (std::size_t axis = 0; axis < info.shape.rank(); ++axis) {
        if (axis > 0) header += ',';
        header += std::to_string(info.shape[axis]);
      }
      header += "],\"data_offsets\":[";
      header += std::to_string(begins_.back());
      header += ',';
      header += std::to_string(*end);
      header += "]}";
      begins_.push_back(*end);
    }
    return header += '}';
  }

  std::string path_;
  std::vector<std::uint64_t> begins_;  // of each payload, and the end of the last
  std::uint64_t data_begin_ = 0;
  std::optional<atomic_output_file> file_;
  std::atomic<std::uint64_t> written_ = 0;
};

}  // namespace vggload
