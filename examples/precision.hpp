// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What converting commands share about precision: which tensors stay FP32, what becomes of values
// that do not fit, and the report of what was lost.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fnmatch.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "command.hpp"

#include <vggload/convert/health.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/stream.hpp>

namespace command {

/// `--overflow`, `--keep-f32`, `--health`.
class precision_options {
 public:
  explicit precision_options(CLI::App& app) {
    app.add_option(
           "--overflow", overflow_,
           "Values too large for the type: keep (as infinity, default), saturate, or refuse")
        ->check(CLI::IsMember(policies()))
        ->type_name("POLICY");
    app.add_option("--keep-f32", globs_,
                   "Tensors that stay FP32, by name, such as '*.bias'; may be given several times")
        ->allow_extra_args(false)
        ->type_name("GLOB");
    app.add_flag("--health", health_, "Say of each tensor what its values are and what was lost");
  }

  [[nodiscard]] vggload::overflow_policy overflow() const { return policies().at(overflow_); }
  [[nodiscard]] bool health() const { return health_; }

  /// `type`, but for the tensors that stay FP32. A pattern that no tensor has is a mistake.
  [[nodiscard]] vggload::dtype_policy types(const vggload::checkpoint& file,
                                            std::optional<vggload::dtype> type) const {
    vggload::dtype_policy policy(type);
    for (const std::string& glob : globs_) {
      const auto holds = [glob](std::string_view name) {
        // fnmatch would see a name with a NUL in it up to there.
        return name.find('\0') == std::string_view::npos &&
               ::fnmatch(glob.c_str(), std::string(name).c_str(), 0) == 0;
      };
      if (std::ranges::none_of(file.tensors(), [&](const vggload::tensor_info& info) {
            return vggload::is_floating(info.dtype) && holds(info.name);
          })) {
        throw vggload::error(vggload::printable(file.path()) +
                             ": no floating-point tensor has a name like " +
                             vggload::in_quotes(glob) + ", which is to stay FP32");
      }
      policy = policy.keep_fp32(holds);
    }
    return policy;
  }

  /// The floating-point tensors that stay FP32, without those that are skipped.
  [[nodiscard]] std::vector<std::string> kept(const vggload::checkpoint& file,
                                              std::span<const std::string> skipped) const {
    std::vector<std::string> names;
    const vggload::dtype_policy policy = types(file, vggload::dtype::f16);
    for (const vggload::tensor_info& info : file.tensors()) {
      if (policy.keeps_fp32(info) && std::ranges::find(skipped, info.name) == skipped.end()) {
        names.push_back(info.name);
      }
    }
    return names;
  }

  /// A line on stderr where values became infinite and nobody had asked for it.
  void warn(const vggload::checkpoint& file,
            std::span<const vggload::tensor_overflow> overflowed) const {
    if (overflowed.empty() || overflow() != vggload::overflow_policy::keep) return;
    const auto& first = overflowed.front();
    std::fprintf(stderr,
                 "warning: %s: %s in %s became infinite as %s, the first in %s; --overflow "
                 "saturate or refuse, or --keep-f32, prevents it\n",
                 vggload::printable(file.path()).c_str(),
                 plural(total(overflowed), "value").c_str(),
                 plural(overflowed.size(), "tensor").c_str(), vggload::name_of(first.to).data(),
                 vggload::in_quotes(file.tensors()[first.tensor].name).c_str());
  }

  [[nodiscard]] static std::uint64_t total(std::span<const vggload::tensor_overflow> overflowed) {
    std::uint64_t sum = 0;
    for (const auto& one : overflowed) sum += one.values;
    return sum;
  }

 private:
  static const std::map<std::string, vggload::overflow_policy>& policies() {
    using vggload::overflow_policy;
    static const std::map<std::string, overflow_policy> all{{"keep", overflow_policy::keep},
                                                            {"saturate", overflow_policy::saturate},
                                                            {"refuse", overflow_policy::refuse}};
    return all;
  }
  static std::string plural(std::uint64_t count, const char* noun) {
    return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
  }

  std::string overflow_ = "keep";
  std::vector<std::string> globs_;
  bool health_ = false;
};

/// The names are those of `tensor_health`.
inline nlohmann::ordered_json health_json(const vggload::checkpoint& file,
                                          std::span<const vggload::measured_tensor> measured) {
  auto list = nlohmann::ordered_json::array();
  for (const vggload::measured_tensor& one : measured) {
    const vggload::tensor_info& info = file.tensors()[one.tensor];
    const vggload::tensor_health& h = one.health;
    list.push_back({{"name", info.name},
                    {"from", vggload::name_of(info.dtype)},
                    {"to", vggload::name_of(one.to)},
                    {"numel", h.numel},
                    {"neg_inf", h.neg_inf},
                    {"pos_inf", h.pos_inf},
                    {"nan", h.nan},
                    {"neg", h.neg},
                    {"zero", h.zero},
                    {"pos", h.pos},
                    {"overflowed", h.overflowed},
                    {"flushed_to_zero", h.flushed_to_zero},
                    {"became_subnormal", h.became_subnormal},
                    {"max_abs", h.max_abs},
                    {"max_relative_error", h.max_relative_error}});
  }
  return list;
}

/// A table for people, with a line for the whole.
inline void print_health(const vggload::checkpoint& file,
                         std::span<const vggload::measured_tensor> measured) {
  if (measured.empty()) return;
  std::size_t width = 5;
  const auto name_of = [&](const vggload::measured_tensor& one) {
    return vggload::printable(file.tensors()[one.tensor].name, 60);
  };
  for (const auto& one : measured) width = std::max(width, name_of(one).size());
  const auto line = [width](const std::string& name, const std::string& types,
                            const vggload::tensor_health& h) {
    std::printf("  %-*s %-10s %13s %6s %6s %6s %13s %9s %13s %10s %11s %11s %10.4g %9.2e\n",
                static_cast<int>(width), name.c_str(), types.c_str(), grouped(h.numel).c_str(),
                grouped(h.neg_inf).c_str(), grouped(h.pos_inf).c_str(), grouped(h.nan).c_str(),
                grouped(h.neg).c_str(), grouped(h.zero).c_str(), grouped(h.pos).c_str(),
                grouped(h.overflowed).c_str(), grouped(h.flushed_to_zero).c_str(),
                grouped(h.became_subnormal).c_str(), h.max_abs, h.max_relative_error);
  };
  std::printf("  %-*s %-10s %13s %6s %6s %6s %13s %9s %13s %10s %11s %11s %10s %9s\n",
              static_cast<int>(width), "health", "types", "numel", "-inf", "+inf", "nan", "neg",
              "zero", "pos", "overflowed", "to zero", "subnormal", "max |x|", "max error");
  vggload::tensor_health all;
  for (const auto& one : measured) {
    const std::string from(vggload::name_of(file.tensors()[one.tensor].dtype));
    const std::string to(vggload::name_of(one.to));
    std::string types = from;
    if (from != to) types.append(">").append(to);
    line(name_of(one), types, one.health);
    all += one.health;
  }
  line("all", "", all);
}

}  // namespace command
