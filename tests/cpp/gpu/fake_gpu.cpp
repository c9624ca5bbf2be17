#include "fake_gpu.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace fastsam2::testing {

namespace {

constexpr std::size_t kAlignment = 256;  // that cudaMalloc promises, and that TensorRT asks for

// The kernels on the CPU: tests/kernel_host/kernels.cpp.
class Kernels {
 public:
  static const Kernels& instance() {
    static const Kernels kernels;
    return kernels;
  }

  void run(std::string_view entry, const gpu::Grid& grid, unsigned shared, const std::vector<std::byte>& args) const {
    std::size_t bytes = 0;
    const int number = find_(std::string(entry).c_str(), &bytes);
    if (number < 0 || bytes != args.size()) {
      throw InternalError(expected(std::string(entry) + " of " + std::to_string(args.size()) + " bytes",
                                   std::to_string(bytes), "See tests/kernel_host/kernels.cpp"));
    }
    allow_(shared);
    if (const int status = launch_(number, grid.blocks, grid.lines, grid.threads, shared, args.data()); status != 0) {
      throw BackendError(expected("the host to launch " + std::string(entry), error_(status), "See kernel_host"));
    }
  }

  int (*check)(const fastsam2_top_k_gather_args*, fastsam2_score_type, fastsam2_top_k_gather_plan*);

 private:
  Kernels() {
    void* library = dlopen(FASTSAM2_KERNEL_HOST, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw InternalError(expected("the emulated kernels", dlerror(), "Build fastsam2_kernel_host"));
    }
    const auto bind = [library](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    };
    bind(check, "fastsam2_top_k_gather_check");
    bind(find_, "host_find");
    bind(launch_, "host_launch");
    bind(allow_, "host_allow_shared");
    bind(error_, "host_error");
  }

  int (*find_)(const char*, std::size_t*);
  int (*launch_)(int, unsigned, unsigned, unsigned, unsigned, const void*);
  void (*allow_)(unsigned);
  const char* (*error_)(int);
};

std::vector<std::byte> bytes_of(const void* args, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(args);
  return {first, first + bytes};
}

void* garbage(std::size_t bytes) {
  const std::size_t size = std::max<std::size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, size);
  std::memset(memory, 0xFF, size);  // NaN in every float
  return memory;
}

class FakeRecording final : public gpu::Recording {
 public:
  FakeRecording(FakeGpu& gpu, std::shared_ptr<std::vector<FakeGpu::Work>> works)
      : gpu_(gpu), works_(std::move(works)) {}
  void launch() override {
    gpu_.enqueue("recording", [works = works_] {
      for (const FakeGpu::Work& work : *works) {
        work();
      }
    });
  }

 private:
  FakeGpu& gpu_;
  std::shared_ptr<std::vector<FakeGpu::Work>> works_;
};

}  // namespace

void FakeGpu::enqueue(const std::string& name, Work work) {
  calls.push_back(name);
  (recording_ ? *recording_ : queue_).push_back(std::move(work));
}

std::int64_t FakeGpu::count(const std::string& name) const {
  return std::ranges::count(calls, name);
}

void* FakeGpu::allocate(std::size_t bytes) {
  calls.emplace_back("allocate");
  std::size_t used = bytes;
  for (const auto& [memory, size] : held) {
    used += size;
  }
  if (used > limit) {
    throw BackendError(expected(std::to_string(bytes) + " bytes", "too little", "Track fewer objects"));
  }
  void* memory = garbage(bytes);
  held[memory] = bytes;
  return memory;
}

void FakeGpu::release(void* memory) noexcept {
  calls.emplace_back("release");
  std::free(held.extract(memory).key());
}

void* FakeGpu::pinned(std::size_t bytes) {
  calls.emplace_back("pinned");
  void* memory = garbage(bytes);
  held_pinned[memory] = bytes;
  return memory;
}

void FakeGpu::release_pinned(void* memory) noexcept {
  std::free(held_pinned.extract(memory).key());
}

void FakeGpu::upload(void* target, const void* source, std::size_t bytes) {
  enqueue("upload", [=] { std::memcpy(target, source, bytes); });
}

void FakeGpu::download(void* target, const void* source, std::size_t bytes) {
  enqueue("download", [=] { std::memcpy(target, source, bytes); });
}

void FakeGpu::copy(void* target, const void* source, std::size_t bytes) {
  enqueue("copy", [=] { std::memcpy(target, source, bytes); });
}

void FakeGpu::launch(gpu::Kernel kernel, const gpu::Grid& grid, const void* args, std::size_t bytes) {
  const std::string_view entry = gpu::kKernelNames.at(static_cast<std::size_t>(kernel));
  enqueue(std::string(entry), [=, held = bytes_of(args, bytes)] { Kernels::instance().run(entry, grid, 0, held); });
}

void FakeGpu::top_k_gather(const fastsam2_top_k_gather_args& args) {
  fastsam2_top_k_gather_plan plan{};
  if (const int status = Kernels::instance().check(&args, FASTSAM2_SCORES_FLOAT32, &plan); status != 0) {
    throw BackendError(expected("a legal top-k gather", std::to_string(status), "See top_k_gather.h"));
  }
  if (plan.grid_x != 0) {
    enqueue("fastsam2_top_k_gather_float32", [plan, held = bytes_of(&args, sizeof args)] {
      const gpu::Grid grid{plan.grid_x, plan.grid_y, plan.threads};
      Kernels::instance().run("fastsam2_top_k_gather_float32", grid, plan.shared_bytes, held);
    });
  }
}

void FakeGpu::synchronize() {
  calls.emplace_back("synchronize");
  if (!fails.empty()) {
    throw BackendError(expected("the GPU to finish what was enqueued", fails, "Start again"));
  }
  const std::vector<Work> queue = std::exchange(queue_, {});
  for (const Work& work : queue) {
    work();
  }
}

void FakeGpu::begin_recording() {
  recording_ = std::make_shared<std::vector<Work>>();
}

std::unique_ptr<gpu::Recording> FakeGpu::end_recording() {
  auto works = std::exchange(recording_, nullptr);
  if (!not_recorded.empty()) {
    throw BackendError(expected("a recording", not_recorded, "Leave CUDA graphs off"));
  }
  return std::make_unique<FakeRecording>(*this, std::move(works));
}

void LateEngines::enqueue(GraphRole role, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) {
  if (!refuses.empty()) {
    throw BackendError(expected("a graph to run", refuses, "See the test"));
  }
  const auto places = [](std::span<const NamedTensor> tensors) {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors) {
      if (reinterpret_cast<std::uintptr_t>(tensor.data()) % kAlignment != 0) {
        throw InternalError(expected(std::string(name) + " at a multiple of 256", "another address", "Copy it"));
      }
      const std::shared_ptr<void> nobody(tensor.data(), [](void*) {});
      all.push_back({name, Tensor(tensor.dtype(), tensor.shape(), nobody, tensor.data())});
    }
    return all;
  };
  gpu_->enqueue(std::string(name_of(role)),
                [this, role, given = places(inputs), wanted = places(outputs)] { run_(role, given, wanted); });
}

}  // namespace fastsam2::testing
