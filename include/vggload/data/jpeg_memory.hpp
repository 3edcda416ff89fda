// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>  // jpeglib.h needs it first
#include <cstring>
#include <limits>

#include <jpeglib.h>

#include <vggload/core/checked.hpp>
#include <vggload/data/c_library_call.hpp>
#include <vggload/data/scratch.hpp>

namespace vggload::detail {

/// Gives libjpeg its memory from a `scratch`, where its own way is malloc and free for each image. Rows begin at a
/// multiple of 64 bytes and are a multiple of that long, which the library's vector code counts on; arrays that it
/// would move to a file lie in memory whole.
class jpeg_memory : public jpeg_memory_mgr {
 public:
  /// The functions find this object by `cinfo->mem`.
  explicit jpeg_memory(c_library_call& call) : jpeg_memory_mgr{}, call_(call) {
    alloc_small = [](j_common_ptr info, int, std::size_t bytes) {
      return of(info).allocate(bytes);
    };
    alloc_large = alloc_small;
    alloc_sarray = [](j_common_ptr info, int, JDIMENSION samples, JDIMENSION rows) {
      return of(info).allocate_rows<JSAMPARRAY>(samples, rows);
    };
    alloc_barray = [](j_common_ptr info, int, JDIMENSION blocks, JDIMENSION rows) {
      return of(info).allocate_rows<JBLOCKARRAY>(blocks, rows);
    };
    request_virt_sarray = [](j_common_ptr info, int, boolean zeroed, JDIMENSION samples,
                             JDIMENSION rows, JDIMENSION) {
      return of(info).request<jvirt_sarray_ptr, JSAMPARRAY>(zeroed, samples, rows);
    };
    request_virt_barray = [](j_common_ptr info, int, boolean zeroed, JDIMENSION blocks,
                             JDIMENSION rows, JDIMENSION) {
      return of(info).request<jvirt_barray_ptr, JBLOCKARRAY>(zeroed, blocks, rows);
    };
    realize_virt_arrays = [](j_common_ptr) {};  // they are when they are asked for
    access_virt_sarray = [](j_common_ptr info, jvirt_sarray_ptr array, JDIMENSION first,
                            JDIMENSION count,
                            boolean) { return of(info).access<JSAMPARRAY>(array, first, count); };
    access_virt_barray = [](j_common_ptr info, jvirt_barray_ptr array, JDIMENSION first,
                            JDIMENSION count,
                            boolean) { return of(info).access<JBLOCKARRAY>(array, first, count); };
    free_pool = [](j_common_ptr, int) {};  // all goes when the scratch is reset
    self_destruct = [](j_common_ptr) {};
    max_alloc_chunk = std::numeric_limits<long>::max();
  }

  /// Where the memory of the next image comes from.
  void use(scratch& memory) noexcept { memory_ = &memory; }

 private:
  /// What stands behind libjpeg's opaque pointers to virtual arrays.
  template <class Rows>
  struct whole_array {
    Rows rows;
    JDIMENSION row_count;
    std::size_t row_bytes;
    JDIMENSION zeroed_rows;  // so many are defined: they are zeroed when they are first asked for
  };

  static jpeg_memory& of(j_common_ptr info) noexcept {
    return *static_cast<jpeg_memory*>(info->mem);
  }

  void* allocate(std::uint64_t bytes) noexcept {
    void* const address = call_.allocate(*memory_, bytes);
    if (address == nullptr) call_.leave();
    return address;
  }

  /// Rows is JSAMPARRAY or JBLOCKARRAY: a pointer to pointers to the rows. The sizes cannot overflow: a row
  /// has at most 2^16 samples, or blocks of 128 bytes, for each component, and there are at most 2^16.
  template <class Rows>
  static std::size_t row_bytes(JDIMENSION elements) noexcept {
    constexpr std::size_t element_bytes = sizeof(**Rows{});
    return (elements * element_bytes + scratch::alignment - 1) / scratch::alignment *
           scratch::alignment;
  }
  template <class Rows>
  Rows allocate_rows(JDIMENSION elements, JDIMENSION count) noexcept {
    const std::size_t bytes = row_bytes<Rows>(elements);
    const auto rows = static_cast<Rows>(allocate(count * sizeof(void*)));
    // One row's end may be written past by less than a vector: what lies behind the last is ours too.
    auto* const storage = static_cast<std::byte*>(allocate(bytes * count + scratch::alignment));
    for (JDIMENSION y = 0; y < count; ++y) {
      rows[y] = reinterpret_cast<decltype(+*rows)>(storage + y * bytes);
    }
    return rows;
  }

  template <class Pointer, class Rows>
  Pointer request(boolean zeroed, JDIMENSION elements, JDIMENSION count) noexcept {
    auto* const array = static_cast<whole_array<Rows>*>(allocate(sizeof(whole_array<Rows>)));
    *array = {allocate_rows<Rows>(elements, count), count, row_bytes<Rows>(elements),
              zeroed != FALSE ? 0 : count};
    return reinterpret_cast<Pointer>(array);
  }
  template <class Rows>
  Rows access(void* pointer, JDIMENSION first, JDIMENSION count) noexcept {
    auto& array = *static_cast<whole_array<Rows>*>(pointer);
    if (!in_bounds(first, count, array.row_count)) {
      call_.leave("libjpeg asked for rows that are not there");
    }
    const JDIMENSION end = first + count;
    for (; array.zeroed_rows < end; ++array.zeroed_rows) {
      std::memset(static_cast<void*>(array.rows[array.zeroed_rows]), 0, array.row_bytes);
    }
    return array.rows + first;
  }

  c_library_call& call_;
  scratch* memory_ = nullptr;
};

}  // namespace vggload::detail
