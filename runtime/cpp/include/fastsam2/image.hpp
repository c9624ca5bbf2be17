// Pictures that a caller owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastsam2 {

enum class PixelFormat : std::uint8_t { Rgb8, Bgr8 };

// Three interleaved bytes a pixel; read during the call only.
struct ImageView {
  const std::uint8_t* data = nullptr;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::ptrdiff_t row_bytes = 0;  // from one row to the next; at least 3 · width
  PixelFormat format = PixelFormat::Rgb8;

  // Throws PromptError unless there is a pixel, and a row for every row.
  void check() const;
};

// One byte a pixel, not 0 on the object; read during the call only.
struct MaskView {
  const std::uint8_t* data = nullptr;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::ptrdiff_t row_bytes = 0;

  // Throws PromptError unless there is a pixel, and a row for every row.
  void check() const;
};

}  // namespace fastsam2
