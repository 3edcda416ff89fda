// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <vggload/core/error.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/weight_reader.hpp>

namespace fuzz {

/// A file in memory, written anew for each input.
class memory_file {
 public:
  memory_file()
      : descriptor_(::memfd_create("input", MFD_CLOEXEC)),
        path_("/proc/self/fd/" + std::to_string(descriptor_)) {
    if (descriptor_ < 0) std::abort();
  }

  const std::string& write(const std::uint8_t* data, std::size_t size) {
    if (::ftruncate(descriptor_, 0) != 0) std::abort();
    for (std::size_t done = 0; done < size;) {
      const ::ssize_t count =
          ::pwrite(descriptor_, data + done, size - done, static_cast<::off_t>(done));
      if (count <= 0) std::abort();
      done += static_cast<std::size_t>(count);
    }
    return path_;
  }

 private:
  int descriptor_;
  std::string path_;
};

/// All that a user may do with a file: opens it, lists it, reads the start and the end of every
/// tensor, and looks at it in place, where the same bytes must be. Errors of the library are what
/// is expected; anything else ends the process.
template <class Reader>
int open_and_read(const std::uint8_t* data, std::size_t size) {
  static memory_file file;
  constexpr std::uint64_t most_bytes = 4096;
  try {
    vggload::input_file input(file.write(data, size));
    std::vector<std::byte> head(std::min<std::size_t>(size, 64));
    input.read_at(0, head);
    (void)Reader::matches(input, head);
    const Reader reader(std::move(input));
    std::size_t reads = 0;
    for (std::size_t i = 0; i < reader.tensors().size(); ++i) {
      const vggload::tensor_info& info = reader.tensors()[i];
      if (info.dtype != vggload::dtype::opaque && info.bytes != bytes_of(info.dtype, info.shape)) {
        std::abort();
      }
      const auto view = reader.view(i);
      if (view && view->size() != info.bytes) std::abort();
      if (++reads > 100) continue;
      std::vector<std::byte> part(static_cast<std::size_t>(std::min(info.bytes, most_bytes)));
      for (const std::uint64_t offset : {std::uint64_t{0}, info.bytes - part.size()}) {
        try {
          reader.read(i, offset, part);
          if (view && !std::ranges::equal(part, view->subspan(offset, part.size()))) std::abort();
        } catch (const vggload::error&) {
          if (view) std::abort();
        }
      }
    }
  } catch (const vggload::error&) {
    // Refused, as it should be.
  }
  return 0;
}

}  // namespace fuzz
