// The seam between the core and whatever executes graphs and holds arrays. No type of TensorRT, CUDA or ONNX Runtime
// passes it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "fastsam2/config.hpp"
#include "fastsam2/image.hpp"
#include "fastsam2/tensor.hpp"

namespace fastsam2 {

struct NamedTensor {
  std::string_view name;  // of the contract
  Tensor tensor;
};

// What a step reads of one object.
struct Reading {
  struct Frame {
    Tensor rows;      // uint16 [K, D], bfloat16 bits
    Tensor position;  // int32 [K]
    std::int32_t age;
  };
  struct Pointer {
    Tensor pointer;  // float32 [C]
    float offset;
  };
  std::vector<Frame> frames;
  std::vector<Pointer> pointers;
};

// Assembles what steps read; may keep buffers.
class MemoryReader {
 public:
  MemoryReader() = default;
  MemoryReader(const MemoryReader&) = delete;
  MemoryReader& operator=(const MemoryReader&) = delete;
  virtual ~MemoryReader() = default;

  // B readings with equal counts -> inputs memory, position, age, pointers, pointer_offset of memory_attention, valid
  // until the next call.
  virtual std::vector<NamedTensor> read(std::span<const Reading> readings) = 0;
};

// Rows that a compaction left.
struct Kept {
  Tensor rows;      // uint16 [K, D]
  Tensor position;  // int32 [K], ascending
};

// Array operations in the memory that graphs read and write; HostDevice defines what each of them gives.
// Nothing but `fetch` waits for the device; failures of it may surface there.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  // Most objects that one run of a graph takes; none for any number.
  virtual std::optional<std::int64_t> max_objects(GraphRole role) = 0;
  // Most prompt frames of one object that graphs have room for, besides its latest frames; none for any number.
  virtual std::optional<std::int64_t> max_prompt_frames() = 0;
  // A host tensor on the device; the same one where that is the host.
  virtual Tensor put(const Tensor& host) = 0;
  // Host tensors; an empty tensor stays empty. Waits once for all.
  virtual std::vector<Tensor> fetch(std::span<const Tensor> tensors) = 0;
  virtual Tensor full(Shape shape, double value, DType type) = 0;
  virtual Tensor arange(std::int32_t start, std::int32_t stop) = 0;
  // A copy that does not keep a larger array alive.
  virtual Tensor copy(const Tensor& tensor) = 0;
  // Tensors of one shape along a new first axis.
  virtual Tensor stack(std::span<const Tensor> tensors) = 0;
  // Tensors along their first axis; a single one as it is.
  virtual Tensor concatenate(std::span<const Tensor> tensors) = 0;
  // float32 values, bounded to [-limit, limit].
  virtual Tensor clamp(const Tensor& tensor, float limit) = 0;
  // float32 -> uint16 bits, rounded to nearest, ties to even.
  virtual Tensor to_bfloat16(const Tensor& rows) = 0;
  // uint16 [N, D] and scores float32 [N]: the rows with the largest scores, in their order; of equal scores the first.
  virtual Kept top_k_gather(const Tensor& rows, const Tensor& scores, std::int64_t keep) = 0;
  // Means of 2x2 cells: uint16 [N, D] -> uint16 [N/4, D].
  virtual Tensor pool_2x2(const Tensor& rows, std::int64_t grid) = 0;
  virtual std::unique_ptr<MemoryReader> memory_reader(const ModelSpec& spec) = 0;
  // A frame -> uint8 [1, 3, S, S], red first.
  virtual Tensor pixels(const ImageView& frame, std::int64_t size) = 0;
  // float32 [B, L, L] -> bool [B, H, W].
  virtual Tensor masks(const Tensor& logits, std::int64_t height, std::int64_t width) = 0;
  // float32 [L, L] -> float32 [N], worth of rows by the mask.
  virtual Tensor mask_scores(const Tensor& logits, std::int64_t grid) = 0;
  // float32 [B, L, L] -> float32 [B, N].
  virtual Tensor uncertainty(const Tensor& logits, std::int64_t grid) = 0;
};

// Executes the graphs of one bundle. Calls come from one thread at a time for each tracker.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual ExportTarget target() const = 0;
  // Where its tensors lie.
  [[nodiscard]] virtual Device& device() = 0;
  // Runs one graph once.
  //   inputs: every input of the contract by name, on the device or on the host.
  //   Returns the outputs on the device, in the order of the contract; nothing else keeps or changes them afterwards.
  // Throws BackendError if the graph cannot be executed here.
  virtual std::vector<Tensor> run(GraphRole role, std::span<const NamedTensor> inputs) = 0;
};

// Checks what a backend answered against the contract. Throws BackendError.
void check_outputs(GraphRole role, const ModelSpec& spec, std::span<const NamedTensor> inputs,
                   std::span<const Tensor> outputs);
// Shapes of a graph's outputs for these inputs, in the order of the contract. Throws InternalError if inputs contradict
// it.
std::vector<Shape> output_shapes(GraphRole role, const ModelSpec& spec, std::span<const NamedTensor> inputs);

}  // namespace fastsam2
