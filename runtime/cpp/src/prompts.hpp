// Checks prompts and turns them into what mask_decoder takes. Definition: runtime/prompts.py.
#pragma once

#include <cstdint>

#include "fastsam2/tracker.hpp"
#include "stages.hpp"

namespace fastsam2 {

// Throws PromptError if the id is not positive.
void check_object_id(std::int64_t id);

// Throws PromptError if nothing is given, a mask comes with points, box or labels, or a value has another size or
// range.
//   height, width: of the video, pixels.
void check_prompt(const Prompt& prompt, std::int64_t height, std::int64_t width);

// Points and labels of a checked prompt without a mask in pixels of the S x S input; box corners first.
ModelPoints to_model_points(const Prompt& prompt, std::int64_t height, std::int64_t width, std::int64_t image_size);

}  // namespace fastsam2
