// What engines need of TensorRT, without its types, so that tests put another library in its place and both flavors fit
// into one program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace fastsam2::gpu {

using Dims = std::vector<std::int64_t>;

struct EngineTensor {
  std::string name;
  bool is_input;
  std::string dtype;  // numpy's name of it; TensorRT's where numpy has none
  Dims shape;         // -1 where it is dynamic
  bool on_device;
};

// One execution context. What fails says so in the library's log.
class InferContext {
 public:
  InferContext() = default;
  InferContext(const InferContext&) = delete;
  InferContext& operator=(const InferContext&) = delete;
  virtual ~InferContext() = default;

  virtual void set_memory(void* memory, std::size_t bytes) = 0;  // for activations, shared with other contexts
  virtual bool set_profile(int index, void* stream) = 0;
  virtual bool set_shape(const std::string& input, const Dims& shape) = 0;
  // Inputs whose shapes or values are missing; none if shapes contradict each other.
  virtual std::optional<std::vector<std::string>> infer_shapes() = 0;
  [[nodiscard]] virtual Dims shape(const std::string& tensor) const = 0;
  // A multiple of 256.
  virtual bool set_address(const std::string& tensor, void* address) = 0;
  virtual bool enqueue(void* stream) = 0;
};

class InferEngine {
 public:
  InferEngine() = default;
  InferEngine(const InferEngine&) = delete;
  InferEngine& operator=(const InferEngine&) = delete;
  virtual ~InferEngine() = default;

  [[nodiscard]] virtual std::vector<EngineTensor> tensors() const = 0;
  [[nodiscard]] virtual int profiles() const = 0;
  [[nodiscard]] virtual std::size_t activation_bytes(int profile) const = 0;
  // A context whose activation memory comes from outside, with profile 0; keeps the engine. Null if it fails.
  virtual std::unique_ptr<InferContext> context() = 0;
};

// One flavor of TensorRT; lives as long as its engines.
class InferLibrary {
 public:
  InferLibrary() = default;
  InferLibrary(const InferLibrary&) = delete;
  InferLibrary& operator=(const InferLibrary&) = delete;
  virtual ~InferLibrary() = default;

  [[nodiscard]] virtual std::string version() const = 0;  // its four numbers
  // Why the library says that it cannot run these engines on this GPU; none where it does not say so.
  virtual std::optional<std::string> refusal(std::span<const std::byte> engine) = 0;
  // Null if it fails.
  virtual std::unique_ptr<InferEngine> deserialize(std::span<const std::byte> engine) = 0;
  // Errors logged since the last question.
  virtual std::string said() = 0;
};

}  // namespace fastsam2::gpu
