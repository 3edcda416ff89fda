// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Compiled and run with each CCCL that there is: see CMakeLists.txt.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/cuda/async_device_resource.hpp>
#include <vggload/cuda/device_resource.hpp>
#include <vggload/cuda/pinned_resource.hpp>
#include <vggload/cuda/virtual_device_resource.hpp>
#include <vggload/interop/cuda_mr.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

#include "../support/fake_cuda.hpp"
#include "../support/message_of.hpp"

#if defined(NEWER_CCCL) && CCCL_VERSION < 3001000
#error "this is not the newer one"
#endif

namespace mr = ::cuda::mr;

using namespace vggload;
using test::fake_cuda;
using test::fake_driver;
using test::fake_status;
using test::message_of;

namespace {

using device_resource = vggload::cuda::basic_device_resource<fake_cuda>;
using async_device_resource = vggload::cuda::basic_async_device_resource<fake_cuda>;
using pinned_resource = vggload::cuda::basic_pinned_resource<fake_cuda>;
using virtual_device_resource = vggload::cuda::basic_virtual_device_resource<fake_cuda>;

// One vocabulary for both of CCCL's.
#if CCCL_VERSION >= 3001000
template <class R, class... Properties>
constexpr bool is_synchronous = mr::synchronous_resource_with<R, Properties...>;
template <class R, class... Properties>
constexpr bool is_stream_ordered = mr::resource_with<R, Properties...>;
template <class... Properties>
using synchronous_ref = mr::synchronous_resource_ref<Properties...>;
template <class... Properties>
using stream_ordered_ref = mr::resource_ref<Properties...>;

void* take(synchronous_ref<mr::device_accessible> ref, std::size_t bytes, std::size_t alignment) {
  return ref.allocate_sync(bytes, alignment);
}
void give_back(synchronous_ref<mr::device_accessible> ref, void* address, std::size_t bytes,
               std::size_t alignment) {
  ref.deallocate_sync(address, bytes, alignment);
}
void* take(stream_ordered_ref<mr::device_accessible> ref, std::size_t bytes, std::size_t alignment,
           ::cuda::stream_ref stream) {
  return ref.allocate(stream, bytes, alignment);
}
void give_back(stream_ordered_ref<mr::device_accessible> ref, void* address, std::size_t bytes,
               std::size_t alignment, ::cuda::stream_ref stream) {
  ref.deallocate(stream, address, bytes, alignment);
}
#else
template <class R, class... Properties>
constexpr bool is_synchronous = mr::resource_with<R, Properties...>;
template <class R, class... Properties>
constexpr bool is_stream_ordered = mr::async_resource_with<R, Properties...>;
template <class... Properties>
using synchronous_ref = mr::resource_ref<Properties...>;
template <class... Properties>
using stream_ordered_ref = mr::async_resource_ref<Properties...>;

void* take(synchronous_ref<mr::device_accessible> ref, std::size_t bytes, std::size_t alignment) {
  return ref.allocate(bytes, alignment);
}
void give_back(synchronous_ref<mr::device_accessible> ref, void* address, std::size_t bytes,
               std::size_t alignment) {
  ref.deallocate(address, bytes, alignment);
}
void* take(stream_ordered_ref<mr::device_accessible> ref, std::size_t bytes, std::size_t alignment,
           ::cuda::stream_ref stream) {
  return ref.allocate_async(bytes, alignment, stream);
}
void give_back(stream_ordered_ref<mr::device_accessible> ref, void* address, std::size_t bytes,
               std::size_t alignment, ::cuda::stream_ref stream) {
  ref.deallocate_async(address, bytes, alignment, stream);
}
#endif

using of_device = cuda_memory_resource<device_resource>;
static_assert(is_synchronous<of_device, mr::device_accessible>);
static_assert(!is_synchronous<of_device, mr::host_accessible>);
static_assert(!is_stream_ordered<of_device>);  // nothing here waits for a stream

using of_async_device = cuda_memory_resource<async_device_resource>;
static_assert(is_stream_ordered<of_async_device, mr::device_accessible>);
static_assert(!is_stream_ordered<of_async_device, mr::host_accessible>);

using of_pinned = cuda_memory_resource<pinned_resource>;
static_assert(is_synchronous<of_pinned, mr::device_accessible, mr::host_accessible>);

using of_arena = cuda_memory_resource<arena<device_resource>>;
static_assert(is_synchronous<of_arena, mr::device_accessible>);
static_assert(is_stream_ordered<of_arena, mr::device_accessible>);
static_assert(!is_stream_ordered<of_arena, mr::host_accessible>);
static_assert(is_stream_ordered<cuda_memory_resource<arena<pinned_resource>>, mr::device_accessible,
                                mr::host_accessible>);

static_assert(!is_synchronous<cuda_memory_resource<arena<host_resource>>, mr::device_accessible>);

static_assert(noexcept(std::declval<of_arena&>().deallocate(nullptr, 1)) && noexcept(
    std::declval<of_arena&>().deallocate_sync(nullptr, 1)));

/// A stream that nothing is done with but to compare it.
::cudaStream_t stream_named(int& place) { return reinterpret_cast<::cudaStream_t>(&place); }

}  // namespace

TEST_CASE("a reference of CCCL's allocates from a resource and gives back") {
  fake_driver driver(10'000);
  cuda_memory_resource resource{device_resource{fake_cuda(driver)}};
  synchronous_ref<mr::device_accessible> ref(resource);
  void* const memory = take(ref, 1000, 256);
  CHECK(driver.device_bytes_in_use() == 1000);
  CHECK(reinterpret_cast<std::uintptr_t>(memory) % 256 == 0);
  CHECK_THROWS_AS((void)take(ref, 10'000, 256), out_of_memory);
  CHECK_THROWS_AS((void)take(ref, 10, 512), unsupported_error);
  CHECK(message_of<unsupported_error>([&] { (void)take(ref, 10, 48); }) ==
        "cuda::mr: an alignment of 48 bytes is no power of two");
  give_back(ref, memory, 1000, 256);
  CHECK(driver.faults().empty());
}

TEST_CASE("a stream's order is passed on, and without a stream the memory is waited for") {
  fake_driver driver;
  int own = 0;
  int other = 0;
  cuda_memory_resource resource(async_device_resource(&own, fake_cuda(driver)));
  stream_ordered_ref<mr::device_accessible> ref(resource);
  void* memory = take(ref, 1000, 256, stream_named(other));
  CHECK(driver.allocated_on() == std::vector<void*>{&other});
  CHECK(driver.synchronized().empty());
  give_back(ref, memory, 1000, 256, stream_named(other));
  CHECK(driver.freed_on() == std::vector<void*>{&other});

  synchronous_ref<mr::device_accessible> synchronous(resource);
  memory = take(synchronous, 1000, 256);
  CHECK(driver.allocated_on() == std::vector<void*>{&other, &own});
  CHECK(driver.synchronized() == std::vector<void*>{&own});
  give_back(synchronous, memory, 1000, 256);
  // Where waiting fails, what was allocated is not lost.
  driver.fail_call(1, fake_status::unsupported);
  CHECK_THROWS_AS((void)take(synchronous, 1000, 256), test::fake_cuda_error);
  CHECK(driver.faults().empty());
}

TEST_CASE("an arena gives named pieces within its budget, and keeps them") {
  fake_driver driver;
  {
    arena<device_resource> memory(10'000, device_resource{fake_cuda(driver)});
    (void)memory.allocate("fc1.weight", 100);
    cuda_memory_resource resource(memory, "thrust");
    synchronous_ref<mr::device_accessible> ref(resource);
    auto* const first = static_cast<std::byte*>(take(ref, 1000, 64));
    CHECK(first == memory.block().data() + 128);
    give_back(ref, first, 1000, 64);
    CHECK(memory.used() == 1128);
    CHECK(take(ref, 10, 8) != first);
    REQUIRE(memory.allocations().size() == 3);
    CHECK(memory.allocations()[1].name == "thrust");
    CHECK(memory.allocations()[1].role == memory_role::workspace);
    try {
      (void)take(ref, 9'000, 8);
      FAIL_CHECK("beyond the budget");
    } catch (const out_of_memory& e) {
      CHECK(e.tensor() == "thrust");
      CHECK(e.requested() == 9'000);
    }
    // The order of streams is no matter to it.
    stream_ordered_ref<mr::device_accessible> ordered(resource);
    int place = 0;
    void* const second = take(ordered, 10, 8, stream_named(place));
    give_back(ordered, second, 10, 8, stream_named(place));
    CHECK(driver.calls() == 1);
  }
  CHECK(driver.faults().empty());
}

TEST_CASE("an arena's pieces have every alignment, and end where the budget does") {
  fake_driver driver;
  for (std::size_t alignment = 1; alignment <= 4096; alignment *= 2) {
    for (const std::size_t used :
         {std::size_t{0}, std::size_t{1}, std::size_t{64}, std::size_t{300}, std::size_t{4096}}) {
      CAPTURE(alignment);
      CAPTURE(used);
      arena<device_resource> memory(10'000, device_resource{fake_cuda(driver)});
      (void)memory.allocate("used", used, 1);
      cuda_memory_resource resource(memory);
      // The first multiple that is not in use.
      const auto begin = reinterpret_cast<std::uintptr_t>(memory.block().data());
      auto expected = begin + used;
      while (expected % alignment != 0) ++expected;
      void* const piece = resource.allocate(10'000 - (expected - begin), alignment);
      CHECK(reinterpret_cast<std::uintptr_t>(piece) == expected);
      CHECK(memory.used() == 10'000);
      CHECK_THROWS_AS((void)resource.allocate(1, alignment), out_of_memory);
      CHECK_THROWS_AS((void)resource.allocate(SIZE_MAX, alignment), out_of_memory);
    }
  }
  CHECK(driver.faults().empty());
}

TEST_CASE("memory comes with the pieces where the arena only reserved addresses") {
  fake_driver driver;
  {
    arena<virtual_device_resource> memory(std::size_t{1} << 30U,
                                          virtual_device_resource{fake_cuda(driver)});
    cuda_memory_resource resource(memory);
    CHECK(driver.device_bytes_in_use() == 0);
    std::memset(resource.allocate(100'000), 1, 100'000);
    CHECK(driver.device_bytes_in_use() == 131'072);
  }
  CHECK(driver.faults().empty());
}

TEST_CASE("equal are those that may give back what the other gave out") {
  fake_driver driver;
  fake_driver other;
  const of_device a(device_resource{fake_cuda(driver)});
  CHECK(a == of_device(device_resource{fake_cuda(driver)}));
  CHECK(a != of_device(device_resource{fake_cuda(other)}));
  arena<device_resource> first(100, device_resource{fake_cuda(driver)});
  arena<device_resource> second(100, device_resource{fake_cuda(driver)});
  CHECK(of_arena(first) == of_arena(first, "of another name"));
  CHECK(of_arena(first) != of_arena(second));
  of_arena one(first);
  of_arena copy(one);
  CHECK(synchronous_ref<mr::device_accessible>(one) ==
        synchronous_ref<mr::device_accessible>(copy));
}

TEST_CASE("an allocator takes from the same source, whatever it is for") {
  arena<host_resource> memory(100'000);
  cuda_memory_allocator<char, arena<host_resource>> bytes{cuda_memory_resource(memory, "values")};
  std::vector<double, cuda_memory_allocator<double, arena<host_resource>>> values(1000, 1.5, bytes);
  CHECK(memory.used() == 8000);
  CHECK(reinterpret_cast<std::byte*>(values.data()) == memory.block().data());
  CHECK(memory.allocations()[0].name == "values");
  CHECK(values.get_allocator() == bytes);
  // Their bytes would wrap to 8.
  CHECK_THROWS_AS((void)values.get_allocator().allocate(SIZE_MAX / 8 + 2), out_of_memory);
  CHECK_THROWS_AS(values.resize(20'000), out_of_memory);
}
