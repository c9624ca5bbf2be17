// The plugin's logic without libnvinfer: small fakes implement TensorRT's public interfaces, and enqueue runs the kernel on the host.
#include "../../kernels/plugin/top_k_gather_plugin.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;
using fastsam2::TopKGatherCreator;
using fastsam2::TopKGatherPlugin;

namespace {

int failures = 0;

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      std::printf("line %d: %s\n", __LINE__, #condition);             \
      ++failures;                                                     \
    }                                                                 \
  } while (false)

class Expr final : public IDimensionExpr {
 public:
  explicit Expr(int64_t value) : impl(value) { mImpl = &impl; }
  Expr(Expr const&) = delete;

 private:
  struct Impl final : apiv::VDimensionExpr {
    explicit Impl(int64_t value_) : value(value_) {}
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
  } impl;
};

class Builder final : public IExprBuilder {
 public:
  Builder() { mImpl = &impl; }

 private:
  struct Impl final : apiv::VExprBuilder {
    IDimensionExpr const* constant(int64_t value) override {
      made.push_back(std::make_unique<Expr>(value));
      return made.back().get();
    }
    IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override { return nullptr; }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override { return nullptr; }
    std::vector<std::unique_ptr<Expr>> made;
  } impl;
};

class Finder final : public ILoggerFinder {
 public:
  struct Log final : ILogger {
    void log(Severity, AsciiChar const* message) noexcept override { last = message; }
    std::string last;
  } logger;
  ILogger* findLogger() override { return &logger; }
} finder;

Dims dims(std::initializer_list<int64_t> sizes) {
  Dims made{};
  for (const int64_t size : sizes) made.d[made.nbDims++] = size;
  return made;
}

PluginTensorDesc tensor(DataType type, std::initializer_list<int64_t> sizes, TensorFormat format = TensorFormat::kLINEAR) {
  PluginTensorDesc desc{};
  desc.dims = dims(sizes);
  desc.type = type;
  desc.format = format;
  return desc;
}

DynamicPluginTensorDesc dynamic(PluginTensorDesc desc, Dims min, Dims max) {
  DynamicPluginTensorDesc made{};
  made.desc = desc;
  made.min = min;
  made.opt = made.max = max;
  return made;
}

DimsExprs exprs(std::vector<std::unique_ptr<Expr>>& keep, std::initializer_list<int64_t> sizes) {
  DimsExprs made{};
  for (const int64_t size : sizes) {
    keep.push_back(std::make_unique<Expr>(size));
    made.d[made.nbDims++] = keep.back().get();
  }
  return made;
}

bool logged(char const* text) { return finder.logger.last.find(text) != std::string::npos; }

IPluginV3* create(TopKGatherCreator& creator, std::vector<PluginField> fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  finder.logger.last.clear();
  return creator.createPlugin("gather", &collection, phase);
}

void test_creator() {
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = getCreators(count);
  CHECK(count == 1);
  auto& creator = *static_cast<TopKGatherCreator*>(creators[0]);
  CHECK(std::string(creator.getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
  CHECK(std::string(creator.getPluginName()) == "TopKGather" && std::string(creator.getPluginVersion()) == "1");
  CHECK(std::string(creator.getPluginNamespace()) == "fastsam2");
  CHECK(creator.getFieldNames()->nbFields == 1 && std::string(creator.getFieldNames()->fields[0].name) == "k");

  const int32_t five = 5, negative = -1, large = 16385;
  const int64_t six = 6;
  const float half = 0.5f;
  for (const auto& [field, k] : {std::pair{PluginField("k", &five, PluginFieldType::kINT32, 1), 5},
                                 std::pair{PluginField("k", &six, PluginFieldType::kINT64, 1), 6},
                                 std::pair{PluginField("unknown", &half, PluginFieldType::kFLOAT32, 1), -1}}) {
    std::unique_ptr<IPluginV3> plugin(create(creator, {field}));
    CHECK(plugin != nullptr);
    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginFieldCollection const* saved = runtime->getFieldsToSerialize();
    CHECK(saved->nbFields == 1 && saved->fields[0].type == PluginFieldType::kINT32 && saved->fields[0].length == 1);
    CHECK(*static_cast<int32_t const*>(saved->fields[0].data) == k);
    std::unique_ptr<IPluginV3> restored(create(creator, {saved->fields[0]}, TensorRTPhase::kRUNTIME));
    std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
    std::unique_ptr<IPluginV3> cloned(plugin->clone());
    plugin.reset();
    for (IPluginV3* copy : {restored.get(), attached.get(), cloned.get()}) {
      auto* copied = static_cast<IPluginV3OneRuntime*>(copy->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
      CHECK(*static_cast<int32_t const*>(copied->getFieldsToSerialize()->fields[0].data) == k);
    }
  }
  for (const PluginField& field :
       {PluginField("k", &negative, PluginFieldType::kINT32, 1), PluginField("k", &large, PluginFieldType::kINT32, 1),
        PluginField("k", &half, PluginFieldType::kFLOAT32, 1), PluginField("k", nullptr, PluginFieldType::kINT32, 1)}) {
    CHECK(create(creator, {field}) == nullptr);
    CHECK(logged("k must be one integer in 0..16384"));
  }
}

void test_capabilities() {
  TopKGatherPlugin plugin(3);
  auto* core = static_cast<IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE));
  auto* build = static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  CHECK(std::string(core->getInterfaceInfo().kind) == "PLUGIN_V3ONE_CORE" && std::string(core->getPluginName()) == "TopKGather");
  CHECK(std::string(build->getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD" && build->getNbOutputs() == 2);
  CHECK(std::string(runtime->getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
  CHECK(build->getWorkspaceSize(nullptr, 2, nullptr, 2) == 0);
}

void test_shapes() {
  std::vector<std::unique_ptr<Expr>> keep;
  Builder builder;
  const DimsExprs inputs[] = {exprs(keep, {4, 4096}), exprs(keep, {4, 4096, 64})};
  const DimsExprs k = exprs(keep, {205}), two = exprs(keep, {205, 7});
  DimsExprs outputs[2]{};
  const auto expect = [&](int64_t kept) {
    CHECK(outputs[0].nbDims == 3 && outputs[0].d[0]->getConstantValue() == 4 && outputs[0].d[1]->getConstantValue() == kept &&
          outputs[0].d[2]->getConstantValue() == 64);
    CHECK(outputs[1].nbDims == 2 && outputs[1].d[0]->getConstantValue() == 4 && outputs[1].d[1]->getConstantValue() == kept);
  };
  TopKGatherPlugin attribute(77), shape(fastsam2::kShapeInput);
  CHECK(attribute.getOutputShapes(inputs, 2, nullptr, 0, outputs, 2, builder) == 0);
  expect(77);
  CHECK(shape.getOutputShapes(inputs, 2, &k, 1, outputs, 2, builder) == 0);
  expect(205);
  CHECK(outputs[0].d[1] == k.d[0]);
  CHECK(attribute.getOutputShapes(inputs, 2, &k, 1, outputs, 2, builder) != 0 && logged("not both"));
  CHECK(shape.getOutputShapes(inputs, 2, nullptr, 0, outputs, 2, builder) != 0);
  CHECK(shape.getOutputShapes(inputs, 2, &two, 1, outputs, 2, builder) != 0);
  CHECK(attribute.getOutputShapes(inputs, 1, nullptr, 0, outputs, 2, builder) != 0);
  const DimsExprs swapped[] = {inputs[1], inputs[0]};
  CHECK(attribute.getOutputShapes(swapped, 2, nullptr, 0, outputs, 2, builder) != 0 && logged("scores [B,N]"));

  DataType types[2];
  for (const DataType rows : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    const DataType given[] = {DataType::kHALF, rows};
    CHECK(attribute.getOutputDataTypes(types, 2, given, 2) == 0 && types[0] == rows && types[1] == DataType::kINT32);
  }
}

void test_formats() {
  TopKGatherPlugin plugin(5);
  const auto supported = [&](int32_t pos, std::vector<PluginTensorDesc> descs, int32_t inputs) {
    std::vector<DynamicPluginTensorDesc> all;
    for (const PluginTensorDesc& desc : descs) all.push_back(dynamic(desc, desc.dims, desc.dims));
    all.resize(inputs + 2);
    return plugin.supportsFormatCombination(pos, all.data(), inputs, 2);
  };
  const auto scores = tensor(DataType::kFLOAT, {1, 8}), rows = tensor(DataType::kBF16, {1, 8, 8});
  CHECK(supported(0, {scores}, 2) && supported(0, {tensor(DataType::kHALF, {1, 8})}, 2));
  CHECK(!supported(0, {tensor(DataType::kBF16, {1, 8})}, 2) && !supported(0, {tensor(DataType::kINT32, {1, 8})}, 2));
  CHECK(!supported(0, {tensor(DataType::kHALF, {1, 8}, TensorFormat::kCHW2)}, 2));
  CHECK(supported(1, {scores, rows}, 2) && supported(1, {scores, tensor(DataType::kFLOAT, {1, 8, 8})}, 2));
  CHECK(!supported(1, {scores, tensor(DataType::kBOOL, {1, 8, 8})}, 2));
  CHECK(!supported(1, {scores, tensor(DataType::kHALF, {1, 8, 8}, TensorFormat::kHWC8)}, 2));
  CHECK(supported(2, {scores, rows, rows}, 2) && !supported(2, {scores, rows, tensor(DataType::kHALF, {1, 5, 8})}, 2));
  const auto index = tensor(DataType::kINT32, {1, 5});
  CHECK(supported(3, {scores, rows, rows, index}, 2) && !supported(3, {scores, rows, rows, tensor(DataType::kINT64, {1, 5})}, 2));
  CHECK(supported(2, {scores, rows, tensor(DataType::kINT64, {})}, 3) && supported(2, {scores, rows, tensor(DataType::kINT32, {})}, 3));
  CHECK(!supported(2, {scores, rows, tensor(DataType::kFLOAT, {})}, 3));
  CHECK(supported(3, {scores, rows, index, rows}, 3) && supported(4, {scores, rows, index, rows, index}, 3));
}

int32_t configure(TopKGatherPlugin& plugin, Dims min, Dims max, std::initializer_list<int64_t> rows, DataType type = DataType::kBF16) {
  Dims most = dims(rows);
  most.d[0] = max.d[0];
  most.d[1] = max.d[1];
  const DynamicPluginTensorDesc in[] = {dynamic(tensor(DataType::kFLOAT, {-1, -1}), min, max), dynamic(tensor(type, rows), min, most)};
  return plugin.configurePlugin(in, 2, nullptr, 2);
}

void test_configuration() {
  TopKGatherPlugin plugin(100);
  CHECK(configure(plugin, dims({1, 100}), dims({4, 16384}), {-1, -1, 64}) == 0);
  CHECK(configure(plugin, dims({1, 99}), dims({4, 16384}), {-1, -1, 64}) != 0 && logged("smallest N"));
  CHECK(configure(plugin, dims({1, 100}), dims({4, 16385}), {-1, -1, 64}) != 0 && logged("16384"));
  CHECK(configure(plugin, dims({1, 100}), dims({65536, 16384}), {-1, -1, 64}) != 0);
  CHECK(configure(plugin, dims({1, 100}), dims({4, 16384}), {-1, -1, 4}) != 0);
  CHECK(configure(plugin, dims({1, 100}), dims({4, 16384}), {-1, -1, 4}, DataType::kFLOAT) == 0);
  CHECK(configure(plugin, dims({1, 100}), dims({4, 16384}), {-1, -1, 64}, DataType::kBOOL) != 0);
  const PluginTensorDesc fine[] = {tensor(DataType::kFLOAT, {2, 9}), tensor(DataType::kHALF, {2, 9, 8})};
  const PluginTensorDesc uneven[] = {tensor(DataType::kFLOAT, {2, 9}), tensor(DataType::kHALF, {2, 8, 8})};
  CHECK(plugin.onShapeChange(fine, 2, nullptr, 2) == 0);
  CHECK(plugin.onShapeChange(uneven, 2, nullptr, 2) != 0);
}

void test_enqueue() {
  constexpr int kBatch = 2, kN = 5, kK = 3, kD = 8;
  const float scores[kBatch][kN] = {{0, 3, 1, 3, 2}, {5, 4, 3, 2, 1}};
  const int wanted[kBatch][kK] = {{1, 3, 4}, {0, 1, 2}};
  alignas(16) uint16_t rows[kBatch][kN][kD];
  for (int i = 0; i < kBatch * kN * kD; ++i) (&rows[0][0][0])[i] = static_cast<uint16_t>(i * 977);
  alignas(16) uint16_t kept[kBatch][kK][kD] = {};
  int index[kBatch][kK] = {};
  TopKGatherPlugin plugin(kK);
  const PluginTensorDesc in[] = {tensor(DataType::kFLOAT, {kBatch, kN}), tensor(DataType::kBF16, {kBatch, kN, kD})};
  PluginTensorDesc out[] = {tensor(DataType::kBF16, {kBatch, kK, kD}), tensor(DataType::kINT32, {kBatch, kK})};
  void const* inputs[] = {scores, rows};
  void* outputs[] = {kept, index};
  const auto stream = reinterpret_cast<cudaStream_t>(0x77700);
  CHECK(plugin.enqueue(in, out, inputs, outputs, nullptr, stream) == 0);
  for (int b = 0; b < kBatch; ++b) {
    for (int k = 0; k < kK; ++k) {
      CHECK(index[b][k] == wanted[b][k]);
      CHECK(std::memcmp(kept[b][k], rows[b][wanted[b][k]], sizeof kept[b][k]) == 0);
    }
  }
  host::Launch launch{};
  CHECK(host_launches(&launch) == 1 && launch.stream == stream && launch.grid[1] == kBatch);

  const uint16_t halves[kBatch][kN] = {{0, 0x4200, 0x3c00, 0x4200, 0x4000}, {0x4500, 0x4400, 0x4200, 0x4000, 0x3c00}};
  const PluginTensorDesc half[] = {tensor(DataType::kHALF, {kBatch, kN}), in[1]};
  void const* half_inputs[] = {halves, rows};
  std::memset(index, 0, sizeof index);
  CHECK(plugin.enqueue(half, out, half_inputs, outputs, nullptr, stream) == 0);
  CHECK(std::memcmp(index, wanted, sizeof index) == 0);

  out[0] = tensor(DataType::kBF16, {kBatch, kN + 1, kD});
  CHECK(plugin.enqueue(in, out, inputs, outputs, nullptr, stream) != 0 && logged("k must be in 0..n"));
}

}  // namespace

int main() {
  setLoggerFinder(&finder);
  test_creator();
  test_capabilities();
  test_shapes();
  test_formats();
  test_configuration();
  test_enqueue();
  std::printf("%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
