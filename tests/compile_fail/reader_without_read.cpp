// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/load/checkpoint.hpp>

struct reader {
  const std::string& path() const;
  std::string_view format() const;
  std::uint64_t file_bytes() const;
  std::span<const vggload::tensor_info> tensors() const;
  std::span<const vggload::metadata_entry> metadata() const;
#ifndef MISTAKE
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const;
#endif
  std::optional<std::span<const std::byte>> view(std::size_t tensor) const;
};

vggload::checkpoint open(reader r) { return vggload::checkpoint::from(r); }
