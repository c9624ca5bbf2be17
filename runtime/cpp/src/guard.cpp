#include "guard.hpp"

#include <algorithm>
#include <cmath>

namespace fastsam2 {

namespace {

constexpr double kIouDrop = 0.2;    // below the running mean
constexpr double kScoreDrop = 4.0;  // logit, below the running mean
constexpr double kAreaJump = 2.0;   // times the running mean, or one over it
constexpr std::int64_t kCalmFrames = 5;
constexpr double kMemory = 0.8;      // share of the old running mean
constexpr double kLeastArea = 1e-4;  // share of the mask; areas below are alike

Observation blended(const Observation& mean, const Observation& seen) {
  constexpr double kNew = 1 - kMemory;
  return {kMemory * mean.score + kNew * seen.score, kMemory * mean.iou + kNew * seen.iou,
          std::pow(mean.area + kLeastArea, kMemory) * std::pow(seen.area + kLeastArea, kNew) - kLeastArea, false};
}

std::optional<Alarm> alarm_of(const Observation* mean, const Observation& seen) {
  if (seen.score <= 0 && (mean == nullptr || mean->score > 0)) {
    return Alarm::Score;
  }
  if (mean == nullptr) {
    return std::nullopt;
  }
  if (seen.score < mean->score - kScoreDrop) {
    return Alarm::Score;
  }
  if (seen.iou < mean->iou - kIouDrop) {
    return Alarm::Iou;
  }
  const double ratio = (seen.area + kLeastArea) / (mean->area + kLeastArea);
  if (!(1 / kAreaJump <= ratio && ratio <= kAreaJump)) {
    return Alarm::Area;
  }
  return std::nullopt;
}

}  // namespace

GuardAnswer judge(const GuardState& state, const std::map<std::int64_t, Observation>& observed, std::int64_t levels) {
  GuardAnswer answer;
  for (const auto& [id, seen] : observed) {
    if (seen.prompted) {
      continue;  // the mean begins anew on the next frame
    }
    const auto known = state.means.find(id);
    const Observation* mean = known == state.means.end() ? nullptr : &known->second;
    if (const std::optional<Alarm> alarm = alarm_of(mean, seen)) {
      answer.alarms.emplace(id, *alarm);
    }
    answer.state.means.emplace(id, mean == nullptr ? seen : blended(*mean, seen));
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
