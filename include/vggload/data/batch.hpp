// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/data/sequence.hpp>

namespace vggload {

/// What becomes of the last batch of an epoch where items are too few to fill it.
enum class last_batch {
  keep,  // it is short
  drop,  // it is left out
  pad,   // it goes on with the items from the beginning of the epoch, as often as it takes
};

namespace detail {

/// What a batch of plain values is: a vector, which grows to its size once.
template <class S>
struct batch_value {
  static_assert(!std::same_as<sequence_value_t<S>, bool>,
                "a std::vector<bool> has no elements that could be filled");
  using type = std::vector<sequence_value_t<S>>;
};
template <planned_sequence S>
struct batch_value<S> {
  static_assert(batch_storage<sequence_storage_t<S>>,
                "batches of batches in planned memory: what would hold them is no batch_storage");
  using type = sequence_storage_t<S>;
};

}  // namespace detail

/// A sequence of batches, see `batch`.
template <class Base>
class batched_sequence : public adapted_sequence<batched_sequence<Base>, Base> {
  using typename adapted_sequence<batched_sequence<Base>, Base>::base_type;

 public:
  /// The storage of a batch's items where they have planned memory, else a vector of them.
  using value_type = typename detail::batch_value<base_type>::type;

  batched_sequence(Base&& base, std::size_t items, last_batch last)
      : batched_sequence::adapted_sequence(std::forward<Base>(base)), items_(items), last_(last) {
    if (items == 0) throw error("batch: a batch of 0 items was asked for");
  }

  /// Batches in an epoch.
  [[nodiscard]] std::size_t size() const {
    const std::size_t count = this->base_size();
    const bool rest = last_ != last_batch::drop && count % items_ != 0;
    return count / items_ + (rest ? 1 : 0);
  }

  /// What is skipped leaves a batch with fewer items. One that loses all of them is empty, and is given
  /// all the same: it can say what was skipped.
  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, value_type& value) const {
    const std::size_t count = this->base_size();
    const std::size_t begin = i * items_;
    const bool padded = last_ == last_batch::pad;
    const std::size_t wanted = padded ? items_ : std::min(items_, count - begin);
    if constexpr (planned_sequence<base_type>) {
      value.clear();
    } else {
      const std::size_t most = padded ? items_ : std::min(items_, count);
      value.reserve(most);  // so that a place that began with a short batch need not grow later
      value.resize(wanted);
    }
    std::size_t filled = 0;
    for (std::size_t item = 0; item < wanted; ++item) {
      const std::size_t left = count - begin;
      const std::size_t index = item < left ? begin + item : (item - left) % count;
      auto&& place = value[filled];
      if (read_element(this->base(), epoch, index, place)) ++filled;
    }
    value.resize(filled);
    return true;
  }

  /// Bytes that `n` batches take in an arena. Throws `error` where the number does not fit.
  [[nodiscard]] std::size_t storage_bytes(std::size_t n) const
      requires(planned_sequence<base_type>) {
    const auto one = checked_align_up(this->base().storage_bytes(items_),
                                      arena<host_resource>::default_alignment);
    const auto all = one ? checked_multiply(*one, n) : std::nullopt;
    if (!all) {
      throw error("batch: the bytes of " + std::to_string(n) + " batches of " +
                  std::to_string(items_) + " items do not fit into a number");
    }
    return static_cast<std::size_t>(*all);
  }
  template <class Arena>
  [[nodiscard]] std::vector<value_type> make_storage(Arena& memory, std::size_t n) const
      requires(planned_sequence<base_type>) {
    std::vector<value_type> batches;
    batches.reserve(n);
    for (std::size_t i = 0; i < n; ++i) {
      batches.push_back(this->base().make_storage(memory, items_));
    }
    return batches;
  }

 private:
  std::size_t items_;
  last_batch last_;
};

/// Puts `items` of them together, in their order. @throws error where `items` is 0
[[nodiscard]] inline auto batch(std::size_t items, last_batch last = last_batch::keep) {
  return sequence_adaptor{[items, last]<class S>(S&& values) {
    return batched_sequence<S>(std::forward<S>(values), items, last);
  }};
}

}  // namespace vggload
