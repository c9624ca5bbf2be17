// Which memory rows survive once a frame is no longer the newest. Definition: runtime/pruning.py.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fastsam2/backend.hpp"

namespace fastsam2 {

// Scores and compacts the rows of one object's frame. Holds no rows; one pruner serves every object.
class Pruner {
 public:
  // Throws PromptError if the options are not legal for the model.
  Pruner(const Prune& prune, const ModelSpec& spec, Device& device);

  [[nodiscard]] const Prune& prune() const { return prune_; }
  [[nodiscard]] Device& device() const { return device_; }
  // K of a compaction, and with the guard the larger K it may rise to.
  [[nodiscard]] const std::vector<std::int64_t>& budgets() const { return budgets_; }
  // Whether frames are compacted at all.
  [[nodiscard]] bool active() const { return prune_.policy != PrunePolicy::Dense; }
  // Whether scores come from the router graph.
  [[nodiscard]] bool routes() const { return prune_.policy == PrunePolicy::Router; }

  // float32 [N] on the device for logits [L, L]; empty for policies without scores of their own.
  [[nodiscard]] Tensor score(std::int64_t object_id, std::int64_t frame, const Tensor& logits) const;
  // N rows -> K. Position holds rows of the position tables: grid rows their own, pooled cells N..N+N/4-1.
  [[nodiscard]] Kept compact(const Tensor& rows, const Tensor& scores, std::optional<std::int64_t> keep) const;

 private:
  Prune prune_;
  ModelSpec spec_;
  Device& device_;
  std::vector<std::int64_t> budgets_;
};

}  // namespace fastsam2
