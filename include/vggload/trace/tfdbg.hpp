// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/trace/health_row.hpp>
#include <vggload/trace/text.hpp>

namespace vggload {

/// A file that is to be written.
struct named_bytes {
  std::string name;
  std::string bytes;
};

namespace detail {

// CRC-32C, Castagnoli's polynomial reflected (RFC 3720, B.4).
inline constexpr auto crc32c_table = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1U ^ ((crc & 1U) != 0 ? 0x82F63B78U : 0U);
    table[i] = crc;
  }
  return table;
}();

[[nodiscard]] constexpr std::uint32_t crc32c(std::string_view bytes) noexcept {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) {
    crc = crc32c_table[(crc ^ static_cast<unsigned char>(byte)) & 0xFFU] ^ crc >> 8U;
  }
  return ~crc;
}

static_assert(crc32c("123456789") == 0xE3069283U);  // the check value of the CRC catalogue

/// A message of protobuf, field by field. By hand: three wire types, where a library would ask for
/// generated code and be one more dependency of everyone (https://protobuf.dev/programming-guides/encoding).
class protobuf_message {
 public:
  protobuf_message& varint(unsigned field, std::uint64_t value) {
    tag(field, 0);
    append_varint(value);
    return *this;
  }
  protobuf_message& fixed64(unsigned field, double value) {
    tag(field, 1);
    append_double(bytes_, value);
    return *this;
  }
  /// One number of a repeated field, which proto3 packs.
  protobuf_message& packed(unsigned field, std::uint64_t value) {
    protobuf_message numbers;
    numbers.append_varint(value);
    return message(field, numbers);
  }
  /// Raw bytes, or a nested message.
  protobuf_message& bytes(unsigned field, std::string_view value) {
    tag(field, 2);
    append_varint(value.size());
    bytes_ += value;
    return *this;
  }
  protobuf_message& text(unsigned field, std::string_view value) {
    return bytes(field, as_utf8(value));
  }
  protobuf_message& message(unsigned field, const protobuf_message& value) {
    return bytes(field, value.bytes_);
  }
  [[nodiscard]] const std::string& data() const noexcept { return bytes_; }

  static void append_double(std::string& out, double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    for (unsigned i = 0; i < 8; ++i) out += static_cast<char>(bits >> 8U * i & 0xFFU);
  }

 private:
  void tag(unsigned field, unsigned wire_type) { append_varint(field << 3U | wire_type); }
  void append_varint(std::uint64_t value) {
    for (; value >= 0x80U; value >>= 7U) bytes_ += static_cast<char>(value | 0x80U);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

/// Appends a record as TensorFlow frames it: its length and its bytes, each with its CRC, masked
/// because a CRC over bytes that hold CRCs is a poor one (tensorflow/core/lib/io/record_writer.h).
inline void append_record(std::string& file, std::string_view data) {
  const auto little_endian = [](std::uint64_t value, unsigned size) {
    std::string bytes;
    for (unsigned i = 0; i < size; ++i) bytes += static_cast<char>(value >> 8U * i & 0xFFU);
    return bytes;
  };
  const auto masked = [](std::uint32_t crc) { return std::rotr(crc, 15) + 0xA282EAD8U; };
  const std::string length = little_endian(data.size(), 8);
  (file += length) += little_endian(masked(crc32c(length)), 4);
  (file += data) += little_endian(masked(crc32c(data)), 4);
}

/// The number of a type in tensorflow/core/framework/types.proto; 0 (DT_INVALID) of one that has no
/// health.
[[nodiscard]] constexpr unsigned tensorflow_type(dtype type) noexcept {
  switch (type) {
    case dtype::f32: return 1;
    case dtype::f64: return 2;
    case dtype::bf16: return 14;
    case dtype::f16: return 19;
    case dtype::f8_e5m2: return 24;
    case dtype::f8_e4m3: return 25;
    case dtype::f8_e4m3fnuz: return 26;
    case dtype::f8_e5m2fnuz: return 28;
    default: return 0;
  }
}

/// One set of files, as tensorflow/core/util/debug_events_writer.cc writes it.
class tfdbg_writer {
 public:
  tfdbg_writer(std::chrono::system_clock::time_point start, std::string_view host)
      : wall_time_(std::chrono::duration<double>(start.time_since_epoch()).count()),
        nanoseconds_(std::chrono::nanoseconds(start.time_since_epoch()).count()) {
    // The host's name stands in the files' names, between dots.
    for (const char c : host) {
      const bool kept = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
      host_ += kept || c == '-' ? c : '_';
    }
    if (host_.empty()) host_ = "localhost";
  }

  [[nodiscard]] std::vector<named_bytes> write(std::span<const health_row> rows) && {
    protobuf_message device;
    device.text(1, "/job:localhost/replica:0/task:0/device:CPU:0").varint(2, device_id);
    append(graphs_, 12, device);
    source_file(rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      stack_frame(i);
      execution(rows[i], i);
    }
    protobuf_message metadata;
    metadata.text(1, "0.0.0-vggload");  // no TensorFlow wrote this
    metadata.text(2, "debug.Event:1").text(3, "vggload-" + std::to_string(nanoseconds_));
    append(metadata_, 3, metadata);

    const auto seconds = std::to_string(nanoseconds_ < 0 ? 0 : nanoseconds_ / 1'000'000'000);
    std::string stem = "tfdbg_events.";
    stem.append(seconds.size() < 10 ? 10 - seconds.size() : 0, '0');
    ((stem += seconds) += '.') += host_;
    std::vector<named_bytes> files;
    files.push_back({stem + ".source_files", std::move(source_files_)});
    files.push_back({stem + ".stack_frames", std::move(stack_frames_)});
    files.push_back({stem + ".graphs", std::move(graphs_)});
    files.push_back({stem + ".execution", std::move(execution_)});
    files.push_back({stem + ".graph_execution_traces", {}});
    // The reader looks for this one: last, when all the others are there.
    files.push_back({stem + ".metadata", std::move(metadata_)});
    return files;
  }

 private:
  static constexpr unsigned device_id = 1;
  static constexpr unsigned full_health = 4;  // of TensorDebugMode
  static constexpr unsigned double_type = 2;  // DT_DOUBLE

  /// A DebugEvent with `value` as its field (tensorflow/core/protobuf/debug_event.proto).
  void append(std::string& file, unsigned field, const protobuf_message& value) const {
    protobuf_message event;
    event.fixed64(1, wall_time_).message(field, value);
    append_record(file, event.data());
  }

  /// There is no source code to show: the lines are the tensors, and each execution is "at" its own.
  void source_file(std::span<const health_row> rows) {
    protobuf_message source;
    source.text(1, "tensors").text(2, host_);
    for (const health_row& row : rows) {
      std::string line = row.name;
      ((line += ' ') += name_of(row.from)) += ' ';
      source.text(3, line += to_string(row.shape));
    }
    append(source_files_, 4, source);
  }

  [[nodiscard]] static std::string frame_id(std::size_t index) {
    return "tensor-" + std::to_string(index);
  }

  void stack_frame(std::size_t index) {
    protobuf_message place;  // GraphDebugInfo.FileLineCol
    place.varint(1, 0).varint(2, index + 1).text(4, "convert");
    protobuf_message frame;
    frame.text(1, frame_id(index)).message(2, place);
    append(stack_frames_, 6, frame);
  }

  void execution(const health_row& row, std::size_t index) {
    const std::size_t tensor_id = index + 1;
    const tensor_health& health = row.health;
    const std::array<double, 11> values{static_cast<double>(tensor_id),
                                        -1,  // of the device: TensorFlow leaves it open, too
                                        static_cast<double>(tensorflow_type(row.from)),
                                        static_cast<double>(row.shape.rank()),
                                        static_cast<double>(health.numel),
                                        static_cast<double>(health.neg_inf),
                                        static_cast<double>(health.pos_inf),
                                        static_cast<double>(health.nan),
                                        static_cast<double>(health.neg),
                                        static_cast<double>(health.zero),
                                        static_cast<double>(health.pos)};
    std::string content;
    for (const double value : values) protobuf_message::append_double(content, value);
    protobuf_message dim;
    dim.varint(1, values.size());
    protobuf_message tensor_shape;
    tensor_shape.message(2, dim);
    protobuf_message tensor;
    tensor.varint(1, double_type).message(2, tensor_shape).bytes(4, content);
    protobuf_message location;
    location.text(1, host_).text(2, frame_id(index));
    protobuf_message execution;
    execution.text(1, row.name).varint(2, 1).packed(5, tensor_id).varint(6, full_health);
    execution.message(7, tensor).message(8, location).packed(9, device_id);
    append(execution_, 9, execution);
  }

  double wall_time_;  // seconds since 1970
  std::int64_t nanoseconds_;
  std::string host_;
  std::string metadata_, source_files_, stack_frames_, graphs_, execution_;
};

}  // namespace detail

/// The rows as a set of files of TensorFlow's debugger, version 2, which its DebugDataReader and
/// TensorBoard open: an execution in mode FULL_HEALTH for each tensor, whose name stands for the
/// op's, with the counts of the source. `start` becomes the time of all events and with `host` part of the
/// names "tfdbg_events.<seconds>.<host>.<kind>"; characters that would not do there become '_'.
[[nodiscard]] inline std::vector<named_bytes> tfdbg_files(
    std::span<const health_row> rows, std::chrono::system_clock::time_point start,
    std::string_view host = "localhost") {
  return detail::tfdbg_writer(start, host).write(rows);
}

}  // namespace vggload
