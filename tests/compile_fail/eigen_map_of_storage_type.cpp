// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/core/float16.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/interop/eigen.hpp>

long rows(const vggload::tensor_view& view) {
#ifdef MISTAKE
  return vggload::map_matrix<vggload::float16>(view).rows();
#else
  return vggload::map_matrix<Eigen::half>(view).rows();
#endif
}
