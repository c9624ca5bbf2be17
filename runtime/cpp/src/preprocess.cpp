#include "preprocess.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>

#include "fastsam2/errors.hpp"

namespace fastsam2 {

namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;  // of Pillow's fixed-point weights
constexpr double kSupport = 2.0;            // of the bicubic, in output pixels
constexpr std::size_t kChannels = 3;

// One axis of the resize: what each output pixel is made of.
struct Weights {
  std::vector<std::size_t> first;
  std::vector<std::vector<std::int32_t>> weights;  // of the inputs from `first` on, in units of 2^-22
};

double bicubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * kA;
  return 0.0;
}

Weights bicubic_weights(std::int64_t source, std::int64_t target) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double filter_scale = std::max(scale, 1.0);
  const double support = kSupport * filter_scale;
  Weights table;
  for (std::int64_t out = 0; out < target; ++out) {
    const double center = (static_cast<double>(out) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
    const auto count = std::min(static_cast<std::int64_t>(center + support + 0.5), source) - first;
    std::vector<double> weights;
    double total = 0.0;
    for (std::int64_t tap = 0; tap < count; ++tap) {
      weights.push_back(bicubic((static_cast<double>(tap + first) - center + 0.5) * (1.0 / filter_scale)));
      total += weights.back();
    }
    std::vector<std::int32_t> fixed;
    for (const double weight : weights) {
      const double normal = weight / (total == 0.0 ? 1.0 : total);
      fixed.push_back(static_cast<std::int32_t>(normal * (1 << kPrecisionBits) + (normal < 0.0 ? -0.5 : 0.5)));
    }
    table.first.push_back(static_cast<std::size_t>(first));
    table.weights.push_back(std::move(fixed));
  }
  return table;
}

std::uint8_t clipped(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

// Interleaved pixels, rows without gaps.
struct Pixels {
  std::size_t height, width;
  std::vector<std::uint8_t> bytes;
};

Pixels resized_rows(const Pixels& in, std::size_t width) {
  const Weights table = bicubic_weights(static_cast<std::int64_t>(in.width), static_cast<std::int64_t>(width));
  Pixels out{in.height, width, std::vector<std::uint8_t>(in.height * width * kChannels)};
  for (std::size_t y = 0; y < in.height; ++y) {
    for (std::size_t x = 0; x < width; ++x) {
      std::array<std::int32_t, kChannels> sum{};
      sum.fill(1 << (kPrecisionBits - 1));
      const std::uint8_t* from = &in.bytes[(y * in.width + table.first[x]) * kChannels];
      for (const std::int32_t weight : table.weights[x]) {
        for (std::size_t c = 0; c < kChannels; ++c) {
          sum[c] += weight * *from++;
        }
      }
      for (std::size_t c = 0; c < kChannels; ++c) {
        out.bytes[(y * width + x) * kChannels + c] = clipped(sum[c]);
      }
    }
  }
  return out;
}

Pixels resized_columns(const Pixels& in, std::size_t height) {
  const Weights table = bicubic_weights(static_cast<std::int64_t>(in.height), static_cast<std::int64_t>(height));
  const std::size_t line = in.width * kChannels;
  Pixels out{height, in.width, std::vector<std::uint8_t>(height * line)};
  std::vector<std::int32_t> sums(line);
  for (std::size_t y = 0; y < height; ++y) {
    std::ranges::fill(sums, 1 << (kPrecisionBits - 1));
    const std::uint8_t* from = &in.bytes[table.first[y] * line];
    for (const std::int32_t weight : table.weights[y]) {
      for (std::size_t i = 0; i < line; ++i) {
        sums[i] += weight * from[i];
      }
      from += line;
    }
    std::ranges::transform(sums, out.bytes.begin() + static_cast<std::ptrdiff_t>(y * line), clipped);
  }
  return out;
}

// Whether Pillow 13 resizes the height first: where it shrinks, by more than twice as many pixels as the width.
bool height_first(std::size_t height, std::size_t width, std::size_t size) {
  const auto shrinks = [size](std::size_t side) {
    return static_cast<std::int64_t>(side) - static_cast<std::int64_t>(size);
  };
  return height > size && shrinks(height) > 2 * shrinks(width);
}

// Antialiased triangle filter of one output pixel, in torch's mix of float and double.
struct Taps {
  std::size_t first = 0;
  std::vector<float> weights;
};

std::vector<Taps> triangle_taps(std::int64_t source, std::int64_t target) {
  const float scale = static_cast<float>(source) / static_cast<float>(target);
  const float support = std::max(scale, 1.0F);
  const float inverse = 1.0F / support;
  std::vector<Taps> all(static_cast<std::size_t>(target));
  for (std::int64_t out = 0; out < target; ++out) {
    const auto center = static_cast<float>(static_cast<double>(scale) * (static_cast<double>(out) + 0.5));
    const auto reach = [&](float edge) { return static_cast<std::int64_t>(static_cast<double>(edge) + 0.5); };
    const std::int64_t first = std::max<std::int64_t>(reach(center - support), 0);
    const std::int64_t most = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
    const std::int64_t count = std::clamp<std::int64_t>(std::min(reach(center + support), source) - first, 0, most);
    Taps& taps = all[static_cast<std::size_t>(out)];
    taps.first = static_cast<std::size_t>(first);
    float total = 0.0F;
    for (std::int64_t tap = 0; tap < count; ++tap) {
      const double offset = static_cast<double>(static_cast<float>(first + tap) - center) + 0.5;
      const auto distance = static_cast<float>(offset * static_cast<double>(inverse));
      taps.weights.push_back(std::max(1.0F - std::abs(distance), 0.0F));
      total += taps.weights.back();
    }
    for (float& weight : taps.weights) {
      weight /= total;
    }
  }
  return all;
}

// Resizes the rows of [height, width] to `target` columns and transposes: [target, height]. Taps are added first to
// last; torch's AVX2 loop multiplies and adds blocks of four, and fuses what is left.
std::vector<float> resampled_across(std::span<const float> values, std::size_t height, std::size_t width,
                                    std::size_t target) {
  constexpr std::size_t kVector = 4;
  const std::vector<Taps> table = triangle_taps(static_cast<std::int64_t>(width), static_cast<std::int64_t>(target));
  std::vector<float> out(target * height);
  for (std::size_t x = 0; x < target; ++x) {
    const Taps& taps = table[x];
    const std::size_t unfused = taps.weights.empty() ? 0 : (taps.weights.size() - 1) / kVector * kVector;
    for (std::size_t y = 0; y < height; ++y) {
      const float* from = &values[y * width + std::min(taps.first, width - 1)];
      float total = taps.weights.empty() ? 0.0F : from[0] * taps.weights[0];
      for (std::size_t tap = 1; tap < taps.weights.size(); ++tap) {
        const float weight = taps.weights[tap];
        if (tap > unfused) {
          total = static_cast<float>(static_cast<double>(total) +
                                     static_cast<double>(from[tap]) * static_cast<double>(weight));
        } else {
          total += from[tap] * weight;
        }
      }
      out[x * height + y] = total;
    }
  }
  return out;
}

void check_view(const void* data, std::int64_t height, std::int64_t width, std::ptrdiff_t row_bytes,
                std::int64_t pixel_bytes, std::string_view what) {
  constexpr std::int64_t kLargest = 1 << 16;  // a side; keeps every product below 2^63
  if (data == nullptr || height < 1 || width < 1 || height > kLargest || width > kLargest ||
      row_bytes < width * pixel_bytes) {
    const std::string got = (data == nullptr ? "no memory, " : "") + std::to_string(height) + " x " +
                            std::to_string(width) + ", " + std::to_string(row_bytes) + " bytes a row";
    throw PromptError(
        expected(what, got, "Give height, width and bytes from row to row of what the pointer points to"));
  }
}

}  // namespace

void ImageView::check() const {
  check_view(data, height, width, row_bytes, kChannels,
             "a frame of at least one pixel with rows of at least 3 bytes a pixel");
  if (format != PixelFormat::Rgb8 && format != PixelFormat::Bgr8) {
    throw PromptError(
        expected("pixel format Rgb8 or Bgr8", std::to_string(static_cast<int>(format)), "Convert the frame"));
  }
}

void MaskView::check() const {
  check_view(data, height, width, row_bytes, 1, "a mask of at least one pixel with rows of at least a byte a pixel");
}

void frame_to_pixels(const ImageView& frame, std::int64_t size, std::span<std::uint8_t> pixels) {
  const auto side = static_cast<std::size_t>(size);
  Pixels work{static_cast<std::size_t>(frame.height), static_cast<std::size_t>(frame.width), {}};
  work.bytes.reserve(work.height * work.width * kChannels);
  for (std::size_t y = 0; y < work.height; ++y) {
    const std::uint8_t* row = frame.data + static_cast<std::ptrdiff_t>(y) * frame.row_bytes;
    work.bytes.insert(work.bytes.end(), row, row + work.width * kChannels);
  }
  const bool height_now = height_first(work.height, work.width, side);
  if (height_now) {
    work = resized_columns(work, side);
  }
  if (work.width != side) {
    work = resized_rows(work, side);
  }
  if (work.height != side) {
    work = resized_columns(work, side);
  }
  for (std::size_t c = 0; c < kChannels; ++c) {
    const std::size_t from = frame.format == PixelFormat::Rgb8 ? c : kChannels - 1 - c;
    for (std::size_t i = 0; i < side * side; ++i) {
      pixels[c * side * side + i] = work.bytes[i * kChannels + from];
    }
  }
}

void mask_to_input(const MaskView& mask, std::int64_t size, std::span<float> resized) {
  const auto height = static_cast<std::size_t>(mask.height);
  const auto width = static_cast<std::size_t>(mask.width);
  const auto side = static_cast<std::size_t>(size);
  std::vector<float> values(height * width);
  for (std::size_t y = 0; y < height; ++y) {
    const std::uint8_t* row = mask.data + static_cast<std::ptrdiff_t>(y) * mask.row_bytes;
    std::transform(row, row + width, values.begin() + static_cast<std::ptrdiff_t>(y * width),
                   [](std::uint8_t pixel) { return pixel == 0 ? 0.0F : 1.0F; });
  }
  if (height == side && width == side) {
    std::ranges::copy(values, resized.begin());
    return;
  }
  const std::vector<float> across = resampled_across(values, height, width, side);  // [S, H]
  const std::vector<float> both = resampled_across(across, side, height, side);     // NOLINT(*-suspicious-*): [S, S]
  std::ranges::transform(both, resized.begin(), [](float value) { return value >= 0.5F ? 1.0F : 0.0F; });
}

}  // namespace fastsam2
