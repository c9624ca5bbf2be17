#include "memory_bank.hpp"

#include <algorithm>
#include <string>

namespace fastsam2 {

ObjectMemory::ObjectMemory(const ModelSpec& spec, const Pruner& pruner, std::int64_t max_prompt_frames)
    : spec_(spec),
      pruner_(pruner),
      max_prompt_frames_(max_prompt_frames),
      grid_(pruner.device().arange(0, static_cast<std::int32_t>(spec.tokens()))) {}

void ObjectMemory::write(std::int64_t frame, const Tensor& rows, const Tensor& pointer, bool prompt,
                         const Tensor& scores, std::optional<std::int64_t> keep) {
  FrameMemory newest{frame, pointer, prompt, pruner_.device().to_bfloat16(rows), grid_, scores, keep};
  if (!frames_.empty() && frames_.back().frame == frame) {
    frames_.pop_back();
  }
  frames_.push_back(std::move(newest));
  auto prompts = std::ranges::count_if(frames_, &FrameMemory::prompt);
  for (FrameMemory& memory : frames_) {
    if (memory.prompt && prompts > max_prompt_frames_) {
      memory.prompt = false;
      --prompts;
    }
  }
  const auto back = [frame](const FrameMemory& memory) {
    return frame + 1 - memory.frame;
  };  // as seen from the next step
  std::erase_if(frames_,
                [&](const FrameMemory& memory) { return !memory.prompt && back(memory) >= spec_.max_object_pointers; });
  for (FrameMemory& memory : frames_) {
    if (!memory.prompt && back(memory) >= spec_.num_maskmem) {
      memory.rows = memory.scores = Tensor();
    } else if (memory.rows && is_due(memory, memory.frame == frame)) {
      Kept kept = pruner_.compact(memory.rows, memory.scores, memory.keep);
      memory.rows = std::move(kept.rows);
      memory.position = std::move(kept.position);
      memory.scores = Tensor();
      memory.compacted = true;
    }
  }
}

bool ObjectMemory::is_due(const FrameMemory& memory, bool newest) const {
  if (!pruner_.active() || memory.compacted) {
    return false;
  }
  const Prune& prune = pruner_.prune();
  return !((memory.prompt && prune.protects(Protect::Prompt)) || (newest && prune.protects(Protect::Newest)));
}

Selection ObjectMemory::selection(std::int64_t frame) const {
  std::vector<std::int64_t> prompts;
  std::vector<std::int64_t> others;
  for (const FrameMemory& memory : frames_) {
    (memory.prompt ? prompts : others).push_back(memory.frame);
  }
  return select(frame, prompts, others, spec_, max_prompt_frames_);
}

std::pair<std::int64_t, std::int64_t> ObjectMemory::counts(const Selection& selection) const {
  std::int64_t rows = 0;
  for (const auto& [frame, age] : selection.rows) {
    rows += at(frame).position.size();
  }
  return {rows, static_cast<std::int64_t>(selection.pointers.size())};
}

Reading ObjectMemory::reading(const Selection& selection) const {
  Reading reading;
  for (const auto& [frame, age] : selection.rows) {
    const FrameMemory& held = at(frame);
    reading.frames.push_back({held.rows, held.position, age});
  }
  const auto span = static_cast<float>(selection.pointer_span);
  for (const auto& [frame, offset] : selection.pointers) {
    reading.pointers.push_back({at(frame).pointer, static_cast<float>(offset) / span});
  }
  return reading;
}

const FrameMemory& ObjectMemory::at(std::int64_t frame) const {
  const auto found = std::ranges::find(frames_, frame, &FrameMemory::frame);
  if (found == frames_.end()) {
    throw InternalError(
        expected("memory of a selected frame", "none of frame " + std::to_string(frame), "Report this"));
  }
  return *found;
}

std::int64_t ObjectMemory::rows_held() const {
  std::int64_t rows = 0;
  for (const FrameMemory& memory : frames_) {
    rows += memory.rows ? memory.position.size() : 0;
  }
  return rows;
}

std::int64_t ObjectMemory::bytes_held() const {
  std::size_t bytes = 0;
  for (const FrameMemory& memory : frames_) {
    bytes += memory.pointer.nbytes() + memory.scores.nbytes();
    bytes += memory.rows ? memory.rows.nbytes() + memory.position.nbytes() : 0;
  }
  return static_cast<std::int64_t>(bytes);
}

}  // namespace fastsam2
