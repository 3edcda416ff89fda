// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// The library's version, for the preprocessor. The build reads it from here; versions are
/// compatible within one minor version until 1.0.
#define VGGLOAD_VERSION_MAJOR 0
#define VGGLOAD_VERSION_MINOR 1
#define VGGLOAD_VERSION_PATCH 0
