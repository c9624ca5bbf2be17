// Low-resolution logits -> masks at video resolution. Definition: runtime/postprocess.py.
#pragma once

#include <cstdint>
#include <span>

namespace fastsam2 {

// Bilinear resize of float32 [h, w], not antialiased, > 0: [height, width].
void mask_from_logits(std::span<const float> logits, std::int64_t side, std::int64_t height, std::int64_t width,
                      std::span<bool> mask);
// Gives 8-connected components of logits <= 0 with at most `max_area` members a small positive logit.
void fill_holes(std::span<float> logits, std::int64_t side, std::int64_t max_area);

}  // namespace fastsam2
