#include "gpu_backend.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

namespace fastsam2::gpu {

namespace {

constexpr std::uintptr_t kInputAlignment = 256;  // what setTensorAddress asks for

// Views, of rows in a batch for example, may begin anywhere.
bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.data()) % kInputAlignment == 0;
}

DType dtype_named(std::string_view name) {
  const std::array types{DType::Float32, DType::Int32, DType::UInt16, DType::UInt8, DType::Bool};
  return *std::ranges::find(types, name, [](DType type) { return name_of(type); });
}

}  // namespace

GpuBackend::GpuBackend(std::shared_ptr<Gpu> gpu, std::unique_ptr<Engines> engines, const ModelSpec& spec)
    : gpu_(std::move(gpu)), engines_(std::move(engines)), spec_(spec), device_(gpu_, *engines_) {}

std::vector<Tensor> GpuBackend::run(GraphRole role, std::span<const NamedTensor> inputs) {
  if (!engines_->has(role)) {
    throw BackendError(expected("graph " + std::string(name_of(role)) + " on " + std::string(name()), "none",
                                "Export or build the bundle again with it"));
  }
  const GraphSpec& graph = graph_spec(role, target());
  const std::vector<Shape> shapes = output_shapes(role, spec_, inputs);
  std::vector<NamedTensor> given;  // in the order of the contract
  for (const TensorSpec& wanted : graph.inputs) {
    const auto found = std::ranges::find(inputs, wanted.name, &NamedTensor::name);
    if (found == inputs.end() || name_of(found->tensor.dtype()) != wanted.dtype ||
        inputs.size() != graph.inputs.size()) {
      const std::string what = std::string(wanted.name) + " of " + std::string(name_of(role)) + " as " +
                               std::string(wanted.dtype) + " among " + std::to_string(graph.inputs.size()) + " inputs";
      const std::string_view got = found == inputs.end() ? "none" : name_of(found->tensor.dtype());
      throw InternalError(expected(what, std::string(got) + " among " + std::to_string(inputs.size()), "Report this"));
    }
    const Tensor input = device_.put(found->tensor);
    given.push_back({wanted.name, is_aligned(input) ? input : device_.copy(input)});
  }
  std::vector<NamedTensor> wanted;
  for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
    const Purpose purpose{graph.outputs[i].name, static_cast<int>(role)};
    wanted.push_back(
        {graph.outputs[i].name, device_.pool().empty(dtype_named(graph.outputs[i].dtype), shapes[i], purpose)});
  }
  const std::lock_guard lock(mutex_);
  engines_->enqueue(role, given, wanted);
  std::vector<Tensor> outputs;
  std::ranges::transform(wanted, std::back_inserter(outputs), &NamedTensor::tensor);
  return outputs;
}

}  // namespace fastsam2::gpu
