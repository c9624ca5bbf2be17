// The streaming loop: frames in, masks out, objects added, corrected and removed at any time, bounded memory for any
// length.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fastsam2/backend.hpp"
#include "fastsam2/config.hpp"
#include "fastsam2/image.hpp"
#include "fastsam2/result.hpp"

namespace fastsam2 {

// A prompt in pixels of the video: points and box, or a mask alone. Read during the call only.
struct Prompt {
  std::optional<std::array<float, 4>> box;              // x0, y0, x1, y1
  std::span<const std::array<float, 2>> points;         // x, y
  std::optional<std::span<const std::int32_t>> labels;  // 1 on the object, 0 off it; all 1 when left out
  std::optional<MaskView> mask;                         // of the frame's size
};

struct TrackerOptions {
  Prune prune;
  bool corrections_as_prompts = false;   // a corrected frame's memory counts as a prompt frame
  std::int64_t max_prompt_frames = 4;    // most prompt frames an object attends to
  std::int64_t fill_hole_area = 0;       // holes of at most this many low-resolution pixels are filled
  std::int64_t memory_budget_mb = 4096;  // estimated activations of one batch of objects, MiB
};

// Tracks objects through a stream of frames of one size. Not for use from several threads at once.
class Tracker {
 public:
  // `backend` may serve several trackers and lives as long as any of them. Throws PromptError if an option is out of
  // range, BackendError if corrections may become more prompt frames than engines have room for.
  Tracker(std::shared_ptr<Backend> backend, const ModelSpec& spec, const TrackerOptions& options = {});
  Tracker(Tracker&&) noexcept;
  Tracker& operator=(Tracker&&) noexcept;
  ~Tracker();

  // Takes the next frame and tracks every object on it.
  // Throws PromptError if the frame has no pixels or another size than the one before; BackendError if a graph cannot
  // run. Either way the frame was not taken and can be given again.
  Result step(const ImageView& frame);

  // Starts tracking an object from the newest frame on.
  //   id: >= 1, not in use.
  //   text: float32 [E], embedding of a description for the router; empty for none.
  // Throws PromptError if there is no frame yet, the id is in use, or the prompt is not legal; the tracker is unchanged
  // then.
  Result add(std::int64_t id, const Prompt& prompt, std::span<const float> text = {});

  // Corrects an object on the newest frame: points refine its present mask, a mask replaces it.
  //   append: keep the points given on this frame before, and add these.
  // Throws PromptError if the id is unknown or the prompt is not legal; the tracker is unchanged then.
  Result correct(std::int64_t id, const Prompt& prompt, bool append = false);

  // Says what an object is, from the newest frame on; an empty embedding takes the description back.
  // Throws PromptError if the id is unknown, rows are not chosen by the router, or the embedding has another width than
  // E.
  void describe(std::int64_t id, std::span<const float> text);

  // Stops tracking an object and frees its memory. Throws PromptError if the id is unknown.
  void remove(std::int64_t id);

  // Forgets every object and frame; the next frame has index 0 and may have another size.
  void reset();

  [[nodiscard]] std::vector<std::int64_t> ids() const;      // in the order they were added
  [[nodiscard]] std::optional<std::int64_t> frame() const;  // index of the newest frame
  [[nodiscard]] const ModelSpec& spec() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Embeddings float32 [T, E] on the host of token ids int32 [T, 77], by the bundle's text encoder. Throws PromptError or
// BackendError.
Tensor encode_text(Backend& backend, const ModelSpec& spec, std::span<const std::int32_t> ids);

}  // namespace fastsam2
