// When tracking looks unsure, keep more rows. Definition: runtime/guard.py.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "fastsam2/contracts.hpp"

namespace fastsam2 {

// What is known of one object on one frame.
struct Observation {
  double score;   // object score logit
  double iou;     // predicted
  double area;    // share of the low-resolution mask that is covered
  bool prompted;  // no alarm, and the running mean begins anew on the next frame
};

struct GuardState {
  std::map<std::int64_t, Observation> means;  // running, by object id
  std::int64_t level = 0;
  std::int64_t calm = 0;  // frames in a row
};

struct GuardAnswer {
  GuardState state;  // its level holds for this frame
  std::map<std::int64_t, Alarm> alarms;
};

// Looks at one frame; the level stops at `levels`.
GuardAnswer judge(const GuardState& state, const std::map<std::int64_t, Observation>& observed, std::int64_t levels);

}  // namespace fastsam2
