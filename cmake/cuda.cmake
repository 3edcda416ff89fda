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

# Code for an H100, an A100, and as PTX for what comes after them.
set(vggload_nvcc_code
    -O2
    -gencode
    arch=compute_80,code=sm_80
    -gencode
    arch=compute_90,code=sm_90
    -gencode
    arch=compute_90,code=compute_90)
file(GLOB vggload_cuda_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/vggload/*/*.hpp
     ${PROJECT_SOURCE_DIR}/include/vggload/*/*.cuh)

# The -isystem options of what a target includes from elsewhere.
function(vggload_system_includes variable target)
  set(options)
  get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
  foreach(directory IN LISTS directories)
    if(directory AND NOT directory STREQUAL "/usr/include" AND NOT directory MATCHES "INSTALL_INTERFACE")
      list(APPEND options -isystem "${directory}")
    endif()
  endforeach()
  set(${variable}
      ${options}
      PARENT_SCOPE)
endfunction()

# A program of our own from .cu files, by one call of nvcc. It carries the runtime libraries in itself, so that it runs
# where there is a GPU and nothing else.
function(vggload_add_cuda_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;OPTIONS" ${ARGN})
  list(TRANSFORM arg_SOURCES PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cuh ${CMAKE_CURRENT_SOURCE_DIR}/*.hpp)
  add_custom_command(
    OUTPUT ${name}
    COMMAND ${vggload_nvcc} ${vggload_nvcc_code} -cudart static -Xcompiler -static-libstdc++,-static-libgcc ${arg_SOURCES} -o
            ${CMAKE_CURRENT_BINARY_DIR}/${name} ${arg_OPTIONS}
    DEPENDS ${arg_SOURCES} ${headers} ${vggload_cuda_headers}
    COMMENT "nvcc: ${name}"
    VERBATIM)
  add_custom_target(build_${name} ALL DEPENDS ${name})
endfunction()

# A .cu file in a target that is otherwise CMake's own. The object goes by nvcc; the target carries the runtime library
# in itself and starts where there is no driver.
function(vggload_add_cuda_source target source)
  cmake_parse_arguments(arg "" "" "OPTIONS" ${ARGN})
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${source}.o)
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.hpp)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${vggload_nvcc} ${vggload_nvcc_code} -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object} ${arg_OPTIONS}
    DEPENDS ${source} ${headers} ${vggload_cuda_headers}
    COMMENT "nvcc: ${source}"
    VERBATIM)
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(${target} PRIVATE ${object})
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()
