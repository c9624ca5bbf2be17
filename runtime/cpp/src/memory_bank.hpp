// The bounded memory of one object in a stream: rows of frames in bfloat16, and object pointers. Definition:
// runtime/memory_bank.py.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "pruning.hpp"
#include "selection.hpp"

namespace fastsam2 {

// Memory of one frame of one object.
struct FrameMemory {
  std::int64_t frame;
  Tensor pointer;                    // float32 [C]
  bool prompt;                       // counts as a prompt frame
  Tensor rows;                       // uint16 [K, D]; empty once only the pointer can still be read
  Tensor position;                   // int32 [K]
  Tensor scores;                     // float32 [N] for the compaction to come; empty when compacted or never to be
  std::optional<std::int64_t> keep;  // K of that compaction
  bool compacted = false;
};

class ObjectMemory {
 public:
  // `pruner` outlives the memory.
  ObjectMemory(const ModelSpec& spec, const Pruner& pruner, std::int64_t max_prompt_frames);

  // Stores the newest frame; earlier frames are compacted, demoted and dropped. Writing the same frame again replaces
  // it.
  //   rows: float32 [N, D] as memory_encoder gives them.
  void write(std::int64_t frame, const Tensor& rows, const Tensor& pointer, bool prompt, const Tensor& scores,
             std::optional<std::int64_t> keep);

  // What a step at `frame` reads.
  [[nodiscard]] Selection selection(std::int64_t frame) const;
  // Memory rows and pointers of a selection; objects with equal counts run as one batch.
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> counts(const Selection& selection) const;
  [[nodiscard]] Reading reading(const Selection& selection) const;

  [[nodiscard]] std::int64_t rows_held() const;
  [[nodiscard]] std::int64_t bytes_held() const;

 private:
  [[nodiscard]] const FrameMemory& at(std::int64_t frame) const;
  [[nodiscard]] bool is_due(const FrameMemory& memory, bool newest) const;

  ModelSpec spec_;
  const Pruner& pruner_;
  std::int64_t max_prompt_frames_;
  Tensor grid_;                      // position of dense rows
  std::vector<FrameMemory> frames_;  // ascending
};

}  // namespace fastsam2
