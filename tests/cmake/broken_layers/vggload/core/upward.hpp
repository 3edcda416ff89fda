// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Breaks the layers on purpose: layers_test_finds_a_breach.
#include <vggload/io/input_file.hpp>
