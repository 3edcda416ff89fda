// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <vggload/core/error.hpp>
#include <vggload/io/gguf_reader.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/sharded_safetensors_reader.hpp>
#include <vggload/io/torch_reader.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace vggload {

/// Any `weight_reader` behind one type. A handle: copies share the reader, which lives as long as
/// one of them does. Itself a model of `weight_reader`; all members may be called from several
/// threads at once.
class checkpoint {
 public:
  /// A checkpoint read by `reader`, which it takes over.
  template <weight_reader Reader>
  [[nodiscard]] static checkpoint from(Reader reader) {
    return checkpoint(std::make_shared<const holder<Reader>>(std::move(reader)));
  }

  [[nodiscard]] const std::string& path() const noexcept { return reader_->path(); }
  [[nodiscard]] std::string_view format() const noexcept { return reader_->format(); }
  [[nodiscard]] std::uint64_t file_bytes() const noexcept { return reader_->file_bytes(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept { return reader_->tensors(); }
  [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept {
    return reader_->metadata();
  }
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    reader_->read(tensor, offset, out);
  }
  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    return reader_->view(tensor);
  }

  /// The index of the tensor with this name. Looks through the list.
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const noexcept {
    const auto all = tensors();
    const auto found = std::ranges::find(all, name, &tensor_info::name);
    if (found == all.end()) return std::nullopt;
    return static_cast<std::size_t>(found - all.begin());
  }

 private:
  class interface {
   public:
    interface() = default;
    interface(const interface&) = delete;
    interface& operator=(const interface&) = delete;
    virtual ~interface() = default;
    [[nodiscard]] virtual const std::string& path() const noexcept = 0;
    [[nodiscard]] virtual std::string_view format() const noexcept = 0;
    [[nodiscard]] virtual std::uint64_t file_bytes() const noexcept = 0;
    [[nodiscard]] virtual std::span<const tensor_info> tensors() const noexcept = 0;
    [[nodiscard]] virtual std::span<const metadata_entry> metadata() const noexcept = 0;
    virtual void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const = 0;
    [[nodiscard]] virtual std::optional<std::span<const std::byte>> view(
        std::size_t tensor) const = 0;
  };

  template <class Reader>
  class holder final : public interface {
   public:
    explicit holder(Reader reader) : reader_(std::move(reader)) {}
    [[nodiscard]] const std::string& path() const noexcept override { return reader_.path(); }
    [[nodiscard]] std::string_view format() const noexcept override { return reader_.format(); }
    [[nodiscard]] std::uint64_t file_bytes() const noexcept override {
      return reader_.file_bytes();
    }
    [[nodiscard]] std::span<const tensor_info> tensors() const noexcept override {
      return reader_.tensors();
    }
    [[nodiscard]] std::span<const metadata_entry> metadata() const noexcept override {
      return reader_.metadata();
    }
    void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const override {
      reader_.read(tensor, offset, out);
    }
    [[nodiscard]] std::optional<std::span<const std::byte>> view(
        std::size_t tensor) const override {
      return reader_.view(tensor);
    }

   private:
    Reader reader_;
  };

  explicit checkpoint(std::shared_ptr<const interface> reader) noexcept
      : reader_(std::move(reader)) {}

  std::shared_ptr<const interface> reader_;
};

static_assert(weight_reader<checkpoint>);

/// The readers that `open_checkpoint` may try, in this order. Each has `matches(file, head)`, which
/// looks at a file's first bytes (up to 64) and further where these do not tell, and is made from
/// an `input_file`. Those of safetensors, which begins with a number that could be anything, come
/// last wherever they stand; in what order the others stand makes no difference.
template <class... Readers>
struct reader_list {};

/// The formats that need no further library.
using default_readers = reader_list<torch_zip_reader, torch_legacy_reader, npy_reader, npz_reader,
                                    gguf_reader, safetensors_reader, sharded_safetensors_reader>;

namespace detail {

[[nodiscard]] inline std::string unknown_format(const input_file& file,
                                                std::span<const std::byte> head) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text = printable(file.path()) +
                     ": not a checkpoint in a known format: " + std::to_string(file.size()) +
                     " bytes";
  if (!head.empty()) text += ", the first are";
  for (const std::byte byte : head.first(std::min<std::size_t>(head.size(), 8))) {
    text += ' ';
    text += digits[std::to_integer<unsigned>(byte) >> 4U];
    text += digits[std::to_integer<unsigned>(byte) & 0xFU];
  }
  return text;
}

template <class Reader>
inline constexpr bool takes_any_start = false;
template <>
inline constexpr bool takes_any_start<safetensors_reader> = true;
template <>
inline constexpr bool takes_any_start<sharded_safetensors_reader> = true;

template <class... Readers>
[[nodiscard]] checkpoint open_with(reader_list<Readers...>, input_file file) {
  std::array<std::byte, 64> buffer;
  const auto head = std::span(buffer).first(
      static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), buffer.size())));
  file.read_at(0, head);
  std::optional<checkpoint> opened;
  const auto attempt = [&]<class Reader>(std::type_identity<Reader>, bool last) {
    if (takes_any_start<Reader> != last || !Reader::matches(file, head)) return false;
    opened = checkpoint::from(Reader(std::move(file)));
    return true;
  };
  if (!(attempt(std::type_identity<Readers>(), false) || ...) &&
      !(attempt(std::type_identity<Readers>(), true) || ...)) {
    throw format_error(unknown_format(file, head));
  }
  return *std::move(opened);
}

}  // namespace detail

/// Opens a file of tensors. Its first bytes tell the format, never its name; the index is read and
/// checked, the payloads are not touched. Throws `io_error`, `format_error`, `out_of_memory`.
template <class Readers = default_readers>
[[nodiscard]] checkpoint open_checkpoint(const std::string& path) {
  return detail::naming_out_of_memory(
      path, "opening the file", [&] { return detail::open_with(Readers(), input_file(path)); });
}

}  // namespace vggload
