// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <vggload/core/dtype.hpp>
#include <vggload/trace/health_row.hpp>

namespace vggload {

/// The rows as JSON, {"tensors": [{"name": ..., ...}, ...]}, with the counts of `tensor_health`.
/// Bytes of a name that are not UTF-8 become U+FFFD.
[[nodiscard]] inline std::string health_json(std::span<const health_row> rows) {
  auto tensors = nlohmann::ordered_json::array();
  for (const health_row& row : rows) {
    const tensor_health& health = row.health;
    const auto dims = row.shape.dims();
    nlohmann::ordered_json json;
    json["name"] = row.name;
    json["from"] = name_of(row.from);
    json["to"] = name_of(row.to);
    json["shape"] = std::vector(dims.begin(), dims.end());
    json["numel"] = health.numel;
    json["neg_inf"] = health.neg_inf;
    json["pos_inf"] = health.pos_inf;
    json["nan"] = health.nan;
    json["neg"] = health.neg;
    json["zero"] = health.zero;
    json["pos"] = health.pos;
    json["overflowed"] = health.overflowed;
    json["flushed"] = health.flushed_to_zero;
    json["became_subnormal"] = health.became_subnormal;
    json["max_abs"] = health.max_abs;
    json["max_relative_error"] = health.max_relative_error;
    tensors.push_back(std::move(json));
  }
  nlohmann::ordered_json document;
  document["tensors"] = std::move(tensors);
  return document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
}

}  // namespace vggload
