// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/vgg16/load.hpp>

std::size_t layers() {
#ifdef MISTAKE
  return vggload::vgg16::load("file").weights().layers().size();
#else
  const auto model = vggload::vgg16::load("file");
  return model.weights().layers().size();
#endif
}
