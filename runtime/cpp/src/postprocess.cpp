#include "postprocess.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace fastsam2 {

namespace {

constexpr float kHoleLogit = 0.1F;

// Two-point interpolation of one output.
struct Sample {
  std::size_t low, high;
  float low_weight, high_weight;
};

std::vector<Sample> interpolation(std::size_t source, std::size_t target) {
  const float scale = static_cast<float>(source) / static_cast<float>(target);
  std::vector<Sample> samples(target);
  for (std::size_t out = 0; out < target; ++out) {
    const double exact = static_cast<double>(scale) * (static_cast<double>(out) + 0.5) - 0.5;
    const auto point = static_cast<float>(std::max(exact, 0.0));
    const std::size_t low = std::min(static_cast<std::size_t>(point), source - 1);
    const float weight = std::clamp(point - static_cast<float>(low), 0.0F, 1.0F);
    samples[out] = {low, std::min(low + 1, source - 1), 1.0F - weight, weight};
  }
  return samples;
}

// Outputs that sample between the first and the last marked input: [begin, end).
struct Span {
  std::size_t begin = 0, end = 0;
};

Span reach(const std::vector<bool>& marked, const std::vector<Sample>& samples) {
  const auto first = std::ranges::find(marked, true);
  if (first == marked.end()) {
    return {};
  }
  const auto low = static_cast<std::size_t>(first - marked.begin());
  std::size_t high = marked.size() - 1;
  while (!marked[high]) {
    --high;
  }
  const auto touches = [&](const Sample& s) { return s.high >= low && s.low <= high; };
  const auto begin = std::ranges::find_if(samples, touches);
  auto end = samples.end();
  while (end != begin && !touches(*(end - 1))) {
    --end;
  }
  return {static_cast<std::size_t>(begin - samples.begin()), static_cast<std::size_t>(end - samples.begin())};
}

}  // namespace

void mask_from_logits(std::span<const float> logits, std::int64_t side, std::int64_t height, std::int64_t width,
                      std::span<bool> mask) {
  const auto own = static_cast<std::size_t>(side);
  const auto wide = static_cast<std::size_t>(width);
  if (height == side && width == side) {
    std::ranges::transform(logits, mask.begin(), [](float logit) { return logit > 0.0F; });
    return;
  }
  std::ranges::fill(mask, false);
  std::vector<bool> positive_rows(own);
  std::vector<bool> positive_columns(own);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > 0.0F) {
      positive_rows[i / own] = positive_columns[i % own] = true;
    }
  }
  const std::vector<Sample> rows = interpolation(own, static_cast<std::size_t>(height));
  const std::vector<Sample> columns = interpolation(own, wide);
  const Span ys = reach(positive_rows, rows);
  const Span xs = reach(positive_columns, columns);
  const std::size_t count = xs.end - xs.begin;
  std::vector<float> across(own * count);
  for (std::size_t y = 0; y < own; ++y) {
    for (std::size_t x = 0; x < count; ++x) {
      const Sample& s = columns[xs.begin + x];
      across[y * count + x] = logits[y * own + s.low] * s.low_weight + logits[y * own + s.high] * s.high_weight;
    }
  }
  for (std::size_t y = ys.begin; y < ys.end; ++y) {
    const Sample& s = rows[y];
    for (std::size_t x = 0; x < count; ++x) {
      const float value = across[s.low * count + x] * s.low_weight + across[s.high * count + x] * s.high_weight;
      mask[y * wide + xs.begin + x] = value > 0.0F;
    }
  }
}

void fill_holes(std::span<float> logits, std::int64_t side, std::int64_t max_area) {
  const auto width = static_cast<std::size_t>(side);
  std::vector<bool> seen(logits.size());
  std::vector<std::size_t> component;
  for (std::size_t start = 0; start < logits.size(); ++start) {
    if (seen[start] || logits[start] > 0.0F) {
      continue;
    }
    component.assign(1, start);
    seen[start] = true;
    for (std::size_t next = 0; next < component.size(); ++next) {
      const std::size_t y = component[next] / width;
      const std::size_t x = component[next] % width;
      for (std::size_t v = y - std::min<std::size_t>(y, 1); v < std::min(y + 2, width); ++v) {
        for (std::size_t u = x - std::min<std::size_t>(x, 1); u < std::min(x + 2, width); ++u) {
          const std::size_t at = v * width + u;
          if (!seen[at] && logits[at] <= 0.0F) {
            seen[at] = true;
            component.push_back(at);
          }
        }
      }
    }
    if (component.size() <= static_cast<std::size_t>(max_area)) {
      for (const std::size_t at : component) {
        logits[at] = kHoleLogit;
      }
    }
  }
}

}  // namespace fastsam2
