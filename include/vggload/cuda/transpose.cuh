// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// FP32 weights from TensorFlow's order of the axes to PyTorch's, converted on the way, in device
// memory: [height, width, in, out] to [out, in, height, width], and with height = width = 1 the
// [in, out] of a dense layer to [out, in].

#include <cstddef>
#include <cstdint>
#include <string>

#include <cuda_runtime.h>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/cuda/convert.cuh>
#include <vggload/cuda/element.cuh>
#include <vggload/cuda/error.hpp>
#include <vggload/cuda/health.hpp>

namespace vggload::cuda {

/// The sizes of a convolution's weights in the order in which TensorFlow stores them.
struct hwio_shape {
  std::size_t height;
  std::size_t width;
  std::size_t in;
  std::size_t out;
};

namespace detail {

/// The transposition of a matrix: a row of the destination is one `out`, and its columns run over
/// `in`, height and width; the source has a row for each column, in another order.
///
/// A block takes a tile of 32 rows and 64 columns. It reads 32 neighbours of the source at a time
/// (128 bytes) and writes 32 neighbours of the destination (64 bytes), as far as the sizes go.
inline constexpr unsigned tile_rows = 32;
inline constexpr unsigned tile_columns = 64;
inline constexpr unsigned lanes = 32;  // of a warp
inline constexpr unsigned warps = threads_per_block / lanes;

struct transposition {
  std::size_t rows;       // out
  std::size_t in;         // the columns are in * positions
  std::size_t positions;  // height * width

  __host__ __device__ explicit transposition(const hwio_shape& shape) noexcept
      : rows(shape.out), in(shape.in), positions(shape.height * shape.width) {}

  [[nodiscard]] __host__ __device__ std::size_t columns() const noexcept { return in * positions; }
  [[nodiscard]] __host__ __device__ std::size_t tiles_in_a_column() const noexcept {
    return rows / tile_rows + (rows % tile_rows != 0 ? 1 : 0);
  }
  [[nodiscard]] __host__ __device__ std::size_t tiles() const noexcept {
    const std::size_t across = columns() / tile_columns + (columns() % tile_columns != 0 ? 1 : 0);
    return tiles_in_a_column() * across;
  }
  // Tiles one below the other are neighbours in the source.
  [[nodiscard]] __host__ __device__ std::size_t first_row(std::size_t tile) const noexcept {
    return tile % tiles_in_a_column() * tile_rows;
  }
  [[nodiscard]] __host__ __device__ std::size_t first_column(std::size_t tile) const noexcept {
    return tile / tiles_in_a_column() * tile_columns;
  }
};

/// A tile of the source. The odd length keeps threads that read along a column of the array out of
/// each other's banks.
struct transpose_buffer {
  float values[tile_columns][tile_rows + 1];
};

/// Calls `on_element(column in the tile, row in the tile, index in the source)` for what one thread
/// reads of a tile. Threads side by side take rows side by side.
#pragma nv_exec_check_disable
template <class OnElement>
__host__ __device__ void for_each_read(unsigned thread, const transposition& matrix,
                                       std::size_t tile, OnElement on_element) {
  const unsigned row = thread % lanes;
  if (matrix.first_row(tile) + row >= matrix.rows) return;
  const std::size_t first_column = matrix.first_column(tile);
  // One division, and from there on in steps of `warps` columns.
  const std::size_t first = first_column + thread / lanes;
  std::size_t in = first / matrix.positions;
  std::size_t position = first % matrix.positions;
  const std::size_t step_in = warps / matrix.positions;
  const std::size_t step_position = warps % matrix.positions;
  for (unsigned column = thread / lanes; column < tile_columns; column += warps) {
    if (first_column + column >= matrix.columns()) return;
    on_element(column, row,
               (position * matrix.in + in) * matrix.rows + matrix.first_row(tile) + row);
    in += step_in;
    position += step_position;
    if (position >= matrix.positions) {
      position -= matrix.positions;
      ++in;
    }
  }
}

/// Calls `on_element(column in the tile, row in the tile, index in the destination)` for what one
/// thread writes of a tile. Threads side by side take columns side by side.
#pragma nv_exec_check_disable
template <class OnElement>
__host__ __device__ void for_each_write(unsigned thread, const transposition& matrix,
                                        std::size_t tile, OnElement on_element) {
  const std::size_t first_row = matrix.first_row(tile);
  const std::size_t first_column = matrix.first_column(tile);
  const std::size_t columns = matrix.columns();
  for (unsigned row = thread / lanes; row < tile_rows; row += warps) {
    if (first_row + row >= matrix.rows) return;
    for (unsigned column = thread % lanes; column < tile_columns; column += lanes) {
      if (first_column + column >= columns) break;
      on_element(column, row, (first_row + row) * columns + first_column + column);
    }
  }
}

/// One thread's share of reading a tile; then all threads of the block meet.
__host__ __device__ inline void read_tile(unsigned thread, const transposition& matrix,
                                          std::size_t tile, const float* source,
                                          transpose_buffer& buffer) noexcept {
  for_each_read(thread, matrix, tile, [&](unsigned column, unsigned row, std::size_t index) {
    buffer.values[column][row] = source[index];
  });
}

/// One thread's share of converting and writing a tile; then all threads of the block meet again.
template <narrow_float To, bool Measured>
__host__ __device__ void write_tile(unsigned thread, const transposition& matrix, std::size_t tile,
                                    const transpose_buffer& buffer, To* destination,
                                    health_counts<std::uint32_t>& mine,
                                    health_counts<std::uint32_t>& block) noexcept {
  for_each_write(thread, matrix, tile, [&](unsigned column, unsigned row, std::size_t index) {
    const float value = buffer.values[column][row];
    const std::uint16_t result = narrow<To>(value);
    destination[index].bits = result;
    if constexpr (Measured) count_element<To>(value, result, mine, block);
  });
}

/// The tiles of one block.
template <narrow_float To, bool Measured>
static __device__ void transpose_in_block(const transposition& matrix,
                                          const float* __restrict__ source,
                                          To* __restrict__ destination,
                                          health_counts<std::uint32_t>& mine,
                                          health_counts<std::uint32_t>& block) {
  __shared__ transpose_buffer buffer;
  for (std::size_t tile = blockIdx.x; tile < matrix.tiles(); tile += gridDim.x) {
    read_tile(threadIdx.x, matrix, tile, source, buffer);
    __syncthreads();
    write_tile<To, Measured>(threadIdx.x, matrix, tile, buffer, destination, mine, block);
    __syncthreads();
  }
}

template <narrow_float To>
static __global__ void __launch_bounds__(threads_per_block)
    transpose_kernel(hwio_shape shape, const float* __restrict__ source,
                     To* __restrict__ destination) {
  health_counts<std::uint32_t> none;
  transpose_in_block<To, false>(transposition(shape), source, destination, none, none);
}

template <narrow_float To>
static __global__ void __launch_bounds__(threads_per_block)
    transpose_and_measure_kernel(hwio_shape shape, const float* __restrict__ source,
                                 To* __restrict__ destination, health_accumulator* health) {
  const std::size_t count = shape.height * shape.width * shape.in * shape.out;
  measure_in_block(count, health, [&](auto& mine, auto& block) {
    transpose_in_block<To, true>(transposition(shape), source, destination, mine, block);
  });
}

/// The number of elements. Throws `unsupported_error` where no memory could hold them.
[[nodiscard]] inline std::size_t count_elements(const hwio_shape& shape) {
  if (shape.height == 0 || shape.width == 0 || shape.in == 0 || shape.out == 0) return 0;
  std::uint64_t bytes = sizeof(float);
  for (const std::size_t size : {shape.height, shape.width, shape.in, shape.out}) {
    const auto product = checked_multiply(bytes, size);
    if (!product) {
      throw unsupported_error("weights of more than 2^64 bytes: " + std::to_string(shape.height) +
                              " x " + std::to_string(shape.width) + " x " +
                              std::to_string(shape.in) + " x " + std::to_string(shape.out));
    }
    bytes = *product;
  }
  return bytes / sizeof(float);
}

template <narrow_float To, class... Parameters>
static void launch_transposition(void (*kernel)(hwio_shape, const float*, To*, Parameters...),
                                 const hwio_shape& shape, const float* source, To* destination,
                                 cudaStream_t stream, Parameters... parameters) {
  const std::size_t count = count_elements(shape);
  check_memory(source, destination, count);
  if (count == 0) return;
  const std::size_t work = transposition(shape).tiles() * threads_per_block;
  const unsigned blocks = number_of_blocks(resident_blocks(kernel), work, count);
  kernel<<<blocks, threads_per_block, 0, stream>>>(shape, source, destination, parameters...);
  check(cudaGetLastError(), "launch of a transposition");
}

}  // namespace detail

/// Enqueues the transposing conversion of [height, width, in, out] to [out, in, height, width] on
/// the stream. Memory and errors as with `convert`; alignment beyond that of the elements makes no
/// difference.
template <narrow_float To>
static void transpose(const hwio_shape& shape, const float* source, To* destination,
                      cudaStream_t stream) {
  detail::launch_transposition<To>(&detail::transpose_kernel<To>, shape, source, destination,
                                   stream);
}

/// As `transpose`, and adds the health of the conversion to `*health`, as `convert_and_measure`
/// does.
template <narrow_float To>
static void transpose_and_measure(const hwio_shape& shape, const float* source, To* destination,
                                  health_accumulator* health, cudaStream_t stream) {
  detail::launch_transposition<To, health_accumulator*>(&detail::transpose_and_measure_kernel<To>,
                                                        shape, source, destination, stream, health);
}

}  // namespace vggload::cuda
