// Which frames a step attends to, with their ages and pointer offsets. Definition: runtime/selection.py, for a stream.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "fastsam2/config.hpp"

namespace fastsam2 {

struct Selection {
  std::vector<std::pair<std::int64_t, std::int32_t>>
      rows;  // frame, age row: prompt frames first, then oldest to newest
  std::vector<std::pair<std::int64_t, std::int64_t>>
      pointers;                   // frame, offset in frames: prompt frames first, then newest to oldest
  std::int64_t pointer_span = 1;  // frames that an encoded offset of 1 stands for

  bool operator==(const Selection&) const = default;
};

// What is read when `frame` is tracked.
//   prompt_frames: whose memory counts as a prompt, in the order they were prompted.
//   other_frames: with ordinary memory.
Selection select(std::int64_t frame, std::span<const std::int64_t> prompt_frames,
                 std::span<const std::int64_t> other_frames, const ModelSpec& spec, std::int64_t max_prompt_frames);

}  // namespace fastsam2
