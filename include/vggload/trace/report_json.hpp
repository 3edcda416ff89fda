// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>

namespace vggload {

namespace detail {

[[nodiscard]] inline nlohmann::ordered_json json_of(const tensor_summary& summary) {
  auto largest = nlohmann::ordered_json::array();
  for (const sized_tensor& tensor : summary.largest) {
    nlohmann::ordered_json row;
    row["name"] = tensor.name;
    row["layer"] = tensor.layer;
    row["role"] = name_of(tensor.role);
    row["bytes"] = tensor.bytes;
    largest.push_back(std::move(row));
  }
  auto roles = nlohmann::ordered_json::object();
  for (const auto& [role, bytes] : summary.roles) roles[std::string(name_of(role))] = bytes;
  nlohmann::ordered_json json;
  json["largest"] = std::move(largest);
  json["others"] = summary.others;
  json["other_bytes"] = summary.other_bytes;
  json["roles"] = std::move(roles);
  return json;
}

template <class T>
[[nodiscard]] nlohmann::ordered_json json_or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

[[nodiscard]] inline nlohmann::ordered_json json_or_null(std::string_view text) {
  return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(text);
}

}  // namespace detail

/// The report as JSON, with all its fields: null where one is not known, bytes throughout. Bytes of
/// a text that are not UTF-8 become U+FFFD.
[[nodiscard]] inline std::string report_json(const memory_report& report) {
  nlohmann::ordered_json json;
  json["tensor"] = detail::json_or_null(report.tensor);
  json["requested"] = report.requested;
  json["requested_at_once"] = std::max(report.requested, report.requested_at_once);
  json["place"] = detail::json_or_null(report.place);
  json["limit"] = detail::json_or_null(report.limit);
  json["total"] = detail::json_or_null(report.total);
  json["free"] = detail::json_or_null(report.free);
  json["largest_free"] = detail::json_or_null(report.largest_free);
  json["fragmentation"] = detail::json_or_null(report.fragmentation());
  json["live"] = detail::json_of(report.live);
  json["planned"] = detail::json_of(report.planned);
  json["context_bytes"] = detail::json_or_null(report.context_bytes);
  auto& processes = json["processes"] = nlohmann::ordered_json::array();
  for (const gpu_process& process : report.processes) {
    nlohmann::ordered_json row;
    row["pid"] = process.pid;
    row["name"] = detail::json_or_null(process.name);
    row["bytes"] = detail::json_or_null(process.bytes);
    processes.push_back(std::move(row));
  }
  json["withheld"] = report.withheld;
  auto& alternatives = json["alternatives"] = nlohmann::ordered_json::array();
  for (const memory_alternative& alternative : report.alternatives) {
    nlohmann::ordered_json row;
    row["change"] = alternative.change;
    row["bytes"] = alternative.bytes;
    row["fits"] = alternative.fits;
    alternatives.push_back(std::move(row));
  }
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
}

}  // namespace vggload
