// TensorRT and TensorRT-RTX, opened at run time.
//
// A program needs one function of the library by name (createInferRuntime_INTERNAL); everything else goes through
// virtual tables. So the library is opened with dlopen and not linked: a program with fastsam2 in it starts where
// TensorRT is missing and gets an error that says so, a build takes only the headers, and both flavors, whose libraries
// export the same names, fit into one program.
#pragma once

#include <memory>

#include "infer.hpp"

namespace fastsam2::gpu {

// Each throws BackendError if the library is not found or is of another version than the headers.
std::unique_ptr<InferLibrary> open_tensorrt_library();
std::unique_ptr<InferLibrary> open_tensorrt_rtx_library();

}  // namespace fastsam2::gpu
