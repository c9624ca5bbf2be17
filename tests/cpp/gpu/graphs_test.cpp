// When engines are replayed, and when not.
#include "graphs.hpp"

#include <gtest/gtest.h>

#include "fake_gpu.hpp"
#include "pool.hpp"

namespace fastsam2::testing {
namespace {

class GraphsTest : public ::testing::Test {
 protected:
  std::shared_ptr<FakeGpu> gpu_ = std::make_shared<FakeGpu>();
  LateEngines* inner_ = nullptr;
  std::unique_ptr<gpu::GraphEngines> engines_ = make();
  int runs_ = 0;  // of the graph itself

  std::unique_ptr<gpu::GraphEngines> make() {
    auto late = std::make_unique<LateEngines>(gpu_, ExportTarget::Tensorrt, std::nullopt,
                                              [this](auto, auto, auto) { ++runs_; });
    inner_ = late.get();
    return std::make_unique<gpu::GraphEngines>(std::move(late), gpu_);
  }

  void run(const Tensor& input, const Tensor& output, int times = 1, GraphRole role = GraphRole::ImageEncoder) {
    for (int i = 0; i < times; ++i) {
      const NamedTensor in{"pixels", input};
      const NamedTensor out{"tokens", output};
      engines_->enqueue(role, std::span(&in, 1), std::span(&out, 1));
    }
    gpu_->synchronize();
  }

  Tensor on_device() { return pool_->empty(DType::Float32, {4}, {"test"}); }

  std::shared_ptr<gpu::Pool> pool_ = std::make_shared<gpu::Pool>(gpu_);
  Tensor a_ = on_device();
  Tensor b_ = on_device();
};

TEST_F(GraphsTest, ReplaysWhatWasSeenOften) {
  run(a_, b_, gpu::kRecordAfter);
  EXPECT_EQ(engines_->recorded(), 0);
  run(a_, b_, 3);
  EXPECT_EQ(engines_->recorded(), 1);
  EXPECT_EQ(engines_->launched(), 3);
  EXPECT_EQ(runs_, gpu::kRecordAfter + 3);
}

TEST_F(GraphsTest, OtherAddressesShapesAndRolesAreOthers) {
  run(a_, b_, 9);
  run(b_, a_);
  run(a_.reshape({2, 2}), b_);
  run(a_, b_, 1, GraphRole::MaskDecoder);
  EXPECT_EQ(engines_->launched(), 1);
  run(a_, b_);
  EXPECT_EQ(engines_->launched(), 2);
}

// Setting shapes may switch profiles, and the first run after it may allocate: neither is to be recorded.
TEST_F(GraphsTest, RecordsOnlyAfterARunWithTheSameShapes) {
  run(a_, b_, gpu::kRecordAfter);
  run(a_.reshape({2, 2}), b_);
  run(a_, b_);
  EXPECT_EQ(engines_->recorded(), 0);
  run(b_, a_);  // other addresses
  run(a_, b_);
  EXPECT_EQ(engines_->recorded(), 1);
  EXPECT_EQ(engines_->launched(), 1);
}

TEST_F(GraphsTest, ARunThatFailedSetNoShapes) {
  run(a_, b_, gpu::kRecordAfter);
  run(a_.reshape({2, 2}), b_);
  run(b_, a_);
  inner_->refuses = "no memory";
  EXPECT_THROW(run(b_, a_), BackendError);
  inner_->refuses.clear();
  run(a_, b_);
  EXPECT_EQ(engines_->recorded(), 0);
  run(a_, b_);
  EXPECT_EQ(engines_->recorded(), 1);
}

TEST_F(GraphsTest, IsGivenUpWhereMemoryMoved) {
  run(a_, b_, 9);
  inner_->activations = 100;
  run(a_, b_, gpu::kRecordAfter);
  EXPECT_EQ(engines_->launched(), 1);
  run(a_, b_);
  EXPECT_EQ(engines_->recorded(), 2);
}

TEST_F(GraphsTest, WhatCannotBeRecordedRunsAsBefore) {
  gpu_->not_recorded = "an operation that is not permitted";
  run(a_, b_, 12);
  EXPECT_EQ(runs_, 12);
  EXPECT_EQ(engines_->launched(), 0);
  EXPECT_NE(engines_->refused().at(GraphRole::ImageEncoder).find("not permitted"), std::string::npos);
}

TEST_F(GraphsTest, ARunThatFailsWhileItIsRecordedEndsTheRecording) {
  run(a_, b_, gpu::kRecordAfter);
  inner_->refuses = "no memory";
  EXPECT_THROW(run(a_, b_), BackendError);  // it fails again where it is not recorded
  EXPECT_EQ(engines_->refused().size(), 1U);
  inner_->refuses.clear();
  run(a_, b_);
  EXPECT_EQ(runs_, gpu::kRecordAfter + 1);
}

TEST_F(GraphsTest, ForgetsTheOldest) {
  std::vector<Tensor> inputs;
  for (std::size_t i = 0; i <= gpu::kMostRecordings; ++i) {
    inputs.push_back(on_device());
    run(inputs.back(), b_, 9);
  }
  const std::int64_t launched = engines_->launched();
  run(inputs.back(), b_);
  EXPECT_EQ(engines_->launched(), launched + 1);
  run(inputs.front(), b_);
  EXPECT_EQ(engines_->launched(), launched + 1);
}

}  // namespace
}  // namespace fastsam2::testing
