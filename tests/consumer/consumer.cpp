// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/vggload.hpp>

int main() {
  // Uses something of each layer that is not a template, so that it is linked.
  try {
    (void)vggload::vgg16::load("/nonexistent/vgg16.safetensors");
  } catch (const vggload::io_error& e) {
    return e.code() == std::errc::no_such_file_or_directory ? 0 : 1;
  }
  return 1;
}
