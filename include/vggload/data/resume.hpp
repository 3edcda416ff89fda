// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <vggload/core/error.hpp>
#include <vggload/data/sequence.hpp>

namespace vggload {

/// A sequence that goes on where it was left, see `resume_from`.
template <class Base>
class resumed_sequence : public adapted_sequence<resumed_sequence<Base>, Base> {
  using adapted = adapted_sequence<resumed_sequence<Base>, Base>;
  using typename adapted::base_type;

 public:
  using value_type = sequence_value_t<Base>;

  resumed_sequence(Base&& base, const sequence_state& state) : adapted(std::forward<Base>(base)) {
    const sequence_state now = adapted::state();
    if (now.seed != state.seed) {
      throw error("resume_from: the state is of a sequence with seed " +
                  std::to_string(state.seed) + ", this one has seed " + std::to_string(now.seed));
    }
    if constexpr (epoch_sequence<base_type>) {
      adapted::set_epoch(state.epoch);
    } else {
      if (now.epoch > state.epoch) {
        throw error("resume_from: the state is of epoch " + std::to_string(state.epoch) +
                    ", and the sequence, which cannot go back, is in epoch " +
                    std::to_string(now.epoch));
      }
      for (std::uint64_t epoch = now.epoch; epoch < state.epoch; ++epoch) adapted::on_epoch_end();
    }
    if (state.batch > size()) {
      throw error("resume_from: the state is behind batch " + std::to_string(state.batch) +
                  " of an epoch, this sequence has " + std::to_string(size()));
    }
    batch_ = state.batch;
  }

  /// All of an epoch, those that were given before among them.
  [[nodiscard]] std::size_t size() const { return this->base_size(); }

  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, value_type& value) const {
    return read_element(this->base(), epoch, i, value);
  }

  void on_epoch_end() {
    adapted::on_epoch_end();
    batch_ = 0;
  }
  void set_epoch(std::uint64_t epoch) requires(epoch_sequence<base_type>) {
    adapted::set_epoch(epoch);
    batch_ = 0;
  }

  /// With the batch that its current epoch begins at.
  [[nodiscard]] sequence_state state() const {
    sequence_state state = adapted::state();
    state.batch = batch_;
    return state;
  }

 private:
  std::uint64_t batch_ = 0;
};

/// Goes on where a sequence was left: in the state's epoch, of which a loop or `prefetch` gives what
/// comes from the state's batch on; later epochs are whole. Indices stay what they are, `[i]` is the
/// i-th of the whole epoch. Comes last, just before `prefetch`. A sequence that does not know its
/// epochs must be as it was at the first one: its `on_epoch_end()` is called once for each of those
/// that were.
/// @throws error where the state is not of this sequence: another seed, a batch beyond its epoch's end
[[nodiscard]] inline auto resume_from(const sequence_state& state) {
  return sequence_adaptor{
      [state]<class S>(S&& values) { return resumed_sequence<S>(std::forward<S>(values), state); }};
}

}  // namespace vggload
