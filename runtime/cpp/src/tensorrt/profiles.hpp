// What engines have room for. Definition: engines/profiles.py.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fastsam2/config.hpp"

namespace fastsam2::gpu {

struct Limits {
  std::int64_t max_objects = 4;
  std::int64_t max_prompt_frames = 1;
  std::vector<double> keep_buckets;  // keep fractions with a profile of their own
  bool operator==(const Limits&) const = default;
};

// One optimization profile of a graph. Sizes and shapes are the smallest, the most likely and the largest.
struct Profile {
  using Dims = std::vector<std::int64_t>;
  std::string name;                                           // "dense", or "keep 0.05"
  std::map<std::string, std::array<std::int64_t, 3>> sizes;   // symbol of a dynamic axis
  std::map<std::string, std::array<Dims, 3>> shapes;          // input with dynamic axes
  std::map<std::string, std::array<std::int64_t, 3>> values;  // input that is a size itself
  bool operator==(const Profile&) const = default;
};

// Symbols of a tensor's axes.
std::vector<std::string> axes_of(const TensorSpec& tensor);

// A number as Python's format "g" and as options on a command line have it: "0.05", "1".
std::string short_text(double value);

// Profiles of one graph as shaped for the target tensorrt, the dense one first; none where all shapes are static.
std::vector<Profile> profiles(const ModelSpec& spec, GraphRole role, const Limits& limits);

}  // namespace fastsam2::gpu
