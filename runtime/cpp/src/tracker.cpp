#include "fastsam2/tracker.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "memory_bank.hpp"
#include "postprocess.hpp"
#include "preprocess.hpp"
#include "prompts.hpp"
#include "row_judge.hpp"
#include "stages.hpp"
#include "with_wait.hpp"

namespace fastsam2 {

namespace {

// What is known of one object on the newest frame; replaced as a whole, so that a failed call changes nothing.
struct Outcome {
  Tensor logits;         // float32 [L, L], holes filled: the answer, and the mask prompt of a correction
  Tensor memory_logits;  // float32 [L, L] to encode into memory; unfilled on frames that were only tracked
  Tensor score;          // float32 [1]
  Tensor iou;            // float32 [1]
  Tensor pointer;        // float32 [C]
  bool prompted = false;
  bool as_prompt = false;  // its memory counts as a prompt frame
  Tensor conditioned;      // float32 [1, N, C] from the memories before this frame; empty on the object's first frame
  ModelPoints points;      // given on this frame so far
};

struct Object {
  std::int64_t id;
  ObjectMemory memory;
  Outcome newest;
  Observation seen;  // the newest outcome on the host
  Tensor text;       // float32 [E] on the host, or empty
};

// An outcome that is to be reported; `object` is null while it is being added.
struct Reported {
  std::int64_t id;
  const Object* object;
  const Outcome* outcome;
};

struct Size {
  std::int64_t height, width;
  bool operator==(const Size&) const = default;
};

template <typename Member>
std::vector<Tensor> column(const std::vector<Reported>& reported, Member member) {
  std::vector<Tensor> tensors;
  tensors.reserve(reported.size());
  for (const Reported& one : reported) {
    tensors.push_back(one.outcome->*member);
  }
  return tensors;
}

Observation observed(const Result& result, std::size_t row, bool prompted) {
  const auto logits = result.low_res_logits[static_cast<std::int64_t>(row)].values<float>();
  const auto covered = std::ranges::count_if(logits, [](float logit) { return logit > 0; });
  return {result.scores.values<float>()[row], result.ious.values<float>()[row],
          static_cast<double>(covered) / static_cast<double>(logits.size()), prompted};
}

}  // namespace

class Tracker::Impl {
 public:
  Impl(std::shared_ptr<Backend> backend, const ModelSpec& spec, const TrackerOptions& options)
      : spec_(spec),
        options_(checked(options)),
        device_(checked(backend).device()),
        pruner_(options.prune, spec, device_),
        stages_(std::move(backend), spec, options.memory_budget_mb) {
    stages_.check_prompt_frames(options.corrections_as_prompts ? options.max_prompt_frames : 1);
  }

  Result step(const ImageView& frame) {
    frame.check();
    const Size size{frame.height, frame.width};
    if (size_ && *size_ != size) {
      const std::string what = "a frame of " + Shape{size_->height, size_->width}.text() + " (height, width)";
      throw PromptError(expected(what, Shape{size.height, size.width}.text(), "Call reset() before another video"));
    }
    Tensor pixels = device_.pixels(frame, spec_.image_size);
    const std::int64_t index = frame_ ? *frame_ + 1 : 0;
    std::optional<Features> features;
    std::optional<Judgement> judgement;
    std::vector<Outcome> outcomes(objects_.size());
    if (!objects_.empty()) {
      judgement = write_memories();
      features = stages_.encode_image(pixels);
      track(index, *features, outcomes);
    }
    std::vector<Reported> reported;
    for (std::size_t i = 0; i < objects_.size(); ++i) {
      reported.push_back({objects_[i]->id, objects_[i].get(), &outcomes[i]});
    }
    Result result = report(index, size, reported, judgement && judgement->cues ? &*judgement->cues : nullptr);
    for (std::size_t i = 0; i < objects_.size(); ++i) {
      objects_[i]->seen = observed(result, i, false);
      objects_[i]->newest = std::move(outcomes[i]);
    }
    frame_ = index;
    size_ = size;
    pixels_ = std::move(pixels);
    features_ = std::move(features);
    tokens_ = result.tokens;
    guard_ = judgement ? std::move(judgement->guard) : GuardState();
    return result;
  }

  Result add(std::int64_t id, const Prompt& prompt, std::span<const float> text) {
    check(prompt);
    check_object_id(id);
    if (find(id) != nullptr) {
      const std::string got = std::to_string(id) + ", which is being tracked";
      throw PromptError(expected("a new object id", got, "Use correct() for it, or remove() it first"));
    }
    Tensor embedding = text.empty() ? Tensor() : embedded(text);
    Outcome outcome = answer(prompt, nullptr, false);
    std::vector<Reported> reported = newest();
    reported.push_back({id, nullptr, &outcome});
    Result result = report_newest(reported);
    const Observation seen = observed(result, reported.size() - 1, true);
    ObjectMemory memory(spec_, pruner_, options_.max_prompt_frames);
    objects_.push_back(
        std::make_unique<Object>(Object{id, std::move(memory), std::move(outcome), seen, std::move(embedding)}));
    return result;
  }

  Result correct(std::int64_t id, const Prompt& prompt, bool append) {
    check(prompt);
    Object& object = known(id);
    if (append && (prompt.box || prompt.mask)) {
      throw PromptError(expected("points with append", "a box or a mask",
                                 "A box must come before any point: give it with append=False"));
    }
    Outcome outcome = answer(prompt, &object.newest, append);
    std::vector<Reported> reported = newest();
    const auto row = std::ranges::find(reported, id, &Reported::id);
    row->outcome = &outcome;
    Result result = report_newest(reported);
    object.seen = observed(result, static_cast<std::size_t>(row - reported.begin()), true);
    object.newest = std::move(outcome);
    return result;
  }

  void describe(std::int64_t id, std::span<const float> text) {
    Object& object = known(id);
    object.text = text.empty() ? Tensor() : embedded(text);
  }

  void remove(std::int64_t id) {
    known(id);
    std::erase_if(objects_, [id](const auto& object) { return object->id == id; });
  }

  void reset() {
    objects_.clear();
    frame_.reset();
    size_.reset();
    pixels_ = Tensor();
    features_.reset();
    tokens_.reset();
    guard_ = GuardState();
  }

  [[nodiscard]] std::vector<std::int64_t> ids() const {
    std::vector<std::int64_t> ids;
    for (const auto& object : objects_) {
      ids.push_back(object->id);
    }
    return ids;
  }

  [[nodiscard]] std::optional<std::int64_t> frame() const { return frame_; }
  [[nodiscard]] const ModelSpec& spec() const { return spec_; }
  [[nodiscard]] Device& device() const { return device_; }

 private:
  static const TrackerOptions& checked(const TrackerOptions& options) {
    if (options.max_prompt_frames < 1) {
      throw PromptError(
          expected("max_prompt_frames >= 1", std::to_string(options.max_prompt_frames), "The default is 4"));
    }
    if (options.fill_hole_area < 0) {
      throw PromptError(expected("fill_hole_area >= 0", std::to_string(options.fill_hole_area),
                                 "0 fills nothing; the official predictor uses 8 on CUDA"));
    }
    return options;
  }

  static Backend& checked(const std::shared_ptr<Backend>& backend) {
    if (!backend) {
      throw BackendError(expected("a backend", "none", "Open one for this bundle"));
    }
    return *backend;
  }

  void check(const Prompt& prompt) const {
    if (!size_) {
      throw PromptError(expected("a frame before the first prompt", "none",
                                 "Call step(frame) first: prompts refer to the newest frame"));
    }
    check_prompt(prompt, size_->height, size_->width);
  }

  [[nodiscard]] Object* find(std::int64_t id) const {
    const auto found = std::ranges::find(objects_, id, [](const auto& object) { return object->id; });
    return found == objects_.end() ? nullptr : found->get();
  }

  Object& known(std::int64_t id) const {
    Object* object = find(id);
    if (object == nullptr) {
      throw PromptError(expected("a tracked object id", std::to_string(id), "Use add() for a new object"));
    }
    return *object;
  }

  [[nodiscard]] Tensor embedded(std::span<const float> text) const {
    if (!pruner_.routes()) {
      throw PromptError(
          expected("no text without the router", "one", "Prune with policy router: only it reads descriptions"));
    }
    if (static_cast<std::int64_t>(text.size()) != spec_.text_dim) {
      const std::string what = "an embedding of " + std::to_string(spec_.text_dim) + " numbers";
      throw PromptError(expected(what, std::to_string(text.size()), "Use the text encoder of this bundle"));
    }
    return Tensor::of(text, {spec_.text_dim});
  }

  // Outcome of a prompt on the newest frame; `previous` is the object's outcome on it, null for a new object.
  Outcome answer(const Prompt& prompt, const Outcome* previous, bool append) {
    const Features& features = newest_features();
    const Tensor conditioned = previous == nullptr ? Tensor() : previous->conditioned;
    const bool as_prompt =
        previous == nullptr || !conditioned || options_.corrections_as_prompts || previous->as_prompt;
    if (prompt.mask) {
      const std::int64_t side = spec_.image_size;
      const Tensor mask = Tensor::empty(DType::Float32, {1, 1, side, side});
      mask_to_input(*prompt.mask, side, mask.fill<float>());
      return outcome(stages_.adopt_mask(features, mask), 0, true, as_prompt, conditioned);
    }
    ModelPoints points = to_model_points(prompt, size_->height, size_->width, spec_.image_size);
    if (append && previous != nullptr) {
      points.xy.insert(points.xy.begin(), previous->points.xy.begin(), previous->points.xy.end());
      points.labels.insert(points.labels.begin(), previous->points.labels.begin(), previous->points.labels.end());
    }
    const Decoded decoded =
        stages_.answer(features, points, conditioned, previous == nullptr ? Tensor() : previous->logits);
    Outcome answered = outcome(decoded, 0, true, as_prompt, conditioned);
    answered.points = std::move(points);
    return answered;
  }

  const Features& newest_features() {
    if (!features_) {
      features_ = stages_.encode_image(pixels_);
    }
    return *features_;
  }

  // Encodes the newest frame into every object's memory. Doing it twice gives the same state.
  Judgement write_memories() {
    const Features& features = newest_features();
    const std::vector<Reported> all = newest();
    const auto prompted =
        std::make_unique<bool[]>(objects_.size());  // NOLINT(*-avoid-c-arrays): vector<bool> has no span
    std::vector<Judged> judged;
    for (std::size_t i = 0; i < objects_.size(); ++i) {
      const Outcome& own = objects_[i]->newest;
      prompted[i] = own.prompted;
      judged.push_back({objects_[i]->id, own.memory_logits, own.score, own.iou, objects_[i]->seen, objects_[i]->text});
    }
    const Tensor rows =
        stages_.encode_memory(features, device_.stack(column(all, &Outcome::memory_logits)),
                              device_.concatenate(column(all, &Outcome::score)), {prompted.get(), objects_.size()});
    Judgement judgement = judge_rows(pruner_, stages_, spec_, *frame_, features, judged, guard_);
    for (std::size_t i = 0; i < objects_.size(); ++i) {
      const Outcome& own = objects_[i]->newest;
      objects_[i]->memory.write(*frame_, rows[static_cast<std::int64_t>(i)], own.pointer, own.as_prompt,
                                judgement.scores[i], judgement.keep);
    }
    return judgement;
  }

  // Outcomes of all objects on a new frame.
  void track(std::int64_t index, const Features& features, std::vector<Outcome>& outcomes) {
    std::vector<const ObjectMemory*> memories;
    for (const auto& object : objects_) {
      memories.push_back(&object->memory);
    }
    stages_.track(features, memories, index,
                  [&](std::span<const std::size_t> members, const Tensor& conditioned, const Decoded& decoded) {
                    for (std::size_t row = 0; row < members.size(); ++row) {
                      const auto at = static_cast<std::int64_t>(row);
                      outcomes[members[row]] = outcome(decoded, at, false, false, conditioned.slice(at, at + 1));
                    }
                  });
  }

  Outcome outcome(const Decoded& decoded, std::int64_t row, bool prompted, bool as_prompt, const Tensor& conditioned) {
    const Tensor raw = decoded.logits[row];
    Tensor filled = raw;
    if (options_.fill_hole_area > 0) {
      const Tensor host = device_.fetch(std::span(&raw, 1))[0];
      const Tensor own = Tensor::of(host.values<float>(), host.shape());
      fill_holes(own.fill<float>(), spec_.low_res(), options_.fill_hole_area);
      filled = device_.put(own);
    }
    return {filled,
            prompted ? filled : raw,
            decoded.score.slice(row, row + 1),
            decoded.iou.slice(row, row + 1),
            device_.copy(decoded.pointer[row]),
            prompted,
            as_prompt,
            conditioned,
            {}};
  }

  [[nodiscard]] std::vector<Reported> newest() const {
    std::vector<Reported> reported;
    for (const auto& object : objects_) {
      reported.push_back({object->id, object.get(), &object->newest});
    }
    return reported;
  }

  // The newest frame's result, with one outcome that is not kept yet.
  Result report_newest(const std::vector<Reported>& reported) {
    Result result = report(*frame_, *size_, reported, nullptr);
    result.tokens = tokens_;
    return result;
  }

  // Outcomes of a frame on the host. The only place that waits for the device.
  Result report(std::int64_t frame, const Size& size, const std::vector<Reported>& reported, const Cues* cues) {
    Result result;
    result.frame = frame;
    for (const Reported& one : reported) {
      result.ids.push_back(one.id);
      result.rows_held.push_back(one.object == nullptr ? 0 : one.object->memory.rows_held());
      result.bytes_held.push_back(one.object == nullptr ? 0 : one.object->memory.bytes_held());
    }
    if (reported.empty()) {
      device_.fetch({});  // every step ends with a wait, after which memory of copies is used again
      result.masks = Tensor::empty(DType::Bool, {0, size.height, size.width});
      result.low_res_logits = Tensor::empty(DType::Float32, {0, spec_.low_res(), spec_.low_res()});
      result.scores = result.ious = Tensor::empty(DType::Float32, {0});
      return result;
    }
    const Tensor logits = device_.stack(column(reported, &Outcome::logits));
    std::vector<Tensor> wanted{device_.masks(logits, size.height, size.width), logits,
                               device_.stack(column(reported, &Outcome::score)).reshape({logits.size()}),
                               device_.stack(column(reported, &Outcome::iou)).reshape({logits.size()})};
    if (cues != nullptr) {
      for (const Tensor& cue : {device_.stack(cues->scores), cues->uncertainty, cues->relevance, cues->context}) {
        wanted.push_back(cue);
      }
    }
    const std::vector<Tensor> host = device_.fetch(wanted);
    result.masks = host[0];
    result.low_res_logits = host[1];
    result.scores = host[2];
    result.ious = host[3];
    if (cues != nullptr) {
      result.tokens = TokenReport{cues->frame, cues->ids, cues->keep, cues->alarms, host[4], host[5], host[6], host[7]};
    }
    return result;
  }

  ModelSpec spec_;
  TrackerOptions options_;
  Device& device_;
  Pruner pruner_;
  Stages stages_;
  std::vector<std::unique_ptr<Object>> objects_;  // in the order they were added
  std::optional<std::int64_t> frame_;
  std::optional<Size> size_;
  Tensor pixels_;
  std::optional<Features> features_;
  GuardState guard_;
  std::optional<TokenReport> tokens_;
};

Tracker::Tracker(std::shared_ptr<Backend> backend, const ModelSpec& spec, const TrackerOptions& options)
    : impl_(std::make_unique<Impl>(std::move(backend), spec, options)) {}
Tracker::Tracker(Tracker&&) noexcept = default;
Tracker& Tracker::operator=(Tracker&&) noexcept = default;
Tracker::~Tracker() = default;

Result Tracker::step(const ImageView& frame) {
  return with_wait(impl_->device(), [&] { return impl_->step(frame); });
}
Result Tracker::add(std::int64_t id, const Prompt& prompt, std::span<const float> text) {
  return with_wait(impl_->device(), [&] { return impl_->add(id, prompt, text); });
}
Result Tracker::correct(std::int64_t id, const Prompt& prompt, bool append) {
  return with_wait(impl_->device(), [&] { return impl_->correct(id, prompt, append); });
}
void Tracker::describe(std::int64_t id, std::span<const float> text) {
  impl_->describe(id, text);
}
void Tracker::remove(std::int64_t id) {
  impl_->remove(id);
}
void Tracker::reset() {
  impl_->reset();
}
std::vector<std::int64_t> Tracker::ids() const {
  return impl_->ids();
}
std::optional<std::int64_t> Tracker::frame() const {
  return impl_->frame();
}
const ModelSpec& Tracker::spec() const {
  return impl_->spec();
}

}  // namespace fastsam2
