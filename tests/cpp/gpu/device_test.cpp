// Every operation on a fake GPU against HostDevice; the pool and the staging by themselves.
#include "device.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "fake_gpu.hpp"
#include "fastsam2/host_device.hpp"

namespace fastsam2::testing {
namespace {

class DeviceTest : public ::testing::Test {
 protected:
  std::shared_ptr<FakeGpu> gpu_ = std::make_shared<FakeGpu>();
  LateEngines engines_{gpu_, ExportTarget::Onnxruntime, 3, {}};
  gpu::CudaDevice device_{gpu_, engines_};
  HostDevice host_;

  void expect_same(const Tensor& ours, const Tensor& theirs) {
    const Tensor fetched = device_.fetch(std::span(&ours, 1))[0];
    ASSERT_EQ(fetched.shape(), theirs.shape());
    ASSERT_EQ(fetched.dtype(), theirs.dtype());
    EXPECT_EQ(std::memcmp(fetched.data(), theirs.data(), theirs.nbytes()), 0);
  }
};

Tensor waves(Shape shape, float scale = 4.0F) {
  const Tensor values = Tensor::empty(DType::Float32, shape);
  float phase = 0;
  for (float& value : values.fill<float>()) {
    value = scale * std::sin(phase);
    phase += 0.37F;
  }
  return values;
}

TEST_F(DeviceTest, ViewsAndJoins) {
  const Tensor values = waves({2, 3, 4});
  const Tensor array = device_.put(values);
  const std::array in_order{array[0], array[1]};
  const std::array swapped{array[1], array[0]};
  const std::array host_swapped{values[1], values[0]};
  EXPECT_EQ(device_.stack(in_order).data(), array.data());
  EXPECT_EQ(device_.concatenate(in_order).data(), array.data());
  EXPECT_NE(device_.stack(swapped).data(), array[1].data());
  EXPECT_EQ(device_.put(array).data(), array.data());
  EXPECT_NE(device_.copy(array[1]).data(), array[1].data());
  expect_same(array[1].slice(1, 3), values[1].slice(1, 3));
  expect_same(device_.stack(in_order), values);
  expect_same(device_.stack(swapped), host_.stack(host_swapped));
  expect_same(device_.concatenate(swapped), host_.concatenate(host_swapped));
  expect_same(device_.copy(array[1]), values[1]);
  const std::array mixed{values[1], array[0]};  // host and device
  expect_same(device_.stack(mixed), host_.stack(host_swapped));
  const std::vector<Tensor> fetched = device_.fetch(std::array{Tensor(), values});
  EXPECT_FALSE(fetched[0]);
  EXPECT_EQ(fetched[1].data(), values.data());
}

TEST_F(DeviceTest, AViewKeepsItsMemory) {
  Tensor view = device_.stack(std::array{device_.put(waves({4})), device_.put(waves({4}))});
  view = view[1];
  const Tensor other = device_.stack(std::array{device_.put(waves({4}, 9)), device_.put(waves({4}, 8))});
  EXPECT_NE(other[1].data(), view.data());
  expect_same(view, waves({4}));
}

TEST_F(DeviceTest, Constants) {
  expect_same(device_.full({2, 3}, -1.5, DType::Float32), host_.full({2, 3}, -1.5, DType::Float32));
  expect_same(device_.full({2, 3}, -1, DType::Int32), host_.full({2, 3}, -1, DType::Int32));
  expect_same(device_.full({5}, 1, DType::Bool), host_.full({5}, 1, DType::Bool));
  expect_same(device_.arange(3, 9), host_.arange(3, 9));
  EXPECT_THROW(device_.full({1}, 0, DType::UInt16), InternalError);
  const Tensor once = device_.full({2, 3}, 7, DType::Int32);
  EXPECT_EQ(device_.full({2, 3}, 7, DType::Int32).data(), once.data());
  EXPECT_NE(device_.full({3, 2}, 7, DType::Int32).data(), once.data());
  for (int i = 0; i < 200; ++i) {
    device_.arange(0, 10 + i);
  }
  EXPECT_NE(device_.full({2, 3}, 7, DType::Int32).data(), once.data());  // forgotten, and `once` is still held
}

TEST_F(DeviceTest, RowsAndScores) {
  for (const std::int64_t grid : {2, 4, 16}) {
    const std::int64_t n = grid * grid;
    const Tensor rows = waves({n, 8});
    const Tensor scores = host_.clamp(waves({n}), 2.0F);  // with ties
    const Tensor logits = waves({2, 4 * grid, 4 * grid}, 6);
    const Tensor bits = host_.to_bfloat16(rows);
    expect_same(device_.to_bfloat16(rows), bits);
    expect_same(device_.clamp(rows, 1.25F), host_.clamp(rows, 1.25F));
    expect_same(device_.pool_2x2(bits, grid), host_.pool_2x2(bits, grid));
    expect_same(device_.mask_scores(logits[1], grid), host_.mask_scores(logits[1], grid));
    for (const std::int64_t keep : {std::int64_t{1}, n / 2, n}) {
      const Kept ours = device_.top_k_gather(bits, scores, keep);
      const Kept theirs = host_.top_k_gather(bits, scores, keep);
      expect_same(ours.rows, theirs.rows);
      expect_same(ours.position, theirs.position);
    }
    const Tensor ours = device_.fetch(std::array{device_.uncertainty(logits, grid)})[0];
    const Tensor theirs = host_.uncertainty(logits, grid);
    for (std::int64_t i = 0; i < theirs.elements(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      EXPECT_NEAR(ours.values<float>()[at], theirs.values<float>()[at], 2e-6F);
    }
  }
}

struct Picture {
  std::int64_t height, width;
};

TEST_F(DeviceTest, PixelsAndMasks) {
  for (const auto& [height, width] :
       {Picture{48, 80}, {64, 64}, {300, 90}, {90, 300}, {64, 100}, {100, 64}, {1, 1}, {500, 70}, {31, 33}}) {
    SCOPED_TRACE((Shape{height, width}).text());
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(height * (width * 3 + 5)));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::uint8_t>(i * i * 31 % 251);
    }
    for (const PixelFormat format : {PixelFormat::Rgb8, PixelFormat::Bgr8}) {
      const ImageView frame{bytes.data(), height, width, static_cast<std::ptrdiff_t>(width * 3 + 5), format};
      expect_same(device_.pixels(frame, 64), host_.pixels(frame, 64));
    }
    const Tensor logits = waves({2, 16, 16});
    expect_same(device_.masks(logits, height, width), host_.masks(logits, height, width));
  }
  const Tensor logits = waves({1, 16, 16});
  expect_same(device_.masks(logits, 16, 16), host_.masks(logits, 16, 16));
}

TEST_F(DeviceTest, TheMemoryReader) {
  ModelSpec spec;
  spec.memory_dim = 8;
  spec.hidden_dim = 16;
  std::vector<Reading> readings(2);
  for (std::size_t b = 0; b < readings.size(); ++b) {
    for (int frame = 0; frame < 3; ++frame) {
      const Tensor rows = host_.to_bfloat16(waves({4 + frame, 8}, static_cast<float>(frame + 1)));
      readings[b].frames.push_back({rows, host_.arange(frame, 4 + 2 * frame), 5 - frame + static_cast<int>(b)});
    }
    readings[b].pointers.push_back({waves({16}, 2), 0.25F});
    readings[b].pointers.push_back({waves({16}, 3), -1.0F});
  }
  const auto ours = device_.memory_reader(spec)->read(readings);
  const auto reader = host_.memory_reader(spec);
  const auto theirs = reader->read(readings);
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_EQ(ours[i].name, theirs[i].name);
    expect_same(ours[i].tensor, theirs[i].tensor);
  }
  LateEngines biased{gpu_, ExportTarget::Tensorrt, 3, {}};
  gpu::CudaDevice other{gpu_, biased};
  const auto with_bias = other.read_memory(spec, readings);
  ASSERT_EQ(with_bias.size(), 6U);
  const Tensor bias = other.fetch(std::array{with_bias[5].tensor})[0];
  EXPECT_EQ(bias.shape(), (Shape{2, 4 + 5 + 6 + 2 * 2}));
  EXPECT_TRUE(std::ranges::all_of(bias.values<float>(), [](float value) { return value == 0.0F; }));
  readings[1].pointers.pop_back();
  EXPECT_THROW(device_.memory_reader(spec)->read(readings), InternalError);
}

TEST_F(DeviceTest, SizesOutOfRangeAreRefused) {
  EXPECT_THROW(device_.pool_2x2(host_.to_bfloat16(waves({9, 8})), 3), InternalError);
  EXPECT_THROW(device_.top_k_gather(host_.to_bfloat16(waves({4, 8})), waves({4}), 5), BackendError);
  EXPECT_THROW(device_.masks(waves({1, 16, 16}), 0, 5), InternalError);
  EXPECT_EQ(device_.max_objects(GraphRole::MaskDecoder), 3);
}

TEST_F(DeviceTest, StagingIsNotUsedAgainBeforeTheWait) {
  std::vector<Tensor> values;
  std::vector<Tensor> arrays;
  for (int i = 0; i < 40; ++i) {
    values.push_back(waves({100'000}, static_cast<float>(i)));  // 16 MB in all: several pieces
    arrays.push_back(device_.put(values.back()));
  }
  const std::vector<Tensor> fetched = device_.fetch(arrays);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::memcmp(fetched[i].data(), values[i].data(), values[i].nbytes()), 0) << i;
  }
  gpu_->calls.clear();
  device_.put(values[0]);
  EXPECT_EQ(gpu_->count("pinned"), 0);
}

TEST(Staging, HoldsWhatOneRoundNeeds) {
  const auto gpu = std::make_shared<FakeGpu>();
  gpu::Staging staging(gpu);
  constexpr std::size_t kBytes = std::size_t{3} << 20U;
  const auto round = [&](int copies) {
    for (int i = 0; i < copies; ++i) {
      staging.take(kBytes);
    }
    staging.reset();
  };
  for (int copies = 1; copies <= 8; ++copies) {  // objects that come one by one
    round(copies);
  }
  ASSERT_EQ(gpu->held_pinned.size(), 1U);
  EXPECT_EQ(gpu->held_pinned.begin()->second, 8 * kBytes);
  gpu->calls.clear();
  round(8);
  round(1);
  EXPECT_EQ(gpu->count("pinned"), 0);
}

TEST(Pool, HandsMemoryOutAgainWhenNothingRefersToIt) {
  const auto gpu = std::make_shared<FakeGpu>();
  auto pool = std::make_shared<gpu::Pool>(gpu);
  Tensor first = pool->empty(DType::Float32, {100}, {"a"});
  Tensor view = first.slice(10, 20);
  void* address = first.data();
  EXPECT_NE(pool->memory_at(view.data()), nullptr);
  first = Tensor();
  EXPECT_NE(pool->empty(DType::Float32, {100}, {"a"}).data(), address);
  view = Tensor();
  EXPECT_EQ(pool->memory_at(address), nullptr);
  EXPECT_EQ(pool->empty(DType::Float32, {90}, {"a"}).data(), address);
  EXPECT_NE(pool->empty(DType::Float32, {90}, {"b"}).data(), address);
  EXPECT_NE(pool->empty(DType::Float32, {90}, {"a", 3}).data(), address);
  EXPECT_EQ(pool->allocations(), 4);
  EXPECT_EQ(pool->used_bytes(), 0U);
  EXPECT_EQ(pool->held_bytes(), 2048U);
  pool->trim();
  EXPECT_EQ(pool->held_bytes(), 0U);
  Tensor last = pool->empty(DType::Float32, {0, 4}, {"a"});
  pool.reset();
  EXPECT_EQ(gpu->held.size(), 1U);  // the tensor keeps the pool
  last = Tensor();
  EXPECT_TRUE(gpu->held.empty());
}

TEST(Pool, SizesWasteAnEighthAtMost) {
  for (const std::size_t size : {0U, 1U, 511U, 512U, 513U, 4095U, 10'000U, 1'000'001U, 123'456'789U}) {
    const std::size_t all = gpu::rounded(size);
    EXPECT_GE(all, std::max<std::size_t>(size, 1));
    EXPECT_EQ(all % 512, 0U);
    EXPECT_LE(all, std::max<std::size_t>(size + 512, size + size / 8));
  }
}

}  // namespace
}  // namespace fastsam2::testing
