// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What the sanitizers should not tell of libhdf5. What the library allocates is looked at as ever.

/// It forgets some memory where it gives up on a damaged file.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

/// It asks for as much memory as a number claims, and goes back where there is none.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
