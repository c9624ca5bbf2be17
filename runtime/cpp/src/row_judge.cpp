#include "row_judge.hpp"

#include <map>

namespace fastsam2 {

namespace {

template <typename Member>
std::vector<Tensor> column(std::span<const Judged> objects, Member member) {
  std::vector<Tensor> tensors;
  tensors.reserve(objects.size());
  for (const Judged& object : objects) {
    tensors.push_back(object.*member);
  }
  return tensors;
}

}  // namespace

Judgement judge_rows(const Pruner& pruner, Stages& stages, const ModelSpec& spec, std::int64_t frame,
                     const Features& features, std::span<const Judged> objects, const GuardState& guard) {
  Judgement judgement{std::vector<Tensor>(objects.size()), std::nullopt, std::nullopt, guard};
  if (!pruner.active()) {
    return judgement;
  }
  std::map<std::int64_t, Alarm> alarms;
  if (pruner.prune().guard) {
    std::map<std::int64_t, Observation> observed;
    for (const Judged& object : objects) {
      observed.emplace(object.object_id, object.seen);
    }
    GuardAnswer answer = judge(guard, observed, static_cast<std::int64_t>(pruner.budgets().size()) - 1);
    judgement.guard = std::move(answer.state);
    alarms = std::move(answer.alarms);
  }
  judgement.keep = pruner.budgets().at(static_cast<std::size_t>(judgement.guard.level));
  Cues cues{frame, {}, *judgement.keep, {}, {}, {}, {}, {}};
  if (pruner.routes()) {
    Device& device = stages.device();
    const Tensor logits = device.stack(column(objects, &Judged::logits));
    cues.uncertainty = device.uncertainty(logits, spec.grid());
    const Tensor scores = device.concatenate(column(objects, &Judged::score));
    const Tensor ious = device.concatenate(column(objects, &Judged::iou));
    const Routed routed =
        stages.route(features, logits, scores, ious, cues.uncertainty, column(objects, &Judged::text));
    cues.relevance = routed.relevance;
    cues.context = routed.context;
    for (std::size_t row = 0; row < objects.size(); ++row) {
      judgement.scores[row] = device.copy(routed.scores[static_cast<std::int64_t>(row)]);
    }
  } else {
    for (std::size_t row = 0; row < objects.size(); ++row) {
      judgement.scores[row] = pruner.score(objects[row].object_id, frame, objects[row].logits);
    }
  }
  if (!judgement.scores.front()) {
    return judgement;
  }
  for (const Judged& object : objects) {
    const auto alarm = alarms.find(object.object_id);
    cues.ids.push_back(object.object_id);
    cues.alarms.push_back(alarm == alarms.end() ? std::nullopt : std::optional(alarm->second));
  }
  cues.scores = judgement.scores;
  judgement.cues = std::move(cues);
  return judgement;
}

}  // namespace fastsam2
