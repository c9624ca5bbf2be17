// The manifest of a bundle, as fastsam2/bundle.py writes it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fastsam2/config.hpp"

namespace fastsam2 {

struct FileEntry {
  std::string path;  // relative to the bundle's folder
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct GraphEntry {
  GraphRole role;
  ExportTarget target;
  FileEntry file;
};

struct Manifest {
  ModelSpec model;
  std::vector<GraphEntry> graphs;
  std::vector<FileEntry> companions;  // tokenizer, projection, vocabulary

  // None where the bundle has no such graph.
  [[nodiscard]] const GraphEntry* find(GraphRole role, ExportTarget target) const;
  // Throws BundleError if the bundle has no such graph.
  const GraphEntry& graph(GraphRole role, ExportTarget target) const;
  // Throws BundleError unless the bundle has the graphs that every tracker needs.
  void check_tracked(ExportTarget target) const;
};

// The manifest in a text. Throws BundleError if it is malformed, of another version or contradicts the contract; says
// which and what to do.
Manifest parse_manifest(std::string_view json);
// Reads and checks a bundle: its manifest, and presence, size and, with `verify`, SHA-256 of every file. Throws
// BundleError.
Manifest read_manifest(const std::filesystem::path& folder, bool verify = true);

}  // namespace fastsam2
