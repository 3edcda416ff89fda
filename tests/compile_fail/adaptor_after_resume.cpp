// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/data/batch.hpp>
#include <vggload/data/resume.hpp>

struct numbers {
  using value_type = int;
  std::size_t size() const;
  int operator[](std::size_t i) const;
  void on_epoch_end();
};

auto resume(const vggload::sequence_state& state) {
#ifdef MISTAKE
  return numbers() | vggload::resume_from(state) | vggload::batch(2);
#else
  return numbers() | vggload::batch(2) | vggload::resume_from(state);
#endif
}
