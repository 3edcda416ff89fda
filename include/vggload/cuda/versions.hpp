// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

// Which versions of CUDA's driver, its runtime and cuDNN there are, and whether they fit together.
// All are asked by functions that need no CUDA context and make none; libraries are loaded at run
// time.

#include <algorithm>
#include <array>
#include <charconv>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <vggload/cuda/shared_library.hpp>

namespace vggload::cuda {

/// The versions that were found. CUDA's are numbers as CUDA gives them: 12040 is 12.4.
struct cuda_versions {
  std::string driver_release;          // of the driver in the kernel: "580.65.06"
  std::optional<int> driver;           // the CUDA version that it supports
  std::optional<int> runtime;          // of the runtime library
  std::optional<std::uint64_t> cudnn;  // 91900 is 9.19.0, before 9 8907 is 8.9.7
  std::optional<int> cudnn_cuda;       // the CUDA version that cuDNN was built with
  std::vector<std::string> not_found;  // why what is missing is missing
};

/// "12.4" for 12040.
[[nodiscard]] inline std::string cuda_version_text(int version) {
  return std::to_string(version / 1000) + '.' + std::to_string(version % 1000 / 10);
}

/// "9.19.0" for 91900, "8.9.7" for 8907.
[[nodiscard]] inline std::string cudnn_version_text(std::uint64_t version) {
  const std::uint64_t major_unit = version >= 10000 ? 10000 : 1000;
  return std::to_string(version / major_unit) + '.' + std::to_string(version % major_unit / 100) +
         '.' + std::to_string(version % 100);
}

/// Where the libraries are looked for; the first of each that can be loaded is asked.
struct cuda_libraries {
  std::vector<const char*> driver{"libcuda.so.1"};
  std::vector<const char*> runtime{"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"};
  std::vector<const char*> cudnn{"libcudnn.so.9", "libcudnn.so.8"};
};

namespace detail {

/// The first of the libraries that can be loaded; where none can, why the first could not.
[[nodiscard]] inline shared_library first_of(const std::vector<const char*>& names) {
  shared_library first(names.front());
  for (std::size_t i = 1; i < names.size() && !first; ++i) {
    shared_library other(names[i]);
    if (other) return other;
  }
  return first;
}

/// What a function gives that writes CUDA's version to an int and returns 0.
[[nodiscard]] inline std::optional<int> ask_version(const shared_library& library, const char* name,
                                                    std::vector<std::string>& not_found) {
  if (!library) {
    not_found.push_back(library.reason());
    return std::nullopt;
  }
  auto* const function = library.function<int(int*)>(name);
  if (function == nullptr) {
    not_found.push_back(std::string(name) + ": the library has no such function");
    return std::nullopt;
  }
  int version = 0;
  const int code = function(&version);
  if (code != 0 || version < 1000) {
    not_found.push_back(std::string(name) + ": error " + std::to_string(code) + ", version " +
                        std::to_string(version));
    return std::nullopt;
  }
  return version;
}

}  // namespace detail

/// Asks the libraries. `driver_release`: as NVML gives it (`nvml_answer`), empty where it is not
/// known. Throws nothing but std::bad_alloc.
[[nodiscard]] inline cuda_versions find_cuda_versions(std::string driver_release,
                                                      const cuda_libraries& libraries = {}) {
  cuda_versions found;
  found.driver_release = std::move(driver_release);
  found.driver = detail::ask_version(detail::first_of(libraries.driver), "cuDriverGetVersion",
                                     found.not_found);
  found.runtime = detail::ask_version(detail::first_of(libraries.runtime), "cudaRuntimeGetVersion",
                                      found.not_found);
  const shared_library cudnn = detail::first_of(libraries.cudnn);
  if (!cudnn) {
    found.not_found.push_back(cudnn.reason());
    return found;
  }
  const auto ask = [&](const char* name) -> std::optional<std::uint64_t> {
    if (auto* const function = cudnn.function<std::size_t()>(name)) return function();
    found.not_found.push_back(std::string(name) + ": the library has no such function");
    return std::nullopt;
  };
  found.cudnn = ask("cudnnGetVersion");
  const std::optional<std::uint64_t> built_with = ask("cudnnGetCudartVersion");
  if (built_with && *built_with >= 1000 && *built_with < 1000000) {
    found.cudnn_cuda = static_cast<int>(*built_with);
  }
  return found;
}

/// Whether versions fit together. The greater it is, the more it weighs.
enum class version_verdict : std::uint8_t { fits, cannot_tell, does_not_fit };

[[nodiscard]] constexpr std::string_view name_of(version_verdict verdict) noexcept {
  constexpr std::array<std::string_view, 3> names{"fits", "cannot tell", "does not fit"};
  return names[static_cast<std::size_t>(verdict)];
}

/// A verdict, and a line for each pair of versions that it rests on.
struct version_judgement {
  version_verdict verdict = version_verdict::fits;
  std::vector<std::string> reasons;
};

namespace detail {

/// A driver's release: 525.60.13.
using driver_release = std::array<int, 3>;

/// The oldest driver that runs all of a major version of CUDA on Linux, and the first major version
/// whose minor versions need no newer driver each: table "CUDA Toolkit and Minimum Required Driver
/// Version for CUDA Minor Version Compatibility" of the CUDA Toolkit release notes
/// (docs.nvidia.com/cuda/cuda-toolkit-release-notes).
[[nodiscard]] constexpr std::optional<driver_release> oldest_driver(int cuda_major) noexcept {
  switch (cuda_major) {
    case 11: return driver_release{450, 80, 2};
    case 12: return driver_release{525, 60, 13};
    case 13: return driver_release{580, 0, 0};
    default: return std::nullopt;
  }
}
inline constexpr int first_major_with_minor_compatibility = 11;

/// "525.60.13" and "580" as numbers; nothing for anything else.
[[nodiscard]] inline std::optional<driver_release> parse_driver_release(
    std::string_view text) noexcept {
  driver_release numbers{};
  const char* at = text.data();
  const char* const end = at + text.size();
  for (int& number : numbers) {
    const auto [next, code] = std::from_chars(at, end, number);
    if (code != std::errc() || number < 0) return std::nullopt;
    if (next == end) return numbers;
    if (*next != '.') return std::nullopt;
    at = next + 1;
  }
  return std::nullopt;
}

[[nodiscard]] inline std::string driver_release_text(const driver_release& release) {
  if (release[1] == 0) return std::to_string(release[0]);
  const std::string last = std::to_string(release[2]);
  return std::to_string(release[0]) + '.' + std::to_string(release[1]) + '.' +
         (last.size() < 2 ? "0" : "") + last;
}

/// Whether a driver for CUDA `driver` runs `what`, which was built with CUDA `needed`: a driver
/// runs all that is older; from CUDA 11 on it also runs what is newer within its major version
/// (docs.nvidia.com/deploy/cuda-compatibility: minor version compatibility, forward compatibility).
inline void judge_driver(version_judgement& judgement, const cuda_versions& versions, int driver,
                         std::string_view what, int needed) {
  const auto add = [&](version_verdict verdict, const std::string& rest) {
    judgement.verdict = std::max(judgement.verdict, verdict);
    judgement.reasons.push_back((std::string(what) += " of CUDA " + cuda_version_text(needed) +
                                                      " on a driver for CUDA " +
                                                      cuda_version_text(driver) + ": ") += rest);
  };
  const int major = needed / 1000;
  const auto oldest = oldest_driver(major);
  const auto release = parse_driver_release(versions.driver_release);
  const std::string minimum =
      oldest ? " (" + driver_release_text(*oldest) + " or later)" : std::string();
  if (driver / 1000 < major) {
    return add(version_verdict::does_not_fit,
               "needs a driver for CUDA " + std::to_string(major) + minimum);
  }
  if (oldest && release && (*release)[0] < (*oldest)[0]) {
    // The driver in the kernel is older than what libcuda.so says of itself.
    return add(version_verdict::cannot_tell,
               "the driver is of release " + driver_release_text(*release) +
                   ", so that this rests on a forward compatibility package, which works on GPUs "
                   "for data centres only");
  }
  if (driver >= needed) {
    return add(version_verdict::fits, "a driver runs what is as old as it or older");
  }
  if (major < first_major_with_minor_compatibility) {
    return add(version_verdict::does_not_fit, "before CUDA 11 no driver runs what is newer");
  }
  if (oldest && release && *release < *oldest) {
    return add(version_verdict::does_not_fit, "what is newer needs a newer release than " +
                                                  driver_release_text(*release) + minimum);
  }
  add(version_verdict::fits,
      "minor version compatibility; PTX and what is new in the newer version may not work");
}

}  // namespace detail

/// Whether the versions fit together. What is missing cannot be judged, but for cuDNN, which not
/// every program needs.
[[nodiscard]] inline version_judgement judge(const cuda_versions& versions) {
  version_judgement judgement;
  const auto cannot_tell = [&](std::string_view why) {
    judgement.verdict = std::max(judgement.verdict, version_verdict::cannot_tell);
    judgement.reasons.emplace_back(why);
  };
  if (!versions.driver) cannot_tell("there is no driver to judge by");
  if (!versions.runtime) cannot_tell("there is no CUDA runtime to judge");
  if (versions.driver && versions.runtime) {
    detail::judge_driver(judgement, versions, *versions.driver, "the runtime", *versions.runtime);
  }
  if (!versions.cudnn) {
    judgement.reasons.emplace_back("there is no version of cuDNN to judge");
    return judgement;
  }
  if (!versions.cudnn_cuda) {
    cannot_tell("cuDNN does not say which CUDA it was built with");
    return judgement;
  }
  if (versions.driver) {
    detail::judge_driver(judgement, versions, *versions.driver, "cuDNN", *versions.cudnn_cuda);
  }
  if (!versions.runtime) return judgement;
  // cuDNN is built for a major version of CUDA, and takes its libraries.
  const bool same_major = *versions.cudnn_cuda / 1000 == *versions.runtime / 1000;
  if (!same_major) judgement.verdict = version_verdict::does_not_fit;
  judgement.reasons.push_back(
      "cuDNN " + cudnn_version_text(*versions.cudnn) + " of CUDA " +
      cuda_version_text(*versions.cudnn_cuda) + " with the runtime of CUDA " +
      cuda_version_text(*versions.runtime) +
      (same_major ? ": the same major version" : ": another major version"));
  return judgement;
}

}  // namespace vggload::cuda
