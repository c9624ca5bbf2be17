#include "policies.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "fastsam2/contracts.hpp"

namespace fastsam2 {

namespace {

constexpr std::uint32_t kCentring = 0x55555555;
constexpr float kLevels = 32.0F;
constexpr float kOwn = 0.5F;
constexpr std::size_t kSide = kImageStride / kLowResStride;  // logits along a cell

// Correctly rounded but for about one value in 2^28: tanh in double precision, then float. Python computes the same.
float tanh_of_half(float logit) {
  return static_cast<float>(std::tanh(static_cast<double>(0.5F * logit)));
}

// Mean of f(logit) over the 4x4 logits of each cell: rows of a cell first, in float32.
template <typename F>
void mean_of_cells(std::span<const float> logits, std::size_t grid, std::span<float> cells, F f) {
  const std::size_t width = grid * kSide;
  for (std::size_t cell = 0; cell < grid * grid; ++cell) {
    float sum = 0.0F;
    for (std::size_t y = 0; y < kSide; ++y) {
      const float* row = &logits[(cell / grid * kSide + y) * width + cell % grid * kSide];
      float across = f(row[0]);
      for (std::size_t x = 1; x < kSide; ++x) {
        across += f(row[x]);
      }
      sum = y == 0 ? across : sum + across;
    }
    cells[cell] = sum / static_cast<float>(kSide * kSide);
  }
}

// Separable 1-2-1 blur with repeated edges: down the columns, then along the rows.
std::vector<float> blurred(std::span<const float> cells, std::size_t grid) {
  const auto mix = [](float before, float own, float after) { return ((before + 2.0F * own) + after) / 4.0F; };
  std::vector<float> along(cells.size());
  std::vector<float> both(cells.size());
  for (std::size_t y = 0; y < grid; ++y) {
    for (std::size_t x = 0; x < grid; ++x) {
      const std::size_t left = x == 0 ? 0 : x - 1;
      const std::size_t right = std::min(x + 1, grid - 1);
      along[y * grid + x] = mix(cells[y * grid + left], cells[y * grid + x], cells[y * grid + right]);
    }
  }
  for (std::size_t y = 0; y < grid; ++y) {
    const std::size_t above = y == 0 ? 0 : y - 1;
    const std::size_t below = std::min(y + 1, grid - 1);
    for (std::size_t x = 0; x < grid; ++x) {
      both[y * grid + x] = mix(along[above * grid + x], along[y * grid + x], along[below * grid + x]);
    }
  }
  return both;
}

}  // namespace

std::vector<float> uniform_scores(std::int64_t grid) {
  const auto side = static_cast<std::uint32_t>(grid);
  const auto bits = static_cast<int>(std::bit_width(side - 1));
  const std::uint32_t flip = kCentring & ((1U << bits) - 1U);
  std::vector<std::uint64_t> rank(static_cast<std::size_t>(grid * grid));
  for (std::uint32_t y = 0; y < side; ++y) {
    for (std::uint32_t x = 0; x < side; ++x) {
      const std::uint32_t v = y ^ flip;
      const std::uint32_t u = x ^ flip;
      std::uint64_t value = 0;
      for (int bit = 0; bit < bits; ++bit) {
        const std::uint64_t quadrant = 2 * (((u ^ v) >> bit) & 1U) + ((v >> bit) & 1U);
        value += quadrant << (2 * (bits - 1 - bit));
      }
      rank[static_cast<std::size_t>(y) * side + x] = value;
    }
  }
  std::vector<std::size_t> order(rank.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {}, [&](std::size_t cell) { return rank[cell]; });
  std::vector<float> scores(rank.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    scores[order[i]] = static_cast<float>(order.size() - 1 - i);
  }
  return scores;
}

void mask_scores(std::span<const float> logits, std::int64_t grid, std::span<float> scores) {
  const auto side = static_cast<std::size_t>(grid);
  std::vector<float> coverage(side * side);
  mean_of_cells(logits, side, coverage, [](float logit) { return 0.5F * (1.0F + tanh_of_half(logit)); });
  const std::vector<float> around = blurred(coverage, side);
  const std::vector<float> spread = uniform_scores(grid);
  for (std::size_t cell = 0; cell < coverage.size(); ++cell) {
    const float level = coverage[cell] >= kOwn ? kLevels : std::floor(around[cell] * (kLevels - 1.0F));
    scores[cell] = level * static_cast<float>(side * side) + spread[cell];
  }
}

void uncertainty(std::span<const float> logits, std::int64_t grid, std::span<float> cells) {
  mean_of_cells(logits, static_cast<std::size_t>(grid), cells, [](float logit) {
    const float slope = tanh_of_half(logit);
    return 1.0F - slope * slope;
  });
}

}  // namespace fastsam2
