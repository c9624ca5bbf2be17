#include "fastsam2/tensor.hpp"

#include <cstdlib>
#include <functional>
#include <new>
#include <numeric>
#include <string>
#include <utility>

namespace fastsam2 {

std::size_t size_of(DType type) {
  switch (type) {
    case DType::Float32:
    case DType::Int32:
      return 4;
    case DType::UInt16:
      return 2;
    case DType::UInt8:
    case DType::Bool:
      break;
  }
  return 1;
}

std::string_view name_of(DType type) {
  switch (type) {
    case DType::Float32:
      return "float32";
    case DType::Int32:
      return "int32";
    case DType::UInt16:
      return "uint16";
    case DType::UInt8:
      return "uint8";
    case DType::Bool:
      break;
  }
  return "bool";
}

Shape::Shape(std::span<const std::int64_t> sizes) : rank_(sizes.size()) {
  if (sizes.size() > kMaxRank) {
    throw InternalError(expected("at most 4 axes", std::to_string(sizes.size()), "Fold axes"));
  }
  for (std::size_t axis = 0; axis < rank_; ++axis) {
    if (sizes[axis] < 0) {
      throw InternalError(expected("sizes >= 0", std::to_string(sizes[axis]), "Check the slice"));
    }
    sizes_[axis] = sizes[axis];
  }
}

std::int64_t Shape::elements() const {
  return std::accumulate(begin(), end(), std::int64_t{1}, std::multiplies<>());
}

std::string Shape::text() const {
  std::string text = "[";
  for (std::size_t axis = 0; axis < rank_; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(sizes_[axis]);
  }
  return text + "]";
}

Shape Shape::with_first(std::int64_t size) const {
  Shape shape = *this;
  shape.sizes_.at(0) = size;
  return shape;
}

Shape Shape::without_first() const {
  if (rank_ == 0) {
    throw InternalError(expected("an axis to drop", "a single value", "Do not index it"));
  }
  return Shape(std::span<const std::int64_t>(begin() + 1, end()));
}

Tensor::Tensor(DType type, Shape shape, std::shared_ptr<void> memory, void* data)
    : type_(type), shape_(shape), memory_(std::move(memory)), data_(data) {}

Tensor Tensor::empty(DType type, Shape shape) {
  const auto bytes = static_cast<std::size_t>(shape.elements()) * size_of(type);
  constexpr std::size_t kAlignment = 64;  // a cache line, and more than any vector load needs
  const std::size_t rounded = std::max<std::size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
  void* data = std::aligned_alloc(kAlignment, rounded);
  if (data == nullptr) {
    throw std::bad_alloc();
  }
  std::shared_ptr<void> memory(data, [](void* p) { std::free(p); });  // NOLINT(*-no-malloc): aligned_alloc needs it
  return {type, shape, std::move(memory), data};
}

std::size_t Tensor::nbytes() const {
  return memory_ ? static_cast<std::size_t>(shape_.elements()) * size_of(type_) : 0;
}

Tensor Tensor::operator[](std::int64_t index) const {
  Tensor row = slice(index, index + 1);
  row.shape_ = shape_.without_first();
  return row;
}

Tensor Tensor::slice(std::int64_t start, std::int64_t stop) const {
  if (shape_.rank() == 0 || start < 0 || start > stop || stop > shape_[0]) {
    const std::string got = std::to_string(start) + ".." + std::to_string(stop) + " of " + shape_.text();
    throw InternalError(expected("a range inside the first axis", got, "Check the indices"));
  }
  Tensor part = *this;
  part.shape_ = shape_.with_first(stop - start);
  const auto row = static_cast<std::size_t>(shape_.without_first().elements()) * size_of(type_);
  part.data_ = static_cast<std::byte*>(data_) + static_cast<std::size_t>(start) * row;
  return part;
}

Tensor Tensor::reshape(Shape shape) const {
  if (shape.elements() != elements()) {
    throw InternalError(expected("as many elements as in " + shape_.text(), shape.text(), "Check the shape"));
  }
  Tensor other = *this;
  other.shape_ = shape;
  return other;
}

void Tensor::check_type(DType wanted) const {
  if (!memory_ || type_ != wanted) {
    throw InternalError(expected("a tensor of " + std::string(name_of(wanted)), memory_ ? name_of(type_) : "none",
                                 "Check the contract"));
  }
}

}  // namespace fastsam2
