// Frames and masks -> what the graphs take. Definitions: runtime/preprocess.py, kernels/frame_tables.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fastsam2/image.hpp"

namespace fastsam2 {

// Pillow's antialiased bicubic resize: uint8 [3, S, S], red first.
void frame_to_pixels(const ImageView& frame, std::int64_t size, std::span<std::uint8_t> pixels);
// torch's antialiased bilinear resize of a mask, >= 0.5: float32 [S, S] of 0 and 1.
void mask_to_input(const MaskView& mask, std::int64_t size, std::span<float> resized);

}  // namespace fastsam2
