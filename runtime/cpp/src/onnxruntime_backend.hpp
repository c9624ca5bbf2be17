// Graphs in ONNX Runtime on the CPU: runtime/backends/onnxruntime.py in C++.
#pragma once

#include <filesystem>
#include <memory>

#include "fastsam2/open_backend.hpp"

namespace fastsam2 {

// One session per graph, opened at first use and shared by all trackers; graphs read the inputs where they lie and
// write the outputs where they stay.
// Throws BackendError if threads < 0, or the ONNX Runtime found is older than the one this was compiled for.
std::shared_ptr<Backend> open_onnxruntime(const std::filesystem::path& folder, const Manifest& manifest,
                                          const BackendOptions& options);

}  // namespace fastsam2
