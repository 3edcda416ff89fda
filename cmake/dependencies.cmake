# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# Every dependency but the image libraries is looked for on the machine first and fetched second. To keep a build from
# fetching, set FETCHCONTENT_FULLY_DISCONNECTED or FETCHCONTENT_SOURCE_DIR_<NAME>, CMake's own switches.
include(FetchContent)

# JSON headers and indexes (MIT licence).
macro(vggload_dependency_nlohmann_json)
  find_package(nlohmann_json 3.10 QUIET)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    # What is installed needs it installed too.
    set(JSON_Install ${VGGLOAD_INSTALL})
    set(JSON_BuildTests OFF)
    FetchContent_Declare(
      nlohmann_json
      GIT_REPOSITORY https://github.com/nlohmann/json.git
      GIT_TAG v3.11.3
      GIT_SHALLOW ON)
    FetchContent_MakeAvailable(nlohmann_json)
  endif()
endmacro()

# HDF5 and Keras (BSD licence).
macro(vggload_dependency_hdf5)
  find_package(HDF5 1.10 QUIET COMPONENTS C)
  if(NOT TARGET hdf5::hdf5)
    set(HDF5_BUILD_TOOLS OFF)
    set(HDF5_BUILD_EXAMPLES OFF)
    set(HDF5_BUILD_CPP_LIB OFF)
    set(HDF5_ENABLE_Z_LIB_SUPPORT ON)
    FetchContent_Declare(
      hdf5
      GIT_REPOSITORY https://github.com/HDFGroup/hdf5.git
      GIT_TAG hdf5_1.14.5
      GIT_SHALLOW ON)
    FetchContent_MakeAvailable(hdf5)
    add_library(hdf5::hdf5 ALIAS hdf5-static)
  endif()
endmacro()

# ONNX (BSD licence). Its headers are found by themselves: distributions do not install its CMake module.
macro(vggload_dependency_protozero)
  if(NOT TARGET protozero::protozero)
    find_path(PROTOZERO_INCLUDE_DIR protozero/varint.hpp)
    if(NOT PROTOZERO_INCLUDE_DIR)
      FetchContent_Declare(
        protozero
        GIT_REPOSITORY https://github.com/mapbox/protozero.git
        GIT_TAG v1.7.1
        GIT_SHALLOW ON
        SOURCE_SUBDIR none) # headers are all that is wanted
      FetchContent_MakeAvailable(protozero)
      set(PROTOZERO_INCLUDE_DIR ${protozero_SOURCE_DIR}/include)
    endif()
    add_library(protozero::protozero INTERFACE IMPORTED)
    target_include_directories(protozero::protozero INTERFACE ${PROTOZERO_INCLUDE_DIR})
  endif()
endmacro()

# Tensors for other libraries (Apache licence): one header.
macro(vggload_dependency_dlpack)
  if(NOT TARGET dlpack::dlpack)
    find_path(DLPACK_INCLUDE_DIR dlpack/dlpack.h)
    if(NOT DLPACK_INCLUDE_DIR)
      FetchContent_Declare(
        dlpack
        GIT_REPOSITORY https://github.com/dmlc/dlpack.git
        GIT_TAG v1.1
        GIT_SHALLOW ON
        SOURCE_SUBDIR none) # the header is all that is wanted
      FetchContent_MakeAvailable(dlpack)
      set(DLPACK_INCLUDE_DIR ${dlpack_SOURCE_DIR}/include)
    endif()
    add_library(dlpack::dlpack INTERFACE IMPORTED)
    target_include_directories(dlpack::dlpack INTERFACE ${DLPACK_INCLUDE_DIR})
  endif()
endmacro()

# JPEG (BSD and IJG licences) and PNG (libpng licence). They are not fetched: libjpeg-turbo's build refuses to be part of
# another, and who decodes images has both.
macro(vggload_dependency_image_libraries)
  find_package(JPEG QUIET)
  find_package(PNG 1.6 QUIET)
  if(NOT TARGET JPEG::JPEG OR NOT TARGET PNG::PNG)
    message(
      FATAL_ERROR
        "VGGLOAD_IMAGES is ON and libjpeg-turbo or libpng is missing: install them (libjpeg-dev and libpng-dev on Debian "
        "and Ubuntu), say where they are in CMAKE_PREFIX_PATH, or set VGGLOAD_IMAGES to OFF")
  endif()
endmacro()

# Command lines of the examples (BSD licence).
macro(vggload_dependency_cli11)
  find_package(CLI11 2.1 QUIET)
  if(NOT TARGET CLI11::CLI11)
    FetchContent_Declare(
      CLI11
      GIT_REPOSITORY https://github.com/CLIUtils/CLI11.git
      GIT_TAG v2.4.2
      GIT_SHALLOW ON)
    FetchContent_MakeAvailable(CLI11)
  endif()
endmacro()

# The CRC-32 of the examples (zlib licence).
macro(vggload_dependency_zlib)
  find_package(ZLIB QUIET)
  if(NOT TARGET ZLIB::ZLIB)
    FetchContent_Declare(
      zlib
      GIT_REPOSITORY https://github.com/madler/zlib.git
      GIT_TAG v1.3.1
      GIT_SHALLOW ON)
    FetchContent_MakeAvailable(zlib)
    # zlib's own targets carry neither the name of CMake's module nor their include folders.
    target_include_directories(zlibstatic INTERFACE ${zlib_SOURCE_DIR} ${zlib_BINARY_DIR})
    add_library(ZLIB::ZLIB ALIAS zlibstatic)
  endif()
endmacro()

# Tests (MIT licence).
macro(vggload_dependency_doctest)
  find_package(doctest 2.4 QUIET)
  if(NOT TARGET doctest::doctest)
    FetchContent_Declare(
      doctest
      GIT_REPOSITORY https://github.com/doctest/doctest.git
      GIT_TAG v2.4.11
      GIT_SHALLOW ON)
    FetchContent_MakeAvailable(doctest)
  endif()
endmacro()

# Benchmarks (Apache licence).
macro(vggload_dependency_benchmark)
  find_package(benchmark 1.7 QUIET)
  if(NOT TARGET benchmark::benchmark)
    set(BENCHMARK_ENABLE_TESTING OFF)
    FetchContent_Declare(
      benchmark
      GIT_REPOSITORY https://github.com/google/benchmark.git
      GIT_TAG v1.8.5
      GIT_SHALLOW ON)
    FetchContent_MakeAvailable(benchmark)
  endif()
endmacro()

# Matrix products, and what the benchmarks compare with (MPL).
macro(vggload_dependency_eigen)
  find_package(Eigen3 3.4 QUIET NO_MODULE)
  if(NOT TARGET Eigen3::Eigen)
    set(EIGEN_BUILD_DOC OFF)
    set(BUILD_TESTING OFF)
    FetchContent_Declare(
      Eigen3
      GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git
      GIT_TAG 3.4.0
      GIT_SHALLOW ON
      SYSTEM)
    FetchContent_MakeAvailable(Eigen3)
  endif()
endmacro()
