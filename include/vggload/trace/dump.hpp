// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vggload/core/error.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/trace/collapsed.hpp>
#include <vggload/trace/health_json.hpp>
#include <vggload/trace/health_row.hpp>
#include <vggload/trace/memory_viz.hpp>
#include <vggload/trace/perfetto.hpp>
#include <vggload/trace/replay.hpp>
#include <vggload/trace/report_json.hpp>
#include <vggload/trace/tfdbg.hpp>
#include <vggload/trace/timeline_svg.hpp>

namespace vggload {

/// Makes the folder, and those around it, where they are missing. Throws `io_error`.
inline void make_folder(const std::string& folder) {
  if (folder.empty()) throw io_error("'': not the name of a folder");
  struct ::stat status {};
  if (::stat(folder.c_str(), &status) == 0) {
    if (!S_ISDIR(status.st_mode)) throw io_error(printable(folder) + ": not a folder");
    return;
  }
  const std::size_t slash = folder.find_last_of('/', folder.find_last_not_of('/'));
  if (slash != std::string::npos && slash > 0) make_folder(folder.substr(0, slash));
  // Another program may be quicker; a link to nowhere exists as well.
  if (::mkdir(folder.c_str(), 0777) != 0 &&
      (errno != EEXIST || ::stat(folder.c_str(), &status) != 0)) {
    detail::throw_system_error(folder, "cannot make the folder", errno);
  }
}

namespace detail {

/// Whether a file is one that an earlier dump may have left and this one would not replace.
[[nodiscard]] inline bool left_by_dump(std::string_view name) {
  if (name == "out_of_memory.json" || name == "out_of_memory.txt") return true;
  constexpr std::array<std::string_view, 6> kinds{".metadata",     ".source_files",
                                                  ".stack_frames", ".graphs",
                                                  ".execution",    ".graph_execution_traces"};
  return name.starts_with("tfdbg_events.") &&
         std::ranges::any_of(kinds, [&](std::string_view kind) { return name.ends_with(kind); });
}

/// Removes what an earlier dump left in the folder and is not among `files`. Throws `io_error`.
inline void remove_stale(const std::string& folder, std::span<const named_bytes> files) {
  struct close {
    void operator()(::DIR* entries) const noexcept { ::closedir(entries); }
  };
  const std::unique_ptr<::DIR, close> entries(::opendir(folder.c_str()));
  if (!entries) throw_system_error(folder, "cannot list the folder", errno);
  std::vector<std::string> stale;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is this function's own
  while (const ::dirent* entry = ::readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (!left_by_dump(name)) continue;
    if (std::ranges::find(files, name, &named_bytes::name) == files.end()) stale.emplace_back(name);
  }
  for (const std::string& name : stale) {
    std::string path = folder;
    (path += '/') += name;
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      throw_system_error(path, "cannot remove what an earlier dump left", errno);
    }
  }
}

/// What can be told of the first time that memory ran out where nobody made a report.
[[nodiscard]] inline memory_report report_of(const ledger_snapshot& ledger) {
  memory_report report;
  const auto event =
      std::ranges::find(ledger.events, ledger_event_kind::out_of_memory, &ledger_event::kind);
  if (event == ledger.events.end()) return report;
  report.tensor = ledger.pieces[event->index].name;
  report.requested = event->bytes;
  const auto live = live_after(ledger, static_cast<std::size_t>(event - ledger.events.begin()));
  std::vector<sized_tensor> tensors;
  for (std::size_t i = 0; i < live.size(); ++i) {
    const ledger_piece& piece = ledger.pieces[i];
    if (!live[i] || in_mapped_file(ledger, piece)) continue;
    tensors.push_back({piece.name, piece.layer, piece.role, piece.bytes});
  }
  report.live = tensor_summary(std::move(tensors));
  report.planned = planned_tensors(ledger);
  return report;
}

}  // namespace detail

/// Writes all that there is to see of a load into `folder`, which is made where it is missing:
/// memory.collapsed, memory.perfetto.json, memory.memory_viz.pickle, memory.svg, health.json, one
/// set tfdbg_events.*, and where memory ran out (the ledger says so, or there is a `report`)
/// out_of_memory.json and out_of_memory.txt. Each file is replaced whole. Sets of tfdbg_events and
/// files out_of_memory.* that an earlier dump left are removed; nothing else in the folder is
/// touched. What is in the files depends on the arguments alone. Throws `io_error` that names the
/// file.
inline void write_dump(const std::string& folder, const ledger_snapshot& ledger,
                       std::span<const health_row> health, const memory_report* report = nullptr) {
  std::vector<named_bytes> files;
  files.push_back({"memory.collapsed", collapsed_stacks(ledger)});
  files.push_back({"memory.perfetto.json", perfetto_trace(ledger)});
  files.push_back({"memory.memory_viz.pickle", memory_viz_pickle(ledger)});
  files.push_back({"memory.svg", timeline_svg(ledger)});
  files.push_back({"health.json", health_json(health)});
  if (report != nullptr || detail::ran_out(ledger)) {
    const memory_report shown = report != nullptr ? *report : detail::report_of(ledger);
    files.push_back({"out_of_memory.json", report_json(shown)});
    std::string text = printable(ledger.out_of_memory_text);
    if (!text.empty()) text += '\n';
    files.push_back({"out_of_memory.txt", text += to_text(shown)});
  }
  for (named_bytes& file : tfdbg_files(health, ledger.start)) files.push_back(std::move(file));

  make_folder(folder);
  for (const named_bytes& file : files) {
    // No space is reserved: that would cost more than writing these few bytes.
    atomic_output_file output(folder + '/' + file.name, 0);
    output.write_at(0, std::as_bytes(std::span(file.bytes)));
    output.commit_lazily();
  }
  detail::remove_stale(folder, files);
}

}  // namespace vggload
