// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/io/little_endian.hpp>
#include <vggload/io/mapped_file.hpp>

namespace vggload::detail {

enum class pickle_kind : std::uint8_t {
  absent,  // no value at all
  none,
  boolean,
  integer,
  other_number,  // a float, or an integer beyond 64 bits: nobody here needs its value
  text,
  global,
  tuple,
  list,
  dict,
  storage,  // what a persistent id stands for
  object,   // what a global was called for
};

/// One value of a pickle: itself where it is small, else the place in the `pickle` where it lies.
/// Copies of a list, a dict or an object mean the same one, as in Python.
struct pickle_value {
  pickle_kind kind = pickle_kind::absent;
  std::uint8_t depth = 0;    // how deep a tuple or an object nests
  std::uint32_t count = 0;   // items of a tuple or of a persistent id, bytes of a text
  std::uint64_t number = 0;  // an integer (two's complement), a global's number, or a place

  [[nodiscard]] bool is(pickle_kind what) const noexcept { return kind == what; }
};

/// Values that lie behind one another in a `pickle`, where they take 8 bytes each.
class pickle_items {
 public:
  class iterator {
   public:
    iterator(const pickle_items& items, std::size_t index) : items_(&items), index_(index) {}
    [[nodiscard]] pickle_value operator*() const { return (*items_)[index_]; }
    iterator& operator++() {
      ++index_;
      return *this;
    }
    [[nodiscard]] bool operator==(const iterator& other) const = default;

   private:
    const pickle_items* items_;
    std::size_t index_;
  };

  pickle_items(std::span<const std::uint64_t> packed, std::span<const std::uint64_t> large_integers)
      : packed_(packed), large_integers_(large_integers) {}

  [[nodiscard]] std::size_t size() const noexcept { return packed_.size(); }
  [[nodiscard]] iterator begin() const { return {*this, 0}; }
  [[nodiscard]] iterator end() const { return {*this, size()}; }
  [[nodiscard]] pickle_value operator[](std::size_t index) const {
    const std::uint64_t bits = packed_[index];
    const auto kind = static_cast<pickle_kind>(bits & 0xFU);
    if (kind == pickle_kind::integer) {
      // The sign is kept.
      return {kind, 0, 0, static_cast<std::uint64_t>(static_cast<std::int64_t>(bits) >> 4U)};
    }
    if (kind == large_integer) {
      return {pickle_kind::integer, 0, 0, large_integers_[static_cast<std::size_t>(bits >> 4U)]};
    }
    return {kind, static_cast<std::uint8_t>(bits >> 4U & 0x7FU),
            static_cast<std::uint32_t>(bits >> 11U & 0xFFFFFFU), bits >> 35U};
  }

  /// A value in 8 bytes; `large_integers` takes what does not fit.
  [[nodiscard]] static std::uint64_t pack(const pickle_value& value,
                                          std::vector<std::uint64_t>& large_integers) {
    const auto with_kind = [](std::uint64_t number, pickle_kind kind) {
      return number << 4U | static_cast<std::uint64_t>(kind);
    };
    if (value.kind == pickle_kind::integer) {
      const std::uint64_t bits = with_kind(value.number, value.kind);
      if (static_cast<std::int64_t>(bits) >> 4U == static_cast<std::int64_t>(value.number)) {
        return bits;
      }
      large_integers.push_back(value.number);
      return with_kind(large_integers.size() - 1, large_integer);
    }
    return value.number << 35U | std::uint64_t{value.count} << 11U |
           with_kind(value.depth, value.kind);
  }

 private:
  static constexpr auto large_integer = static_cast<pickle_kind>(15);

  std::span<const std::uint64_t> packed_;
  std::span<const std::uint64_t> large_integers_;
};

/// An object: `function`, a global, was called for it. Nothing has called it here.
struct pickle_object {
  pickle_value function;
  pickle_value arguments;  // a tuple
  pickle_value state;      // what BUILD gave it, or absent
};

/// One pickle of protocol 2, taken apart. It executes nothing: a call is noted down, and a global
/// that the caller does not know is an error that names it. Format: Python's `pickletools`; of its
/// opcodes those that `torch.save` needs for a training checkpoint, any other is refused.
///
/// Values lie in flat tables, which nothing walks recursively and which have a limit. What is shared
/// is there once, so a walk over all values is linear.
class pickle {
 public:
  /// The number of a global such as "torch.FloatStorage", or nothing for one that is refused.
  /// `collections.OrderedDict` is known anyhow.
  using global_finder = std::optional<std::uint64_t> (*)(std::string_view name);

  /// Reads the pickle that begins at `begin` and lies within [begin, end) of the file. `subject` is
  /// what messages call it. Throws `io_error` and `format_error`.
  pickle(const mapped_file& file, std::uint64_t begin, std::uint64_t end, std::string subject,
         global_finder find_global)
      : file_(file),
        begin_(begin),
        size_(end - begin),
        subject_(std::move(subject)),
        find_global_(find_global) {
    if (u8() != 0x80) fail("does not begin with a protocol, as pickles since protocol 2 do");
    // Protocol 3 has no opcode more for what a checkpoint holds.
    if (const auto protocol = u8(); protocol != 2 && protocol != 3) {
      fail("is of protocol " + std::to_string(protocol) + "; 2, torch.save's default, is read");
    }
    while (step()) {
    }
  }

  [[nodiscard]] const pickle_value& root() const noexcept { return root_; }
  /// Bytes from the first opcode to the last.
  [[nodiscard]] std::uint64_t bytes() const noexcept { return position_; }
  /// The persistent ids (storages), in the order of the pickle.
  [[nodiscard]] std::span<const pickle_value> storages() const noexcept { return storages_; }

  [[nodiscard]] std::string_view text(const pickle_value& text) const noexcept {
    return {reinterpret_cast<const char*>(bytes_.data()) + text.number, text.count};
  }
  /// Of a tuple or a storage.
  [[nodiscard]] pickle_items items(const pickle_value& tuple) const noexcept {
    return slots(static_cast<std::size_t>(tuple.number), tuple.count);
  }
  [[nodiscard]] pickle_object object(const pickle_value& object) const noexcept {
    const pickle_items parts = slots(static_cast<std::size_t>(object.number), 3);
    return {parts[0], parts[1], parts[2]};
  }
  /// Calls `visit(key, value)` for each entry of a dict, in the order in which they were set. A key
  /// that was set twice is there twice.
  template <class Visit>
  void for_each_entry(const pickle_value& dict, Visit&& visit) const {
    const container& entries = containers_[static_cast<std::size_t>(dict.number)];
    for (std::uint32_t i = entries.first_run; i != no_run; i = runs_[i].next) {
      const pickle_items items = slots(runs_[i].begin, runs_[i].count);
      for (std::size_t at = 0; at < items.size(); at += 2) visit(items[at], items[at + 1]);
    }
  }
  /// That of the first entry of a dict, if it has one.
  [[nodiscard]] std::optional<pickle_value> first_key(const pickle_value& dict) const {
    const std::uint32_t first = containers_[static_cast<std::size_t>(dict.number)].first_run;
    if (first == no_run) return std::nullopt;
    return slots(runs_[first].begin, 1)[0];
  }
  /// Calls `visit(item)` for each item of a list.
  template <class Visit>
  void for_each_item(const pickle_value& list, Visit&& visit) const {
    const container& items = containers_[static_cast<std::size_t>(list.number)];
    for (std::uint32_t i = items.first_run; i != no_run; i = runs_[i].next) {
      // Anew each time: `visit` may add to the table.
      for (std::uint32_t at = 0; at < runs_[i].count; ++at)
        visit(slots(runs_[i].begin, runs_[i].count)[at]);
    }
  }

 private:
  // Limits, all far above what a state dict needs, and such that what a file claims takes no more
  // than 16 MiB before it is refused. A tensor takes some 30 values, 7 memo entries and 90 bytes:
  // these do for 5,000 parameters with the four tensors that AdamW keeps of each at most.
  static constexpr std::uint64_t max_bytes = std::uint64_t{4} << 20U;
  static constexpr std::uint64_t max_values = 750'000;
  static constexpr std::uint64_t max_memo = 300'000;
  static constexpr std::size_t max_stack = 65'536;
  static constexpr std::uint8_t max_depth = 100;
  static constexpr std::size_t max_name_bytes = 256;
  static constexpr std::size_t read_bytes = std::size_t{64} << 10U;
  static constexpr std::size_t most_read_bytes = static_cast<std::size_t>(max_bytes) + read_bytes;
  static constexpr std::uint32_t no_run = UINT32_MAX;
  /// An absent value as it is packed.
  static constexpr std::uint64_t empty = 0;
  /// The global that is known here.
  static constexpr std::uint64_t ordered_dict = 0xFF00;

  /// A list or a dict (keys and values in turn): a chain of runs, one for each time it grew.
  struct container {
    std::uint32_t first_run = no_run;
    std::uint32_t last_run = no_run;
    std::uint8_t depth = 0;
  };
  struct run {
    std::uint32_t begin;  // in `slots_`
    std::uint32_t count;
    std::uint32_t next;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw format_error(printable(file_.path()) + ": " + subject_ + " " + what);
  }
  [[noreturn]] void fail_here(const std::string& what) const {
    fail(what + " (at byte " + std::to_string(opcode_at_) + ")");
  }

  /// The next bytes; valid until more are taken.
  [[nodiscard]] std::span<const std::byte> take(std::uint64_t count) {
    if (!in_bounds(position_, count, bytes_.size())) read_more(count);
    const auto taken = std::span(bytes_).subspan(static_cast<std::size_t>(position_),
                                                 static_cast<std::size_t>(count));
    position_ += count;
    return taken;
  }
  void read_more(std::uint64_t count) {
    if (!in_bounds(position_, count, size_)) {
      fail("is cut: " + std::to_string(count) + " bytes at byte " + std::to_string(position_) +
           " are past its end, " + std::to_string(size_));
    }
    if (!in_bounds(position_, count, max_bytes)) {
      fail("has more than the " + std::to_string(max_bytes) + " bytes that are allowed");
    }
    const std::size_t old = bytes_.size();
    const auto size = static_cast<std::size_t>(
        std::max(position_ + count, std::min<std::uint64_t>(old + read_bytes, size_)));
    // What follows the pickle may be read too, but never more than its own limit and one piece.
    if (size > bytes_.capacity()) bytes_.reserve(std::min(2 * size, most_read_bytes));
    bytes_.resize(size);
    file_.read_at(begin_ + old, std::span(bytes_).subspan(old));
  }
  [[nodiscard]] std::uint8_t u8() { return std::to_integer<std::uint8_t>(take(1)[0]); }
  [[nodiscard]] std::uint16_t u16() { return load_little_endian<std::uint16_t>(take(2)); }
  [[nodiscard]] std::uint32_t u32() { return load_little_endian<std::uint32_t>(take(4)); }

  /// Takes in the next opcode. False at the end.
  bool step() {
    opcode_at_ = position_;
    const std::uint8_t opcode = u8();
    switch (opcode) {
      case 'N': push({pickle_kind::none}); break;
      case 0x88: push({pickle_kind::boolean, 0, 0, 1}); break;
      case 0x89: push({pickle_kind::boolean, 0, 0, 0}); break;
      case 'K': push_integer(u8()); break;
      case 'M': push_integer(u16()); break;
      case 'J': push_integer(static_cast<std::int32_t>(u32())); break;
      case 0x8A: push_long(u8()); break;
      case 'G':
        (void)take(8);
        push({pickle_kind::other_number});
        break;
      case 'X': push_text(u32()); break;
      case 'U': push_text(u8()); break;
      case 'c': push_global(); break;
      case ']': push_container(pickle_kind::list); break;
      case '}': push_container(pickle_kind::dict); break;
      case '(':
        if (marks_.size() == max_depth) fail_too_deep();
        marks_.push_back(stack_.size());
        break;
      case ')': push_tuple(0); break;
      case 0x85: push_tuple(1); break;
      case 0x86: push_tuple(2); break;
      case 0x87: push_tuple(3); break;
      case 't': push_tuple(pop_mark()); break;
      case 'a': append(1); break;
      case 'e': append(pop_mark()); break;
      case 's': set_items(2); break;
      case 'u': set_items(pop_mark()); break;
      case 'q': put(u8()); break;
      case 'r': put(u32()); break;
      case 'h': get(u8()); break;
      case 'j': get(u32()); break;
      case 'Q': push_storage(); break;
      case 'R': reduce(); break;
      case 'b': build(); break;
      case '.':
        root_ = pop();
        if (!stack_.empty() || !marks_.empty()) fail_here("ends with more than one value");
        return false;
      default: fail_opcode(opcode);
    }
    // What lies in tables that grow by copies counts more.
    const std::uint64_t values = slots_.size() + 4 * large_integers_.size() +
                                 2 * (runs_.size() + containers_.size() + storages_.size());
    if (values > max_values) {
      fail_here("has " + std::to_string(values) + " values, more than the " +
                std::to_string(max_values) + " that are allowed");
    }
    return true;
  }

  [[nodiscard]] pickle_items slots(std::size_t begin, std::size_t count) const noexcept {
    return {std::span(slots_).subspan(begin, count), large_integers_};
  }
  void add_slots(std::span<const pickle_value> values) {
    // Once and for all, as a table that grows by copies is there twice meanwhile.
    constexpr std::size_t few = 16'384;
    if (slots_.size() + values.size() > slots_.capacity()) {
      slots_.reserve(slots_.size() + values.size() <= few
                         ? few
                         : static_cast<std::size_t>(max_values) + max_stack);
    }
    for (const pickle_value& value : values) {
      slots_.push_back(pickle_items::pack(value, large_integers_));
    }
  }

  [[noreturn]] void fail_opcode(std::uint8_t opcode) const {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text = "has opcode 0x";
    text += digits[opcode >> 4U];
    text += digits[opcode & 0xFU];
    if (opcode > ' ' && opcode < 0x7F) {
      text += " ('";
      text += static_cast<char>(opcode);
      text += "')";
    }
    fail_here(text + ", which no state dict needs");
  }
  [[noreturn]] void fail_too_deep() const {
    fail_here("nests deeper than the " + std::to_string(max_depth) + " levels that are allowed");
  }

  void push(const pickle_value& value) {
    if (stack_.size() == max_stack) {
      fail_here("has more than the " + std::to_string(max_stack) +
                " values on the stack that are allowed");
    }
    stack_.push_back(value);
  }
  /// The `count` values on top, which stay there. None lies below the last mark.
  [[nodiscard]] std::span<const pickle_value> top(std::size_t count) const {
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() - floor < count) fail_here("takes a value that is not on the stack");
    return std::span(stack_).last(count);
  }
  pickle_value pop() {
    const pickle_value value = top(1)[0];
    stack_.pop_back();
    return value;
  }
  /// How many values lie above the last mark, which goes away.
  [[nodiscard]] std::size_t pop_mark() {
    if (marks_.empty()) fail_here("takes a mark that is not there");
    const std::size_t count = stack_.size() - marks_.back();
    marks_.pop_back();
    return count;
  }

  void push_integer(std::int64_t value) {
    push({pickle_kind::integer, 0, 0, static_cast<std::uint64_t>(value)});
  }
  void push_long(std::uint8_t count) {
    const auto digits = take(count);
    if (count > 8) return push({pickle_kind::other_number});
    // Two's complement, of any length.
    const bool negative = count > 0 && (digits.back() & std::byte{0x80}) != std::byte{0};
    std::uint64_t value = negative ? UINT64_MAX : 0;
    for (std::size_t i = count; i-- > 0;) {
      value = value << 8U | std::to_integer<std::uint64_t>(digits[i]);
    }
    push({pickle_kind::integer, 0, 0, value});
  }
  void push_text(std::uint32_t count) {
    const std::uint64_t begin = position_;
    (void)take(count);
    push({pickle_kind::text, 0, count, begin});
  }
  [[nodiscard]] std::string take_line() {
    std::string line;
    for (;;) {
      const char c = static_cast<char>(u8());
      if (c == '\n') return line;
      if (line.size() == max_name_bytes) {
        fail_here("has a global's name of more than " + std::to_string(max_name_bytes) + " bytes");
      }
      line += c;
    }
  }
  void push_global() {
    std::string name = take_line();
    name += '.';
    name += take_line();
    const auto number = name == "collections.OrderedDict" ? ordered_dict : find_global_(name);
    if (!number) {
      fail_here("refers to " + in_quotes(name) +
                ", which is not executed: a state dict consists of tensors alone");
    }
    push({pickle_kind::global, 0, 0, *number});
  }
  void push_container(pickle_kind kind) {
    push({kind, 0, 0, containers_.size()});
    containers_.emplace_back();
  }
  void push_tuple(std::size_t count) {
    const auto items = top(count);
    const pickle_value tuple{pickle_kind::tuple, depth_above(items),
                             static_cast<std::uint32_t>(count), slots_.size()};
    add_slots(items);
    stack_.resize(stack_.size() - count);
    push(tuple);
  }
  void push_storage() {
    pickle_value id = pop();
    if (!id.is(pickle_kind::tuple)) fail_here("has a persistent id that is not a tuple");
    id.kind = pickle_kind::storage;
    // A tuple that is used again and again is noted once.
    if (storages_.empty() || storages_.back().number < id.number) storages_.push_back(id);
    push(id);
  }

  [[nodiscard]] std::uint8_t depth_of(const pickle_value& value) const {
    const bool contains = value.is(pickle_kind::list) || value.is(pickle_kind::dict);
    return contains ? containers_[static_cast<std::size_t>(value.number)].depth : value.depth;
  }
  /// The depth of what is to contain these values.
  [[nodiscard]] std::uint8_t depth_above(std::span<const pickle_value> values) const {
    std::uint8_t depth = 0;
    for (const pickle_value& value : values) depth = std::max(depth, depth_of(value));
    if (depth == max_depth) fail_too_deep();
    return static_cast<std::uint8_t>(depth + 1U);
  }
  /// Puts values at the end of a list or a dict.
  void extend(const pickle_value& target, std::span<const pickle_value> values) {
    if (values.empty()) return;
    container& grown = containers_[static_cast<std::size_t>(target.number)];
    grown.depth = std::max(grown.depth, depth_above(values));
    const auto count = static_cast<std::uint32_t>(values.size());
    if (grown.last_run != no_run &&
        runs_[grown.last_run].begin + runs_[grown.last_run].count == slots_.size()) {
      runs_[grown.last_run].count += count;
    } else {
      const auto added = static_cast<std::uint32_t>(runs_.size());
      (grown.last_run == no_run ? grown.first_run : runs_[grown.last_run].next) = added;
      grown.last_run = added;
      runs_.push_back({static_cast<std::uint32_t>(slots_.size()), count, no_run});
    }
    add_slots(values);
  }
  void append(std::size_t count) {
    const auto values = top(count + 1);
    if (!values[0].is(pickle_kind::list)) fail_here("appends to what is not a list");
    extend(values[0], values.subspan(1));
    stack_.resize(stack_.size() - count);
  }
  void set_items(std::size_t count) {
    const auto values = top(count + 1);
    if (!values[0].is(pickle_kind::dict)) fail_here("sets an item of what is not a dict");
    if (count % 2 != 0) fail_here("sets a key without a value");
    extend(values[0], values.subspan(1));
    stack_.resize(stack_.size() - count);
  }

  void put(std::uint64_t index) {
    if (index >= max_memo) {
      fail_here("memoises value " + std::to_string(index) + ", more than the " +
                std::to_string(max_memo) + " that are allowed");
    }
    const pickle_value& value = top(1)[0];
    if (index >= memo_.size()) {
      constexpr std::size_t few = 8'192;
      memo_.reserve(index < few ? few : static_cast<std::size_t>(max_memo));
      memo_.resize(static_cast<std::size_t>(index) + 1, empty);
    }
    memo_[static_cast<std::size_t>(index)] = pickle_items::pack(value, large_integers_);
  }
  void get(std::uint64_t index) {
    if (index >= memo_.size() || memo_[static_cast<std::size_t>(index)] == empty) {
      fail_here("takes value " + std::to_string(index) + " from the memo, which has none there");
    }
    push(pickle_items({&memo_[static_cast<std::size_t>(index)], 1}, large_integers_)[0]);
  }

  void reduce() {
    const pickle_value arguments = pop();
    const pickle_value function = pop();
    if (!function.is(pickle_kind::global)) fail_here("calls what is not a global");
    if (!arguments.is(pickle_kind::tuple)) fail_here("calls with what is not a tuple");
    if (function.number == ordered_dict) return make_ordered_dict(arguments);
    const pickle_value object{pickle_kind::object, depth_above({&arguments, 1}), 0, slots_.size()};
    add_slots(std::array{function, arguments, pickle_value()});
    push(object);
  }
  /// `OrderedDict()`, or `OrderedDict([[key, value], ...])` as Python 2 has it.
  void make_ordered_dict(const pickle_value& arguments) {
    const auto refuse = [this] {
      fail_here("makes an OrderedDict of what is not a list of pairs");
    };
    push_container(pickle_kind::dict);
    if (arguments.count == 0) return;
    const pickle_value pairs = items(arguments)[0];
    if (arguments.count > 1 || !pairs.is(pickle_kind::list)) refuse();
    const pickle_value dict = stack_.back();
    for_each_item(pairs, [&, this](pickle_value pair) {
      if (pair.is(pickle_kind::list)) {
        const container& list = containers_[static_cast<std::size_t>(pair.number)];
        // Python appends both at once.
        if (list.first_run == no_run || list.first_run != list.last_run) refuse();
        pair = {pickle_kind::tuple, 0, runs_[list.first_run].count, runs_[list.first_run].begin};
      }
      if (!pair.is(pickle_kind::tuple) || pair.count != 2) refuse();
      const std::array<pickle_value, 2> both{items(pair)[0], items(pair)[1]};
      extend(dict, both);
    });
  }
  void build() {
    const pickle_value state = pop();
    const pickle_value& target = top(1)[0];
    // A state dict's attribute `_metadata`: versions of modules.
    if (target.is(pickle_kind::dict)) return;
    if (!target.is(pickle_kind::object)) fail_here("gives a state to what has none");
    (void)depth_above({&state, 1});
    slots_[static_cast<std::size_t>(target.number) + 2] =
        pickle_items::pack(state, large_integers_);
  }

  const mapped_file& file_;
  std::uint64_t begin_;
  std::uint64_t size_;  // what the pickle has at most
  std::string subject_;
  global_finder find_global_;
  std::vector<std::byte> bytes_;  // those that were needed so far, and some more
  std::uint64_t position_ = 0;    // in them
  std::uint64_t opcode_at_ = 0;
  std::vector<pickle_value> stack_;
  std::vector<std::size_t> marks_;             // heights of the stack
  std::vector<std::uint64_t> memo_;            // packed, as are:
  std::vector<std::uint64_t> slots_;           // what tuples, lists, dicts and objects hold
  std::vector<std::uint64_t> large_integers_;  // of packed values
  std::vector<run> runs_;
  std::vector<container> containers_;
  std::vector<pickle_value> storages_;
  pickle_value root_;
};

}  // namespace vggload::detail
