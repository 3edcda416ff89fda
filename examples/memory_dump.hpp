// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// What loading commands share about where memory goes: the dump for viewers, and the report after
// an out of memory.

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include <CLI/CLI.hpp>

#include <vggload/core/error.hpp>
#include <vggload/load/checkpoint.hpp>
#include <vggload/load/stream.hpp>
#include <vggload/memory/ledger.hpp>
#include <vggload/memory/memory_report.hpp>
#include <vggload/memory/out_of_memory.hpp>
#include <vggload/memory/process_memory.hpp>
#include <vggload/trace/dump.hpp>
#include <vggload/trace/health_row.hpp>
#include <vggload/trace/report_json.hpp>

namespace command {

/// `--dump`, `--explain`.
class memory_dump {
 public:
  explicit memory_dump(CLI::App& app) {
    option_ =
        app.add_option("--dump", folder_,
                       "Write the timeline of memory and each tensor's health here, for viewers");
    option_->type_name("DIR");
    app.add_flag("--explain", explains_,
                 "When memory runs out: say on stdout what filled it and what would fit");
  }

  /// Whether a dump is written: then the health of all tensors is wanted.
  [[nodiscard]] bool is_wanted() const { return option_->count() > 0; }

  /// The ledger to keep; none where nobody wants it.
  [[nodiscard]] const std::shared_ptr<vggload::memory_ledger>& ledger() const { return ledger_; }

  /// Opens the ledger, and makes the folder: where that is refused nothing need be loaded.
  void begin() {
    if (is_wanted() || explains_) ledger_ = std::make_shared<vggload::memory_ledger>();
    if (!is_wanted()) return;
    vggload::make_folder(folder_);
    if (::access(folder_.c_str(), W_OK | X_OK) != 0) {
      vggload::detail::throw_system_error(folder_, "cannot write to the folder", errno);
    }
    sample();
  }

  /// Adds points of what is resident to the timeline while a stream goes on.
  [[nodiscard]] std::function<void(const vggload::stream_progress&)> sampling(
      std::function<void(const vggload::stream_progress&)> progress) const {
    if (!is_wanted()) return progress;
    return [this, progress = std::move(progress),
            next = std::uint64_t{0}](const vggload::stream_progress& at) mutable {
      progress(at);
      // Reading the kernel's counters takes time.
      constexpr std::uint64_t most_samples = 20;
      if (at.done_bytes < next) return;
      next = at.done_bytes + at.total_bytes / most_samples;
      sample();
    };
  }

  void write(const vggload::checkpoint& file,
             std::span<const vggload::measured_tensor> measured) const {
    if (!is_wanted()) return;
    sample();
    std::vector<vggload::health_row> rows;
    rows.reserve(measured.size());
    for (const vggload::measured_tensor& one : measured) {
      const vggload::tensor_info& info = file.tensors()[one.tensor];
      rows.push_back({info.name, info.dtype, one.to, info.shape, one.health});
    }
    vggload::write_dump(folder_, ledger_->snapshot(), rows);
  }

  /// For the exception that is being handled: the dump that stands after it, and the explanation.
  /// What goes wrong here hides nothing of that exception.
  void write_failure(bool json) const noexcept {
    const vggload::memory_report* report = nullptr;
    try {
      try {
        throw;
      } catch (const vggload::out_of_memory& e) {
        report = e.report().get();
        if (explains_ && report != nullptr) {
          const std::string text = json ? vggload::report_json(*report) : to_text(*report);
          std::fputs(text.c_str(), stdout);
        }
        if (is_wanted()) vggload::write_dump(folder_, ledger_->snapshot(), {}, report);
      } catch (...) {
        if (is_wanted()) vggload::write_dump(folder_, ledger_->snapshot(), {});
      }
    } catch (...) {
      // The first error is the one to tell.
    }
  }

 private:
  void sample() const {
    if (const auto memory = vggload::read_process_memory()) ledger_->sample(memory->resident);
  }

  CLI::Option* option_ = nullptr;
  std::string folder_;
  bool explains_ = false;
  std::shared_ptr<vggload::memory_ledger> ledger_;
};

}  // namespace command
