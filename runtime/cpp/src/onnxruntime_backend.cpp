#include "onnxruntime_backend.hpp"

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "fastsam2/host_device.hpp"

namespace fastsam2 {

namespace {

// Threads of a session go on spinning after a run: they would take the cores from the next graph's.
constexpr const char* kStopSpinning = "session.force_spinning_stop";

// What the library at hand offers. Throws BackendError if it is older than the header.
const OrtApi& ort() {
  static const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    const std::string what = "ONNX Runtime 1." + std::to_string(ORT_API_VERSION) + " or newer";
    throw BackendError(expected(what, OrtGetApiBase()->GetVersionString(), "Load the library this was compiled for"));
  }
  return *api;
}

// Owns something that ONNX Runtime made.
template <auto Release>
struct Released {
  template <typename T>
  void operator()(T* made) const {
    (ort().*Release)(made);
  }
};
using Environment = std::unique_ptr<OrtEnv, Released<&OrtApi::ReleaseEnv>>;
using SessionOptions = std::unique_ptr<OrtSessionOptions, Released<&OrtApi::ReleaseSessionOptions>>;
using Session = std::unique_ptr<OrtSession, Released<&OrtApi::ReleaseSession>>;
using MemoryInfo = std::unique_ptr<OrtMemoryInfo, Released<&OrtApi::ReleaseMemoryInfo>>;
using Value = std::unique_ptr<OrtValue, Released<&OrtApi::ReleaseValue>>;
using Status = std::unique_ptr<OrtStatus, Released<&OrtApi::ReleaseStatus>>;

void check(OrtStatus* answer, const std::string& what, std::string_view todo) {
  const Status failed(answer);
  if (failed != nullptr) {
    throw BackendError(expected(what, ort().GetErrorMessage(failed.get()), todo));
  }
}

// For calls that fail only where memory or the library itself does.
void check(OrtStatus* answer) {
  check(answer, "ONNX Runtime to take a setting", "Use the release of ONNX Runtime this was compiled for");
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) {
    return CPU_COUNT(&cores);
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ONNXTensorElementDataType element_type(DType type) {
  switch (type) {
    case DType::Float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::Int32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::UInt16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16;
    case DType::UInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DType::Bool:
      break;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
}

class OnnxRuntimeBackend final : public Backend {
 public:
  OnnxRuntimeBackend(std::filesystem::path folder, Manifest manifest, int threads)
      : folder_(std::move(folder)), manifest_(std::move(manifest)) {
    OrtEnv* environment = nullptr;
    check(ort().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "fastsam2", &environment));
    environment_.reset(environment);
    OrtSessionOptions* options = nullptr;
    check(ort().CreateSessionOptions(&options));
    options_.reset(options);
    check(ort().SetIntraOpNumThreads(options, threads));
    check(ort().SetInterOpNumThreads(options, 1));
    check(ort().SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR));
    check(ort().AddSessionConfigEntry(options, kStopSpinning, "1"));
    OrtMemoryInfo* host = nullptr;
    check(ort().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &host));
    host_memory_.reset(host);
  }

  [[nodiscard]] std::string_view name() const override { return name_of(BackendName::OnnxRuntime); }
  [[nodiscard]] ExportTarget target() const override { return ExportTarget::Onnxruntime; }
  [[nodiscard]] Device& device() override { return host_; }

  std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs) override {
    OrtSession* const graph = session(role);
    const auto wanted = graph_spec(role, target()).outputs;
    const std::vector<Shape> shapes = output_shapes(role, manifest_.model, inputs);
    std::vector<Tensor> outputs;  // every graph of this target answers float32
    outputs.reserve(shapes.size());
    for (const Shape& shape : shapes) {
      outputs.push_back(Tensor::empty(DType::Float32, shape));
    }
    // Names of the contract end with a zero: they are literals.
    std::vector<const char*> input_names;
    std::vector<const char*> output_names;
    std::vector<Value> values;
    for (const auto& [name, tensor] : inputs) {
      input_names.push_back(name.data());
      values.push_back(value_of(tensor));
    }
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      output_names.push_back(wanted[i].name.data());
      values.push_back(value_of(outputs[i]));
    }
    std::vector<OrtValue*> given;
    given.reserve(values.size());
    for (const Value& value : values) {
      given.push_back(value.get());
    }
    check(ort().Run(graph, nullptr, input_names.data(), given.data(), inputs.size(), output_names.data(),
                    output_names.size(), given.data() + inputs.size()),
          "graph " + std::string(name_of(role)) + " to run on " + std::string(name()),
          "If memory ran out, lower memory_budget_mb or the number of objects");
    return outputs;
  }

 private:
  OrtSession* session(GraphRole role) {
    const std::lock_guard lock(mutex_);
    Session& open = sessions_[role];
    if (open == nullptr) {
      const std::filesystem::path file = folder_ / manifest_.graph(role, target()).file.path;
      OrtSession* made = nullptr;
      check(ort().CreateSession(environment_.get(), file.c_str(), options_.get(), &made),
            file.filename().string() + " to load in ONNX Runtime " + OrtGetApiBase()->GetVersionString(),
            "Export the bundle again with this release");
      open.reset(made);
    }
    return open.get();
  }

  // A view of a tensor's own memory.
  Value value_of(const Tensor& tensor) {
    OrtValue* value = nullptr;
    check(ort().CreateTensorWithDataAsOrtValue(host_memory_.get(), tensor.data(), tensor.nbytes(),
                                               tensor.shape().begin(), tensor.shape().rank(),
                                               element_type(tensor.dtype()), &value));
    return Value(value);
  }

  std::filesystem::path folder_;
  Manifest manifest_;
  HostDevice host_;
  Environment environment_;  // outlives the sessions
  SessionOptions options_;
  MemoryInfo host_memory_;
  std::mutex mutex_;
  std::map<GraphRole, Session> sessions_;
};

}  // namespace

std::shared_ptr<Backend> open_onnxruntime(const std::filesystem::path& folder, const Manifest& manifest,
                                          const BackendOptions& options) {
  if (options.threads < 0) {
    throw BackendError(expected("threads >= 0", std::to_string(options.threads), "0 uses every core"));
  }
  manifest.check_tracked(ExportTarget::Onnxruntime);
  return std::make_shared<OnnxRuntimeBackend>(folder, manifest,
                                              options.threads == 0 ? usable_cores() : options.threads);
}

}  // namespace fastsam2
