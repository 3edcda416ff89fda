// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <vggload/data/sequence.hpp>

namespace vggload {

/// The beginning of a sequence, see `take`.
template <class Base>
class taken_sequence : public adapted_sequence<taken_sequence<Base>, Base> {
 public:
  using value_type = sequence_value_t<Base>;

  taken_sequence(Base&& base, std::size_t count)
      : taken_sequence::adapted_sequence(std::forward<Base>(base)), count_(count) {}

  [[nodiscard]] std::size_t size() const { return std::min(count_, this->base_size()); }

  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, value_type& value) const {
    return read_element(this->base(), epoch, i, value);
  }

 private:
  std::size_t count_;
};

/// The first `count` of each epoch, or all where there are fewer.
[[nodiscard]] inline auto take(std::size_t count) {
  return sequence_adaptor{
      [count]<class S>(S&& values) { return taken_sequence<S>(std::forward<S>(values), count); }};
}

}  // namespace vggload
