// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/memory_plan.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload {

/// A destination that is a file: each worker has a buffer that is written when it is full.
class safetensors_sink {
 public:
  /// `buffers`: memory that `workers` share in equal parts.
  safetensors_sink(safetensors_writer& writer, std::span<std::byte> buffers,
                   unsigned workers) noexcept
      : writer_(writer), buffers_(buffers), buffer_bytes_(buffers.size() / workers) {}

  [[nodiscard]] std::span<std::byte> begin_window(unsigned worker, std::uint64_t,
                                                  std::size_t bytes) const noexcept {
    return buffers_.subspan(worker * buffer_bytes_, bytes);
  }
  void end_window(unsigned, std::uint64_t offset, std::span<std::byte> window) {
    writer_.write_data(offset, window);
  }

 private:
  safetensors_writer& writer_;
  std::span<std::byte> buffers_;
  std::size_t buffer_bytes_;
};

static_assert(window_sink<safetensors_sink>);

/// Writes the tensors of a checkpoint to a safetensors file: names, shapes, order and metadata
/// stay, floating tensors become `to` (nothing: all stay as they are), the others stay. Takes two
/// windows for each thread and no more memory; the file appears whole or not at all, and may be the
/// one that is read. `options.threads` 0: one for each processor. Throws what `stream` and
/// `safetensors_writer` throw.
inline stream_report convert_checkpoint(const checkpoint& source, const std::string& path,
                                        std::optional<dtype> to, stream_options options) {
  return detail::naming_out_of_memory(source.path(), "converting the file", [&] {
    std::vector<tensor_info> infos(source.tensors().begin(), source.tensors().end());
    std::vector<transfer> transfers;
    transfers.reserve(infos.size());
    for (tensor_info& info : infos) {
      if (to && is_floating(info.dtype)) info.dtype = *to;
    }
    safetensors_writer writer(path, infos, source.metadata());
    for (std::size_t i = 0; i < infos.size(); ++i) {
      transfers.push_back({i, infos[i].dtype, writer.data_offset(i)});
    }
    const memory_plan plan = plan_memory({.path = source.path()}, options.threads, std::nullopt);
    options.threads = plan.threads;
    const auto windows_bytes = static_cast<std::size_t>(plan.windows_bytes());
    const arena<host_resource> windows(windows_bytes);
    const arena<host_resource> buffers(windows_bytes);
    safetensors_sink sink(writer, buffers.block(), plan.threads);
    const stream_report report = stream(source, transfers, sink, windows.block(), options);
    writer.commit();
    return report;
  });
}

}  // namespace vggload
