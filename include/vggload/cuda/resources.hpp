// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <vggload/cuda/async_device_resource.hpp>
#include <vggload/cuda/device_resource.hpp>
#include <vggload/cuda/pinned_resource.hpp>
#include <vggload/cuda/runtime_api.hpp>
#include <vggload/cuda/virtual_device_resource.hpp>

// The resources over CUDA itself.

namespace vggload::cuda {

/// Memory of the current device, by cudaMalloc.
using device_resource = basic_device_resource<runtime_api>;
static_assert(memory_resource<device_resource> && !host_accessible_resource<device_resource>);

/// Page-locked memory of the host that devices reach, by cudaMallocHost.
using pinned_resource = basic_pinned_resource<runtime_api>;
static_assert(host_accessible_resource<pinned_resource>);

/// Memory of a stream's device in the order of the stream, by cudaMallocAsync.
using async_device_resource = basic_async_device_resource<runtime_api>;
static_assert(memory_resource<async_device_resource> &&
              !host_accessible_resource<async_device_resource>);

/// Addresses of the current device first and memory behind them later.
using virtual_device_resource = basic_virtual_device_resource<runtime_api>;
static_assert(reserving_resource<virtual_device_resource> &&
              !host_accessible_resource<virtual_device_resource>);

}  // namespace vggload::cuda
