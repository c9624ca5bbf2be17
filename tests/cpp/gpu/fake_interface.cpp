// The C++ tracker on a fake GPU for tests in Python (tests/cpp/gpu/fake.py): graphs run in a callback.
#include <algorithm>
#include <cstring>
#include <string>

#include "callback_backend.hpp"
#include "fake_gpu.hpp"
#include "fastsam2/bundle.hpp"
#include "fastsam2/tracker.hpp"
#include "gpu_backend.hpp"
#include "graphs.hpp"
#include "records.hpp"

namespace fastsam2::testing {
namespace {

thread_local std::string message;

// 0, or 1 with a message.
template <typename Call>
std::int32_t guarded(Call call) {
  try {
    call();
    return 0;
  } catch (const std::exception& error) {
    message = error.what();
    return 1;
  }
}

struct Session {
  std::shared_ptr<FakeGpu> gpu = std::make_shared<FakeGpu>();
  std::unique_ptr<CallbackBackend> graphs;
  gpu::GraphEngines* engines = nullptr;
  std::optional<Tracker> tracker;
  Result result;
};

std::unique_ptr<Session> opened(const ModelSpec& spec, ExportTarget target, std::int64_t most,
                                const TrackerOptions& options, fastsam2_run run) {
  auto session = std::make_unique<Session>();
  session->graphs = std::make_unique<CallbackBackend>(spec, run, nullptr);
  auto late =
      std::make_unique<LateEngines>(session->gpu, target, most == 0 ? std::nullopt : std::optional(most),
                                    [graphs = session->graphs.get()](GraphRole role, std::span<const NamedTensor> in,
                                                                     std::span<const NamedTensor> out) {
                                      const std::vector<Tensor> made = graphs->run(role, in);
                                      for (std::size_t i = 0; i < made.size(); ++i) {
                                        std::memcpy(out[i].tensor.data(), made[i].data(), made[i].nbytes());
                                      }
                                    });
  auto replayed = std::make_unique<gpu::GraphEngines>(std::move(late), session->gpu);
  session->engines = replayed.get();
  session->tracker.emplace(std::make_shared<gpu::GpuBackend>(session->gpu, std::move(replayed), spec), spec, options);
  return session;
}

}  // namespace
}  // namespace fastsam2::testing

using namespace fastsam2;           // NOLINT(google-build-using-namespace): this file is one interface
using namespace fastsam2::testing;  // NOLINT(google-build-using-namespace)

extern "C" {

const char* gpu_fake_message() {
  return message.c_str();
}

// Null with a message if it fails. `most` 0: any number of objects in one run; `keep` 0: all rows.
Session* gpu_fake_open(const char* folder, std::int32_t target, std::int64_t most, std::int32_t policy, double keep,
                       std::int64_t fill_hole_area, fastsam2_run run) {
  Session* session = nullptr;
  guarded([&] {
    TrackerOptions options;
    options.prune.policy = static_cast<PrunePolicy>(policy);
    if (keep != 0) {
      options.prune.keep = keep;
      options.prune.protect = {};
    }
    options.fill_hole_area = fill_hole_area;
    const ModelSpec spec = read_manifest(folder, false).model;
    session = opened(spec, static_cast<ExportTarget>(target), most, options, run).release();
  });
  return session;
}

void gpu_fake_close(Session* session) {
  delete session;
}

std::int32_t gpu_fake_step(Session* session, const std::uint8_t* pixels, std::int64_t height, std::int64_t width) {
  return guarded([&] { session->result = session->tracker->step({pixels, height, width, width * 3}); });
}

// A new object, or a correction; `box`, `points` and `mask` may be null.
std::int32_t gpu_fake_prompt(Session* session, std::int64_t id, std::int32_t corrects, std::int32_t append,
                             const float* box, const float* points, const std::int32_t* labels, std::int64_t count,
                             const std::uint8_t* mask, std::int64_t height, std::int64_t width) {
  return guarded([&] {
    Prompt prompt;
    if (box != nullptr) {
      prompt.box.emplace();
      std::copy(box, box + 4, prompt.box->begin());
    }
    std::vector<std::array<float, 2>> xy;
    for (std::int64_t i = 0; i < count; ++i) {
      xy.push_back({points[2 * i], points[2 * i + 1]});
    }
    prompt.points = xy;
    if (labels != nullptr) {
      prompt.labels = std::span(labels, static_cast<std::size_t>(count));
    }
    if (mask != nullptr) {
      prompt.mask = MaskView{mask, height, width, width};
    }
    session->result =
        corrects != 0 ? session->tracker->correct(id, prompt, append != 0) : session->tracker->add(id, prompt);
  });
}

std::int32_t gpu_fake_remove(Session* session, std::int64_t id) {
  return guarded([&] { session->tracker->remove(id); });
}

// Objects, height, width and side of the logits of the newest result; then its values.
void gpu_fake_sizes(Session* session, std::int64_t* sizes) {
  const Shape& masks = session->result.masks.shape();
  std::ranges::copy(masks, sizes);
  sizes[3] = session->result.low_res_logits.shape()[1];
}

void gpu_fake_read(Session* session, std::int64_t* ids, void* masks, void* logits, void* scores, void* ious) {
  const Result& result = session->result;
  std::ranges::copy(result.ids, ids);
  const auto copy = [](void* to, const Tensor& from) {
    if (from.nbytes() != 0) {
      std::memcpy(to, from.data(), from.nbytes());
    }
  };
  copy(masks, result.masks);
  copy(logits, result.low_res_logits);
  copy(scores, result.scores);
  copy(ious, result.ious);
}

// How often the GPU was called that way since the last `gpu_fake_clear`.
std::int64_t gpu_fake_count(Session* session, const char* call) {
  return session->gpu->count(call);
}

void gpu_fake_clear(Session* session) {
  session->gpu->calls.clear();
}

// 0 if the engines of a bundle are accepted.
std::int32_t gpu_fake_load_engines(const char* folder, const char* flavor, const char* version, const char* target) {
  return guarded([&] { gpu::load_engines(folder, read_manifest(folder, false), flavor, version, target); });
}

}  // extern "C"
