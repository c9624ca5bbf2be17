#include "rows.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace fastsam2 {

namespace {

constexpr std::uint16_t kQuietNan = 0x7FC0;

std::uint16_t rounded(float value) {
  if (std::isnan(value)) {
    return kQuietNan;
  }
  const auto word = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((word + 0x7FFFU + ((word >> 16) & 1U)) >> 16);
}

float widened(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace

void to_bfloat16(std::span<const float> values, std::span<std::uint16_t> bits) {
  std::ranges::transform(values, bits.begin(), rounded);
}

void from_bfloat16(std::span<const std::uint16_t> bits, std::span<float> values) {
  std::ranges::transform(bits, values.begin(), widened);
}

std::vector<std::int32_t> top_k(std::span<const float> scores, std::int64_t k) {
  const auto ranks_before = [&](std::int32_t a, std::int32_t b) {
    const float first = scores[static_cast<std::size_t>(a)];
    const float second = scores[static_cast<std::size_t>(b)];
    if (std::isnan(first) || std::isnan(second)) {
      return std::isnan(first) == std::isnan(second) ? a < b : std::isnan(second);
    }
    return first == second ? a < b : first > second;
  };
  std::vector<std::int32_t> index(scores.size());
  std::iota(index.begin(), index.end(), 0);
  std::nth_element(index.begin(), index.begin() + k, index.end(), ranks_before);
  index.resize(static_cast<std::size_t>(k));
  std::ranges::sort(index);
  return index;
}

void pool_2x2(std::span<const std::uint16_t> rows, std::int64_t grid, std::span<std::uint16_t> pooled) {
  const auto side = static_cast<std::size_t>(grid);
  const std::size_t half = side / 2;
  const std::size_t width = rows.size() / (side * side);
  for (std::size_t cell = 0; cell < half * half; ++cell) {
    const std::size_t corner = (cell / half * 2 * side + cell % half * 2) * width;
    for (std::size_t d = 0; d < width; ++d) {
      const std::size_t at = corner + d;
      const float sum = ((widened(rows[at]) + widened(rows[at + width])) + widened(rows[at + side * width])) +
                        widened(rows[at + side * width + width]);
      pooled[cell * width + d] = rounded(sum / 4.0F);
    }
  }
}

}  // namespace fastsam2
