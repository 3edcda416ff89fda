// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Says what a VGG16 takes, layer by layer, before anything is loaded; whether it fits into a
// budget, with which batch, and what to change where it does not.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "footprint_chart.hpp"

#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/vgg16/footprint.hpp>

namespace {

namespace vgg16 = vggload::vgg16;
using command::grouped;

/// What is asked of a budget.
struct budget_answer {
  std::uint64_t bytes;
  std::uint64_t max_batch;
  std::vector<vgg16::advice> advice;
};

void print_json(const vgg16::plan_options& options, const vgg16::footprint& plan,
                const std::optional<budget_answer>& budget) {
  nlohmann::ordered_json json{{"dtype", name_of(options.storage)},
                              {"compute", name_of(options.compute_type())},
                              {"mode", name_of(options.mode)},
                              {"optimizer", name_of(options.optimizer)},
                              {"batch", options.batch},
                              {"input", {options.height, options.width}},
                              {"include_top", options.include_top},
                              {"classes", options.include_top ? options.classes : 0},
                              {"parameters", plan.parameters},
                              {"weights_bytes", plan.weights_bytes},
                              {"masters_bytes", plan.masters_bytes},
                              {"activations_bytes", plan.activations_bytes},
                              {"gradients_bytes", plan.gradients_bytes},
                              {"optimizer_bytes", plan.optimizer_bytes},
                              {"workspace_bytes", plan.workspace_bytes},
                              {"total_bytes", plan.total_bytes}};
  if (budget) {
    json["budget"] = budget->bytes;
    json["fits"] = plan.fits(budget->bytes);
    json["max_batch"] = budget->max_batch;
    json["advice"] = nlohmann::ordered_json::array();
    for (const vgg16::advice& advice : budget->advice) {
      json["advice"].push_back(
          {{"change", advice.change}, {"total_bytes", advice.total_bytes}, {"fits", advice.fits}});
    }
  }
  json["layers"] = nlohmann::ordered_json::array();
  for (const vgg16::layer_footprint& layer : plan.layers) {
    json["layers"].push_back({{"name", layer.name},
                              {"output_shape", layer.output_shape.dims()},
                              {"parameters", layer.parameters},
                              {"weight_bytes", layer.weight_bytes},
                              {"bias_bytes", layer.bias_bytes},
                              {"masters_bytes", layer.masters_bytes},
                              {"activation_bytes", layer.activation_bytes},
                              {"gradients_bytes", layer.gradients_bytes},
                              {"optimizer_bytes", layer.optimizer_bytes},
                              {"workspace_bytes", layer.workspace_bytes}});
  }
  std::printf("%s\n", json.dump(2).c_str());
}

/// "VGG16, training with adam, F16 (computes in F32), batch 8 of 224x224, 1,000 classes".
std::string heading(const vgg16::plan_options& options) {
  std::string text = "VGG16, ";
  if (options.mode == vgg16::pass_mode::inference) {
    text += "inference";
  } else {
    text += options.mode == vgg16::pass_mode::frozen ? "training of the top" : "training";
    text += " with ";
    text += name_of(options.optimizer);
  }
  text += ", ";
  text += name_of(options.storage);
  if (options.compute_type() != options.storage) {
    text += " (computes in ";
    text += name_of(options.compute_type());
    text += ')';
  }
  text += ", batch " + grouped(options.batch) + " of " + std::to_string(options.height) + "x" +
          std::to_string(options.width);
  text += options.include_top ? ", " + grouped(options.classes) + " classes" : ", no top";
  return text;
}

/// Rows of cells, the first `texts` columns to the left and numbers to the right, as wide as they
/// need.
void print_table(const std::vector<std::vector<std::string>>& rows, std::size_t texts) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += "  ";
      const std::size_t padding = widths[i] - row[i].size();
      if (i >= texts) line.append(padding, ' ');
      line += row[i];
      if (i < texts) line.append(padding, ' ');
    }
    std::printf("%s\n", line.c_str());
  }
}

void print_layers(const vgg16::footprint& plan) {
  const bool trains = plan.gradients_bytes > 0;
  std::vector<std::vector<std::string>> rows{
      {"layer", "output", "weights", "biases", "activations"}};
  if (trains) rows.front().insert(rows.front().end(), {"masters", "gradients", "optimizer"});
  for (const vgg16::layer_footprint& layer : plan.layers) {
    auto& row = rows.emplace_back(std::vector<std::string>{
        std::string(layer.name), to_string(layer.output_shape), grouped(layer.weight_bytes),
        grouped(layer.bias_bytes), grouped(layer.activation_bytes)});
    if (!trains) continue;
    row.insert(row.end(), {grouped(layer.masters_bytes), grouped(layer.gradients_bytes),
                           grouped(layer.optimizer_bytes)});
  }
  print_table(rows, 2);
}

void print_totals(const vgg16::footprint& plan) {
  const std::array<std::pair<const char*, std::uint64_t>, 7> totals{
      {{"weights", plan.weights_bytes},
       {"masters", plan.masters_bytes},
       {"activations", plan.activations_bytes},
       {"gradients", plan.gradients_bytes},
       {"optimizer", plan.optimizer_bytes},
       {"workspace", plan.workspace_bytes},
       {"total", plan.total_bytes}}};
  std::vector<std::vector<std::string>> rows{{"", "bytes", "share"}};
  for (const auto& [name, bytes] : totals) {
    std::array<char, 32> share;
    std::snprintf(share.data(), share.size(), "%.1f %%",
                  100 * static_cast<double>(bytes) / static_cast<double>(plan.total_bytes));
    rows.push_back({name, grouped(bytes), share.data()});
  }
  print_table(rows, 1);
}

void print_budget(const vgg16::footprint& plan, const budget_answer& budget) {
  if (plan.fits(budget.bytes)) {
    std::printf("\nIt fits into %s bytes and leaves %s.\n", grouped(budget.bytes).c_str(),
                grouped(budget.bytes - plan.total_bytes).c_str());
  } else {
    std::printf("\nIt does not fit into %s bytes: %s are missing.\n", grouped(budget.bytes).c_str(),
                grouped(plan.total_bytes - budget.bytes).c_str());
  }
  if (budget.max_batch > 0) {
    std::printf("The largest batch that fits is %s.\n", grouped(budget.max_batch).c_str());
  } else {
    std::printf("Not even a batch of 1 fits.\n");
  }
  for (const vgg16::advice& advice : budget.advice) {
    std::printf("With %s it takes %s bytes, which %s.\n", advice.change.c_str(),
                grouped(advice.total_bytes).c_str(), advice.fits ? "fits" : "does not fit");
  }
}

void write_file(const std::string& path, std::string_view text) {
  vggload::atomic_output_file file(path, text.size());
  file.write_at(0, std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Says what memory a VGG16 takes, and what to change where it does not fit.");
  const std::map<std::string, vggload::dtype> types{
      {"f32", vggload::dtype::f32}, {"f16", vggload::dtype::f16}, {"bf16", vggload::dtype::bf16}};
  const std::map<std::string, vgg16::pass_mode> modes{{"inference", vgg16::pass_mode::inference},
                                                      {"frozen", vgg16::pass_mode::frozen},
                                                      {"training", vgg16::pass_mode::training}};
  const std::map<std::string, vgg16::optimizer_kind> optimizers{
      {"sgd", vgg16::optimizer_kind::sgd},
      {"momentum", vgg16::optimizer_kind::momentum},
      {"adam", vgg16::optimizer_kind::adam}};
  vgg16::plan_options options;
  std::string storage = "f32";
  std::string compute;
  std::string mode = "inference";
  std::string optimizer = "sgd";
  std::string input = "224x224";
  bool no_top = false;
  std::optional<std::uint64_t> budget_bytes;
  bool json = false;
  std::optional<std::string> chart;
  app.add_option("--dtype", storage, "Type of the weights: f32 (default), f16, or bf16")
      ->check(CLI::IsMember(types))
      ->type_name("TYPE");
  app.add_option("--compute", compute, "Type of the activations (default: that of the weights)")
      ->check(CLI::IsMember(types))
      ->type_name("TYPE");
  app.add_option("--mode", mode,
                 "inference (default), frozen (trains the dense layers), or training")
      ->check(CLI::IsMember(modes))
      ->type_name("MODE");
  app.add_option("--optimizer", optimizer, "sgd (default), momentum, or adam")
      ->check(CLI::IsMember(optimizers))
      ->type_name("NAME");
  app.add_option("--batch", options.batch, "Images at once (default 1)")
      ->transform(command::whole_number(1, UINT64_MAX))
      ->type_name("N");
  app.add_option("--input", input, "Size of an image (default 224x224, the only one with the top)")
      ->check(command::height_and_width())
      ->type_name("HxW");
  auto* const no_top_flag = app.add_flag("--no-top", no_top, "Without the three dense layers");
  app.add_option("--classes", options.classes, "Outputs of the last layer (default 1000)")
      ->transform(command::whole_number(1, 1'000'000))
      ->type_name("N")
      ->excludes(no_top_flag);
  app.add_option("--budget", budget_bytes, "What there is, e.g. 8GiB")
      ->transform(command::byte_size());
  app.add_flag("--json", json, "The plan as JSON");
  app.add_option("--svg", chart, "Writes a chart to this file")->type_name("FILE");
  return command::run(app, argc, argv, "plan_vgg16", [&] {
    options.storage = types.at(storage);
    if (!compute.empty()) options.compute = types.at(compute);
    options.mode = modes.at(mode);
    options.optimizer = optimizers.at(optimizer);
    std::tie(options.height, options.width) = command::parse_height_and_width(input).value();
    options.include_top = !no_top;

    const vgg16::footprint plan = vgg16::plan(options);
    std::optional<budget_answer> budget;
    if (budget_bytes) {
      budget = {*budget_bytes, vgg16::max_batch(options, *budget_bytes),
                vgg16::advise(options, *budget_bytes)};
    }
    const std::string title = heading(options);
    if (chart) write_file(*chart, command::footprint_chart(plan, title, budget_bytes).draw());
    if (json) {
      print_json(options, plan, budget);
      return;
    }
    std::printf("%s\n\n", title.c_str());
    print_layers(plan);
    std::printf("\n");
    print_totals(plan);
    if (budget) print_budget(plan, *budget);
  });
} catch (...) {
  return command::report_error("plan_vgg16");
}
