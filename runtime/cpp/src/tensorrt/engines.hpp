// Executes the graphs of a bundle on device memory: the seam between the loop and TensorRT. Definition:
// runtime/gpu/engines.py.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "fastsam2/backend.hpp"

namespace fastsam2::gpu {

class Engines {
 public:
  Engines() = default;
  Engines(const Engines&) = delete;
  Engines& operator=(const Engines&) = delete;
  virtual ~Engines() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;
  // Which form of the graphs.
  [[nodiscard]] virtual ExportTarget target() const = 0;
  // Most objects in one run; none for any number, and for graphs without objects.
  [[nodiscard]] virtual std::optional<std::int64_t> max_objects(GraphRole role) const = 0;
  // Most prompt frames of one object that there is room for, besides its latest frames; none for any number.
  [[nodiscard]] virtual std::optional<std::int64_t> max_prompt_frames() const = 0;
  [[nodiscard]] virtual bool has(GraphRole role) const = 0;
  // Enqueues one run and returns; the first run of a graph loads it. Tensors are those of `graph_spec(role, target)` in
  // its order, with its types, on the device at multiples of 256 bytes; they stay until the stream has run
  // it. Throws BackendError if the graph does not load, has no room for these shapes, or cannot be enqueued.
  virtual void enqueue(GraphRole role, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) = 0;
  // Device memory held for activations so far.
  [[nodiscard]] virtual std::size_t activation_bytes() const = 0;
};

}  // namespace fastsam2::gpu
