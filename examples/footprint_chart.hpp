// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// A footprint as a picture: bars for the whole and for each layer, in SVG that needs nothing else.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "command.hpp"

#include <vggload/core/shape.hpp>
#include <vggload/trace/text.hpp>
#include <vggload/vgg16/footprint.hpp>

namespace command {

/// Draws a footprint; the same text for the same numbers.
class footprint_chart {
 public:
  /// `heading`: what was planned, for people. The budget is a line where there is one.
  footprint_chart(const vggload::vgg16::footprint& plan, std::string_view heading,
                  std::optional<std::uint64_t> budget)
      : plan_(plan), heading_(heading), budget_(budget) {}

  /// The whole document.
  [[nodiscard]] std::string draw() {
    begin();
    legend();
    total();
    for (std::size_t i = 0; i < plan_.layers.size(); ++i) row(plan_.layers[i], i);
    text(margin, height() - 16, "small", "start",
         "Bars of layers: bytes of their parameters, what is kept for them in training, and their "
         "whole outputs. Workspace is shared, and in a forward pass two buffers hold all outputs.");
    svg_ += "</svg>\n";
    return std::move(svg_);
  }

 private:
  struct part {
    std::string_view name;
    std::string_view colour;  // Okabe and Ito's, told apart by the colour-blind too
    std::uint64_t bytes;
  };

  static constexpr double width = 1000;
  static constexpr double margin = 20;
  static constexpr double bars_begin = 250;
  static constexpr double bars_end = 870;
  static constexpr double total_top = 98;
  static constexpr double rows_top = 170;
  static constexpr double row_height = 22;
  static constexpr double bar_height = 15;

  [[nodiscard]] double height() const {
    return rows_top + row_height * static_cast<double>(plan_.layers.size()) + 44;
  }

  [[nodiscard]] static std::array<part, 6> parts_of(const vggload::vgg16::footprint& plan) {
    return parts(plan.weights_bytes, plan.masters_bytes, plan.gradients_bytes, plan.optimizer_bytes,
                 plan.activations_bytes, plan.workspace_bytes);
  }
  [[nodiscard]] static std::array<part, 6> parts_of(const vggload::vgg16::layer_footprint& layer) {
    return parts(layer.weight_bytes + layer.bias_bytes, layer.masters_bytes, layer.gradients_bytes,
                 layer.optimizer_bytes, layer.activation_bytes, 0);
  }
  [[nodiscard]] static std::array<part, 6> parts(std::uint64_t weights, std::uint64_t masters,
                                                 std::uint64_t gradients, std::uint64_t optimizer,
                                                 std::uint64_t activations,
                                                 std::uint64_t workspace) {
    return {{{"weights", "#0072b2", weights},
             {"masters", "#56b4e9", masters},
             {"gradients", "#d55e00", gradients},
             {"optimizer", "#cc79a7", optimizer},
             {"activations", "#e69f00", activations},
             {"workspace", "#009e73", workspace}}};
  }
  /// Part of the plan's total, and of 64 bits therefore.
  [[nodiscard]] static std::uint64_t sum_of(const std::array<part, 6>& parts) {
    std::uint64_t sum = 0;
    for (const part& one : parts) sum += one.bytes;
    return sum;
  }

  void begin() {
    const std::string size = number(width) + " " + number(height());
    svg_ += R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 )" + size +
            R"(" role="img" font-family="sans-serif" font-size="13">)"
            "\n<title>";
    svg_ += vggload::detail::xml_text(heading_);
    svg_ +=
        "</title>\n<style>\n"
        ".page{fill:#ffffff}.text{fill:#1a1a1a}.small{fill:#555555;font-size:11px}"
        ".heading{fill:#1a1a1a;font-size:17px}.budget{stroke:#1a1a1a;stroke-width:2}\n"
        "@media (prefers-color-scheme:dark){.page{fill:#16181c}.text,.heading{fill:#e8e8e8}"
        ".small{fill:#a8a8a8}.budget{stroke:#e8e8e8}}\n"
        "</style>\n";
    svg_ += R"(<rect class="page" width=")" + number(width) + R"(" height=")" + number(height()) +
            "\"/>\n";
    text(margin, 32, "heading", "start", heading_);
  }

  /// Each kind in a column of its own, with its bytes.
  void legend() {
    double x = margin;
    for (const part& one : parts_of(plan_)) {
      if (one.bytes == 0) continue;
      rectangle(x, 50, 12, one, "");
      text(x + 18, 61, "text", "start", one.name);
      text(x + 18, 76, "small", "start", grouped(one.bytes));
      x += (width - 2 * margin) / 6;
    }
  }

  void total() {
    const auto bytes = static_cast<double>(plan_.total_bytes);
    const auto budget = static_cast<double>(budget_.value_or(0));
    const double scale = (bars_end - bars_begin) / std::max(bytes, budget);
    text(margin, total_top + 18, "text", "start", "total");
    text(width - margin, total_top + 18, "text", "end", grouped(plan_.total_bytes));
    bar(total_top, 26, parts_of(plan_), scale, "total");
    if (!budget_) return;
    const double x = bars_begin + budget * scale;
    svg_ += R"(<line class="budget" x1=")" + number(x) + R"(" x2=")" + number(x) + R"(" y1=")" +
            number(total_top - 6) + R"(" y2=")" + number(total_top + 32) + "\"/>\n";
    // On the side where there is room for it.
    const bool left = x > (bars_begin + bars_end) / 2;
    text(x, total_top + 46, "small", left ? "end" : "start", "budget " + grouped(*budget_));
  }

  void row(const vggload::vgg16::layer_footprint& layer, std::size_t index) {
    std::uint64_t largest = 0;
    for (const auto& any : plan_.layers) largest = std::max(largest, sum_of(parts_of(any)));
    const double top = rows_top + row_height * static_cast<double>(index);
    const auto parts = parts_of(layer);
    text(margin, top + 12, "text", "start", layer.name);
    text(bars_begin - 10, top + 12, "small", "end", to_string(layer.output_shape));
    bar(top, bar_height, parts, (bars_end - bars_begin) / static_cast<double>(largest), layer.name);
    text(width - margin, top + 12, "small", "end", grouped(sum_of(parts)));
  }

  void bar(double top, double thickness, const std::array<part, 6>& parts, double scale,
           std::string_view of) {
    double x = bars_begin;
    for (const part& one : parts) {
      if (one.bytes == 0) continue;
      const double length = static_cast<double>(one.bytes) * scale;
      rectangle(x, top, length, one, of, thickness);
      x += length;
    }
  }

  /// With a text that shows under the pointer, unless it is of nothing.
  void rectangle(double x, double y, double length, const part& one, std::string_view of,
                 double thickness = 12) {
    svg_ += R"(<rect x=")" + number(x) + R"(" y=")" + number(y) + R"(" width=")" + number(length) +
            R"(" height=")" + number(thickness) + R"(" fill=")";
    svg_ += one.colour;
    svg_ += '"';
    if (of.empty()) {
      svg_ += "/>\n";
      return;
    }
    svg_ += "><title>";
    svg_ += vggload::detail::xml_text(std::string(of) + ": " + std::string(one.name) + " " +
                                      grouped(one.bytes));
    svg_ += "</title></rect>\n";
  }

  void text(double x, double y, std::string_view style, std::string_view anchor,
            std::string_view content) {
    svg_ += R"(<text x=")" + number(x) + R"(" y=")" + number(y) + R"(" class=")";
    svg_ += style;
    svg_ += R"(" text-anchor=")";
    svg_ += anchor;
    svg_ += "\">";
    svg_ += vggload::detail::xml_text(content);
    svg_ += "</text>\n";
  }

  [[nodiscard]] static std::string number(double value) {
    return vggload::detail::decimal(value, 2);
  }

  const vggload::vgg16::footprint& plan_;
  std::string_view heading_;
  std::optional<std::uint64_t> budget_;
  std::string svg_;
};

}  // namespace command
