// Top-k gather: keep the k best-scored rows of every batch entry, in their original order.
//
//     scores [B,N], rows [B,N,row_bytes], k -- one launch --> kept [B,k,row_bytes], index [B,k]
//
// Larger scores rank first; equal scores (-0 equals +0) by lower index; NaN behind everything, NaNs by lower index. The same
// definition as kernels/reference.py, and the same bits on every run. Plain C, no framework, no CUDA header; NVRTC reads it too.
#ifndef FASTSAM2_TOP_K_GATHER_H_
#define FASTSAM2_TOP_K_GATHER_H_

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;  // what both CUstream and cudaStream_t point to

enum {
  FASTSAM2_TOP_K_GATHER_MAX_ROWS = 16384,           // N
  FASTSAM2_TOP_K_GATHER_MAX_BATCH = 65535,          // B
  FASTSAM2_TOP_K_GATHER_MAX_ROW_BYTES = 1 << 20
};

typedef enum {
  FASTSAM2_SCORES_FLOAT32 = 0,
  FASTSAM2_SCORES_FLOAT16 = 1
} fastsam2_score_type;

// All pointers are device addresses, owned by the caller, valid until the launch has run on its stream. A destination is usually a
// slot of a larger memory bank: strides may leave gaps, which are not written. kept must share no byte with rows.
typedef struct {
  const void* scores;              // [B,N], elements contiguous, aligned to their size
  const void* rows;                // [B,N,row_bytes], 16-byte aligned
  void* kept;                      // [B,k,row_bytes], 16-byte aligned
  int* index;                      // [B,k] int32, 4-byte aligned, strictly ascending
  long long scores_batch_stride;   // elements; 0 gives every entry the same scores
  long long rows_pitch;            // bytes from row to row, a multiple of 16, at least row_bytes
  long long rows_batch_stride;     // bytes, a multiple of 16; 0 gives every entry the same rows
  long long kept_pitch;            // as rows_pitch
  long long kept_batch_stride;     // bytes, a multiple of 16, at least k * kept_pitch when B > 1
  long long index_batch_stride;    // elements, at least k when B > 1
  int batch;                       // B, 1..65535
  int n;                           // N, 1..16384
  int k;                           // 0..N
  int row_bytes;                   // a multiple of 16, 16..1048576
} fastsam2_top_k_gather_args;

// What cuLaunchKernel needs to start fastsam2_top_k_gather_float32 or _float16 from a cubin: the one kernel parameter is the args struct.
typedef struct {
  unsigned grid_x, grid_y;   // grid_x 0: k is 0, there is nothing to launch
  unsigned threads;          // per block
  unsigned shared_bytes;     // dynamic; above 48 KiB the function attribute must allow it first
} fastsam2_top_k_gather_plan;

// Status: 0 success, below 1000 a refused argument, from 1000 on 1000 + cudaError_t.
// Checks the arguments and says how to launch. Touches no device memory.
int fastsam2_top_k_gather_check(const fastsam2_top_k_gather_args* args, fastsam2_score_type type, fastsam2_top_k_gather_plan* plan);

// Checks, then launches once on `stream` (null: the default stream) of the current context. Does not wait and does not allocate; may be
// captured into a CUDA graph.
int fastsam2_top_k_gather(const fastsam2_top_k_gather_args* args, fastsam2_score_type type, struct CUstream_st* stream);

// The status in words; static storage.
const char* fastsam2_top_k_gather_message(int status);

#ifdef __cplusplus
}
#endif

#endif  // FASTSAM2_TOP_K_GATHER_H_
