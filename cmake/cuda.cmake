# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# vggload::cuda: the headers below vggload/cuda. CUDA is found, never required, and is no language of the project: nvcc
# compiles what consumers write, with their flags: -std=c++20 among them, which CMake before 3.26 cannot ask for. The
# runtime library is theirs to choose, as nvcc and CMake's CUDA_RUNTIME_LIBRARY let them; a second one beside it would
# not know their kernels.
find_package(CUDAToolkit QUIET)
set(vggload_cuda_default OFF)
if(PROJECT_IS_TOP_LEVEL
   AND CUDAToolkit_FOUND
   AND CUDAToolkit_NVCC_EXECUTABLE)
  set(vggload_cuda_default ON)
endif()
option(VGGLOAD_CUDA "Make vggload::cuda, which converts on NVIDIA's GPUs. Values: ON, OFF" ${vggload_cuda_default})

if(VGGLOAD_CUDA)
  if(NOT CUDAToolkit_FOUND)
    message(FATAL_ERROR "VGGLOAD_CUDA is ON and there is no CUDA toolkit: set CUDAToolkit_ROOT, or VGGLOAD_CUDA to OFF")
  endif()
  add_library(vggload_cuda INTERFACE)
  target_link_libraries(vggload_cuda INTERFACE vggload CUDA::toolkit)
  list(APPEND components cuda)
endif()

# How our own .cu files are compiled.
set(vggload_nvcc
    ${CUDAToolkit_NVCC_EXECUTABLE}
    -std=c++20
    -ccbin
    ${CMAKE_CXX_COMPILER}
    -I${PROJECT_SOURCE_DIR}/include
    -Werror
    all-warnings
    -Xcompiler
    -Wall,-Wextra,-Wshadow,-Werror)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # CUDA's own headers are full of such functions, and nvcc gives it the options for linking each time.
  list(APPEND vggload_nvcc -Xcompiler -Wno-unused-function,-Wno-unused-command-line-argument)
endif()

# A program of our own from .cu files, by one call of nvcc: for an H100, an A100, and as PTX for what comes after them.
# It carries the runtime libraries in itself, so that it runs where there is a GPU and nothing else.
function(vggload_add_cuda_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;OPTIONS" ${ARGN})
  set(sources)
  foreach(source IN LISTS arg_SOURCES)
    list(APPEND sources ${CMAKE_CURRENT_SOURCE_DIR}/${source})
  endforeach()
  file(
    GLOB headers CONFIGURE_DEPENDS
    ${PROJECT_SOURCE_DIR}/include/vggload/core/*.hpp
    ${PROJECT_SOURCE_DIR}/include/vggload/convert/*.hpp
    ${PROJECT_SOURCE_DIR}/include/vggload/cuda/*
    ${PROJECT_SOURCE_DIR}/include/vggload/interop/*.hpp
    ${PROJECT_SOURCE_DIR}/include/vggload/memory/*.hpp
    ${CMAKE_CURRENT_SOURCE_DIR}/*.cuh
    ${CMAKE_CURRENT_SOURCE_DIR}/*.hpp)
  add_custom_command(
    OUTPUT ${name}
    COMMAND
      ${vggload_nvcc} -O2 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode
      arch=compute_90,code=compute_90 -cudart static -Xcompiler -static-libstdc++,-static-libgcc ${arg_OPTIONS}
      ${sources} -o ${CMAKE_CURRENT_BINARY_DIR}/${name}
    DEPENDS ${sources} ${headers}
    COMMENT "nvcc: ${name}"
    VERBATIM)
  add_custom_target(build_${name} ALL DEPENDS ${name})
endfunction()
