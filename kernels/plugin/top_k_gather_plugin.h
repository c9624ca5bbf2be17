// The top-k gather as a TensorRT layer (IPluginV3, TensorRT 10 and 11): ONNX operator TopKGather of domain "fastsam2".
//
//     scores float|half [B,N], rows [B,N,D] (, k int32|int64 shape input) --> kept rows [B,k,D], index int32 [B,k]
//
// k is the attribute `k`, or, where that is left out, the value of a shape input. Semantics in kernels/cuda/top_k_gather.h.
// The library is loaded with IPluginRegistry::loadLibrary (trtexec --staticPlugins), which calls getCreators; an application that links it
// statically registers TopKGatherCreator itself.
#pragma once

#include <NvInfer.h>

#include <cstdint>

namespace fastsam2 {

constexpr char const* kPluginName = "TopKGather";
constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "fastsam2";
constexpr char const* kFieldK = "k";
constexpr int32_t kShapeInput = -1;  // the attribute's value where k is a shape input

class TopKGatherPlugin final : public nvinfer1::IPluginV3,
                               public nvinfer1::IPluginV3OneCore,
                               public nvinfer1::IPluginV3OneBuild,
                               public nvinfer1::IPluginV3OneRuntime {
 public:
  // k: rows to keep, or kShapeInput.
  explicit TopKGatherPlugin(int32_t k) noexcept;

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kPluginName; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  int32_t getNbOutputs() const noexcept override { return 2; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
                          int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                          nvinfer1::IExprBuilder& exprBuilder) noexcept override;
  bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                 int32_t nbOutputs) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const* out,
                          int32_t nbOutputs) noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                          nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  int32_t mK;
  nvinfer1::PluginField mField;
  nvinfer1::PluginFieldCollection mFields;
};

class TopKGatherCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  TopKGatherCreator() noexcept;

  // Null, with the reason in the log, if k is neither absent nor one integer >= 0 (or, in a serialized engine, kShapeInput).
  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }
  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kPluginName; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  nvinfer1::PluginField mField;
  nvinfer1::PluginFieldCollection mFields;
};

}  // namespace fastsam2

// What IPluginRegistry::loadLibrary looks for.
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
