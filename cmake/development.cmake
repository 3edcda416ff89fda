# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# Settings of our own programs; consumers never see them.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

# Links the library, with warnings as errors.
add_library(vggload_development INTERFACE)
target_link_libraries(vggload_development INTERFACE vggload::vggload)
target_compile_options(
  vggload_development
  INTERFACE
    -Wall
    -Wextra
    -Wpedantic
    -Wconversion
    -Wsign-conversion
    -Wshadow
    -Wold-style-cast
    -Wnon-virtual-dtor
    -Woverloaded-virtual
    -Werror
    # GCC 12 sees overlaps in std::string that are none (its bug 105651).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-unknown-warning-option> # for clang-tidy, which reads our command lines
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
