// Graphs that a function of the C interface runs, in host memory.
#pragma once

#include "fastsam2/fastsam2.h"
#include "fastsam2/host_device.hpp"

namespace fastsam2 {

class CallbackBackend final : public Backend {
 public:
  CallbackBackend(const ModelSpec& spec, fastsam2_run callback, void* user)
      : spec_(spec), callback_(callback), user_(user) {}

  [[nodiscard]] std::string_view name() const override { return "callback"; }
  [[nodiscard]] ExportTarget target() const override { return ExportTarget::Onnxruntime; }
  [[nodiscard]] Device& device() override { return host_; }
  std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs) override;

 private:
  ModelSpec spec_;
  fastsam2_run callback_;
  void* user_;
  HostDevice host_;
};

}  // namespace fastsam2
