// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/names.hpp>

namespace test {

/// A reader of tensors that are in no file: each byte is a function of its tensor and place. Counts
/// and can fail.
class fake_reader {
 public:
  struct record {
    std::atomic<std::uint64_t> reads = 0;
    std::atomic<std::uint64_t> largest_read = 0;
    // Reads that did not begin where the tensor's last one ended.
    std::atomic<std::uint64_t> backward_reads = 0;
    std::array<std::atomic<std::uint64_t>, 64> last_end = {};
    // The number of the read that fails, and of the one that requests a stop. Reads behind either
    // are slow, so that a test sees whether the other threads end although the one that knows is
    // kept waiting.
    std::atomic<std::uint64_t> fail_at_read = UINT64_MAX;
    std::atomic<std::uint64_t> stop_at_read = UINT64_MAX;
    std::stop_source stop;
  };

  explicit fake_reader(std::vector<vggload::tensor_info> tensors)
      : tensors_(std::move(tensors)), record_(std::make_shared<record>()) {}

  static vggload::tensor_info info(std::string name, vggload::dtype type, vggload::shape dims) {
    const auto bytes = vggload::bytes_of(type, dims).value();
    return {std::move(name), type, std::move(dims), bytes};
  }

  /// Small numbers of both signs as FP32, whatever the tensor's type: any bytes do for the rest.
  static std::uint32_t word_at(std::size_t tensor, std::uint64_t index) {
    const std::uint64_t element = index + 131 * tensor;
    return static_cast<std::uint32_t>((0x3E000000U + element * 2654435761U % 0x02000000U) |
                                      (element & 1U) << 31U);
  }
  static std::byte byte_at(std::size_t tensor, std::uint64_t offset) {
    return static_cast<std::byte>(word_at(tensor, offset / 4) >> (8 * (offset % 4)));
  }

  const std::string& path() const { return path_; }
  std::string_view format() const { return "fake"; }
  std::uint64_t file_bytes() const {
    std::uint64_t sum = 0;
    for (const auto& info : tensors_) sum += info.bytes;
    return sum;
  }
  std::span<const vggload::tensor_info> tensors() const { return tensors_; }
  std::span<const vggload::metadata_entry> metadata() const { return {}; }
  void read(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
    const std::uint64_t number = record_->reads++;
    if (number == record_->fail_at_read) throw vggload::io_error(path_ + ": injected");
    if (number == record_->stop_at_read) record_->stop.request_stop();
    if (number > record_->fail_at_read || number > record_->stop_at_read) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::uint64_t largest = record_->largest_read;
    while (largest < out.size() &&
           !record_->largest_read.compare_exchange_weak(largest, out.size())) {
    }
    if (tensor < record_->last_end.size() &&
        record_->last_end[tensor].exchange(offset + out.size()) != offset) {
      ++record_->backward_reads;
    }
    // Whole words where there are some: under ThreadSanitizer each store costs.
    std::size_t i = 0;
    for (; i < out.size() && (offset + i) % 4 != 0; ++i) out[i] = byte_at(tensor, offset + i);
    for (; out.size() - i >= 4; i += 4) {
      const std::uint32_t word = word_at(tensor, (offset + i) / 4);
      std::memcpy(out.data() + i, &word, sizeof word);
    }
    for (; i < out.size(); ++i) out[i] = byte_at(tensor, offset + i);
  }
  std::optional<std::span<const std::byte>> view(std::size_t) const { return std::nullopt; }

  const std::shared_ptr<record>& history() const { return record_; }

 private:
  std::string path_ = "fake file";
  std::vector<vggload::tensor_info> tensors_;
  std::shared_ptr<record> record_;
};

static_assert(vggload::weight_reader<fake_reader>);

/// VGG16's tensors as a family of names lists them, weight then bias, in the family's layout.
inline std::vector<vggload::tensor_info> vgg16_tensors(std::string_view family, bool include_top,
                                                       std::uint32_t classes = 1000,
                                                       vggload::dtype type = vggload::dtype::f32) {
  namespace vgg16 = vggload::vgg16;
  std::vector<vggload::tensor_info> tensors;
  for (const auto& map : vgg16::name_maps) {
    if (map.family != family) continue;
    for (std::size_t i = 0; i < vgg16::layer_count(include_top); ++i) {
      auto spec = vgg16::layers[i];
      if (i == 15) spec.outputs = classes;
      const bool keras = map.layout == vgg16::weight_layout::keras;
      const std::uint64_t in = spec.inputs;
      const std::uint64_t out = spec.outputs;
      vggload::shape weight = keras ? vggload::shape{in, out} : vggload::shape{out, in};
      if (i < 13) weight = keras ? vggload::shape{3, 3, in, out} : vggload::shape{out, in, 3, 3};
      tensors.push_back(fake_reader::info(vgg16::name_in(map, {i, false}), type, weight));
      tensors.push_back(fake_reader::info(vgg16::name_in(map, {i, true}), type, {out}));
    }
  }
  return tensors;
}

}  // namespace test
