#include "top_k_gather_plugin.h"

#include "../cuda/top_k_gather.h"

#include <new>
#include <string>

namespace fastsam2 {
namespace {

using nvinfer1::DataType;

constexpr int32_t kFailed = 1;
constexpr int32_t kScores = 0, kRows = 1, kTensorInputs = 2;
constexpr int32_t kKept = 0, kIndex = 1, kOutputs = 2;

nvinfer1::ILoggerFinder* gLoggerFinder = nullptr;

int32_t fail(std::string const& what) noexcept {
  if (nvinfer1::ILogger* logger = gLoggerFinder == nullptr ? nullptr : gLoggerFinder->findLogger()) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, ("fastsam2 TopKGather: " + what).c_str());
  }
  return kFailed;
}

// Bytes of one element of the rows; 0 for types the kernel does not copy.
int32_t element_bytes(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    case DataType::kINT8: return 1;
    default: return 0;
  }
}

// Whether sizes, -1 where unknown, are ones the kernel takes.
bool legal(nvinfer1::Dims const& scores, nvinfer1::Dims const& rows, DataType rows_type) noexcept {
  const auto known = [](int64_t a, int64_t b) { return a < 0 || b < 0 || a == b; };
  if (scores.nbDims != 2 || rows.nbDims != 3 || !known(scores.d[0], rows.d[0]) || !known(scores.d[1], rows.d[1])) return false;
  if (scores.d[0] > FASTSAM2_TOP_K_GATHER_MAX_BATCH || scores.d[1] > FASTSAM2_TOP_K_GATHER_MAX_ROWS) return false;
  const int64_t row_bytes = rows.d[2] * element_bytes(rows_type);
  return rows.d[2] < 0 || (row_bytes > 0 && row_bytes % 16 == 0 && row_bytes <= FASTSAM2_TOP_K_GATHER_MAX_ROW_BYTES);
}

int32_t check(nvinfer1::Dims const& scores, nvinfer1::Dims const& rows, DataType rows_type) noexcept {
  if (legal(scores, rows, rows_type)) return 0;
  return fail("needs scores [B,N] and rows [B,N,D] of equal B <= 65535 and N <= 16384, a row of 16, 32, ... bytes up to 1 MiB");
}

}  // namespace

TopKGatherPlugin::TopKGatherPlugin(int32_t k) noexcept
    : mK(k), mField(kFieldK, &mK, nvinfer1::PluginFieldType::kINT32, 1), mFields{1, &mField} {}

nvinfer1::IPluginCapability* TopKGatherPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* TopKGatherPlugin::clone() noexcept { return new (std::nothrow) TopKGatherPlugin(mK); }

int32_t TopKGatherPlugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes,
                                             int32_t nbInputs) const noexcept {
  if (nbInputs < kTensorInputs || nbOutputs != kOutputs) return fail("needs the inputs scores and rows and has two outputs");
  outputTypes[kKept] = inputTypes[kRows];
  outputTypes[kIndex] = DataType::kINT32;
  return 0;
}

int32_t TopKGatherPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
                                          int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                                          nvinfer1::IExprBuilder& exprBuilder) noexcept {
  if (nbInputs < kTensorInputs || nbOutputs != kOutputs) return fail("needs the inputs scores and rows and has two outputs");
  if (inputs[kScores].nbDims != 2 || inputs[kRows].nbDims != 3) return fail("needs scores [B,N] and rows [B,N,D]");
  if (mK == kShapeInput ? nbShapeInputs != 1 || shapeInputs[0].nbDims != 1 : nbShapeInputs != 0) {
    return fail("needs k as an attribute or as one shape input of one element, not both");
  }
  nvinfer1::IDimensionExpr const* k = mK == kShapeInput ? shapeInputs[0].d[0] : exprBuilder.constant(mK);
  if (k == nullptr) return fail("could not express k");
  outputs[kKept].nbDims = 3;
  outputs[kKept].d[0] = inputs[kRows].d[0];
  outputs[kKept].d[1] = k;
  outputs[kKept].d[2] = inputs[kRows].d[2];
  outputs[kIndex].nbDims = 2;
  outputs[kIndex].d[0] = inputs[kScores].d[0];
  outputs[kIndex].d[1] = k;
  return 0;
}

// A shape input lies in host memory and behind the tensor inputs, counted among nbInputs or not; both are taken.
bool TopKGatherPlugin::supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                                 int32_t nbOutputs) noexcept {
  if (nbInputs < kTensorInputs || nbOutputs != kOutputs) return false;
  nvinfer1::PluginTensorDesc const& desc = inOut[pos].desc;
  if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (pos == kScores) return desc.type == DataType::kFLOAT || desc.type == DataType::kHALF;
  if (pos == kRows) return element_bytes(desc.type) != 0;
  if (pos < nbInputs) return desc.type == DataType::kINT32 || desc.type == DataType::kINT64;
  return desc.type == (pos - nbInputs == kKept ? inOut[kRows].desc.type : DataType::kINT32);
}

int32_t TopKGatherPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                                          nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
  if (nbInputs < kTensorInputs) return fail("needs the inputs scores and rows");
  if (const int32_t failed = check(in[kScores].desc.dims, in[kRows].desc.dims, in[kRows].desc.type)) return failed;
  if (const int32_t failed = check(in[kScores].max, in[kRows].max, in[kRows].desc.type)) return failed;
  const int64_t fewest = in[kScores].min.nbDims == 2 ? in[kScores].min.d[1] : -1;
  return fewest >= 0 && mK > fewest ? fail("k is larger than the profile's smallest N") : 0;
}

size_t TopKGatherPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const*, int32_t, nvinfer1::DynamicPluginTensorDesc const*,
                                          int32_t) const noexcept {
  return 0;
}

int32_t TopKGatherPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const*,
                                        int32_t) noexcept {
  if (nbInputs < kTensorInputs) return fail("needs the inputs scores and rows");
  return check(in[kScores].dims, in[kRows].dims, in[kRows].type);
}

int32_t TopKGatherPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                                  void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
  nvinfer1::Dims const& rows = inputDesc[kRows].dims;
  if (const int32_t failed = check(inputDesc[kScores].dims, rows, inputDesc[kRows].type)) return failed;
  fastsam2_top_k_gather_args args{};
  args.scores = inputs[kScores];
  args.rows = inputs[kRows];
  args.kept = outputs[kKept];
  args.index = static_cast<int*>(outputs[kIndex]);
  args.batch = static_cast<int>(rows.d[0]);
  args.n = static_cast<int>(rows.d[1]);
  args.k = static_cast<int>(outputDesc[kKept].dims.d[1]);
  args.row_bytes = static_cast<int>(rows.d[2]) * element_bytes(inputDesc[kRows].type);
  args.scores_batch_stride = args.n;
  args.rows_pitch = args.kept_pitch = args.row_bytes;
  args.rows_batch_stride = args.n * args.rows_pitch;
  args.kept_batch_stride = args.k * args.kept_pitch;
  args.index_batch_stride = args.k;
  const auto type = inputDesc[kScores].type == DataType::kHALF ? FASTSAM2_SCORES_FLOAT16 : FASTSAM2_SCORES_FLOAT32;
  const int status = fastsam2_top_k_gather(&args, type, stream);
  return status == 0 ? 0 : fail(fastsam2_top_k_gather_message(status));
}

nvinfer1::IPluginV3* TopKGatherPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* TopKGatherPlugin::getFieldsToSerialize() noexcept { return &mFields; }

TopKGatherCreator::TopKGatherCreator() noexcept
    : mField(kFieldK, nullptr, nvinfer1::PluginFieldType::kINT32, 1), mFields{1, &mField} {}

nvinfer1::IPluginV3* TopKGatherCreator::createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields,
                                                     nvinfer1::TensorRTPhase phase) noexcept {
  int64_t k = kShapeInput;
  bool is_legal = true;
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    nvinfer1::PluginField const& field = fields->fields[i];
    if (std::string(kFieldK) != field.name) continue;
    is_legal = field.data != nullptr;
    if (is_legal && field.type == nvinfer1::PluginFieldType::kINT32) {
      k = *static_cast<int32_t const*>(field.data);
    } else if (is_legal && field.type == nvinfer1::PluginFieldType::kINT64) {
      k = *static_cast<int64_t const*>(field.data);
    } else {
      is_legal = false;
    }
    const int64_t least = phase == nvinfer1::TensorRTPhase::kRUNTIME ? kShapeInput : 0;
    is_legal = is_legal && least <= k && k <= FASTSAM2_TOP_K_GATHER_MAX_ROWS;
  }
  if (!is_legal) {
    fail("the attribute k must be one integer in 0..16384; leave it out where k is a shape input");
    return nullptr;
  }
  return new (std::nothrow) TopKGatherPlugin(static_cast<int32_t>(k));
}

}  // namespace fastsam2

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) {
  static fastsam2::TopKGatherCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  nbCreators = 1;
  return creators;
}

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { fastsam2::gLoggerFinder = finder; }
