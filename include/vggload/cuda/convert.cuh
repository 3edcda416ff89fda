// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// FP32 in device memory to FP16 or BF16 in device memory, by the rule in convert/scalar.hpp bit for
// bit, with or without counting the health of convert/health.hpp in the same pass.
//
// Everything here that launches has internal linkage: a kernel that two shared libraries share by
// name is launched from the one that did not register it.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <cuda_runtime.h>

#include <vggload/core/error.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/cuda/element.cuh>
#include <vggload/cuda/error.hpp>
#include <vggload/cuda/health.hpp>

namespace vggload::cuda {

namespace detail {

/// Elements that a thread takes at once: two loads of 16 bytes and one store.
inline constexpr std::size_t group_size = 8;

/// How the elements of a conversion are divided: `head` single ones, groups, and the rest single.
struct element_pieces {
  std::size_t head;
  std::size_t groups;
  std::size_t loose;  // all that is in no group

  /// The element of a number below `loose`.
  [[nodiscard]] __host__ __device__ std::size_t loose_element(std::size_t number) const noexcept {
    return number < head ? number : number + groups * group_size;
  }
};

/// The groups begin where source and destination are both at a multiple of 16 bytes. Where there is
/// no such place, all elements are single.
[[nodiscard]] __host__ __device__ inline element_pieces split(std::uintptr_t source,
                                                              std::uintptr_t destination,
                                                              std::size_t count) noexcept {
  const std::size_t head = (16 - destination % 16) % 16 / 2;
  if ((source + 4 * head) % 16 != 0 || head > count) return {count, 0, count};
  const std::size_t groups = (count - head) / group_size;
  return {head, groups, count - groups * group_size};
}

/// Calls `on_group` with the first element of each group and `on_element` with each single element
/// of one thread's share. The threads of a warp take what lies side by side.
#pragma nv_exec_check_disable
template <class OnGroup, class OnElement>
__host__ __device__ void for_each_piece(launch_position where, element_pieces pieces,
                                        OnGroup on_group, OnElement on_element) {
  const std::size_t stride = where.stride();
  for (std::size_t group = where.index(); group < pieces.groups; group += stride) {
    on_group(pieces.head + group * group_size);
  }
  for (std::size_t number = where.index(); number < pieces.loose; number += stride) {
    on_element(pieces.loose_element(number));
  }
}

/// Eight values and their results, two in a word.
template <narrow_float To>
struct element_group {
  float values[group_size];
  std::uint32_t words[group_size / 2];

  /// `source` is at a multiple of 16 bytes.
  __host__ __device__ explicit element_group(const float* source) noexcept {
    const float4 low = *reinterpret_cast<const float4*>(source);
    const float4 high = *reinterpret_cast<const float4*>(source + 4);
    const float loaded[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    for (unsigned i = 0; i < group_size; ++i) values[i] = loaded[i];
    for (unsigned i = 0; i < group_size / 2; ++i) {
      words[i] = round_pair<To>(values[2 * i], values[2 * i + 1]);
    }
  }

  /// `destination` is at a multiple of 16 bytes.
  __host__ __device__ void store(To* destination) const noexcept {
    // As bytes: single elements may be written over it.
    std::memcpy(__builtin_assume_aligned(static_cast<void*>(destination), 16), words, sizeof words);
  }

  [[nodiscard]] __host__ __device__ std::uint32_t magnitudes(unsigned word) const noexcept {
    return words[word] & ~flag_bits;
  }

  [[nodiscard]] __host__ __device__ std::uint16_t result(unsigned element) const noexcept {
    return static_cast<std::uint16_t>(words[element / 2] >> 16 * (element % 2));
  }

  [[nodiscard]] __host__ __device__ bool has_nan() const noexcept {
    std::uint32_t flags = 0;
    for (unsigned i = 0; i < group_size / 2; ++i) {
      flags |= at_least<narrow_bits<To>::infinity + 1>(magnitudes(i));
    }
    return (flags & flag_bits) != 0;
  }

  /// Whether a result is infinite, a NaN or too small for `count_group`.
  [[nodiscard]] __host__ __device__ bool has_rare() const noexcept {
    std::uint32_t flags = 0;
    for (unsigned i = 0; i < group_size / 2; ++i) {
      flags |= at_least<narrow_bits<To>::infinity>(magnitudes(i)) |
               ~at_least<narrow_bits<To>::smallest_common>(magnitudes(i));
    }
    return (flags & flag_bits) != 0;
  }
};

/// Counts a group without rare values. Returns whether a relative error in it exceeds the block's
/// largest.
template <narrow_float To>
[[nodiscard]] __host__ __device__ bool count_group(
    const element_group<To>& group, health_counts<std::uint32_t>& mine,
    const health_counts<std::uint32_t>& block) noexcept {
  mine.neg += count_flags(group.words[0], group.words[1], group.words[2], group.words[3]);
  if constexpr (std::same_as<To, float16>) {  // in BF16 the same numbers are subnormal as in FP32
    constexpr std::uint32_t bound = narrow_bits<To>::smallest_normal;
    mine.became_subnormal +=
        count_flags(~at_least<bound>(group.magnitudes(0)), ~at_least<bound>(group.magnitudes(1)),
                    ~at_least<bound>(group.magnitudes(2)), ~at_least<bound>(group.magnitudes(3)));
  }
  // Read anew each time: other threads raise it.
  const float most =
      float_of(*static_cast<const volatile std::uint32_t*>(&block.max_relative_error));
  bool exceeded = false;
  float max_abs = 0;
  for (unsigned i = 0; i < group_size; ++i) {
    const float value = group.values[i];
    // Exact: the error of a rounding has no more bits than what was rounded.
    const float error = value - widen<To>(group.result(i));
    exceeded |= exceeds(error, value, most);
    max_abs = fmaxf(max_abs, fabsf(value));
  }
  if (bits_of(max_abs) > mine.max_abs) mine.max_abs = bits_of(max_abs);
  return exceeded;
}

// What few groups need is done element by element, from the source again: loops that are not
// unrolled and keep no registers from the others.

/// Gives a group's NaNs their payload back and, with `Measured`, counts the group whatever is in
/// it.
template <narrow_float To, bool Measured>
__host__ __device__ void finish_rare_group(const float* source, To* destination,
                                           health_counts<std::uint32_t>& mine,
                                           health_counts<std::uint32_t>& block) noexcept {
#if defined(__CUDA_ARCH__)  // the host's compiler warns of pragmas that it does not know
#pragma unroll 1
#endif
  for (unsigned i = 0; i < group_size; ++i) {
    const std::uint16_t result = narrow<To>(source[i]);
    if (is_nan<To>(result)) destination[i].bits = result;
    if constexpr (Measured) count_element<To>(source[i], result, mine, block);
  }
}

/// Raises the block's largest relative error to that of a group.
template <narrow_float To>
__host__ __device__ void raise_relative_errors(const float* source,
                                               health_counts<std::uint32_t>& block) noexcept {
#if defined(__CUDA_ARCH__)  // the host's compiler warns of pragmas that it does not know
#pragma unroll 1
#endif
  for (unsigned i = 0; i < group_size; ++i) {
    raise_relative_error<To>(source[i], narrow<To>(source[i]), block);
  }
}

/// One thread's share of a conversion. With `Measured` the health is counted, in `mine` and
/// `block`.
template <narrow_float To, bool Measured>
__host__ __device__ void convert_share(launch_position where, const float* __restrict__ source,
                                       To* __restrict__ destination, std::size_t count,
                                       health_counts<std::uint32_t>& mine,
                                       health_counts<std::uint32_t>& block) noexcept {
  const auto on_group = [&](std::size_t first) {
    const element_group<To> group(source + first);
    group.store(destination + first);
    if (Measured ? group.has_rare() : group.has_nan()) {
      finish_rare_group<To, Measured>(source + first, destination + first, mine, block);
    } else if constexpr (Measured) {
      if (count_group(group, mine, block)) raise_relative_errors<To>(source + first, block);
    }
  };
  const auto on_element = [&](std::size_t i) {
    const std::uint16_t result = narrow<To>(source[i]);
    destination[i].bits = result;
    if constexpr (Measured) count_element<To>(source[i], result, mine, block);
  };
  for_each_piece(where,
                 split(reinterpret_cast<std::uintptr_t>(source),
                       reinterpret_cast<std::uintptr_t>(destination), count),
                 on_group, on_element);
}

inline constexpr unsigned threads_per_block = 256;

/// Blocks for a launch in which the threads stride through `work` steps of one thread each: as many
/// as the device holds at once, but no more than have something to do, and no fewer than keep the
/// 32-bit counts of one block from overflowing.
[[nodiscard]] constexpr unsigned number_of_blocks(std::size_t resident, std::size_t work,
                                                  std::size_t elements) noexcept {
  constexpr std::size_t most = 0x7FFFFFFF;  // CUDA's own limit
  const std::size_t useful = work / threads_per_block + (work % threads_per_block != 0 ? 1 : 0);
  const std::size_t wanted = std::min(useful, std::max(resident, elements >> 31U));
  return static_cast<unsigned>(std::clamp(wanted, std::size_t{1}, most));
}

/// How many blocks of the kernel the current device holds at once.
template <class... Parameters>
[[nodiscard]] static std::size_t resident_blocks(void (*kernel)(Parameters...)) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads_per_block, 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return static_cast<std::size_t>(processors) * static_cast<std::size_t>(blocks);
}

/// Throws `unsupported_error` where the kernels cannot work.
inline void check_memory(const void* source, const void* destination, std::size_t count) {
  const auto from = reinterpret_cast<std::uintptr_t>(source);
  const auto to = reinterpret_cast<std::uintptr_t>(destination);
  if (from % sizeof(float) != 0) {
    throw unsupported_error(
        "FP32 source for a conversion on the device: its address is not a multiple of 4");
  }
  if (to % sizeof(float16) != 0) {
    throw unsupported_error(
        "16-bit destination of a conversion on the device: its address is not a multiple of 2");
  }
  if (from < to + count * sizeof(float16) && to < from + count * sizeof(float)) {
    throw unsupported_error("source and destination of a conversion on the device overlap");
  }
}

/// One block's part of what all kernels do for `health`: `work` counts into the thread's own counts
/// and those of the block.
template <class Work>
static __device__ void measure_in_block(std::size_t count, health_accumulator* health, Work work) {
  __shared__ health_counts<std::uint32_t> block;
  if (threadIdx.x == 0) block = {};
  __syncthreads();
  health_counts<std::uint32_t> mine{};
  work(mine, block);
  merge(block, mine);
  __syncthreads();
  if (threadIdx.x != 0) return;
  merge(health->counts, block);
  if (blockIdx.x == 0) add_atomically<unsigned long long>(health->numel, count);
}

template <narrow_float To>
static __global__ void __launch_bounds__(threads_per_block)
    convert_kernel(const float* __restrict__ source, To* __restrict__ destination,
                   std::size_t count) {
  const launch_position where{blockIdx.x, threadIdx.x, gridDim.x, blockDim.x};
  health_counts<std::uint32_t> none;
  convert_share<To, false>(where, source, destination, count, none, none);
}

template <narrow_float To>
static __global__ void __launch_bounds__(threads_per_block)
    convert_and_measure_kernel(const float* __restrict__ source, To* __restrict__ destination,
                               std::size_t count, health_accumulator* health) {
  const launch_position where{blockIdx.x, threadIdx.x, gridDim.x, blockDim.x};
  measure_in_block(count, health, [&](auto& mine, auto& block) {
    convert_share<To, true>(where, source, destination, count, mine, block);
  });
}

template <narrow_float To, class... Parameters>
static void launch_conversion(void (*kernel)(const float*, To*, std::size_t, Parameters...),
                              const float* source, To* destination, std::size_t count,
                              cudaStream_t stream, Parameters... parameters) {
  check_memory(source, destination, count);
  if (count == 0) return;
  const element_pieces pieces = split(reinterpret_cast<std::uintptr_t>(source),
                                      reinterpret_cast<std::uintptr_t>(destination), count);
  const unsigned blocks =
      number_of_blocks(resident_blocks(kernel), std::max(pieces.groups, pieces.loose), count);
  kernel<<<blocks, threads_per_block, 0, stream>>>(source, destination, count, parameters...);
  check(cudaGetLastError(), "launch of a conversion");
}

}  // namespace detail

/// Enqueues the conversion of `count` elements on the stream, one of the current device, and does
/// not wait. Both ranges are memory that the device reaches, and stay until the stream has come so
/// far. `source` is at a multiple of 4 bytes, `destination` at one of 2. It is fastest where both
/// come to a multiple of 16 bytes at the same element, as from cudaMalloc. The ranges do not
/// overlap: unlike on the host, there is no conversion in place.
///
/// @throws unsupported_error where alignment or overlap forbid it.
/// @throws cuda_error when CUDA refuses the launch, or tells of an earlier error.
template <narrow_float To>
static void convert(const float* source, To* destination, std::size_t count, cudaStream_t stream) {
  detail::launch_conversion<To>(&detail::convert_kernel<To>, source, destination, count, stream);
}

/// As `convert`, and adds the health of the conversion to `*health`, which is in memory of the
/// device at a multiple of 8 bytes.
template <narrow_float To>
static void convert_and_measure(const float* source, To* destination, std::size_t count,
                                health_accumulator* health, cudaStream_t stream) {
  detail::launch_conversion<To, health_accumulator*>(&detail::convert_and_measure_kernel<To>,
                                                     source, destination, count, stream, health);
}

}  // namespace vggload::cuda
