// The device that is a GPU: what a tracker does with its tensors, as kernels and copies on one stream. Definition:
// runtime/gpu/device.py.
//
//   put, pixels ─ page-locked memory ─► tensors ─ kernels, engines ─► tensors ─ fetch: one wait ─► host tensors
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "engines.hpp"
#include "fastsam2/backend.hpp"
#include "frame_ops.hpp"
#include "pool.hpp"

namespace fastsam2::gpu {

// Trackers of one backend share it, from several threads too: their work interleaves on the stream.
class CudaDevice final : public Device {
 public:
  // Engines whose limits hold; they live as long as the device.
  CudaDevice(std::shared_ptr<Gpu> gpu, Engines& engines);

  std::optional<std::int64_t> max_objects(GraphRole role) override { return engines_.max_objects(role); }
  std::optional<std::int64_t> max_prompt_frames() override { return engines_.max_prompt_frames(); }
  // A copy of a host tensor; a tensor of the pool as it is.
  Tensor put(const Tensor& host) override;
  std::vector<Tensor> fetch(std::span<const Tensor> tensors) override;
  // Made once; not to be written.
  Tensor full(Shape shape, double value, DType type) override;
  Tensor arange(std::int32_t start, std::int32_t stop) override;
  Tensor copy(const Tensor& tensor) override;
  // A view where the tensors lie behind each other already.
  Tensor stack(std::span<const Tensor> tensors) override;
  Tensor concatenate(std::span<const Tensor> tensors) override;
  Tensor clamp(const Tensor& tensor, float limit) override;
  Tensor to_bfloat16(const Tensor& rows) override;
  Kept top_k_gather(const Tensor& rows, const Tensor& scores, std::int64_t keep) override;
  Tensor pool_2x2(const Tensor& rows, std::int64_t grid) override;
  // One upload and one launch for each batch.
  std::unique_ptr<MemoryReader> memory_reader(const ModelSpec& spec) override;
  Tensor pixels(const ImageView& frame, std::int64_t size) override;
  Tensor masks(const Tensor& logits, std::int64_t height, std::int64_t width) override;
  Tensor mask_scores(const Tensor& logits, std::int64_t grid) override;
  Tensor uncertainty(const Tensor& logits, std::int64_t grid) override;

  // The inputs of memory attention, with the bias of each key where the engines take one.
  std::vector<NamedTensor> read_memory(const ModelSpec& spec, std::span<const Reading> readings);

  [[nodiscard]] Pool& pool() { return *pool_; }

 private:
  using ConstantKey = std::array<std::int64_t, Shape::kMaxRank + 4>;

  template <typename T>
  Tensor upload(std::span<const T> values, Shape shape, DType type, std::string_view purpose);
  std::vector<Tensor> put_all(std::span<const Tensor> tensors);
  Tensor joined(std::span<const Tensor> parts, Shape shape, std::string_view purpose);
  Tensor constant(const ConstantKey& key, const std::function<Tensor()>& make);
  std::pair<Tensor, Tensor> resize_tables(std::int64_t source, std::int64_t size);
  Tensor lerp(std::int64_t side, std::int64_t size);

  std::shared_ptr<Gpu> gpu_;
  Engines& engines_;
  std::shared_ptr<Pool> pool_;
  FrameOps ops_;
  Staging staging_;
  std::recursive_mutex mutex_;                           // of staging and constants
  std::list<std::pair<ConstantKey, Tensor>> constants_;  // the one used last comes first
  std::map<ConstantKey, std::list<std::pair<ConstantKey, Tensor>>::iterator> constant_at_;
};

}  // namespace fastsam2::gpu
