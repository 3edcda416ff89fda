# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# Tests of what is not code at run time: headers, layers, refusals of the compiler, consumers, documents.

# Each header alone: it includes what it needs. And all of them in both orders, linked with those: what they define is
# inline, and none needs another to come before or behind it.
get_target_property(header_files vggload HEADER_SET)
list(FILTER header_files EXCLUDE REGEX "[.]cuh$") # for nvcc: tests/cuda
list(FILTER header_files EXCLUDE REGEX "interop/cuda_mr[.]hpp$") # with each CCCL: tests/interop
if(NOT VGGLOAD_CUDA)
  list(FILTER header_files EXCLUDE REGEX "cuda/(error|resources|runtime_api)[.]hpp$") # include CUDA's
endif()
add_executable(headers_test cmake/headers_main.cpp)
target_link_libraries(headers_test PRIVATE vggload_development vggload::hdf5 vggload::onnx vggload::images vggload::network vggload::dlpack
                                           $<TARGET_NAME_IF_EXISTS:vggload::cuda>)
foreach(header IN LISTS header_files)
  string(REGEX REPLACE ".*include/" "" header "${header}")
  string(MAKE_C_IDENTIFIER "${header}" unit)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/headers/${unit}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "#include <@header@>\n#include <@header@>\n" @ONLY)
  target_sources(headers_test PRIVATE ${source})
endforeach()
list(TRANSFORM header_files REPLACE ".*include/(.*)" "#include <\\1>" OUTPUT_VARIABLE includes)
set(all_headers_file ${CMAKE_CURRENT_BINARY_DIR}/headers/all.cpp)
foreach(source IN ITEMS ${all_headers_file} ${CMAKE_CURRENT_BINARY_DIR}/headers/all_reversed.cpp)
  list(JOIN includes "\n" lines)
  file(CONFIGURE OUTPUT ${source} CONTENT "@lines@\n" @ONLY)
  target_sources(headers_test PRIVATE ${source})
  list(REVERSE includes)
endforeach()
# Nothing is run: optimising would only take time.
target_compile_options(headers_test PRIVATE -O0)
add_test(NAME headers_test COMMAND headers_test)

# nvcc hands the host's compiler "this->member" where the source has "member". What a lambda captures by itself comes in
# the order in which it is met: so the same lambda would have two layouts in one program, in a .cu and in a .cpp file.
# Ours say "this" first.
find_program(CLANG_QUERY clang-query)
if(CLANG_QUERY)
  add_test(NAME captures_test COMMAND ${CLANG_QUERY} -p ${PROJECT_BINARY_DIR} -f
                                      ${CMAKE_CURRENT_SOURCE_DIR}/cmake/captures.query ${all_headers_file})
  set_tests_properties(
    captures_test PROPERTIES ENVIRONMENT LC_ALL=C PASS_REGULAR_EXPRESSION "match"
                             FAIL_REGULAR_EXPRESSION "include/vggload/[a-z0-9_/]+[.]hpp:[0-9]+:[0-9]+: note")
endif()

# The include table.
add_test(NAME layers_test COMMAND ${CMAKE_COMMAND} -D INCLUDE=${PROJECT_SOURCE_DIR}/include -P
                                  ${CMAKE_CURRENT_SOURCE_DIR}/cmake/layers.cmake)
# And that it would be seen if the table were broken.
add_test(NAME layers_test_finds_a_breach
         COMMAND ${CMAKE_COMMAND} -D INCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/cmake/broken_layers -P
                 ${CMAKE_CURRENT_SOURCE_DIR}/cmake/layers.cmake)
set_tests_properties(layers_test_finds_a_breach PROPERTIES PASS_REGULAR_EXPRESSION
                                                           "core/upward.hpp includes vggload/io/")

# What must not compile, and what the compiler is to say. Each file compiles without its mistake.
function(add_compile_fail_test name message)
  get_target_property(json_include nlohmann_json::nlohmann_json INTERFACE_INCLUDE_DIRECTORIES)
  get_target_property(eigen_include Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
  set(command ${CMAKE_CXX_COMPILER} -std=c++20 -Wall -Werror -fsyntax-only -I${PROJECT_SOURCE_DIR}/include
              ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/${name}.cpp)
  foreach(directory IN LISTS json_include)
    if(NOT directory STREQUAL "/usr/include" AND NOT directory MATCHES "INSTALL_INTERFACE")
      list(APPEND command "-I${directory}")
    endif()
  endforeach()
  foreach(directory IN LISTS eigen_include)
    list(APPEND command -isystem "${directory}")
  endforeach()
  add_test(NAME compile_fail_${name} COMMAND ${command} -DMISTAKE)
  set_tests_properties(compile_fail_${name} PROPERTIES PASS_REGULAR_EXPRESSION "${message}")
  add_test(NAME compile_fail_${name}_control COMMAND ${command})
endfunction()
add_compile_fail_test(device_memory_as_host_memory "could not convert|no viable conversion")
add_compile_fail_test(device_arena_as_host_memory "could not convert|no viable conversion")
add_compile_fail_test(host_loader_with_device_resource "host_accessible_resource")
add_compile_fail_test(arena_copy "deleted|implicitly-deleted")
add_compile_fail_test(view_of_unknown_type "tensor_element")
add_compile_fail_test(reader_without_read "weight_reader")
add_compile_fail_test(ignored_allocation "nodiscard")
add_compile_fail_test(views_of_temporary "deleted")
add_compile_fail_test(eigen_map_of_storage_type "eigen_scalar")
add_compile_fail_test(eigen_map_of_temporary "deleted")
add_compile_fail_test(adaptor_after_resume "comes last, just before it")
add_compile_fail_test(sequence_without_epoch_end "no match for|invalid operands")
add_compile_fail_test(map_out_of_planned_memory "must return void")
add_compile_fail_test(fit_without_labels "labelled_features|batch.labels")
add_compile_fail_test(prefetch_into_device_memory "host_accessible_resource")

# Other people's projects.
function(add_consumer_test name)
  add_test(
    NAME consumer_${name}
    COMMAND
      ${CMAKE_COMMAND} -D NAME=${name} -D SOURCE=${PROJECT_SOURCE_DIR} -D WORK=${CMAKE_CURRENT_BINARY_DIR}/consumer_${name}
      -D GENERATOR=${CMAKE_GENERATOR} -D COMPILER=${CMAKE_CXX_COMPILER} -D VERSION=${PROJECT_VERSION} -P
      ${CMAKE_CURRENT_SOURCE_DIR}/cmake/consumer.cmake)
endfunction()
add_consumer_test(add_subdirectory)
add_consumer_test(fetch_content)
add_consumer_test(find_package)
add_consumer_test(components)
add_consumer_test(wrong_version)
add_consumer_test(fetched_dependency)

# The README shows the quickstart as it is.
add_test(NAME readme_test COMMAND ${CMAKE_COMMAND} -D SOURCE=${PROJECT_SOURCE_DIR} -P
                                  ${CMAKE_CURRENT_SOURCE_DIR}/cmake/readme.cmake)

# nvcc takes the host headers in a .cu file, where there is an nvcc.
if(CUDAToolkit_FOUND)
  add_test(
    NAME headers_in_cuda_test
    COMMAND
      ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++20 -ccbin ${CMAKE_CXX_COMPILER} -I${PROJECT_SOURCE_DIR}/include
      -Werror all-warnings -c ${CMAKE_CURRENT_SOURCE_DIR}/cmake/headers_in_cuda.cu -o
      ${CMAKE_CURRENT_BINARY_DIR}/headers_in_cuda.o)
endif()

# No flag of a consumer's build changes what a conversion or exact mode gives.
set(compilers ${CMAKE_CXX_COMPILER})
find_program(CLANG clang++)
if(CLANG)
  list(APPEND compilers ${CLANG})
endif()
foreach(program IN ITEMS flags flags_exact)
  add_test(
    NAME ${program}_test
    COMMAND ${CMAKE_COMMAND} -D INCLUDE=${PROJECT_SOURCE_DIR}/include -D WORK=${CMAKE_CURRENT_BINARY_DIR}/${program}
            -D PROGRAM=${CMAKE_CURRENT_SOURCE_DIR}/cmake/${program}_program.cpp "-D COMPILERS=${compilers}" -P
            ${CMAKE_CURRENT_SOURCE_DIR}/cmake/flags.cmake)
endforeach()

# The conversions of 64-bit Arm, emulated, where there is a compiler for it and an emulator.
find_program(ARM_COMPILER aarch64-linux-gnu-g++)
find_program(ARM_EMULATOR NAMES qemu-aarch64-static qemu-aarch64)
foreach(test IN ITEMS convert_test health_test)
  if(ARM_COMPILER AND ARM_EMULATOR AND NOT CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    add_test(
      NAME arm_${test}
      COMMAND
        ${CMAKE_COMMAND} -D COMPILER=${ARM_COMPILER} -D EMULATOR=${ARM_EMULATOR} -D SOURCE=${PROJECT_SOURCE_DIR}
        "-D DOCTEST=$<TARGET_PROPERTY:doctest::doctest,INTERFACE_INCLUDE_DIRECTORIES>" -D TEST=${test} -D
        WORK=${CMAKE_CURRENT_BINARY_DIR}/arm -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/arm.cmake)
  else()
    add_test(NAME arm_${test} COMMAND ${CMAKE_COMMAND} -E echo "SKIPPED: no compiler or no emulator for 64-bit Arm")
    set_tests_properties(arm_${test} PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED")
  endif()
endforeach()

# Minutes long, so that CTest does not run it by itself: ./dev test --exhaustive.
add_executable(exhaustive_test exhaustive/exhaustive_test.cpp)
target_link_libraries(exhaustive_test PRIVATE vggload_development)
add_test(NAME exhaustive_test_sample COMMAND exhaustive_test 509)
