// Engines replayed as CUDA graphs: what the CPU enqueued once is launched again in one call. Definition:
// runtime/gpu/graphs.py.
//
//   enqueue ─ seen rarely ─► engine ─► stream
//           ─ seen often ──► recorded once ─► recording ─► stream
//
// A recording holds the addresses it was made with. In steady state the pool hands out the same ones every few frames,
// so a few recordings per engine and shape serve all frames. A change of shapes, which may switch profiles, cannot be
// recorded: the engine has to have run with these shapes right before.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engines.hpp"
#include "gpu.hpp"

namespace fastsam2::gpu {

inline constexpr int kRecordAfter =
    8;  // runs with the same addresses: TensorRT-RTX may compile better kernels till then
inline constexpr std::size_t kMostRecordings = 64;  // those used least recently are forgotten first

// The engines of `inner`, replayed where their addresses come back. An engine that cannot be recorded runs as before;
// `refused` says why.
class GraphEngines final : public Engines {
 public:
  GraphEngines(std::unique_ptr<Engines> inner, std::shared_ptr<Gpu> gpu)
      : inner_(std::move(inner)), gpu_(std::move(gpu)) {}
  ~GraphEngines() override;

  [[nodiscard]] std::string_view name() const override { return inner_->name(); }
  [[nodiscard]] ExportTarget target() const override { return inner_->target(); }
  [[nodiscard]] std::optional<std::int64_t> max_objects(GraphRole role) const override {
    return inner_->max_objects(role);
  }
  [[nodiscard]] std::optional<std::int64_t> max_prompt_frames() const override { return inner_->max_prompt_frames(); }
  [[nodiscard]] bool has(GraphRole role) const override { return inner_->has(role); }
  void enqueue(GraphRole role, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) override;
  [[nodiscard]] std::size_t activation_bytes() const override { return inner_->activation_bytes(); }

  [[nodiscard]] std::int64_t recorded() const { return recorded_; }
  [[nodiscard]] std::int64_t launched() const { return launched_; }
  [[nodiscard]] const std::map<GraphRole, std::string>& refused() const { return refused_; }

 private:
  // The role, then address and sizes of every tensor.
  using Key = std::vector<std::int64_t>;
  // Values by key; the one used last comes first.
  template <typename Value>
  struct Recent {
    std::list<std::pair<Key, Value>> values;
    std::map<Key, typename std::list<std::pair<Key, Value>>::iterator> at;

    Value* find(const Key& key);
    Value& insert(const Key& key, Value value);
    void erase(const Key& key);
  };

  bool often(const Key& key);
  // A run of the engine itself.
  void run(GraphRole role, const std::vector<Shape>& shapes, std::span<const NamedTensor> inputs,
           std::span<const NamedTensor> outputs);
  Recording* record(GraphRole role, const Key& key, std::span<const NamedTensor> inputs,
                    std::span<const NamedTensor> outputs);
  void forget();

  std::unique_ptr<Engines> inner_;
  std::shared_ptr<Gpu> gpu_;
  Recent<int> seen_;
  Recent<std::unique_ptr<Recording>> recordings_;
  std::map<GraphRole, std::string> refused_;
  std::map<GraphRole, std::vector<Shape>> shapes_;  // that each engine is set to
  std::int64_t recorded_ = 0;
  std::int64_t launched_ = 0;
  std::size_t activations_ = 0;
};

}  // namespace fastsam2::gpu
