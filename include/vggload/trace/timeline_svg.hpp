// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/error.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/trace/replay.hpp>
#include <vggload/trace/text.hpp>

namespace vggload {

namespace detail {

/// "263.90 MiB"
[[nodiscard]] inline std::string mebibytes(std::uint64_t bytes) {
  return decimal(static_cast<double>(bytes) / (1 << 20), 2) + " MiB";
}

/// An axis from 0 to `end`, on `pixels` pixels.
class svg_axis {
 public:
  svg_axis(double end, double pixels) : end_(end), pixels_(pixels) {
    // About six steps of 1, 2 or 5 times a power of ten.
    const double power = std::pow(10, std::floor(std::log10(end / 6)));
    step_ = power;
    for (const double factor : {2.0, 5.0, 10.0}) {
      if (step_ * 7 < end) step_ = power * factor;
    }
    decimals_ = std::max(0, -static_cast<int>(std::floor(std::log10(step_) + 1e-9)));
  }

  /// Pixels from the start of the axis on.
  [[nodiscard]] double operator()(double value) const { return value / end_ * pixels_; }
  /// Calls `draw(value, label)` for each step.
  template <class Draw>
  void ticks(Draw&& draw) const {
    for (int i = 0; i * step_ <= end_; ++i) draw(i * step_, decimal(i * step_, decimals_));
  }

 private:
  double end_;
  double pixels_;
  double step_;
  int decimals_;
};

class timeline_drawing {
 public:
  explicit timeline_drawing(const ledger_snapshot& ledger) : ledger_(ledger) {
    follow();
    collect_tensors();
  }

  [[nodiscard]] std::string draw() && {
    const std::size_t rows = largest_.largest.size() + (largest_.others > 0 ? 1 : 0);
    const double height = table_top + 30 + row_height * static_cast<double>(rows);
    head(height);
    if (ledger_.events.empty()) {
      text(left, top + 20, "", "Nothing was recorded.");
    } else {
      plot();
    }
    table();
    return std::move(svg_ += "</svg>\n");
  }

 private:
  using levels = std::array<std::uint64_t, 9>;  // bytes by role
  struct moment {
    double milliseconds;
    levels bytes;
  };
  struct sample {
    double milliseconds;
    std::uint64_t bytes;
  };

  static constexpr double width = 1000;
  static constexpr double left = 80;
  static constexpr double top = 70;
  static constexpr double plot_width = 700;
  static constexpr double plot_height = 330;
  static constexpr double legend_left = left + plot_width + 25;
  static constexpr double table_top = top + plot_height + 80;
  static constexpr double row_height = 20;

  // By role; told apart on white and on black.
  static constexpr std::array<std::string_view, 9> colours{"#4e79a7", "#76b7b2", "#f28e2b",
                                                           "#e377a2", "#9c6bc4", "#59a14f",
                                                           "#d9b02f", "#a5704f", "#8a8f98"};

  [[nodiscard]] static double milliseconds(std::chrono::nanoseconds time) {
    return std::chrono::duration<double, std::milli>(time).count();
  }

  /// Goes through the events: what is live after each.
  void follow() {
    levels now{};
    for (const ledger_event& event : ledger_.events) {
      const double time = milliseconds(event.time);
      if (event.kind == ledger_event_kind::sampled) samples_.push_back({time, event.bytes});
      const bool allocated = event.kind == ledger_event_kind::allocated;
      if (!allocated && event.kind != ledger_event_kind::freed) continue;
      const ledger_piece& piece = ledger_.pieces[event.index];
      if (in_mapped_file(ledger_, piece)) continue;
      auto& bytes = now[static_cast<std::size_t>(piece.role)];
      bytes = allocated ? bytes + event.bytes : bytes - event.bytes;
      moments_.push_back({time, now});
      for (std::size_t role = 0; role < now.size(); ++role) {
        most_[role] = std::max(most_[role], now[role]);
      }
    }
  }

  void collect_tensors() {
    std::vector<sized_tensor> tensors;
    for (const ledger_piece* piece : pieces_at_peak(ledger_)) {
      const bool came = piece->block != ledger_piece::no_block;
      const bool mapped = in_mapped_file(ledger_, *piece);
      if (mapped) mapped_bytes_ += piece->bytes;
      const std::string_view note = !came ? " (never came)" : mapped ? " (in its file)" : "";
      tensors.push_back({printable(piece->name, 50).append(note), printable(piece->layer, 20),
                         piece->role, piece->bytes});
    }
    largest_ = tensor_summary(std::move(tensors), 12);
  }

  void head(double height) {
    svg_ = R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 )";
    ((svg_ += decimal(width, 0)) += ' ') += decimal(height, 0);
    svg_ += R"(" font-family="system-ui, sans-serif" font-size="13">
<title>Memory over time</title>
<style>
  text { fill: #1f2328; }
  .back { fill: #ffffff; }
  .grid { stroke: #d0d4da; fill: none; }
  .resident { stroke: #1f2328; stroke-width: 1.5; stroke-dasharray: 5 3; fill: none; }
  .alarm { stroke: #c62828; stroke-width: 2; fill: none; }
  text.alarm { fill: #c62828; stroke: none; font-weight: 600; }
  .end { text-anchor: end; }
  .middle { text-anchor: middle; }
  .title { font-size: 18px; font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e8eb; }
    .back { fill: #16191d; }
    .grid { stroke: #3d434b; }
    .resident { stroke: #e6e8eb; }
    .alarm { stroke: #ff7b72; }
    text.alarm { fill: #ff7b72; }
  }
</style>
<rect class="back" width="100%" height="100%"/>
)";
    text(left, 30, "title", "Memory over time");
    std::string summary = "peak " + mebibytes(ledger_.peak_bytes);
    if (!ledger_.events.empty() && ledger_.peak_bytes > 0) {
      const auto time = ledger_.events[ledger_.peak_event].time;
      ((summary += " at ") += decimal(milliseconds(time), 3)) += " ms";
    }
    if (mapped_bytes_ > 0) {
      (summary += "; in mapped files, which hold no memory: ") += mebibytes(mapped_bytes_);
    }
    if (ledger_.lost_events > 0) {
      ((summary += "; ") += std::to_string(ledger_.lost_events)) += " events lost";
    }
    text(left, 52, "", summary);
  }

  void plot() {
    double end = milliseconds(ledger_.events.back().time) * 1.04;  // the last state is to be seen
    if (end <= 0) end = 1;
    std::uint64_t most = std::max<std::uint64_t>(ledger_.peak_bytes, 1U << 10U);
    for (const sample& one : samples_) most = std::max(most, one.bytes);
    const svg_axis across(end, plot_width);
    const svg_axis up(static_cast<double>(most) / (1 << 20) * 1.08, plot_height);
    const auto x = [&](double time) { return left + across(time); };
    const auto y = [&](std::uint64_t bytes) {
      return top + plot_height - up(static_cast<double>(bytes) / (1 << 20));
    };

    up.ticks([&, this](double value, const std::string& label) {
      const double at = top + plot_height - up(value);
      line("grid", left, at, left + plot_width, at);
      text(left - 8, at + 4, "end", label);
    });
    across.ticks([&, this](double value, const std::string& label) {
      const double at = left + across(value);
      line("grid", at, top + plot_height, at, top + plot_height + 5);
      text(at, top + plot_height + 20, "middle", label);
    });
    text(left - 8, top - 10, "end", "MiB");
    text(left + plot_width, top + plot_height + 40, "end", "time in ms");

    levels bottom_roles{};  // which roles are below
    for (std::size_t role = 0; role < most_.size(); ++role) {
      if (most_[role] == 0) continue;
      area(role, bottom_roles, left + plot_width, x, y);
      bottom_roles[role] = 1;
    }
    if (!samples_.empty()) {
      svg_ += "<polyline class=\"resident\" points=\"";
      for (const sample& one : samples_) point(x(one.milliseconds), y(one.bytes));
      svg_ += "\"/>\n";
    }
    legend();
    bool labelled = false;
    for (const ledger_event& event : ledger_.events) {
      if (event.kind != ledger_event_kind::out_of_memory) continue;
      const double at = x(milliseconds(event.time));
      line("alarm", at, top, at, top + plot_height);
      if (labelled) continue;
      labelled = true;
      std::string label = "out of memory at " + decimal(milliseconds(event.time), 3);
      (label += " ms: '") += printable(ledger_.pieces[event.index].name, 50);
      (label += "' asked for ") += with_commas(event.bytes);
      text(width - 10, 30, "alarm end", label += " bytes");  // above, where there is room
    }
  }

  /// One role's band, on top of the roles in `below`. Levels hold until the next event: steps.
  template <class X, class Y>
  void area(std::size_t role, const levels& below, double right, const X& x, const Y& y) {
    const auto bottom_of = [&](const levels& bytes) {
      std::uint64_t sum = 0;
      for (std::size_t i = 0; i < bytes.size(); ++i) sum += below[i] * bytes[i];
      return sum;
    };
    std::uint64_t upper = 0;
    std::uint64_t lower = 0;
    ((svg_ += "<path fill=\"") += colours[role]) += "\" d=\"M";
    ((svg_ += decimal(left, 1)) += ' ') += decimal(y(0), 1);
    std::vector<std::pair<double, std::uint64_t>> lower_steps;  // where it steps up from what
    for (const moment& one : moments_) {
      const std::uint64_t new_lower = bottom_of(one.bytes);
      const std::uint64_t new_upper = new_lower + one.bytes[role];
      const double at = x(one.milliseconds);
      if (new_upper != upper) step(at, y(new_upper));
      if (new_lower != lower) lower_steps.emplace_back(at, lower);
      upper = new_upper;
      lower = new_lower;
    }
    step(right, y(lower));
    std::ranges::reverse(lower_steps);
    for (const auto& [at, bytes] : lower_steps) step(at, y(bytes));
    svg_ += "Z\"><title>";
    svg_ += name_of(static_cast<memory_role>(role));
    svg_ += "</title></path>\n";
  }

  /// Goes on to `x`, and there to `y`.
  void step(double x, double y) {
    ((svg_ += 'H') += decimal(x, 1)) += 'V';
    svg_ += decimal(y, 1);
  }

  void legend() {
    double at = top + 10;
    for (std::size_t role = most_.size(); role-- > 0;) {  // as the areas lie
      if (most_[role] == 0) continue;
      square(at, colours[role]);
      text(legend_left + 20, at, "", name_of(static_cast<memory_role>(role)));
      text(width - 10, at, "end", mebibytes(most_[role]));
      at += row_height;
    }
    if (samples_.empty()) return;
    line("resident", legend_left, at - 4, legend_left + 14, at - 4);
    text(legend_left + 20, at, "", "resident");
    const auto most = std::ranges::max_element(samples_, {}, &sample::bytes);
    text(width - 10, at, "end", mebibytes(most->bytes));
    text(legend_left, at + row_height, "", "(the most of each)");
  }

  void table() {
    if (largest_.largest.empty()) return;
    text(left, table_top, "title", "The largest tensors at the peak");
    double at = table_top + 8;
    for (const sized_tensor& tensor : largest_.largest) {
      at += row_height;
      text(left, at, "", tensor.name);
      text(left + 480, at, "", tensor.layer);
      text(left + 620, at, "", name_of(tensor.role));
      text(width - 10, at, "end", with_commas(tensor.bytes) + " bytes");
    }
    if (largest_.others == 0) return;
    at += row_height;
    text(left, at, "", std::to_string(largest_.others) + " more");
    text(width - 10, at, "end", with_commas(largest_.other_bytes) + " bytes");
  }

  void text(double x, double y, std::string_view style, std::string_view value) {
    svg_ += "<text x=\"";
    (((svg_ += decimal(x, 1)) += "\" y=\"") += decimal(y, 1)) += '"';
    if (!style.empty()) ((svg_ += " class=\"") += style) += '"';
    ((svg_ += '>') += xml_text(value)) += "</text>\n";
  }
  void line(std::string_view style, double x1, double y1, double x2, double y2) {
    ((svg_ += "<path class=\"") += style) += "\" d=\"M";
    ((svg_ += decimal(x1, 1)) += ' ') += decimal(y1, 1);
    svg_ += 'L';
    (((svg_ += decimal(x2, 1)) += ' ') += decimal(y2, 1)) += "\"/>\n";
  }
  void square(double y, std::string_view colour) {
    ((svg_ += "<rect x=\"") += decimal(legend_left, 1)) += "\" y=\"";
    ((svg_ += decimal(y - 11, 1)) += R"(" width="14" height="14" fill=")") += colour;
    svg_ += "\"/>\n";
  }
  void point(double x, double y) { (((svg_ += decimal(x, 1)) += ',') += decimal(y, 1)) += ' '; }

  const ledger_snapshot& ledger_;
  std::vector<moment> moments_;
  std::vector<sample> samples_;
  levels most_{};  // of each role
  std::uint64_t mapped_bytes_ = 0;
  tensor_summary largest_;
  std::string svg_;
};

}  // namespace detail

/// The ledger as a picture for people: memory by role over time, what the process had resident, where
/// memory ran out, and the largest tensors at the peak. One SVG without outside references, in light
/// colours or dark ones as the reader's system is.
[[nodiscard]] inline std::string timeline_svg(const ledger_snapshot& ledger) {
  return detail::timeline_drawing(ledger).draw();
}

}  // namespace vggload
