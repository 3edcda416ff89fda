// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/io/hdf5_reader.hpp>

#include "fuzz_reader.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::open_and_read<vggload::hdf5_reader>(data, size);
}
