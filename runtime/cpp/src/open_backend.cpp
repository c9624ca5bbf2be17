#include "fastsam2/open_backend.hpp"

#include <string>

#include "fastsam2/errors.hpp"

#if defined(FASTSAM2_WITH_ONNXRUNTIME)
#include "onnxruntime_backend.hpp"
#endif
#if defined(FASTSAM2_WITH_TENSORRT)
#include "tensorrt/open.hpp"
#endif

namespace fastsam2 {

namespace {

[[noreturn]] [[maybe_unused]] void not_in_this_build(BackendName name, std::string_view todo) {
  throw BackendError(expected("a build of fastsam2 with " + std::string(name_of(name)), "one without it", todo));
}

}  // namespace

std::shared_ptr<Backend> open_backend(BackendName name, const std::filesystem::path& folder,
                                      [[maybe_unused]] const Manifest& manifest,
                                      [[maybe_unused]] const BackendOptions& options) {
  // Graphs are read when they run first: the working folder may be another one then.
  [[maybe_unused]] const std::filesystem::path absolute = std::filesystem::absolute(folder);
  if (name == BackendName::OnnxRuntime) {
#if defined(FASTSAM2_WITH_ONNXRUNTIME)
    return open_onnxruntime(absolute, manifest, options);
#else
    not_in_this_build(name,
                      "Configure with -DFASTSAM2_WITH_ONNXRUNTIME=ON -DONNXRUNTIME_ROOT=FOLDER, where FOLDER holds "
                      "include and lib of an ONNX Runtime release, and build again");
#endif
  }
#if defined(FASTSAM2_WITH_TENSORRT)
  return open_tensorrt(name, absolute, manifest, options);
#else
  not_in_this_build(name, "Configure with -DFASTSAM2_WITH_TENSORRT=ON, which says what it needs, and build again");
#endif
}

}  // namespace fastsam2
