// Device code of the top-k gather; see top_k_gather.h.
//
// Every block selects the whole score row of its batch entry again, in shared memory, and then gathers its own share of the kept rows, so
// that one launch does all and no block waits for another:
//
//   scores -> order-preserving keys -> radix selection of the k-th largest, one byte a pass -> threshold + how many keys equal to it stay
//   keys   -> ballots and prefix counts -> index of the block's kept rows -> 16-byte copies
//
// The only atomics add integer counts, whose order does not matter.
#pragma once

#include "top_k_gather.h"

namespace fastsam2 {

constexpr int kThreads = 512;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;
constexpr int kBins = 256;
constexpr int kRowsPerBlock = 128;
constexpr int kChunkBytes = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Scratch {
  int histogram[kBins];
  int above[kWarps];  // keys above the threshold in a warp's part of the row
  int equal[kWarps];  // keys equal to it
  int digit;
  int rank;
  unsigned short kept[kRowsPerBlock];  // an index is below 16384
};

// Dynamic shared memory: Scratch, then n keys.
template <typename Bits>
constexpr int shared_bytes(int n) {
  return static_cast<int>(sizeof(Scratch)) + n * static_cast<int>(sizeof(Bits));
}

// Bits of a float (unsigned) or half (unsigned short) -> key that orders as the scores rank; NaN, of either sign, is 0 and nothing else is.
template <typename Bits>
__device__ __forceinline__ Bits rank_key(Bits bits) {
  constexpr Bits kSign = static_cast<Bits>(Bits(1) << (8 * sizeof(Bits) - 1));
  constexpr Bits kInfinity = sizeof(Bits) == 4 ? static_cast<Bits>(0x7f800000u) : static_cast<Bits>(0x7c00u);
  const Bits magnitude = bits & static_cast<Bits>(~kSign);
  if (magnitude > kInfinity) return 0;
  if (magnitude == 0) return kSign;
  return bits & kSign ? static_cast<Bits>(~bits) : static_cast<Bits>(bits | kSign);
}

template <typename Bits>
struct Threshold {
  Bits key;   // the k-th largest key
  int equal;  // how many keys equal to it are kept, at least 1
};

// Warp 0: the histogram bin that holds the rank-th largest key, and its rank within that bin.
__device__ __forceinline__ void find_digit(Scratch& scratch, int rank) {
  constexpr int kShare = kBins / kLanes;
  const int lane = threadIdx.x;
  const int highest = kBins - 1 - lane * kShare;
  int own = 0;
  for (int bin = highest; bin > highest - kShare; --bin) own += scratch.histogram[bin];
  int through = own;
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, through, distance);
    if (lane >= distance) through += other;
  }
  int above = through - own;
  if (above < rank && rank <= through) {
    int bin = highest;
    while (above + scratch.histogram[bin] < rank) above += scratch.histogram[bin--];
    scratch.digit = bin;
    scratch.rank = rank - above;
  }
}

template <typename Bits>
__device__ __forceinline__ Threshold<Bits> find_threshold(const Bits* keys, int n, int k, Scratch& scratch) {
  const int thread = threadIdx.x;
  Bits prefix = 0;
  Bits known = 0;
  int rank = k;
  for (int shift = 8 * static_cast<int>(sizeof(Bits)) - 8; shift >= 0; shift -= 8) {
    if (thread < kBins) scratch.histogram[thread] = 0;
    __syncthreads();
    for (int first = 0; first < n; first += kThreads) {
      const int i = first + thread;
      const bool counted = i < n && (keys[i] & known) == prefix;
      const int digit = counted ? (keys[i] >> shift) & (kBins - 1) : kBins;
      const unsigned peers = __match_any_sync(kAllLanes, digit);
      if (counted && thread % kLanes == __ffs(peers) - 1) atomicAdd(&scratch.histogram[digit], __popc(peers));
    }
    __syncthreads();
    if (thread < kLanes) find_digit(scratch, rank);
    __syncthreads();
    prefix = static_cast<Bits>(prefix | (scratch.digit << shift));
    known = static_cast<Bits>(known | ((kBins - 1) << shift));
    rank = scratch.rank;
  }
  return {prefix, rank};
}

// Fills scratch.kept with the indices of the kept rows first .. first + kRowsPerBlock - 1, counted in ascending index order.
template <typename Bits>
__device__ __forceinline__ void list_kept(const Bits* keys, int n, Threshold<Bits> threshold, int first, Scratch& scratch) {
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int share = (n + kThreads - 1) / kThreads * kLanes;
  const int begin = warp * share;
  const int end = min(begin + share, n);

  int above = 0;
  int equal = 0;
  for (int base = begin; base < end; base += kLanes) {
    const int i = base + lane;
    above += __popc(__ballot_sync(kAllLanes, i < end && keys[i] > threshold.key));
    equal += __popc(__ballot_sync(kAllLanes, i < end && keys[i] == threshold.key));
  }
  if (lane == 0) {
    scratch.above[warp] = above;
    scratch.equal[warp] = equal;
  }
  __syncthreads();

  above = 0;
  equal = 0;
  for (int before = 0; before < warp; ++before) {
    above += scratch.above[before];
    equal += scratch.equal[before];
  }
  const unsigned lower_lanes = (1u << lane) - 1;
  for (int base = begin; base < end; base += kLanes) {
    const int i = base + lane;
    const bool is_above = i < end && keys[i] > threshold.key;
    const bool is_equal = i < end && keys[i] == threshold.key;
    const unsigned above_lanes = __ballot_sync(kAllLanes, is_above);
    const unsigned equal_lanes = __ballot_sync(kAllLanes, is_equal);
    const int equal_before = equal + __popc(equal_lanes & lower_lanes);
    const int slot = above + __popc(above_lanes & lower_lanes) + min(equal_before, threshold.equal) - first;
    if ((is_above || (is_equal && equal_before < threshold.equal)) && 0 <= slot && slot < kRowsPerBlock) {
      scratch.kept[slot] = static_cast<unsigned short>(i);
    }
    above += __popc(above_lanes);
    equal += __popc(equal_lanes);
  }
  __syncthreads();
}

// Grid [blocks of kRowsPerBlock kept rows, B], kThreads threads, shared_bytes<Bits>(n) at `shared`, 4-byte aligned.
template <typename Bits>
__device__ __forceinline__ void top_k_gather(const fastsam2_top_k_gather_args& args, unsigned char* shared) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared);
  Bits* keys = reinterpret_cast<Bits*>(shared + sizeof(Scratch));
  const long long entry = blockIdx.y;
  const int first = static_cast<int>(blockIdx.x) * kRowsPerBlock;
  const int count = min(kRowsPerBlock, args.k - first);

  const Bits* scores = static_cast<const Bits*>(args.scores) + entry * args.scores_batch_stride;
  for (int i = threadIdx.x; i < args.n; i += kThreads) keys[i] = rank_key(scores[i]);
  const Threshold<Bits> threshold = find_threshold(keys, args.n, args.k, scratch);
  list_kept(keys, args.n, threshold, first, scratch);

  int* index = args.index + entry * args.index_batch_stride + first;
  for (int slot = threadIdx.x; slot < count; slot += kThreads) index[slot] = scratch.kept[slot];

  const char* __restrict__ rows = static_cast<const char*>(args.rows) + entry * args.rows_batch_stride;
  char* __restrict__ kept = static_cast<char*>(args.kept) + entry * args.kept_batch_stride + first * args.kept_pitch;
  const int chunks = args.row_bytes / kChunkBytes;
#pragma unroll 4
  for (int chunk = threadIdx.x; chunk < count * chunks; chunk += kThreads) {
    const int slot = chunk / chunks;
    const int offset = (chunk - slot * chunks) * kChunkBytes;
    const uint4 bytes = __ldg(reinterpret_cast<const uint4*>(rows + scratch.kept[slot] * args.rows_pitch + offset));
    *reinterpret_cast<uint4*>(kept + slot * args.kept_pitch + offset) = bytes;
  }
}

}  // namespace fastsam2
