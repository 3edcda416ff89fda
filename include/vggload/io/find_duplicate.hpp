// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace vggload::detail {

/// The first value that occurs more than once in a range of strings, or nullptr. Sorts pointers
/// rather than strings.
template <class Strings, class Projection>
[[nodiscard]] const std::string* find_duplicate(const Strings& strings, Projection projection) {
  std::vector<const std::string*> sorted;
  sorted.reserve(strings.size());
  for (const auto& entry : strings) sorted.push_back(&projection(entry));
  std::ranges::sort(sorted, {}, [](const std::string* s) -> std::string_view { return *s; });
  const auto found = std::ranges::adjacent_find(
      sorted, [](const std::string* a, const std::string* b) { return *a == *b; });
  return found == sorted.end() ? nullptr : *found;
}

}  // namespace vggload::detail
