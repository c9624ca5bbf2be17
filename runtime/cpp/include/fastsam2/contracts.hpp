// Written by `python -m fastsam2.runtime.contracts_header` from fastsam2/{contracts,config,enums}.py: not to be edited.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace fastsam2 {

inline constexpr std::int32_t kManifestVersion = 2;
inline constexpr std::int32_t kClipContext = 77;
inline constexpr std::int32_t kImageStride = 16;
inline constexpr std::int32_t kImageSizeMultiple = 32;
inline constexpr std::int32_t kLowResStride = 4;
inline constexpr std::int32_t kLabelPadding = -1;
inline constexpr std::int32_t kLabelNegative = 0;
inline constexpr std::int32_t kLabelPositive = 1;
inline constexpr std::int32_t kLabelBoxMin = 2;
inline constexpr std::int32_t kLabelBoxMax = 3;
inline constexpr float kMaskLogitClamp = 32.0F;
inline constexpr float kNoObjectLogit = -1024.0F;
inline constexpr std::array<double, 6> kKeepBuckets{0.02, 0.05, 0.1, 0.25, 0.5, 1.0};

enum class GraphRole : std::uint8_t { ImageEncoder, MemoryAttention, QueryAttention, MaskDecoder, MaskPrompt, MemoryEncoder, TextEncoder, CropEncoder, Router, RouterGather };
inline constexpr std::array<std::string_view, 10> kGraphRoleNames{"image_encoder", "memory_attention", "query_attention", "mask_decoder", "mask_prompt", "memory_encoder", "text_encoder", "crop_encoder", "router", "router_gather"};
constexpr std::string_view name_of(GraphRole value) { return kGraphRoleNames[static_cast<std::size_t>(value)]; }

enum class ExportTarget : std::uint8_t { Onnxruntime, Tensorrt };
inline constexpr std::array<std::string_view, 2> kExportTargetNames{"onnxruntime", "tensorrt"};
constexpr std::string_view name_of(ExportTarget value) { return kExportTargetNames[static_cast<std::size_t>(value)]; }

enum class PrunePolicy : std::uint8_t { Dense, Random, Uniform, Mask, Pool2x2, Router };
inline constexpr std::array<std::string_view, 6> kPrunePolicyNames{"dense", "random", "uniform", "mask", "pool2x2", "router"};
constexpr std::string_view name_of(PrunePolicy value) { return kPrunePolicyNames[static_cast<std::size_t>(value)]; }

enum class Protect : std::uint8_t { Prompt, Newest };
inline constexpr std::array<std::string_view, 2> kProtectNames{"prompt", "newest"};
constexpr std::string_view name_of(Protect value) { return kProtectNames[static_cast<std::size_t>(value)]; }

enum class Alarm : std::uint8_t { Score, Iou, Area };
inline constexpr std::array<std::string_view, 3> kAlarmNames{"object score dropped", "predicted IoU dropped", "mask area jumped"};
constexpr std::string_view name_of(Alarm value) { return kAlarmNames[static_cast<std::size_t>(value)]; }

// One input or output of a graph.
struct TensorSpec {
  std::string_view name;
  std::string_view dtype;  // numpy's name of it
  std::string_view axes;   // symbols of fastsam2/contracts.py, blanks between them
};

struct GraphSpec {
  GraphRole role;
  std::span<const TensorSpec> inputs;   // in positional order
  std::span<const TensorSpec> outputs;  // in positional order
};

namespace tables {
inline constexpr std::array<TensorSpec, 1> ImageEncoderInputs{
    TensorSpec{"pixels", "uint8", "1 3 S S"},
};
inline constexpr std::array<TensorSpec, 3> ImageEncoderOutputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"high_res_0", "float32", "1 C/8 L L"},
    TensorSpec{"high_res_1", "float32", "1 C/4 L/2 L/2"},
};
inline constexpr GraphSpec ImageEncoder{GraphRole::ImageEncoder, ImageEncoderInputs, ImageEncoderOutputs};
inline constexpr std::array<TensorSpec, 6> MemoryAttentionInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"memory", "float32", "B M D"},
    TensorSpec{"position", "int32", "B M"},
    TensorSpec{"age", "int32", "B M"},
    TensorSpec{"pointers", "float32", "B P C"},
    TensorSpec{"pointer_offset", "float32", "B P"},
};
inline constexpr std::array<TensorSpec, 1> MemoryAttentionOutputs{
    TensorSpec{"conditioned", "float32", "B N C"},
};
inline constexpr GraphSpec MemoryAttention{GraphRole::MemoryAttention, MemoryAttentionInputs, MemoryAttentionOutputs};
inline constexpr std::array<TensorSpec, 7> MemoryAttentionForTensorrtInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"memory", "float32", "B M D"},
    TensorSpec{"position", "int32", "B M"},
    TensorSpec{"age", "int32", "B M"},
    TensorSpec{"pointers", "float32", "B P C"},
    TensorSpec{"pointer_offset", "float32", "B P"},
    TensorSpec{"memory_bias", "float32", "B R"},
};
inline constexpr std::array<TensorSpec, 1> MemoryAttentionForTensorrtOutputs{
    TensorSpec{"conditioned", "float32", "B N C"},
};
inline constexpr GraphSpec MemoryAttentionForTensorrt{GraphRole::MemoryAttention, MemoryAttentionForTensorrtInputs, MemoryAttentionForTensorrtOutputs};
inline constexpr std::array<TensorSpec, 8> QueryAttentionInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"query_position", "int32", "B K"},
    TensorSpec{"source", "int32", "B N"},
    TensorSpec{"memory", "float32", "B M D"},
    TensorSpec{"position", "int32", "B M"},
    TensorSpec{"age", "int32", "B M"},
    TensorSpec{"pointers", "float32", "B P C"},
    TensorSpec{"pointer_offset", "float32", "B P"},
};
inline constexpr std::array<TensorSpec, 1> QueryAttentionOutputs{
    TensorSpec{"conditioned", "float32", "B N C"},
};
inline constexpr GraphSpec QueryAttention{GraphRole::QueryAttention, QueryAttentionInputs, QueryAttentionOutputs};
inline constexpr std::array<TensorSpec, 9> QueryAttentionForTensorrtInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"query_position", "int32", "B K"},
    TensorSpec{"source", "int32", "B N"},
    TensorSpec{"memory", "float32", "B M D"},
    TensorSpec{"position", "int32", "B M"},
    TensorSpec{"age", "int32", "B M"},
    TensorSpec{"pointers", "float32", "B P C"},
    TensorSpec{"pointer_offset", "float32", "B P"},
    TensorSpec{"memory_bias", "float32", "B R"},
};
inline constexpr std::array<TensorSpec, 1> QueryAttentionForTensorrtOutputs{
    TensorSpec{"conditioned", "float32", "B N C"},
};
inline constexpr GraphSpec QueryAttentionForTensorrt{GraphRole::QueryAttention, QueryAttentionForTensorrtInputs, QueryAttentionForTensorrtOutputs};
inline constexpr std::array<TensorSpec, 9> MaskDecoderInputs{
    TensorSpec{"conditioned", "float32", "B N C"},
    TensorSpec{"high_res_0", "float32", "1 C/8 L L"},
    TensorSpec{"high_res_1", "float32", "1 C/4 L/2 L/2"},
    TensorSpec{"points", "float32", "B Q 2"},
    TensorSpec{"labels", "int32", "B Q"},
    TensorSpec{"mask_prompt", "float32", "B 1 L L"},
    TensorSpec{"has_mask", "bool", "B"},
    TensorSpec{"multimask", "bool", "B"},
    TensorSpec{"first_frame", "bool", "B"},
};
inline constexpr std::array<TensorSpec, 4> MaskDecoderOutputs{
    TensorSpec{"low_res_logits", "float32", "B 1 L L"},
    TensorSpec{"iou", "float32", "B"},
    TensorSpec{"pointer", "float32", "B C"},
    TensorSpec{"object_score", "float32", "B"},
};
inline constexpr GraphSpec MaskDecoder{GraphRole::MaskDecoder, MaskDecoderInputs, MaskDecoderOutputs};
inline constexpr std::array<TensorSpec, 4> MaskPromptInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"high_res_0", "float32", "1 C/8 L L"},
    TensorSpec{"high_res_1", "float32", "1 C/4 L/2 L/2"},
    TensorSpec{"mask", "float32", "B 1 S S"},
};
inline constexpr std::array<TensorSpec, 3> MaskPromptOutputs{
    TensorSpec{"low_res_logits", "float32", "B 1 L L"},
    TensorSpec{"pointer", "float32", "B C"},
    TensorSpec{"object_score", "float32", "B"},
};
inline constexpr GraphSpec MaskPrompt{GraphRole::MaskPrompt, MaskPromptInputs, MaskPromptOutputs};
inline constexpr std::array<TensorSpec, 4> MemoryEncoderInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"low_res_logits", "float32", "B 1 L L"},
    TensorSpec{"object_score", "float32", "B"},
    TensorSpec{"prompted", "bool", "B"},
};
inline constexpr std::array<TensorSpec, 1> MemoryEncoderOutputs{
    TensorSpec{"rows", "float32", "B N D"},
};
inline constexpr GraphSpec MemoryEncoder{GraphRole::MemoryEncoder, MemoryEncoderInputs, MemoryEncoderOutputs};
inline constexpr std::array<TensorSpec, 1> TextEncoderInputs{
    TensorSpec{"ids", "int32", "T 77"},
};
inline constexpr std::array<TensorSpec, 1> TextEncoderOutputs{
    TensorSpec{"text", "float32", "T E"},
};
inline constexpr GraphSpec TextEncoder{GraphRole::TextEncoder, TextEncoderInputs, TextEncoderOutputs};
inline constexpr std::array<TensorSpec, 1> CropEncoderInputs{
    TensorSpec{"crop", "uint8", "1 3 I I"},
};
inline constexpr std::array<TensorSpec, 1> CropEncoderOutputs{
    TensorSpec{"crop_embedding", "float32", "1 E"},
};
inline constexpr GraphSpec CropEncoder{GraphRole::CropEncoder, CropEncoderInputs, CropEncoderOutputs};
inline constexpr std::array<TensorSpec, 7> RouterInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"text", "float32", "B E"},
    TensorSpec{"has_text", "bool", "B"},
    TensorSpec{"low_res_logits", "float32", "B 1 L L"},
    TensorSpec{"uncertainty", "float32", "B N"},
    TensorSpec{"object_score", "float32", "B"},
    TensorSpec{"iou", "float32", "B"},
};
inline constexpr std::array<TensorSpec, 3> RouterOutputs{
    TensorSpec{"scores", "float32", "B N"},
    TensorSpec{"relevance", "float32", "B N"},
    TensorSpec{"context", "float32", "1 N"},
};
inline constexpr GraphSpec Router{GraphRole::Router, RouterInputs, RouterOutputs};
inline constexpr std::array<TensorSpec, 9> RouterGatherInputs{
    TensorSpec{"tokens", "float32", "1 N C"},
    TensorSpec{"text", "float32", "B E"},
    TensorSpec{"has_text", "bool", "B"},
    TensorSpec{"low_res_logits", "float32", "B 1 L L"},
    TensorSpec{"uncertainty", "float32", "B N"},
    TensorSpec{"object_score", "float32", "B"},
    TensorSpec{"iou", "float32", "B"},
    TensorSpec{"rows", "float32", "B N D"},
    TensorSpec{"k", "int32", "1"},
};
inline constexpr std::array<TensorSpec, 5> RouterGatherOutputs{
    TensorSpec{"scores", "float32", "B N"},
    TensorSpec{"relevance", "float32", "B N"},
    TensorSpec{"context", "float32", "1 N"},
    TensorSpec{"kept", "float32", "B K D"},
    TensorSpec{"index", "int32", "B K"},
};
inline constexpr GraphSpec RouterGather{GraphRole::RouterGather, RouterGatherInputs, RouterGatherOutputs};
}  // namespace tables

// The table of one graph as shaped for `target`.
constexpr const GraphSpec& graph_spec(GraphRole role, ExportTarget target) {
  if (role == GraphRole::MemoryAttention && target == ExportTarget::Tensorrt) return tables::MemoryAttentionForTensorrt;
  if (role == GraphRole::QueryAttention && target == ExportTarget::Tensorrt) return tables::QueryAttentionForTensorrt;
  switch (role) {
    case GraphRole::ImageEncoder: return tables::ImageEncoder;
    case GraphRole::MemoryAttention: return tables::MemoryAttention;
    case GraphRole::QueryAttention: return tables::QueryAttention;
    case GraphRole::MaskDecoder: return tables::MaskDecoder;
    case GraphRole::MaskPrompt: return tables::MaskPrompt;
    case GraphRole::MemoryEncoder: return tables::MemoryEncoder;
    case GraphRole::TextEncoder: return tables::TextEncoder;
    case GraphRole::CropEncoder: return tables::CropEncoder;
    case GraphRole::Router: return tables::Router;
    case GraphRole::RouterGather: break;
  }
  return tables::RouterGather;
}

}  // namespace fastsam2
