// The C++ tracker on a GPU that is this machine gives what it gives in host memory, allocates nothing in the steady
// state and waits once a frame.
#include "fastsam2/tracker.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "../unit/fake_backend.hpp"
#include "fake_gpu.hpp"
#include "gpu_backend.hpp"
#include "graphs.hpp"

namespace fastsam2::testing {
namespace {

// A backend on a fake GPU, whose graphs are those of FakeBackend.
struct OnGpu {
  std::shared_ptr<FakeGpu> gpu = std::make_shared<FakeGpu>();
  FakeBackend graphs;
  gpu::GraphEngines* replayed = nullptr;
  LateEngines* engines = nullptr;
  std::shared_ptr<gpu::GpuBackend> backend;

  explicit OnGpu(ExportTarget target = ExportTarget::Onnxruntime, std::optional<std::int64_t> most = std::nullopt) {
    auto late = std::make_unique<LateEngines>(
        gpu, target, most, [this](GraphRole role, std::span<const NamedTensor> in, std::span<const NamedTensor> out) {
          const std::vector<Tensor> made = graphs.run(role, in);
          for (std::size_t i = 0; i < made.size(); ++i) {
            std::memcpy(out[i].tensor.data(), made[i].data(), made[i].nbytes());
          }
        });
    engines = late.get();
    auto graph_engines = std::make_unique<gpu::GraphEngines>(std::move(late), gpu);
    replayed = graph_engines.get();
    backend = std::make_shared<gpu::GpuBackend>(gpu, std::move(graph_engines), small_spec());
  }
};

Prompt box(float x, float y) {
  return {std::array<float, 4>{x, y, x + 30, y + 20}, {}, std::nullopt, std::nullopt};
}

// Objects that come late, by box, mask and click; corrections; one that goes.
std::vector<Result> scenario(Tracker& tracker, int frames) {
  const std::array<float, 2> click{30, 20};
  const std::int32_t off = 0;
  std::vector<std::uint8_t> mask(48 * 80);
  std::fill(mask.begin() + 800, mask.begin() + 2400, 1);
  std::vector<Result> results;
  for (int t = 0; t < frames; ++t) {
    results.push_back(tracker.step(Picture(t).view()));
    switch (t) {
      case 0:
        results.push_back(tracker.add(1, box(10, 10)));
        results.push_back(tracker.add(2, box(30, 20)));
        break;
      case 3:
        results.push_back(tracker.add(5, {std::nullopt, {}, std::nullopt, MaskView{mask.data(), 48, 80, 80}}));
        break;
      case 5:
        results.push_back(tracker.correct(1, {std::nullopt, std::span(&click, 1), std::span(&off, 1), std::nullopt}));
        results.push_back(tracker.correct(1, {std::nullopt, std::span(&click, 1), std::nullopt, std::nullopt}, true));
        break;
      case 7:
        tracker.remove(2);
        results.push_back(tracker.add(3, {std::nullopt, std::span(&click, 1), std::nullopt, std::nullopt}));
        break;
      default:
        break;
    }
  }
  return results;
}

void expect_bits(const Tensor& ours, const Tensor& theirs, const char* what) {
  ASSERT_EQ(ours.shape(), theirs.shape()) << what;
  EXPECT_EQ(std::memcmp(ours.data(), theirs.data(), ours.nbytes()), 0) << what;
}

void expect_same(const std::vector<Result>& ours, const std::vector<Result>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(ours[i].ids, theirs[i].ids);
    EXPECT_EQ(ours[i].rows_held, theirs[i].rows_held);
    EXPECT_EQ(ours[i].bytes_held, theirs[i].bytes_held);
    expect_bits(ours[i].masks, theirs[i].masks, "masks");
    expect_bits(ours[i].low_res_logits, theirs[i].low_res_logits, "logits");
    expect_bits(ours[i].scores, theirs[i].scores, "scores");
    expect_bits(ours[i].ious, theirs[i].ious, "ious");
  }
}

TrackerOptions pruned(PrunePolicy policy) {
  TrackerOptions options;
  options.prune.policy = policy;
  if (options.prune.scores_rows()) {
    options.prune.keep = 0.25;
  }
  options.prune.protect = {};
  return options;
}

class EveryBit : public ::testing::TestWithParam<PrunePolicy> {};

TEST_P(EveryBit, IsThatOfTheHost) {
  const OnGpu on_gpu;
  Tracker ours(on_gpu.backend, small_spec(), pruned(GetParam()));
  Tracker theirs(std::make_shared<FakeBackend>(), small_spec(), pruned(GetParam()));
  expect_same(scenario(ours, 24), scenario(theirs, 24));
  EXPECT_GT(on_gpu.replayed->launched(), 5);
  EXPECT_TRUE(on_gpu.replayed->refused().empty());
}

INSTANTIATE_TEST_SUITE_P(GpuTracker, EveryBit,
                         ::testing::Values(PrunePolicy::Dense, PrunePolicy::Random, PrunePolicy::Uniform,
                                           PrunePolicy::Mask, PrunePolicy::Pool2x2));

TEST(GpuTracker, OptionsOfTheTracker) {
  const OnGpu on_gpu;
  TrackerOptions options;
  options.fill_hole_area = 8;
  options.corrections_as_prompts = true;
  options.max_prompt_frames = 2;
  Tracker ours(on_gpu.backend, small_spec(), options);
  Tracker theirs(std::make_shared<FakeBackend>(), small_spec(), options);
  expect_same(scenario(ours, 12), scenario(theirs, 12));
}

TEST(GpuTracker, PromptFramesWithoutRoomAreRefusedBeforeTheFirstFrame) {
  const OnGpu on_gpu;
  on_gpu.engines->prompt_frames = 2;
  TrackerOptions options;
  options.max_prompt_frames = 3;
  EXPECT_NO_THROW(Tracker(on_gpu.backend, small_spec(), options));
  options.corrections_as_prompts = true;
  EXPECT_THROW(Tracker(on_gpu.backend, small_spec(), options), BackendError);
  options.max_prompt_frames = 2;
  EXPECT_NO_THROW(Tracker(on_gpu.backend, small_spec(), options));
}

TEST(GpuTracker, GraphsOfTheTensorRtFormInChunks) {
  const OnGpu on_gpu(ExportTarget::Tensorrt, 2);
  Tracker tracker(on_gpu.backend, small_spec());
  const std::vector<Result> results = scenario(tracker, 10);
  EXPECT_EQ(results.back().ids, (std::vector<std::int64_t>{1, 5, 3}));
  for (const Shape& shape : on_gpu.graphs.memory_shapes) {
    EXPECT_LE(shape[0], 2);
  }
}

TEST(GpuTracker, SteadyStateAllocatesNothingAndWaitsOnce) {
  const OnGpu on_gpu;
  FakeGpu& gpu = *on_gpu.gpu;
  Tracker tracker(on_gpu.backend, small_spec(), pruned(PrunePolicy::Uniform));
  tracker.step(Picture(0).view());
  tracker.add(1, box(10, 10));
  tracker.add(2, box(30, 20));
  for (int t = 1; t < 24; ++t) {  // pointers grow until the sixteenth frame
    tracker.step(Picture(t).view());
  }
  for (int t = 24; t < 40; ++t) {
    gpu.calls.clear();
    tracker.step(Picture(t).view());
    for (const char* call : {"allocate", "release", "pinned"}) {
      EXPECT_EQ(gpu.count(call), 0) << call << " on frame " << t;
    }
    ASSERT_EQ(gpu.count("synchronize"), 1);
    EXPECT_EQ(gpu.calls.back(), "synchronize");
    const auto first = std::find(gpu.calls.begin(), gpu.calls.end(), "download");
    EXPECT_TRUE(std::all_of(first, gpu.calls.end() - 1, [](const auto& call) { return call == "download"; }));
  }
}

TEST(GpuTracker, FramesWithoutObjectsEndWithAWaitToo) {
  const OnGpu on_gpu;
  Tracker tracker(on_gpu.backend, small_spec());
  for (int t = 0; t < 8; ++t) {
    on_gpu.gpu->calls.clear();
    tracker.step(Picture(t).view());
    ASSERT_EQ(on_gpu.gpu->count("synchronize"), 1);
    EXPECT_EQ(on_gpu.gpu->count("pinned"), t == 0 ? 1 : 0);
  }
}

TEST(GpuTracker, SteadyStateReplaysEveryEngine) {
  const OnGpu on_gpu;
  Tracker tracker(on_gpu.backend, small_spec());
  tracker.step(Picture(0).view());
  tracker.add(1, box(10, 10));
  for (int t = 1; t < 80; ++t) {
    tracker.step(Picture(t).view());
  }
  on_gpu.gpu->calls.clear();
  for (int t = 80; t < 84; ++t) {
    tracker.step(Picture(t).view());
  }
  EXPECT_EQ(on_gpu.gpu->count("recording"), 4 * 4);
  EXPECT_EQ(on_gpu.gpu->count("image_encoder"), 0);
}

TEST(GpuTracker, AFailedStepChangesNothing) {
  const OnGpu on_gpu;
  Tracker tracker(on_gpu.backend, small_spec());
  tracker.step(Picture(0).view());
  tracker.add(1, box(10, 10));
  tracker.step(Picture(1).view());
  on_gpu.gpu->fails = "an illegal address";
  EXPECT_THROW(tracker.step(Picture(2).view()), BackendError);
  EXPECT_THROW(tracker.add(2, box(20, 20)), BackendError);
  EXPECT_EQ(tracker.frame(), 1);
  EXPECT_EQ(tracker.ids(), std::vector<std::int64_t>{1});
  on_gpu.gpu->fails.clear();
  EXPECT_EQ(tracker.step(Picture(2).view()).frame, 2);
}

TEST(GpuTracker, CallsThatFailHoldNoMoreMemoryOfCopies) {
  const OnGpu on_gpu;
  Tracker tracker(on_gpu.backend, small_spec());
  Picture large;
  large.height = 500;
  large.width = 1000;
  large.bytes.assign(500 * 1000 * 3, 7);
  tracker.step(large.view());
  tracker.add(1, box(10, 10));
  const std::map<void*, std::size_t> held = on_gpu.gpu->held_pinned;
  on_gpu.engines->refuses = "no memory";
  for (int i = 0; i < 8; ++i) {  // 12 MB of frames
    EXPECT_THROW(tracker.step(large.view()), BackendError);
    EXPECT_THROW(tracker.add(2, box(20, 20)), BackendError);
  }
  EXPECT_EQ(on_gpu.gpu->held_pinned, held);
}

TEST(GpuTracker, MemoryComesBackAndThePoolGivesUpWhatLiesIdle) {
  OnGpu on_gpu;
  std::optional<Tracker> tracker(std::in_place, on_gpu.backend, small_spec());
  const Result kept = scenario(*tracker, 12).back();
  const std::size_t used = on_gpu.backend->device().pool().used_bytes();
  tracker->reset();
  EXPECT_LT(on_gpu.backend->device().pool().used_bytes(), used);
  std::size_t held = 0;
  for (const auto& [memory, bytes] : on_gpu.gpu->held) {
    held += bytes;
  }
  on_gpu.gpu->limit = held + 80 * 1024;
  on_gpu.gpu->calls.clear();
  Picture larger;
  larger.height = 200;
  larger.width = 300;
  larger.bytes.assign(200 * 300 * 3, 7);
  tracker->step(larger.view());
  EXPECT_GT(on_gpu.gpu->count("release"), 0);
  on_gpu.gpu->limit = 0;
  tracker->reset();
  larger.height = 1000;
  larger.bytes.assign(1000 * 300 * 3, 7);
  EXPECT_THROW(tracker->step(larger.view()), BackendError);
  tracker.reset();
  const std::shared_ptr<FakeGpu> gpu = on_gpu.gpu;
  on_gpu.backend.reset();
  EXPECT_TRUE(gpu->held.empty());
  EXPECT_TRUE(gpu->held_pinned.empty());
  EXPECT_EQ(kept.masks.shape()[1], 48);
}

TEST(GpuTracker, WhatIsNoInputOfAGraphIsRefused) {
  const OnGpu on_gpu;
  const NamedTensor small{"pixels", Tensor::empty(DType::UInt8, {1, 3, 32, 64})};
  EXPECT_THROW(on_gpu.backend->run(GraphRole::ImageEncoder, std::span(&small, 1)), InternalError);
  EXPECT_THROW(on_gpu.backend->run(GraphRole::ImageEncoder, {}), InternalError);
  on_gpu.engines->lacks = GraphRole::MaskPrompt;
  EXPECT_THROW(on_gpu.backend->run(GraphRole::MaskPrompt, {}), BackendError);
}

}  // namespace
}  // namespace fastsam2::testing
