# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
cmake_minimum_required(VERSION 3.25)

# Builds and runs a separate project that uses the library:
# cmake -D NAME=... -D SOURCE=... -D WORK=... -D GENERATOR=... -D COMPILER=... -D VERSION=... -P consumer.cmake

function(run)
  cmake_parse_arguments(arg "" "FAILS_WITH" "COMMAND" ${ARGN})
  execute_process(COMMAND ${arg_COMMAND} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  # Messages are wrapped at any blank.
  string(REGEX REPLACE "[ \n\t]+" " " flat "${output}")
  if(arg_FAILS_WITH)
    if(result EQUAL 0 OR NOT flat MATCHES "${arg_FAILS_WITH}")
      message(FATAL_ERROR "expected to fail with '${arg_FAILS_WITH}': ${arg_COMMAND}\n${output}")
    endif()
  elseif(NOT result EQUAL 0)
    message(FATAL_ERROR "failed: ${arg_COMMAND}\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
# A consumer with strict warnings: the library's headers must not add any.
set(settings -G ${GENERATOR} -D CMAKE_CXX_COMPILER=${COMPILER} -D CMAKE_BUILD_TYPE=Debug
             "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror")
set(consumers ${SOURCE}/tests/consumer)

function(configure_build_run project)
  run(COMMAND ${CMAKE_COMMAND} -S ${consumers}/${project} -B ${WORK}/build ${settings} ${ARGN})
  run(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build)
  run(COMMAND ${WORK}/build/consumer)
endfunction()

function(install_library)
  run(COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/library ${settings} -D VGGLOAD_BUILD_EXAMPLES=OFF -D
              VGGLOAD_BUILD_TESTS=OFF -D VGGLOAD_BUILD_BENCHMARKS=OFF ${ARGN})
  run(COMMAND ${CMAKE_COMMAND} --install ${WORK}/library --prefix ${WORK}/prefix)
endfunction()

# In a subproject nothing is built but what the consumer asks for.
function(check_nothing_else_built)
  file(GLOB_RECURSE built ${WORK}/build/*.o ${WORK}/build/*.a)
  list(LENGTH built count)
  if(NOT count EQUAL 1)
    message(FATAL_ERROR "more than the consumer's one file was built: ${built}")
  endif()
endfunction()

if(NAME STREQUAL "add_subdirectory")
  configure_build_run(add_subdirectory -D VGGLOAD_SOURCE=${SOURCE})
  check_nothing_else_built()
elseif(NAME STREQUAL "fetch_content")
  configure_build_run(fetch_content -D FETCHCONTENT_SOURCE_DIR_VGGLOAD=${SOURCE})
  check_nothing_else_built()
elseif(NAME STREQUAL "find_package")
  install_library()
  configure_build_run(find_package -D CMAKE_PREFIX_PATH=${WORK}/prefix -D WANTED=${VERSION})
elseif(NAME STREQUAL "components")
  install_library(-D VGGLOAD_DLPACK=ON -D VGGLOAD_HDF5=ON -D VGGLOAD_IMAGES=ON -D VGGLOAD_NETWORK=ON -D VGGLOAD_ONNX=ON)
  run(COMMAND ${CMAKE_COMMAND} -S ${consumers}/components -B ${WORK}/unknown ${settings} -D
              CMAKE_PREFIX_PATH=${WORK}/prefix -D WANTED=${VERSION} -D LAST=audio
      FAILS_WITH "installed without the component .audio.")
  configure_build_run(components -D CMAKE_PREFIX_PATH=${WORK}/prefix -D WANTED=${VERSION} -D LAST=images)
elseif(NAME STREQUAL "wrong_version")
  install_library()
  foreach(wanted IN ITEMS 0.0.9 0.2 1.0 99)
    run(COMMAND ${CMAKE_COMMAND} -S ${consumers}/find_package -B ${WORK}/build_${wanted} ${settings} -D
                CMAKE_PREFIX_PATH=${WORK}/prefix -D WANTED=${wanted}
        FAILS_WITH "compatible with requested version")
  endforeach()
elseif(NAME STREQUAL "fetched_dependency")
  # Where no JSON library is installed it is fetched: here from a project that stands in for its repository.
  configure_build_run(
    add_subdirectory -D VGGLOAD_SOURCE=${SOURCE} -D CMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON -D
    FETCHCONTENT_SOURCE_DIR_NLOHMANN_JSON=${consumers}/stand_in_for_json)
else()
  message(FATAL_ERROR "no such consumer: ${NAME}")
endif()
