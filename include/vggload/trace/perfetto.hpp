// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <vggload/memory/ledger.hpp>
#include <vggload/trace/replay.hpp>

namespace vggload {

namespace detail {

/// Writes the events of one trace, one a line.
class trace_event_writer {
 public:
  explicit trace_event_writer(const ledger_snapshot& ledger)
      : ledger_(ledger), open_(ledger.pieces.size()) {
    for (const ledger_event& event : ledger.events) {
      if (event.kind != ledger_event_kind::allocated) continue;
      const ledger_piece& piece = ledger.pieces[event.index];
      if (!in_mapped_file(ledger, piece)) occurs_[static_cast<std::size_t>(piece.role)] = true;
    }
  }

  [[nodiscard]] std::string write() && {
    text_ = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
    text_ += R"({"ph":"M","name":"process_name","pid":1,"args":{"name":"vggload"}})";
    text_ += ",\n";
    text_ += R"({"ph":"M","name":"thread_name","pid":1,"tid":1,"args":{"name":"memory"}})";
    memory_counter({});
    for (const ledger_event& event : ledger_.events) add(event);
    if (!ledger_.events.empty()) {
      for (std::size_t i = 0; i < open_.size(); ++i) {
        if (open_[i]) lifetime("e", ledger_.events.back().time, i);
      }
    }
    text_ += "\n],\n\"otherData\":{\"peak_bytes\":";
    text_ += std::to_string(ledger_.peak_bytes);
    text_ += ",\"lost_events\":";
    text_ += std::to_string(ledger_.lost_events);
    return std::move(text_ += "}}\n");
  }

 private:
  void add(const ledger_event& event) {
    switch (event.kind) {
      case ledger_event_kind::block_allocated:
      case ledger_event_kind::block_freed: break;
      case ledger_event_kind::allocated:
        lifetime("b", event.time, event.index);
        open_[event.index] = true;
        count(event, false);
        break;
      case ledger_event_kind::freed:
        if (open_[event.index]) lifetime("e", event.time, event.index);
        open_[event.index] = false;
        count(event, true);
        break;
      case ledger_event_kind::out_of_memory: ran_out(event); break;
      case ledger_event_kind::sampled:
        begin("C", "resident", event.time);
        text_ += ",\"args\":{\"bytes\":";
        text_ += std::to_string(event.bytes);
        text_ += "}}";
        break;
    }
  }

  void count(const ledger_event& event, bool freed) {
    const ledger_piece& piece = ledger_.pieces[event.index];
    const bool mapped = in_mapped_file(ledger_, piece);
    auto& bytes = mapped ? mapped_ : live_[static_cast<std::size_t>(piece.role)];
    bytes = freed ? bytes - event.bytes : bytes + event.bytes;
    if (!mapped) return memory_counter(event.time);
    begin("C", "mapped files", event.time);
    text_ += ",\"args\":{\"bytes\":";
    text_ += std::to_string(mapped_);
    text_ += "}}";
  }

  /// The bytes of every role that occurs at all: a viewer would go on with the last value of one
  /// that is left out.
  void memory_counter(std::chrono::nanoseconds time) {
    std::string arguments;
    for (std::size_t role = 0; role < live_.size(); ++role) {
      if (!occurs_[role]) continue;
      arguments += arguments.empty() ? "\"" : ",\"";
      arguments += name_of(static_cast<memory_role>(role));
      arguments += "\":";
      arguments += std::to_string(live_[role]);
    }
    if (arguments.empty()) return;
    begin("C", "memory", time);
    ((text_ += ",\"args\":{") += arguments) += "}}";
  }

  void lifetime(std::string_view phase, std::chrono::nanoseconds time, std::size_t index) {
    const ledger_piece& piece = ledger_.pieces[index];
    begin(phase, piece.name, time);
    text_ += R"(,"cat":"tensor","id":")";
    text_ += std::to_string(index);
    text_ += '"';
    if (phase == "b") {
      text_ += ",\"args\":{\"bytes\":";
      text_ += std::to_string(piece.bytes);
      ((text_ += ",\"layer\":") += quoted(piece.layer)) += ",\"role\":";
      (text_ += quoted(role_text(ledger_, piece))) += '}';
    }
    text_ += '}';
  }

  void ran_out(const ledger_event& event) {
    begin("i", "out of memory", event.time);
    (text_ += R"(,"s":"p","args":{"tensor":)") += quoted(ledger_.pieces[event.index].name);
    (text_ += ",\"requested\":") += std::to_string(event.bytes);
    // The ledger keeps what the first such error said.
    if (!message_written_) (text_ += ",\"message\":") += quoted(ledger_.out_of_memory_text);
    message_written_ = true;
    text_ += "}}";
  }

  /// An event up to its time, which the format counts in microseconds: here with three decimals, so
  /// that no nanosecond is lost.
  void begin(std::string_view phase, std::string_view name, std::chrono::nanoseconds time) {
    const auto nanoseconds = static_cast<std::uint64_t>(time.count());
    ((text_ += ",\n{\"ph\":\"") += phase) += "\",\"name\":";
    ((text_ += quoted(name)) += R"(,"pid":1,"tid":1,"ts":)") += std::to_string(nanoseconds / 1000);
    const std::string decimals = std::to_string(1000 + nanoseconds % 1000);
    (text_ += '.') += std::string_view(decimals).substr(1);
  }

  [[nodiscard]] static std::string quoted(std::string_view text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  const ledger_snapshot& ledger_;
  std::array<std::uint64_t, 9> live_ = {};  // by role
  std::array<bool, 9> occurs_ = {};
  std::uint64_t mapped_ = 0;
  bool message_written_ = false;
  std::vector<bool> open_;  // pieces whose lifetime has begun and not ended
  std::string text_;
};

}  // namespace detail

/// The ledger as a trace of Chrome's JSON format, which ui.perfetto.dev and chrome://tracing open:
/// counters of memory by role and of what the process had resident, the lifetime of each tensor, and
/// where memory ran out. Times are the ledger's. (The format: "Trace Event Format", Google.)
[[nodiscard]] inline std::string perfetto_trace(const ledger_snapshot& ledger) {
  return detail::trace_event_writer(ledger).write();
}

}  // namespace vggload
