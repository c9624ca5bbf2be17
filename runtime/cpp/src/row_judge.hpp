// What the rows of a frame are worth, and how many of them to keep: policy or router, and the guard. Definition:
// runtime/row_judge.py.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "guard.hpp"
#include "pruning.hpp"
#include "stages.hpp"

namespace fastsam2 {

// What is known of one object on the frame to judge.
struct Judged {
  std::int64_t object_id;
  Tensor logits;  // float32 [L, L]
  Tensor score;   // float32 [1]
  Tensor iou;     // float32 [1]
  Observation seen;
  Tensor text;  // float32 [E] on the host, or empty
};

// What a frame's rows were judged by, on the device; see TokenReport.
struct Cues {
  std::int64_t frame;
  std::vector<std::int64_t> ids;
  std::int64_t keep;
  std::vector<std::optional<Alarm>> alarms;
  std::vector<Tensor> scores;  // float32 [N] of each object
  Tensor uncertainty;
  Tensor relevance;
  Tensor context;
};

struct Judgement {
  std::vector<Tensor> scores;        // float32 [N] of each object; empty for policies without scores
  std::optional<std::int64_t> keep;  // K for every object; none where nothing is pruned
  std::optional<Cues> cues;          // for the result; none for policies without scores
  GuardState guard;                  // after this frame
};

// Judges the rows of every object on a frame, at least one.
Judgement judge_rows(const Pruner& pruner, Stages& stages, const ModelSpec& spec, std::int64_t frame,
                     const Features& features, std::span<const Judged> objects, const GuardState& guard);

}  // namespace fastsam2
