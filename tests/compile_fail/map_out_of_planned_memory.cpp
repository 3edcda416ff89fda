// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <span>

#include <vggload/data/map.hpp>

struct numbers {
  using value_type = int;
  std::size_t size() const;
  int operator[](std::size_t i) const;
  void on_epoch_end();
  std::size_t storage_bytes(std::size_t n) const;
  template <class Arena>
  std::span<int> make_storage(Arena& memory, std::size_t n) const;
};

auto doubled() {
#ifdef MISTAKE
  return numbers() | vggload::map([](int number) { return 2.0 * number; });
#else
  return numbers() | vggload::map([](int& number) { number *= 2; });
#endif
}
