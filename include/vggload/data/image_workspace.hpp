// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <vggload/data/image_decoder.hpp>
#include <vggload/data/scratch.hpp>
#include <vggload/memory/page_resource.hpp>
#include <vggload/memory/resource.hpp>

namespace vggload {

/// What a thread needs to make an image: a decoder, and memory for one image at a time.
struct image_workspace {
  explicit image_workspace(auto resource, std::size_t limit_bytes)
      : memory(limit_bytes, resource) {}

  image_decoder decoder;
  scratch memory;
};

/// Workspaces that are made when a thread finds none free, and kept: as many as ever worked at once. For any
/// number of threads. Copies share the workspaces.
class image_workspace_pool {
 public:
  /// `limit_bytes`: for the memory of each (scratch). The memory comes from `resource`, which several threads
  /// may ask at once.
  template <host_accessible_resource Resource = page_resource>
  explicit image_workspace_pool(std::size_t limit_bytes, Resource resource = {})
      : shared_(std::make_shared<shared_state>()) {
    shared_->make = [limit_bytes, resource] {
      return std::make_unique<image_workspace>(resource, limit_bytes);
    };
  }

  /// Bytes that the workspaces hold, as of when each was last given back.
  [[nodiscard]] std::size_t held_bytes() const {
    const std::lock_guard lock(shared_->mutex);
    return shared_->held_bytes;
  }

 private:
  struct shared_state {
    std::function<std::unique_ptr<image_workspace>()> make;
    std::mutex mutex;
    std::vector<std::unique_ptr<image_workspace>> free;
    std::size_t made = 0;
    std::size_t held_bytes = 0;
  };

 public:
  /// Holds a workspace for as long as it lives; the pool lives longer.
  class lease {
   public:
    explicit lease(const image_workspace_pool& pool) : shared_(*pool.shared_) {
      {
        const std::lock_guard lock(shared_.mutex);
        if (!shared_.free.empty()) {
          workspace_ = std::move(shared_.free.back());
          shared_.free.pop_back();
        }
      }
      if (!workspace_) {
        workspace_ = shared_.make();
        const std::lock_guard lock(shared_.mutex);
        shared_.free.reserve(shared_.made + 1);  // giving it back allocates nothing
        ++shared_.made;
      }
      held_before_ = workspace_->memory.capacity();
    }
    lease(const lease&) = delete;
    lease& operator=(const lease&) = delete;
    ~lease() {
      workspace_->memory.reset();
      const std::lock_guard lock(shared_.mutex);
      shared_.held_bytes += workspace_->memory.capacity() - held_before_;
      shared_.free.push_back(std::move(workspace_));
    }

    [[nodiscard]] image_workspace& operator*() const noexcept { return *workspace_; }
    [[nodiscard]] image_workspace* operator->() const noexcept { return workspace_.get(); }

   private:
    shared_state& shared_;
    std::unique_ptr<image_workspace> workspace_;
    std::size_t held_before_ = 0;
  };

 private:
  std::shared_ptr<shared_state> shared_;
};

}  // namespace vggload
