// What a model is, and how its memory is pruned: fastsam2/config.py in C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fastsam2/contracts.hpp"

namespace fastsam2 {

// Sizes of a model in tokens, channels or pixels, as the manifest holds them; names and meaning as in
// fastsam2/config.py.
struct ModelSpec {
  std::string name;
  std::int64_t image_size = 0;  // S
  std::int64_t hidden_dim = 0;  // C
  std::int64_t memory_dim = 0;  // D
  std::int64_t num_maskmem = 0;
  std::int64_t max_object_pointers = 0;
  std::int64_t multimask_min_points = 0;
  std::int64_t multimask_max_points = 0;
  bool multimask_for_tracking = false;
  bool pointer_offsets = false;
  bool signed_pointer_offsets = false;
  std::int64_t text_dim = 512;   // E
  std::int64_t crop_size = 224;  // I

  [[nodiscard]] std::int64_t grid() const { return image_size / kImageStride; }
  [[nodiscard]] std::int64_t tokens() const { return grid() * grid(); }
  [[nodiscard]] std::int64_t low_res() const { return image_size / kLowResStride; }
};

// Size of an axis that the model fixes; none for the dynamic ones. Throws InternalError for an unknown symbol.
std::optional<std::int64_t> static_size(const ModelSpec& spec, std::string_view axis);

// Which memory rows survive once a frame is no longer the newest. The default keeps all.
struct Prune {
  PrunePolicy policy = PrunePolicy::Dense;
  std::optional<double> keep;          // fraction of a frame's rows, (0, 1]; rounded up to the next bucket
  std::optional<std::int64_t> tokens;  // the same as a row count; give one of the two
  std::vector<Protect> protect{Protect::Prompt, Protect::Newest};  // frames kept dense
  std::int64_t seed = 0;                                           // of policy random
  std::vector<double> buckets{kKeepBuckets.begin(), kKeepBuckets.end()};
  bool guard = false;  // raise the budget while tracking looks unsure

  // Throws PromptError if a value is out of range or two do not fit together.
  void check() const;
  // Whether rows are ranked and the best of them kept.
  [[nodiscard]] bool scores_rows() const { return policy != PrunePolicy::Dense && policy != PrunePolicy::Pool2x2; }
  [[nodiscard]] bool protects(Protect frames) const { return std::ranges::find(protect, frames) != protect.end(); }
  // K, the rows kept of a frame of N tokens. Throws PromptError if it has fewer than `tokens`.
  [[nodiscard]] std::int64_t rows(std::int64_t tokens_per_frame) const;
  // `rows` and, with the guard, the larger buckets it may rise to, ascending.
  [[nodiscard]] std::vector<std::int64_t> budgets(std::int64_t tokens_per_frame) const;
};

// Rows of a keep fraction: ceil(fraction · N) after rounding to six decimals.
std::int64_t bucket_rows(double fraction, std::int64_t tokens_per_frame);

}  // namespace fastsam2
