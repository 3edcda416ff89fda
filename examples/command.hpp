// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What the example commands share: one way to parse, to fail, to show progress and to be
// interrupted.

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <unistd.h>
#include <zlib.h>

#include <CLI/CLI.hpp>

#include <vggload/core/checked.hpp>
#include <vggload/core/error.hpp>
#include <vggload/core/tensor_view.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/row_major.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>

namespace command {

/// Exit codes that scripts rely on.
inline constexpr int refused = 1;
inline constexpr int wrong_usage = 2;

/// Says the exception that is being handled in one line on stderr, "error: FILE: ...", and gives
/// the exit code. The library's errors name their file themselves, for others it is `file`.
inline int report_error(std::string_view file) noexcept {
  const auto say = [file](const char* what) {
    const auto line = vggload::detail::fixed_text() << file << ": " << what;
    std::fprintf(stderr, "error: %s\n", line.c_str());
  };
  try {
    throw;
  } catch (const vggload::error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
  } catch (const vggload::out_of_memory& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
  } catch (const std::bad_alloc&) {
    say("out of memory");
  } catch (const std::exception& e) {
    say(e.what());
  } catch (...) {
    say("unknown error");
  }
  return refused;
}

/// Runs a command: parses the arguments, then calls `body`. `file` is who an error is about that
/// does not say so itself.
template <class Body>
int run(CLI::App& app, int argc, char** argv, const std::string& file, Body&& body) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& stop) {
    // --help is a "parse error" with code 0.
    return app.exit(stop) == 0 ? 0 : wrong_usage;
  }
  // Writing past a file size limit is to be an error, not the end: the partial file is removed
  // then.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw vggload::io_error("standard output: cannot write");
    }
    return 0;
  } catch (...) {
    return report_error(file);
  }
}

/// Turns "123", "64KiB", "8 MiB", "1GiB" into bytes for an option; refuses anything else.
inline CLI::Validator byte_size() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
        std::string_view unit = std::string_view(text).substr(digits);
        while (unit.starts_with(' ')) unit.remove_prefix(1);
        std::uint64_t value = 0;
        const auto [end, code] = std::from_chars(text.data(), text.data() + digits, value);
        std::uint64_t factor = 0;
        if (unit.empty()) factor = 1;
        if (unit == "KiB") factor = std::uint64_t{1} << 10U;
        if (unit == "MiB") factor = std::uint64_t{1} << 20U;
        if (unit == "GiB") factor = std::uint64_t{1} << 30U;
        const auto bytes = vggload::checked_multiply(value, factor);
        if (digits == 0 || code != std::errc() || factor == 0 || !bytes) {
          return "'" + text + "' is not a number of bytes (such as 1000, 64KiB, 300MiB, 1GiB)";
        }
        text = std::to_string(*bytes);
        return {};
      },
      "BYTES");
}

/// Takes nothing but decimal digits from `least` to `most`: CLI11 alone would take 010 for 8 and -1
/// for a large number.
inline CLI::Validator whole_number(std::uint64_t least, std::uint64_t most) {
  return {[least, most](std::string& text) -> std::string {
            std::uint64_t value = 0;
            const char* const last = text.data() + text.size();
            const auto [end, code] = std::from_chars(text.data(), last, value);
            if (code != std::errc() || end != last || value < least || value > most) {
              return "'" + text + "' is not a whole number from " + std::to_string(least) + " to " +
                     std::to_string(most);
            }
            text = std::to_string(value);
            return {};
          },
          ""};
}

/// Height and width in "224x224"; nothing where the text is not of this form.
inline std::optional<std::pair<std::uint64_t, std::uint64_t>> parse_height_and_width(
    std::string_view text) {
  std::pair<std::uint64_t, std::uint64_t> size;
  const char* const last = text.data() + text.size();
  const auto [cross, first_code] = std::from_chars(text.data(), last, size.first);
  if (first_code != std::errc() || cross == last || *cross != 'x') return std::nullopt;
  const auto [end, second_code] = std::from_chars(cross + 1, last, size.second);
  if (second_code != std::errc() || end != last) return std::nullopt;
  return size;
}

/// Takes nothing else than what `parse_height_and_width` understands.
inline CLI::Validator height_and_width() {
  return {[](std::string& text) -> std::string {
            if (parse_height_and_width(text)) return {};
            return "'" + text + "' is not a height and a width (such as 224x224)";
          },
          ""};
}

/// What names a file or folder, or begins its name.
inline CLI::Validator not_empty() {
  return {[](const std::string& text) {
            return text.empty() ? std::string("it is empty") : std::string();
          },
          ""};
}

/// Adds an option that takes one of some words, and nothing else.
template <class Choice>
CLI::Option* add_choice(CLI::App& app, const std::string& name, Choice& chosen,
                        const std::map<std::string, Choice>& words,
                        const std::string& description) {
  return app
      .add_option_function<std::string>(
          name, [&chosen, words](const std::string& word) { chosen = words.at(word); }, description)
      ->check(CLI::IsMember(words));
}

/// Adds --threads, which all commands read alike.
inline void add_threads(CLI::App& app, unsigned& threads) {
  app.add_option("--threads", threads, "Threads (default: one for each processor)")
      ->transform(whole_number(1, 1024))
      ->type_name("N");
}

/// A progress bar on stderr where that is a terminal, nothing elsewhere.
class progress_bar {
 public:
  explicit progress_bar(std::string_view doing) : doing_(doing), shown_(::isatty(2) == 1) {}
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  ~progress_bar() { clear(); }

  /// Takes the bar off the screen: before a report, which would stand behind it otherwise.
  void clear() {
    if (shown_ && percent_ >= 0) std::fputs("\r\033[K", stderr);
    percent_ = -1;
  }

  /// `beside`: what stands behind the bar, such as a speed.
  void show(std::uint64_t done, std::uint64_t total, std::string_view beside = {}) {
    if (!shown_ || total == 0) return;
    const int percent =
        static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
    if (percent == percent_) return;
    percent_ = percent;
    constexpr int width = 40;
    const int filled = percent * width / 100;
    std::string bar(static_cast<std::size_t>(filled), '#');
    bar.resize(width, '.');
    // What stands behind changes its length: the rest of the line goes.
    const std::string end = beside.empty() ? "" : " " + std::string(beside) + "\033[K";
    std::fprintf(stderr, "\r%s [%s] %3d %%%s", doing_.c_str(), bar.c_str(), percent, end.c_str());
    std::fflush(stderr);
  }

 private:
  std::string doing_;
  bool shown_;
  int percent_ = -1;
};

/// Ctrl-C and its like end a command through a stop token, so that no partial file stays behind.
class interruption {
 public:
  interruption() {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
      // nohup and background jobs ignore some of them; so it stays.
      if (std::signal(signal, &interruption::on_signal) == SIG_IGN) std::signal(signal, SIG_IGN);
    }
  }

  [[nodiscard]] std::stop_token token() const { return source_.get_token(); }

  /// Hands a signal that came on to the token; called between windows.
  void poll() {
    if (signalled != 0) source_.request_stop();
  }

 private:
  static void on_signal(int) { signalled = 1; }
  static inline volatile std::sig_atomic_t signalled = 0;

  std::stop_source source_;
};

/// Progress and interruption for a stream.
inline vggload::stream_options stream_options(unsigned threads, interruption& interrupted,
                                              progress_bar& bar) {
  return {.threads = threads,
          .stop = interrupted.token(),
          .progress = [&](const vggload::stream_progress& progress) {
            interrupted.poll();
            bar.show(progress.done_bytes, progress.total_bytes);
          }};
}

/// What a digest reads at a time: long runs also of what is column-major in the file, and no peak of
/// its own beside a loaded model.
inline constexpr std::size_t digest_window_bytes = std::size_t{2} << 20U;

/// zlib's CRC-32, continued over several ranges of bytes.
class crc32 {
 public:
  void update(std::span<const std::byte> bytes) {
    value_ = ::crc32_z(value_, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  }
  /// Of a whole tensor's elements in row-major order, read window by window.
  void update(const vggload::checkpoint& file, std::size_t tensor, std::span<std::byte> window) {
    const std::uint64_t bytes = file.tensors()[tensor].bytes;
    for (std::uint64_t offset = 0; offset < bytes; offset += window.size()) {
      const auto part = window.first(
          static_cast<std::size_t>(std::min<std::uint64_t>(window.size(), bytes - offset)));
      vggload::read_row_major(file, tensor, offset, part);
      update(part);
    }
  }
  /// Of what a view shows, in row-major order.
  void update(const vggload::tensor_view& view, std::span<std::byte> window) {
    for (std::size_t offset = 0; offset < view.bytes().size(); offset += window.size()) {
      const auto part = window.first(std::min(window.size(), view.bytes().size() - offset));
      vggload::read_row_major(view, offset, part);
      update(part);
    }
  }
  /// 8 hex digits.
  [[nodiscard]] std::string hex() const {
    std::array<char, 16> text;
    std::snprintf(text.data(), text.size(), "%08lx", static_cast<unsigned long>(value_));
    return text.data();
  }

 private:
  uLong value_ = 0;
};

/// 138357544 -> "138,357,544".
inline std::string grouped(std::uint64_t value) { return vggload::detail::with_commas(value); }

}  // namespace command
