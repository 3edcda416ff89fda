// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "temporary_folder.hpp"

namespace test {

struct command_result {
  int exit_code;  // 128 + the signal's number where one ended it
  std::string out;
  std::string err;
};

/// What a command is put up with.
struct command_conditions {
  std::optional<std::uint64_t> address_space = {};  // ulimit -v, in bytes
  std::optional<std::uint64_t> file_size = {};      // ulimit -f, in bytes
  std::string standard_output = {};                 // a device instead of a file that is read back
  bool on_terminal = false;                         // both outputs are one terminal, read as `out`
  int signal = 0;                                   // is sent after a time
  std::chrono::milliseconds signal_after = {};
  bool ignores_signal = false;      // as under nohup
  std::string working_folder = {};  // to start in; empty: this process's
  // Variables that are added to the environment.
  std::vector<std::pair<std::string, std::string>> environment = {};
};

/// Runs one of the example commands to its end.
inline command_result run_command(const std::vector<std::string>& arguments,
                                  const command_conditions& conditions = {}) {
  const temporary_folder folder;
  const std::string out =
      conditions.standard_output.empty() ? folder.file("out") : conditions.standard_output;
  const std::string err = folder.file("err");
  std::vector<std::string> words = arguments;
  words.front() = std::string(COMMANDS) + "/" + words.front();
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int terminal = -1;
  int terminal_of_child = -1;
  if (conditions.on_terminal &&
      ::openpty(&terminal, &terminal_of_child, nullptr, nullptr, nullptr) != 0) {
    throw std::runtime_error("no terminal");
  }
  const ::pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("no process");
  if (child == 0) {
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), 2);
    if (conditions.on_terminal) {
      ::dup2(terminal_of_child, 1);
      ::dup2(terminal_of_child, 2);
    }
    if (!conditions.working_folder.empty() && ::chdir(conditions.working_folder.c_str()) != 0) {
      ::_exit(126);
    }
    const auto limit = [](auto which, const std::optional<std::uint64_t>& value) {
      if (!value) return;
      const struct ::rlimit both { *value, *value };
      ::setrlimit(which, &both);
    };
    limit(RLIMIT_AS, conditions.address_space);
    limit(RLIMIT_FSIZE, conditions.file_size);
    if (conditions.ignores_signal) std::signal(conditions.signal, SIG_IGN);
    for (const auto& [name, value] : conditions.environment) {
      // NOLINTNEXTLINE(concurrency-mt-unsafe): a new process has one thread
      ::setenv(name.c_str(), value.c_str(), 1);
    }
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  if (conditions.signal != 0) {
    std::this_thread::sleep_for(conditions.signal_after);
    ::kill(child, conditions.signal);
  }
  std::string shown;
  if (conditions.on_terminal) {
    // The end of what the last process wrote is an error here, as terminals have it.
    ::close(terminal_of_child);
    std::array<char, 4096> part;
    for (::ssize_t size = 0; (size = ::read(terminal, part.data(), part.size())) > 0;) {
      shown.append(part.data(), static_cast<std::size_t>(size));
    }
    ::close(terminal);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (conditions.on_terminal) return {WEXITSTATUS(status), shown, {}};
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          conditions.standard_output.empty() ? read_file(out) : "", read_file(err)};
}

}  // namespace test
