// Text -> Manifest or BundleError, nothing else. Mutates the JSON tree as well as its bytes, so that what lies behind
// the first checks is reached too.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "fastsam2/bundle.hpp"
#include "fastsam2/errors.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using Json = nlohmann::json;
using Random = std::minstd_rand;

void require(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "a manifest was accepted without %s\n", what);
    std::abort();
  }
}

// What every user of a manifest relies on.
void check(const fastsam2::Manifest& manifest) {
  using fastsam2::ExportTarget;
  const fastsam2::ModelSpec& spec = manifest.model;
  require(spec.grid() >= 2 && spec.tokens() >= 4 && spec.low_res() >= 8 && spec.image_size <= 65536, "a legal size");
  require(spec.num_maskmem >= 2 && spec.max_object_pointers >= 2 && spec.text_dim >= 1, "room for memories");
  std::vector<const fastsam2::FileEntry*> files;
  for (const fastsam2::GraphEntry& graph : manifest.graphs) {
    require(manifest.find(graph.role, graph.target) == &graph, "one graph of a role");
    files.push_back(&graph.file);
    for (const fastsam2::TensorSpec& tensor : fastsam2::graph_spec(graph.role, graph.target).outputs) {
      for (std::string_view axes = tensor.axes; !axes.empty();) {
        const std::size_t end = std::min(axes.find(' '), axes.size());
        require(fastsam2::static_size(spec, axes.substr(0, end)).value_or(0) >= 0, "sizes of its tensors");
        axes.remove_prefix(std::min(end + 1, axes.size()));
      }
    }
  }
  require(!files.empty(), "graphs");
  for (const fastsam2::FileEntry& file : manifest.companions) {
    files.push_back(&file);
  }
  for (const fastsam2::FileEntry* file : files) {
    const std::filesystem::path path = std::filesystem::path(file->path).lexically_normal();
    require(!path.empty() && path.is_relative() && *path.begin() != ".." && *path.begin() != ".", "paths inside");
    require(file->sha256.size() == 64, "a digest");
  }
}

std::size_t below(Random& random, std::size_t bound) {
  return std::uniform_int_distribution<std::size_t>(0, bound - 1)(random);
}

void collect(Json& node, std::vector<Json*>& nodes) {
  nodes.push_back(&node);
  for (Json& child : node) {
    if (child.is_structured()) {
      collect(child, nodes);
    } else {
      nodes.push_back(&child);
    }
  }
}

Json odd_value(Random& random) {
  static const std::vector<Json> kValues{nullptr,
                                         true,
                                         false,
                                         0,
                                         1,
                                         2,
                                         -1,
                                         32,
                                         65536,
                                         65568,
                                         INT64_MIN,
                                         INT64_MAX,
                                         UINT64_MAX,
                                         std::int64_t{1} << 53,
                                         0.5,
                                         1e308,
                                         "",
                                         ".",
                                         "../x",
                                         "/etc/passwd",
                                         "a//b",
                                         std::string("a\0b", 3),
                                         "fp32",
                                         "tensorrt",
                                         "text_encoder",
                                         "router",
                                         Json::array(),
                                         Json::object(),
                                         Json::array({Json::array({Json::array()})})};
  return kValues[below(random, kValues.size())];
}

void mutate(Json& json, Random& random) {
  std::vector<Json*> nodes;
  collect(json, nodes);
  Json& node = *nodes[below(random, nodes.size())];
  const Json& other = *nodes[below(random, nodes.size())];
  switch (below(random, 4)) {
    case 0:
      node = odd_value(random);
      break;
    case 1:
      node = Json(other);
      break;
    case 2:
      if (node.is_structured() && !node.empty()) {
        node.erase(std::next(node.begin(), static_cast<std::ptrdiff_t>(below(random, node.size()))));
      }
      break;
    default:
      if (node.is_array()) {
        node.push_back(Json(other));
      } else if (node.is_object()) {
        node[node.empty() || below(random, 2) == 0 ? "extra" : node.begin().key()] = Json(other);
      }
  }
}

// Whether a recursive walk of the text is harmless.
bool is_shallow(std::string_view text) {
  return std::ranges::count(text, '[') + std::ranges::count(text, '{') < 2000;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned int seed) {
  Random random(seed);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (below(random, 4) == 0 || !is_shallow(text)) {
    return LLVMFuzzerMutate(data, size, most);
  }
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) {
    return LLVMFuzzerMutate(data, size, most);
  }
  mutate(json, random);
  const std::string mutated = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (mutated.size() > most) {
    return LLVMFuzzerMutate(data, size, most);
  }
  std::memcpy(data, mutated.data(), mutated.size());
  return mutated.size();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(fastsam2::parse_manifest({reinterpret_cast<const char*>(data), size}));
  } catch (const fastsam2::BundleError& error) {
    require(std::strncmp(error.what(), "expected ", 9) == 0, "a reason");
  }
  return 0;
}
