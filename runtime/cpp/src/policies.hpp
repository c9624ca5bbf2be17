// How the memory rows of a frame are scored on the host. Definitions: runtime/policies/, runtime/uncertainty.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fastsam2 {

// float32 [g²]: N-1 (first chosen) down to 0 in the order of Bayer's dither matrix.
std::vector<float> uniform_scores(std::int64_t grid);
// float32 [N]: numpy's `default_rng([seed, object_id, frame]).permutation(N)`.
std::vector<float> random_scores(std::int64_t seed, std::int64_t object_id, std::int64_t frame, std::int64_t tokens);
// logits [L, L] -> [N]: the object, then its border, then an even spread.
void mask_scores(std::span<const float> logits, std::int64_t grid, std::span<float> scores);
// logits [L, L] -> [N]: mean of 4p(1-p) over each cell.
void uncertainty(std::span<const float> logits, std::int64_t grid, std::span<float> cells);

}  // namespace fastsam2
