// Every kernel of the package by the name of its entry point, as a driver finds and launches it.
#include "top_k_gather.cu"

#include "frame_ops.cu"

namespace {

// Stands for a launch of either kind; `args` is the kernel's one parameter.
using Launcher = cudaError_t (*)(dim3 grid, dim3 block, unsigned shared_bytes, const void* args, cudaStream_t stream);

struct Kernel {
  const char* entry;
  std::size_t parameter_bytes;
  Launcher launch;
};

template <typename Args>
Args copy_of(const void* args) {
  Args copy;
  std::memcpy(&copy, args, sizeof copy);
  return copy;
}

template <typename Args, void (*kernel)(Args)>
constexpr Kernel waiting(const char* entry) {
  return {entry, sizeof(Args), [](dim3 grid, dim3 block, unsigned shared_bytes, const void* args, cudaStream_t stream) {
            Args copy = copy_of<Args>(args);
            void* parameters[] = {&copy};
            return cudaLaunchKernel(kernel, grid, block, parameters, shared_bytes, stream);
          }};
}

template <typename Args, void (*kernel)(Args)>
constexpr Kernel plain(const char* entry) {
  return {entry, sizeof(Args), [](dim3 grid, dim3 block, unsigned shared_bytes, const void* args, cudaStream_t stream) {
            const bool fits = shared_bytes == 0 && block.x <= FASTSAM2_FRAME_OPS_THREADS;
            return fits ? host::launch_plain(kernel, grid, block, copy_of<Args>(args), stream) : cudaErrorInvalidValue;
          }};
}

#define WAITING(arguments, entry) waiting<arguments, entry>(#entry)
#define PLAIN(arguments, entry) plain<arguments, entry>(#entry)

const Kernel kKernels[] = {
    WAITING(fastsam2_top_k_gather_args, fastsam2_top_k_gather_float32),
    WAITING(fastsam2_top_k_gather_args, fastsam2_top_k_gather_float16),
    PLAIN(fastsam2_resize_args, fastsam2_resize_columns),
    PLAIN(fastsam2_resize_args, fastsam2_resize_rows),
    PLAIN(fastsam2_round_args, fastsam2_round_bfloat16),
    PLAIN(fastsam2_read_memory_args, fastsam2_read_memory),
    PLAIN(fastsam2_pool_args, fastsam2_pool_2x2),
    PLAIN(fastsam2_cells_args, fastsam2_mask_scores),
    PLAIN(fastsam2_cells_args, fastsam2_uncertainty),
    PLAIN(fastsam2_masks_args, fastsam2_masks),
    PLAIN(fastsam2_clamp_args, fastsam2_clamp),
    PLAIN(fastsam2_fill_args, fastsam2_fill_words),
    PLAIN(fastsam2_fill_args, fastsam2_fill_bytes),
};
constexpr int kKernelCount = sizeof kKernels / sizeof *kKernels;

}  // namespace

extern "C" {

// Number of the kernel and the size of its parameter; -1 if there is none of that name.
int host_find(const char* entry, std::size_t* parameter_bytes) {
  for (int i = 0; i < kKernelCount; ++i) {
    if (std::strcmp(kKernels[i].entry, entry) != 0) continue;
    *parameter_bytes = kKernels[i].parameter_bytes;
    return i;
  }
  return -1;
}

// 0, or a CUDA error; `host_error` says which.
int host_launch(int kernel, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes, const void* args) {
  return kKernels[kernel].launch(dim3(grid_x, grid_y), dim3(threads), shared_bytes, args, nullptr);
}

void host_allow_shared(unsigned bytes) { host::device.allowed_shared = std::max(host::kSharedWithoutAsking, bytes); }

const char* host_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}
