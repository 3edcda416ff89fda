// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <vggload/core/dtype.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
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

/// One tensor of a safetensors file that is made from another file.
struct converted_tensor {
  std::size_t source;  // the index of the tensor that it is made from
  std::string name;
  vggload::shape shape;
  /// As in `transfer`; empty: the elements keep their order.
  std::vector<strided_axis> axes = {};
};

/// Writes tensors of a checkpoint to a safetensors file in the types that `types` says. Takes 8 MiB
/// at most; the file appears whole or not at all, and may be the one that is read.
/// `options.threads` 0: one for each processor. Throws what `stream` and `safetensors_writer` throw.
inline stream_report write_converted(const checkpoint& source,
                                     std::vector<converted_tensor> tensors, const std::string& path,
                                     const dtype_policy& types, stream_options options) {
  return detail::naming_out_of_memory(source.path(), "converting the file", [&] {
    std::vector<tensor_info> infos;
    std::vector<transfer> transfers;
    infos.reserve(tensors.size());
    transfers.reserve(tensors.size());
    bool permutes = false;
    for (converted_tensor& tensor : tensors) {
      const tensor_info& from = source.tensors()[tensor.source];
      detail::check_window(source.path(), from, 0, 0);
      const dtype type = types.storage_of(from);
      infos.push_back({std::move(tensor.name), type, std::move(tensor.shape), 0});
      permutes = permutes || !tensor.axes.empty();
      transfers.push_back({tensor.source, type, 0, std::move(tensor.axes)});
    }
    safetensors_writer writer(path, infos, source.metadata());
    for (std::size_t i = 0; i < infos.size(); ++i) {
      transfers[i].destination = writer.data_offset(i);
    }
    const memory_plan plan = plan_memory({.path = source.path()}, options.threads, std::nullopt);
    options.threads = plan.threads;
    // The larger the window, the longer are the runs of what gets another order.
    const std::size_t windows_bytes =
        permutes ? most_windows_bytes : static_cast<std::size_t>(plan.windows_bytes());
    const arena<host_resource> windows(windows_bytes);
    const arena<host_resource> buffers(windows_bytes);
    safetensors_sink sink(writer, buffers.block(), plan.threads);
    stream_report report = stream(source, transfers, sink, windows.block(), options);
    writer.commit();
    return report;
  });
}

/// Writes all tensors of a checkpoint to a safetensors file as `write_converted` does: names,
/// shapes, order and metadata stay. What is column-major in the file becomes row-major, as
/// safetensors knows nothing else.
inline stream_report convert_checkpoint(const checkpoint& source, const std::string& path,
                                        const dtype_policy& types, stream_options options) {
  std::vector<converted_tensor> tensors;
  tensors.reserve(source.tensors().size());
  for (std::size_t i = 0; i < source.tensors().size(); ++i) {
    const tensor_info& info = source.tensors()[i];
    tensors.push_back({i, info.name, info.shape});
    if (info.order != element_order::row_major) tensors.back().axes = axes_of(info);
  }
  return write_converted(source, std::move(tensors), path, types, std::move(options));
}

}  // namespace vggload
