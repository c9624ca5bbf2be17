// Memory rows on the host: bfloat16, the top-k gather, 2x2 means. Definitions: runtime/bfloat16.py,
// kernels/reference.py, host_device.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fastsam2 {

// Rounded to nearest, ties to even; too large values become infinite, every NaN the bits 0x7FC0.
void to_bfloat16(std::span<const float> values, std::span<std::uint16_t> bits);
// Exact.
void from_bfloat16(std::span<const std::uint16_t> bits, std::span<float> values);
// Index of the k largest scores, ascending; of equal scores (-0 equals +0) the first, NaN behind everything.
std::vector<std::int32_t> top_k(std::span<const float> scores, std::int64_t k);
// bfloat16 [g², D] -> means of 2x2 cells in float32, rounded to bfloat16 [g²/4, D].
void pool_2x2(std::span<const std::uint16_t> rows, std::int64_t grid, std::span<std::uint16_t> pooled);

}  // namespace fastsam2
