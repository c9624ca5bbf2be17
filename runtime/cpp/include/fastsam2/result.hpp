// What a tracker answers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fastsam2/contracts.hpp"
#include "fastsam2/tensor.hpp"

namespace fastsam2 {

// Which memory rows of the frame before are kept, and why; rows of the tensors are objects.
struct TokenReport {
  std::int64_t frame = 0;
  std::vector<std::int64_t> ids;
  std::int64_t keep = 0;                     // K, rows kept of each object
  std::vector<std::optional<Alarm>> alarms;  // why the guard raised K
  Tensor scores;                             // float32 [B, N]
  Tensor uncertainty;                        // float32 [B, N]; empty unless the router judged, as the next two
  Tensor relevance;                          // float32 [B, N]
  Tensor context;                            // float32 [N]
};

// Masks of one frame, in host memory that belongs to whoever holds them.
struct Result {
  std::int64_t frame = 0;                // since the tracker's start or reset
  std::vector<std::int64_t> ids;         // in the order they were added; row i of every tensor is ids[i]
  Tensor masks;                          // bool [B, H, W]
  Tensor scores;                         // float32 [B]; the object is visible when > 0
  Tensor ious;                           // float32 [B], predicted IoU
  Tensor low_res_logits;                 // float32 [B, L, L]
  std::vector<std::int64_t> rows_held;   // memory rows of each object
  std::vector<std::int64_t> bytes_held;  // by rows, positions and pointers of each object
  std::optional<TokenReport> tokens;     // none without a policy that scores rows, and on the first frame
};

}  // namespace fastsam2
