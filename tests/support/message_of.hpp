// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <exception>
#include <string>

#include <doctest/doctest.h>

namespace test {

/// The message of the Exception that `action` throws; fails the test where it throws none or
/// another.
template <class Exception, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Exception& e) {
    return e.what();
  } catch (const std::exception& e) {
    FAIL_CHECK("another exception: " << e.what());
    return {};
  }
  FAIL_CHECK("no exception");
  return {};
}

}  // namespace test
