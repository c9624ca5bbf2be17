#include "device.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "policies.hpp"

namespace fastsam2::gpu {

namespace {

constexpr std::size_t kConstants = 128;  // kept; those used least recently are forgotten first
constexpr std::int64_t kChannels = 3;
enum ConstantKind : std::int64_t { kFull, kArange, kOrder, kResizeBounds, kResizeWeights, kLerp };

Shape behind_each_other(std::span<const Tensor> tensors) {
  std::int64_t first = 0;
  for (const Tensor& tensor : tensors) {
    first += tensor.size();
  }
  return tensors[0].shape().with_first(first);
}

Shape on_each_other(std::span<const Tensor> tensors) {
  std::vector<std::int64_t> sizes{static_cast<std::int64_t>(tensors.size())};
  sizes.insert(sizes.end(), tensors[0].shape().begin(), tensors[0].shape().end());
  return Shape(std::span<const std::int64_t>(sizes));
}

// The parts as one view, if they lie behind each other in the same memory.
Tensor in_place(const Pool& pool, std::span<const Tensor> parts, Shape shape) {
  const std::shared_ptr<void> memory = pool.memory_at(parts[0].data());
  const auto* end = static_cast<const std::byte*>(parts[0].data());
  for (const Tensor& part : parts) {
    if (part.data() != end || pool.memory_at(part.data()) != memory) {
      return {};
    }
    end += part.nbytes();
  }
  return {parts[0].dtype(), shape, memory, parts[0].data()};
}

// The bytes of a constant, lowest first.
unsigned word_of(double value, DType type) {
  switch (type) {
    case DType::Float32:
      return std::bit_cast<unsigned>(static_cast<float>(value));
    case DType::Int32:
      return std::bit_cast<unsigned>(static_cast<std::int32_t>(value));
    case DType::Bool:
      return value != 0 ? 1U : 0U;
    case DType::UInt8:
    case DType::UInt16:
      break;
  }
  throw InternalError(expected("a constant of float32, int32 or bool", name_of(type), "Fill it by hand"));
}

// Interleaved rows without gaps, red first.
void copy_pixels(const ImageView& frame, std::uint8_t* to) {
  const auto line = static_cast<std::size_t>(frame.width * kChannels);
  for (std::int64_t y = 0; y < frame.height; ++y, to += line) {
    const std::uint8_t* row = frame.data + y * frame.row_bytes;
    std::memcpy(to, row, line);
    if (frame.format == PixelFormat::Bgr8) {
      for (std::size_t x = 0; x < line; x += kChannels) {
        std::swap(to[x], to[x + 2]);
      }
    }
  }
}

class CudaReader final : public MemoryReader {
 public:
  CudaReader(CudaDevice& device, const ModelSpec& spec) : device_(device), spec_(spec) {}
  std::vector<NamedTensor> read(std::span<const Reading> readings) override {
    return device_.read_memory(spec_, readings);
  }

 private:
  CudaDevice& device_;
  ModelSpec spec_;
};

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<Gpu> gpu, Engines& engines)
    : gpu_(std::move(gpu)), engines_(engines), pool_(std::make_shared<Pool>(gpu_)), ops_(*gpu_), staging_(gpu_) {}

template <typename T>
Tensor CudaDevice::upload(std::span<const T> values, Shape shape, DType type, std::string_view purpose) {
  Tensor target = pool_->empty(type, shape, {purpose});
  if (!values.empty()) {
    const std::lock_guard lock(mutex_);
    void* staged = staging_.take(values.size_bytes());
    std::memcpy(staged, values.data(), values.size_bytes());
    gpu_->upload(target.data(), staged, values.size_bytes());
  }
  return target;
}

Tensor CudaDevice::put(const Tensor& host) {
  if (!host || pool_->memory_at(host.data())) {
    return host;
  }
  return upload(std::span(static_cast<const std::byte*>(host.data()), host.nbytes()), host.shape(), host.dtype(),
                "put");
}

std::vector<Tensor> CudaDevice::put_all(std::span<const Tensor> tensors) {
  std::vector<Tensor> parts;
  for (const Tensor& tensor : tensors) {
    parts.push_back(put(tensor));
  }
  return parts;
}

std::vector<Tensor> CudaDevice::fetch(std::span<const Tensor> tensors) {
  const std::lock_guard lock(mutex_);  // until the wait: another thread's copies may be in the same staging
  std::vector<void*> staged;
  for (const Tensor& tensor : tensors) {
    const bool on_device = tensor && pool_->memory_at(tensor.data());
    staged.push_back(on_device ? staging_.take(tensor.nbytes()) : nullptr);
    if (on_device && tensor.nbytes() != 0) {
      gpu_->download(staged.back(), tensor.data(), tensor.nbytes());
    }
  }
  gpu_->synchronize();
  std::vector<Tensor> host;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (staged[i] == nullptr) {
      host.push_back(tensors[i]);
      continue;
    }
    host.push_back(Tensor::empty(tensors[i].dtype(), tensors[i].shape()));
    std::memcpy(host.back().data(), staged[i], tensors[i].nbytes());
  }
  staging_.reset();  // after the last look at it: it may give memory back
  return host;
}

Tensor CudaDevice::full(Shape shape, double value, DType type) {
  const unsigned word = word_of(value, type);
  ConstantKey key{kFull, static_cast<std::int64_t>(type), word, static_cast<std::int64_t>(shape.rank())};
  std::ranges::copy(shape, key.begin() + 4);
  return constant(key, [&] {
    Tensor target = pool_->empty(type, shape, {"full"});
    if (type == DType::Bool) {
      ops_.fill_bytes(target.data(), shape.elements(), word);
    } else {
      ops_.fill_words(target.data(), shape.elements(), word);
    }
    return target;
  });
}

Tensor CudaDevice::arange(std::int32_t start, std::int32_t stop) {
  return constant({kArange, start, stop}, [&] {
    const Tensor values = Tensor::empty(DType::Int32, {stop - start});
    std::int32_t next = start;
    std::ranges::generate(values.fill<std::int32_t>(), [&] { return next++; });
    return put(values);
  });
}

Tensor CudaDevice::copy(const Tensor& tensor) {
  const Tensor part = put(tensor);
  return joined(std::span(&part, 1), tensor.shape(), "copy");
}

Tensor CudaDevice::stack(std::span<const Tensor> tensors) {
  const std::vector<Tensor> parts = put_all(tensors);
  const Shape shape = on_each_other(parts);
  const Tensor view = in_place(*pool_, parts, shape);
  return view ? view : joined(parts, shape, "stack");
}

Tensor CudaDevice::concatenate(std::span<const Tensor> tensors) {
  const std::vector<Tensor> parts = put_all(tensors);
  const Shape shape = behind_each_other(parts);
  const Tensor view = in_place(*pool_, parts, shape);
  return view ? view : joined(parts, shape, "concatenate");
}

Tensor CudaDevice::clamp(const Tensor& tensor, float limit) {
  const Tensor values = put(tensor);
  Tensor clamped = pool_->empty(DType::Float32, values.shape(), {"clamp"});
  ops_.clamp(values.data(), clamped.data(), values.elements(), limit);
  return clamped;
}

Tensor CudaDevice::to_bfloat16(const Tensor& rows) {
  const Tensor values = put(rows);
  Tensor bits = pool_->empty(DType::UInt16, values.shape(), {"rows"});
  ops_.round_bfloat16(values.data(), bits.data(), values.elements());
  return bits;
}

Kept CudaDevice::top_k_gather(const Tensor& rows, const Tensor& scores, std::int64_t keep) {
  const Tensor source = put(rows);
  const Tensor order = put(scores);
  const auto row_bytes = source.shape()[1] * static_cast<std::int64_t>(size_of(source.dtype()));
  Kept kept{pool_->empty(source.dtype(), source.shape().with_first(keep), {"rows"}),
            pool_->empty(DType::Int32, {keep}, {"index"})};
  ops_.top_k_gather(order.data(), source.data(), kept.rows.data(), kept.position.data(), source.size(), keep,
                    row_bytes);
  return kept;
}

Tensor CudaDevice::pool_2x2(const Tensor& rows, std::int64_t grid) {
  const Tensor source = put(rows);
  Tensor pooled = pool_->empty(DType::UInt16, source.shape().with_first(source.size() / 4), {"rows"});
  ops_.pool_2x2(source.data(), pooled.data(), grid, source.shape()[1]);
  return pooled;
}

std::unique_ptr<MemoryReader> CudaDevice::memory_reader(const ModelSpec& spec) {
  return std::make_unique<CudaReader>(*this, spec);
}

std::vector<NamedTensor> CudaDevice::read_memory(const ModelSpec& spec, std::span<const Reading> readings) {
  std::vector<Reading> own(readings.begin(), readings.end());
  for (Reading& reading : own) {
    for (Reading::Frame& frame : reading.frames) {
      frame.rows = put(frame.rows);
      frame.position = put(frame.position);
    }
    for (Reading::Pointer& pointer : reading.pointers) {
      pointer.pointer = put(pointer.pointer);
    }
  }
  const MemoryTable layout = memory_table(own);
  const Tensor table =
      upload(std::span(layout.data), {static_cast<std::int64_t>(layout.data.size())}, DType::UInt8, "table");
  const std::int64_t b = layout.batch;
  const std::int64_t m = layout.rows;
  const std::int64_t p = layout.pointers;
  const auto input = [&](std::string_view name, DType type, Shape shape) {
    return NamedTensor{name, pool_->empty(type, shape, {name})};
  };
  std::vector<NamedTensor> inputs{input("memory", DType::Float32, {b, m, spec.memory_dim}),
                                  input("position", DType::Int32, {b, m}), input("age", DType::Int32, {b, m}),
                                  input("pointers", DType::Float32, {b, p, spec.hidden_dim}),
                                  input("pointer_offset", DType::Float32, {b, p})};
  fastsam2_read_memory_args args{};
  args.memory = static_cast<float*>(inputs[0].tensor.data());
  args.position = static_cast<int*>(inputs[1].tensor.data());
  args.age = static_cast<int*>(inputs[2].tensor.data());
  args.pointers = static_cast<float*>(inputs[3].tensor.data());
  args.pointer_offset = static_cast<float*>(inputs[4].tensor.data());
  if (engines_.target() == ExportTarget::Tensorrt) {
    inputs.push_back(input("memory_bias", DType::Float32, {b, m + p * (spec.hidden_dim / spec.memory_dim)}));
    args.memory_bias = static_cast<float*>(inputs[5].tensor.data());
  }
  args.dim = static_cast<int>(spec.memory_dim);
  args.hidden = static_cast<int>(spec.hidden_dim);
  ops_.read_memory(table.data(), layout, args);
  return inputs;
}

Tensor CudaDevice::pixels(const ImageView& frame, std::int64_t size) {
  const bool by_rows = rows_first(frame.height, frame.width, size);
  const Tensor source = pool_->empty(DType::UInt8, {frame.height, frame.width, kChannels}, {"frame"});
  {
    const std::lock_guard lock(mutex_);
    void* staged = staging_.take(source.nbytes());
    copy_pixels(frame, static_cast<std::uint8_t*>(staged));
    gpu_->upload(source.data(), staged, source.nbytes());
  }
  const Shape between = by_rows ? Shape{size, frame.width, kChannels} : Shape{frame.height, size, kChannels};
  const Tensor scratch = pool_->empty(DType::UInt8, between, {"scratch"});
  Tensor pixels = pool_->empty(DType::UInt8, {1, kChannels, size, size}, {"pixels"});
  const auto [column_bounds, column_weights] = resize_tables(frame.width, size);
  const auto [row_bounds, row_weights] = resize_tables(frame.height, size);
  ops_.resize({source.data(), frame.height, frame.width, size, column_bounds.data(), column_weights.data(),
               row_bounds.data(), row_weights.data(), scratch.data(), pixels.data(), by_rows});
  return pixels;
}

Tensor CudaDevice::masks(const Tensor& logits, std::int64_t height, std::int64_t width) {
  const Tensor values = put(logits);
  const std::int64_t side = values.shape()[1];
  Tensor masks = pool_->empty(DType::Bool, {values.size(), height, width}, {"masks"});
  const bool same = height == side && width == side;
  const Tensor rows = same ? Tensor() : lerp(side, height);
  const Tensor columns = same ? Tensor() : lerp(side, width);
  ops_.masks(values.data(), rows.data(), columns.data(), masks.data(), values.size(), side, height, width);
  return masks;
}

Tensor CudaDevice::mask_scores(const Tensor& logits, std::int64_t grid) {
  const Tensor values = put(logits);
  const Tensor order = constant({kOrder, grid}, [&] {
    const std::vector<float> scores = uniform_scores(grid);
    return upload(std::span(scores), {grid * grid}, DType::Float32, "constant");
  });
  Tensor scores = pool_->empty(DType::Float32, {grid * grid}, {"scores"});
  ops_.mask_scores(values.data(), order.data(), scores.data(), grid);
  return scores;
}

Tensor CudaDevice::uncertainty(const Tensor& logits, std::int64_t grid) {
  const Tensor source = put(logits);
  Tensor values = pool_->empty(DType::Float32, {source.size(), grid * grid}, {"uncertainty"});
  ops_.uncertainty(source.data(), values.data(), source.size(), grid);
  return values;
}

Tensor CudaDevice::constant(const ConstantKey& key, const std::function<Tensor()>& make) {
  const std::lock_guard lock(mutex_);
  const auto found = constant_at_.find(key);
  if (found != constant_at_.end()) {
    constants_.splice(constants_.begin(), constants_, found->second);
    return constants_.front().second;
  }
  constants_.emplace_front(key, make());
  constant_at_[key] = constants_.begin();
  Tensor made = constants_.front().second;
  if (constants_.size() > kConstants) {
    constant_at_.erase(constants_.back().first);
    constants_.pop_back();
  }
  return made;
}

std::pair<Tensor, Tensor> CudaDevice::resize_tables(std::int64_t source, std::int64_t size) {
  const auto one = [&](ConstantKind kind) {
    return constant({kind, source, size}, [&] {
      const ResizeTable table = resize_table(source, size);
      const std::vector<std::int32_t>& values = kind == kResizeBounds ? table.bounds : table.weights;
      return upload(std::span(values), {static_cast<std::int64_t>(values.size())}, DType::Int32, "constant");
    });
  };
  return {one(kResizeBounds), one(kResizeWeights)};
}

Tensor CudaDevice::lerp(std::int64_t side, std::int64_t size) {
  return constant({kLerp, side, size}, [&] {
    const std::vector<fastsam2_lerp> table = lerp_table(side, size);
    return upload(std::span(table), {size, static_cast<std::int64_t>(sizeof(fastsam2_lerp))}, DType::UInt8, "constant");
  });
}

Tensor CudaDevice::joined(std::span<const Tensor> parts, Shape shape, std::string_view purpose) {
  Tensor target = pool_->empty(parts[0].dtype(), shape, {purpose});
  auto* to = static_cast<std::byte*>(target.data());
  for (const Tensor& part : parts) {
    if (part.nbytes() != 0) {
      gpu_->copy(to, part.data(), part.nbytes());
    }
    to += part.nbytes();
  }
  return target;
}

}  // namespace fastsam2::gpu
