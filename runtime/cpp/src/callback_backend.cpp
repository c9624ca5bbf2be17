#include "callback_backend.hpp"

#include <algorithm>
#include <array>
#include <string>

namespace fastsam2 {

namespace {

static_assert(static_cast<int>(DType::Float32) == FASTSAM2_FLOAT32 &&
              static_cast<int>(DType::Int32) == FASTSAM2_INT32 && static_cast<int>(DType::UInt16) == FASTSAM2_UINT16 &&
              static_cast<int>(DType::UInt8) == FASTSAM2_UINT8 && static_cast<int>(DType::Bool) == FASTSAM2_BOOL);

// Names of the contract end with a zero: they are literals.
fastsam2_tensor view_of(std::string_view name, const Tensor& tensor) {
  fastsam2_tensor view{name.data(),
                       static_cast<std::uint32_t>(tensor.dtype()),
                       static_cast<std::uint32_t>(tensor.shape().rank()),
                       {},
                       tensor.data(),
                       tensor.nbytes()};
  std::ranges::copy(tensor.shape(), std::begin(view.shape));
  return view;
}

DType dtype_named(std::string_view name) {
  const std::array types{DType::Float32, DType::Int32, DType::UInt16, DType::UInt8, DType::Bool};
  return *std::ranges::find(types, name, [](DType type) { return name_of(type); });
}

}  // namespace

std::vector<Tensor> CallbackBackend::run(GraphRole role, std::span<const NamedTensor> inputs) {
  const auto wanted = graph_spec(role, target()).outputs;
  const std::vector<Shape> shapes = output_shapes(role, spec_, inputs);
  std::vector<Tensor> outputs;
  std::vector<fastsam2_tensor> given;
  std::vector<fastsam2_tensor> asked;
  for (const auto& [name, tensor] : inputs) {
    given.push_back(view_of(name, tensor));
  }
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    outputs.push_back(Tensor::empty(dtype_named(wanted[i].dtype), shapes[i]));
    asked.push_back(view_of(wanted[i].name, outputs.back()));
  }
  std::array<char, 1024> message{};
  const std::int32_t failed =
      callback_(user_, name_of(role).data(), given.data(), static_cast<std::uint32_t>(given.size()), asked.data(),
                static_cast<std::uint32_t>(asked.size()), message.data(), static_cast<std::uint32_t>(message.size()));
  if (failed != 0) {
    message.back() = '\0';
    const std::string reason = message.front() == '\0' ? "status " + std::to_string(failed) : message.data();
    throw BackendError(expected("graph " + std::string(name_of(role)) + " to run in the callback", reason,
                                "See what the callback says"));
  }
  return outputs;
}

}  // namespace fastsam2
