#include "frame_tables.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace fastsam2::gpu {

namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;  // of Pillow's fixed-point weights
constexpr double kSupport = 2.0;            // of the bicubic, in output pixels

double bicubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * kA;
  return 0.0;
}

std::int32_t fixed_point(double weight) {
  return static_cast<std::int32_t>(weight * (1 << kPrecisionBits) + (weight < 0.0 ? -0.5 : 0.5));
}

template <typename Entry>
void append(std::vector<std::byte>& data, const Entry& entry) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&entry);
  data.insert(data.end(), bytes, bytes + sizeof entry);
}

}  // namespace

int resize_taps(std::int64_t source, std::int64_t target) {
  const double scale = std::max(static_cast<double>(source) / static_cast<double>(target), 1.0);
  return static_cast<int>(std::ceil(kSupport * scale)) * 2 + 1;
}

ResizeTable resize_table(std::int64_t source, std::int64_t target) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double filter_scale = std::max(scale, 1.0);
  const double support = kSupport * filter_scale;
  const auto taps = static_cast<std::size_t>(resize_taps(source, target));
  ResizeTable table;
  std::vector<double> weights(taps);
  for (std::int64_t out = 0; out < target; ++out) {
    const double center = (static_cast<double>(out) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
    const auto count = std::min(static_cast<std::int64_t>(center + support + 0.5), source) - first;
    std::ranges::fill(weights, 0.0);
    double total = 0.0;
    for (std::int64_t tap = 0; tap < count; ++tap) {
      const double weight = bicubic((static_cast<double>(tap + first) - center + 0.5) * (1.0 / filter_scale));
      weights[static_cast<std::size_t>(tap)] = weight;
      total += weight;
    }
    table.bounds.push_back(static_cast<std::int32_t>(first));
    table.bounds.push_back(static_cast<std::int32_t>(count));
    for (const double weight : weights) {
      table.weights.push_back(fixed_point(weight / (total == 0.0 ? 1.0 : total)));
    }
  }
  return table;
}

bool rows_first(std::int64_t height, std::int64_t width, std::int64_t size) {
  return height > size && width != size && height - size > 2 * (width - size);
}

std::vector<fastsam2_lerp> lerp_table(std::int64_t source, std::int64_t target) {
  const float scale = static_cast<float>(source) / static_cast<float>(target);
  const auto last = static_cast<int>(source - 1);
  std::vector<fastsam2_lerp> table;
  for (std::int64_t out = 0; out < target; ++out) {
    const double exact = static_cast<double>(scale) * (static_cast<double>(out) + 0.5) - 0.5;
    const auto point = static_cast<float>(std::max(exact, 0.0));
    const int low = std::min(static_cast<int>(point), last);
    const float weight = std::clamp(point - static_cast<float>(low), 0.0F, 1.0F);
    table.push_back({low, std::min(low + 1, last), 1.0F - weight, weight});
  }
  return table;
}

MemoryTable memory_table(std::span<const Reading> readings) {
  MemoryTable table;
  table.batch = static_cast<std::int64_t>(readings.size());
  table.pointers = static_cast<std::int64_t>(readings[0].pointers.size());
  int object = 0;
  for (const Reading& reading : readings) {
    std::int64_t first = 0;
    for (const Reading::Frame& frame : reading.frames) {
      append(table.data,
             fastsam2_memory_entry{static_cast<const unsigned short*>(frame.rows.data()),
                                   static_cast<const int*>(frame.position.data()), object, static_cast<int>(first),
                                   static_cast<int>(frame.position.size()), frame.age});
      first += frame.position.size();
      ++table.entries;
    }
    table.rows = object == 0 ? first : table.rows;
    if (first != table.rows || static_cast<std::int64_t>(reading.pointers.size()) != table.pointers) {
      const std::string got = std::to_string(first) + " and " + std::to_string(reading.pointers.size());
      throw InternalError(expected("objects with equally many rows and pointers", got, "Run others as another batch"));
    }
    ++object;
  }
  for (const Reading& reading : readings) {
    for (const Reading::Pointer& own : reading.pointers) {
      append(table.data, fastsam2_pointer_entry{static_cast<const float*>(own.pointer.data()), own.offset, 0});
    }
  }
  return table;
}

}  // namespace fastsam2::gpu
