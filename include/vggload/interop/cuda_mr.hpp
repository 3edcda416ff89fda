// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Opt-in: needs CUDA's headers and those of CCCL, which nvcc finds by itself; a host compiler is to
// be told where they are (the toolkit's include/cccl). It needs no nvcc. Beside these headers
// `using namespace vggload` makes the name `cuda` ambiguous, in nvcc's own text about kernels, too.

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include <cuda/version>

#if CCCL_VERSION < 3001000 && !defined(LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE)
#error "before CCCL 3.1, define LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE ahead of its headers"
#endif

#include <cuda/memory_resource>
#include <cuda/stream_ref>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

namespace detail {

template <class Source>
inline constexpr bool is_arena = false;
template <class Resource>
inline constexpr bool is_arena<arena<Resource>> = true;

/// A resource whose memory is ready in the order of a stream, such as `cuda::async_device_resource`.
template <class R>
concept stream_ordered_resource = memory_resource<R> &&
    requires(R& resource, void* address, std::size_t bytes, std::size_t alignment,
             ::cudaStream_t stream) {
  { resource.allocate(bytes, alignment, stream) } -> std::same_as<void*>;
  { resource.deallocate(address, bytes, alignment, stream) }
  noexcept->std::same_as<void>;
  resource.synchronize();
};

template <class Source>
struct access_of {
  static constexpr memory_access value = Source::access;
};
template <class Resource>
struct access_of<arena<Resource>> {
  static constexpr memory_access value = Resource::access;
};

}  // namespace detail

/// Lets RMM, Thrust, CUB and whatever else takes a `cuda::mr` resource allocate from one of ours: a
/// model of NVIDIA's concepts in both their spellings, that of CCCL up to 3.0 (`resource`,
/// `async_resource`) and that of 3.1 and later (`synchronous_resource`, `resource`).
///
/// `Source` is
///
/// - a `memory_resource`: a copy of the handle is kept, and all calls are passed on. The calls that
///   take a stream exist where it has them itself (`cuda::async_device_resource`); nothing else
///   would know when the work on a stream lets go of what is given back;
/// - an `arena`, which must stay where it is and live as long as this and everything that came from
///   it: each allocation is a piece with the name given here, in the ledger as well, and the budget
///   holds. Giving back keeps the memory until the arena goes, so no stream has to be waited for:
///   the calls that take one exist too. One thread at a time. The arena over a stream-ordered
///   resource is ready on other streams than that resource's only once they have waited for it.
///
/// Memory is accessible as the resource says. Thread safety is the resource's.
template <class Source>
requires detail::is_arena<Source> ||(memory_resource<Source>&& std::equality_comparable<Source>)  //
    class cuda_memory_resource {
  static constexpr bool of_arena = detail::is_arena<Source>;
  static constexpr bool takes_streams = of_arena || detail::stream_ordered_resource<Source>;

 public:
  /// Who may touch the memory.
  static constexpr memory_access access = detail::access_of<Source>::value;

  /// CUDA's own: what is asked for where no alignment is named.
  static constexpr std::size_t default_alignment = 256;

  /// Allocates from `resource`.
  explicit cuda_memory_resource(Source resource) requires(!of_arena)
      : source_(std::move(resource)) {}

  /// Allocates from `memory`, each time a piece of that name, with the role of a workspace.
  explicit cuda_memory_resource(Source& memory, std::string name = "cuda::mr") requires(of_arena)
      : source_(&memory), name_(std::move(name)) {}

  /// `bytes`, uninitialised, at a multiple of `alignment`, ready on every stream (but see the arena
  /// above). This is CCCL's spelling up to 3.0.
  /// @throws out_of_memory where the arena's budget or the resource has no more
  /// @throws unsupported_error where `alignment` is no power of two, or not one of the resource's
  /// @throws all else that the resource throws
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment = default_alignment) {
    if (!std::has_single_bit(alignment)) {
      throw unsupported_error("cuda::mr: an alignment of " + std::to_string(alignment) +
                              " bytes is no power of two");
    }
    if constexpr (of_arena) {
      return allocate_piece(bytes, alignment);
    } else {
      void* address = source_.allocate(bytes, alignment);
      if constexpr (takes_streams) {
        try {
          source_.synchronize();
        } catch (...) {
          source_.deallocate(address, bytes, alignment);
          throw;
        }
      }
      return address;
    }
  }
  /// Gives back what nobody uses any more, with the numbers it was asked with.
  void deallocate(void* address, std::size_t bytes,
                  std::size_t alignment = default_alignment) noexcept {
    if constexpr (!of_arena) source_.deallocate(address, bytes, alignment);
  }

  /// As `allocate`, ready in the order of the stream, in CCCL's spelling up to 3.0.
  [[nodiscard]] void* allocate_async(std::size_t bytes, std::size_t alignment,
                                     ::cuda::stream_ref stream) requires(takes_streams) {
    if constexpr (of_arena) {
      return allocate(bytes, alignment);
    } else {
      return source_.allocate(bytes, alignment, stream.get());
    }
  }
  [[nodiscard]] void* allocate_async(std::size_t bytes,
                                     ::cuda::stream_ref stream) requires(takes_streams) {
    return allocate_async(bytes, default_alignment, stream);
  }
  /// As `deallocate`, behind the work that is on the stream so far.
  void deallocate_async(void* address, std::size_t bytes, std::size_t alignment,
                        ::cuda::stream_ref stream) noexcept requires(takes_streams) {
    if constexpr (!of_arena) source_.deallocate(address, bytes, alignment, stream.get());
  }
  void deallocate_async(void* address, std::size_t bytes, ::cuda::stream_ref stream) noexcept
      requires(takes_streams) {
    deallocate_async(address, bytes, default_alignment, stream);
  }

  /// The same calls in CCCL's spelling from 3.1 on.
  [[nodiscard]] void* allocate_sync(std::size_t bytes, std::size_t alignment = default_alignment) {
    return allocate(bytes, alignment);
  }
  void deallocate_sync(void* address, std::size_t bytes,
                       std::size_t alignment = default_alignment) noexcept {
    deallocate(address, bytes, alignment);
  }
  [[nodiscard]] void* allocate(::cuda::stream_ref stream, std::size_t bytes,
                               std::size_t alignment = default_alignment) requires(takes_streams) {
    return allocate_async(bytes, alignment, stream);
  }
  void deallocate(::cuda::stream_ref stream, void* address, std::size_t bytes,
                  std::size_t alignment = default_alignment) noexcept requires(takes_streams) {
    deallocate_async(address, bytes, alignment, stream);
  }

  /// Whether one may give back what the other gave out.
  friend bool operator==(const cuda_memory_resource& a, const cuda_memory_resource& b) {
    return a.source_ == b.source_;
  }

  friend constexpr void get_property(const cuda_memory_resource&,
                                     ::cuda::mr::device_accessible) noexcept
      requires(access != memory_access::host) {}
  friend constexpr void get_property(const cuda_memory_resource&,
                                     ::cuda::mr::host_accessible) noexcept
      requires(access != memory_access::device) {}

 private:
  /// An arena's own alignments end at its block's: what goes beyond is added to the piece in front.
  [[nodiscard]] void* allocate_piece(std::size_t bytes, std::size_t alignment) requires(of_arena) {
    const memory_tag tag(name_, {}, memory_role::workspace);
    if (alignment <= Source::default_alignment) {
      return source_->allocate(tag, bytes, alignment).data();
    }
    const std::size_t used = (source_->used() + Source::default_alignment - 1) /
                             Source::default_alignment * Source::default_alignment;
    const auto next = reinterpret_cast<std::uintptr_t>(source_->block().data()) + used;
    const std::size_t padding = (alignment - next % alignment) % alignment;
    const auto padded = checked_add(bytes, padding);
    if (!padded) {
      throw out_of_memory(detail::fixed_text() << "'" << name_ << "' needs " << bytes
                                               << " bytes and " << padding << " to be aligned",
                          name_, bytes);
    }
    return source_->allocate(tag, *padded).data() + padding;
  }

  std::conditional_t<of_arena, Source*, Source> source_;
  std::string name_;
};

template <memory_resource Resource>
cuda_memory_resource(Resource) -> cuda_memory_resource<Resource>;
template <class Resource>
cuda_memory_resource(arena<Resource>&) -> cuda_memory_resource<arena<Resource>>;
template <class Resource, class Name>
cuda_memory_resource(arena<Resource>&, Name) -> cuda_memory_resource<arena<Resource>>;

/// The same as an allocator of the standard library's kind, which is what Thrust's policies take for
/// their temporary memory: `thrust::cuda::par(allocator).on(stream)`. Copies allocate from the same
/// source. Memory is uninitialised; an algorithm of the host's needs a source of the host's.
template <class T, class Source>
class cuda_memory_allocator {
 public:
  using value_type = T;

  explicit cuda_memory_allocator(cuda_memory_resource<Source> resource)
      : resource_(std::move(resource)) {}
  template <class Other>
  // NOLINTNEXTLINE(google-explicit-constructor): containers rebind their allocators
  cuda_memory_allocator(const cuda_memory_allocator<Other, Source>& other)
      : resource_(other.resource()) {}

  /// Memory for `count` values. Throws what the resource throws, and `out_of_memory` where their
  /// bytes cannot be counted.
  [[nodiscard]] T* allocate(std::size_t count) {
    const auto bytes = checked_multiply(count, sizeof(T));
    if (!bytes) {
      throw out_of_memory(
          detail::fixed_text() << count << " values of " << sizeof(T) << " bytes were refused", {},
          count);
    }
    return static_cast<T*>(resource_.allocate(*bytes, alignment));
  }
  void deallocate(T* address, std::size_t count) noexcept {
    resource_.deallocate(address, count * sizeof(T), alignment);
  }

  [[nodiscard]] const cuda_memory_resource<Source>& resource() const noexcept { return resource_; }

  template <class Other>
  friend bool operator==(const cuda_memory_allocator& a,
                         const cuda_memory_allocator<Other, Source>& b) {
    return a.resource() == b.resource();
  }

 private:
  // Bytes may be asked for and more be put there, as Thrust does.
  static constexpr std::size_t alignment =
      std::max(alignof(T), cuda_memory_resource<Source>::default_alignment);

  cuda_memory_resource<Source> resource_;
};

// On the host, since this header knows no other resource.
#if CCCL_VERSION >= 3001000
static_assert(::cuda::mr::synchronous_resource_with<cuda_memory_resource<host_resource>,
                                                    ::cuda::mr::host_accessible>);
static_assert(!::cuda::mr::resource<cuda_memory_resource<host_resource>>);
static_assert(::cuda::mr::resource_with<cuda_memory_resource<arena<host_resource>>,
                                        ::cuda::mr::host_accessible>);
#else
static_assert(
    ::cuda::mr::resource_with<cuda_memory_resource<host_resource>, ::cuda::mr::host_accessible>);
static_assert(!::cuda::mr::async_resource<cuda_memory_resource<host_resource>>);
static_assert(::cuda::mr::async_resource_with<cuda_memory_resource<arena<host_resource>>,
                                              ::cuda::mr::host_accessible>);
#endif
static_assert(
    !::cuda::has_property<cuda_memory_resource<host_resource>, ::cuda::mr::device_accessible>);

}  // namespace vggload
