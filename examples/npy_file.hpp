// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// A tensor as a file that numpy.load reads.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/io/atomic_output_file.hpp>

namespace command {

/// What stands before the elements of a row-major f32 or f16 tensor in NumPy's format 1.0
/// (numpy/lib/format.py).
inline std::string npy_start(vggload::dtype type, const vggload::shape& dims) {
  std::string shape;
  for (const std::uint64_t dim : dims.dims()) {
    shape.append(std::to_string(dim)).append(", ");  // (3, ) and (3, 4, ) are tuples
  }
  std::string header = "{'descr': '";
  header.append(type == vggload::dtype::f16 ? "<f2" : "<f4");
  header.append("', 'fortran_order': False, 'shape': (").append(shape).append("), }");
  // The data begin at a multiple of 64, and the header ends with a newline.
  constexpr std::size_t before = 10;
  header.append(63 - (before + header.size()) % 64, ' ').push_back('\n');
  std::string start("\x93NUMPY\x01\x00", 8);
  start.push_back(static_cast<char>(header.size() & 0xFFU));
  start.push_back(static_cast<char>(header.size() >> 8U));
  return start += header;
}

/// Writes a row-major f32 or f16 tensor; replaces a file of this name whole. Throws `io_error`.
inline void write_npy(const std::string& path, const vggload::tensor_view& tensor) {
  const std::string start = npy_start(tensor.dtype(), tensor.shape());
  vggload::atomic_output_file file(path, start.size() + tensor.bytes().size());
  file.write_at(0, std::as_bytes(std::span(start)));
  file.write_at(start.size(), tensor.bytes());
  file.commit();
}

}  // namespace command
