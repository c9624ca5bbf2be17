// Entry points and launcher of the top-k gather; see top_k_gather.h. NVRTC compiles the entry points alone.
#ifndef __CUDACC_RTC__
#include <cuda_runtime.h>
#endif

#include "top_k_gather.cuh"

extern __shared__ __align__(16) unsigned char shared_memory[];

extern "C" __global__ void __launch_bounds__(fastsam2::kThreads) fastsam2_top_k_gather_float32(fastsam2_top_k_gather_args args) {
  fastsam2::top_k_gather<unsigned int>(args, shared_memory);
}

extern "C" __global__ void __launch_bounds__(fastsam2::kThreads) fastsam2_top_k_gather_float16(fastsam2_top_k_gather_args args) {
  fastsam2::top_k_gather<unsigned short>(args, shared_memory);
}

#ifndef __CUDACC_RTC__

#include <cstdint>

namespace {

constexpr long long kMaxStride = 1LL << 40;
constexpr unsigned kSharedWithoutAsking = 48 * 1024;
constexpr int kCudaErrors = 1000;

enum Status { kOk, kNull, kScoreType, kBatch, kN, kK, kRowBytes, kScores, kRows, kKept, kIndex, kOverlap, kStatuses };

constexpr const char* kMessages[kStatuses] = {
    "success",
    "args, plan and, unless k is 0, every address must not be null",
    "the score type must be FASTSAM2_SCORES_FLOAT32 or FASTSAM2_SCORES_FLOAT16",
    "batch must be in 1..65535",
    "n must be in 1..16384",
    "k must be in 0..n",
    "row_bytes must be a multiple of 16 in 16..1048576",
    "scores must be aligned to their element size and scores_batch_stride in 0..2^40",
    "rows, rows_pitch and rows_batch_stride must be multiples of 16, rows_pitch at least row_bytes, strides at most 2^40",
    "kept, kept_pitch and kept_batch_stride must be multiples of 16, kept_pitch at least row_bytes, entries apart, strides at most 2^40",
    "index must be 4-byte aligned, entries apart, index_batch_stride at most 2^40",
    "kept must share no byte with rows",
};

bool is_multiple(const void* address, int of) { return reinterpret_cast<std::uintptr_t>(address) % of == 0; }

bool is_stride(long long stride, long long least, int multiple_of) {
  return least <= stride && stride <= kMaxStride && stride % multiple_of == 0;
}

// Whether rows of an entry, from its first byte to its last, meet the bytes that some entry writes.
bool overlaps(const fastsam2_top_k_gather_args& a) {
  const long long apart = reinterpret_cast<std::intptr_t>(a.kept) - reinterpret_cast<std::intptr_t>(a.rows);
  const long long rows_extent = (a.n - 1) * a.rows_pitch + a.row_bytes;
  const long long kept_extent = (a.k - 1) * a.kept_pitch + a.row_bytes;
  for (long long writer = 0; writer < a.batch; ++writer) {
    const long long begin = apart + writer * a.kept_batch_stride;
    const long long past = begin - rows_extent;
    if (past >= 0 && a.rows_batch_stride == 0) continue;
    const long long reader = past < 0 ? 0 : past / a.rows_batch_stride + 1;  // the first that ends after `begin`
    if (reader < a.batch && reader * a.rows_batch_stride < begin + kept_extent) return true;
  }
  return false;
}

Status check(const fastsam2_top_k_gather_args& a, int score_bytes) {
  using fastsam2::kChunkBytes;
  if (a.batch < 1 || a.batch > FASTSAM2_TOP_K_GATHER_MAX_BATCH) return kBatch;
  if (a.n < 1 || a.n > FASTSAM2_TOP_K_GATHER_MAX_ROWS) return kN;
  if (a.k < 0 || a.k > a.n) return kK;
  if (a.row_bytes < kChunkBytes || a.row_bytes > FASTSAM2_TOP_K_GATHER_MAX_ROW_BYTES || a.row_bytes % kChunkBytes != 0) return kRowBytes;
  const bool many = a.batch > 1;
  if (!is_multiple(a.scores, score_bytes) || !is_stride(a.scores_batch_stride, 0, 1)) return kScores;
  if (!is_multiple(a.rows, kChunkBytes) || !is_stride(a.rows_pitch, a.row_bytes, kChunkBytes) ||
      !is_stride(a.rows_batch_stride, 0, kChunkBytes)) {
    return kRows;
  }
  if (!is_multiple(a.kept, kChunkBytes) || !is_stride(a.kept_pitch, a.row_bytes, kChunkBytes) ||
      !is_stride(a.kept_batch_stride, many ? a.k * a.kept_pitch : 0, kChunkBytes)) {
    return kKept;
  }
  if (!is_multiple(a.index, sizeof(int)) || !is_stride(a.index_batch_stride, many ? a.k : 0, 1)) return kIndex;
  if (a.k == 0) return kOk;
  if (a.scores == nullptr || a.rows == nullptr || a.kept == nullptr || a.index == nullptr) return kNull;
  return overlaps(a) ? kOverlap : kOk;
}

}  // namespace

extern "C" int fastsam2_top_k_gather_check(const fastsam2_top_k_gather_args* args, fastsam2_score_type type,
                                           fastsam2_top_k_gather_plan* plan) {
  if (args == nullptr || plan == nullptr) return kNull;
  if (type != FASTSAM2_SCORES_FLOAT32 && type != FASTSAM2_SCORES_FLOAT16) return kScoreType;
  const bool full = type == FASTSAM2_SCORES_FLOAT32;
  if (const Status status = check(*args, full ? 4 : 2); status != kOk) return status;
  plan->grid_x = (args->k + fastsam2::kRowsPerBlock - 1) / fastsam2::kRowsPerBlock;
  plan->grid_y = args->batch;
  plan->threads = fastsam2::kThreads;
  plan->shared_bytes = full ? fastsam2::shared_bytes<unsigned int>(args->n) : fastsam2::shared_bytes<unsigned short>(args->n);
  return kOk;
}

extern "C" int fastsam2_top_k_gather(const fastsam2_top_k_gather_args* args, fastsam2_score_type type, CUstream_st* stream) {
  fastsam2_top_k_gather_plan plan;
  if (const int status = fastsam2_top_k_gather_check(args, type, &plan); status != kOk) return status;
  if (plan.grid_x == 0) return kOk;
  const auto kernel = type == FASTSAM2_SCORES_FLOAT32 ? fastsam2_top_k_gather_float32 : fastsam2_top_k_gather_float16;
  cudaError_t error = cudaSuccess;
  if (plan.shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
  }
  if (error == cudaSuccess) {
    fastsam2_top_k_gather_args copy = *args;
    void* parameters[] = {&copy};
    error = cudaLaunchKernel(kernel, dim3(plan.grid_x, plan.grid_y), dim3(plan.threads), parameters, plan.shared_bytes, stream);
  }
  return error == cudaSuccess ? kOk : kCudaErrors + error;
}

extern "C" const char* fastsam2_top_k_gather_message(int status) {
  if (status >= kCudaErrors) return cudaGetErrorString(static_cast<cudaError_t>(status - kCudaErrors));
  return status >= 0 && status < kStatuses ? kMessages[status] : "unknown status";
}

#endif  // __CUDACC_RTC__
