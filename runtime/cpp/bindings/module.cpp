// The C++ tracker over backends written in Python: how tests compare it with the Python tracker, graph for graph.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "fastsam2/bundle.hpp"
#include "fastsam2/host_device.hpp"
#include "fastsam2/tracker.hpp"
#include "guard.hpp"
#include "policies.hpp"
#include "postprocess.hpp"
#include "preprocess.hpp"
#include "rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastsam2 {

namespace {

using HostArray = nb::ndarray<nb::numpy, nb::c_contig, nb::device::cpu>;
using Frame = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const bool, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

nb::dlpack::dtype dlpack_of(DType type) {
  switch (type) {
    case DType::Float32:
      return nb::dtype<float>();
    case DType::Int32:
      return nb::dtype<std::int32_t>();
    case DType::UInt16:
      return nb::dtype<std::uint16_t>();
    case DType::UInt8:
      return nb::dtype<std::uint8_t>();
    case DType::Bool:
      break;
  }
  return nb::dtype<bool>();
}

// A numpy array over the memory of a tensor, which it keeps alive.
nb::object to_numpy(const Tensor& tensor) {
  if (!tensor) {
    return nb::none();
  }
  std::vector<std::size_t> sizes(tensor.shape().begin(), tensor.shape().end());
  nb::capsule owner(new Tensor(tensor), [](void* held) noexcept { delete static_cast<Tensor*>(held); });
  HostArray array(tensor.data(), sizes.size(), sizes.data(), owner, nullptr, dlpack_of(tensor.dtype()));
  return array.cast();
}

// A tensor over the memory of a numpy array, which it keeps alive.
Tensor from_numpy(nb::handle object) {
  auto array = nb::cast<HostArray>(object);
  const DType types[] = {DType::Float32, DType::Int32, DType::UInt16, DType::UInt8, DType::Bool};
  const auto* type = std::ranges::find(types, array.dtype(), dlpack_of);
  if (type == std::end(types)) {
    throw BackendError(expected("an array of float32, int32, uint16, uint8 or bool", "another type", "Convert it"));
  }
  std::vector<std::int64_t> sizes;
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
    sizes.push_back(static_cast<std::int64_t>(array.shape(axis)));
  }
  void* data = array.data();
  std::shared_ptr<void> owner(new HostArray(std::move(array)), [](void* held) {
    const nb::gil_scoped_acquire gil;
    delete static_cast<HostArray*>(held);
  });
  return {*type, Shape(std::span<const std::int64_t>(sizes)), std::move(owner), data};
}

// An object with `run(role: str, inputs: dict[str, array]) -> dict[str, array]`.
class PythonBackend final : public Backend {
 public:
  explicit PythonBackend(nb::callable run) : run_(std::move(run)) {}

  [[nodiscard]] std::string_view name() const override { return "python"; }
  [[nodiscard]] ExportTarget target() const override { return ExportTarget::Onnxruntime; }
  [[nodiscard]] Device& device() override { return host_; }

  std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs) override {
    nb::dict given;
    for (const auto& [name, tensor] : inputs) {
      given[nb::str(name.data(), name.size())] = to_numpy(tensor);
    }
    const std::string_view role_name = name_of(role);
    const nb::dict answered = nb::cast<nb::dict>(run_(nb::str(role_name.data(), role_name.size()), given));
    std::vector<Tensor> outputs;
    for (const TensorSpec& output : graph_spec(role, target()).outputs) {
      outputs.push_back(from_numpy(answered[nb::str(output.name.data(), output.name.size())]));
    }
    return outputs;
  }

 private:
  nb::callable run_;
  HostDevice host_;
};

template <typename Choice, std::size_t N>
Choice parsed(const std::string& text, const std::array<std::string_view, N>& names) {
  const auto found = std::ranges::find(names, text);
  if (found == names.end()) {
    throw PromptError(expected("a known name", text, "See fastsam2/enums.py"));
  }
  return static_cast<Choice>(found - names.begin());
}

Prune make_prune(const std::string& policy, std::optional<double> keep, std::optional<std::int64_t> tokens,
                 const std::vector<std::string>& protect, std::int64_t seed, std::vector<double> buckets, bool guard) {
  Prune prune;
  prune.policy = parsed<PrunePolicy>(policy, kPrunePolicyNames);
  prune.keep = keep;
  prune.tokens = tokens;
  prune.protect.clear();
  for (const std::string& frames : protect) {
    prune.protect.push_back(parsed<Protect>(frames, kProtectNames));
  }
  prune.seed = seed;
  prune.buckets = std::move(buckets);
  prune.guard = guard;
  return prune;
}

ImageView view_of(const Frame& frame) {
  return {frame.data(), static_cast<std::int64_t>(frame.shape(0)), static_cast<std::int64_t>(frame.shape(1)),
          static_cast<std::ptrdiff_t>(frame.shape(1) * frame.shape(2))};
}

MaskView view_of(const Mask& mask) {
  return {reinterpret_cast<const std::uint8_t*>(mask.data()), static_cast<std::int64_t>(mask.shape(0)),
          static_cast<std::int64_t>(mask.shape(1)), static_cast<std::ptrdiff_t>(mask.shape(1))};
}

// A prompt and what it looks at.
struct GivenPrompt {
  std::optional<std::array<float, 4>> box;
  std::vector<std::array<float, 2>> points;
  std::optional<std::vector<std::int32_t>> labels;
  std::optional<Mask> mask;

  [[nodiscard]] Prompt prompt() const {
    Prompt prompt{box, points, std::nullopt, std::nullopt};
    if (labels) {
      prompt.labels = *labels;
    }
    if (mask) {
      prompt.mask = view_of(*mask);
    }
    return prompt;
  }
};

nb::object report(const std::optional<TokenReport>& tokens) {
  if (!tokens) {
    return nb::none();
  }
  nb::list alarms;
  for (const std::optional<Alarm>& alarm : tokens->alarms) {
    alarms.append(alarm ? nb::object(nb::str(name_of(*alarm).data())) : nb::object(nb::none()));
  }
  nb::dict out;
  out["frame"] = tokens->frame;
  out["ids"] = tokens->ids;
  out["keep"] = tokens->keep;
  out["alarms"] = alarms;
  out["scores"] = to_numpy(tokens->scores);
  out["uncertainty"] = to_numpy(tokens->uncertainty);
  out["relevance"] = to_numpy(tokens->relevance);
  out["context"] = to_numpy(tokens->context);
  return out;
}

nb::dict to_dict(const Result& result) {
  nb::dict out;
  out["frame"] = result.frame;
  out["ids"] = result.ids;
  out["masks"] = to_numpy(result.masks);
  out["scores"] = to_numpy(result.scores);
  out["ious"] = to_numpy(result.ious);
  out["low_res_logits"] = to_numpy(result.low_res_logits);
  out["rows_held"] = result.rows_held;
  out["bytes_held"] = result.bytes_held;
  out["tokens"] = report(result.tokens);
  return out;
}

std::span<const float> text_of(const std::optional<std::vector<float>>& text) {
  return text ? std::span<const float>(*text) : std::span<const float>();
}

// Operations of the host by themselves, for tests that compare them with Python's.
void bind_operations(nb::module_& m) {
  m.def("pixels", [](const Frame& frame, std::int64_t size) {
    view_of(frame).check();
    return to_numpy(HostDevice().pixels(view_of(frame), size));
  });
  m.def("mask_to_input", [](const Mask& mask, std::int64_t size) {
    const Tensor out = Tensor::empty(DType::Float32, {size, size});
    mask_to_input(view_of(mask), size, out.fill<float>());
    return to_numpy(out);
  });
  m.def("masks", [](nb::handle logits, std::int64_t height, std::int64_t width) {
    return to_numpy(HostDevice().masks(from_numpy(logits), height, width));
  });
  m.def("fill_holes", [](nb::handle logits, std::int64_t area) {
    const Tensor out = HostDevice().copy(from_numpy(logits));
    fill_holes(out.fill<float>(), out.size(), area);
    return to_numpy(out);
  });
  m.def("to_bfloat16", [](nb::handle rows) { return to_numpy(HostDevice().to_bfloat16(from_numpy(rows))); });
  m.def("pool_2x2",
        [](nb::handle rows, std::int64_t grid) { return to_numpy(HostDevice().pool_2x2(from_numpy(rows), grid)); });
  m.def("top_k_gather", [](nb::handle rows, nb::handle scores, std::int64_t keep) {
    const Kept kept = HostDevice().top_k_gather(from_numpy(rows), from_numpy(scores), keep);
    return nb::make_tuple(to_numpy(kept.rows), to_numpy(kept.position));
  });
  m.def("uniform_scores", &uniform_scores);
  m.def("random_scores", &random_scores);
  m.def("mask_scores", [](nb::handle logits, std::int64_t grid) {
    return to_numpy(HostDevice().mask_scores(from_numpy(logits), grid));
  });
  m.def("uncertainty", [](nb::handle logits, std::int64_t grid) {
    return to_numpy(HostDevice().uncertainty(from_numpy(logits), grid));
  });
  m.def("guard", [](const std::vector<std::map<std::int64_t, std::array<double, 4>>>& frames, std::int64_t levels) {
    GuardState state;
    nb::list out;
    for (const auto& frame : frames) {
      std::map<std::int64_t, Observation> observed;
      for (const auto& [id, seen] : frame) {
        observed.emplace(id, Observation{seen[0], seen[1], seen[2], seen[3] != 0});
      }
      const GuardAnswer answer = judge(state, observed, levels);
      state = answer.state;
      nb::dict alarms;
      for (const auto& [id, alarm] : answer.alarms) {
        alarms[nb::int_(id)] = nb::str(name_of(alarm).data());
      }
      out.append(nb::make_tuple(state.level, alarms));
    }
    return out;
  });
  m.def("budgets", [](const Prune& prune, std::int64_t tokens) {
    prune.check();
    return prune.budgets(tokens);
  });
  m.def(
      "read_manifest", [](const std::string& folder, bool verify) { return read_manifest(folder, verify).model.name; },
      "folder"_a, "verify"_a = true);
}

}  // namespace

NB_MODULE(fastsam2_core, m) {
  nb::set_leak_warnings(true);
  // Families of fastsam2.errors, so that callers catch what they catch from the Python tracker.
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    const nb::object errors = nb::module_::import_("fastsam2.errors");
    const auto raise = [&](const char* family, const std::exception& error) {
      PyErr_SetString(errors.attr(family).ptr(), error.what());
    };
    try {
      std::rethrow_exception(thrown);
    } catch (const BundleError& error) {
      raise("BundleError", error);
    } catch (const BackendError& error) {
      raise("BackendError", error);
    } catch (const PromptError& error) {
      raise("PromptError", error);
    } catch (const InternalError& error) {
      raise("InternalError", error);
    }
  });

  nb::class_<Prune>(m, "Prune")
      .def(
          "__init__",
          [](Prune* self, const std::string& policy, std::optional<double> keep, std::optional<std::int64_t> tokens,
             const std::vector<std::string>& protect, std::int64_t seed, std::vector<double> buckets, bool guard) {
            new (self) Prune(make_prune(policy, keep, tokens, protect, seed, std::move(buckets), guard));
          },
          "policy"_a, "keep"_a.none(), "tokens"_a.none(), "protect"_a, "seed"_a, "buckets"_a, "guard"_a);

  nb::class_<GivenPrompt>(m, "Prompt")
      .def(
          "__init__",
          [](GivenPrompt* self, std::optional<std::array<float, 4>> box, std::vector<std::array<float, 2>> points,
             std::optional<std::vector<std::int32_t>> labels, std::optional<Mask> mask) {
            new (self) GivenPrompt{box, std::move(points), std::move(labels), std::move(mask)};
          },
          nb::kw_only(), "box"_a = nb::none(), "points"_a = nb::list(), "labels"_a = nb::none(), "mask"_a = nb::none());

  nb::class_<Tracker>(m, "Tracker")
      .def(
          "__init__",
          [](Tracker* self, nb::callable run, const std::string& bundle, const Prune& prune,
             bool corrections_as_prompts, std::int64_t max_prompt_frames, std::int64_t fill_hole_area,
             std::int64_t memory_budget_mb) {
            const ModelSpec spec = read_manifest(bundle, false).model;
            new (self) Tracker(std::make_shared<PythonBackend>(std::move(run)), spec,
                               {prune, corrections_as_prompts, max_prompt_frames, fill_hole_area, memory_budget_mb});
          },
          "run"_a, "bundle"_a, "prune"_a, nb::kw_only(), "corrections_as_prompts"_a = false, "max_prompt_frames"_a = 4,
          "fill_hole_area"_a = 0, "memory_budget_mb"_a = 4096)
      .def("step", [](Tracker& self, const Frame& frame) { return to_dict(self.step(view_of(frame))); })
      .def(
          "add",
          [](Tracker& self, std::int64_t id, const GivenPrompt& prompt, const std::optional<std::vector<float>>& text) {
            return to_dict(self.add(id, prompt.prompt(), text_of(text)));
          },
          "id"_a, "prompt"_a, "text"_a = nb::none())
      .def(
          "correct",
          [](Tracker& self, std::int64_t id, const GivenPrompt& prompt, bool append) {
            return to_dict(self.correct(id, prompt.prompt(), append));
          },
          "id"_a, "prompt"_a, "append"_a = false)
      .def(
          "describe",
          [](Tracker& self, std::int64_t id, const std::optional<std::vector<float>>& text) {
            self.describe(id, text_of(text));
          },
          "id"_a, "text"_a.none())
      .def("remove", &Tracker::remove)
      .def("reset", &Tracker::reset)
      .def_prop_ro("ids", &Tracker::ids)
      .def_prop_ro("frame", &Tracker::frame);

  bind_operations(m);
}

}  // namespace fastsam2
