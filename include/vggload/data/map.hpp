// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <utility>

#include <vggload/data/sequence.hpp>

namespace vggload {

namespace detail {

/// What values become: themselves where the function changes them in place.
template <class Function, class Value>
using mapped_value_t =
    std::conditional_t<std::is_void_v<std::invoke_result_t<const Function&, Value&>>, Value,
                       std::remove_cvref_t<std::invoke_result_t<const Function&, Value&>>>;

}  // namespace detail

/// A sequence whose values went through a function, see `map`.
template <class Base, class Function>
class mapped_sequence : public adapted_sequence<mapped_sequence<Base, Function>, Base> {
  using base_value = sequence_value_t<Base>;
  static_assert(std::invocable<const Function&, base_value&>,
                "map's function is called as const, from several threads, with a value&");
  static constexpr bool in_place =
      std::is_void_v<std::invoke_result_t<const Function&, base_value&>>;
  static_assert(in_place || !planned_sequence<std::remove_reference_t<Base>>,
                "values in planned memory are changed in place: the function must return void");

 public:
  using value_type = detail::mapped_value_t<Function, base_value>;

  mapped_sequence(Base&& base, Function function)
      : mapped_sequence::adapted_sequence(std::forward<Base>(base)),
        function_(std::move(function)) {}

  [[nodiscard]] std::size_t size() const { return this->base_size(); }

  [[nodiscard]] bool read(std::uint64_t epoch, std::size_t i, value_type& value) const {
    if constexpr (in_place) {
      if (!read_element(this->base(), epoch, i, value)) return false;
      std::invoke(function_, value);
    } else {
      base_value from{};
      if (!read_element(this->base(), epoch, i, from)) return false;
      value = std::invoke(function_, from);
    }
    return true;
  }

 private:
  Function function_;
};

/// Applies `function` to every value: in place where it takes a `value&` and returns void, else to what
/// it returns. (The latter makes a value for each call, and so allocates where making one does.) Called
/// from several threads at once where there are workers; what is skipped does not reach it.
template <class Function>
[[nodiscard]] auto map(Function function) {
  return sequence_adaptor{[function = std::move(function)]<class S>(S&& values) {
    return mapped_sequence<S, Function>(std::forward<S>(values), function);
  }};
}

}  // namespace vggload
