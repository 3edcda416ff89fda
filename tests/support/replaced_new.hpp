// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace test {

/// For a test that counts or fails what its whole program allocates: it defines these two, and all forms of operator new
/// and delete are theirs. nullptr: std::bad_alloc. Included by one translation unit. Not inlined: the compiler would see
/// that what came from new is given to free.
[[gnu::noinline]] void* allocate(std::size_t bytes, std::size_t alignment) noexcept;
[[gnu::noinline]] void release(void* memory) noexcept;

/// For their definitions: what `release` gives to std::free.
inline void* aligned_block(std::size_t bytes, std::size_t alignment) noexcept {
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

inline void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  void* const memory = allocate(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace test

// NOLINTBEGIN(misc-definitions-in-headers)
void* operator new(std::size_t bytes) { return test::allocate_or_throw(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return test::allocate_or_throw(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return test::allocate(bytes, 16);
}
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return test::allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { test::release(memory); }
void operator delete(void* memory, std::size_t) noexcept { test::release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { test::release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  test::release(memory);
}
// NOLINTEND(misc-definitions-in-headers)
