// Calls of the C interface, with structs, sizes, prompts and answers of the callback as the input has them. Every
// buffer is a heap block of the size that is told, so that AddressSanitizer sees one byte too many. A call that fails
// may change nothing: ids, frame index and size are compared with what the successful calls alone would give.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "fastsam2/fastsam2.h"
#include "small_bundle.hpp"

namespace {

using fastsam2::fuzzing::kImageSize;
using fastsam2::fuzzing::kTextDim;

constexpr int kMostCalls = 16;

void require(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "broken: %s; last error: %s\n", what, fastsam2_last_error());
    std::abort();
  }
}

// What the callback does in the present input.
struct Behaviour {
  std::uint8_t values = 0;
  int fails_in = 0;  // calls from now; 0: never
};

Behaviour behaviour;

void fill(const fastsam2_tensor& output, std::uint8_t kind) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kLargest = std::numeric_limits<float>::max();
  auto* values = static_cast<float*>(output.data);
  for (std::uint64_t i = 0; i < output.bytes / sizeof(float); ++i) {
    const auto wave = static_cast<float>(i * (kind / 8 + 1U) % 13) - 6.5F;
    const float choices[] = {wave,           -wave, 0.0F, 1.0F, kNan, i % 3 == 0 ? kNan : wave, wave * kInfinity,
                             wave * kLargest};
    values[i] = choices[kind % std::size(choices)];
  }
}

std::int32_t run(void*, const char* role, const fastsam2_tensor* inputs, std::uint32_t input_count,
                 const fastsam2_tensor* outputs, std::uint32_t output_count, char* message,
                 std::uint32_t message_bytes) {
  constexpr std::size_t kSizes[] = {4, 4, 2, 1, 1};
  require(role[0] != '\0', "a role");
  unsigned int sum = 0;
  for (const fastsam2_tensor* t = inputs; t != inputs + input_count; ++t) {
    std::size_t bytes = kSizes[t->dtype];
    for (std::uint32_t axis = 0; axis < t->rank; ++axis) {
      bytes *= static_cast<std::size_t>(t->shape[axis]);
    }
    require(bytes == t->bytes && t->name[0] != '\0', "bytes of an input");
    for (std::uint64_t i = 0; i < t->bytes; ++i) {
      sum += static_cast<const std::uint8_t*>(t->data)[i];
    }
  }
  for (std::uint32_t o = 0; o < output_count; ++o) {
    fill(outputs[o], static_cast<std::uint8_t>(behaviour.values + (sum & 8U)));
  }
  if (behaviour.fails_in > 0 && --behaviour.fails_in == 0) {
    std::memset(message, 'x', message_bytes);  // without a zero at the end
    return -1;
  }
  return 0;
}

// `given` as a caller has it whose struct is `size` bytes long.
template <typename Struct>
class Sized {
 public:
  Sized(Struct given, std::uint32_t size)
      : memory_(std::make_unique<std::byte[]>(std::clamp<std::size_t>(size, sizeof size, sizeof(Struct)))) {
    given.struct_size = size;
    std::memcpy(memory_.get(), &given, std::clamp<std::size_t>(size, sizeof size, sizeof(Struct)));
  }
  Struct* get() { return reinterpret_cast<Struct*>(memory_.get()); }

 private:
  std::unique_ptr<std::byte[]> memory_;
};

template <typename T>
std::unique_ptr<T[]> block(const std::vector<T>& values) {
  auto memory = std::make_unique<T[]>(values.size());
  std::ranges::copy(values, memory.get());
  return memory;
}

class Session {
 public:
  Session(FuzzedDataProvider& data, fastsam2_bundle bundle) : data_(data), bundle_(bundle) {}

  void play() {
    behaviour = {data_.ConsumeIntegral<std::uint8_t>(), data_.ConsumeIntegralInRange(0, 40)};
    open();
    for (int call = 0; call < kMostCalls && data_.remaining_bytes() > 0; ++call) {
      step_once();
    }
    const fastsam2_status closed = fastsam2_tracker_close(tracker_);
    require(closed == (tracker_.id == 0 ? FASTSAM2_ERROR_HANDLE : FASTSAM2_OK), "closing the tracker");
    require(fastsam2_tracker_reset(tracker_) == FASTSAM2_ERROR_HANDLE, "a closed tracker is refused");
  }

 private:
  // True if the call succeeded.
  static bool checked(fastsam2_status status) {
    require(status >= FASTSAM2_OK && status < FASTSAM2_ERROR_INTERNAL, "a status, not an internal error");
    const std::string message = fastsam2_last_error();
    require(status == FASTSAM2_OK || message.starts_with("expected "), "an error says what was expected");
    return status == FASTSAM2_OK;
  }

  template <typename Struct>
  Sized<Struct> sized(const Struct& given) {
    const bool odd = data_.ConsumeIntegralInRange(0, 15) == 0;
    const std::uint32_t size = odd ? data_.ConsumeIntegralInRange(0U, 70000U) : std::uint32_t{sizeof(Struct)};
    return Sized<Struct>(given, size);
  }

  void open() {
    fastsam2_tracker_options options{};
    options.policy = data_.ConsumeIntegralInRange<std::uint32_t>(0, 7);
    options.keep = data_.ConsumeBool() ? data_.ConsumeFloatingPointInRange(-0.5, 1.5) : 0.0;
    options.tokens = data_.ConsumeIntegralInRange(0, 7) == 0 ? data_.ConsumeIntegral<std::int64_t>() : 0;
    options.seed = data_.ConsumeIntegral<std::int64_t>();
    options.guard = data_.ConsumeIntegralInRange<std::uint32_t>(0, 1);
    options.prune_prompt_frames = data_.ConsumeIntegralInRange<std::uint32_t>(0, 1);
    options.prune_newest_frame = data_.ConsumeIntegralInRange<std::uint32_t>(0, 1);
    options.corrections_as_prompts = data_.ConsumeIntegralInRange<std::uint32_t>(0, 1);
    options.max_prompt_frames = data_.ConsumeIntegral<std::uint8_t>();
    options.fill_hole_area = data_.ConsumeIntegral<std::uint8_t>();
    options.memory_budget_mb = data_.ConsumeBool() ? data_.ConsumeIntegral<std::uint32_t>() : 1;
    auto given = sized(options);
    fastsam2_tracker opened{};
    if (checked(fastsam2_tracker_open(bundle_, given.get(), &opened))) {
      tracker_ = opened;
    } else {
      require(opened.id == 0, "no output after an error");
      require(checked(fastsam2_tracker_open(bundle_, nullptr, &tracker_)), "defaults are legal");
    }
    routes_ = opened.id != 0 && given.get()->struct_size >= 8 && options.policy == FASTSAM2_ROUTER;
  }

  void step_once() {
    switch (data_.ConsumeIntegralInRange(0, 8)) {
      case 0:
      case 1:
      case 2:
        return step();
      case 3:
        return add();
      case 4:
      case 5:
        return correct();
      case 6:
        return describe();
      case 7:
        return remove();
      default:
        return rarely();
    }
  }

  void rarely() {
    switch (data_.ConsumeIntegralInRange(0, 3)) {
      case 0:
        require(checked(fastsam2_tracker_reset(tracker_)), "a reset");
        ids_.clear();
        frames_ = 0;
        return;
      case 1:
        return encode_text();
      case 2: {
        auto info = sized(fastsam2_bundle_info{});
        if (checked(fastsam2_bundle_describe(bundle_, info.get())) && info.get()->struct_size >= sizeof(*info.get())) {
          require(info.get()->image_size == kImageSize && info.get()->text_dim == kTextDim, "facts of the bundle");
        }
        return;
      }
      default:
        fastsam2_result none{};
        const std::uint64_t id = data_.ConsumeIntegral<std::uint64_t>() | (std::uint64_t{1} << 63);
        require(fastsam2_tracker_step({id}, nullptr, &none) == FASTSAM2_ERROR_HANDLE, "made up handles are refused");
        require(fastsam2_result_close({id}) == FASTSAM2_ERROR_HANDLE, "made up handles are refused");
    }
  }

  void step() {
    fastsam2_image image{};
    image.format = data_.ConsumeIntegralInRange<std::uint32_t>(0, 20) % 19 % 3;
    const bool same = frames_ > 0 && data_.ConsumeIntegralInRange(0, 7) != 0;
    image.height = same ? height_ : side();
    image.width = same ? width_ : side();
    const std::uint64_t gap = data_.ConsumeIntegralInRange<std::uint64_t>(0, 8);
    image.row_bytes = gap == 0 ? 0 : std::uint64_t{3} * image.width + gap - 2;
    const std::uint64_t row = image.row_bytes == 0 ? std::uint64_t{3} * image.width : image.row_bytes;
    const std::uint64_t needed = image.height == 0 ? 0 : (image.height - 1) * row + std::uint64_t{3} * image.width;
    const bool whole = data_.ConsumeIntegralInRange(0, 15) != 0;
    image.pixel_bytes = std::min<std::uint64_t>(needed, 1U << 20) - (needed > 0 && !whole ? 1 : 0);
    const std::uint8_t grey = data_.ConsumeIntegral<std::uint8_t>();
    const auto pixels = block(std::vector<std::uint8_t>(image.pixel_bytes, grey));
    image.pixels = pixels.get();
    auto given = sized(image);
    fastsam2_result result{};
    if (answered(fastsam2_tracker_step(tracker_, given.get(), &result), result)) {
      require(frames_ == 0 || (image.height == height_ && image.width == width_), "frames keep their size");
      height_ = image.height;
      width_ = image.width;
      ++frames_;
      compare(result);
    }
  }

  std::uint32_t side() {
    const bool odd = data_.ConsumeIntegralInRange(0, 31) == 0;
    return odd ? data_.ConsumeIntegral<std::uint32_t>() : data_.ConsumeIntegralInRange<std::uint32_t>(0, 48);
  }

  // Calls with a prompt, whose memory lives meanwhile.
  template <typename Call>
  fastsam2_status prompted(Call call) {
    fastsam2_prompt prompt{};
    const auto coordinate = [&] {
      return data_.ConsumeIntegralInRange(0, 15) == 0 ? data_.ConsumeFloatingPoint<float>()
                                                      : data_.ConsumeFloatingPointInRange(-1.0F, 49.0F);
    };
    const auto kinds = data_.ConsumeIntegralInRange<std::uint32_t>(0, 15);
    std::vector<float> box(4);
    std::vector<float> points;
    std::vector<std::int32_t> labels;
    if ((kinds & 1U) != 0) {
      std::ranges::generate(box, coordinate);
    }
    if ((kinds & 2U) != 0) {
      prompt.point_count = data_.ConsumeIntegralInRange<std::uint32_t>(0, 5);
      points.resize(std::size_t{2} * prompt.point_count);
      std::ranges::generate(points, coordinate);
      labels.resize(prompt.point_count);
      std::ranges::generate(labels, [&] { return data_.ConsumeIntegralInRange<std::int32_t>(0, 20) % 18; });
    }
    const bool mask = kinds == 8 || kinds == 12 || kinds == 15;
    if (mask) {
      prompt.mask_height = data_.ConsumeIntegralInRange(0, 7) == 0 ? side() : height_;
      prompt.mask_width = data_.ConsumeIntegralInRange(0, 7) == 0 ? side() : width_;
    }
    const auto bytes = std::min<std::uint64_t>(std::uint64_t{prompt.mask_height} * prompt.mask_width, 1U << 20);
    std::vector<std::uint8_t> pixels(bytes);
    const auto stripe = data_.ConsumeIntegralInRange<std::size_t>(1, 200);
    for (std::size_t i = 0; i < pixels.size(); ++i) {
      pixels[i] = i / stripe % 2 == 0 ? 255 : 0;
    }
    const auto held_box = block(box);
    const auto held_points = block(points);
    const auto held_labels = block(labels);
    const auto held_mask = block(pixels);
    prompt.box = (kinds & 1U) != 0 ? held_box.get() : nullptr;
    prompt.points = (kinds & 2U) != 0 ? held_points.get() : nullptr;
    prompt.labels = (kinds & 4U) != 0 && prompt.points != nullptr ? held_labels.get() : nullptr;
    prompt.mask = mask ? held_mask.get() : nullptr;
    return call(sized(prompt).get());
  }

  std::int64_t any_id() {
    return data_.ConsumeIntegralInRange(0, 15) == 0 ? data_.ConsumeIntegral<std::int64_t>()
                                                    : data_.ConsumeIntegralInRange<std::int64_t>(0, 4);
  }

  void add() {
    const std::int64_t id = any_id();
    fastsam2_result result{};
    const auto status =
        prompted([&](const fastsam2_prompt* p) { return fastsam2_tracker_add(tracker_, id, p, &result); });
    if (answered(status, result)) {
      require(frames_ > 0 && id >= 1 && std::ranges::count(ids_, id) == 0, "an object may be added");
      ids_.push_back(id);
      compare(result);
    }
  }

  void correct() {
    const std::int64_t id = any_id();
    const std::int32_t append = data_.ConsumeIntegralInRange(0, 2);
    fastsam2_result result{};
    const auto status =
        prompted([&](const fastsam2_prompt* p) { return fastsam2_tracker_correct(tracker_, id, p, append, &result); });
    if (answered(status, result)) {
      require(std::ranges::count(ids_, id) == 1, "an object may be corrected");
      compare(result);
    }
  }

  void describe() {
    const std::int64_t id = any_id();
    const std::size_t count = data_.ConsumeBool() ? kTextDim : data_.ConsumeIntegralInRange<std::size_t>(0, 5);
    const auto values = block(std::vector<float>(count, 0.5F));
    const bool done = checked(fastsam2_tracker_describe(tracker_, id, values.get(), count));
    require(!done || std::ranges::count(ids_, id) == 1, "an object may be described");
    require(!done || count == 0 || (routes_ && count == kTextDim), "an embedding fits the router");
  }

  void remove() {
    const std::int64_t id = any_id();
    const bool done = checked(fastsam2_tracker_remove(tracker_, id));
    require(done == (std::erase(ids_, id) == 1), "objects are removed once");
  }

  void encode_text() {
    const auto texts = data_.ConsumeIntegralInRange<std::uint32_t>(0, 3);
    const auto ids = block(std::vector<std::int32_t>(std::size_t{77} * texts, data_.ConsumeIntegral<std::int32_t>()));
    const std::uint64_t needed = std::uint64_t{texts} * kTextDim;
    const std::uint64_t room = data_.ConsumeBool() ? needed : data_.ConsumeIntegralInRange<std::uint64_t>(0, 13);
    const auto values = block(std::vector<float>(room, -7.0F));
    const bool done = checked(fastsam2_bundle_encode_text(bundle_, ids.get(), texts, values.get(), room));
    require(!done || (texts > 0 && room == needed), "room for all embeddings");
  }

  static bool answered(fastsam2_status status, fastsam2_result result) {
    const bool done = checked(status);
    require(done == (result.id != 0), "a result where the call succeeded");
    return done;
  }

  // Reads a result and closes it.
  void compare(fastsam2_result result) {
    auto given = sized(fastsam2_result_view{});
    if (checked(fastsam2_result_read(result, given.get())) &&
        given.get()->struct_size >= sizeof(fastsam2_result_view)) {
      const fastsam2_result_view& view = *given.get();
      require(std::ranges::equal(std::span(view.ids, view.object_count), ids_), "the objects of a result");
      require(view.frame == frames_ - 1 && view.height == height_ && view.width == width_, "the frame of a result");
      const std::size_t pixels = std::size_t{view.object_count} * height_ * width_;
      require(std::ranges::all_of(std::span(view.masks, pixels), [](std::uint8_t p) { return p <= 1; }), "0 or 1");
      double sum = 0;
      for (std::size_t i = 0; i < std::size_t{view.object_count} * view.low_res_side * view.low_res_side; ++i) {
        sum += static_cast<double>(view.low_res_logits[i]);
      }
      for (std::uint32_t i = 0; i < view.object_count; ++i) {
        sum += static_cast<double>(view.scores[i]) + static_cast<double>(view.ious[i]);
        require(view.rows_held[i] >= 0, "rows");
      }
      read_ += std::isfinite(sum) ? 1 : 0;
    }
    require(checked(fastsam2_result_close(result)), "a result is closed");
    require(fastsam2_result_close(result) == FASTSAM2_ERROR_HANDLE, "a result is closed once");
  }

  FuzzedDataProvider& data_;
  fastsam2_bundle bundle_;
  fastsam2_tracker tracker_{};
  bool routes_ = false;
  std::vector<std::int64_t> ids_;
  std::int64_t frames_ = 0;
  std::uint32_t height_ = 0;
  std::uint32_t width_ = 0;
  int read_ = 0;
};

fastsam2_bundle opened() {
  static const fastsam2::fuzzing::SmallBundle kBundle;
  fastsam2_bundle_options options{};
  options.struct_size = sizeof options;
  options.abi_version = FASTSAM2_ABI_VERSION;
  options.run = run;
  options.skip_hashes = 1;
  fastsam2_bundle bundle{};
  require(fastsam2_bundle_open(kBundle.folder().c_str(), &options, &bundle) == FASTSAM2_OK, "a small bundle");
  return bundle;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fastsam2_bundle kBundle = opened();
  FuzzedDataProvider provider(data, size);
  Session(provider, kBundle).play();
  return 0;
}
