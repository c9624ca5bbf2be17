// The device that is the host, and the definition of every operation.
#pragma once

#include "fastsam2/backend.hpp"

namespace fastsam2 {

// Tensors lie in host memory. Keeps nothing, so one serves every tracker.
class HostDevice final : public Device {
 public:
  std::optional<std::int64_t> max_objects(GraphRole role) override;
  std::optional<std::int64_t> max_prompt_frames() override;
  Tensor put(const Tensor& host) override;
  std::vector<Tensor> fetch(std::span<const Tensor> tensors) override;
  Tensor full(Shape shape, double value, DType type) override;
  Tensor arange(std::int32_t start, std::int32_t stop) override;
  Tensor copy(const Tensor& tensor) override;
  Tensor stack(std::span<const Tensor> tensors) override;
  Tensor concatenate(std::span<const Tensor> tensors) override;
  Tensor clamp(const Tensor& tensor, float limit) override;
  Tensor to_bfloat16(const Tensor& rows) override;
  Kept top_k_gather(const Tensor& rows, const Tensor& scores, std::int64_t keep) override;
  Tensor pool_2x2(const Tensor& rows, std::int64_t grid) override;
  std::unique_ptr<MemoryReader> memory_reader(const ModelSpec& spec) override;
  Tensor pixels(const ImageView& frame, std::int64_t size) override;
  Tensor masks(const Tensor& logits, std::int64_t height, std::int64_t width) override;
  Tensor mask_scores(const Tensor& logits, std::int64_t grid) override;
  Tensor uncertainty(const Tensor& logits, std::int64_t grid) override;
};

}  // namespace fastsam2
