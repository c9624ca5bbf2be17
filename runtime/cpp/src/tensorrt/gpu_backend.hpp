// Graphs on a GPU: tensors stay on it, and nothing waits but `Device::fetch`. Definition: runtime/gpu/backend.py.
#pragma once

#include <memory>
#include <mutex>

#include "device.hpp"
#include "engines.hpp"
#include "gpu.hpp"

namespace fastsam2::gpu {

// Trackers may share it, from several threads too.
class GpuBackend final : public Backend {
 public:
  GpuBackend(std::shared_ptr<Gpu> gpu, std::unique_ptr<Engines> engines, const ModelSpec& spec);

  [[nodiscard]] std::string_view name() const override { return engines_->name(); }
  [[nodiscard]] ExportTarget target() const override { return engines_->target(); }
  [[nodiscard]] CudaDevice& device() override { return device_; }
  // Enqueues and returns; an error of the GPU itself shows at the next `fetch`.
  std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs) override;

 private:
  std::shared_ptr<Gpu> gpu_;
  std::unique_ptr<Engines> engines_;
  ModelSpec spec_;
  CudaDevice device_;
  std::mutex mutex_;  // an engine has one context: shapes, addresses and the run belong together
};

}  // namespace fastsam2::gpu
