// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a ledger and health rows become: ledgers made by hand, files compared with the formats'
// documents. The real readers are asked by tests/peers/check_dump.py.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/trace/collapsed.hpp>
#include <vggload/trace/dump.hpp>
#include <vggload/trace/health_json.hpp>
#include <vggload/trace/health_row.hpp>
#include <vggload/trace/memory_viz.hpp>
#include <vggload/trace/perfetto.hpp>
#include <vggload/trace/report_json.hpp>
#include <vggload/trace/text.hpp>
#include <vggload/trace/tfdbg.hpp>
#include <vggload/trace/timeline_svg.hpp>

#include "../support/check_fixture.hpp"
#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

namespace {

using namespace std::chrono_literals;
using vggload::ledger_snapshot;
using vggload::memory_kind;
using vggload::memory_role;
using kind = vggload::ledger_event_kind;

constexpr std::uint64_t mib = 1U << 20U;
constexpr std::size_t no_block = vggload::ledger_piece::no_block;

/// 2023-11-14 22:13:20.5 UTC, 1700000000.5 s since 1970.
constexpr std::chrono::system_clock::time_point start{1700000000500ms};

/// A load that took two windows and two weights, and gave the windows back.
ledger_snapshot plain_load() {
  ledger_snapshot ledger;
  ledger.start = start;
  ledger.blocks = {{"weights", memory_kind::host, 0x10000, 4 * mib},
                   {"windows", memory_kind::host, 0x900000, mib, false}};
  ledger.pieces = {{"conv.weight", "conv1_1", memory_role::weights, 3 * mib, 0, 0, true},
                   {"conv.bias", "conv1_1", memory_role::weights, mib / 2, 0, 3 * mib, true},
                   {"window 0", "", memory_role::staging, mib, 1, 0}};
  ledger.events = {{0us, kind::block_allocated, 0, 4 * mib},
                   {1us, kind::block_allocated, 1, mib},
                   {1500ns, kind::allocated, 2, mib},
                   {2us, kind::allocated, 0, 3 * mib},
                   {50ms, kind::allocated, 1, mib / 2},
                   {60ms, kind::sampled, 0, 6 * mib},
                   {70ms, kind::freed, 2, mib},
                   {70ms + 1ns, kind::block_freed, 1, mib}};
  ledger.live_bytes = 3 * mib + mib / 2;
  ledger.peak_bytes = 4 * mib + mib / 2;
  ledger.peak_event = 4;
  return ledger;
}

/// One weight came, the second was not to be had, the third never asked; all was unwound.
ledger_snapshot failed_load() {
  ledger_snapshot ledger;
  ledger.start = start;
  ledger.blocks = {{"weights", memory_kind::device, 0x20000, 2 * mib, false}};
  ledger.pieces = {{"a", "fc1", memory_role::weights, mib, 0, 0},
                   {"b", "fc2", memory_role::weights, 5 * mib},
                   {"c", "fc3", memory_role::weights, 7}};
  ledger.events = {{1ms, kind::block_allocated, 0, 2 * mib},
                   {2ms, kind::allocated, 0, mib},
                   {3ms, kind::out_of_memory, 1, 5 * mib},
                   {4ms, kind::freed, 0, mib},
                   {5ms, kind::block_freed, 0, 2 * mib}};
  ledger.peak_bytes = mib;
  ledger.peak_event = 1;
  ledger.out_of_memory_text = "vgg.bin: tensor 'b' needs 5242880 bytes";
  return ledger;
}

/// A weight in a file, while a window came and went; nothing else is there at the peak.
ledger_snapshot mapped_load() {
  ledger_snapshot ledger;
  ledger.start = start;
  ledger.blocks = {{"vgg.bin", memory_kind::mapped_file, 0x30000, 8 * mib}};
  ledger.pieces = {{"a", "fc1", memory_role::weights, 5 * mib, 0, 0, true},
                   {"b", "fc2", memory_role::weights, 3 * mib, 0, 5 * mib, true}};
  ledger.events = {{1ms, kind::block_allocated, 0, 8 * mib},
                   {2ms, kind::allocated, 0, 5 * mib},
                   {3ms, kind::allocated, 1, 3 * mib}};
  return ledger;
}

std::vector<vggload::health_row> rows() {
  return {
      {"conv.weight",
       vggload::dtype::f32,
       vggload::dtype::f16,
       {64, 3, 3, 3},
       {.numel = 1728,
        .neg_inf = 1,
        .pos_inf = 2,
        .nan = 3,
        .neg = 700,
        .zero = 22,
        .pos = 1000,
        .overflowed = 4,
        .flushed_to_zero = 5,
        .became_subnormal = 6,
        .max_abs = 65504.25,
        .max_relative_error = 0x1p-11}},
      {"fc.bias", vggload::dtype::bf16, vggload::dtype::f32, {300}, {.numel = 300, .zero = 300}}};
}

std::string hex(std::string_view bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += digits[byte >> 4U];
    text += digits[byte & 0xFU];
  }
  return text;
}

std::string crc32_of(std::string_view bytes) {
  return test::crc32_of(std::as_bytes(std::span(bytes)));
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

}  // namespace

TEST_CASE("what is not UTF-8 becomes U+FFFD, byte by byte") {
  using vggload::detail::as_utf8;
  const std::string bad = "\xEF\xBF\xBD";
  CHECK(as_utf8("") == "");
  // One of each length, and the borders of what is allowed.
  const std::string good =
      "a\x7F \xC2\x80 \xDF\xBF \xE0\xA0\x80 \xED\x9F\xBF \xEE\x80\x80 \xEF\xBF\xBF "
      "\xF0\x90\x80\x80 \xF4\x8F\xBF\xBF";
  CHECK(as_utf8(good) == good);
  CHECK(as_utf8("\x80") == bad);
  CHECK(as_utf8("\xC1\xBF") == bad + bad);                      // overlong
  CHECK(as_utf8("\xE0\x9F\xBF") == bad + bad + bad);            // overlong
  CHECK(as_utf8("\xF0\x8F\xBF\xBF") == bad + bad + bad + bad);  // overlong
  CHECK(as_utf8("\xED\xA0\x80") == bad + bad + bad);            // a surrogate
  CHECK(as_utf8("\xF4\x90\x80\x80") == bad + bad + bad + bad);  // beyond U+10FFFF
  CHECK(as_utf8("\xF5\x80\x80\x80") == bad + bad + bad + bad);
  CHECK(as_utf8("x\xE2\x82") == "x" + bad + bad);  // cut off
  CHECK(as_utf8("\xE2\x28\xA1") == bad + "(" + bad);
}

TEST_CASE("collapsed stacks show what is live at the peak") {
  CHECK(vggload::collapsed_stacks({}) == "");
  CHECK(vggload::collapsed_stacks(plain_load()) ==
        "weights;conv1_1;conv.weight 3145728\n"
        "weights;conv1_1;conv.bias 524288\n"
        "staging;(none);window_0 1048576\n");
  // The peak before the window came.
  auto ledger = plain_load();
  ledger.events = {{1us, kind::allocated, 0, 3 * mib},
                   {2us, kind::freed, 0, 3 * mib},
                   {3us, kind::allocated, 2, mib}};
  ledger.peak_event = 0;
  CHECK(vggload::collapsed_stacks(ledger) == "weights;conv1_1;conv.weight 3145728\n");
  // What was planned is shown only where memory ran out.
  ledger.pieces[1].block = no_block;
  CHECK(vggload::collapsed_stacks(ledger) == "weights;conv1_1;conv.weight 3145728\n");
  ledger.events.push_back({4us, kind::out_of_memory, 1, mib / 2});
  CHECK(vggload::collapsed_stacks(ledger) ==
        "weights;conv1_1;conv.weight 3145728\n"
        "weights;conv1_1;conv.bias 524288\n");
}

TEST_CASE("collapsed stacks of mapped files and failed loads") {
  CHECK(vggload::collapsed_stacks(mapped_load()) ==
        "mapped_weights;fc1;a 5242880\n"
        "mapped_weights;fc2;b 3145728\n");
  // The same again, of another file: the first of two peaks is shown, as of the ledger's own.
  auto ledger = mapped_load();
  ledger.pieces.push_back({"c", "fc3", memory_role::weights, 8 * mib, 0, 0, true});
  ledger.events.push_back({4ms, kind::freed, 0, 5 * mib});
  ledger.events.push_back({5ms, kind::freed, 1, 3 * mib});
  ledger.events.push_back({6ms, kind::allocated, 2, 8 * mib});
  CHECK(vggload::collapsed_stacks(ledger) == vggload::collapsed_stacks(mapped_load()));
  // Another file is mapped later, and it is larger.
  ledger = mapped_load();
  ledger.blocks.push_back({"other.bin", memory_kind::mapped_file, 0x9000000, 9 * mib});
  ledger.pieces.push_back({"c", "fc3", memory_role::weights, 9 * mib, 1, 0, true});
  ledger.events.push_back({4ms, kind::freed, 0, 5 * mib});
  ledger.events.push_back({5ms, kind::freed, 1, 3 * mib});
  ledger.events.push_back({6ms, kind::allocated, 2, 9 * mib});
  CHECK(vggload::collapsed_stacks(ledger) == "mapped_weights;fc3;c 9437184\n");
  CHECK(vggload::collapsed_stacks(failed_load()) ==
        "weights;fc1;a 1048576\n"
        "weights;fc2;b 5242880\n"
        "weights;fc3;c 7\n");
}

TEST_CASE("no name breaks a collapsed stack, and empty pieces are left out") {
  auto ledger = failed_load();
  ledger.pieces[0].name = "a b;c\nd\te\r7\xE2\x80\xA8";
  ledger.pieces[0].layer = " 5";
  ledger.pieces[1].name = "\xFF\xC2\x85 9";
  ledger.pieces[1].layer = "";
  ledger.pieces[2].bytes = 0;
  CHECK(vggload::collapsed_stacks(ledger) ==
        "weights;_5;a_b_c_d_e_7_ 1048576\n"
        "weights;(none);\xEF\xBF\xBD__9 5242880\n");
}

TEST_CASE("the trace has counters by role, lifetimes and samples, at the ledger's times") {
  const auto json = nlohmann::json::parse(vggload::perfetto_trace(plain_load()));
  CHECK(json["otherData"] == nlohmann::json{{"peak_bytes", 4718592}, {"lost_events", 0}});
  const auto expected = nlohmann::json::parse(R"([
    {"ph":"M","name":"process_name","pid":1,"args":{"name":"vggload"}},
    {"ph":"M","name":"thread_name","pid":1,"tid":1,"args":{"name":"memory"}},
    {"ph":"C","name":"memory","pid":1,"tid":1,"ts":0.0,"args":{"weights":0,"staging":0}},
    {"ph":"b","name":"window 0","pid":1,"tid":1,"ts":1.5,"cat":"tensor","id":"2",
     "args":{"bytes":1048576,"layer":"","role":"staging"}},
    {"ph":"C","name":"memory","pid":1,"tid":1,"ts":1.5,"args":{"weights":0,"staging":1048576}},
    {"ph":"b","name":"conv.weight","pid":1,"tid":1,"ts":2.0,"cat":"tensor","id":"0",
     "args":{"bytes":3145728,"layer":"conv1_1","role":"weights"}},
    {"ph":"C","name":"memory","pid":1,"tid":1,"ts":2.0,"args":{"weights":3145728,"staging":1048576}},
    {"ph":"b","name":"conv.bias","pid":1,"tid":1,"ts":50000.0,"cat":"tensor","id":"1",
     "args":{"bytes":524288,"layer":"conv1_1","role":"weights"}},
    {"ph":"C","name":"memory","pid":1,"tid":1,"ts":50000.0,
     "args":{"weights":3670016,"staging":1048576}},
    {"ph":"C","name":"resident","pid":1,"tid":1,"ts":60000.0,"args":{"bytes":6291456}},
    {"ph":"e","name":"window 0","pid":1,"tid":1,"ts":70000.0,"cat":"tensor","id":"2"},
    {"ph":"C","name":"memory","pid":1,"tid":1,"ts":70000.0,"args":{"weights":3670016,"staging":0}},
    {"ph":"e","name":"conv.weight","pid":1,"tid":1,"ts":70000.001,"cat":"tensor","id":"0"},
    {"ph":"e","name":"conv.bias","pid":1,"tid":1,"ts":70000.001,"cat":"tensor","id":"1"}
  ])");
  REQUIRE(json["traceEvents"].size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(json["traceEvents"][i] == expected[i]);
}

TEST_CASE("the trace says where memory ran out, and counts mapped files apart") {
  auto ledger = failed_load();
  ledger.events.push_back({6ms, kind::out_of_memory, 2, 7});
  const auto events = nlohmann::json::parse(vggload::perfetto_trace(ledger))["traceEvents"];
  std::vector<nlohmann::json> ran_out;
  for (const auto& event : events) {
    if (event["ph"] == "i") ran_out.push_back(event);
  }
  REQUIRE(ran_out.size() == 2);
  CHECK(ran_out[0] == nlohmann::json::parse(R"({"ph":"i","name":"out of memory","pid":1,"tid":1,
    "ts":3000.0,"s":"p","args":{"tensor":"b","requested":5242880,
    "message":"vgg.bin: tensor 'b' needs 5242880 bytes"}})"));
  CHECK(ran_out[1]["args"] == nlohmann::json{{"tensor", "c"}, {"requested", 7}});

  const auto mapped = nlohmann::json::parse(vggload::perfetto_trace(mapped_load()))["traceEvents"];
  REQUIRE(mapped.size() == 8);
  CHECK(mapped[2]["args"]["role"] == "mapped_weights");
  CHECK(mapped[3] == nlohmann::json::parse(R"({"ph":"C","name":"mapped files","pid":1,"tid":1,
    "ts":2000.0,"args":{"bytes":5242880}})"));
  CHECK(mapped[5]["args"]["bytes"] == 8388608);
  CHECK(nlohmann::json::parse(vggload::perfetto_trace({}))["traceEvents"].size() == 2);

  ledger.pieces[0].name = "\"\\\n\xFF";
  const auto nasty = nlohmann::json::parse(vggload::perfetto_trace(ledger))["traceEvents"];
  CHECK(nasty[3]["name"] == "\"\\\n\xEF\xBF\xBD");
}

TEST_CASE("numbers and texts in a pickle") {
  // By CPython's pickletools.py: K one byte, J four signed, 0x8a a length and so many signed.
  const auto pickled = [](std::uint64_t number) {
    vggload::detail::pickle_writer pickle;
    pickle.number(number);
    return hex(std::move(pickle).take());
  };
  CHECK(pickled(0) == "80024b002e");
  CHECK(pickled(255) == "80024bff2e");
  CHECK(pickled(256) == "80024a000100002e");
  CHECK(pickled(0x7FFFFFFF) == "80024affffff7f2e");
  CHECK(pickled(0x80000000) == "80028a0800000080000000002e");
  CHECK(pickled(0x7FFFFFFFFFFFFFFF) == "80028a08ffffffffffffff7f2e");
  CHECK(pickled(0x8000000000000000) == "80028a090000000000000080002e");
  vggload::detail::pickle_writer pickle;
  pickle.begin_dict();
  pickle.field("a\xFF", "");
  CHECK(hex(std::move(pickle).take()) == "80027d580400000061efbfbd5800000000732e");
  CHECK(contains(vggload::memory_viz_pickle(plain_load()), "conv.weight"));
}

TEST_CASE("the timeline is drawn to scale") {
  ledger_snapshot ledger;
  ledger.blocks = {{"arena", memory_kind::host, 0, 2 * mib, false}};
  ledger.pieces = {{"a", "fc1", memory_role::weights, mib, 0, 0},
                   {"b", "fc1", memory_role::gradients, mib, 0, mib}};
  ledger.events = {{25ms, kind::allocated, 0, mib},
                   {50ms, kind::allocated, 1, mib},
                   {75ms, kind::freed, 0, mib},
                   {100ms, kind::freed, 1, mib}};
  ledger.peak_bytes = 2 * mib;
  ledger.peak_event = 1;
  const std::string svg = vggload::timeline_svg(ledger);
  // 700 pixels from 80 on are 104 ms, 330 pixels from 400 upwards are 2.16 MiB:
  // 25 ms 248.3, 50 ms 416.5, 75 ms 584.8, 100 ms 753.1; 1 MiB 152.8 above.
  CHECK(contains(svg, "d=\"M80.0 400.0H248.3V247.2H584.8V400.0H780.0V400.0Z\""));
  // Gradients lie on the weights while these are there: the lower edge comes back from the right.
  CHECK(contains(svg,
                 "d=\"M80.0 400.0H248.3V247.2H416.5V94.4H584.8V247.2H753.1V400.0H780.0V400.0"
                 "H584.8V247.2H248.3V400.0Z\""));
  CHECK(contains(svg, ">peak 2.00 MiB at 50.000 ms</text>"));
  CHECK(contains(svg, "<title>gradients</title>"));
  CHECK_FALSE(contains(svg, "<title>staging</title>"));
  CHECK(contains(svg, ">MiB</text>"));
  CHECK(contains(svg, ">time in ms</text>"));
  CHECK(contains(svg, ">1,048,576 bytes</text>"));
  CHECK_FALSE(contains(svg, "class=\"resident\" points"));
  CHECK_FALSE(contains(svg, "out of memory"));
  CHECK(contains(svg, "prefers-color-scheme: dark"));
}

TEST_CASE("the timeline's marks, and ledgers with little in them") {
  auto ledger = failed_load();
  ledger.pieces[1].name = "<b> & \"\x01\xFF\xEF\xBF\xBE";
  ledger.events.push_back({8ms, kind::sampled, 0, 4 * mib});
  const std::string svg = vggload::timeline_svg(ledger);
  CHECK(contains(
      svg,
      "out of memory at 3.000 ms: '&lt;b&gt; &amp; &quot;\\x01\xEF\xBF\xBD\xEF\xBF\xBD' asked "
      "for 5,242,880 bytes"));
  CHECK(contains(svg, "(never came)</text>"));
  // 8 of 8.32 ms, 4 of 4.32 MiB.
  CHECK(contains(svg, "<polyline class=\"resident\" points=\"753.1,94.4 \"/>"));

  const std::string mapped = vggload::timeline_svg(mapped_load());
  CHECK(contains(mapped, ">peak 0.00 MiB; in mapped files, which hold no memory: 8.00 MiB</text>"));
  CHECK(contains(mapped, ">a (in its file)</text>"));
  CHECK_FALSE(contains(mapped, "<title>weights</title>"));

  CHECK(contains(vggload::timeline_svg({}), "Nothing was recorded."));
  ledger = {};
  ledger.pieces = {{"a", "", memory_role::weights, 5}};
  ledger.events = {{0ms, kind::out_of_memory, 0, 5}};
  const std::string one = vggload::timeline_svg(ledger);
  CHECK(contains(one, "out of memory at 0.000 ms: 'a' asked for 5 bytes"));
  for (const std::string& text : {svg, mapped, one}) {
    CHECK_FALSE(contains(text, "nan"));
    CHECK_FALSE(contains(text, "inf\""));
  }
}

TEST_CASE("health as JSON") {
  CHECK(nlohmann::json::parse(vggload::health_json({})) ==
        nlohmann::json{{"tensors", nlohmann::json::array()}});
  auto table = rows();
  table[1].name = "\xFF\"";
  const auto json = nlohmann::json::parse(vggload::health_json(table))["tensors"];
  REQUIRE(json.size() == 2);
  CHECK(json[0] == nlohmann::json::parse(R"({"name":"conv.weight","from":"F32","to":"F16",
    "shape":[64,3,3,3],"numel":1728,"neg_inf":1,"pos_inf":2,"nan":3,"neg":700,"zero":22,"pos":1000,
    "overflowed":4,"flushed":5,"became_subnormal":6,"max_abs":65504.25,
    "max_relative_error":0.00048828125})"));
  CHECK(json[1]["name"] == "\xEF\xBF\xBD\"");
  // Also of doubles.
  table[0].health.max_abs = 0x1.FFFFFFFFFFFFFp1023;
  CHECK(nlohmann::json::parse(vggload::health_json(table))["tensors"][0]["max_abs"] ==
        0x1.FFFFFFFFFFFFFp1023);
}

TEST_CASE("TensorFlow's files, as its own protobuf and record writer make them") {
  // The check value of the CRC catalogue, and one of RFC 3720, B.4: 32 bytes of zero.
  CHECK(vggload::detail::crc32c("123456789") == 0xE3069283U);
  CHECK(vggload::detail::crc32c(std::string(32, '\0')) == 0x8A9136AAU);

  const auto files = vggload::tfdbg_files(rows(), start, "a.host");
  REQUIRE(files.size() == 6);
  // The bytes that debug_event_pb2 and tf.io.TFRecordWriter of TensorFlow 2.21 give for these values.
  CHECK(files[0].name == "tfdbg_events.1700000000.a_host.source_files");
  CHECK(
      hex(files[0].bytes) ==
      "4f000000000000006c474f930900002040fc54d94122440a0774656e736f72731206615f686f73741a1d636f6e76"
      "2e77656967687420463332205b36342c20332c20332c20335d1a1266632e626961732042463136205b3330305d51"
      "533df1");
  CHECK(files[1].name == "tfdbg_events.1700000000.a_host.stack_frames");
  CHECK(crc32_of(files[1].bytes) == "7e4087de");
  CHECK(files[2].name == "tfdbg_events.1700000000.a_host.graphs");
  CHECK(
      hex(files[2].bytes) ==
      "3b000000000000001a23ac5c0900002040fc54d94162300a2c2f6a6f623a6c6f63616c686f73742f7265706c6963"
      "613a302f7461736b3a302f6465766963653a4350553a3010015459ff40");
  CHECK(files[3].name == "tfdbg_events.1700000000.a_host.execution");
  CHECK(files[3].bytes.size() == 338);
  CHECK(crc32_of(files[3].bytes) == "da714dfe");
  CHECK(files[4].name == "tfdbg_events.1700000000.a_host.graph_execution_traces");
  CHECK(files[4].bytes.empty());
  CHECK(files[5].name == "tfdbg_events.1700000000.a_host.metadata");
  CHECK(
      hex(files[5].bytes) ==
      "46000000000000007235b9a50900002040fc54d9411a3b0a0d302e302e302d7667676c6f6164120d64656275672e"
      "4576656e743a311a1b7667676c6f61642d313730303030303030303530303030303030301b6102d1");

  const auto name_of_first = [](std::chrono::system_clock::time_point time, std::string_view host) {
    return vggload::tfdbg_files({}, time, host)[0].name;
  };
  CHECK(name_of_first({}, "") == "tfdbg_events.0000000000.localhost.source_files");
  CHECK(name_of_first(std::chrono::system_clock::time_point{-5s}, "../x-Y9\xC3\xA4") ==
        "tfdbg_events.0000000000.___x-Y9__.source_files");
  using vggload::detail::tensorflow_type;
  CHECK(tensorflow_type(vggload::dtype::f64) == 2);
  CHECK(tensorflow_type(vggload::dtype::f16) == 19);
  CHECK(tensorflow_type(vggload::dtype::i32) == 0);
}

TEST_CASE("a report as JSON: all that it has, and null for what it has not") {
  const auto empty = nlohmann::json::parse(vggload::report_json({}));
  const auto none =
      nlohmann::json::parse(R"({"largest":[],"others":0,"other_bytes":0,"roles":{}})");
  CHECK(empty == nlohmann::json{{"tensor", nullptr},
                                {"requested", 0},
                                {"requested_at_once", 0},
                                {"place", nullptr},
                                {"limit", nullptr},
                                {"total", nullptr},
                                {"free", nullptr},
                                {"largest_free", nullptr},
                                {"fragmentation", nullptr},
                                {"live", none},
                                {"planned", none},
                                {"context_bytes", nullptr},
                                {"processes", nlohmann::json::array()},
                                {"withheld", nlohmann::json::array()},
                                {"alternatives", nlohmann::json::array()}});

  vggload::memory_report report;
  report.tensor = "fc1\xFF";
  report.requested = 7;
  report.requested_at_once = 9;
  report.place = "GPU 0";
  report.limit = 100;
  report.total = 90;
  report.free = 80;
  report.largest_free = 20;
  report.live = vggload::tensor_summary({{"a", "l", memory_role::weights, 3},
                                         {"b", "l", memory_role::staging, 5},
                                         {"c", "m", memory_role::weights, 1}},
                                        1);
  report.planned = vggload::tensor_summary({{"d", "n", memory_role::optimizer, 9}});
  report.context_bytes = 300;
  report.processes = {{11, "python", 12}, {13, "", std::nullopt}};
  report.withheld = {"bytes of process 13: NO_PERMISSION"};
  report.alternatives = {{"without the top", 14, true}, {"FP16", 15, false}};
  CHECK(nlohmann::json::parse(vggload::report_json(report)) == nlohmann::json::parse(R"({
    "tensor":"fc1\ufffd","requested":7,"requested_at_once":9,"place":"GPU 0","limit":100,"total":90,"free":80,
    "largest_free":20,"fragmentation":0.75,
    "live":{"largest":[{"name":"b","layer":"l","role":"staging","bytes":5}],"others":2,
            "other_bytes":4,"roles":{"weights":4,"staging":5}},
    "planned":{"largest":[{"name":"d","layer":"n","role":"optimizer","bytes":9}],"others":0,
               "other_bytes":0,"roles":{"optimizer":9}},
    "context_bytes":300,
    "processes":[{"pid":11,"name":"python","bytes":12},{"pid":13,"name":null,"bytes":null}],
    "withheld":["bytes of process 13: NO_PERMISSION"],
    "alternatives":[{"change":"without the top","bytes":14,"fits":true},
                    {"change":"FP16","bytes":15,"fits":false}]})"));
}

TEST_CASE("a dump is a folder with one set of files") {
  const test::temporary_folder folder;
  const std::string dump = folder.file("new/dump/");
  vggload::write_dump(dump, plain_load(), rows());
  const auto read = [&](const std::string& name) { return test::read_file(dump + name); };
  const auto count = [&] { return std::distance(std::filesystem::directory_iterator(dump), {}); };
  CHECK(count() == 11);
  CHECK(read("memory.collapsed") == vggload::collapsed_stacks(plain_load()));
  CHECK(read("memory.perfetto.json") == vggload::perfetto_trace(plain_load()));
  CHECK(read("memory.memory_viz.pickle") == vggload::memory_viz_pickle(plain_load()));
  CHECK(read("memory.svg") == vggload::timeline_svg(plain_load()));
  CHECK(read("health.json") == vggload::health_json(rows()));
  for (const auto& file : vggload::tfdbg_files(rows(), start)) {
    CHECK(read(file.name) == file.bytes);
    CHECK(std::filesystem::exists(dump + file.name));
  }

  // The next one fails: it is another second, and memory runs out.
  const std::array<std::string, 4> others{"notes.txt", "tfdbg_events.txt", "x.metadata",
                                          "memory.svg~"};
  for (const std::string& name : others) (void)folder.write("new/dump/" + name, "mine");
  auto failed = failed_load();
  failed.start += 10s;
  vggload::write_dump(dump, failed, {});
  CHECK(count() == 13 + 4);
  for (const std::string& name : others) CHECK(read(name) == "mine");
  CHECK_FALSE(std::filesystem::exists(dump + "tfdbg_events.1700000000.localhost.metadata"));
  CHECK(std::filesystem::exists(dump + "tfdbg_events.1700000010.localhost.metadata"));
  CHECK(read("health.json") == vggload::health_json({}));
  // Nobody made a report: the ledger tells what was live at that moment, not what is.
  const auto report = nlohmann::json::parse(read("out_of_memory.json"));
  CHECK(report["tensor"] == "b");
  CHECK(report["requested"] == 5242880);
  CHECK(report["live"]["largest"] ==
        nlohmann::json::parse(R"([{"name":"a","layer":"fc1","role":"weights","bytes":1048576}])"));
  CHECK(report["planned"]["largest"].size() == 2);
  CHECK(read("out_of_memory.txt").starts_with("vgg.bin: tensor 'b' needs 5242880 bytes\n"));
  CHECK(contains(read("out_of_memory.txt"), "asked for by 'b'"));

  // With a report that somebody made.
  vggload::memory_report made;
  made.tensor = "z";
  vggload::write_dump(dump, failed, {}, &made);
  CHECK(nlohmann::json::parse(read("out_of_memory.json"))["tensor"] == "z");

  vggload::write_dump(dump, plain_load(), rows());
  CHECK(count() == 11 + 4);
  CHECK_FALSE(std::filesystem::exists(dump + "out_of_memory.txt"));
}

TEST_CASE("a dump that cannot be written names the file") {
  using test::message_of;
  using vggload::io_error;
  const test::temporary_folder folder;
  const auto error_of = [](const std::string& path) {
    return message_of<io_error>([&] { vggload::write_dump(path, plain_load(), {}); });
  };
  const std::string file = folder.write("file", "mine");
  CHECK(error_of(file) == file + ": not a folder");
  CHECK(error_of(file + "/x/y") == file + ": not a folder");
  CHECK(test::read_file(file) == "mine");
  CHECK(error_of("") == "'': not the name of a folder");
  std::filesystem::create_directories(folder.file("dump/health.json"));
  CHECK(error_of(folder.file("dump")) == folder.file("dump") + "/health.json: not a regular file");
  std::filesystem::create_directories(folder.file("other/tfdbg_events.1.x.metadata"));
  CHECK(error_of(folder.file("other"))
            .starts_with(folder.file("other") + "/tfdbg_events.1.x.metadata: cannot remove"));
}
