// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// How a training went as a picture: the loss and the accuracy of each epoch, in SVG that needs nothing
// else.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <vggload/network/trainer.hpp>
#include <vggload/trace/text.hpp>
#include <vggload/trace/timeline_svg.hpp>

namespace command {

/// Draws the history of a training; the same text for the same numbers.
class training_chart {
 public:
  /// `heading`: what was trained, for people. `epochs`: how many there will be in all.
  training_chart(std::span<const vggload::network::epoch_metrics> history, std::uint64_t epochs,
                 std::string_view heading)
      : history_(history),
        heading_(heading),
        across_(static_cast<double>(std::max<std::uint64_t>(epochs, history.size())), plot_width) {}

  /// The whole document.
  [[nodiscard]] std::string draw() {
    begin();
    double most = 0;
    for (const auto& epoch : history_) {
      for (const double loss : {epoch.loss, epoch.val_loss.value_or(0)}) {
        if (std::isfinite(loss)) most = std::max(most, loss);
      }
    }
    panel(
        80, "loss", most > 0 ? most * 1.08 : 1, [](const auto& epoch) { return epoch.loss; },
        [](const auto& epoch) { return epoch.val_loss; });
    panel(
        80 + panel_height, "accuracy", 1, [](const auto& epoch) { return epoch.accuracy; },
        [](const auto& epoch) { return epoch.val_accuracy; });
    text(left + plot_width, height - 12, "small end", "epoch");
    svg_ += "</svg>\n";
    return std::move(svg_);
  }

 private:
  static constexpr double width = 800;
  static constexpr double left = 70;
  static constexpr double plot_width = 560;
  static constexpr double plot_height = 220;
  static constexpr double panel_height = 290;
  static constexpr double height = 80 + 2 * panel_height;

  void begin() {
    svg_ += R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 )" + number(width) + " " +
            number(height) + R"(" role="img" font-family="sans-serif" font-size="13">)" +
            "\n<title>" + vggload::detail::xml_text(heading_) +
            "</title>\n<style>\n"
            ".page{fill:#ffffff}text{fill:#1a1a1a}.small{fill:#555555;font-size:11px}"
            ".heading{font-size:17px}.end{text-anchor:end}.middle{text-anchor:middle}"
            ".grid{stroke:#d0d4da;fill:none}"
            // Okabe and Ito's, told apart by the colour-blind too.
            ".training{stroke:#0072b2;fill:none;stroke-width:2}.training-point{fill:#0072b2}"
            ".validation{stroke:#d55e00;fill:none;stroke-width:2}.validation-point{fill:#d55e00}\n"
            "@media (prefers-color-scheme:dark){.page{fill:#16181c}text{fill:#e8e8e8}"
            ".small{fill:#a8a8a8}.grid{stroke:#3d434b}}\n"
            "</style>\n"
            R"(<rect class="page" width="100%" height="100%"/>)"
            "\n";
    text(left, 32, "heading", heading_);
  }

  /// One of the two plots, from `top` on; `of` and `in_validation` give an epoch's value.
  template <class Value, class OptionalValue>
  void panel(double top, std::string_view name, double most, const Value& of,
             const OptionalValue& in_validation) {
    const vggload::detail::svg_axis up(most, plot_height);
    const double bottom = top + plot_height;
    up.ticks([&, this](double value, const std::string& label) {
      line(left, bottom - up(value), left + plot_width, bottom - up(value));
      text(left - 8, bottom - up(value) + 4, "small end", label);
    });
    across_.ticks([&, this](double value, const std::string& label) {
      if (value != std::floor(value)) return;  // there is no half an epoch
      line(left + across_(value), bottom, left + across_(value), bottom + 5);
      text(left + across_(value), bottom + 18, "small middle", label);
    });
    text(left, top - 10, "", name);
    curve("training", up, bottom, top + 10, of);
    curve("validation", up, bottom, top + 30, in_validation);
  }

  /// Its points and, beside the plot, its last value.
  template <class Value>
  void curve(std::string_view name, const vggload::detail::svg_axis& up, double bottom,
             double legend, const Value& value) {
    std::string points;
    std::string circles;
    std::optional<double> last;
    for (std::size_t i = 0; i < history_.size(); ++i) {
      const std::optional<double> here = value(history_[i]);
      if (!here || !std::isfinite(*here)) continue;
      last = here;
      const std::string x = number(left + across_(static_cast<double>(i + 1)));
      const std::string y = number(bottom - up(*here));
      points.append(x).append(",").append(y).append(" ");
      circles.append("<circle class=\"").append(name).append("-point\" cx=\"").append(x);
      circles.append("\" cy=\"").append(y).append("\" r=\"3\"><title>epoch ");
      circles.append(std::to_string(i + 1)).append(": ");
      circles.append(vggload::detail::decimal(*here, 4)).append("</title></circle>\n");
    }
    if (!last) return;
    svg_ += "<polyline class=\"" + std::string(name) + "\" points=\"" + points + "\"/>\n" + circles;
    const double x = left + plot_width + 20;
    svg_ += "<path class=\"" + std::string(name) + "\" d=\"M" + number(x) + " " +
            number(legend - 4) + "h16\"/>\n";
    text(x + 22, legend, "", name);
    text(width - 10, legend, "end", vggload::detail::decimal(*last, 4));
  }

  void line(double x1, double y1, double x2, double y2) {
    svg_ += "<path class=\"grid\" d=\"M" + number(x1) + " " + number(y1) + "L" + number(x2) + " " +
            number(y2) + "\"/>\n";
  }

  void text(double x, double y, std::string_view style, std::string_view content) {
    svg_ += R"(<text x=")" + number(x) + R"(" y=")" + number(y) + '"';
    if (!style.empty()) svg_ += " class=\"" + std::string(style) + "\"";
    svg_ += ">" + vggload::detail::xml_text(content) + "</text>\n";
  }

  [[nodiscard]] static std::string number(double value) {
    return vggload::detail::decimal(value, 2);
  }

  std::span<const vggload::network::epoch_metrics> history_;
  std::string_view heading_;
  vggload::detail::svg_axis across_;
  std::string svg_;
};

}  // namespace command
