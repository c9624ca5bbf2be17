// The small operations between the engines of one frame: arguments of the kernels, for whoever launches them.
//
//     frame ─ resize ─► pixels        rows ─ round, pool ─► memory bank ─ read ─► inputs of memory attention
//     logits ─► mask scores, uncertainty, masks, clamped logits
//
// Each entry point `fastsam2_<operation>` takes one struct by value and needs no shared memory. Pointers are device addresses, aligned to
// their element unless said, owned by the caller, valid until the launch has run on its stream; tensors are C-contiguous; destinations
// share no byte with sources. Nothing waits, nothing allocates; every launch may be captured into a CUDA graph. Plain C, no framework, no
// CUDA header; NVRTC reads it too. bfloat16 values are their 16 bits. Any number of blocks is right where a grid is called "any".
#ifndef FASTSAM2_FRAME_OPS_H_
#define FASTSAM2_FRAME_OPS_H_

#ifdef __cplusplus
extern "C" {
#endif

enum {
  FASTSAM2_FRAME_OPS_THREADS = 256  // the most threads of a block, [threads, 1, 1]
};

// One pass of Pillow's fixed-point resize of uint8 RGB, grid [ceil(columns / threads), lines].
//   fastsam2_resize_columns: source [lines,source_columns,3] -> target [lines,columns,3]
//   fastsam2_resize_rows:    source [any,columns,3] -> target [lines,columns,3]; source_columns is not read
typedef struct {
  const unsigned char* source;
  unsigned char* target;  // as above, or [3,lines,columns] where planar
  const int* bounds;      // [columns or lines,2] first input and number of inputs of each output
  const int* weights;     // [columns or lines,taps] in units of 2^-22, 0 behind the number of inputs
  int lines;
  int columns;
  int source_columns;
  int taps;
  int planar;  // 0 or 1
} fastsam2_resize_args;

// fastsam2_round_bfloat16: to the nearest, ties to even; too large values become infinite, every NaN 0x7FC0. Grid [any].
typedef struct {
  const float* values;   // [n]
  unsigned short* bits;  // [n]
  long long n;
} fastsam2_round_args;

// Rows of one frame of one object, 32 bytes.
typedef struct {
  const unsigned short* rows;  // bfloat16 [count,dim], 16-byte aligned where dim is a multiple of 8
  const int* position;         // [count]
  int object;                  // 0..batch-1
  int first;                   // row of the object's memory that the first row becomes
  int count;
  int age;
} fastsam2_memory_entry;

// One object pointer, 16 bytes.
typedef struct {
  const float* pointer;  // [hidden]
  float offset;
  int reserved;
} fastsam2_pointer_entry;

// fastsam2_read_memory: the inputs of memory attention for `batch` objects with `rows` memory rows and `pointer_count` pointers each.
// Grid [any, entry_count + batch].
typedef struct {
  const fastsam2_memory_entry* entries;           // [entry_count], 16-byte aligned; together they write each row of each object once
  const fastsam2_pointer_entry* pointer_entries;  // [batch,pointer_count], 16-byte aligned
  float* memory;                                  // [batch,rows,dim], 16-byte aligned
  int* position;                                  // [batch,rows]
  int* age;                                       // [batch,rows]
  float* pointers;                                // [batch,pointer_count,hidden]
  float* pointer_offset;                          // [batch,pointer_count]
  float* memory_bias;                             // [batch,keys], set to 0; null where there is none
  int entry_count;
  int rows;
  int pointer_count;
  int dim;
  int hidden;
  int keys;
} fastsam2_read_memory_args;

// fastsam2_pool_2x2: mean of each 2x2 block of cells, (((0 + a) + b) + c) + d in float32 in row-major order, rounded like
// fastsam2_round_bfloat16. Grid [any].
typedef struct {
  const unsigned short* rows;  // bfloat16 [grid*grid,dim]
  unsigned short* pooled;      // bfloat16 [grid/2*grid/2,dim]
  int grid;                    // even
  int dim;
} fastsam2_pool_args;

// A value for each cell of the grid from the 4x4 logits of the cell, grid [any, batch].
//   fastsam2_mask_scores: level 0..32 of the mask's coverage * grid*grid + order, as runtime/policies/mask.py defines it
//   fastsam2_uncertainty: mean of 4p(1-p), p = sigmoid(logit); order is not read
typedef struct {
  const float* logits;  // [batch,4*grid,4*grid], 16-byte aligned
  const float* order;   // [grid*grid]
  float* values;        // [batch,grid*grid]
  int grid;
} fastsam2_cells_args;

// Where an output of one axis samples, 16 bytes.
typedef struct {
  int low;
  int high;
  float low_weight;
  float high_weight;
} fastsam2_lerp;

// fastsam2_masks: bilinear resize, first along x, each product and each sum rounded to float32, then > 0. Grid [any, batch].
typedef struct {
  const float* logits;           // [batch,side,side]
  const fastsam2_lerp* rows;     // [height], 16-byte aligned; null, like columns, where height = width = side: nothing is resized
  const fastsam2_lerp* columns;  // [width], 16-byte aligned
  unsigned char* masks;          // [batch,height,width], 0 or 1
  int side;
  int height;
  int width;
} fastsam2_masks_args;

// fastsam2_clamp: to -limit..limit; NaN stays. Grid [any]. `clamped` may be `values`.
typedef struct {
  const float* values;  // [n]
  float* clamped;       // [n]
  long long n;
  float limit;
} fastsam2_clamp_args;

// fastsam2_fill_words: 4 bytes n times, target 4-byte aligned; fastsam2_fill_bytes: the lowest byte of `word` n times. Grid [any].
typedef struct {
  void* target;
  long long n;
  unsigned word;
} fastsam2_fill_args;

#ifdef __cplusplus
}
#endif

#endif  // FASTSAM2_FRAME_OPS_H_
