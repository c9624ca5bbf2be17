#include "profiles.hpp"

#include <charconv>
#include <sstream>

namespace fastsam2::gpu {

namespace {

constexpr std::int64_t kMaxPoints = 64;  // prompt points of one object
constexpr std::int64_t kMaxTexts = 8;    // descriptions encoded at once

using Sizes = std::map<std::string, std::array<std::int64_t, 3>>;

// Inputs whose value is the size of an axis of the outputs: SHAPE_INPUTS of fastsam2/contracts.py.
const std::map<std::string, std::string> kShapeInputs{{"k", "K"}};

Sizes axis_sizes(const ModelSpec& spec, const Limits& limits, std::int64_t kept) {
  const std::int64_t n = spec.tokens();
  const std::int64_t rows = (limits.max_prompt_frames + 1) * n + (spec.num_maskmem - 2) * kept;
  const std::int64_t pointers = limits.max_prompt_frames + spec.max_object_pointers - 1;
  const std::int64_t split = spec.hidden_dim / spec.memory_dim;
  const std::int64_t keys = rows + split * pointers;
  return {{"B", {1, 1, limits.max_objects}},
          {"K", {1, std::max<std::int64_t>(1, n / 2), n}},
          {"M", {1, rows, rows}},
          {"P", {1, pointers, pointers}},
          {"R", {1 + split, keys, keys}},
          {"Q", {1, 1, kMaxPoints}},
          {"T", {1, 1, kMaxTexts}}};
}

Profile profile(const ModelSpec& spec, const GraphSpec& graph, std::string name, const Sizes& sizes) {
  Profile made{std::move(name), {}, {}, {}};
  for (const TensorSpec& tensor : graph.inputs) {
    const std::string input(tensor.name);
    std::array<Profile::Dims, 3> shapes;
    bool dynamic = false;
    for (const std::string& axis : axes_of(tensor)) {
      const std::optional<std::int64_t> fixed = static_size(spec, axis);
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        shapes[i].push_back(fixed ? *fixed : sizes.at(axis)[i]);
      }
      if (!fixed) {
        made.sizes[axis] = sizes.at(axis);
        dynamic = true;
      }
    }
    if (dynamic) {
      made.shapes[input] = shapes;
    }
    if (const auto shape_input = kShapeInputs.find(input); shape_input != kShapeInputs.end()) {
      made.values[input] = sizes.at(shape_input->second);
    }
  }
  return made;
}

}  // namespace

std::vector<std::string> axes_of(const TensorSpec& tensor) {
  std::istringstream text{std::string(tensor.axes)};
  std::vector<std::string> axes;
  for (std::string axis; text >> axis;) {
    axes.push_back(axis);
  }
  return axes;
}

std::string short_text(double value) {
  std::array<char, 32> text{};
  const auto [end, error] = std::to_chars(text.begin(), text.end(), value, std::chars_format::general, 6);
  return {text.begin(), end};
}

std::vector<Profile> profiles(const ModelSpec& spec, GraphRole role, const Limits& limits) {
  const GraphSpec& graph = graph_spec(role, ExportTarget::Tensorrt);
  const Profile dense = profile(spec, graph, "dense", axis_sizes(spec, limits, spec.tokens()));
  if (dense.sizes.empty()) {
    return {};
  }
  std::vector<Profile> found{dense};
  if (dense.sizes.contains("M")) {
    for (const double keep : limits.keep_buckets) {
      found.push_back(
          profile(spec, graph, "keep " + short_text(keep), axis_sizes(spec, limits, bucket_rows(keep, spec.tokens()))));
    }
  }
  return found;
}

}  // namespace fastsam2::gpu
