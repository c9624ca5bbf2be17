// Entry points of the operations between the engines; see frame_ops.h.
#ifndef __CUDACC_RTC__
#include <cuda_runtime.h>
#endif

#include "frame_ops.cuh"

#define FASTSAM2_ENTRY(operation, arguments, code) \
  extern "C" __global__ void __launch_bounds__(FASTSAM2_FRAME_OPS_THREADS) fastsam2_##operation(arguments args) { fastsam2::code(args); }

FASTSAM2_ENTRY(resize_columns, fastsam2_resize_args, resize_columns)
FASTSAM2_ENTRY(resize_rows, fastsam2_resize_args, resize_rows)
FASTSAM2_ENTRY(round_bfloat16, fastsam2_round_args, round_bfloat16)
FASTSAM2_ENTRY(read_memory, fastsam2_read_memory_args, read_memory)
FASTSAM2_ENTRY(pool_2x2, fastsam2_pool_args, pool_2x2)
FASTSAM2_ENTRY(mask_scores, fastsam2_cells_args, mask_scores)
FASTSAM2_ENTRY(uncertainty, fastsam2_cells_args, uncertainty)
FASTSAM2_ENTRY(masks, fastsam2_masks_args, masks)
FASTSAM2_ENTRY(clamp, fastsam2_clamp_args, clamp)
FASTSAM2_ENTRY(fill_words, fastsam2_fill_args, fill<unsigned>)
FASTSAM2_ENTRY(fill_bytes, fastsam2_fill_args, fill<unsigned char>)

#undef FASTSAM2_ENTRY
