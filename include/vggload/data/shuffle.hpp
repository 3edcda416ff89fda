// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include <vggload/data/random_permutation.hpp>
#include <vggload/data/sequence.hpp>

namespace vggload {

/// A sequence in another order for each epoch, see `shuffle`.
template <class Base>
class shuffled_sequence : public adapted_sequence<shuffled_sequence<Base>, Base> {
 public:
  using value_type = sequence_value_t<Base>;

  shuffled_sequence(Base&& base, std::uint64_t seed)
      : shuffled_sequence::adapted_sequence(std::forward<Base>(base)), seed_(seed) {}

  [[nodiscard]] std::size_t size() const { return this->base_size(); }

  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, value_type& value) const {
    const random_permutation order(seed_, epoch, size());
    return read_element(this->base(), epoch, static_cast<std::size_t>(order(i)), value);
  }

  /// With its own seed, not that of the sequence below.
  [[nodiscard]] sequence_state state() const {
    sequence_state state = shuffled_sequence::adapted_sequence::state();
    state.seed = seed_;
    return state;
  }

 private:
  std::uint64_t seed_;
};

/// Puts an epoch into a random order that depends on `seed` and the epoch's number alone
/// (`random_permutation`): no list of indices is kept, and every process that has the seed has the
/// order.
[[nodiscard]] inline auto shuffle(std::uint64_t seed) {
  return sequence_adaptor{
      [seed]<class S>(S&& values) { return shuffled_sequence<S>(std::forward<S>(values), seed); }};
}

}  // namespace vggload
