// A GPU through the CUDA runtime. Its context is the primary one, which TensorRT and other libraries use as well.
#pragma once

#include <memory>

#include "gpu.hpp"

namespace fastsam2::gpu {

// Throws BackendError if the driver or that GPU is missing, or is older than what the kernels were compiled for.
std::shared_ptr<Gpu> open_cuda_gpu(int index);

}  // namespace fastsam2::gpu
