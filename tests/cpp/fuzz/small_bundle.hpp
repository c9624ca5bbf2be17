// A bundle of empty files with a small model: enough for the C interface, whose callback runs no graph.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fastsam2/contracts.hpp"

namespace fastsam2::fuzzing {

inline constexpr std::uint32_t kImageSize = 32;
inline constexpr std::uint32_t kTextDim = 4;

inline nlohmann::json tensors(std::span<const TensorSpec> specs) {
  nlohmann::json list = nlohmann::json::array();
  for (const TensorSpec& spec : specs) {
    nlohmann::json axes = nlohmann::json::array();
    for (std::string_view rest = spec.axes; !rest.empty();) {
      const std::size_t end = std::min(rest.find(' '), rest.size());
      axes.push_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    list.push_back({{"name", spec.name}, {"dtype", spec.dtype}, {"axes", axes}});
  }
  return list;
}

inline nlohmann::json small_manifest() {
  const std::string digest(64, '0');
  const nlohmann::json file{{"path", "empty"}, {"bytes", 0}, {"sha256", digest}};
  nlohmann::json graphs = nlohmann::json::array();
  for (const GraphRole role :
       {GraphRole::ImageEncoder, GraphRole::MemoryAttention, GraphRole::MaskDecoder, GraphRole::MaskPrompt,
        GraphRole::MemoryEncoder, GraphRole::TextEncoder, GraphRole::Router}) {
    const GraphSpec& spec = graph_spec(role, ExportTarget::Onnxruntime);
    graphs.push_back({{"role", name_of(role)},
                      {"target", name_of(ExportTarget::Onnxruntime)},
                      {"file", file},
                      {"opset", 23},
                      {"inputs", tensors(spec.inputs)},
                      {"outputs", tensors(spec.outputs)},
                      {"checks", nlohmann::json::object()}});
  }
  return {{"manifest_version", kManifestVersion},
          {"fastsam2_version", "0"},
          {"model",
           {{"name", "fuzzed"},
            {"image_size", kImageSize},
            {"hidden_dim", 16},
            {"memory_dim", 8},
            {"num_maskmem", 3},
            {"max_object_pointers", 4},
            {"multimask_min_points", 0},
            {"multimask_max_points", 1},
            {"multimask_for_tracking", true},
            {"pointer_offsets", true},
            {"signed_pointer_offsets", true},
            {"text_dim", kTextDim}}},
          {"graphs", graphs},
          {"origin", nlohmann::json::object()},
          {"text", {{"source", "none"}, {"tokenizer", file}}},
          {"router", {{"image_encoder", digest}, {"text_encoder", digest}, {"data", "none"}, {"steps", 1}}}};
}

// A folder that goes with the process.
class SmallBundle {
 public:
  SmallBundle() {
    std::string name = (std::filesystem::temp_directory_path() / "fastsam2-fuzz-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw std::runtime_error("no temporary folder");
    }
    folder_ = name;
    std::ofstream(folder_ / "manifest.json") << small_manifest();
    std::ofstream(folder_ / "empty").flush();
  }
  SmallBundle(const SmallBundle&) = delete;
  SmallBundle& operator=(const SmallBundle&) = delete;
  ~SmallBundle() {
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
};

}  // namespace fastsam2::fuzzing
