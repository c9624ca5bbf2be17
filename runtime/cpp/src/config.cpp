#include "fastsam2/config.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <functional>

#include "fastsam2/errors.hpp"

namespace fastsam2 {

namespace {

std::string text_of(double value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

// Six decimals, as Python's round(value, 6): the exact decimal expansion, ties to even.
double rounded(double value) {
  std::array<char, 64> text{};
  const char* end = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, 6).ptr;
  double result = 0;
  std::from_chars(text.data(), end, result);
  return result;
}

}  // namespace

std::optional<std::int64_t> static_size(const ModelSpec& spec, std::string_view axis) {
  if (axis.size() == 1 && std::string_view("BKMPQTR").find(axis[0]) != std::string_view::npos) {
    return std::nullopt;
  }
  if (axis == "S") return spec.image_size;
  if (axis == "N") return spec.tokens();
  if (axis == "L") return spec.low_res();
  if (axis == "L/2") return spec.low_res() / 2;
  if (axis == "C") return spec.hidden_dim;
  if (axis == "C/4") return spec.hidden_dim / 4;
  if (axis == "C/8") return spec.hidden_dim / 8;
  if (axis == "D") return spec.memory_dim;
  if (axis == "E") return spec.text_dim;
  if (axis == "I") return spec.crop_size;
  std::int64_t size = 0;
  const auto [end, error] = std::from_chars(axis.data(), axis.data() + axis.size(), size);
  if (error != std::errc() || end != axis.data() + axis.size()) {
    throw InternalError(expected("an axis symbol of the contract", axis, "Teach static_size() the new one"));
  }
  return size;
}

std::int64_t bucket_rows(double fraction, std::int64_t tokens_per_frame) {
  const double rows = std::ceil(rounded(fraction * static_cast<double>(tokens_per_frame)));
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(rows));
}

void Prune::check() const {
  if (keep && tokens) {
    const std::string got = "keep=" + text_of(*keep) + " and tokens=" + std::to_string(*tokens);
    throw PromptError(expected("keep or tokens", got, "Give one of the two"));
  }
  if (keep && !(*keep > 0.0 && *keep <= 1.0)) {
    throw PromptError(expected("keep in (0, 1]", text_of(*keep), "Use 0.05 to keep 5 % of a frame's rows"));
  }
  if (tokens && *tokens < 1) {
    const std::string todo = "Use the number of rows to keep of each frame";
    throw PromptError(expected("tokens >= 1", std::to_string(*tokens), todo));
  }
  const bool ascending = std::ranges::adjacent_find(buckets, std::greater_equal<>()) == buckets.end();
  const bool numbers = std::ranges::all_of(buckets, [](double b) { return std::isfinite(b); });
  if (buckets.empty() || !numbers || !ascending || buckets.front() <= 0 || buckets.back() != 1.0) {
    throw PromptError(expected("ascending bucket fractions in (0, 1] ending in 1.0", "others", "Leave them out"));
  }
  if (policy == PrunePolicy::Dense && ((keep && *keep != 1.0) || tokens)) {
    throw PromptError(expected("no budget below 1.0 with policy dense", "one", "Name a policy, for example mask"));
  }
  if (policy == PrunePolicy::Pool2x2 && ((keep && *keep != 0.25) || tokens)) {
    throw PromptError(
        expected("keep 0.25 or none with policy pool2x2", "another budget", "2x2 pooling always keeps a quarter"));
  }
  if (guard && !scores_rows()) {
    throw PromptError(
        expected("guard with a policy that has a budget", name_of(policy), "Name another policy, or leave it out"));
  }
}

std::int64_t Prune::rows(std::int64_t tokens_per_frame) const {
  if (policy == PrunePolicy::Pool2x2) {
    return tokens_per_frame / 4;
  }
  if (tokens && *tokens > tokens_per_frame) {
    const std::string what = "at most " + std::to_string(tokens_per_frame) + " tokens";
    throw PromptError(expected(what, std::to_string(*tokens), "This model's frames have no more"));
  }
  const std::int64_t wanted = tokens ? *tokens : bucket_rows(keep.value_or(1.0), tokens_per_frame);
  for (const double bucket : buckets) {
    if (const std::int64_t rows = bucket_rows(bucket, tokens_per_frame); rows >= wanted) {
      return rows;
    }
  }
  return tokens_per_frame;
}

std::vector<std::int64_t> Prune::budgets(std::int64_t tokens_per_frame) const {
  std::vector<std::int64_t> all{rows(tokens_per_frame)};
  for (const double bucket : guard ? buckets : std::vector<double>{}) {
    if (const std::int64_t rows = bucket_rows(bucket, tokens_per_frame); rows > all.back()) {
      all.push_back(rows);
    }
  }
  return all;
}

}  // namespace fastsam2
