// Compiled once for each flavor, against its own headers, with
//   FASTSAM2_NVINFER_OPEN      the function of nvinfer.hpp that it defines
//   FASTSAM2_NVINFER_LIBRARY   the library that it opens
//   FASTSAM2_NVINFER_NAMESPACE what stands for `nvinfer1`: the headers' inline functions differ from flavor to flavor,
//                              and a linker keeps one of two functions of the same name
#define nvinfer1 FASTSAM2_NVINFER_NAMESPACE
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "fastsam2/errors.hpp"
#include "nvinfer.hpp"

namespace fastsam2::gpu {

namespace {

// Keeps errors until they are asked for.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) {
      return;
    }
    try {
      const std::lock_guard lock(mutex_);
      said_ += (said_.empty() ? "" : "; ") + std::string(message);
    } catch (const std::bad_alloc&) {  // what failed says so itself
    }
  }

  std::string said() {
    const std::lock_guard lock(mutex_);
    return std::exchange(said_, {});
  }

 private:
  std::mutex mutex_;
  std::string said_;
};

// TensorRT keeps one logger for the process, with its address: it is never destroyed.
Log& logger() {
  static auto* log = new Log();
  return *log;
}

std::string dtype_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return "float32";
    case nvinfer1::DataType::kINT32:
      return "int32";
    case nvinfer1::DataType::kBOOL:
      return "bool";
    case nvinfer1::DataType::kUINT8:
      return "uint8";
    case nvinfer1::DataType::kHALF:
      return "float16";
    default:
      return "type " + std::to_string(static_cast<int>(type));
  }
}

Dims dims_of(const nvinfer1::Dims& dims) {
  return {dims.d, dims.d + std::max(0, dims.nbDims)};
}

class Context final : public InferContext {
 public:
  Context(std::shared_ptr<nvinfer1::ICudaEngine> engine, std::unique_ptr<nvinfer1::IExecutionContext> context)
      : engine_(std::move(engine)), context_(std::move(context)) {}

  void set_memory(void* memory, std::size_t bytes) override {
    context_->setDeviceMemoryV2(memory, static_cast<std::int64_t>(bytes));
  }
  bool set_profile(int index, void* stream) override {
    return context_->setOptimizationProfileAsync(index, static_cast<cudaStream_t>(stream));
  }
  bool set_shape(const std::string& input, const Dims& shape) override {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::ranges::copy(shape, dims.d);
    return context_->setInputShape(input.c_str(), dims);
  }
  std::optional<std::vector<std::string>> infer_shapes() override {
    std::vector<const char*> names(static_cast<std::size_t>(engine_->getNbIOTensors()));
    const std::int32_t missing = context_->inferShapes(static_cast<std::int32_t>(names.size()), names.data());
    if (missing < 0) {
      return std::nullopt;
    }
    return std::vector<std::string>(names.begin(), names.begin() + missing);
  }
  [[nodiscard]] Dims shape(const std::string& tensor) const override {
    return dims_of(context_->getTensorShape(tensor.c_str()));
  }
  bool set_address(const std::string& tensor, void* address) override {
    return context_->setTensorAddress(tensor.c_str(), address);
  }
  bool enqueue(void* stream) override { return context_->enqueueV3(static_cast<cudaStream_t>(stream)); }

 private:
  std::shared_ptr<nvinfer1::ICudaEngine> engine_;  // is destroyed after the context
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class Engine final : public InferEngine {
 public:
  explicit Engine(std::shared_ptr<nvinfer1::ICudaEngine> engine) : engine_(std::move(engine)) {}

  [[nodiscard]] std::vector<EngineTensor> tensors() const override {
    std::vector<EngineTensor> all;
    for (std::int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
      const char* name = engine_->getIOTensorName(index);
      all.push_back({name, engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT,
                     dtype_of(engine_->getTensorDataType(name)), dims_of(engine_->getTensorShape(name)),
                     engine_->getTensorLocation(name) == nvinfer1::TensorLocation::kDEVICE});
    }
    return all;
  }
  [[nodiscard]] int profiles() const override { return engine_->getNbOptimizationProfiles(); }
  [[nodiscard]] std::size_t activation_bytes(int profile) const override {
    return static_cast<std::size_t>(std::max<std::int64_t>(0, engine_->getDeviceMemorySizeForProfileV2(profile)));
  }
  std::unique_ptr<InferContext> context() override {
    std::unique_ptr<nvinfer1::IExecutionContext> made(
        engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    return made ? std::make_unique<Context>(engine_, std::move(made)) : nullptr;
  }

 private:
  std::shared_ptr<nvinfer1::ICudaEngine> engine_;
};

class Library final : public InferLibrary {
 public:
  Library() : library_(dlopen(FASTSAM2_NVINFER_LIBRARY, RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) {
      throw BackendError(expected(FASTSAM2_NVINFER_LIBRARY " on this machine", dlerror(),
                                  "Install it, and name its folder in LD_LIBRARY_PATH if the loader does not find it"));
    }
    version_ = number("getInferLibMajorVersion") + "." + number("getInferLibMinorVersion") + "." +
               number("getInferLibPatchVersion") + "." + number("getInferLibBuildVersion");
    // Virtual tables keep their order within a major version; another one may refuse, or not notice.
    if (number("getInferLibMajorVersion") == std::to_string(NV_TENSORRT_MAJOR)) {
      using Create = void* (*)(void*, std::int32_t) noexcept;
      runtime_.reset(static_cast<nvinfer1::IRuntime*>(symbol<Create>("createInferRuntime_INTERNAL")(
          static_cast<nvinfer1::ILogger*>(&logger()), NV_TENSORRT_VERSION)));
    }
    if (!runtime_) {
      const std::string headers = std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR);
      const std::string said = logger().said();
      throw BackendError(expected("a library of version " + headers + ", which this program was compiled for",
                                  FASTSAM2_NVINFER_LIBRARY " " + version_ + (said.empty() ? "" : ": " + said),
                                  "Install that version, or build fastsam2 with the headers of this one"));
    }
  }

  // The library stays open: it may have threads, and other parts of the program may use it.
  ~Library() override = default;

  [[nodiscard]] std::string version() const override { return version_; }

  std::optional<std::string> refusal([[maybe_unused]] std::span<const std::byte> engine) override {
#ifdef TRT_MAJOR_RTX
    std::uint64_t diagnostics = 0;
    const auto validity =
        runtime_->getEngineValidity(engine.data(), static_cast<std::int64_t>(engine.size()), &diagnostics);
    if (validity == nvinfer1::EngineValidity::kINVALID) {
      return "diagnostics " + std::to_string(diagnostics) + " of getEngineValidity; " + logger().said();
    }
#endif
    return std::nullopt;
  }

  std::unique_ptr<InferEngine> deserialize(std::span<const std::byte> engine) override {
    std::shared_ptr<nvinfer1::ICudaEngine> made(runtime_->deserializeCudaEngine(engine.data(), engine.size()));
    return made ? std::make_unique<Engine>(std::move(made)) : nullptr;
  }

  std::string said() override {
    return logger().said();
  }

 private:
  template <typename Function>
  Function symbol(const char* name) const {
    void* found = dlsym(library_, name);
    if (found == nullptr) {
      throw BackendError(expected(std::string(name) + " in " FASTSAM2_NVINFER_LIBRARY, "none",
                                  "Install a release of this library that fastsam2 was built for"));
    }
    return reinterpret_cast<Function>(found);
  }
  [[nodiscard]] std::string number(const char* name) const {
    using Number = std::int32_t (*)() noexcept;
    return std::to_string(symbol<Number>(name)());
  }

  void* library_;
  std::string version_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace

std::unique_ptr<InferLibrary> FASTSAM2_NVINFER_OPEN() {
  return std::make_unique<Library>();
}

}  // namespace fastsam2::gpu
