#include "fastsam2/host_device.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "policies.hpp"
#include "postprocess.hpp"
#include "preprocess.hpp"
#include "rows.hpp"

namespace fastsam2 {

namespace {

void copy_bytes(const Tensor& from, void* to) {
  if (from.nbytes() != 0) {
    std::memcpy(to, from.data(), from.nbytes());
  }
}

// One after another in new memory.
Tensor joined(std::span<const Tensor> tensors, Shape shape) {
  Tensor all = Tensor::empty(tensors[0].dtype(), shape);
  auto* at = static_cast<std::byte*>(all.data());
  for (const Tensor& tensor : tensors) {
    copy_bytes(tensor, at);
    at += tensor.nbytes();
  }
  return all;
}

// Assembles what a batch reads, in buffers that are used again.
class HostReader final : public MemoryReader {
 public:
  explicit HostReader(const ModelSpec& spec) : spec_(spec) {}

  std::vector<NamedTensor> read(std::span<const Reading> readings) override {
    const auto batch = static_cast<std::int64_t>(readings.size());
    const auto pointers = static_cast<std::int64_t>(readings[0].pointers.size());
    std::int64_t rows = 0;
    for (const Reading::Frame& frame : readings[0].frames) {
      rows += frame.position.size();
    }
    const Tensor memory = buffer("memory", DType::Float32, {batch, rows, spec_.memory_dim});
    const Tensor position = buffer("position", DType::Int32, {batch, rows});
    const Tensor age = buffer("age", DType::Int32, {batch, rows});
    const Tensor pointer = buffer("pointers", DType::Float32, {batch, pointers, spec_.hidden_dim});
    const Tensor offset = buffer("pointer_offset", DType::Float32, {batch, pointers});
    for (std::int64_t b = 0; b < batch; ++b) {
      const Reading& reading = readings[static_cast<std::size_t>(b)];
      std::int64_t start = 0;
      for (const Reading::Frame& frame : reading.frames) {
        const std::int64_t end = start + frame.position.size();
        from_bfloat16(frame.rows.values<std::uint16_t>(), memory[b].slice(start, end).fill<float>());
        copy_bytes(frame.position, position[b].slice(start, end).data());
        std::ranges::fill(age[b].slice(start, end).fill<std::int32_t>(), frame.age);
        start = end;
      }
      for (std::int64_t p = 0; p < pointers; ++p) {
        const Reading::Pointer& own = reading.pointers[static_cast<std::size_t>(p)];
        copy_bytes(own.pointer, pointer[b][p].data());
        offset[b].fill<float>()[static_cast<std::size_t>(p)] = own.offset;
      }
    }
    return {
        {"memory", memory}, {"position", position}, {"age", age}, {"pointers", pointer}, {"pointer_offset", offset}};
  }

 private:
  Tensor buffer(std::string_view name, DType type, Shape shape) {
    Tensor& held = buffers_[name];
    if (!held || held.elements() < shape.elements()) {
      held = Tensor::empty(type, {shape.elements()});
    }
    return held.slice(0, shape.elements()).reshape(shape);
  }

  ModelSpec spec_;
  std::map<std::string_view, Tensor> buffers_;
};

}  // namespace

std::optional<std::int64_t> HostDevice::max_objects(GraphRole) {
  return std::nullopt;
}

std::optional<std::int64_t> HostDevice::max_prompt_frames() {
  return std::nullopt;
}

Tensor HostDevice::put(const Tensor& host) {
  return host;
}

std::vector<Tensor> HostDevice::fetch(std::span<const Tensor> tensors) {
  return {tensors.begin(), tensors.end()};
}

Tensor HostDevice::full(Shape shape, double value, DType type) {
  Tensor tensor = Tensor::empty(type, shape);
  switch (type) {
    case DType::Float32:
      std::ranges::fill(tensor.fill<float>(), static_cast<float>(value));
      break;
    case DType::Int32:
      std::ranges::fill(tensor.fill<std::int32_t>(), static_cast<std::int32_t>(value));
      break;
    case DType::Bool:
      std::ranges::fill(tensor.fill<bool>(), value != 0);
      break;
    case DType::UInt8:
    case DType::UInt16:
      throw InternalError(expected("a constant of float32, int32 or bool", name_of(type), "Fill it by hand"));
  }
  return tensor;
}

Tensor HostDevice::arange(std::int32_t start, std::int32_t stop) {
  Tensor tensor = Tensor::empty(DType::Int32, {stop - start});
  std::int32_t next = start;
  std::ranges::generate(tensor.fill<std::int32_t>(), [&] { return next++; });
  return tensor;
}

Tensor HostDevice::copy(const Tensor& tensor) {
  return joined(std::span(&tensor, 1), tensor.shape());
}

Tensor HostDevice::stack(std::span<const Tensor> tensors) {
  std::vector<std::int64_t> sizes{static_cast<std::int64_t>(tensors.size())};
  sizes.insert(sizes.end(), tensors[0].shape().begin(), tensors[0].shape().end());
  return joined(tensors, Shape(std::span<const std::int64_t>(sizes)));
}

Tensor HostDevice::concatenate(std::span<const Tensor> tensors) {
  if (tensors.size() == 1) {
    return tensors[0];
  }
  std::int64_t first = 0;
  for (const Tensor& tensor : tensors) {
    first += tensor.size();
  }
  return joined(tensors, tensors[0].shape().with_first(first));
}

Tensor HostDevice::clamp(const Tensor& tensor, float limit) {
  Tensor clamped = Tensor::empty(DType::Float32, tensor.shape());
  std::ranges::transform(tensor.values<float>(), clamped.fill<float>().begin(),
                         [limit](float v) { return v < -limit ? -limit : (v > limit ? limit : v); });
  return clamped;
}

Tensor HostDevice::to_bfloat16(const Tensor& rows) {
  Tensor bits = Tensor::empty(DType::UInt16, rows.shape());
  fastsam2::to_bfloat16(rows.values<float>(), bits.fill<std::uint16_t>());
  return bits;
}

Kept HostDevice::top_k_gather(const Tensor& rows, const Tensor& scores, std::int64_t keep) {
  const std::vector<std::int32_t> index = top_k(scores.values<float>(), keep);
  Tensor kept = Tensor::empty(rows.dtype(), rows.shape().with_first(keep));
  for (std::size_t i = 0; i < index.size(); ++i) {
    copy_bytes(rows[index[i]], kept[static_cast<std::int64_t>(i)].data());
  }
  return {kept, Tensor::of(std::span<const std::int32_t>(index), {keep})};
}

Tensor HostDevice::pool_2x2(const Tensor& rows, std::int64_t grid) {
  Tensor pooled = Tensor::empty(DType::UInt16, rows.shape().with_first(grid / 2 * (grid / 2)));
  fastsam2::pool_2x2(rows.values<std::uint16_t>(), grid, pooled.fill<std::uint16_t>());
  return pooled;
}

std::unique_ptr<MemoryReader> HostDevice::memory_reader(const ModelSpec& spec) {
  return std::make_unique<HostReader>(spec);
}

Tensor HostDevice::pixels(const ImageView& frame, std::int64_t size) {
  Tensor pixels = Tensor::empty(DType::UInt8, {1, 3, size, size});
  frame_to_pixels(frame, size, pixels.fill<std::uint8_t>());
  return pixels;
}

Tensor HostDevice::masks(const Tensor& logits, std::int64_t height, std::int64_t width) {
  Tensor masks = Tensor::empty(DType::Bool, {logits.size(), height, width});
  for (std::int64_t b = 0; b < logits.size(); ++b) {
    mask_from_logits(logits[b].values<float>(), logits.shape()[1], height, width, masks[b].fill<bool>());
  }
  return masks;
}

Tensor HostDevice::mask_scores(const Tensor& logits, std::int64_t grid) {
  Tensor scores = Tensor::empty(DType::Float32, {grid * grid});
  fastsam2::mask_scores(logits.values<float>(), grid, scores.fill<float>());
  return scores;
}

Tensor HostDevice::uncertainty(const Tensor& logits, std::int64_t grid) {
  Tensor cells = Tensor::empty(DType::Float32, {logits.size(), grid * grid});
  for (std::int64_t b = 0; b < logits.size(); ++b) {
    fastsam2::uncertainty(logits[b].values<float>(), grid, cells[b].fill<float>());
  }
  return cells;
}

}  // namespace fastsam2
