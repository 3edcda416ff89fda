// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// On a GPU: what device_load_test sees on a device that is none. Without a GPU it is skipped.

#define DOCTEST_CONFIG_IMPLEMENT

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <vggload/core/dtype.hpp>
#include <vggload/cuda/load_vgg16.cuh>
#include <vggload/cuda/runtime_device.cuh>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/vgg16/load.hpp>

#include "../support/fake_reader.hpp"
#include "../support/message_of.hpp"

using namespace vggload;
using cuda::upload_conversion;
using test::fake_reader;

namespace {

void check_equal(const cuda::device_model<cuda::device_resource>& loaded,
                 const vgg16::model<>& expected) {
  const cuda::runtime_device device;
  REQUIRE(loaded.layers().size() == expected.weights().layers().size());
  for (std::size_t i = 0; i < loaded.layers().size(); ++i) {
    const auto& layer = loaded.layers()[i];
    const auto& host = expected.weights().layers()[i];
    for (const auto& [on_device, view] :
         {std::pair(&layer.weight, &host.weight), std::pair(&layer.bias, &host.bias)}) {
      CHECK(on_device->dtype == view->dtype());
      CHECK(on_device->shape == view->shape());
      std::vector<std::byte> bytes(on_device->bytes.size());
      device.copy_to_host(bytes, on_device->bytes.data());
      CHECK(std::ranges::equal(bytes, view->bytes()));
    }
  }
}

checkpoint vgg16_source(dtype type) {
  return checkpoint::from(fake_reader(test::vgg16_tensors("torchvision", false, 1000, type)));
}

}  // namespace

TEST_CASE("the GPU has what the host would have, however it is converted") {
  const checkpoint source = vgg16_source(dtype::f32);
  for (const dtype type : {dtype::f16, dtype::bf16, dtype::f32}) {
    const auto expected = vgg16::load(source, {.dtype = type, .include_top = false});
    for (const upload_conversion conversion :
         {upload_conversion::on_device, upload_conversion::while_staging,
          upload_conversion::by_measurement}) {
      for (const unsigned threads : {1U, 3U, 16U}) {
        const std::string how(name_of(conversion));
        CAPTURE(how);
        CAPTURE(threads);
        // The smallest ring makes the most copies that have to wait for each other.
        for (const std::size_t ring_bytes :
             {threads * (std::size_t{512} << 10U), preferred_ring_bytes}) {
          const auto loaded = cuda::load_vgg16(
              source, {.load = {.dtype = type, .include_top = false, .threads = threads},
                       .conversion = conversion,
                       .ring_bytes = ring_bytes});
          check_equal(loaded, expected);
        }
      }
    }
  }
}

TEST_CASE("tensors of several types in one load") {
  const checkpoint source = vgg16_source(dtype::f32);
  const dtype_policy types = dtype_policy(dtype::f16).keep_fp32([](std::string_view name) {
    return name.ends_with("bias");
  });
  const auto expected = vgg16::load(source, {.dtype = types, .include_top = false});
  const auto loaded = cuda::load_vgg16(source, {.load = {.dtype = types, .include_top = false},
                                                .conversion = upload_conversion::on_device});
  check_equal(loaded, expected);
}

TEST_CASE("a load that fails or is cancelled leaves the device's memory as it was, and usable") {
  const auto free_bytes = [] {
    std::size_t free = 0;
    std::size_t total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
  };
  const fake_reader reader(test::vgg16_tensors("torchvision", false));
  const checkpoint source = checkpoint::from(reader);
  const cuda::device_load_options options{
      .load = {.include_top = false, .threads = 4, .stop = reader.history()->stop.get_token()},
      .conversion = upload_conversion::on_device};
  static_cast<void>(cuda::load_vgg16(source, options));
  const std::size_t before = free_bytes();
  reader.history()->reads = 0;
  reader.history()->fail_at_read = 60;
  CHECK(test::message_of<io_error>([&] {
          static_cast<void>(cuda::load_vgg16(source, options));
        }).starts_with("fake file: injected"));
  CHECK(free_bytes() == before);
  reader.history()->reads = 0;
  reader.history()->fail_at_read = UINT64_MAX;
  reader.history()->stop_at_read = 60;
  CHECK(test::message_of<cancelled_error>([&] {
          static_cast<void>(cuda::load_vgg16(source, options));
        }).starts_with("fake file: cancelled"));
  CHECK(free_bytes() == before);
  CHECK(cudaGetLastError() == cudaSuccess);
}

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("SKIPPED: no GPU");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
