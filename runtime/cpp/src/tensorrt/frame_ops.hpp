// The operations between engines as launches on device memory: grids and checks. Definition: kernels/frame_ops.py.
#pragma once

#include <cstdint>

#include "frame_tables.hpp"
#include "gpu.hpp"

namespace fastsam2::gpu {

// Addresses are of C-contiguous tensors in device memory that stay until the launch has run. Each enqueues one launch
// (resize: two), or throws InternalError if a size or an address is out of range.
class FrameOps {
 public:
  explicit FrameOps(Gpu& gpu) : gpu_(gpu) {}

  struct Resize {
    const void* frame;  // uint8 [height, width, 3]
    std::int64_t height, width, size;
    const void *column_bounds, *column_weights;  // resize_table(width, size)
    const void *row_bounds, *row_weights;        // resize_table(height, size)
    void* scratch;                               // uint8 [height, size, 3], or [size, width, 3] with `rows_first`
    void* pixels;                                // uint8 [3, size, size]
    bool rows_first;
  };
  void resize(const Resize& r);
  // float32 -> bfloat16 bits.
  void round_bfloat16(const void* values, void* bits, std::int64_t n);
  // uint16 [grid * grid, dim] -> [grid * grid / 4, dim].
  void pool_2x2(const void* rows, void* pooled, std::int64_t grid, std::int64_t dim);
  // float32 [4 grid, 4 grid], order float32 [grid * grid] -> float32 [grid * grid].
  void mask_scores(const void* logits, const void* order, void* scores, std::int64_t grid);
  // float32 [batch, 4 grid, 4 grid] -> float32 [batch, grid * grid].
  void uncertainty(const void* logits, void* values, std::int64_t batch, std::int64_t grid);
  // float32 [batch, side, side] -> bool [batch, height, width]; tables are null where nothing is resized.
  void masks(const void* logits, const void* rows, const void* columns, void* masks, std::int64_t batch,
             std::int64_t side, std::int64_t height, std::int64_t width);
  void clamp(const void* values, void* clamped, std::int64_t n, float limit);
  // `word` n times: its four bytes, or the lowest of them.
  void fill_words(void* target, std::int64_t n, unsigned word);
  void fill_bytes(void* target, std::int64_t n, unsigned word);
  // `args` without entry_count, rows, pointer_count and the entries; `table` is the uploaded `layout`.
  void read_memory(const void* table, const MemoryTable& layout, fastsam2_read_memory_args args);
  // The rows [n, row_bytes] with the largest float32 scores.
  void top_k_gather(const void* scores, const void* rows, void* kept, void* index, std::int64_t n, std::int64_t k,
                    std::int64_t row_bytes);

 private:
  template <typename Args>
  void launch(Kernel kernel, const Grid& grid, const Args& args) {
    gpu_.launch(kernel, grid, &args, sizeof args);
  }

  Gpu& gpu_;
};

}  // namespace fastsam2::gpu
