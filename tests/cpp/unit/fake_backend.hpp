// A backend without a model: outputs are simple functions of the inputs, so that every call shows in the masks.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "fastsam2/host_device.hpp"
#include "fastsam2/tracker.hpp"

namespace fastsam2::testing {

inline ModelSpec small_spec() {
  ModelSpec spec;
  spec.name = "fake";
  spec.image_size = 64;
  spec.hidden_dim = 16;
  spec.memory_dim = 8;
  spec.num_maskmem = 7;
  spec.max_object_pointers = 16;
  spec.multimask_max_points = 1;
  spec.multimask_for_tracking = true;
  spec.pointer_offsets = true;
  spec.signed_pointer_offsets = true;
  spec.text_dim = 4;
  return spec;
}

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(ModelSpec spec = small_spec()) : spec_(std::move(spec)) {}

  [[nodiscard]] std::string_view name() const override { return "fake"; }
  [[nodiscard]] ExportTarget target() const override { return ExportTarget::Onnxruntime; }
  [[nodiscard]] Device& device() override { return host_; }

  std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs) override {
    calls.push_back(role);
    if (fails > 0 && --fails == 0) {
      throw BackendError(expected("memory", "none", "Free some"));
    }
    float mean = 0.0F;
    for (const NamedTensor& input : inputs) {
      if (input.tensor.dtype() == DType::Float32) {
        for (const float value : input.tensor.values<float>()) {
          mean += value / static_cast<float>(input.tensor.elements());
        }
      }
      if (input.name == "memory") {
        memory_shapes.push_back(input.tensor.shape());
      }
    }
    std::vector<Tensor> outputs;
    for (const Shape& shape : output_shapes(role, spec_, inputs)) {
      const Tensor output = Tensor::empty(DType::Float32, shape);
      const std::span<float> values = output.fill<float>();
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = std::sin(mean + static_cast<float>(i) * 0.37F + static_cast<float>(outputs.size())) + 0.2F;
      }
      outputs.push_back(output);
    }
    return outputs;
  }

  std::vector<GraphRole> calls;
  std::vector<Shape> memory_shapes;
  int fails = 0;  // the n-th call from now on fails

 private:
  ModelSpec spec_;
  HostDevice host_;
};

// A frame of one grey level a pixel.
struct Picture {
  std::int64_t height = 48, width = 80;
  std::vector<std::uint8_t> bytes = std::vector<std::uint8_t>(48 * 80 * 3);

  explicit Picture(int seed = 0) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::uint8_t>((i * 31 + static_cast<std::size_t>(seed) * 17) % 251);
    }
  }
  [[nodiscard]] ImageView view() const { return {bytes.data(), height, width, width * 3}; }
};

}  // namespace fastsam2::testing
