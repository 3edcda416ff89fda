// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// All of the library that needs nothing but the standard library, POSIX, the JSON parser and zlib.

#include <vggload/convert/convert.hpp>
#include <vggload/convert/health.hpp>
#include <vggload/convert/overflow.hpp>
#include <vggload/convert/scalar.hpp>
#include <vggload/core/checked.hpp>
#include <vggload/core/dtype.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/float16.hpp>
#include <vggload/core/shape.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/io/file_mapping.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/json_events.hpp>
#include <vggload/io/mapped_file.hpp>
#include <vggload/io/npy_reader.hpp>
#include <vggload/io/safetensors_reader.hpp>
#include <vggload/io/safetensors_writer.hpp>
#include <vggload/io/sharded_safetensors_reader.hpp>
#include <vggload/io/strided_read.hpp>
#include <vggload/io/weight_reader.hpp>
#include <vggload/io/zip_archive.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/convert_checkpoint.hpp>
#include <vggload/load/dtype_policy.hpp>
#include <vggload/load/memory_plan.hpp>
#include <vggload/load/row_major.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/memory/arena.hpp>
#include <vggload/memory/counting_resource.hpp>
#include <vggload/memory/failing_resource.hpp>
#include <vggload/memory/host_resource.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/process_memory.hpp>
#include <vggload/memory/reserving_host_resource.hpp>
#include <vggload/memory/resource.hpp>
#include <vggload/version.hpp>
#include <vggload/vgg16/binding.hpp>
#include <vggload/vgg16/convert_layout.hpp>
#include <vggload/vgg16/layers.hpp>
#include <vggload/vgg16/load.hpp>
#include <vggload/vgg16/names.hpp>
#include <vggload/vgg16/weights.hpp>
