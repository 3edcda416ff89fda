// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <vggload/io/weight_reader.hpp>
#include <vggload/load/checkpoint.hpp>

namespace vggload {

/// Has tensors brought from the device to the page cache before they are wanted, in the order in which they will be, while
/// whoever wants them is busy with what came before: a thread reads them and drops what it got. Page cache is no memory of
/// the process; the kernel takes it back when it needs it. What is there already is left alone. Advice only: of a file that
/// is not mapped, or that the process neither owns nor may write (mincore(2) tells nobody else what is in the page cache),
/// nothing is read ahead, and errors are left to whoever wants the bytes. Neither moves nor copies.
class file_read_ahead {
 public:
  /// Reads at most `distance` bytes that are not used yet, so that little memory is not filled with what will be dropped
  /// before its turn. 0: nothing.
  explicit file_read_ahead(std::uint64_t distance) : distance_(distance) {}

  file_read_ahead(const file_read_ahead&) = delete;
  file_read_ahead& operator=(const file_read_ahead&) = delete;
  ~file_read_ahead() = default;

  /// The file's tensor comes next. The file must live as long. Returns the tensor's place in the sequence of all: how many
  /// bytes come before it.
  std::uint64_t append(const checkpoint& file, std::size_t tensor) {
    const std::uint64_t place = size_;
    const auto mapped = file.view(tensor);
    if (mapped) parts_.push_back({&file, tensor, *mapped, place});
    size_ += file.tensors()[tensor].bytes;
    return place;
  }

  /// While it lives, the tensors are read ahead, from the first on. One at a time.
  class running {
   public:
    explicit running(file_read_ahead& tensors) : tensors_(&tensors) {
      tensors.used_ = 0;
      if (tensors.parts_.empty() || tensors.distance_ == 0) return;
      try {
        thread_ = std::thread([&tensors] { tensors.run(); });
      } catch (const std::system_error&) {
        // No thread to be had: nothing is read ahead.
      }
    }
    running(const running&) = delete;
    running& operator=(const running&) = delete;
    ~running() {
      if (!thread_.joinable()) return;
      tensors_->advance(everything);
      thread_.join();
    }

   private:
    file_read_ahead* tensors_;
    std::thread thread_;
  };

  /// What comes before this place in the sequence has been used. From any thread.
  void advance(std::uint64_t place) noexcept {
    std::uint64_t before = used_;
    while (before < place && !used_.compare_exchange_weak(before, place)) {
    }
    // To wake a thread is dear: not for each read.
    if (place >= wanted_) used_.notify_one();
  }

 private:
  static constexpr std::uint64_t everything = std::numeric_limits<std::uint64_t>::max();
  static constexpr std::size_t step = std::size_t{128} << 10U;

  struct part {
    const checkpoint* file;
    std::size_t tensor;
    std::span<const std::byte> mapped;
    std::uint64_t place;
  };

  void run() noexcept {
    std::array<std::byte, step> dropped;
    for (const part& each : parts_) {
      for (std::size_t at = 0; at < each.mapped.size(); at += step) {
        const std::size_t bytes = std::min(step, each.mapped.size() - at);
        const std::uint64_t end = each.place + at + bytes;
        const std::uint64_t used = wait_for(end);
        if (used >= end || is_in_page_cache(each.mapped[at + bytes - 1])) continue;
        try {
          each.file->read(each.tensor, at, std::span(dropped).first(bytes));
        } catch (const std::exception&) {
          return;
        }
      }
    }
  }

  /// Waits until no more than the distance lies between what is used and `place`; returns what is used.
  std::uint64_t wait_for(std::uint64_t place) noexcept {
    std::uint64_t used = used_;
    if (place <= distance_ || used >= place - distance_) return used;
    // Then a quarter of the distance at once.
    const std::uint64_t enough = std::min(place - distance_ + distance_ / 4, size_);
    wanted_ = enough;
    while ((used = used_) < enough) used_.wait(used);
    wanted_ = everything;
    return used;
  }

  static bool is_in_page_cache(const std::byte& byte) noexcept {
    static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    unsigned char resident = 0;
    auto* const begin =
        const_cast<std::byte*>(&byte) - reinterpret_cast<std::uintptr_t>(&byte) % page;
    return ::mincore(begin, 1, &resident) != 0 || (resident & 1U) != 0;
  }

  std::uint64_t distance_;
  std::vector<part> parts_;
  std::uint64_t size_ = 0;
  std::atomic<std::uint64_t> used_ = 0;
  std::atomic<std::uint64_t> wanted_ = everything;  // that is used before the thread goes on
};

}  // namespace vggload
