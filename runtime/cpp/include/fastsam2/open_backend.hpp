// From the name of a backend to the backend.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "fastsam2/backend.hpp"
#include "fastsam2/bundle.hpp"

namespace fastsam2 {

enum class BackendName : std::uint8_t { OnnxRuntime, TensorRT, TensorRTRTX };
inline constexpr std::array<std::string_view, 3> kBackendNames{"onnxruntime", "tensorrt", "tensorrt-rtx"};
constexpr std::string_view name_of(BackendName value) {
  return kBackendNames[static_cast<std::size_t>(value)];
}

struct BackendOptions {
  int threads = 0;           // CPU threads inside one operator; 0: every core this process may use
  int gpu = 0;               // index of the GPU; backends on the CPU read it not
  bool cuda_graphs = false;  // TensorRT's engines are replayed as CUDA graphs once their addresses come back
};

// Opens a backend; another one is never opened in its place. It may serve several trackers.
//   folder, manifest: of the bundle, from read_manifest; the folder stays as long as the backend, which reads a graph
//     when it runs first.
// Throws BackendError if this build lacks it, an option is out of range or it cannot be used here; BundleError if the
// bundle has no graphs or engines for it.
std::shared_ptr<Backend> open_backend(BackendName name, const std::filesystem::path& folder, const Manifest& manifest,
                                      const BackendOptions& options = {});

}  // namespace fastsam2
