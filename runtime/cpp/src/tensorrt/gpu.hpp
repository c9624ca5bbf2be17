// What the loop needs of a GPU: memory, copies, launches and recordings on one stream. No type of CUDA, so that tests
// put another machine in its place. Definition: runtime/gpu/driver.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "top_k_gather.h"

namespace fastsam2::gpu {

// Entry points of kernels/cuda/frame_ops.cu.
enum class Kernel : std::uint8_t {
  ResizeColumns,
  ResizeRows,
  RoundBfloat16,
  ReadMemory,
  Pool2x2,
  MaskScores,
  Uncertainty,
  Masks,
  Clamp,
  FillWords,
  FillBytes
};
inline constexpr std::array<std::string_view, 11> kKernelNames{
    "fastsam2_resize_columns", "fastsam2_resize_rows", "fastsam2_round_bfloat16", "fastsam2_read_memory",
    "fastsam2_pool_2x2",       "fastsam2_mask_scores", "fastsam2_uncertainty",    "fastsam2_masks",
    "fastsam2_clamp",          "fastsam2_fill_words",  "fastsam2_fill_bytes"};

struct Grid {
  unsigned blocks = 1;
  unsigned lines = 1;      // the second axis
  unsigned threads = 256;  // of a block
};

// Work that was recorded instead of run. Destroyed after the stream is through with it.
class Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  virtual ~Recording() = default;

  // Enqueues it. Throws BackendError.
  virtual void launch() = 0;
};

// Work is enqueued on one stream and runs in the order of the calls; only `synchronize` waits. Sizes are bytes. Usable
// from every thread; while one records, the others wait. Every member may throw BackendError: what CUDA said, and what
// to do.
class Gpu {
 public:
  Gpu() = default;
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  virtual ~Gpu() = default;

  [[nodiscard]] virtual const std::string& name() const = 0;        // "NVIDIA H200"
  [[nodiscard]] virtual const std::string& capability() const = 0;  // "9.0"
  [[nodiscard]] virtual void* stream() const = 0;                   // cudaStream_t
  // Makes it the calling thread's GPU, for libraries that enqueue on the stream.
  virtual void activate() = 0;

  // New device memory, aligned to 256 bytes at least, not initialised. Throws BackendError if there is too little.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  // Page-locked host memory.
  virtual void* pinned(std::size_t bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;

  // Copies; host memory is page-locked and stays until the stream is through with it.
  virtual void upload(void* target, const void* source, std::size_t bytes) = 0;
  virtual void download(void* target, const void* source, std::size_t bytes) = 0;
  virtual void copy(void* target, const void* source, std::size_t bytes) = 0;

  // `args` is the one parameter of the kernel, and is copied.
  virtual void launch(Kernel kernel, const Grid& grid, const void* args, std::size_t bytes) = 0;
  virtual void top_k_gather(const fastsam2_top_k_gather_args& args) = 0;

  // Waits for the stream. Throws BackendError if anything enqueued failed; the GPU's context is lost then.
  virtual void synchronize() = 0;

  // What this thread enqueues from now on is recorded; `end_recording` has to follow.
  virtual void begin_recording() = 0;
  // Throws BackendError if it cannot be used; recording has ended then, and nothing of it has run.
  virtual std::unique_ptr<Recording> end_recording() = 0;
};

}  // namespace fastsam2::gpu
