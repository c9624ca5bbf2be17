#include "fastsam2/tracker.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "fake_backend.hpp"

namespace fastsam2::testing {
namespace {

const Prompt kBox{std::array<float, 4>{10, 10, 40, 30}, {}, std::nullopt, std::nullopt};

std::vector<float> logits_of(const Result& result) {
  const auto values = result.low_res_logits.values<float>();
  return {values.begin(), values.end()};
}

TEST(Tracker, MemoryStaysBounded) {
  const auto backend = std::make_shared<FakeBackend>();
  Tracker tracker(backend, small_spec());
  tracker.step(Picture(0).view());
  tracker.add(1, kBox);
  Result result;
  for (int t = 1; t < 40; ++t) {
    result = tracker.step(Picture(t).view());
  }
  EXPECT_EQ(result.rows_held[0], 7 * small_spec().tokens());  // the prompt frame and six others
  EXPECT_EQ(backend->memory_shapes.back(), (Shape{1, 7 * small_spec().tokens(), small_spec().memory_dim}));
}

TEST(Tracker, PruningShrinksWhatIsHeld) {
  TrackerOptions options;
  options.prune.policy = PrunePolicy::Mask;
  options.prune.keep = 0.25;
  Tracker tracker(std::make_shared<FakeBackend>(), small_spec(), options);
  tracker.step(Picture(0).view());
  tracker.add(1, kBox);
  Result result;
  for (int t = 1; t < 20; ++t) {
    result = tracker.step(Picture(t).view());
  }
  EXPECT_EQ(result.rows_held[0], 16 + 16 + 5 * 4);  // the prompt frame, the newest, five of a quarter each
  EXPECT_EQ(result.tokens->keep, 4);
}

TEST(Tracker, AFailedStepCanBeRepeated) {
  std::vector<float> whole;
  for (int failing = 0; failing <= 4; ++failing) {  // 0: none; then each graph of the step in turn
    const auto backend = std::make_shared<FakeBackend>();
    Tracker tracker(backend, small_spec());
    tracker.step(Picture(0).view());
    tracker.add(1, kBox);
    tracker.step(Picture(1).view());
    if (failing > 0) {
      backend->fails = failing;
      EXPECT_THROW(tracker.step(Picture(2).view()), BackendError) << failing;
      EXPECT_EQ(tracker.frame(), 1);
    }
    tracker.step(Picture(2).view());
    const std::vector<float> logits = logits_of(tracker.step(Picture(3).view()));
    whole = failing == 0 ? logits : whole;
    EXPECT_EQ(logits, whole) << failing;
  }
}

TEST(Tracker, RefusesWhatIsNotLegal) {
  Tracker tracker(std::make_shared<FakeBackend>(), small_spec());
  EXPECT_THROW(tracker.add(1, kBox), PromptError);  // no frame yet
  const Picture picture;
  tracker.step(picture.view());
  EXPECT_THROW(tracker.step({picture.bytes.data(), 40, 80, 240}), PromptError);
  EXPECT_THROW(tracker.step({nullptr, 48, 80, 240}), PromptError);
  EXPECT_THROW(tracker.step({picture.bytes.data(), 48, 80, 239}), PromptError);
  EXPECT_THROW(tracker.add(0, kBox), PromptError);
  EXPECT_THROW(tracker.add(1, Prompt{}), PromptError);
  const std::array<float, 2> outside{80.5F, 3};
  const std::array<float, 2> nan{std::numeric_limits<float>::quiet_NaN(), 3};
  const std::int32_t label = 2;
  for (const auto& point : {outside, nan}) {
    EXPECT_THROW(tracker.add(1, Prompt{std::nullopt, std::span(&point, 1), std::nullopt, std::nullopt}), PromptError);
  }
  const std::array<float, 2> inside{80, 48};
  EXPECT_THROW(tracker.add(1, Prompt{std::nullopt, std::span(&inside, 1), std::span(&label, 1), std::nullopt}),
               PromptError);
  EXPECT_THROW(tracker.add(1, Prompt{std::array<float, 4>{10, 10, 10, 30}, {}, std::nullopt, std::nullopt}),
               PromptError);
  EXPECT_TRUE(tracker.ids().empty());
  tracker.add(1, kBox);
  EXPECT_THROW(tracker.add(1, kBox), PromptError);
  EXPECT_THROW(tracker.correct(2, kBox), PromptError);
  EXPECT_THROW(tracker.correct(1, kBox, true), PromptError);
  EXPECT_THROW(tracker.remove(2), PromptError);
  EXPECT_THROW(tracker.describe(1, std::array<float, 4>{}), PromptError);  // no router
  EXPECT_EQ(tracker.ids(), std::vector<std::int64_t>{1});
}

TEST(Tracker, ResultsStayWhenTheTrackerGoesOn) {
  Tracker tracker(std::make_shared<FakeBackend>(), small_spec());
  tracker.step(Picture(0).view());
  const Result first = tracker.add(1, kBox);
  const std::vector<float> before = logits_of(first);
  tracker.step(Picture(1).view());
  tracker.reset();
  EXPECT_EQ(logits_of(first), before);
  EXPECT_FALSE(tracker.frame().has_value());
  EXPECT_EQ(tracker.step(Picture(5).view()).frame, 0);
}

TEST(Backend, OutputsAreCheckedAgainstTheContract) {
  const NamedTensor pixels{"pixels", Tensor::empty(DType::UInt8, {1, 3, 64, 64})};
  EXPECT_EQ(output_shapes(GraphRole::ImageEncoder, small_spec(), std::span(&pixels, 1))[1], (Shape{1, 2, 16, 16}));
  const std::vector<Tensor> wrong(3, Tensor::empty(DType::Float32, {1, 16, 16}));
  EXPECT_THROW(check_outputs(GraphRole::ImageEncoder, small_spec(), std::span(&pixels, 1), wrong), BackendError);
  const NamedTensor small{"pixels", Tensor::empty(DType::UInt8, {1, 3, 32, 64})};
  EXPECT_THROW(output_shapes(GraphRole::ImageEncoder, small_spec(), std::span(&small, 1)), InternalError);
}

TEST(Prune, BucketsAreImmuneToBinaryRounding) {
  EXPECT_EQ(bucket_rows(0.05, 4096), 205);
  EXPECT_EQ(bucket_rows(0.1, 1000), 100);
  EXPECT_EQ(bucket_rows(0.02, 16), 1);
}

}  // namespace
}  // namespace fastsam2::testing
