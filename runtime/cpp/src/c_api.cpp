// The C interface over the C++ one: copies structs of any size in, keeps exceptions in.
#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>

#include "callback_backend.hpp"
#include "fastsam2/bundle.hpp"
#include "fastsam2/fastsam2.h"
#include "fastsam2/open_backend.hpp"
#include "fastsam2/tracker.hpp"
#include "handles.hpp"

namespace fastsam2 {

namespace {

static_assert(static_cast<int>(PrunePolicy::Dense) == FASTSAM2_DENSE &&
              static_cast<int>(PrunePolicy::Random) == FASTSAM2_RANDOM &&
              static_cast<int>(PrunePolicy::Uniform) == FASTSAM2_UNIFORM &&
              static_cast<int>(PrunePolicy::Mask) == FASTSAM2_MASK &&
              static_cast<int>(PrunePolicy::Pool2x2) == FASTSAM2_POOL2X2 &&
              static_cast<int>(PrunePolicy::Router) == FASTSAM2_ROUTER &&
              kPrunePolicyNames.size() == FASTSAM2_ROUTER + 1);
static_assert(static_cast<int>(BackendName::OnnxRuntime) + 1 == FASTSAM2_BACKEND_ONNXRUNTIME &&
              static_cast<int>(BackendName::TensorRT) + 1 == FASTSAM2_BACKEND_TENSORRT &&
              static_cast<int>(BackendName::TensorRTRTX) + 1 == FASTSAM2_BACKEND_TENSORRT_RTX &&
              kBackendNames.size() == FASTSAM2_BACKEND_TENSORRT_RTX);
static_assert(sizeof(bool) == 1, "masks are handed out as bytes");

// The caller was compiled for another version.
class AbiError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct OpenBundle {
  Manifest manifest;
  std::shared_ptr<Backend> backend;
  std::shared_mutex mutex;  // of `closed`; shared while a graph runs
  bool closed = false;
};

struct OpenTracker {
  std::mutex mutex;
  Tracker tracker;
  bool closed = false;
};

// Waits for calls on what has no handle any more; those that have yet to begin are refused. The callback of the caller
// is not called after that.
template <typename Object>
void wait_for_calls(Object& closed) {
  const std::lock_guard lock(closed.mutex);
  closed.closed = true;
}

template <typename Object>
void check_open(const Object& object, std::uint64_t id) {
  if (object.closed) {
    refuse_handle(id);
  }
}

Handles<OpenBundle>& bundles() {
  static auto* handles =
      new Handles<OpenBundle>();  // lives as long as the process: other threads may still call while it ends
  return *handles;
}

Handles<OpenTracker>& trackers() {
  static auto* handles = new Handles<OpenTracker>();
  return *handles;
}

Handles<const Result>& results() {
  static auto* handles = new Handles<const Result>();
  return *handles;
}

thread_local std::array<char, 2048> last_error{};

fastsam2_status failed(fastsam2_status status, const char* message) noexcept {
  std::strncpy(last_error.data(), message, last_error.size() - 1);
  return status;
}

template <typename Body>
fastsam2_status guarded(Body body) noexcept {
  try {
    body();
    return FASTSAM2_OK;
  } catch (const HandleError& error) {
    return failed(FASTSAM2_ERROR_HANDLE, error.what());
  } catch (const AbiError& error) {
    return failed(FASTSAM2_ERROR_ABI, error.what());
  } catch (const BundleError& error) {
    return failed(FASTSAM2_ERROR_BUNDLE, error.what());
  } catch (const BackendError& error) {
    return failed(FASTSAM2_ERROR_BACKEND, error.what());
  } catch (const PromptError& error) {
    return failed(FASTSAM2_ERROR_PROMPT, error.what());
  } catch (const std::bad_alloc&) {
    return failed(FASTSAM2_ERROR_MEMORY,
                  "expected memory for this call, got none. Close results and trackers that are not needed.");
  } catch (const std::exception& error) {
    return failed(FASTSAM2_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failed(FASTSAM2_ERROR_INTERNAL, "expected an exception of a known kind, got another. Please report this.");
  }
}

void check_given(const void* pointer, std::string_view what) {
  if (pointer == nullptr) {
    throw PromptError(expected(what, "a null pointer", "Pass its address"));
  }
}

// A caller's struct as this release knows it; what the caller's lacks reads as zero.
template <typename Struct>
Struct known(const Struct* given, std::string_view what) {
  check_given(given, what);
  constexpr std::size_t kHeader = 2 * sizeof(std::uint32_t);
  const std::uint32_t size = given->struct_size;
  if (size < kHeader || size > (1U << 16) || size % alignof(Struct) != 0) {
    throw AbiError(
        expected("struct_size = sizeof of " + std::string(what), std::to_string(size), "Set it before the call"));
  }
  Struct own{};
  std::memcpy(&own, given, std::min<std::size_t>(size, sizeof(Struct)));
  return own;
}

// Writes what the caller's struct has room for.
template <typename Struct>
void answer(Struct own, Struct* to) {
  const std::uint32_t size = to->struct_size;
  own.struct_size = size;
  std::memcpy(to, &own, std::min<std::size_t>(size, sizeof(Struct)));
}

void check_backend(const fastsam2_bundle_options& own) {
  if (own.backend > kBackendNames.size()) {
    throw PromptError(expected("a fastsam2_backend", std::to_string(own.backend), "Use one of the constants"));
  }
  if (own.backend == FASTSAM2_BACKEND_CALLBACK && own.run == nullptr) {
    throw BackendError(expected("a function that runs graphs", "a null pointer", "Set run, or choose another backend"));
  }
  if (own.backend != FASTSAM2_BACKEND_CALLBACK && own.run != nullptr) {
    const std::string got = "a function and backend " + std::to_string(own.backend);
    throw PromptError(expected("run with FASTSAM2_BACKEND_CALLBACK alone", got, "Leave run or backend at zero"));
  }
  constexpr auto kMost = static_cast<std::uint32_t>(std::numeric_limits<int>::max());
  if (own.threads > kMost || own.gpu > kMost) {
    const std::string got = std::to_string(own.threads) + " and " + std::to_string(own.gpu);
    throw PromptError(expected("threads and gpu below 2^31", got, "0 is the default of both"));
  }
}

TrackerOptions tracker_options(const fastsam2_tracker_options* given) {
  TrackerOptions options;
  if (given == nullptr) {
    return options;
  }
  const fastsam2_tracker_options own = known(given, "fastsam2_tracker_options");
  if (own.policy >= kPrunePolicyNames.size()) {
    throw PromptError(expected("a fastsam2_policy", std::to_string(own.policy), "Use one of the constants"));
  }
  options.prune.policy = static_cast<PrunePolicy>(own.policy);
  if (own.keep != 0.0) {
    options.prune.keep = own.keep;
  }
  if (own.tokens != 0) {
    options.prune.tokens = own.tokens;
  }
  options.prune.protect.clear();
  if (own.prune_prompt_frames == 0) {
    options.prune.protect.push_back(Protect::Prompt);
  }
  if (own.prune_newest_frame == 0) {
    options.prune.protect.push_back(Protect::Newest);
  }
  options.prune.seed = own.seed;
  options.prune.guard = own.guard != 0;
  options.corrections_as_prompts = own.corrections_as_prompts != 0;
  options.max_prompt_frames = own.max_prompt_frames == 0 ? options.max_prompt_frames : own.max_prompt_frames;
  options.fill_hole_area = own.fill_hole_area;
  options.memory_budget_mb = own.memory_budget_mb == 0 ? options.memory_budget_mb : own.memory_budget_mb;
  return options;
}

ImageView image_view(const fastsam2_image* given) {
  const fastsam2_image own = known(given, "fastsam2_image");
  check_given(own.pixels, "pixels");
  if (own.format != FASTSAM2_RGB8 && own.format != FASTSAM2_BGR8) {
    throw PromptError(
        expected("pixel format FASTSAM2_RGB8 or FASTSAM2_BGR8", std::to_string(own.format), "Convert the frame"));
  }
  const std::uint64_t line = std::uint64_t{3} * own.width;
  const std::uint64_t row = own.row_bytes == 0 ? line : own.row_bytes;
  if (row > std::numeric_limits<std::uint32_t>::max()) {
    throw PromptError(expected("row_bytes below 2^32", std::to_string(row), "Give the bytes from one row to the next"));
  }
  const ImageView view{own.pixels, own.height, own.width, static_cast<std::ptrdiff_t>(row),
                       static_cast<PixelFormat>(own.format)};
  view.check();
  const std::uint64_t needed = (own.height - std::uint64_t{1}) * row + line;
  if (own.pixel_bytes < needed) {
    throw PromptError(expected("at least " + std::to_string(needed) + " pixel_bytes", std::to_string(own.pixel_bytes),
                               "Give height, width and row_bytes of the frame that pixels points to"));
  }
  return view;
}

Prompt prompt_view(const fastsam2_prompt* given) {
  const fastsam2_prompt own = known(given, "fastsam2_prompt");
  Prompt prompt;
  if (own.box != nullptr) {
    prompt.box = {own.box[0], own.box[1], own.box[2], own.box[3]};
  }
  if (own.point_count != 0) {
    check_given(own.points, "points");
    static_assert(sizeof(std::array<float, 2>) == 2 * sizeof(float));
    prompt.points = {reinterpret_cast<const std::array<float, 2>*>(own.points), own.point_count};
    if (own.labels != nullptr) {
      prompt.labels = {own.labels, own.point_count};
    }
  }
  if (own.mask != nullptr) {
    prompt.mask = MaskView{own.mask, own.mask_height, own.mask_width, static_cast<std::ptrdiff_t>(own.mask_width)};
  }
  return prompt;
}

// Runs one call of a tracker that answers a result.
template <typename Call>
fastsam2_status with_result(fastsam2_tracker tracker, fastsam2_result* result, Call call) noexcept {
  return guarded([&] {
    check_given(result, "a place for the result");
    const auto open = trackers().at(tracker.id);
    const std::lock_guard lock(open->mutex);
    check_open(*open, tracker.id);
    result->id = results().open(std::make_shared<const Result>(call(open->tracker)));
  });
}

template <typename Call>
fastsam2_status with_tracker(fastsam2_tracker tracker, Call call) noexcept {
  return guarded([&] {
    const auto open = trackers().at(tracker.id);
    const std::lock_guard lock(open->mutex);
    check_open(*open, tracker.id);
    call(open->tracker);
  });
}

}  // namespace

}  // namespace fastsam2

using namespace fastsam2;

uint32_t fastsam2_abi_version(void) {
  return FASTSAM2_ABI_VERSION;
}

const char* fastsam2_last_error(void) {
  return last_error.data();
}

fastsam2_status fastsam2_bundle_open(const char* folder, const fastsam2_bundle_options* options,
                                     fastsam2_bundle* bundle) {
  return guarded([&] {
    check_given(folder, "the folder of a bundle");
    check_given(bundle, "a place for the bundle");
    const fastsam2_bundle_options own = known(options, "fastsam2_bundle_options");
    if (own.abi_version != FASTSAM2_ABI_VERSION) {
      const std::string what = "abi_version " + std::to_string(FASTSAM2_ABI_VERSION);
      throw AbiError(expected(what, std::to_string(own.abi_version), "Compile against the header of this library"));
    }
    check_backend(own);
    auto open = std::make_shared<OpenBundle>();
    open->manifest = read_manifest(folder, own.skip_hashes == 0);
    if (own.backend == FASTSAM2_BACKEND_CALLBACK) {
      open->manifest.check_tracked(ExportTarget::Onnxruntime);
      open->backend = std::make_shared<CallbackBackend>(open->manifest.model, own.run, own.user);
    } else {
      open->backend = open_backend(static_cast<BackendName>(own.backend - 1), folder, open->manifest,
                                   {static_cast<int>(own.threads), static_cast<int>(own.gpu), own.cuda_graphs != 0});
    }
    bundle->id = bundles().open(std::move(open));
  });
}

fastsam2_status fastsam2_bundle_describe(fastsam2_bundle bundle, fastsam2_bundle_info* info) {
  return guarded([&] {
    const auto open = bundles().at(bundle.id);
    fastsam2_bundle_info own = known(info, "fastsam2_bundle_info");
    const Manifest& manifest = open->manifest;
    own.image_size = static_cast<std::uint32_t>(manifest.model.image_size);
    own.text_dim = static_cast<std::uint32_t>(manifest.model.text_dim);
    own.has_router = manifest.find(GraphRole::Router, open->backend->target()) != nullptr;
    own.has_text_encoder = manifest.find(GraphRole::TextEncoder, open->backend->target()) != nullptr;
    answer(own, info);
  });
}

fastsam2_status fastsam2_bundle_encode_text(fastsam2_bundle bundle, const int32_t* ids, uint32_t text_count,
                                            float* values, uint64_t value_count) {
  return guarded([&] {
    const auto open = bundles().at(bundle.id);
    check_given(ids, "token ids");
    check_given(values, "a place for the embeddings");
    open->manifest.graph(GraphRole::TextEncoder, open->backend->target());
    const ModelSpec& spec = open->manifest.model;
    const std::uint64_t needed = std::uint64_t{text_count} * static_cast<std::uint64_t>(spec.text_dim);
    if (value_count != needed) {
      throw PromptError(
          expected("room for " + std::to_string(needed) + " numbers", std::to_string(value_count), "Use text_dim"));
    }
    const std::shared_lock lock(open->mutex);
    check_open(*open, bundle.id);
    const Tensor text = encode_text(*open->backend, spec, {ids, std::size_t{text_count} * kClipContext});
    std::ranges::copy(text.values<float>(), values);
  });
}

fastsam2_status fastsam2_bundle_close(fastsam2_bundle bundle) {
  return guarded([&] { wait_for_calls(*bundles().close(bundle.id)); });
}

fastsam2_status fastsam2_tracker_open(fastsam2_bundle bundle, const fastsam2_tracker_options* options,
                                      fastsam2_tracker* tracker) {
  return guarded([&] {
    check_given(tracker, "a place for the tracker");
    const auto open = bundles().at(bundle.id);
    const TrackerOptions own = tracker_options(options);
    if (own.prune.policy == PrunePolicy::Router) {
      open->manifest.graph(GraphRole::Router, open->backend->target());
    }
    auto made = std::shared_ptr<OpenTracker>(new OpenTracker{{}, Tracker(open->backend, open->manifest.model, own)});
    tracker->id = trackers().open(std::move(made));
  });
}

fastsam2_status fastsam2_tracker_step(fastsam2_tracker tracker, const fastsam2_image* frame, fastsam2_result* result) {
  return with_result(tracker, result, [&](Tracker& own) { return own.step(image_view(frame)); });
}

fastsam2_status fastsam2_tracker_add(fastsam2_tracker tracker, int64_t id, const fastsam2_prompt* prompt,
                                     fastsam2_result* result) {
  return with_result(tracker, result, [&](Tracker& own) { return own.add(id, prompt_view(prompt)); });
}

fastsam2_status fastsam2_tracker_correct(fastsam2_tracker tracker, int64_t id, const fastsam2_prompt* prompt,
                                         int32_t append, fastsam2_result* result) {
  return with_result(tracker, result, [&](Tracker& own) { return own.correct(id, prompt_view(prompt), append != 0); });
}

fastsam2_status fastsam2_tracker_describe(fastsam2_tracker tracker, int64_t id, const float* values,
                                          uint64_t value_count) {
  return with_tracker(tracker, [&](Tracker& own) {
    if (value_count != 0) {
      check_given(values, "an embedding");
    }
    own.describe(id, {values, static_cast<std::size_t>(value_count)});
  });
}

fastsam2_status fastsam2_tracker_remove(fastsam2_tracker tracker, int64_t id) {
  return with_tracker(tracker, [&](Tracker& own) { own.remove(id); });
}

fastsam2_status fastsam2_tracker_reset(fastsam2_tracker tracker) {
  return with_tracker(tracker, [](Tracker& own) { own.reset(); });
}

fastsam2_status fastsam2_tracker_close(fastsam2_tracker tracker) {
  return guarded([&] { wait_for_calls(*trackers().close(tracker.id)); });
}

fastsam2_status fastsam2_result_read(fastsam2_result result, fastsam2_result_view* view) {
  return guarded([&] {
    const auto open = results().at(result.id);
    fastsam2_result_view own = known(view, "fastsam2_result_view");
    own.object_count = static_cast<std::uint32_t>(open->ids.size());
    own.frame = open->frame;
    own.height = static_cast<std::uint32_t>(open->masks.shape()[1]);
    own.width = static_cast<std::uint32_t>(open->masks.shape()[2]);
    own.low_res_side = static_cast<std::uint32_t>(open->low_res_logits.shape()[1]);
    own.ids = open->ids.data();
    own.masks = reinterpret_cast<const std::uint8_t*>(open->masks.values<bool>().data());
    own.scores = open->scores.values<float>().data();
    own.ious = open->ious.values<float>().data();
    own.low_res_logits = open->low_res_logits.values<float>().data();
    own.rows_held = open->rows_held.data();
    answer(own, view);
  });
}

fastsam2_status fastsam2_result_close(fastsam2_result result) {
  return guarded([&] { results().close(result.id); });
}
