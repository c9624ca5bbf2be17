#include "open.hpp"

#include <string>

#include "cuda_gpu.hpp"
#include "gpu_backend.hpp"
#include "graphs.hpp"
#include "nvinfer.hpp"
#include "tensorrt_engines.hpp"

namespace fastsam2 {

namespace {

std::unique_ptr<gpu::InferLibrary> open_library(BackendName name) {
#ifdef FASTSAM2_HAS_TENSORRT
  if (name == BackendName::TensorRT) {
    return gpu::open_tensorrt_library();
  }
#endif
#ifdef FASTSAM2_HAS_TENSORRT_RTX
  if (name == BackendName::TensorRTRTX) {
    return gpu::open_tensorrt_rtx_library();
  }
#endif
  const char* root = name == BackendName::TensorRT ? "TENSORRT_ROOT" : "TENSORRT_RTX_ROOT";
  throw BackendError(expected("a build of fastsam2 with " + std::string(name_of(name)), "one with the other flavor",
                              "Configure with -D" + std::string(root) + "=FOLDER too, and build again"));
}

}  // namespace

std::shared_ptr<Backend> open_tensorrt(BackendName name, const std::filesystem::path& folder, const Manifest& manifest,
                                       const BackendOptions& options) {
  std::unique_ptr<gpu::InferLibrary> library = open_library(name);
  const std::shared_ptr<gpu::Gpu> device = gpu::open_cuda_gpu(options.gpu);
  std::unique_ptr<gpu::Engines> engines =
      std::make_unique<gpu::TensorRtEngines>(folder, manifest, device, std::move(library), name_of(name));
  if (options.cuda_graphs) {
    engines = std::make_unique<gpu::GraphEngines>(std::move(engines), device);
  }
  return std::make_shared<gpu::GpuBackend>(device, std::move(engines), manifest.model);
}

}  // namespace fastsam2
