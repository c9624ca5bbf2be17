// A GPU whose memory is this machine's: what is enqueued waits until `synchronize`, and every call is on record.
//
// Kernels run in the emulation of tests/kernel_host, graphs in a function on host addresses. That things happen late is
// the point: staging that is used again too early, or a result that is read before the wait, gives other numbers.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engines.hpp"
#include "fastsam2/errors.hpp"
#include "gpu.hpp"

namespace fastsam2::testing {

class FakeGpu final : public gpu::Gpu {
 public:
  using Work = std::function<void()>;

  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] const std::string& capability() const override { return capability_; }
  [[nodiscard]] void* stream() const override { return const_cast<FakeGpu*>(this); }
  void activate() override {}
  void* allocate(std::size_t bytes) override;
  void release(void* memory) noexcept override;
  void* pinned(std::size_t bytes) override;
  void release_pinned(void* memory) noexcept override;
  void upload(void* target, const void* source, std::size_t bytes) override;
  void download(void* target, const void* source, std::size_t bytes) override;
  void copy(void* target, const void* source, std::size_t bytes) override;
  void launch(gpu::Kernel kernel, const gpu::Grid& grid, const void* args, std::size_t bytes) override;
  void top_k_gather(const fastsam2_top_k_gather_args& args) override;
  void synchronize() override;
  void begin_recording() override;
  std::unique_ptr<gpu::Recording> end_recording() override;

  // Engines enqueue with it.
  void enqueue(const std::string& name, Work work);
  [[nodiscard]] std::int64_t count(const std::string& name) const;

  std::vector<std::string> calls;  // a test may clear it
  std::size_t limit = std::size_t{1} << 32;
  std::string fails;         // what the next `synchronize` says, as a lost context does from then on
  std::string not_recorded;  // what the end of a recording says
  std::map<void*, std::size_t> held;
  std::map<void*, std::size_t> held_pinned;

 private:
  std::string name_ = "FAKE GPU";
  std::string capability_ = "9.0";
  std::vector<Work> queue_;
  std::shared_ptr<std::vector<Work>> recording_;
};

// Graphs that a function runs when the stream comes to it.
class LateEngines final : public gpu::Engines {
 public:
  // The graph's tensors without what keeps their memory.
  using Run = std::function<void(GraphRole, std::span<const NamedTensor>, std::span<const NamedTensor>)>;
  LateEngines(std::shared_ptr<FakeGpu> gpu, ExportTarget target, std::optional<std::int64_t> most, Run run)
      : gpu_(std::move(gpu)), target_(target), most_(most), run_(std::move(run)) {}

  [[nodiscard]] std::string_view name() const override { return "late"; }
  [[nodiscard]] ExportTarget target() const override { return target_; }
  [[nodiscard]] std::optional<std::int64_t> max_objects(GraphRole) const override { return most_; }
  [[nodiscard]] std::optional<std::int64_t> max_prompt_frames() const override { return prompt_frames; }
  [[nodiscard]] bool has(GraphRole role) const override { return role != lacks; }
  void enqueue(GraphRole role, std::span<const NamedTensor> inputs, std::span<const NamedTensor> outputs) override;
  [[nodiscard]] std::size_t activation_bytes() const override { return activations; }

  std::optional<GraphRole> lacks;
  std::optional<std::int64_t> prompt_frames;
  std::size_t activations = 0;
  std::string refuses;  // what a run in a recording says

 private:
  std::shared_ptr<FakeGpu> gpu_;
  ExportTarget target_;
  std::optional<std::int64_t> most_;
  Run run_;
};

}  // namespace fastsam2::testing
