// The backends `tensorrt` and `tensorrt-rtx`.
#pragma once

#include <filesystem>
#include <memory>

#include "fastsam2/backend.hpp"
#include "fastsam2/bundle.hpp"
#include "fastsam2/open_backend.hpp"

namespace fastsam2 {

// The engines that `fastsam2 build` left in a bundle, on one GPU.
// Throws BackendError if this build lacks the flavor, or the GPU, its driver or the library is missing; BundleError if
// the bundle has no engines for them, with the command that builds them.
std::shared_ptr<Backend> open_tensorrt(BackendName name, const std::filesystem::path& folder, const Manifest& manifest,
                                       const BackendOptions& options);

}  // namespace fastsam2
