#include "guard.hpp"

#include <algorithm>

namespace fastsam2 {

namespace {

constexpr double kIouDrop = 0.15;   // below the running mean
constexpr double kScoreDrop = 3.0;  // logit, below the running mean
constexpr double kAreaJump = 1.6;   // times the running mean, or one over it
constexpr std::int64_t kCalmFrames = 5;
constexpr double kMemory = 0.8;  // share of the old running mean

Observation blended(const Observation& mean, const Observation& seen) {
  constexpr double kNew = 1 - kMemory;
  return {kMemory * mean.score + kNew * seen.score, kMemory * mean.iou + kNew * seen.iou,
          kMemory * mean.area + kNew * seen.area, false};
}

std::optional<Alarm> alarm_of(const Observation& mean, const Observation& seen) {
  if (seen.score <= 0 || seen.score < mean.score - kScoreDrop) {
    return Alarm::Score;
  }
  if (seen.iou < mean.iou - kIouDrop) {
    return Alarm::Iou;
  }
  if (mean.area > 0 && !(mean.area / kAreaJump <= seen.area && seen.area <= mean.area * kAreaJump)) {
    return Alarm::Area;
  }
  return std::nullopt;
}

}  // namespace

GuardAnswer judge(const GuardState& state, const std::map<std::int64_t, Observation>& observed, std::int64_t levels) {
  GuardAnswer answer;
  for (const auto& [id, seen] : observed) {
    const auto mean = state.means.find(id);
    if (mean == state.means.end() || seen.prompted) {
      answer.state.means.emplace(id, seen);
    } else if (const std::optional<Alarm> alarm = alarm_of(mean->second, seen)) {
      answer.alarms.emplace(id, *alarm);
      answer.state.means.emplace(id, mean->second);
    } else {
      answer.state.means.emplace(id, blended(mean->second, seen));
    }
  }
  if (!answer.alarms.empty()) {
    answer.state.level = std::min(state.level + 1, levels);
  } else if (state.calm + 1 >= kCalmFrames) {
    answer.state.level = std::max<std::int64_t>(state.level - 1, 0);
  } else {
    answer.state.level = state.level;
    answer.state.calm = state.calm + 1;
  }
  return answer;
}

}  // namespace fastsam2
