// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What the library's conversions are compared with. Each in a file of its own, which is compiled for
// the processor that it runs on: they are to be at their best.

#include <cstddef>

#include <vggload/core/dtype.hpp>

namespace bench {

using conversion_function = void (*)(const std::byte* source, std::byte* destination,
                                     std::size_t count);

/// Eigen's `cast`, from and to half, bfloat16, float and double; nullptr for other types.
conversion_function find_eigen_cast(vggload::dtype from, vggload::dtype to);

/// A loop over the elements that the compiler makes of it what it can. FP32 to FP16 with its own
/// FP16, FP32 to BF16 by rounding the bits (NaNs apart, which this does not care for), and between
/// FP32 and FP64; nullptr for other types.
conversion_function find_plain_loop(vggload::dtype from, vggload::dtype to);

/// Nothing but loads, the widest instruction that this processor has for it, and stores: FP32 to FP16
/// and to BF16, FP16 to FP32. nullptr where there is none.
conversion_function find_bare_loop(vggload::dtype from, vggload::dtype to);

}  // namespace bench
