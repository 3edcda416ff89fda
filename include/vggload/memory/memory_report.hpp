// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/memory/ledger.hpp>

namespace vggload {

/// A tensor that holds memory, or is to hold it.
struct sized_tensor {
  std::string name;
  std::string layer;
  memory_role role = memory_role::other;
  std::uint64_t bytes = 0;
};

/// Many tensors in a few rows.
struct tensor_summary {
  std::vector<sized_tensor> largest;  // those with the most bytes, most first
  std::uint64_t others = 0;           // how many more there are,
  std::uint64_t other_bytes = 0;      // and what they hold
  std::vector<std::pair<memory_role, std::uint64_t>> roles;  // bytes of all

  tensor_summary() = default;
  /// Keeps the `most` largest.
  explicit tensor_summary(std::vector<sized_tensor> tensors, std::size_t most = 10) {
    for (const sized_tensor& one : tensors) {
      const auto found = std::ranges::find(roles, one.role, &decltype(roles)::value_type::first);
      if (found == roles.end()) {
        roles.emplace_back(one.role, one.bytes);
      } else {
        found->second += one.bytes;
      }
    }
    std::ranges::stable_sort(tensors, std::ranges::greater{}, &sized_tensor::bytes);
    const std::size_t kept = std::min(most, tensors.size());
    others = tensors.size() - kept;
    for (const sized_tensor& one : std::span(tensors).subspan(kept)) other_bytes += one.bytes;
    tensors.resize(kept);
    largest = std::move(tensors);
  }
};

/// A process that holds memory of a GPU.
struct gpu_process {
  std::uint64_t pid = 0;
  std::string name;                    // of its program; empty where the system does not tell
  std::optional<std::uint64_t> bytes;  // nothing: the driver withheld them
};

/// Something that would take less memory.
struct memory_alternative {
  std::string change;       // "without the top"
  std::uint64_t bytes = 0;  // that it takes
  bool fits = false;        // into what is there
};

/// The answer to "what filled the memory?", at the moment when it was out. What is not known is
/// left out, and where somebody kept it back that is said.
struct memory_report {
  std::string tensor = {};              // that asked; empty where no tensor did
  std::uint64_t requested = 0;          // bytes of that tensor
  std::uint64_t requested_at_once = 0;  // where it asked together with others: bytes of them all
  std::string place = {};               // "host memory", "GPU 0 (NVIDIA H100 80GB HBM3)"

  std::optional<std::uint64_t> limit = {};  // of bytes, which the user set
  std::optional<std::uint64_t> total = {};  // bytes that there are in all
  std::optional<std::uint64_t> free = {};
  std::optional<std::uint64_t> largest_free = {};  // the largest that could be had in one piece

  tensor_summary live = {};     // what holds memory
  tensor_summary planned = {};  // what was still to come, the tensor that asked among them

  std::optional<std::uint64_t> context_bytes =
      {};  // of the GPU: what this process has there beside the live tensors, that is the CUDA context and what is in no ledger
  std::vector<gpu_process> processes = {};  // the others on the GPU
  std::vector<std::string> withheld = {};   // what could not be found out, and why

  std::vector<memory_alternative> alternatives = {};

  /// The part of the free bytes that is outside the largest free block; 0 is a single one.
  [[nodiscard]] std::optional<double> fragmentation() const noexcept {
    if (!free || !largest_free) return std::nullopt;
    if (*free == 0) return 0;
    return 1 - static_cast<double>(*largest_free) / static_cast<double>(*free);
  }
};

/// What of a ledger is live, without the pieces in mapped files, which hold no memory.
[[nodiscard]] inline tensor_summary live_tensors(const ledger_snapshot& ledger) {
  std::vector<sized_tensor> tensors;
  for (const ledger_piece& piece : ledger.pieces) {
    if (!piece.live || ledger.blocks[piece.block].kind == memory_kind::mapped_file) continue;
    tensors.push_back({piece.name, piece.layer, piece.role, piece.bytes});
  }
  return tensor_summary(std::move(tensors));
}

/// What of a ledger was planned, or asked for, and has not come.
[[nodiscard]] inline tensor_summary planned_tensors(const ledger_snapshot& ledger) {
  std::vector<sized_tensor> tensors;
  for (const ledger_piece& piece : ledger.pieces) {
    if (piece.block != ledger_piece::no_block) continue;
    tensors.push_back({piece.name, piece.layer, piece.role, piece.bytes});
  }
  return tensor_summary(std::move(tensors));
}

namespace detail {

/// 138357544 -> "138,357,544".
[[nodiscard]] inline std::string with_commas(std::uint64_t value) {
  std::string text = std::to_string(value);
  for (std::size_t i = text.size(); i > 3;) text.insert(i -= 3, ",");
  return text;
}

/// Lines of a label and bytes, the numbers one below the other.
class report_lines {
 public:
  report_lines& head(std::string_view text) {
    (text_ += text) += '\n';
    return *this;
  }
  report_lines& bytes(std::string label, std::uint64_t value, std::string_view note = {}) {
    label.resize(std::max<std::size_t>(label.size(), 52), ' ');
    std::string number = with_commas(value);
    if (number.size() < 18) number.insert(0, 18 - number.size(), ' ');
    (((text_ += "  ") += label) += number) += note;
    text_ += '\n';
    return *this;
  }
  void tensors(std::string_view title, const tensor_summary& summary) {
    if (summary.largest.empty()) return;
    head(title);
    for (const sized_tensor& tensor : summary.largest) {
      std::string label(name_of(tensor.role));
      if (!tensor.layer.empty()) (label += ' ') += printable(tensor.layer, 40);
      (label += ' ') += in_quotes(tensor.name);
      bytes(std::move(label), tensor.bytes);
    }
    if (summary.others > 0) bytes(std::to_string(summary.others) + " more", summary.other_bytes);
    if (summary.roles.size() < 2) return;
    for (const auto& [role, sum] : summary.roles) {
      bytes("all " + std::string(name_of(role)), sum);
    }
  }
  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

}  // namespace detail

/// For people, several lines, bytes throughout. Texts from outside are escaped.
[[nodiscard]] inline std::string to_text(const memory_report& report) {
  detail::report_lines lines;
  lines.head("what filled the memory: " + (report.place.empty() ? "memory" : report.place));
  const std::string asked =
      report.tensor.empty() ? "asked for" : "asked for by " + in_quotes(report.tensor);
  lines.bytes(asked, report.requested);
  if (report.requested_at_once > report.requested) {
    lines.bytes("with all that is to come at once", report.requested_at_once);
  }
  if (report.limit) lines.bytes("limit", *report.limit);
  if (report.total) lines.bytes("in all", *report.total);
  if (report.free) lines.bytes("free", *report.free);
  if (report.largest_free) {
    const long percent = std::lround(report.fragmentation().value_or(0) * 100);
    lines.bytes("largest free block", *report.largest_free,
                "  fragmentation " + std::to_string(percent) + " %");
  }
  lines.tensors("live tensors", report.live);
  lines.tensors("still to come", report.planned);
  if (report.context_bytes)
    lines.bytes("the CUDA context, and what no ledger has", *report.context_bytes);
  if (!report.processes.empty()) lines.head("other processes on the GPU");
  for (const gpu_process& process : report.processes) {
    std::string label = "process " + std::to_string(process.pid);
    if (!process.name.empty()) (label += ' ') += printable(process.name, 40);
    if (process.bytes) {
      lines.bytes(std::move(label), *process.bytes);
    } else {
      lines.head("  " + label + ": the driver does not say how much");
    }
  }
  for (const std::string& what : report.withheld) lines.head("not known: " + printable(what));
  if (!report.alternatives.empty()) lines.head("what would take less");
  for (const memory_alternative& alternative : report.alternatives) {
    lines.bytes(printable(alternative.change), alternative.bytes, alternative.fits ? "  fits" : "");
  }
  return lines.take();
}

}  // namespace vggload
