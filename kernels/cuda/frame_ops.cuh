// Device code of the operations between the engines; see frame_ops.h.
//
// Where numpy or Pillow is the definition, products and sums are rounded one by one in their order (__fmul_rn, __fadd_rn: never fused).
#pragma once

#include "frame_ops.h"

namespace fastsam2 {

constexpr int kPixelBytes = 3;
constexpr int kPrecisionBits = 32 - 8 - 2;  // of Pillow's fixed-point weights
constexpr int kCellSide = 4;                // logits along one side of a grid cell
constexpr int kLevels = 32;
constexpr float kOwn = 0.5f;  // coverage from which a cell belongs to the object
constexpr int kChunk = 8;     // bfloat16 values of one 16-byte load
constexpr unsigned short kQuietNan = 0x7fc0;

__device__ __forceinline__ long long thread_index() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ long long thread_count() { return static_cast<long long>(gridDim.x) * blockDim.x; }

__device__ __forceinline__ unsigned short to_bfloat16(float value) {
  const unsigned word = __float_as_uint(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return kQuietNan;
  return static_cast<unsigned short>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ float low_bfloat16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bfloat16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Pixel (y, x) of the target: the weighted sum of inputs that lie `pitch` bytes apart, each channel clipped to a byte.
__device__ __forceinline__ void resample(const fastsam2_resize_args& args, int y, int x, int output, long long first, long long pitch) {
  const int* __restrict__ weights = args.weights + static_cast<long long>(output) * args.taps;
  const int count = args.bounds[2 * output + 1];
  const unsigned char* __restrict__ input = args.source + first + args.bounds[2 * output] * pitch;
  int sum[kPixelBytes];
  for (int& channel : sum) channel = 1 << (kPrecisionBits - 1);
  for (int tap = 0; tap < count; ++tap, input += pitch) {
    const int weight = __ldg(weights + tap);
    for (int channel = 0; channel < kPixelBytes; ++channel) sum[channel] += __ldg(input + channel) * weight;
  }
  const long long pixel = static_cast<long long>(y) * args.columns + x;
  const long long plane = static_cast<long long>(args.lines) * args.columns;
  for (int channel = 0; channel < kPixelBytes; ++channel) {
    const int value = sum[channel] >> kPrecisionBits;
    const long long at = args.planar ? channel * plane + pixel : pixel * kPixelBytes + channel;
    args.target[at] = static_cast<unsigned char>(value < 0 ? 0 : value > 255 ? 255 : value);
  }
}

__device__ __forceinline__ void resize_columns(const fastsam2_resize_args& args) {
  const int x = static_cast<int>(thread_index());
  const int y = blockIdx.y;
  if (x < args.columns) resample(args, y, x, x, static_cast<long long>(y) * args.source_columns * kPixelBytes, kPixelBytes);
}

__device__ __forceinline__ void resize_rows(const fastsam2_resize_args& args) {
  const int x = static_cast<int>(thread_index());
  const int y = blockIdx.y;
  if (x < args.columns) resample(args, y, x, y, x * kPixelBytes, static_cast<long long>(args.columns) * kPixelBytes);
}

__device__ __forceinline__ void round_bfloat16(const fastsam2_round_args& args) {
  for (long long i = thread_index(); i < args.n; i += thread_count()) args.bits[i] = to_bfloat16(args.values[i]);
}

// One frame of one object; its rows lie one after the other at both ends.
__device__ __forceinline__ void read_rows(const fastsam2_read_memory_args& args, const fastsam2_memory_entry& entry) {
  const int begin = static_cast<int>(thread_index());
  const int step = static_cast<int>(thread_count());
  const long long row = static_cast<long long>(entry.object) * args.rows + entry.first;
  float* memory = args.memory + row * args.dim;
  const int values = entry.count * args.dim;
  if (args.dim % kChunk == 0) {
    const uint4* __restrict__ chunks = reinterpret_cast<const uint4*>(entry.rows);
    float4* __restrict__ wide = reinterpret_cast<float4*>(memory);
    for (int i = begin; i < values / kChunk; i += step) {
      const uint4 bits = __ldg(chunks + i);
      wide[2 * i] = make_float4(low_bfloat16(bits.x), high_bfloat16(bits.x), low_bfloat16(bits.y), high_bfloat16(bits.y));
      wide[2 * i + 1] = make_float4(low_bfloat16(bits.z), high_bfloat16(bits.z), low_bfloat16(bits.w), high_bfloat16(bits.w));
    }
  } else {
    for (int i = begin; i < values; i += step) memory[i] = low_bfloat16(entry.rows[i]);
  }
  for (int i = begin; i < entry.count; i += step) {
    args.position[row + i] = entry.position[i];
    args.age[row + i] = entry.age;
  }
}

__device__ __forceinline__ void read_pointers(const fastsam2_read_memory_args& args, int object) {
  const int begin = static_cast<int>(thread_index());
  const int step = static_cast<int>(thread_count());
  const long long first = static_cast<long long>(object) * args.pointer_count;
  for (int i = begin; i < args.pointer_count * args.hidden; i += step) {
    const int slot = i / args.hidden;
    args.pointers[first * args.hidden + i] = args.pointer_entries[first + slot].pointer[i - slot * args.hidden];
  }
  for (int i = begin; i < args.pointer_count; i += step) args.pointer_offset[first + i] = args.pointer_entries[first + i].offset;
  if (args.memory_bias == nullptr) return;
  float* bias = args.memory_bias + static_cast<long long>(object) * args.keys;
  for (int i = begin; i < args.keys; i += step) bias[i] = 0.0f;
}

__device__ __forceinline__ void read_memory(const fastsam2_read_memory_args& args) {
  const int at = blockIdx.y;
  if (at < args.entry_count) {
    const fastsam2_memory_entry entry = args.entries[at];
    read_rows(args, entry);
  } else {
    read_pointers(args, at - args.entry_count);
  }
}

__device__ __forceinline__ void pool_2x2(const fastsam2_pool_args& args) {
  const int half = args.grid / 2;
  const int values = half * half * args.dim;
  for (int i = static_cast<int>(thread_index()); i < values; i += static_cast<int>(thread_count())) {
    const int cell = i / args.dim;
    const int column = i - cell * args.dim;
    const int y = cell / half;
    const int x = cell - y * half;
    const unsigned short* upper = args.rows + (static_cast<long long>(2 * y) * args.grid + 2 * x) * args.dim + column;
    const unsigned short* lower = upper + static_cast<long long>(args.grid) * args.dim;
    float sum = __fadd_rn(0.0f, low_bfloat16(upper[0]));
    sum = __fadd_rn(sum, low_bfloat16(upper[args.dim]));
    sum = __fadd_rn(sum, low_bfloat16(lower[0]));
    sum = __fadd_rn(sum, low_bfloat16(lower[args.dim]));
    args.pooled[i] = to_bfloat16(__fmul_rn(sum, 0.25f));
  }
}

struct Probability {
  __device__ float operator()(float logit) const { return __fmul_rn(0.5f, __fadd_rn(1.0f, tanhf(__fmul_rn(0.5f, logit)))); }
};
struct Undecided {
  __device__ float operator()(float logit) const {
    const float slope = tanhf(__fmul_rn(0.5f, logit));
    return __fsub_rn(1.0f, __fmul_rn(slope, slope));
  }
};

// Mean of `value` over the 4x4 logits of a cell: the sum of each row, then of the rows.
template <typename Value>
__device__ __forceinline__ float cell_mean(const float* __restrict__ logits, int grid, int y, int x, Value value) {
  const float4* row = reinterpret_cast<const float4*>(logits) + static_cast<long long>(kCellSide * y) * grid + x;
  float sum = 0.0f;
  for (int line = 0; line < kCellSide; ++line, row += grid) {
    const float4 four = __ldg(row);
    const float pair = __fadd_rn(value(four.x), value(four.y));
    sum = __fadd_rn(sum, __fadd_rn(__fadd_rn(pair, value(four.z)), value(four.w)));
  }
  return __fmul_rn(sum, 1.0f / (kCellSide * kCellSide));
}

// (1-2-1) / 4
__device__ __forceinline__ float blend(float before, float here, float after) {
  return __fmul_rn(__fadd_rn(__fadd_rn(before, __fmul_rn(2.0f, here)), after), 0.25f);
}

__device__ __forceinline__ float level_of(const float* logits, int grid, int y, int x) {
  const float own = cell_mean(logits, grid, y, x, Probability());
  if (own >= kOwn) return static_cast<float>(kLevels);
  const int left = x > 0 ? x - 1 : 0;
  const int right = x < grid - 1 ? x + 1 : x;
  float line[3];
  for (int i = 0; i < 3; ++i) {
    const int at = y + i - 1 < 0 ? 0 : y + i - 1 < grid ? y + i - 1 : y;
    line[i] = blend(cell_mean(logits, grid, at, left, Probability()), cell_mean(logits, grid, at, x, Probability()),
                    cell_mean(logits, grid, at, right, Probability()));
  }
  return floorf(__fmul_rn(blend(line[0], line[1], line[2]), static_cast<float>(kLevels - 1)));
}

__device__ __forceinline__ void mask_scores(const fastsam2_cells_args& args) {
  const int cells = args.grid * args.grid;
  const long long entry = blockIdx.y;
  const float* logits = args.logits + entry * cells * (kCellSide * kCellSide);
  for (int i = static_cast<int>(thread_index()); i < cells; i += static_cast<int>(thread_count())) {
    const int y = i / args.grid;
    const float level = level_of(logits, args.grid, y, i - y * args.grid);
    args.values[entry * cells + i] = __fadd_rn(__fmul_rn(level, static_cast<float>(cells)), args.order[i]);
  }
}

__device__ __forceinline__ void uncertainty(const fastsam2_cells_args& args) {
  const int cells = args.grid * args.grid;
  const long long entry = blockIdx.y;
  const float* logits = args.logits + entry * cells * (kCellSide * kCellSide);
  for (int i = static_cast<int>(thread_index()); i < cells; i += static_cast<int>(thread_count())) {
    const int y = i / args.grid;
    args.values[entry * cells + i] = cell_mean(logits, args.grid, y, i - y * args.grid, Undecided());
  }
}

__device__ __forceinline__ float mix(float low, float high, const fastsam2_lerp& at) {
  return __fadd_rn(__fmul_rn(low, at.low_weight), __fmul_rn(high, at.high_weight));
}

__device__ __forceinline__ fastsam2_lerp load_lerp(const fastsam2_lerp* at) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(at));
  return {static_cast<int>(bits.x), static_cast<int>(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
}

__device__ __forceinline__ void masks(const fastsam2_masks_args& args) {
  const int pixels = args.height * args.width;
  const long long entry = blockIdx.y;
  const float* __restrict__ logits = args.logits + entry * args.side * args.side;
  unsigned char* __restrict__ target = args.masks + entry * pixels;
  for (long long i = thread_index(); i < pixels; i += thread_count()) {
    const int pixel = static_cast<int>(i);
    float value;
    if (args.rows == nullptr) {
      value = __ldg(logits + pixel);
    } else {
      const int y = pixel / args.width;
      const fastsam2_lerp row = load_lerp(args.rows + y);
      const fastsam2_lerp column = load_lerp(args.columns + (pixel - y * args.width));
      const float* upper = logits + static_cast<long long>(row.low) * args.side;
      const float* lower = logits + static_cast<long long>(row.high) * args.side;
      value = mix(mix(__ldg(upper + column.low), __ldg(upper + column.high), column),
                  mix(__ldg(lower + column.low), __ldg(lower + column.high), column), row);
    }
    target[pixel] = value > 0.0f;
  }
}

__device__ __forceinline__ void clamp(const fastsam2_clamp_args& args) {
  for (long long i = thread_index(); i < args.n; i += thread_count()) {
    const float value = args.values[i];
    args.clamped[i] = value < -args.limit ? -args.limit : value > args.limit ? args.limit : value;
  }
}

template <typename Value>
__device__ __forceinline__ void fill(const fastsam2_fill_args& args) {
  Value* target = static_cast<Value*>(args.target);
  for (long long i = thread_index(); i < args.n; i += thread_count()) target[i] = static_cast<Value>(args.word);
}

}  // namespace fastsam2
