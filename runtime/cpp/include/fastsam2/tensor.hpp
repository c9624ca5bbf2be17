// Arrays of host or device memory: shared storage, views along the first axis, no arithmetic.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "fastsam2/errors.hpp"

namespace fastsam2 {

enum class DType : std::uint8_t { Float32, Int32, UInt16, UInt8, Bool };

std::size_t size_of(DType type);
std::string_view name_of(DType type);  // numpy's name of it

template <typename T>
inline constexpr DType dtype_of = [] {
  static_assert(sizeof(T) == 0, "no tensors of this type");
  return DType::Float32;
}();
template <>
inline constexpr DType dtype_of<float> = DType::Float32;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::Int32;
template <>
inline constexpr DType dtype_of<std::uint16_t> = DType::UInt16;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::UInt8;
template <>
inline constexpr DType dtype_of<bool> = DType::Bool;

// Up to four sizes.
class Shape {
 public:
  static constexpr std::size_t kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes)
      : Shape(std::span<const std::int64_t>(sizes.begin(), sizes.size())) {}
  // Throws InternalError for a negative size or more than four of them.
  explicit Shape(std::span<const std::int64_t> sizes);

  [[nodiscard]] std::size_t rank() const { return rank_; }
  [[nodiscard]] std::int64_t elements() const;
  [[nodiscard]] std::int64_t operator[](std::size_t axis) const { return sizes_.at(axis); }
  [[nodiscard]] const std::int64_t* begin() const { return sizes_.data(); }
  [[nodiscard]] const std::int64_t* end() const { return sizes_.data() + rank_; }
  [[nodiscard]] std::string text() const;  // [1, 3, 128, 128]
  [[nodiscard]] Shape with_first(std::int64_t size) const;
  [[nodiscard]] Shape without_first() const;

  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxRank> sizes_{};
  std::size_t rank_ = 0;
};

// A contiguous array in memory that all its views keep alive. What a tensor shares is written only before it is handed
// on. A default-constructed tensor holds nothing.
class Tensor {
 public:
  Tensor() = default;
  // `data` lies in what `memory` owns: host or device addresses.
  Tensor(DType type, Shape shape, std::shared_ptr<void> memory, void* data);

  // Uninitialised host memory.
  static Tensor empty(DType type, Shape shape);
  // A copy in host memory; Throws InternalError if the shape does not hold as many values.
  template <typename T>
  static Tensor of(std::span<const T> values, Shape shape);

  explicit operator bool() const { return memory_ != nullptr; }
  [[nodiscard]] DType dtype() const { return type_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t elements() const { return shape_.elements(); }
  [[nodiscard]] std::size_t nbytes() const;
  [[nodiscard]] std::int64_t size() const { return shape_[0]; }  // of the first axis
  [[nodiscard]] void* data() const { return data_; }

  // Views. They throw InternalError where there is nothing to see.
  [[nodiscard]] Tensor operator[](std::int64_t index) const;
  [[nodiscard]] Tensor slice(std::int64_t start, std::int64_t stop) const;
  [[nodiscard]] Tensor reshape(Shape shape) const;

  // Values of a host tensor; throws InternalError if T is another type.
  template <typename T>
  [[nodiscard]] std::span<const T> values() const {
    check_type(dtype_of<T>);
    return {static_cast<const T*>(data_), static_cast<std::size_t>(elements())};
  }
  // The same, to be filled.
  template <typename T>
  [[nodiscard]] std::span<T> fill() const {
    check_type(dtype_of<T>);
    return {static_cast<T*>(data_), static_cast<std::size_t>(elements())};
  }

 private:
  void check_type(DType wanted) const;

  DType type_ = DType::Float32;
  Shape shape_;
  std::shared_ptr<void> memory_;
  void* data_ = nullptr;
};

template <typename T>
Tensor Tensor::of(std::span<const T> values, Shape shape) {
  if (shape.elements() != static_cast<std::int64_t>(values.size())) {
    throw InternalError(expected("values for " + shape.text(), std::to_string(values.size()), "Pass as many"));
  }
  Tensor tensor = empty(dtype_of<T>, shape);
  std::copy(values.begin(), values.end(), tensor.fill<T>().begin());
  return tensor;
}

}  // namespace fastsam2
