// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <vggload/memory/arena.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/process_memory.hpp>

using namespace vggload;

namespace {

using kind = ledger_event_kind;

std::vector<kind> kinds(const ledger_snapshot& book) {
  std::vector<kind> all;
  for (const ledger_event& event : book.events) all.push_back(event.kind);
  return all;
}

/// Backs what it reserved in units of 100 bytes up to a limit, and remembers what was asked.
class committing_resource {
 public:
  struct history {
    std::size_t limit;
    std::vector<std::pair<std::size_t, std::size_t>> commits = {};
  };
  static constexpr memory_access access = memory_access::host;

  explicit committing_resource(history& record) : record_(&record) {}
  void* allocate(std::size_t bytes, std::size_t alignment) {
    return host_resource().allocate(bytes, alignment);
  }
  void deallocate(void* address, std::size_t bytes, std::size_t alignment) noexcept {
    host_resource().deallocate(address, bytes, alignment);
  }
  std::size_t commit(void*, std::size_t committed, std::size_t wanted) {
    record_->commits.emplace_back(committed, wanted);
    if (wanted > record_->limit) throw std::bad_alloc();
    return (wanted + 99) / 100 * 100;
  }

 private:
  history* record_;
};

static_assert(reserving_resource<committing_resource>);
static_assert(!reserving_resource<host_resource>);

}  // namespace

TEST_CASE(
    "an arena enters itself, its pieces and its end into the ledger, once, wherever it moves") {
  const auto ledger = std::make_shared<memory_ledger>();
  ledger->plan({"b", "fc1", memory_role::weights}, 7);
  {
    arena<host_resource> first(500, {}, ledger, "block");
    (void)first.allocate("a", 100);
    arena<host_resource> second(std::move(first));
    (void)second.allocate({"b", "fc1", memory_role::weights}, 200);
    CHECK(ledger->live_bytes() == 300);
    arena<host_resource> third(10, {}, ledger);
    third = std::move(second);
    const ledger_snapshot book = ledger->snapshot();
    REQUIRE(book.blocks.size() == 2);
    CHECK(book.blocks[0].name == "block");
    CHECK(book.blocks[0].kind == memory_kind::host);
    CHECK(book.blocks[0].bytes == 500);
    CHECK(book.blocks[0].address == reinterpret_cast<std::uintptr_t>(third.block().data()));
    CHECK(book.blocks[0].live);
    CHECK_FALSE(book.blocks[1].live);
    // The planned one became the real one.
    REQUIRE(book.pieces.size() == 2);
    CHECK(book.pieces[0].name == "b");
    CHECK(book.pieces[0].layer == "fc1");
    CHECK(book.pieces[0].bytes == 200);
    CHECK(book.pieces[0].offset == 128);
    CHECK(book.pieces[1].name == "a");
    CHECK(book.pieces[1].role == memory_role::other);
  }
  const ledger_snapshot book = ledger->snapshot();
  CHECK(kinds(book) == std::vector{kind::block_allocated, kind::allocated, kind::allocated,
                                   kind::block_allocated, kind::block_freed, kind::freed,
                                   kind::freed, kind::block_freed});
  CHECK(book.live_bytes == 0);
  CHECK(book.peak_bytes == 300);
  CHECK(book.peak_event == 2);
  for (std::size_t i = 1; i < book.events.size(); ++i) {
    CHECK(book.events[i].time >= book.events[i - 1].time);
  }
}

TEST_CASE("what is in mapped files counts as no memory") {
  const auto ledger = std::make_shared<memory_ledger>();
  ledger_entry entry(ledger, "file", memory_kind::mapped_file, 4096, 1000);
  entry.allocated({"w", "fc1", memory_role::weights}, 0, 1000);
  CHECK(ledger->live_bytes() == 0);
  CHECK(ledger->peak_bytes() == 0);
  CHECK(ledger->snapshot().pieces.at(0).live);
  CHECK(live_tensors(ledger->snapshot()).largest.empty());
  entry = ledger_entry();
  CHECK_FALSE(ledger->snapshot().pieces.at(0).live);
  CHECK(ledger->live_bytes() == 0);
}

TEST_CASE("an arena that is full says what is in it") {
  const auto ledger = std::make_shared<memory_ledger>();
  arena<host_resource> memory(1000, {}, ledger);
  for (std::size_t i = 0; i < 12; ++i) {
    (void)memory.allocate({"t" + std::to_string(i), "fc2", memory_role::gradients}, 10 + i, 1);
  }
  (void)memory.allocate({"act", "fc2", memory_role::activations}, 300, 1);
  try {
    (void)memory.allocate({"big", "fc1", memory_role::weights}, 600);
    FAIL("allocated beyond the budget");
  } catch (const out_of_memory& e) {
    REQUIRE(e.report());
    const memory_report& report = *e.report();
    CHECK(report.tensor == "big");
    CHECK(report.requested == 600);
    CHECK(report.total == 1000);
    CHECK(report.free == 1000 - 486);  // 10 + ... + 21 = 186
    CHECK(report.largest_free == 514);
    CHECK(report.fragmentation() == 0.0);
    REQUIRE(report.live.largest.size() == 10);
    CHECK(report.live.largest[0].name == "act");
    CHECK(report.live.largest[1].name == "t11");
    CHECK(report.live.others == 3);
    CHECK(report.live.other_bytes == 10 + 11 + 12);
    CHECK(report.live.roles == std::vector<std::pair<memory_role, std::uint64_t>>{
                                   {memory_role::gradients, 186}, {memory_role::activations, 300}});
  }
  const ledger_snapshot book = ledger->snapshot();
  CHECK(book.events.back().kind == kind::out_of_memory);
  CHECK(book.events.back().bytes == 600);
  CHECK(book.pieces.at(book.events.back().index).name == "big");
  CHECK(book.out_of_memory_text ==
        "tensor 'big' needs 600 bytes, but 486 of the arena's 1000 are in use");
  CHECK(planned_tensors(book).largest.at(0).name == "big");
}

TEST_CASE(
    "an arena over reserved addresses commits what its pieces need, and stays as it was where it "
    "cannot") {
  committing_resource::history history{.limit = 350};
  const auto ledger = std::make_shared<memory_ledger>();
  arena<committing_resource> memory(10'000, committing_resource(history), ledger);
  CHECK(memory.committed() == 0);
  (void)memory.allocate("a", 150);
  CHECK(memory.committed() == 200);
  (void)memory.allocate("b", 8);  // 192 to 200: is there
  CHECK(history.commits.size() == 1);
  (void)memory.allocate("c", 44);  // 256 to 300
  CHECK(memory.committed() == 300);
  try {
    (void)memory.allocate("fc1.weight", 64);
    FAIL("committed beyond the limit");
  } catch (const out_of_memory& e) {
    CHECK(std::string(e.what()) ==
          "tensor 'fc1.weight' needs 64 bytes: std::bad_alloc; the arena has 300 of the 10000 that "
          "it reserved");
    CHECK(e.report()->tensor == "fc1.weight");
    CHECK(e.report()->limit == 10'000);
    CHECK_FALSE(e.report()->free);  // nobody knows
  }
  CHECK(memory.committed() == 300);
  CHECK(memory.used() == 300);
  CHECK(memory.allocations().size() == 3);
  CHECK(history.commits ==
        std::vector<std::pair<std::size_t, std::size_t>>{{0, 150}, {200, 300}, {300, 384}});
  history.limit = 1000;
  CHECK_NOTHROW((void)memory.allocate("fc1.weight", 64));
  arena<committing_resource> moved(std::move(memory));
  CHECK(moved.committed() == 400);
}

TEST_CASE("a report that cannot be made hides nothing") {
  const auto failing = [](auto&& exception) {
    return detail::try_report([&]() -> memory_report { throw exception; });
  };
  CHECK(failing(std::bad_alloc()) == nullptr);
  CHECK(failing(std::runtime_error("NVML is broken")) == nullptr);
  CHECK(failing(7) == nullptr);
  const out_of_memory error(detail::fixed_text() << "full", "t", 9, failing(7));
  CHECK(std::string_view(error.what()) == "full");
  CHECK(error.report() == nullptr);
}

TEST_CASE("the report survives that the file's name is put in front") {
  const auto report = detail::try_report([] { return memory_report{.tensor = "t"}; });
  try {
    detail::naming_out_of_memory("file", "loading", [&] {
      throw out_of_memory(detail::fixed_text() << "full", "t", 9, report);
    });
    FAIL("nothing thrown");
  } catch (const out_of_memory& e) {
    CHECK(std::string_view(e.what()) == "file: full");
    CHECK(e.report() == report);
  }
}

TEST_CASE(
    "a report for people has every row, aligned, on lines of their own whatever the names hold") {
  memory_report report;
  report.tensor = "a\nb";
  report.requested = 205'520'896;
  report.requested_at_once = 276'715'088;
  report.place = "GPU 0";
  report.limit = 1'000;
  report.total = 2'000;
  report.free = 400;
  report.largest_free = 100;
  report.live = tensor_summary(
      {{"w", "fc1", memory_role::weights, 1234567}, {"x", "", memory_role::staging, 5}}, 1);
  report.context_bytes = 300'000'000;
  report.processes = {{17, "python", 10}, {18, "", {}}};
  report.withheld = {"NVML: no permission"};
  report.alternatives = {{"without the top", 12, true}, {"as F16", 1300, false}};
  CHECK(to_text(report) ==
        R"(what filled the memory: GPU 0
  asked for by 'a\x0ab'                                      205,520,896
  with all that is to come at once                           276,715,088
  limit                                                            1,000
  in all                                                           2,000
  free                                                               400
  largest free block                                                 100  fragmentation 75 %
live tensors
  weights fc1 'w'                                              1,234,567
  1 more                                                               5
  all weights                                                  1,234,567
  all staging                                                          5
  the CUDA context, and what no ledger has                   300,000,000
other processes on the GPU
  process 17 python                                                   10
  process 18: the driver does not say how much
not known: NVML: no permission
what would take less
  without the top                                                     12  fits
  as F16                                                           1,300
)");
  CHECK(to_text({}) ==
        "what filled the memory: memory\n  asked for                                       "
        "                     0\n");
}

TEST_CASE("threads may share a ledger") {
  const auto ledger = std::make_shared<memory_ledger>();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&ledger] {
        for (int round = 0; round < 100; ++round) {
          arena<host_resource> memory(256, {}, ledger);
          (void)memory.allocate("t", 200);
          ledger->sample(ledger->peak_bytes());
        }
      });
    }
  }
  const ledger_snapshot book = ledger->snapshot();
  CHECK(book.live_bytes == 0);
  CHECK(book.peak_bytes >= 200);
  CHECK(book.peak_bytes <= 800);
  CHECK(book.events.size() == std::size_t{4} * 100 * 5);
}

TEST_CASE("the machine tells its memory") {
  const auto host = read_host_memory();
  REQUIRE(host);
  CHECK(host->total > std::uint64_t{100} << 20U);
  CHECK(host->available <= host->total);
  CHECK(host->available > 0);
}
