// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>

#include <vggload/convert/health.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/shape.hpp>

namespace vggload {

/// The health of one tensor, with what a reader needs to know of it.
struct health_row {
  std::string name;
  dtype from;  // of the source, which the counts are about
  dtype to;
  vggload::shape shape;
  tensor_health health;
};

}  // namespace vggload
