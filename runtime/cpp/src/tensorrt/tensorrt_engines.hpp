// Engines of TensorRT and TensorRT-RTX on the stream of the loop. Definition: runtime/gpu/tensorrt.py.
//
// Engines run one after the other on one stream, so they share one block of activation memory.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <map>

#include "engines.hpp"
#include "gpu.hpp"
#include "infer.hpp"
#include "records.hpp"

namespace fastsam2::gpu {

class TensorRtEngines final : public Engines {
 public:
  // Throws BundleError if the bundle has no engines for this GPU, or they are damaged or out of date; says how to build
  // them.
  TensorRtEngines(std::filesystem::path bundle, const Manifest& manifest, std::shared_ptr<Gpu> gpu,
                  std::unique_ptr<InferLibrary> library, std::string_view flavor);
  ~TensorRtEngines() override;

  [[nodiscard]] std::string_view name() const override { return set_.flavor; }
  [[nodiscard]] ExportTarget target() const override { return ExportTarget::Tensorrt; }
  [[nodiscard]] std::optional<std::int64_t> max_objects(GraphRole role) const override;
  [[nodiscard]] std::optional<std::int64_t> max_prompt_frames() const override { return set_.limits.max_prompt_frames; }
  [[nodiscard]] bool has(GraphRole role) const override { return set_.engine(role) != nullptr; }
  void enqueue(GraphRole role, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) override;
  [[nodiscard]] std::size_t activation_bytes() const override { return activation_bytes_; }

 private:
  struct Loaded {
    const EngineEntry* entry;
    std::unique_ptr<InferEngine> engine;
    std::unique_ptr<InferContext> context;
    int profile = 0;
    std::vector<Shape> shapes;  // of the last run
  };

  Loaded& load(GraphRole role);
  void check_tensors(const InferEngine& engine, const EngineEntry& entry) const;
  void reserve(std::size_t bytes);
  void set_shapes(Loaded& loaded, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs);
  [[nodiscard]] int choose(const EngineEntry& entry, std::span<const NamedTensor> inputs) const;
  void check(bool worked, std::initializer_list<std::string_view> what);
  [[nodiscard]] std::string command(const EngineEntry& entry, std::string_view target) const;

  std::filesystem::path bundle_;
  ModelSpec spec_;
  std::shared_ptr<Gpu> gpu_;
  std::unique_ptr<InferLibrary> library_;
  EngineSet set_;
  std::map<GraphRole, Loaded> loaded_;
  void* activations_ = nullptr;
  std::size_t activation_bytes_ = 0;
};

}  // namespace fastsam2::gpu
