// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <vggload/core/error.hpp>
#include <vggload/data/sequence.hpp>

namespace vggload {

/// How all shards come to have the same size where they cannot share equally.
enum class uneven_shards {
  pad,   // items from the beginning of the epoch are given once more, as often as it takes
  drop,  // the last items are left out
};

/// One process' share of a sequence, see `shard`.
template <class Base>
class sharded_sequence : public adapted_sequence<sharded_sequence<Base>, Base> {
 public:
  using value_type = sequence_value_t<Base>;

  sharded_sequence(Base&& base, std::size_t rank, std::size_t world, uneven_shards uneven)
      : sharded_sequence::adapted_sequence(std::forward<Base>(base)),
        rank_(rank),
        world_(world),
        uneven_(uneven) {
    if (rank >= world) {
      throw error("shard: rank " + std::to_string(rank) + " of a world of " +
                  std::to_string(world) + ": ranks begin at 0 and are below the world's size");
    }
  }

  /// The same on all ranks.
  [[nodiscard]] std::size_t size() const {
    const std::size_t count = this->base_size();
    const bool one_more = uneven_ == uneven_shards::pad && count % world_ != 0;
    return count / world_ + (one_more ? 1 : 0);
  }

  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, value_type& value) const {
    const std::size_t count = this->base_size();
    const std::size_t left = count - i * world_;  // of which each rank takes one
    const std::size_t index = rank_ < left ? i * world_ + rank_ : (rank_ - left) % count;
    return read_element(this->base(), epoch, index, value);
  }

 private:
  std::size_t rank_;
  std::size_t world_;
  uneven_shards uneven_;
};

/// Gives each of `world` processes every `world`-th item, from its `rank` on, and all of them equally
/// many: the items of torch's `DistributedSampler`. Shuffle before: shards are disjoint if all ranks
/// have the same seed.
/// @throws error where `rank` is not below `world`
[[nodiscard]] inline auto shard(std::size_t rank, std::size_t world,
                                uneven_shards uneven = uneven_shards::pad) {
  return sequence_adaptor{[rank, world, uneven]<class S>(S&& values) {
    return sharded_sequence<S>(std::forward<S>(values), rank, world, uneven);
  }};
}

}  // namespace vggload
