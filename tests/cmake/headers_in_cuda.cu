// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <vggload/vggload.hpp>

int main() { return static_cast<int>(vggload::vgg16::parameter_count() % 2); }
