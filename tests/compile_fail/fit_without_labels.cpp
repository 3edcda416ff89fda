// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/network/fit.hpp>

struct batch {
  std::span<const float> features() const;
#ifndef MISTAKE
  std::span<const float> labels() const;
#endif
  std::size_t size() const;
};

struct batches {
  using value_type = batch;
  std::size_t size() const;
  batch operator[](std::size_t i) const;
  void on_epoch_end();
};

void train(vggload::network::trainer& model) { vggload::network::fit(model, batches()); }
