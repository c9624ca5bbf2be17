#include "tensorrt_engines.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <numeric>

namespace fastsam2::gpu {

namespace {

constexpr std::string_view kLost = "If an earlier step failed on this GPU its context is lost: start again";

std::string text_of(const Dims& dims) {
  std::string text;
  for (const std::int64_t size : dims) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

Dims dims_of(const Shape& shape) {
  return {shape.begin(), shape.end()};
}

// What gives an axis more room.
std::string_view raises(const std::string& axis) {
  if (axis == "B") return "Build the engines with a larger --max-objects";
  if (axis == "M" || axis == "P" || axis == "R") return "Build the engines with a larger --max-prompt-frames";
  if (axis == "Q") return "Give fewer points for one object";
  if (axis == "T") return "Encode fewer descriptions at once";
  return "Use the sizes that the engines were built for";
}

struct Outside {
  const NamedTensor* tensor;
  std::string axis;
  std::int64_t size;
};

// The first size that a profile has no room for.
std::optional<Outside> outside(const GraphSpec& graph, const ModelSpec& spec, std::span<const NamedTensor> inputs,
                               const Profile& profile) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<std::string> axes = axes_of(graph.inputs[i]);
    for (std::size_t at = 0; at < axes.size(); ++at) {
      const std::int64_t size = inputs[i].tensor.shape()[at];
      if (static_size(spec, axes[at])) {
        continue;
      }
      const auto& [low, likely, high] = profile.sizes.at(axes[at]);
      if (size < low || size > high) {
        return Outside{&inputs[i], axes[at], size};
      }
    }
  }
  return std::nullopt;
}

// Elements of all inputs at their largest.
std::int64_t room(const Profile& profile) {
  std::int64_t total = 0;
  for (const auto& [input, shapes] : profile.shapes) {
    total += std::accumulate(shapes[2].begin(), shapes[2].end(), std::int64_t{1}, std::multiplies<>());
  }
  return total;
}

EngineSet engines_for(const std::filesystem::path& bundle, const Manifest& manifest, std::string_view flavor,
                      const std::string& version, const std::string& capability) {
  const std::vector<std::string> there = targets_for(bundle, flavor, version, capability);
  return load_engines(bundle, manifest, flavor, version, there.empty() ? default_target(flavor, capability) : there[0]);
}

}  // namespace

TensorRtEngines::TensorRtEngines(std::filesystem::path bundle, const Manifest& manifest, std::shared_ptr<Gpu> gpu,
                                 std::unique_ptr<InferLibrary> library, std::string_view flavor)
    : bundle_(std::move(bundle)),
      spec_(manifest.model),
      gpu_(std::move(gpu)),
      library_(std::move(library)),
      set_(engines_for(bundle_, manifest, flavor, library_->version(), gpu_->capability())) {}

TensorRtEngines::~TensorRtEngines() {
  try {
    gpu_->synchronize();
  } catch (const Error&) {  // lost: nothing runs any more
  }
  loaded_.clear();
  if (activations_ != nullptr) {
    gpu_->release(activations_);
  }
}

std::optional<std::int64_t> TensorRtEngines::max_objects(GraphRole role) const {
  const auto batched = [](const TensorSpec& tensor) { return std::ranges::count(axes_of(tensor), "B") != 0; };
  return std::ranges::any_of(graph_spec(role, target()).inputs, batched) ? std::optional(set_.limits.max_objects)
                                                                         : std::nullopt;
}

void TensorRtEngines::enqueue(GraphRole role, std::span<const NamedTensor> inputs,
                              std::span<const NamedTensor> outputs) {
  gpu_->activate();
  library_->said();  // what was logged before is no reason for what fails now
  const auto found = loaded_.find(role);
  Loaded& loaded = found == loaded_.end() ? load(role) : found->second;
  set_shapes(loaded, inputs, outputs);
  const std::string_view graph = name_of(role);
  for (const std::span<const NamedTensor> side : {inputs, outputs}) {
    for (const auto& [name, tensor] : side) {
      const std::string own(name);
      check(loaded.context->set_address(own, tensor.data()), {graph, " to take the address of ", own});
    }
  }
  check(loaded.context->enqueue(gpu_->stream()), {graph, " to run on ", gpu_->name()});
}

TensorRtEngines::Loaded& TensorRtEngines::load(GraphRole role) {
  const EngineEntry& entry = *set_.engine(role);
  const std::filesystem::path path = set_.folder / entry.file.path;
  std::vector<char> data(entry.file.bytes);
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(data.data(), static_cast<std::streamsize>(data.size()))) {
    throw BundleError(expected("a readable " + path.string(), "less than " + std::to_string(data.size()) + " bytes",
                               "Build again: " + command(entry, set_.target)));
  }
  const auto bytes = std::as_bytes(std::span(data));
  if (const std::optional<std::string> why = library_->refusal(bytes)) {
    throw BackendError(expected(
        "an engine in " + path.string() + " that runs on " + gpu_->name() + " (" + gpu_->capability() + ")",
        "one built for " + set_.target + ": " + *why, "Build for this GPU: " + command(entry, gpu_->capability())));
  }
  Loaded loaded{&entry, library_->deserialize(bytes), nullptr, 0, {}};
  if (!loaded.engine) {
    throw BackendError(
        expected(path.string() + " to load on " + gpu_->name(), library_->said(),
                 "If memory ran out, track fewer objects; else build again: " + command(entry, set_.target)));
  }
  check_tensors(*loaded.engine, entry);
  std::size_t need = 0;
  for (int profile = 0; profile < loaded.engine->profiles(); ++profile) {
    need = std::max(need, loaded.engine->activation_bytes(profile));
  }
  reserve(need);
  loaded.context = loaded.engine->context();
  check(loaded.context != nullptr, {"an execution context of ", name_of(role), " on ", gpu_->name()});
  if (activations_ != nullptr) {
    loaded.context->set_memory(activations_, activation_bytes_);
  }
  return loaded_.emplace(role, std::move(loaded)).first->second;
}

// Names, modes, types, sizes of inputs and profiles, before an address is given away; sizes of outputs follow in each
// run.
void TensorRtEngines::check_tensors(const InferEngine& engine, const EngineEntry& entry) const {
  std::map<std::string, std::string> have{{"profiles", std::to_string(engine.profiles())}};
  std::map<std::string, std::string> want{
      {"profiles", std::to_string(std::max<std::size_t>(1, entry.profiles.size()))}};
  for (const EngineTensor& tensor : engine.tensors()) {
    have[tensor.name] = (tensor.is_input ? "input " + text_of(tensor.shape) : "output") + " " + tensor.dtype +
                        (tensor.on_device ? "" : " on the host");
  }
  const GraphSpec& graph = graph_spec(entry.graph, target());
  for (const TensorSpec& tensor : graph.inputs) {
    Dims shape;
    for (const std::string& axis : axes_of(tensor)) {
      shape.push_back(static_size(spec_, axis).value_or(-1));
    }
    want[std::string(tensor.name)] = "input " + text_of(shape) + " " + std::string(tensor.dtype);
  }
  for (const TensorSpec& tensor : graph.outputs) {
    want[std::string(tensor.name)] = "output " + std::string(tensor.dtype);
  }
  const auto difference = [](const auto& of, const auto& from) {
    std::string text;
    for (const auto& [name, is] : of) {
      const auto other = from.find(name);
      if (other == from.end() || other->second != is) {
        text.append(text.empty() ? "" : ", ").append(name).append(": ").append(is);
      }
    }
    return text.empty() ? std::string("none of these") : text;
  };
  if (have != want) {
    throw BackendError(expected("an engine of " + std::string(name_of(entry.graph)) + " with " + difference(want, have),
                                difference(have, want), "Build again: " + command(entry, set_.target)));
  }
}

// Makes the shared block large enough: at once for all engines, as far as their records tell.
void TensorRtEngines::reserve(std::size_t bytes) {
  if (bytes <= activation_bytes_) {
    return;
  }
  for (const EngineEntry& entry : set_.engines) {
    bytes = std::max(bytes, entry.activation_bytes);
  }
  void* fresh = gpu_->allocate(bytes);
  for (auto& [role, loaded] : loaded_) {
    loaded.context->set_memory(fresh, bytes);
  }
  if (activations_ != nullptr) {
    gpu_->synchronize();  // runs that were enqueued still use it
    gpu_->release(activations_);
  }
  activations_ = fresh;
  activation_bytes_ = bytes;
}

// Profile and shapes, where they differ from those of the run before.
void TensorRtEngines::set_shapes(Loaded& loaded, std::span<const NamedTensor> inputs,
                                 std::span<const NamedTensor> outputs) {
  std::vector<Shape> shapes;
  for (const std::span<const NamedTensor> side : {inputs, outputs}) {
    std::ranges::transform(side, std::back_inserter(shapes), [](const NamedTensor& t) { return t.tensor.shape(); });
  }
  if (shapes == loaded.shapes) {
    return;
  }
  const std::string_view graph = name_of(loaded.entry->graph);
  InferContext& context = *loaded.context;
  const int profile = choose(*loaded.entry, inputs);
  loaded.shapes.clear();  // until all of this went well
  if (profile != loaded.profile) {
    check(context.set_profile(profile, gpu_->stream()), {graph, " to switch to profile ", std::to_string(profile)});
    loaded.profile = profile;
  }
  for (const auto& [name, tensor] : inputs) {
    check(context.set_shape(std::string(name), dims_of(tensor.shape())),
          {graph, " to take ", name, " ", tensor.shape().text()});
  }
  const std::optional<std::vector<std::string>> missing = context.infer_shapes();
  check(missing.has_value(), {graph, " to take shapes that fit each other"});
  check(missing->empty(), {graph, " to know the shapes of all inputs"});
  for (const auto& [name, tensor] : outputs) {
    if (const Dims made = context.shape(std::string(name)); made != dims_of(tensor.shape())) {
      const std::string what = "room for " + std::string(name) + " " + text_of(made) + " of " + std::string(graph);
      throw InternalError(expected(what, tensor.shape().text(), "Report this"));
    }
  }
  loaded.shapes = std::move(shapes);
}

// The smallest profile with room for the inputs.
int TensorRtEngines::choose(const EngineEntry& entry, std::span<const NamedTensor> inputs) const {
  if (entry.profiles.empty()) {
    return 0;
  }
  const GraphSpec& graph = graph_spec(entry.graph, target());
  std::vector<int> order(entry.profiles.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](int index) -> const Profile& { return entry.profiles[static_cast<std::size_t>(index)]; };
  std::ranges::stable_sort(order, {}, [&](int index) { return room(at(index)); });
  const auto fits = [&](int index) { return !outside(graph, spec_, inputs, at(index)); };
  if (const auto found = std::ranges::find_if(order, fits); found != order.end()) {
    return *found;
  }
  const Profile& largest = at(order.back());
  const Outside wrong = *outside(graph, spec_, inputs, largest);
  const auto& [low, likely, high] = largest.sizes.at(wrong.axis);
  const std::string what = std::string(wrong.tensor->name) + " of " + std::string(name_of(entry.graph)) + " with " +
                           wrong.axis + " from " + std::to_string(low) + " to " + std::to_string(high) +
                           ", which the engines in " + set_.folder.string() + " have room for";
  throw BackendError(expected(what, wrong.axis + " = " + std::to_string(wrong.size),
                              wrong.size > high ? raises(wrong.axis) : "Pad it to the smallest size"));
}

void TensorRtEngines::check(bool worked, std::initializer_list<std::string_view> what) {
  if (!worked) {
    std::string text;
    for (const std::string_view part : what) {
      text += part;
    }
    throw BackendError(expected(text.append(" with ").append(name()), library_->said(), kLost));
  }
}

std::string TensorRtEngines::command(const EngineEntry& entry, std::string_view target) const {
  return build_command(bundle_, set_.flavor, target, entry.precision, &set_.limits);
}

}  // namespace fastsam2::gpu
