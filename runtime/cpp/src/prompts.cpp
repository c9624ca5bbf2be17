#include "prompts.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace fastsam2 {

namespace {

std::string text_of(float x, float y) {
  return "x=" + std::to_string(x) + ", y=" + std::to_string(y);
}

std::vector<std::array<float, 2>> corners_and_points(const Prompt& prompt) {
  std::vector<std::array<float, 2>> all;
  if (prompt.box) {
    const auto& [x0, y0, x1, y1] = *prompt.box;
    all = {{x0, y0}, {x1, y1}};
  }
  all.insert(all.end(), prompt.points.begin(), prompt.points.end());
  return all;
}

}  // namespace

void check_object_id(std::int64_t id) {
  if (id < 1) {
    throw PromptError(
        expected("an object id that is an integer >= 1", std::to_string(id), "Number objects 1, 2, 3, ..."));
  }
}

void check_prompt(const Prompt& prompt, std::int64_t height, std::int64_t width) {
  if (prompt.mask) {
    if (prompt.box || !prompt.points.empty() || prompt.labels) {
      throw PromptError(
          expected("a mask alone, or points and box", "a mask with points, labels or a box", "Give one of the two"));
    }
    prompt.mask->check();
    if (prompt.mask->height != height || prompt.mask->width != width) {
      const std::string what = "a mask of the frame's size " + Shape{height, width}.text();
      throw PromptError(
          expected(what, Shape{prompt.mask->height, prompt.mask->width}.text(), "Give mask [H, W] in video pixels"));
    }
    return;
  }
  if (prompt.labels && prompt.labels->size() != prompt.points.size()) {
    const std::string what = "labels [" + std::to_string(prompt.points.size()) + "], one per point";
    throw PromptError(expected(what, std::to_string(prompt.labels->size()), "Give as many labels as points"));
  }
  const auto is_label = [](std::int32_t label) { return label == kLabelNegative || label == kLabelPositive; };
  if (prompt.labels && !std::ranges::all_of(*prompt.labels, is_label)) {
    throw PromptError(expected("labels 0 or 1", "another one", "1 marks the object, 0 its background"));
  }
  const auto all = corners_and_points(prompt);
  if (all.empty()) {
    throw PromptError(expected("a box, at least one point, or a mask", "nothing", "Give one of them"));
  }
  for (const auto& [x, y] : all) {
    if (!std::isfinite(x) || !std::isfinite(y)) {
      throw PromptError(expected("finite points and box", text_of(x, y), "Give pixels of the video frame"));
    }
  }
  if (prompt.box && !(all[0][0] < all[1][0] && all[0][1] < all[1][1])) {
    throw PromptError(expected("a box with x0 < x1 and y0 < y1", text_of(all[1][0], all[1][1]), "Give x0,y0,x1,y1"));
  }
  for (const auto& [x, y] : all) {
    if (x < 0 || y < 0 || x > static_cast<float>(width) || y > static_cast<float>(height)) {
      const std::string what = "0 <= x <= " + std::to_string(width) + " and 0 <= y <= " + std::to_string(height);
      throw PromptError(expected(what, text_of(x, y), "Give pixels of the video frame"));
    }
  }
}

ModelPoints to_model_points(const Prompt& prompt, std::int64_t height, std::int64_t width, std::int64_t image_size) {
  ModelPoints model;
  for (const auto& [x, y] : corners_and_points(prompt)) {
    model.xy.push_back(x / static_cast<float>(width) * static_cast<float>(image_size));
    model.xy.push_back(y / static_cast<float>(height) * static_cast<float>(image_size));
  }
  if (prompt.box) {
    model.labels = {kLabelBoxMin, kLabelBoxMax};
  }
  if (prompt.labels) {
    model.labels.insert(model.labels.end(), prompt.labels->begin(), prompt.labels->end());
  } else {
    model.labels.insert(model.labels.end(), prompt.points.size(), kLabelPositive);
  }
  return model;
}

}  // namespace fastsam2
