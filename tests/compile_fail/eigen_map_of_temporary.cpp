// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/core/dtype.hpp>
#include <vggload/interop/eigen.hpp>
#include <vggload/vgg16/load.hpp>

float largest() {
#ifdef MISTAKE
  const auto matrix = vggload::map_matrix<float>(
      vggload::vgg16::load("file", {.dtype = vggload::dtype::f32}).weights()["fc1"].weight);
#else
  const auto model = vggload::vgg16::load("file", {.dtype = vggload::dtype::f32});
  const auto matrix = vggload::map_matrix<float>(model.weights()["fc1"].weight);
#endif
  return matrix.maxCoeff();
}
