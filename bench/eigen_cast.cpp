// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cstddef>

#include <Eigen/Core>

#include <vggload/core/dtype.hpp>

#include "other_conversions.hpp"

namespace bench {

namespace {

template <class From, class To>
void cast(const std::byte* source, std::byte* destination, std::size_t count) {
  using from_array = Eigen::Map<const Eigen::Array<From, Eigen::Dynamic, 1>, Eigen::Aligned64>;
  using to_array = Eigen::Map<Eigen::Array<To, Eigen::Dynamic, 1>, Eigen::Aligned64>;
  const auto n = static_cast<Eigen::Index>(count);
  to_array(reinterpret_cast<To*>(destination), n) =
      from_array(reinterpret_cast<const From*>(source), n).template cast<To>();
}

template <class From>
conversion_function to(vggload::dtype type) {
  switch (type) {
    case vggload::dtype::f16: return &cast<From, Eigen::half>;
    case vggload::dtype::bf16: return &cast<From, Eigen::bfloat16>;
    case vggload::dtype::f32: return &cast<From, float>;
    case vggload::dtype::f64: return &cast<From, double>;
    default: return nullptr;
  }
}

}  // namespace

conversion_function find_eigen_cast(vggload::dtype from, vggload::dtype type) {
  switch (from) {
    case vggload::dtype::f16: return to<Eigen::half>(type);
    case vggload::dtype::bf16: return to<Eigen::bfloat16>(type);
    case vggload::dtype::f32: return to<float>(type);
    case vggload::dtype::f64: return to<double>(type);
    default: return nullptr;
  }
}

}  // namespace bench
