#include "selection.hpp"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <set>

namespace fastsam2 {

namespace {

// Up to `limit` prompt frames nearest to `frame`: the nearest before, the nearest at or after, then the nearest of the
// rest.
std::vector<std::int64_t> closest(std::int64_t frame, std::span<const std::int64_t> prompts, std::int64_t limit) {
  std::vector<std::int64_t> rest(prompts.begin(), prompts.end());
  const auto most = static_cast<std::size_t>(limit);
  if (rest.size() <= most) {
    return rest;
  }
  std::vector<std::int64_t> chosen;
  const auto choose = [&](auto is_better, auto belongs) {
    auto best = rest.end();
    for (auto it = rest.begin(); it != rest.end(); ++it) {
      if (belongs(*it) && (best == rest.end() || is_better(*it, *best))) {
        best = it;
      }
    }
    if (best != rest.end() && chosen.size() < most) {
      chosen.push_back(*best);
      rest.erase(best);
    }
  };
  choose(std::greater<>(), [frame](std::int64_t t) { return t < frame; });
  choose(std::less<>(), [frame](std::int64_t t) { return t >= frame; });
  std::ranges::stable_sort(rest, {}, [frame](std::int64_t t) { return std::abs(t - frame); });
  chosen.insert(chosen.end(), rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(most - chosen.size()));
  return chosen;
}

}  // namespace

Selection select(std::int64_t frame, std::span<const std::int64_t> prompt_frames,
                 std::span<const std::int64_t> other_frames, const ModelSpec& spec, std::int64_t max_prompt_frames) {
  const std::vector<std::int64_t> selected = closest(frame, prompt_frames, max_prompt_frames);
  std::set<std::int64_t> ordinary(other_frames.begin(), other_frames.end());
  ordinary.insert(prompt_frames.begin(), prompt_frames.end());
  for (const std::int64_t t : selected) {
    ordinary.erase(t);
  }
  Selection selection;
  for (const std::int64_t t : selected) {
    selection.rows.emplace_back(t, static_cast<std::int32_t>(spec.num_maskmem - 1));
    if (t <= frame) {
      selection.pointers.emplace_back(t, frame - t);
    }
  }
  for (std::int64_t back = spec.num_maskmem - 1; back > 0; --back) {
    if (ordinary.contains(frame - back)) {
      selection.rows.emplace_back(frame - back, static_cast<std::int32_t>(back - 1));
    }
  }
  for (std::int64_t back = 1; back < spec.max_object_pointers && back <= frame; ++back) {
    if (ordinary.contains(frame - back)) {
      selection.pointers.emplace_back(frame - back, back);
    }
  }
  selection.pointer_span = std::max<std::int64_t>(spec.max_object_pointers - 1, 1);
  return selection;
}

}  // namespace fastsam2
