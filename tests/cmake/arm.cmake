# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# Builds a unit test for 64-bit Arm and runs it in an emulator. Only doctest's headers are taken from this machine's
# include folder: the rest of it is for another processor.
file(MAKE_DIRECTORY ${WORK}/include)
set(doctest)
foreach(directory IN LISTS DOCTEST ITEMS /usr/include)
  foreach(candidate IN ITEMS ${directory} ${directory}/doctest)
    if(NOT doctest AND EXISTS ${candidate}/doctest.h)
      set(doctest ${candidate})
    endif()
  endforeach()
endforeach()
file(CREATE_LINK ${doctest} ${WORK}/include/doctest SYMBOLIC)
set(binary ${WORK}/${TEST})
execute_process(
  COMMAND ${COMPILER} -std=c++20 -O2 -Wall -Wextra -Wconversion -Wsign-conversion -Werror -static -I${SOURCE}/include
          -I${WORK}/include ${SOURCE}/tests/unit/${TEST}.cpp ${SOURCE}/tests/support/test_main.cpp -o ${binary}
          COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${EMULATOR} ${binary} COMMAND_ERROR_IS_FATAL ANY)
