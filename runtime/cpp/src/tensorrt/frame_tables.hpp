// Tables in device memory that the kernels of kernels/cuda/frame_ops.h read, made on the host. Definitions:
// kernels/frame_tables.py, runtime/postprocess.py (interpolation).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fastsam2/backend.hpp"
#include "frame_ops.h"

namespace fastsam2::gpu {

// One axis of Pillow's antialiased bicubic resize of 8-bit pixels; it copies where both sizes are equal.
struct ResizeTable {
  std::vector<std::int32_t> bounds;   // [target, 2], first input and number of inputs of each output
  std::vector<std::int32_t> weights;  // [target, taps] in units of 2^-22, 0 where unused
};
ResizeTable resize_table(std::int64_t source, std::int64_t target);
// Columns of its weights.
int resize_taps(std::int64_t source, std::int64_t target);
// Whether Pillow 13 resizes the height first: where it shrinks, by more than twice as many pixels as the width.
bool rows_first(std::int64_t height, std::int64_t width, std::int64_t size);

// Where each output of one axis of a bilinear resize samples, as torch does it without antialiasing.
std::vector<fastsam2_lerp> lerp_table(std::int64_t source, std::int64_t target);

// What fastsam2_read_memory reads of B objects: entries of frames, behind them [B, pointers] entries of pointers.
struct MemoryTable {
  std::vector<std::byte> data;  // to be uploaded to a 16-byte aligned address
  int entries = 0;              // frames of all objects together
  std::int64_t batch = 0;
  std::int64_t rows = 0;      // of each object
  std::int64_t pointers = 0;  // of each object
};
// Readings whose tensors lie on the device. Throws InternalError if the objects differ in rows or pointers.
MemoryTable memory_table(std::span<const Reading> readings);

}  // namespace fastsam2::gpu
