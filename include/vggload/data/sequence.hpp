// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <vggload/data/sequence_state.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>

namespace vggload {

/// What `sequence[i]` gives: something that is called with the caller's value and fills it, or else a
/// plain value that is assigned to it. A call returns nothing, or a bool where false says that this one
/// is to be skipped: its value is not given to anybody.
template <class Element, class Value>
concept element_of = (std::invocable<Element, Value&> &&
                      (std::same_as<std::invoke_result_t<Element, Value&>, void> ||
                       std::same_as<std::invoke_result_t<Element, Value&>, bool>)) ||
                     (!std::invocable<Element, Value&> && std::is_assignable_v<Value&, Element>);

/// What there is in an epoch, by number (Keras' `Sequence`, torch's map-style `Dataset`).
///
/// - `S::value_type`: an item or a batch. The one who asks has it and gives it to be filled, again and
///   again, so that its memory is taken once.
/// - `size()`: how many there are in an epoch. Changes in `on_epoch_end` only.
/// - `sequence[i]` of a const sequence, for an i below `size()`: an `element_of<value_type>`, to be used at once. For workers,
///   from several threads at once.
/// - `on_epoch_end()`: called once after each epoch, never together with another call.
template <class S>
concept sequence = requires(S& values, const S& fixed, std::size_t i) {
  typename S::value_type;
  { fixed.size() } -> std::convertible_to<std::size_t>;
  { fixed[i] } -> element_of<typename S::value_type>;
  values.on_epoch_end();
};

/// A sequence that knows its epochs by number, so that the next can begin while one ends. What is
/// random in it depends on a seed, the epoch and the index, and on nothing else.
///
/// - `element(epoch, i)`: the i-th of any epoch; `sequence[i]` is that of `epoch()`. From several
///   threads at once, and together with `on_epoch_end` and `set_epoch`: looks at nothing that they
///   change.
/// - `size()` is the same for all epochs.
/// - `on_epoch_end()` goes on to the next epoch, `set_epoch(epoch)` to any.
template <class S>
concept epoch_sequence = sequence<S> &&
    requires(S& values, const S& fixed, std::uint64_t epoch, std::size_t i) {
  { fixed.element(epoch, i) } -> element_of<typename S::value_type>;
  { fixed.epoch() } -> std::convertible_to<std::uint64_t>;
  values.set_epoch(epoch);
};

/// A sequence whose values lie in memory of a size that is known beforehand.
///
/// - `storage_bytes(n)`: bytes that n values take in an arena.
/// - `make_storage(arena, n)`: takes them and returns the storage, whose `[i]` is a value, or refers to
///   one. The storage has the same type for arenas of every resource. It must not outlive the arena,
///   and values not the storage.
template <class S>
concept planned_sequence = sequence<S> &&
    requires(const S& fixed, std::size_t n, arena<host_resource>& memory) {
  { fixed.storage_bytes(n) } -> std::convertible_to<std::size_t>;
  fixed.make_storage(memory, n);
  requires std::same_as <
      std::remove_cvref_t<decltype(std::declval<decltype(fixed.make_storage(memory, n))&>()[n])>,
  typename S::value_type > ;
};

namespace detail {

template <class T>
inline constexpr bool is_vector = false;
template <class T, class Allocator>
inline constexpr bool is_vector<std::vector<T, Allocator>> = true;

}  // namespace detail

/// A storage that keeps its places when it says how many of them are filled: `resize(n)` up to as many
/// as it was made with, `clear()` forgets all. (A std::vector would destroy them.)
template <class Storage>
concept batch_storage = !detail::is_vector<Storage> && requires(Storage & storage, std::size_t n) {
  storage[n];
  storage.resize(n);
  storage.clear();
};

/// What a sequence gives.
template <class S>
using sequence_value_t = typename std::remove_cvref_t<S>::value_type;

/// What a planned sequence's values lie in.
template <planned_sequence S>
using sequence_storage_t = decltype(std::declval<const S&>().make_storage(
    std::declval<arena<host_resource>&>(), std::size_t{1}));

/// Lets an element fill `value`. False where it is to be skipped.
template <class Value, element_of<Value> Element>
bool fill_from(Element&& element, Value& value) {
  if constexpr (!std::invocable<Element, Value&>) {
    value = std::forward<Element>(element);
    return true;
  } else if constexpr (std::same_as<std::invoke_result_t<Element, Value&>, bool>) {
    return std::invoke(std::forward<Element>(element), value);
  } else {
    std::invoke(std::forward<Element>(element), value);
    return true;
  }
}

/// Fills `value` with the i-th of the sequence's current epoch. False where it is to be skipped.
template <sequence S>
bool read_element(const S& values, std::size_t i, sequence_value_t<S>& value) {
  return fill_from(values[i], value);
}

/// Fills `value` with the i-th of `epoch`, which is not looked at where the sequence does not know its
/// epochs.
template <sequence S>
bool read_element(const S& values, [[maybe_unused]] std::uint64_t epoch, std::size_t i,
                  sequence_value_t<S>& value) {
  if constexpr (epoch_sequence<S>) {
    return fill_from(values.element(epoch, i), value);
  } else {
    return fill_from(values[i], value);
  }
}

namespace detail {

template <class S>
concept has_state = requires(const S& values) {
  { values.state() } -> std::same_as<sequence_state>;
};

template <class S>
concept has_seed = requires(const S& values) {
  { values.seed() } -> std::convertible_to<std::uint64_t>;
};

}  // namespace detail

/// Where the sequence stands between two epochs: its `state()` where it has one (every adaptor has),
/// else its `seed()` and `epoch()` where it has these, and 0.
template <sequence S>
[[nodiscard]] sequence_state state_of(const S& values) {
  if constexpr (detail::has_state<S>) {
    return values.state();
  } else {
    sequence_state state;
    if constexpr (detail::has_seed<S>) state.seed = values.seed();
    if constexpr (epoch_sequence<S>) state.epoch = values.epoch();
    return state;
  }
}

namespace detail {

/// The place of one value, made once and filled again and again: a plain value.
template <class S>
class value_place {
  static_assert(std::default_initializable<sequence_value_t<S>>,
                "a value that cannot be made from nothing needs storage: see planned_sequence");

 public:
  static constexpr std::size_t bytes(const S& /*values*/) noexcept { return 0; }

  template <class Arena>
  value_place(const S& /*values*/, Arena& /*memory*/) {}

  [[nodiscard]] sequence_value_t<S>& get() noexcept { return value_; }
  void clear() noexcept {}

 private:
  sequence_value_t<S> value_{};
};

/// One whose memory is an arena's. Does not move, since a value may refer to its storage.
template <planned_sequence S>
class value_place<S> {
 public:
  /// What a place takes in an arena.
  static std::size_t bytes(const S& values) { return values.storage_bytes(1); }

  template <class Arena>
  value_place(const S& values, Arena& memory)
      : storage_(values.make_storage(memory, 1)), value_(storage_[0]) {}
  value_place(const value_place&) = delete;
  value_place& operator=(const value_place&) = delete;
  ~value_place() = default;

  [[nodiscard]] sequence_value_t<S>& get() noexcept { return value_; }
  void clear() {
    if constexpr (batch_storage<sequence_storage_t<S>>) storage_.clear();
  }

 private:
  sequence_storage_t<S> storage_;
  decltype(std::declval<sequence_storage_t<S>&>()[0]) value_;  // a reference where [] gives one
};

}  // namespace detail

/// Goes through one epoch. An input iterator that has the memory of the one value that it shows; at the
/// epoch's end it calls `on_epoch_end()`. Refers to the sequence.
template <sequence S>
class element_iterator {
 public:
  using value_type = sequence_value_t<S>;
  using difference_type = std::ptrdiff_t;
  using iterator_concept = std::input_iterator_tag;

  /// Takes the memory and reads the first value. Throws what the sequence throws.
  explicit element_iterator(S& values) : loop_(std::make_unique<loop>(values)) { loop_->advance(); }

  /// The value, until the next step.
  [[nodiscard]] value_type& operator*() const noexcept { return loop_->place.get(); }
  /// Throws what the sequence throws; a further step goes on behind the value that failed.
  element_iterator& operator++() {
    loop_->advance();
    return *this;
  }
  void operator++(int) { ++*this; }
  friend bool operator==(const element_iterator& iterator, std::default_sentinel_t /*end*/) {
    return iterator.loop_->done;
  }

 private:
  struct loop {
    explicit loop(S& its_values)
        : values(its_values),
          size(static_cast<std::size_t>(its_values.size())),
          next(static_cast<std::size_t>(state_of(std::as_const(its_values)).batch)),
          memory(detail::value_place<S>::bytes(its_values)),
          place(its_values, memory) {}

    void advance() {
      while (next < size) {
        place.clear();
        if (read_element(std::as_const(values), next++, place.get())) return;
      }
      done = true;
      values.on_epoch_end();
    }

    S& values;
    std::size_t size;
    std::size_t next;
    arena<host_resource> memory;
    detail::value_place<S> place;
    bool done = false;
  };

  std::unique_ptr<loop> loop_;
};

/// One epoch of a sequence for range-for: `for (auto& value : elements(values))`. Values that are
/// skipped are left out. The adaptors are such ranges themselves. Owns what it is given by value.
template <class S>
class element_range {
 public:
  explicit element_range(S&& values) : values_(std::forward<S>(values)) {}

  [[nodiscard]] auto begin() { return element_iterator<std::remove_reference_t<S>>(values_); }
  [[nodiscard]] static std::default_sentinel_t end() noexcept { return {}; }

 private:
  S values_;
};

/// See `element_range`.
template <class S>
requires(sequence<std::remove_reference_t<S>>) [[nodiscard]] element_range<S> elements(S&& values) {
  return element_range<S>(std::forward<S>(values));
}

/// Something to be applied to a sequence with |. Adaptors can be joined by | before there is a sequence.
template <class Apply>
struct sequence_adaptor {
  explicit sequence_adaptor(Apply its_apply) : apply(std::move(its_apply)) {}

  Apply apply;  // called with the sequence
};

/// Applies the adaptor. What it makes owns a sequence given by value, and refers to one that has a name.
template <class S, class Apply>
requires(sequence<std::remove_reference_t<S>>) [[nodiscard]] auto operator|(
    S&& values, sequence_adaptor<Apply> adaptor) {
  return adaptor.apply(std::forward<S>(values));
}

/// Both, one after the other.
template <class First, class Second>
[[nodiscard]] auto operator|(sequence_adaptor<First> first, sequence_adaptor<Second> second) {
  return sequence_adaptor{[first = std::move(first), second = std::move(second)]<class S>(
                              S&& values) { return std::forward<S>(values) | first | second; }};
}

template <class Base>
class resumed_sequence;

namespace detail {

template <class S>
inline constexpr bool is_resumed = false;
template <class Base>
inline constexpr bool is_resumed<resumed_sequence<Base>> = true;

/// The i-th of an adaptor's epoch.
template <class Adapted>
class adapted_element {
 public:
  adapted_element(const Adapted& values, std::uint64_t epoch, std::size_t i) noexcept
      : values_(&values), epoch_(epoch), i_(i) {}

  bool operator()(typename Adapted::value_type& value) const {
    return values_->read(epoch_, i_, value);
  }

 private:
  const Adapted* values_;
  std::uint64_t epoch_;
  std::size_t i_;
};

}  // namespace detail

/// What the adaptors have in common: a base for classes that are sequences over another one (`Base`, or
/// `Base&` where it is only referred to). Knows epochs where the other does, and has planned memory
/// where the other has. `Adapted` derives from it and has `value_type`, `size()` and `read(epoch, i,
/// value)`, which fills the value and returns false where it is to be skipped.
template <class Adapted, class Base>
class adapted_sequence {
 public:
  /// The sequence below.
  using base_type = std::remove_reference_t<Base>;
  static_assert(sequence<base_type>);
  static_assert(!detail::is_resumed<base_type>,
                "resume_from counts what prefetch gives: it comes last, just before it");

  explicit adapted_sequence(Base&& base) : base_(std::forward<Base>(base)) {}

  /// The sequence below.
  [[nodiscard]] const base_type& base() const noexcept { return base_; }

  [[nodiscard]] auto operator[](std::size_t i) const {
    return detail::adapted_element<Adapted>(adapted(), state().epoch, i);
  }
  [[nodiscard]] auto element(std::uint64_t epoch, std::size_t i) const
      requires(epoch_sequence<base_type>) {
    return detail::adapted_element<Adapted>(adapted(), epoch, i);
  }
  [[nodiscard]] std::uint64_t epoch() const requires(epoch_sequence<base_type>) {
    return base_.epoch();
  }
  void set_epoch(std::uint64_t epoch) requires(epoch_sequence<base_type>) {
    base_.set_epoch(epoch);
  }
  void on_epoch_end() {
    base_.on_epoch_end();
    ++epochs_;
  }
  /// Its seed and epoch; epochs of a sequence that does not know its own are counted here.
  [[nodiscard]] sequence_state state() const {
    sequence_state state = state_of(base());
    if constexpr (!epoch_sequence<base_type> && !detail::has_state<base_type>) {
      state.epoch = epochs_;
    }
    return state;
  }

  [[nodiscard]] std::size_t storage_bytes(std::size_t n) const
      requires(planned_sequence<base_type>) {
    return base_.storage_bytes(n);
  }
  template <class Arena>
  [[nodiscard]] auto make_storage(Arena& memory, std::size_t n) const
      requires(planned_sequence<base_type>) {
    return base_.make_storage(memory, n);
  }

  /// One epoch, see `element_range`.
  [[nodiscard]] auto begin() { return element_iterator<Adapted>(static_cast<Adapted&>(*this)); }
  [[nodiscard]] static std::default_sentinel_t end() noexcept { return {}; }

 protected:
  [[nodiscard]] std::size_t base_size() const { return static_cast<std::size_t>(base_.size()); }

 private:
  [[nodiscard]] const Adapted& adapted() const noexcept {
    return static_cast<const Adapted&>(*this);
  }

  Base base_;
  std::uint64_t epochs_ = 0;  // that ended
};

}  // namespace vggload
