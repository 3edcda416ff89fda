// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// libhdf5 itself forgets some memory where it gives up on a damaged file. What the library
/// allocates is looked at as ever. LeakSanitizer calls this, if it is there.
extern "C" [[gnu::used]] inline const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
