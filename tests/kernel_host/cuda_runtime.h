// A CUDA device for tests, on one CPU thread: g++ compiles a kernel's own source against this header instead of the toolkit's.
//
// Blocks run one after the other. The threads of a block are fibers: a lane runs until it waits at a warp intrinsic for the other 31, a
// warp until it waits at __syncthreads for the other warps, so that in the chosen order one warp is as far ahead of the next as barriers
// allow. Shared memory holds garbage when a block starts, and writing past what the launch asked for fails it. Barriers can be left out
// one at a time and orders changed, so that a test sees a race as a wrong result.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <ucontext.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline dim3 threadIdx{0}, blockIdx{0}, blockDim{0}, gridDim{0};

namespace host {

constexpr unsigned kSharedWithoutAsking = 48 * 1024;
constexpr unsigned kSharedLimit = 99 * 1024;  // the smallest opt-in limit of the supported architectures (8.6, 8.9, 12.0)
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr unsigned kLanes = 32;
constexpr const char* kNoError = "no error";

enum class Order { kForward, kBackward, kShuffled };

struct Launch {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
};

struct Fiber {
  enum class State { kReady, kAtBlockBarrier, kAtWarp, kDone };
  State state = State::kReady;
  unsigned thread = 0;
  unsigned barriers = 0;    // __syncthreads met so far
  unsigned exchanges = 0;   // warp intrinsics met so far
  std::uint32_t value[2];   // what this lane offers to its warp, by the parity of `exchanges`
  bool started = false;
  ucontext_t first;
  jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;
};

struct Device {
  Order order = Order::kForward;
  unsigned seed = 0;
  int skipped_barrier = -1;
  std::string error = kNoError;
  std::vector<Launch> launches;
  unsigned allowed_shared = kSharedWithoutAsking;

  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
  void (*entry)(void**) = nullptr;
  void** parameters = nullptr;
};

inline Device device;

// Address sanitizer must know which stack is in use.
inline void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}
inline void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** stack, [[maybe_unused]] std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
#endif
}

inline void to_scheduler(Fiber::State state) {
  Fiber* fiber = device.running;
  fiber->state = state;
  before_switch(state == Fiber::State::kDone ? nullptr : &fiber->fake_stack, device.scheduler_stack, device.scheduler_stack_bytes);
  if (state == Fiber::State::kDone || _setjmp(fiber->resume) == 0) _longjmp(device.scheduler, 1);
  after_switch(fiber->fake_stack, &device.scheduler_stack, &device.scheduler_stack_bytes);
}

inline void fiber_main() {
  after_switch(nullptr, &device.scheduler_stack, &device.scheduler_stack_bytes);
  device.entry(device.parameters);
  to_scheduler(Fiber::State::kDone);
}

inline void resume(Fiber& fiber) {
  device.running = &fiber;
  fiber.state = Fiber::State::kReady;
  threadIdx = dim3(fiber.thread, 0, 0);
  before_switch(&device.scheduler_fake_stack, fiber.stack.get(), kStackBytes);
  if (_setjmp(device.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack.get();
    fiber.first.uc_stack.ss_size = kStackBytes;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, fiber_main, 0);
    setcontext(&fiber.first);
  }
  after_switch(device.scheduler_fake_stack, nullptr, nullptr);
}

inline std::uint32_t lane_value(unsigned lane, unsigned exchange) {
  if (device.running == nullptr) return 0;
  const unsigned warp = device.running->thread / kLanes;
  return device.fibers[warp * kLanes + lane].value[exchange % 2];
}

// A thread of `launch_plain` met a barrier or a warp intrinsic.
inline unsigned refuse_plain() {
  device.error = "a thread waits for others, but the kernel was launched as one in which none does";
  return 0;
}

// Offers `value` to the warp and waits for the other lanes; afterwards lane_value(lane, the result) is what each of them offered.
inline unsigned exchange(unsigned mask, std::uint32_t value) {
  Fiber* fiber = device.running;
  if (fiber == nullptr) return refuse_plain();
  if (mask != 0xffffffffu) {
    device.error = "a warp intrinsic was called with a partial mask";
    to_scheduler(Fiber::State::kDone);
  }
  fiber->value[fiber->exchanges % 2] = value;
  ++fiber->exchanges;
  to_scheduler(Fiber::State::kAtWarp);
  return fiber->exchanges - 1;
}

using Lanes = std::vector<unsigned>;

// Runs a warp until it waits for the other warps, or is done.
inline void run_warp(const Lanes& lanes) {
  for (;;) {
    for (const unsigned thread : lanes) {
      if (device.fibers[thread].state == Fiber::State::kReady) resume(device.fibers[thread]);
    }
    const auto waits = [](unsigned thread) { return device.fibers[thread].state == Fiber::State::kAtWarp; };
    if (!std::all_of(lanes.begin(), lanes.end(), waits)) return;
    for (const unsigned thread : lanes) device.fibers[thread].state = Fiber::State::kReady;
  }
}

inline bool all_fibers(Fiber::State state) {
  return std::all_of(device.fibers.begin(), device.fibers.end(), [state](const Fiber& f) { return f.state == state; });
}

inline void run_block(std::mt19937& random) {
  for (unsigned thread = 0; thread < device.fibers.size(); ++thread) {
    Fiber& fiber = device.fibers[thread];
    fiber.thread = thread;
    fiber.state = Fiber::State::kReady;
    fiber.barriers = fiber.exchanges = 0;
    fiber.started = false;
  }
  std::vector<Lanes> warps(device.fibers.size() / kLanes, Lanes(kLanes));
  for (unsigned warp = 0; warp < warps.size(); ++warp) std::iota(warps[warp].begin(), warps[warp].end(), warp * kLanes);
  if (device.order == Order::kBackward) {
    std::reverse(warps.begin(), warps.end());
    for (Lanes& lanes : warps) std::reverse(lanes.begin(), lanes.end());
  }
  while (!all_fibers(Fiber::State::kDone) && device.error == kNoError) {
    if (device.order == Order::kShuffled) {
      std::shuffle(warps.begin(), warps.end(), random);
      for (Lanes& lanes : warps) std::shuffle(lanes.begin(), lanes.end(), random);
    }
    for (const Lanes& lanes : warps) run_warp(lanes);
    if (all_fibers(Fiber::State::kAtBlockBarrier)) {
      for (Fiber& fiber : device.fibers) fiber.state = Fiber::State::kReady;
    } else if (!all_fibers(Fiber::State::kDone) && device.error == kNoError) {
      device.error = "deadlock: threads wait at different barriers";
    }
  }
}

}  // namespace host

alignas(16) inline unsigned char shared_memory[host::kSharedLimit + 1024];

inline void __syncthreads() {
  host::Fiber* fiber = host::device.running;
  if (fiber == nullptr) {
    host::refuse_plain();
    return;
  }
  if (static_cast<int>(fiber->barriers++) != host::device.skipped_barrier) host::to_scheduler(host::Fiber::State::kAtBlockBarrier);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const unsigned at = host::exchange(mask, predicate);
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < host::kLanes; ++lane) lanes |= host::lane_value(lane, at) << lane;
  return lanes;
}

inline unsigned __match_any_sync(unsigned mask, int value) {
  const unsigned at = host::exchange(mask, static_cast<std::uint32_t>(value));
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < host::kLanes; ++lane) {
    lanes |= unsigned(host::lane_value(lane, at) == static_cast<std::uint32_t>(value)) << lane;
  }
  return lanes;
}

inline int __shfl_up_sync(unsigned mask, int value, unsigned distance) {
  const unsigned at = host::exchange(mask, static_cast<std::uint32_t>(value));
  const unsigned lane = threadIdx.x % host::kLanes;
  return static_cast<int>(host::lane_value(lane >= distance ? lane - distance : lane, at));
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address = before + value;
  return before;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

// Compiled with -ffp-contract=off, so that nothing is fused here either.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : host::device.error.c_str();
}

template <typename Args>
cudaError_t cudaFuncSetAttribute(void (*)(Args), cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<unsigned>(bytes) > host::kSharedLimit) return cudaErrorInvalidValue;
  host::device.allowed_shared = std::max(host::kSharedWithoutAsking, static_cast<unsigned>(bytes));
  return cudaSuccess;
}

namespace host {

inline bool is_legal(dim3 grid, dim3 block, std::size_t shared_bytes) {
  return grid.x && grid.y && grid.y <= 65535 && grid.z == 1 && block.x && block.x <= 1024 && block.x % kLanes == 0 && block.y == 1 &&
         block.z == 1 && shared_bytes <= device.allowed_shared;
}

// A kernel without shared memory whose threads do not wait for each other: they run one by one, backwards if so configured.
template <typename Args>
cudaError_t launch_plain(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args, cudaStream_t stream) {
  if (!is_legal(grid, block, 0)) return cudaErrorInvalidValue;
  device.launches.push_back({{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, 0, stream});
  device.error = kNoError;
  device.running = nullptr;
  gridDim = grid;
  blockDim = block;
  const std::size_t blocks = std::size_t{grid.x} * grid.y;
  const bool backward = device.order == Order::kBackward;
  for (std::size_t i = 0; i < blocks; ++i) {
    const std::size_t at = backward ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x));
    for (unsigned thread = 0; thread < block.x; ++thread) {
      threadIdx = dim3(backward ? block.x - 1 - thread : thread, 0, 0);
      kernel(args);
    }
  }
  return device.error == kNoError ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace host

// Kernels take one struct.
template <typename Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 grid, dim3 block, void** parameters, std::size_t shared_bytes,
                             cudaStream_t stream) {
  using namespace host;
  static void (*current)(Args);
  if (!is_legal(grid, block, shared_bytes)) return cudaErrorInvalidValue;
  const auto bytes = static_cast<unsigned>(shared_bytes);
  device.launches.push_back({{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, bytes, stream});
  device.error = kNoError;
  if (device.fibers.size() != block.x) device.fibers = std::vector<Fiber>(block.x);
  current = kernel;
  device.entry = [](void** p) { current(*static_cast<Args*>(p[0])); };
  device.parameters = parameters;
  gridDim = grid;
  blockDim = block;

  std::mt19937 random(device.seed);
  const unsigned blocks = grid.x * grid.y;
  for (unsigned block_index = 0; block_index < blocks; ++block_index) {
    const unsigned at = device.order == Order::kBackward ? blocks - 1 - block_index : block_index;
    blockIdx = dim3(at % grid.x, at / grid.x);
    for (unsigned char& byte : shared_memory) byte = static_cast<unsigned char>(random());
    std::vector<unsigned char> beyond(shared_memory + shared_bytes, shared_memory + sizeof shared_memory);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(shared_memory + shared_bytes, sizeof shared_memory - shared_bytes);
#endif
    run_block(random);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(shared_memory + shared_bytes, sizeof shared_memory - shared_bytes);
#endif
    if (device.error == kNoError && std::memcmp(beyond.data(), shared_memory + shared_bytes, beyond.size()) != 0) {
      device.error = "shared memory was written past the bytes the launch asked for";
    }
    if (device.error != kNoError) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

extern "C" {

__attribute__((used)) inline void host_configure(int order, unsigned seed, int skipped_barrier) {
  host::device.order = static_cast<host::Order>(order);
  host::device.seed = seed;
  host::device.skipped_barrier = skipped_barrier;
}

// How many launches so far; the newest is copied to `launch`.
__attribute__((used)) inline int host_launches(host::Launch* launch) {
  if (!host::device.launches.empty()) *launch = host::device.launches.back();
  return static_cast<int>(host::device.launches.size());
}

}
