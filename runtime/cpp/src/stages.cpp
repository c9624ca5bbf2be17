#include "stages.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <string>

namespace fastsam2 {

namespace {

// Estimated peak bytes of one object inside a graph; see `activation_bytes` in runtime/stages.py.
std::int64_t activation_bytes(GraphRole role, const ModelSpec& spec, std::int64_t rows) {
  const std::int64_t hidden = spec.hidden_dim;
  const std::int64_t tokens = spec.tokens();
  const std::int64_t low = spec.low_res() * spec.low_res();
  switch (role) {
    case GraphRole::MemoryAttention:
      return 4 * (rows * (2 * hidden + 4 * spec.memory_dim) + tokens * 14 * hidden);
    case GraphRole::MaskDecoder:
      return 4 * (low * (3 * hidden / 8 + 3 * hidden / 16 + 8) + tokens * 8 * hidden);
    case GraphRole::Router:
      return 4 * (low * 2 + tokens * hidden);
    default:
      return 4 * (spec.image_size * spec.image_size * 5 + tokens * 10 * hidden);
  }
}

// The outputs of one graph run in several batches.
class Parts {
 public:
  explicit Parts(std::size_t columns) : columns_(columns) {}
  void add(std::size_t column, const Tensor& part) { columns_[column].push_back(part); }
  Tensor whole(std::size_t column, Device& device) const { return device.concatenate(columns_[column]); }

 private:
  std::vector<std::vector<Tensor>> columns_;
};

}  // namespace

Stages::Stages(std::shared_ptr<Backend> backend, const ModelSpec& spec, std::int64_t memory_budget_mb)
    : backend_(std::move(backend)), spec_(spec) {
  constexpr std::int64_t kMostMb = 1 << 24;
  if (memory_budget_mb < 1 || memory_budget_mb > kMostMb) {
    throw PromptError(
        expected("memory_budget_mb in 1..16777216", std::to_string(memory_budget_mb), "The default is 4096"));
  }
  budget_bytes_ = memory_budget_mb << 20;
  reader_ = backend_->device().memory_reader(spec);
}

void Stages::check_prompt_frames(std::int64_t count) const {
  const std::optional<std::int64_t> room = device().max_prompt_frames();
  if (room && count > *room) {
    throw BackendError(expected("engines with room for " + std::to_string(count) + " prompt frames of an object",
                                "room for " + std::to_string(*room),
                                "Build them again with --max-prompt-frames " + std::to_string(count) +
                                    ", or give max_prompt_frames=" + std::to_string(*room) +
                                    ": older ones become ordinary frames"));
  }
}

std::vector<Stages::Range> Stages::chunks(GraphRole role, std::int64_t count, std::int64_t rows) const {
  std::int64_t size = std::max<std::int64_t>(1, budget_bytes_ / activation_bytes(role, spec_, rows));
  size = std::min(size, device().max_objects(role).value_or(size));
  std::vector<Range> ranges;
  for (std::int64_t start = 0; start < count; start += size) {
    ranges.emplace_back(start, std::min(start + size, count));
  }
  return ranges;
}

bool Stages::multimask(std::int64_t points, bool first_frame) const {
  const bool in_range = spec_.multimask_min_points <= points && points <= spec_.multimask_max_points;
  return in_range && (first_frame || spec_.multimask_for_tracking);
}

Features Stages::encode_image(const Tensor& pixels) {
  const std::array<NamedTensor, 1> inputs{{{"pixels", pixels}}};
  std::vector<Tensor> out = run(GraphRole::ImageEncoder, inputs);
  return {out[0], out[1], out[2]};
}

Tensor Stages::condition(const Features& features, std::span<const Reading> readings) {
  std::int64_t rows = 0;
  for (const Reading::Frame& frame : readings[0].frames) {
    rows += frame.position.size();
  }
  Parts parts(1);
  for (const auto& [start, stop] :
       chunks(GraphRole::MemoryAttention, static_cast<std::int64_t>(readings.size()), rows)) {
    const auto part = readings.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(stop - start));
    std::vector<NamedTensor> inputs{{"tokens", features.tokens}};
    std::ranges::move(reader_->read(part), std::back_inserter(inputs));
    parts.add(0, run(GraphRole::MemoryAttention, inputs)[0]);
  }
  return parts.whole(0, device());
}

Decoded Stages::decode(const Features& features, const Tensor& conditioned, const DecodeOptions& options) {
  const std::int64_t side = spec_.low_res();
  Device& d = device();
  Parts parts(4);
  for (const Range& range : chunks(GraphRole::MaskDecoder, conditioned.size())) {
    const std::int64_t start = range.first;
    const std::int64_t stop = range.second;
    const std::int64_t n = stop - start;
    const auto part = [&](const Tensor& given, Shape shape, double otherwise, DType type) {
      return given ? given.slice(start, stop) : d.full(shape, otherwise, type);
    };
    const std::array<NamedTensor, 9> inputs{{
        {"conditioned", conditioned.slice(start, stop)},
        {"high_res_0", features.high_res_0},
        {"high_res_1", features.high_res_1},
        {"points", part(options.points, {n, 1, 2}, 0, DType::Float32)},
        {"labels", part(options.labels, {n, 1}, kLabelPadding, DType::Int32)},
        {"mask_prompt", part(options.previous_logits, {n, side, side}, 0, DType::Float32).reshape({n, 1, side, side})},
        {"has_mask", d.full({n}, options.previous_logits ? 1 : 0, DType::Bool)},
        {"multimask", d.full({n}, options.multimask ? 1 : 0, DType::Bool)},
        {"first_frame", d.full({n}, options.first_frame ? 1 : 0, DType::Bool)},
    }};
    const std::vector<Tensor> out = run(GraphRole::MaskDecoder, inputs);
    parts.add(0, out[0].reshape({n, side, side}));
    for (std::size_t column = 1; column < 4; ++column) {
      parts.add(column, out[column]);
    }
  }
  return {parts.whole(0, d), parts.whole(1, d), parts.whole(2, d), parts.whole(3, d)};
}

void Stages::track(const Features& features, std::span<const ObjectMemory* const> memories, std::int64_t frame,
                   const Answer& answer) {
  struct Group {
    std::pair<std::int64_t, std::int64_t> counts;
    std::vector<std::size_t> members;
    std::vector<Reading> readings;
  };
  std::vector<Group> groups;  // in the order of their first members
  for (std::size_t index = 0; index < memories.size(); ++index) {
    const Selection selection = memories[index]->selection(frame);
    const auto counts = memories[index]->counts(selection);
    auto group = std::ranges::find(groups, counts, &Group::counts);
    if (group == groups.end()) {
      group = groups.insert(groups.end(), Group{counts, {}, {}});
    }
    group->members.push_back(index);
    group->readings.push_back(memories[index]->reading(selection));
  }
  for (const Group& group : groups) {
    const Tensor conditioned = condition(features, group.readings);
    DecodeOptions options;
    options.multimask = multimask(0, false);
    answer(group.members, conditioned, decode(features, conditioned, options));
  }
}

Decoded Stages::answer(const Features& features, const ModelPoints& points, const Tensor& conditioned,
                       const Tensor& previous_logits) {
  const auto count = static_cast<std::int64_t>(points.labels.size());
  DecodeOptions options;
  options.first_frame = !conditioned;
  options.multimask = multimask(count, options.first_frame);
  options.points = Tensor::of(std::span<const float>(points.xy), {1, count, 2});
  options.labels = Tensor::of(std::span<const std::int32_t>(points.labels), {1, count});
  if (previous_logits) {
    options.previous_logits =
        device().clamp(previous_logits, kMaskLogitClamp).reshape({1, spec_.low_res(), spec_.low_res()});
  }
  return decode(features, conditioned ? conditioned : features.tokens, options);
}

Decoded Stages::adopt_mask(const Features& features, const Tensor& mask) {
  const std::int64_t count = mask.size();
  const std::int64_t side = spec_.low_res();
  const std::array<NamedTensor, 4> inputs{{
      {"tokens", features.tokens},
      {"high_res_0", features.high_res_0},
      {"high_res_1", features.high_res_1},
      {"mask", mask},
  }};
  const std::vector<Tensor> out = run(GraphRole::MaskPrompt, inputs);
  return {out[0].reshape({count, side, side}), device().full({count}, 1, DType::Float32), out[1], out[2]};
}

Tensor Stages::encode_memory(const Features& features, const Tensor& logits, const Tensor& scores,
                             std::span<const bool> prompted) {
  const std::int64_t side = spec_.low_res();
  const Tensor flags = Tensor::of(prompted, {logits.size()});
  Parts parts(1);
  for (const auto& [start, stop] : chunks(GraphRole::MemoryEncoder, logits.size())) {
    const std::array<NamedTensor, 4> inputs{{
        {"tokens", features.tokens},
        {"low_res_logits", logits.slice(start, stop).reshape({stop - start, 1, side, side})},
        {"object_score", scores.slice(start, stop)},
        {"prompted", flags.slice(start, stop)},
    }};
    parts.add(0, run(GraphRole::MemoryEncoder, inputs)[0]);
  }
  return parts.whole(0, device());
}

Routed Stages::route(const Features& features, const Tensor& logits, const Tensor& scores, const Tensor& ious,
                     const Tensor& uncertainty, std::span<const Tensor> texts) {
  const std::int64_t side = spec_.low_res();
  const auto count = static_cast<std::int64_t>(texts.size());
  const Tensor text = Tensor::empty(DType::Float32, {count, spec_.text_dim});
  const Tensor given = Tensor::empty(DType::Bool, {count});
  std::ranges::fill(text.fill<float>(), 0.0F);
  for (std::int64_t row = 0; row < count; ++row) {
    const Tensor& own = texts[static_cast<std::size_t>(row)];
    given.fill<bool>()[static_cast<std::size_t>(row)] = static_cast<bool>(own);
    if (own) {
      std::ranges::copy(own.values<float>(), text[row].fill<float>().begin());
    }
  }
  Parts parts(2);
  Tensor context;
  for (const auto& [start, stop] : chunks(GraphRole::Router, count)) {
    const std::array<NamedTensor, 7> inputs{{
        {"tokens", features.tokens},
        {"text", text.slice(start, stop)},
        {"has_text", given.slice(start, stop)},
        {"low_res_logits", logits.slice(start, stop).reshape({stop - start, 1, side, side})},
        {"uncertainty", uncertainty.slice(start, stop)},
        {"object_score", scores.slice(start, stop)},
        {"iou", ious.slice(start, stop)},
    }};
    const std::vector<Tensor> out = run(GraphRole::Router, inputs);
    parts.add(0, out[0]);
    parts.add(1, out[1]);
    context = out[2];
  }
  return {parts.whole(0, device()), parts.whole(1, device()), context[0]};
}

std::vector<Tensor> Stages::run(GraphRole role, std::span<const NamedTensor> inputs) {
  std::vector<Tensor> outputs = backend_->run(role, inputs);
  check_outputs(role, spec_, inputs, outputs);
  return outputs;
}

}  // namespace fastsam2
