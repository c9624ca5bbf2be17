// Engines of a bundle: `engines/<flavor>-<version>-<target>/engines.json`, and when they are accepted. Definition:
// engines/records.py; the format is described in docs/engines.md.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "fastsam2/bundle.hpp"
#include "profiles.hpp"

namespace fastsam2::gpu {

inline constexpr int kRecordVersion = 1;
inline constexpr std::string_view kPortable = "portable";

struct EngineEntry {
  GraphRole graph;
  std::string precision;
  FileEntry file;  // path relative to the folder of engines.json
  FileEntry listing;
  std::string source_sha256;  // of the bundle's ONNX
  std::vector<Profile> profiles;
  std::size_t activation_bytes = 0;  // of the profile that takes most
};

struct EngineSet {
  std::string flavor;   // "tensorrt", "tensorrt-rtx"
  std::string version;  // of its Python package
  std::string target;   // portable, or a compute capability
  Limits limits;
  std::vector<EngineEntry> engines;
  std::filesystem::path folder;

  // Null if there is none.
  [[nodiscard]] const EngineEntry* engine(GraphRole graph) const;
};

// The command that builds a set of engines (again); `precision` and `limits` as far as they are known.
std::string build_command(const std::filesystem::path& bundle, std::string_view flavor, std::string_view target,
                          std::string_view precision = {}, const Limits* limits = nullptr);

// `version` below is that of the library; engines are also its own where their version lacks the last of its four
// numbers or ends in `.postN`, as the versions of its Python package do.
//
// Targets that a bundle has engines for and that run on a GPU of this compute capability, its own first.
std::vector<std::string> targets_for(const std::filesystem::path& bundle, std::string_view flavor,
                                     std::string_view version, const std::string& capability);
// What to build where there is nothing.
std::string default_target(std::string_view flavor, const std::string& capability);

// The engines of a bundle after every check that does not need a GPU.
// Throws BundleError if an engine is missing, damaged, or was built from another ONNX file, for other limits or in
// another precision than the rest; says which and how to build it again.
EngineSet load_engines(const std::filesystem::path& bundle, const Manifest& manifest, std::string_view flavor,
                       std::string_view version, std::string_view target);

}  // namespace fastsam2::gpu
