#include "fastsam2/backend.hpp"

#include <algorithm>
#include <map>
#include <string>

namespace fastsam2 {

namespace {

std::vector<std::string_view> split(std::string_view axes) {
  std::vector<std::string_view> symbols;
  while (!axes.empty()) {
    const std::size_t end = std::min(axes.find(' '), axes.size());
    symbols.push_back(axes.substr(0, end));
    axes.remove_prefix(std::min(end + 1, axes.size()));
  }
  return symbols;
}

// Sizes of the dynamic axes, learned from the inputs.
std::map<std::string_view, std::int64_t> dynamic_sizes(const GraphSpec& graph, const ModelSpec& spec,
                                                       std::span<const NamedTensor> inputs) {
  std::map<std::string_view, std::int64_t> sizes;
  for (const TensorSpec& wanted : graph.inputs) {
    const auto given = std::ranges::find(inputs, wanted.name, &NamedTensor::name);
    const std::vector<std::string_view> symbols = split(wanted.axes);
    const std::string where = std::string(name_of(graph.role)) + "." + std::string(wanted.name);
    if (given == inputs.end() || given->tensor.shape().rank() != symbols.size() ||
        name_of(given->tensor.dtype()) != wanted.dtype) {
      const std::string got = given == inputs.end() ? "none" : given->tensor.shape().text();
      throw InternalError(expected(where + " " + std::string(wanted.dtype) + " [" + std::string(wanted.axes) + "]", got,
                                   "Report this"));
    }
    for (std::size_t axis = 0; axis < symbols.size(); ++axis) {
      const std::int64_t size = given->tensor.shape()[axis];
      const std::optional<std::int64_t> fixed = static_size(spec, symbols[axis]);
      if (size != (fixed ? *fixed : sizes.emplace(symbols[axis], size).first->second)) {
        const std::string what = where + " of shape [" + std::string(wanted.axes) + "] that fits the other inputs";
        throw InternalError(expected(what, given->tensor.shape().text(), "Report this"));
      }
    }
  }
  return sizes;
}

}  // namespace

std::vector<Shape> output_shapes(GraphRole role, const ModelSpec& spec, std::span<const NamedTensor> inputs) {
  const GraphSpec& graph = graph_spec(role, ExportTarget::Onnxruntime);  // outputs are the same for every target
  const auto sizes = dynamic_sizes(graph, spec, inputs);
  std::vector<Shape> shapes;
  for (const TensorSpec& output : graph.outputs) {
    std::vector<std::int64_t> shape;
    for (const std::string_view symbol : split(output.axes)) {
      const std::optional<std::int64_t> fixed = static_size(spec, symbol);
      shape.push_back(fixed ? *fixed : sizes.at(symbol));
    }
    shapes.emplace_back(std::span<const std::int64_t>(shape));
  }
  return shapes;
}

void check_outputs(GraphRole role, const ModelSpec& spec, std::span<const NamedTensor> inputs,
                   std::span<const Tensor> outputs) {
  const std::vector<Shape> shapes = output_shapes(role, spec, inputs);
  const auto wanted = graph_spec(role, ExportTarget::Onnxruntime).outputs;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (outputs.size() == wanted.size() && outputs[i] && name_of(outputs[i].dtype()) == wanted[i].dtype &&
        outputs[i].shape() == shapes[i]) {
      continue;
    }
    const std::string what = "output " + std::string(wanted[i].name) + " of " + std::string(name_of(role)) + " as " +
                             std::string(wanted[i].dtype) + " " + shapes[i].text();
    const std::string got = outputs.size() != wanted.size() ? std::to_string(outputs.size()) + " outputs"
                            : outputs[i] ? std::string(name_of(outputs[i].dtype())) + " " + outputs[i].shape().text()
                                         : "none";
    throw BackendError(expected(what, got, "Run the graphs of the bundle that the sizes came from"));
  }
}

}  // namespace fastsam2
