// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <bit>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vggload/cuda/async_device_resource.hpp>
#include <vggload/cuda/device_resource.hpp>
#include <vggload/cuda/pinned_resource.hpp>
#include <vggload/cuda/virtual_device_resource.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/process_memory.hpp>
#include <vggload/memory/reserving_host_resource.hpp>

#include "../support/fake_cuda.hpp"
#include "../support/message_of.hpp"
#include "../support/resource_conformance.hpp"

using namespace vggload;
using test::fake_cuda;
using test::fake_driver;
using test::fake_status;
using test::message_of;

namespace {

using device_resource = cuda::basic_device_resource<fake_cuda>;
using async_device_resource = cuda::basic_async_device_resource<fake_cuda>;
using pinned_resource = cuda::basic_pinned_resource<fake_cuda>;
using virtual_device_resource = cuda::basic_virtual_device_resource<fake_cuda>;

static_assert(memory_resource<device_resource> && !host_accessible_resource<device_resource>);
static_assert(memory_resource<async_device_resource> &&
              !host_accessible_resource<async_device_resource>);
static_assert(host_accessible_resource<pinned_resource>);
static_assert(reserving_resource<virtual_device_resource> &&
              !host_accessible_resource<virtual_device_resource>);
static_assert(!reserving_resource<device_resource> && !reserving_resource<host_resource>);

/// Whether the kernel promises more memory than there is: whoever sets that wants it.
bool everything_is_promised() {
  std::ifstream policy("/proc/sys/vm/overcommit_memory");
  std::string promise;
  policy >> promise;
  return promise == "1";
}

/// Memory that this process may touch: the host's, and the fake device's.
struct touchable {
  static void fill(void* address, std::size_t bytes, std::uint8_t byte) {
    std::memset(address, byte, bytes);
  }
  static bool holds(const void* address, std::size_t bytes, std::uint8_t byte) {
    const auto* const begin = static_cast<const std::uint8_t*>(address);
    return std::all_of(begin, begin + bytes, [byte](std::uint8_t one) { return one == byte; });
  }
  std::vector<std::size_t> refused{std::size_t{1} << 62U, SIZE_MAX - 4095, SIZE_MAX};
};

/// Memory that the sanitizer looks after.
struct host_fixture : touchable {
  host_resource resource;
  std::size_t alignments = 4096;
  void check_all_given_back() const {}
};

struct counted_fixture : touchable {
  memory_counts counts;
  counting_resource<> resource{counts};
  std::size_t alignments = 4096;
  void check_all_given_back() const {
    CHECK(counts.bytes_in_use == 0);
    CHECK(counts.allocations == counts.deallocations);
  }
};

struct reserving_host_fixture : touchable {
  reserving_host_resource resource;
  std::size_t alignments = 4096;
  /// More than this machine has, and not more addresses than a process has.
  std::size_t reserved = std::bit_floor(64 * static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) *
                                        static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)));
  bool is_bounded = !everything_is_promised();
  void check_all_given_back() const {}
};

struct fake_fixture : touchable {
  fake_driver driver;
  void check_all_given_back() const {
    CHECK(driver.faults().empty());
    CHECK(driver.last_error() == fake_status::success);
  }
};

struct device_fixture : fake_fixture {
  device_resource resource{fake_cuda(driver)};
  std::size_t alignments = 256;
};

struct async_fixture : fake_fixture {
  int order = 0;
  async_device_resource resource{&order, fake_cuda(driver)};
  std::size_t alignments = 256;
};

struct pinned_fixture : fake_fixture {
  pinned_resource resource{fake_cuda(driver)};
  std::size_t alignments = 4096;
};

struct virtual_fixture : fake_fixture {
  virtual_device_resource resource{fake_cuda(driver)};
  std::size_t alignments = 65536;                // the fake's granularity
  std::size_t reserved = std::size_t{1} << 30U;  // the fake has less
  bool is_bounded = true;
};

/// Whether touching it ends a process.
bool is_out_of_reach(volatile std::uint8_t* address) {
  const ::pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);  // sanitizers report it otherwise
    *address = 1;
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

}  // namespace

TEST_CASE_TEMPLATE_INVOKE(test::every_resource, host_fixture, counted_fixture,
                          reserving_host_fixture, device_fixture, async_fixture, pinned_fixture,
                          virtual_fixture);
TEST_CASE_TEMPLATE_INVOKE(test::every_reserving_resource, reserving_host_fixture, virtual_fixture);

TEST_CASE("addresses that are reserved on the host take no memory and cannot be touched") {
  constexpr std::size_t size = std::size_t{1} << 40U;
  const auto resident = [] { return static_cast<std::int64_t>(read_process_memory()->resident); };
  reserving_host_resource resource;
  const std::int64_t before = resident();
  auto* const block = static_cast<std::uint8_t*>(resource.allocate(size, 64));
  CHECK(is_out_of_reach(block));
  const std::size_t committed = resource.commit(block, 0, 100);
  CHECK(committed == reserving_host_resource::granularity);
  CHECK_FALSE(is_out_of_reach(block + committed - 1));
  CHECK(is_out_of_reach(block + committed));
  CHECK(resident() - before < std::int64_t{8} << 20);
  resource.deallocate(block, size, 64);
  CHECK(is_out_of_reach(block));
}

TEST_CASE("addresses go back to the kernel, those that alignment asked for on top at once") {
  const auto address_space = [] {
    std::ifstream status("/proc/self/statm");
    std::size_t pages = 0;
    status >> pages;
    return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  };
  constexpr std::size_t size = (std::size_t{64} << 20U) + 1;
  constexpr std::size_t reserved = std::size_t{66} << 20U;
  reserving_host_resource resource;
  const std::size_t before = address_space();
  std::vector<void*> blocks(20);
  for (void*& block : blocks) block = resource.allocate(size, 64);
  CHECK(address_space() - before >= blocks.size() * reserved);
  CHECK(address_space() - before < blocks.size() * reserved + (std::size_t{2} << 20U));
  (void)resource.commit(blocks[0], 0, size);
  for (void* const block : blocks) resource.deallocate(block, size, 64);
  CHECK(address_space() - before < std::size_t{2} << 20U);
}

TEST_CASE("what the kernel does not promise is refused at the commit") {
  reserving_host_fixture fixture;
  if (!fixture.is_bounded) return;
  void* const block = fixture.resource.allocate(fixture.reserved, 64);
  CHECK(message_of<out_of_memory>([&] {
          (void)fixture.resource.commit(block, std::size_t{2} << 20U, fixture.reserved);
        }) == std::to_string(fixture.reserved - (std::size_t{2} << 20U)) +
                  " bytes of host memory were refused");
  fixture.resource.deallocate(block, fixture.reserved, 64);
}

TEST_CASE("addresses of a device are out of reach before they are committed, and afterwards") {
  virtual_fixture fixture;
  auto* const block = static_cast<std::uint8_t*>(fixture.resource.allocate(1'000'000, 64));
  CHECK(is_out_of_reach(block));
  CHECK(fixture.driver.device_bytes_in_use() == 0);
  CHECK(fixture.resource.commit(block, 0, 70'000) == 131'072);
  CHECK(fixture.driver.device_bytes_in_use() == 131'072);
  CHECK_FALSE(is_out_of_reach(block + 131'071));
  CHECK(is_out_of_reach(block + 131'072));
  fixture.resource.deallocate(block, 1'000'000, 64);
  CHECK(fixture.driver.device_bytes_in_use() == 0);
  fixture.check_all_given_back();
}

TEST_CASE("a block is backed by the device that was current when it was reserved") {
  virtual_fixture fixture;
  fixture.driver.set_device(3);
  void* const block = fixture.resource.allocate(1'000'000, 64);
  fixture.driver.set_device(1);
  (void)fixture.resource.commit(block, 0, 1);
  CHECK(fixture.driver.device_of_last_memory() == 3);
  void* const other = fixture.resource.allocate(1'000'000, 64);
  (void)fixture.resource.commit(other, 0, 1);
  CHECK(fixture.driver.device_of_last_memory() == 1);
  fixture.resource.deallocate(block, 1'000'000, 64);
  fixture.resource.deallocate(other, 1'000'000, 64);
  fixture.check_all_given_back();
}

TEST_CASE("refusals name the call and the numbers") {
  fake_driver driver(1'000'000);
  const fake_cuda api(driver);
  int order = 0;
  device_resource device(api);
  async_device_resource async_device(&order, api);
  pinned_resource pinned(api);
  virtual_device_resource virtual_device(api);
  void* const used = device.allocate(400'000, 64);
  const auto refusal = [](auto& resource, std::size_t bytes) {
    return message_of<out_of_memory>([&] { (void)resource.allocate(bytes, 64); });
  };
  CHECK(refusal(device, 600'001) ==
        "cudaMalloc: 600001 bytes of device memory were refused; 600000 of the device's 1000000 "
        "are free");
  CHECK(refusal(async_device, 600'001) ==
        "cudaMallocAsync: 600001 bytes of device memory were refused; 600000 of the device's "
        "1000000 are free");
  CHECK(refusal(pinned, 1'000'001) ==
        "cudaMallocHost: 1000001 bytes of pinned host memory were refused");
  CHECK(refusal(virtual_device, SIZE_MAX) ==
        "cuMemAddressReserve: 18446744073709551615 bytes of addresses for device memory were "
        "refused");
  void* const block = virtual_device.allocate(1'000'000, 64);
  CHECK(message_of<out_of_memory>([&] { (void)virtual_device.commit(block, 0, 650'000); }) ==
        "cuMemCreate: 655360 bytes of device memory were refused; 600000 of the device's 1000000 "
        "are free");
  // Where even that is not to be had, it is left out.
  driver.fail_call(1, fake_status::unsupported);
  CHECK(refusal(device, 600'001) == "cudaMalloc: 600001 bytes of device memory were refused");
  CHECK(message_of<unsupported_error>([&] { (void)device.allocate(1, 512); }) ==
        "cudaMalloc: an alignment of 512 bytes was asked for; it is a power of two up to 256");
  CHECK_THROWS_AS((void)device.allocate(1, 0), unsupported_error);
  CHECK_THROWS_AS((void)device.allocate(1, 96), unsupported_error);
  CHECK(driver.last_error() == fake_status::success);
  virtual_device.deallocate(block, 1'000'000, 64);
  device.deallocate(used, 400'000, 64);
  CHECK(driver.faults().empty());
}

TEST_CASE_TEMPLATE("every call may fail: nothing is lost, and CUDA remembers no error", Fixture,
                   device_fixture, async_fixture, pinned_fixture, virtual_fixture) {
  for (const fake_status status : {fake_status::no_memory, fake_status::unsupported}) {
    bool reached = true;
    for (std::uint64_t call = 0; reached; ++call) {
      CAPTURE(call);
      Fixture fixture;
      auto resource = fixture.resource;
      fixture.driver.fail_call(call, status);
      bool refused = false;
      const auto attempt = [&](auto&& action) {
        try {
          action();
          return true;
        } catch (const out_of_memory&) {
          CHECK(status == fake_status::no_memory);
        } catch (const test::fake_cuda_error& e) {
          CHECK(status == fake_status::unsupported);
          CHECK(e.status() == status);
        }
        CHECK(fixture.driver.last_error() == fake_status::success);
        refused = true;
        return false;
      };
      void* block = nullptr;
      if (attempt([&] { block = resource.allocate(1'000'000, 64); })) {
        if constexpr (reserving_resource<decltype(resource)>) {
          std::size_t committed = 0;
          for (const std::size_t wanted : {std::size_t{1}, std::size_t{500'000}}) {
            const std::size_t in_use = fixture.driver.device_bytes_in_use();
            if (!attempt([&] { committed = resource.commit(block, committed, wanted); })) {
              CHECK(fixture.driver.device_bytes_in_use() == in_use);
              CHECK(Fixture::holds(block, committed, 4));
              committed = resource.commit(block, committed, wanted);
            }
            Fixture::fill(block, committed, 4);
          }
        }
        resource.deallocate(block, 1'000'000, 64);
      }
      CHECK(fixture.driver.last_error() == fake_status::success);
      reached = fixture.driver.calls() > call;
      // Where giving back failed, and nobody is there to tell, memory is lost.
      if (refused || !reached) fixture.check_all_given_back();
    }
  }
}

TEST_CASE("a stream orders what is taken and given back") {
  fake_driver driver;
  int first = 0;
  int second = 0;
  async_device_resource resource(&first, fake_cuda(driver));
  CHECK(resource != async_device_resource(&second, fake_cuda(driver)));
  void* const a = resource.allocate(10, 8);
  void* const b = resource.allocate(10, 8, &second);
  CHECK(driver.synchronized().empty());
  resource.deallocate(a, 10, 8, &second);
  resource.deallocate(b, 10, 8);
  CHECK(driver.freed_on() == std::vector<void*>{&second, &first});
  CHECK(driver.synchronized().empty());
  resource.synchronize();
  CHECK(driver.synchronized() == std::vector<void*>{&first});
  driver.fail_call(0, fake_status::unsupported);
  CHECK_THROWS_AS(resource.synchronize(), test::fake_cuda_error);
  CHECK(driver.last_error() == fake_status::success);
  CHECK(driver.faults().empty());
}

TEST_CASE("pinned memory that is not aligned as it should be is refused and given back") {
  fake_driver driver;
  driver.misalign_pinned();
  pinned_resource resource{fake_cuda(driver)};
  CHECK(message_of<unsupported_error>([&] { (void)resource.allocate(100, 4096); }) ==
        "cudaMallocHost: the address is no multiple of 4096");
  CHECK(driver.faults().empty());
}

TEST_CASE("resources of other devices and others' blocks are not the same") {
  fake_driver first;
  fake_driver second;
  CHECK(device_resource(fake_cuda(first)) == device_resource(fake_cuda(first)));
  CHECK(device_resource(fake_cuda(first)) != device_resource(fake_cuda(second)));
  // Each knows its own blocks only.
  CHECK(virtual_device_resource(fake_cuda(first)) != virtual_device_resource(fake_cuda(first)));
}

TEST_CASE("the fake sees misuse") {
  const auto fault_of = [](auto&& misuse) {
    fake_driver driver;
    misuse(driver, fake_cuda(driver));
    return driver.faults().empty() ? std::string() : driver.faults().front();
  };
  void* a = nullptr;
  CHECK(fault_of([&](fake_driver&, fake_cuda api) { (void)api.allocate_device(a, 10); }) ==
        "1 blocks leaked");
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          (void)api.allocate_device(a, 10);
          (void)api.free_device(a);
          (void)api.free_device(a);
        }) == "what is no block, or no longer, was given back");
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          (void)api.allocate_device(a, 10);
          (void)api.free_pinned(a);
        }) == "a block was given back to another call");
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          (void)api.allocate_pinned(a, 10);
          (void)api.free_pinned(a);
          static_cast<char*>(a)[3] = 0;
        }) == "memory was written after it was given back");
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          (void)api.reserve_addresses(a, 65536, 65536);
          (void)api.free_addresses(a, 131'072);
        }) == "a range of another size");
  const auto map = [&](fake_cuda api) {
    (void)api.reserve_addresses(a, 131'072, 65536);
    fake_cuda::memory_handle handle = 0;
    (void)api.create_memory(handle, 131'072, 0);
    (void)api.map_memory(a, 131'072, handle);
    (void)api.release_memory(handle);
  };
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          map(api);
          (void)api.free_addresses(a, 131'072);
        }) == "the range is still mapped");
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          map(api);
          (void)api.unmap_memory(a, 65536);
        }) == "an unmapping of what is no mapping");
  CHECK(fault_of([&](fake_driver&, fake_cuda api) {
          fake_cuda::memory_handle handle = 0;
          (void)api.create_memory(handle, 65536, 0);
        }) == "1 handles leaked");
}
