// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <string>

#include <vggload/load/checkpoint.hpp>

namespace command {

/// Opens a file of any format that the library can read, its optional components included. In a
/// translation unit of its own: all readers together take their time to compile.
[[nodiscard]] vggload::checkpoint open_any(const std::string& path);

}  // namespace command
