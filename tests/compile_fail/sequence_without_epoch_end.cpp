// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/data/batch.hpp>

struct numbers {
  using value_type = int;
  std::size_t size() const;
  int operator[](std::size_t i) const;
#ifndef MISTAKE
  void on_epoch_end();
#endif
};

auto batches() { return numbers() | vggload::batch(2); }
