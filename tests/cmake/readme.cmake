# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
cmake_minimum_required(VERSION 3.25)
file(READ ${SOURCE}/README.md readme)
file(READ ${SOURCE}/examples/quickstart.cpp quickstart)
string(FIND "${readme}" "```cpp\n${quickstart}```" place)
if(place EQUAL -1)
  message(FATAL_ERROR "README.md does not show examples/quickstart.cpp as it is")
endif()
