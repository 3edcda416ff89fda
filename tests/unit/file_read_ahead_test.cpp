// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Files with holes: no page of one is in the page cache before it is read, on any file system, and one that has been
// written is.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <fcntl.h>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/file_mapping.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/file_read_ahead.hpp>

#include "../support/temporary_folder.hpp"

using namespace vggload;

namespace {

constexpr std::uint64_t mebibyte = 1 << 20;

struct reading {
  std::size_t tensor;
  std::uint64_t offset;
  std::size_t bytes;
};

/// Tensors of bytes side by side in a file, each of whose reads is written down.
class hole_reader {
 public:
  struct record {
    std::mutex mutex;
    std::vector<reading> reads;
    std::atomic<bool> fails = false;

    std::uint64_t bytes() {
      const std::scoped_lock lock(mutex);
      std::uint64_t sum = 0;
      for (const reading& each : reads) sum += each.bytes;
      return sum;
    }
  };

  hole_reader(const std::string& path, const std::vector<std::uint64_t>& sizes, bool maps = true)
      : file_(path), history_(std::make_shared<record>()) {
    // The kernel reads no further than it is asked to.
    ::posix_fadvise(file_.descriptor(), 0, 0, POSIX_FADV_RANDOM);
    if (maps) mapping_ = file_mapping(file_);
    std::uint64_t begin = 0;
    for (const std::uint64_t size : sizes) {
      tensors_.push_back({std::to_string(tensors_.size()), dtype::u8, shape{size}, size});
      begins_.push_back(begin);
      begin += size;
    }
  }

  [[nodiscard]] const std::string& path() const { return file_.path(); }
  [[nodiscard]] std::string_view format() const { return "hole"; }
  [[nodiscard]] std::uint64_t file_bytes() const { return file_.size(); }
  [[nodiscard]] std::span<const tensor_info> tensors() const { return tensors_; }
  [[nodiscard]] std::span<const metadata_entry> metadata() const { return {}; }
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    {
      const std::scoped_lock lock(history_->mutex);
      history_->reads.push_back({tensor, offset, out.size()});
    }
    if (history_->fails) throw io_error(path() + ": injected");
    file_.read_at(begins_[tensor] + offset, out);
  }
  [[nodiscard]] std::optional<std::span<const std::byte>> view(std::size_t tensor) const {
    if (!mapping_) return std::nullopt;
    return mapping_.bytes().subspan(static_cast<std::size_t>(begins_[tensor]),
                                    static_cast<std::size_t>(tensors_[tensor].bytes));
  }

  [[nodiscard]] const std::shared_ptr<record>& history() const { return history_; }

 private:
  input_file file_;
  file_mapping mapping_;
  std::shared_ptr<record> history_;
  std::vector<tensor_info> tensors_;
  std::vector<std::uint64_t> begins_;
};

static_assert(weight_reader<hole_reader>);

struct scene {
  test::temporary_folder folder;
  std::vector<std::uint64_t> sizes{3 * mebibyte, 1000, 5 * mebibyte};
  std::uint64_t all = 8 * mebibyte + 1000;
  std::shared_ptr<hole_reader::record> history;
  std::optional<checkpoint> file;

  explicit scene(bool maps = true) {
    const std::string path = folder.file("hole");
    std::ofstream(path).close();
    std::filesystem::resize_file(path, all);
    hole_reader reader(path, sizes, maps);
    history = reader.history();
    file = checkpoint::from(std::move(reader));
  }

  void append_all(file_read_ahead& ahead) const {
    std::uint64_t place = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CHECK(ahead.append(*file, i) == place);
      place += sizes[i];
    }
  }
};

/// Waits until so many bytes have been read, and then whether more are.
void check_settles(hole_reader::record& history, std::uint64_t bytes) {
  for (int i = 0; i < 10'000 && history.bytes() < bytes; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(history.bytes() == bytes);
}

}  // namespace

TEST_CASE("all is read once, in order") {
  const scene files;
  file_read_ahead ahead(100 * mebibyte);
  files.append_all(ahead);
  const file_read_ahead::running reading(ahead);
  check_settles(*files.history, files.all);
  std::vector<std::uint64_t> ends(files.sizes.size());
  std::size_t last = 0;
  for (const auto& each : files.history->reads) {
    CHECK(each.tensor >= last);
    CHECK(each.offset == ends[each.tensor]);
    last = each.tensor;
    ends[each.tensor] += each.bytes;
  }
  CHECK(ends == files.sizes);
}

TEST_CASE("no more is read than the distance beyond what is used") {
  const scene files;
  file_read_ahead ahead(2 * mebibyte);
  files.append_all(ahead);
  const file_read_ahead::running reading(ahead);
  check_settles(*files.history, 2 * mebibyte);
  // It goes on when a quarter of the distance has been used.
  ahead.advance(mebibyte / 4);
  check_settles(*files.history, 2 * mebibyte);
  ahead.advance(3 * mebibyte / 4);
  check_settles(*files.history, 2 * mebibyte + 3 * mebibyte / 4);
  ahead.advance(mebibyte / 2);  // somebody slower changes nothing
  check_settles(*files.history, 2 * mebibyte + 3 * mebibyte / 4);
  // To 3.5 MiB: the first two tensors, and of the third whole steps of 128 KiB.
  ahead.advance(3 * mebibyte / 2);
  check_settles(*files.history, 3 * mebibyte + 1000 + 3 * (mebibyte / 8));
}

TEST_CASE("what has been used already is not read, nor what is in the page cache") {
  const scene files;
  {
    std::fstream file(files.file->path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(mebibyte);
    file << std::string(mebibyte, 'w');
  }
  file_read_ahead ahead(2 * mebibyte);
  files.append_all(ahead);
  const file_read_ahead::running reading(ahead);
  check_settles(*files.history, mebibyte);
  ahead.advance(files.all - mebibyte);
  check_settles(*files.history, 2 * mebibyte);
  for (const auto& each : files.history->reads) {
    INFO(each.tensor, ": ", each.offset);
    CHECK((each.tensor == 0 ? each.offset < mebibyte
                            : each.tensor == 2 && each.offset >= 4 * mebibyte));
  }
}

TEST_CASE("it ends at any moment") {
  const scene files;
  file_read_ahead ahead(mebibyte);
  files.append_all(ahead);
  for (int i = 0; i < 200; ++i) {
    const file_read_ahead::running reading(ahead);
    if (i % 3 == 1) ahead.advance(static_cast<std::uint64_t>(i) * 50'000);
    if (i % 7 == 2) std::this_thread::yield();
  }
}

TEST_CASE("an error is left to whoever wants the bytes, and the next time it begins anew") {
  const scene files;
  files.history->fails = true;
  file_read_ahead ahead(mebibyte);
  files.append_all(ahead);
  {
    const file_read_ahead::running reading(ahead);
    while (files.history->bytes() == 0) std::this_thread::yield();
    ahead.advance(files.all);
  }
  CHECK(files.history->reads.size() == 1);
  files.history->reads.clear();
  files.history->fails = false;
  const file_read_ahead::running reading(ahead);
  check_settles(*files.history, mebibyte);
}

TEST_CASE("nothing is read ahead of a file that is not mapped, or by no distance") {
  for (const bool maps : {false, true}) {
    const scene files(maps);
    file_read_ahead ahead(maps ? 0 : mebibyte);
    files.append_all(ahead);
    const file_read_ahead::running reading(ahead);
    check_settles(*files.history, 0);
  }
}
