# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
cmake_minimum_required(VERSION 3.25)

# Looks at the machine code of the kernels in SOURCE: cmake -D NVCC=... -D CUOBJDUMP=... -D COMPILER=... -D INCLUDE=...
# -D SOURCE=... -D WORK=... -P sass.cmake. All of them keep what they need in registers. Those that have to run at the
# speed of memory load and store 16 bytes at a time and convert two values by one instruction.

if(NOT CUOBJDUMP)
  message("SKIPPED: no cuobjdump, which shows machine code")
  return()
endif()

# cuobjdump looks for nvdisasm on the path; it lies beside it.
get_filename_component(tools ${CUOBJDUMP} DIRECTORY)
set(ENV{PATH} "${tools}:$ENV{PATH}")

function(run out)
  execute_process(
    COMMAND ${ARGN}
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output
    RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}: ${result}\n${output}")
  endif()
  # CMake's lists know these.
  string(REGEX REPLACE "[][;]" " " output "${output}")
  set(${out}
      "${output}"
      PARENT_SCOPE)
endfunction()

# Appends a fault unless `pattern` is found in the code.
function(expect place code what pattern)
  if(NOT code MATCHES "${pattern}")
    list(APPEND faults "${place}: no ${what}")
    set(faults
        "${faults}"
        PARENT_SCOPE)
  endif()
endfunction()

set(faults)
set(kernels 0)
file(MAKE_DIRECTORY ${WORK})
foreach(architecture IN ITEMS sm_80 sm_90)
  set(binary ${WORK}/${architecture}.cubin)
  run(ignored ${NVCC} -std=c++20 -ccbin ${COMPILER} -I${INCLUDE} -cubin -arch=${architecture} ${SOURCE} -o ${binary})

  run(code ${CUOBJDUMP} -sass ${binary})
  string(REPLACE "Function : " ";" functions "${code}")
  list(POP_FRONT functions)
  foreach(function IN LISTS functions)
    math(EXPR kernels "${kernels} + 1")
    string(REGEX MATCH "^[^\n]*" mangled "${function}")
    string(REGEX MATCH "[a-z_]+_kernel" kernel "${mangled}")
    string(REGEX MATCH "b?float16" type "${mangled}")
    set(place "${architecture} ${kernel} ${type}")
    if(function MATCHES "[ \t](STL|LDL)")
      list(APPEND faults "${place}: uses memory for what has no register")
    endif()
    if(kernel MATCHES "^convert")
      expect("${place}" "${function}" "load of 16 bytes" "LDG[.]E[.]128")
      expect("${place}" "${function}" "store of 16 bytes" "STG[.]E[.]128")
      # Its name differs between architectures. One that converts a single value has RZ for the other.
      if(type STREQUAL "bfloat16")
        expect("${place}" "${function}" "packed conversion" "F2FP[.]BF16([.]F32)?[.]PACK_AB R[0-9]+, R[0-9]+, R[0-9]")
      else()
        expect("${place}" "${function}" "packed conversion" "F2FP([.]F16[.]F32)?[.]PACK_AB R[0-9]+, R[0-9]+, R[0-9]")
      endif()
    endif()
  endforeach()

  run(resources ${CUOBJDUMP} -res-usage ${binary})
  string(REGEX MATCHALL "Function [^\n]*\n[^\n]*" usages "${resources}")
  foreach(usage IN LISTS usages)
    if(NOT usage MATCHES "STACK:0 .*LOCAL:0 ")
      list(APPEND faults "${architecture} ${usage}")
    endif()
  endforeach()
  list(LENGTH usages usage_count)
  list(LENGTH functions function_count)
  if(NOT usage_count EQUAL function_count OR function_count EQUAL 0)
    list(APPEND faults "${architecture}: ${function_count} kernels, resources of ${usage_count}")
  endif()
endforeach()

if(faults)
  list(JOIN faults "\n  " text)
  message(FATAL_ERROR "machine code that is not as it should be:\n  ${text}")
endif()
message("${kernels} kernels")
