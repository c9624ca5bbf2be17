// What TensorRT's headers take from CUDA's.
#pragma once

#include "cuda_runtime.h"

struct CUevent_st;
using cudaEvent_t = CUevent_st*;
