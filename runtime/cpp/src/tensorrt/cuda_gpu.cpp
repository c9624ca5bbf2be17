#include "cuda_gpu.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <mutex>

#include "fastsam2/errors.hpp"
#include "frame_ops.h"

// The host's side of the entry points of frame_ops.cu, as nvcc makes it.
extern "C" {
void fastsam2_resize_columns(fastsam2_resize_args args);
void fastsam2_resize_rows(fastsam2_resize_args args);
void fastsam2_round_bfloat16(fastsam2_round_args args);
void fastsam2_read_memory(fastsam2_read_memory_args args);
void fastsam2_pool_2x2(fastsam2_pool_args args);
void fastsam2_mask_scores(fastsam2_cells_args args);
void fastsam2_uncertainty(fastsam2_cells_args args);
void fastsam2_masks(fastsam2_masks_args args);
void fastsam2_clamp(fastsam2_clamp_args args);
void fastsam2_fill_words(fastsam2_fill_args args);
void fastsam2_fill_bytes(fastsam2_fill_args args);
}

namespace fastsam2::gpu {

namespace {

constexpr std::string_view kLost = "If an earlier step failed on this GPU its context is lost: start again";
constexpr double kMib = 1024.0 * 1024.0;

struct Entry {
  const void* function;
  std::size_t parameter_bytes;
};

template <typename Args>
Entry entry(void (*function)(Args)) {
  return {reinterpret_cast<const void*>(function), sizeof(Args)};
}

// In the order of Kernel.
const std::array<Entry, kKernelNames.size()>& entries() {
  static const std::array<Entry, kKernelNames.size()> all{
      entry(fastsam2_resize_columns), entry(fastsam2_resize_rows), entry(fastsam2_round_bfloat16),
      entry(fastsam2_read_memory),    entry(fastsam2_pool_2x2),    entry(fastsam2_mask_scores),
      entry(fastsam2_uncertainty),    entry(fastsam2_masks),       entry(fastsam2_clamp),
      entry(fastsam2_fill_words),     entry(fastsam2_fill_bytes)};
  return all;
}

std::string reason(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
}

void check(cudaError_t error, std::string_view what, std::string_view todo = kLost) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // what can be put right must not show in the next launch
    throw BackendError(expected("the CUDA runtime " + std::string(what), reason(error), todo));
  }
}

class CudaRecording final : public Recording {
 public:
  CudaRecording(cudaGraphExec_t graph, cudaStream_t stream) : graph_(graph), stream_(stream) {}
  ~CudaRecording() override { cudaGraphExecDestroy(graph_); }
  void launch() override { check(cudaGraphLaunch(graph_, stream_), "to launch a CUDA graph"); }

 private:
  cudaGraphExec_t graph_;
  cudaStream_t stream_;
};

class CudaGpu final : public Gpu {
 public:
  explicit CudaGpu(int index) : index_(index) {
    constexpr std::string_view kNeedGpu = "Check nvidia-smi, or use the backend onnxruntime, which needs no GPU";
    int count = 0;
    check(cudaGetDeviceCount(&count), "to find an NVIDIA driver with a GPU", kNeedGpu);
    if (index < 0 || index >= count) {
      throw BackendError(
          expected("the index of one of " + std::to_string(count) + " GPUs", std::to_string(index), kNeedGpu));
    }
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "to describe the GPU", kNeedGpu);
    name_ = properties.name;
    capability_ = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    activate();
    cudaFuncAttributes kernel{};
    check(cudaFuncGetAttributes(&kernel, entries()[0].function),
          "to find kernels for " + name_ + " (" + capability_ + ")",
          "Build fastsam2 again with its compute capability in CMAKE_CUDA_ARCHITECTURES");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "to make a stream");
  }

  ~CudaGpu() override {
    cudaSetDevice(index_);
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] const std::string& capability() const override { return capability_; }
  [[nodiscard]] void* stream() const override { return stream_; }
  void activate() override { check(cudaSetDevice(index_), "to use the GPU in this thread"); }

  void* allocate(std::size_t bytes) override {
    activate();
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, std::max<std::size_t>(1, bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      std::size_t free = 0;
      std::size_t total = 0;
      check(cudaMemGetInfo(&free, &total), "to say how much memory is free");
      throw BackendError(expected(
          std::to_string(static_cast<double>(bytes) / kMib) + " MiB of memory on " + name_,
          std::to_string(static_cast<double>(free) / kMib) + " MiB free of " +
              std::to_string(static_cast<double>(total) / kMib),
          "Track fewer objects, build engines with a smaller --max-objects, prune the memory, or export with a smaller "
          "--image-size; other programs on this GPU take memory too"));
    }
    check(error, "to allocate memory");
    return memory;
  }

  void release(void* memory) noexcept override {
    cudaSetDevice(index_);
    cudaFree(memory);
  }

  void* pinned(std::size_t bytes) override {
    activate();
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, std::max<std::size_t>(1, bytes), cudaHostAllocDefault), "to lock host memory",
          "Close other programs, or raise the limit of locked memory (ulimit -l)");
    return memory;
  }

  void release_pinned(void* memory) noexcept override {
    cudaSetDevice(index_);
    cudaFreeHost(memory);
  }

  void upload(void* target, const void* source, std::size_t bytes) override {
    copy_async(target, source, bytes, cudaMemcpyHostToDevice);
  }
  void download(void* target, const void* source, std::size_t bytes) override {
    copy_async(target, source, bytes, cudaMemcpyDeviceToHost);
  }
  void copy(void* target, const void* source, std::size_t bytes) override {
    copy_async(target, source, bytes, cudaMemcpyDeviceToDevice);
  }

  void launch(Kernel kernel, const Grid& grid, const void* args, std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    const Entry& one = entries().at(static_cast<std::size_t>(kernel));
    const std::string_view name = kKernelNames.at(static_cast<std::size_t>(kernel));
    if (bytes != one.parameter_bytes) {
      throw InternalError(
          expected("arguments of " + std::string(name), std::to_string(bytes) + " bytes", "Report this"));
    }
    activate();
    void* parameters[] = {const_cast<void*>(args)};  // CUDA copies it, and takes no pointer to const
    check(cudaLaunchKernel(one.function, dim3(grid.blocks, grid.lines), dim3(grid.threads), parameters, 0, stream_),
          "to launch " + std::string(name));
  }

  void top_k_gather(const fastsam2_top_k_gather_args& args) override {
    const std::lock_guard lock(mutex_);
    activate();
    if (const int status = fastsam2_top_k_gather(&args, FASTSAM2_SCORES_FLOAT32, stream_); status != 0) {
      throw BackendError(expected("the top-k gather to be launched", fastsam2_top_k_gather_message(status), kLost));
    }
  }

  void synchronize() override {
    const std::lock_guard lock(mutex_);
    activate();
    check(cudaStreamSynchronize(stream_), "to finish what was enqueued on " + name_);
  }

  // Holds the mutex until the end: what other threads enqueue on the stream meanwhile would be recorded too.
  void begin_recording() override {
    std::unique_lock lock(mutex_);
    activate();
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "to begin a capture");
    lock.release();
  }

  std::unique_ptr<Recording> end_recording() override {
    const std::unique_lock lock(mutex_, std::adopt_lock);
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_, &graph), "to capture a CUDA graph");
    cudaGraphExec_t ready = nullptr;
    const cudaError_t error = cudaGraphInstantiateWithFlags(&ready, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "to make a CUDA graph of what was captured");
    return std::make_unique<CudaRecording>(ready, stream_);
  }

 private:
  void copy_async(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind) {
    const std::lock_guard lock(mutex_);
    activate();
    check(cudaMemcpyAsync(target, source, bytes, kind, stream_), "to copy");
  }

  std::recursive_mutex mutex_;
  int index_;
  std::string name_;
  std::string capability_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::shared_ptr<Gpu> open_cuda_gpu(int index) {
  return std::make_shared<CudaGpu>(index);
}

}  // namespace fastsam2::gpu
