// The model's stages as functions of tensors, in batches within a memory budget. Definition: runtime/stages.py.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fastsam2/backend.hpp"
#include "memory_bank.hpp"

namespace fastsam2 {

// Outputs of image_encoder for one frame.
struct Features {
  Tensor tokens;      // [1, N, C]
  Tensor high_res_0;  // [1, C/8, L, L]
  Tensor high_res_1;  // [1, C/4, L/2, L/2]
};

// Masks of B objects.
struct Decoded {
  Tensor logits;   // [B, L, L]
  Tensor iou;      // [B]
  Tensor pointer;  // [B, C]
  Tensor score;    // [B]
};

// What the router says of the rows of B objects.
struct Routed {
  Tensor scores;     // [B, N]
  Tensor relevance;  // [B, N]
  Tensor context;    // [N]
};

// Points of one object in pixels of the S x S input.
struct ModelPoints {
  std::vector<float> xy;             // x, y of each
  std::vector<std::int32_t> labels;  // of each
};

class Stages {
 public:
  // Throws PromptError if the budget is not positive.
  Stages(std::shared_ptr<Backend> backend, const ModelSpec& spec, std::int64_t memory_budget_mb);

  [[nodiscard]] Device& device() const { return backend_->device(); }

  // Finds out before the first frame whether graphs have room for so many prompt frames of an object; throws
  // BackendError if they do not.
  void check_prompt_frames(std::int64_t count) const;

  Features encode_image(const Tensor& pixels);

  // Masks of objects on a frame without prompts, in batches of objects with equally long histories. `answer` is told
  // which of the objects a batch holds, their conditioned tokens float32 [n, N, C], and their masks.
  using Answer = std::function<void(std::span<const std::size_t>, const Tensor&, const Decoded&)>;
  void track(const Features& features, std::span<const ObjectMemory* const> memories, std::int64_t frame,
             const Answer& answer);

  // Mask of one object that is prompted with points.
  //   conditioned: float32 [1, N, C]; empty where nothing is remembered of the object yet.
  //   previous_logits: float32 [L, L], what was said of the object on this frame before, or empty.
  Decoded answer(const Features& features, const ModelPoints& points, const Tensor& conditioned,
                 const Tensor& previous_logits);

  // A given mask, float32 [1, 1, S, S] of 0 and 1, becomes the output; its predicted IoU is 1.
  Decoded adopt_mask(const Features& features, const Tensor& mask);

  // Memory rows float32 [B, N, D] of logits [B, L, L] and scores [B].
  Tensor encode_memory(const Features& features, const Tensor& logits, const Tensor& scores,
                       std::span<const bool> prompted);

  // What the memory rows of B objects are worth. Texts are float32 [E] on the host, or empty.
  Routed route(const Features& features, const Tensor& logits, const Tensor& scores, const Tensor& ious,
               const Tensor& uncertainty, std::span<const Tensor> texts);

 private:
  using Range = std::pair<std::int64_t, std::int64_t>;
  struct DecodeOptions {
    bool multimask = false;
    bool first_frame = false;
    Tensor points;           // float32 [B, Q, 2]; empty for a frame without prompts
    Tensor labels;           // int32 [B, Q]
    Tensor previous_logits;  // float32 [B, L, L], clamped, or empty
  };

  [[nodiscard]] std::vector<Range> chunks(GraphRole role, std::int64_t count, std::int64_t rows = 0) const;
  [[nodiscard]] bool multimask(std::int64_t points, bool first_frame) const;
  Tensor condition(const Features& features, std::span<const Reading> readings);
  Decoded decode(const Features& features, const Tensor& conditioned, const DecodeOptions& options);
  std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs);

  std::shared_ptr<Backend> backend_;
  ModelSpec spec_;
  std::int64_t budget_bytes_;
  std::unique_ptr<MemoryReader> reader_;
};

}  // namespace fastsam2
