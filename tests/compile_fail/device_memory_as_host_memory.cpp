// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <span>

#include <vggload/memory/resource.hpp>

using vggload::memory_access;

#ifdef MISTAKE
constexpr auto access = memory_access::device;
#else
constexpr auto access = memory_access::host_and_device;
#endif

std::span<std::byte> bytes(vggload::memory_span<access> memory) { return memory; }
