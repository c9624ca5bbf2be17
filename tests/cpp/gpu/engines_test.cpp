// Which engines are accepted, and what is asked of TensorRT in which order.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "../unit/fake_backend.hpp"
#include "fake_gpu.hpp"
#include "sha256.hpp"
#include "tensorrt_engines.hpp"

namespace fastsam2::testing {
namespace {

namespace fs = std::filesystem;
using gpu::Dims;
using Json = nlohmann::json;

constexpr std::array kRoles{GraphRole::ImageEncoder, GraphRole::MemoryAttention, GraphRole::MaskDecoder,
                            GraphRole::MaskPrompt, GraphRole::MemoryEncoder};

// What a library was asked for, and what fails.
struct Library {
  std::string version = "10.9";
  std::vector<std::string> told;
  std::string fails;
  std::optional<std::string> refuses;
  std::map<std::string, std::string> dtypes;  // of tensors that are not those of the contract
  std::map<GraphRole, std::size_t> activations;
  std::string log;
  int alive = 0;

  bool works(const std::string& call) {
    if (call == fails) {
      log = call + " refused";
    }
    return call != fails;
  }
  [[nodiscard]] std::int64_t count(const std::string& call) const {
    return std::ranges::count_if(told, [&](const std::string& one) { return one.starts_with(call); });
  }
};

class FakeContext final : public gpu::InferContext {
 public:
  FakeContext(Library& library, GraphRole role) : library_(library), role_(role) { ++library_.alive; }
  ~FakeContext() override { --library_.alive; }
  void set_memory(void*, std::size_t bytes) override { library_.told.push_back("memory " + std::to_string(bytes)); }
  bool set_profile(int index, void*) override {
    library_.told.push_back("profile " + std::to_string(index));
    return library_.works("set_profile");
  }
  bool set_shape(const std::string& input, const Dims& shape) override {
    library_.told.push_back("shape " + input);
    shapes_[input] = shape;
    return library_.works("set_shape");
  }
  std::optional<std::vector<std::string>> infer_shapes() override {
    library_.told.emplace_back("infer");
    return library_.works("infer_shapes") ? std::optional(std::vector<std::string>()) : std::nullopt;
  }
  [[nodiscard]] Dims shape(const std::string& tensor) const override {
    Dims dims;
    for (const TensorSpec& output : graph_spec(role_, ExportTarget::Tensorrt).outputs) {
      for (const std::string& axis : output.name == tensor ? gpu::axes_of(output) : std::vector<std::string>()) {
        const auto fixed = static_size(small_spec(), axis);
        dims.push_back(fixed ? *fixed : largest(axis));
      }
    }
    return dims;
  }
  bool set_address(const std::string&, void* address) override {
    return address != nullptr && library_.works("set_address");
  }
  bool enqueue(void*) override {
    library_.told.push_back("run " + std::string(name_of(role_)));
    return library_.works("enqueue");
  }

 private:
  [[nodiscard]] std::int64_t largest(const std::string& axis) const {
    for (const TensorSpec& input : graph_spec(role_, ExportTarget::Tensorrt).inputs) {
      const std::vector<std::string> axes = gpu::axes_of(input);
      if (const auto at = std::ranges::find(axes, axis); at != axes.end()) {
        return shapes_.at(std::string(input.name)).at(static_cast<std::size_t>(at - axes.begin()));
      }
    }
    return -1;
  }

  Library& library_;
  GraphRole role_;
  std::map<std::string, Dims> shapes_;
};

class FakeEngine final : public gpu::InferEngine {
 public:
  FakeEngine(Library& library, GraphRole role) : library_(library), role_(role) {}
  [[nodiscard]] std::vector<gpu::EngineTensor> tensors() const override {
    std::vector<gpu::EngineTensor> all;
    const GraphSpec& graph = graph_spec(role_, ExportTarget::Tensorrt);
    for (const auto side : {graph.inputs, graph.outputs}) {
      for (const TensorSpec& tensor : side) {
        Dims shape;
        for (const std::string& axis : gpu::axes_of(tensor)) {
          shape.push_back(static_size(small_spec(), axis).value_or(-1));
        }
        const auto other = library_.dtypes.find(std::string(tensor.name));
        const std::string dtype = other == library_.dtypes.end() ? std::string(tensor.dtype) : other->second;
        all.push_back({std::string(tensor.name), side.data() == graph.inputs.data(), dtype, shape, true});
      }
    }
    return all;
  }
  [[nodiscard]] int profiles() const override { return role_ == GraphRole::MemoryAttention ? 2 : 1; }
  [[nodiscard]] std::size_t activation_bytes(int profile) const override {
    const auto found = library_.activations.find(role_);
    return (found == library_.activations.end() ? 1000 : found->second) / static_cast<std::size_t>(profile + 1);
  }
  std::unique_ptr<gpu::InferContext> context() override {
    return library_.works("context") ? std::make_unique<FakeContext>(library_, role_) : nullptr;
  }

 private:
  Library& library_;
  GraphRole role_;
};

class FakeLibrary final : public gpu::InferLibrary {
 public:
  explicit FakeLibrary(Library& library) : library_(library) {}
  [[nodiscard]] std::string version() const override { return library_.version; }
  std::optional<std::string> refusal(std::span<const std::byte>) override { return library_.refuses; }
  std::unique_ptr<gpu::InferEngine> deserialize(std::span<const std::byte> engine) override {
    if (!library_.works("deserialize")) {
      return nullptr;
    }
    const std::string role(reinterpret_cast<const char*>(engine.data()), engine.size());
    const auto at = std::ranges::find(kGraphRoleNames, role) - kGraphRoleNames.begin();
    return std::make_unique<FakeEngine>(library_, static_cast<GraphRole>(at));
  }
  std::string said() override { return std::exchange(library_.log, {}); }

 private:
  Library& library_;
};

// A bundle with engines in a folder of its own.
class EnginesTest : public ::testing::Test {
 protected:
  EnginesTest() {
    limits_.max_objects = 3;
    limits_.keep_buckets = {0.25};
    for (const GraphRole role : kRoles) {
      const std::string name(name_of(role));
      manifest_.graphs.push_back({role, ExportTarget::Tensorrt, {name + ".onnx", 1, std::string(64, 'a')}});
      engines_.push_back(entry(role));
    }
    manifest_.model = small_spec();
    write();
  }
  ~EnginesTest() override { fs::remove_all(bundle_); }

  Json entry(GraphRole role) {
    const std::string name(name_of(role));
    fs::create_directories(folder_);
    const auto file = [&](const std::string& path, const std::string& content) {
      std::ofstream(folder_ / path, std::ios::binary) << content;
      return Json{{"path", path}, {"bytes", content.size()}, {"sha256", sha256_of(folder_ / path)}};
    };
    Json made{{"graph", name},
              {"precision", "fp16"},
              {"file", file(name + ".engine", name)},
              {"listing", file(name + ".layers.txt", "layers")},
              {"source_sha256", std::string(64, 'a')},
              {"recipe_sha256", "0"},
              {"profiles", Json::array()},
              {"options", Json::object()},
              {"fused_attention", 0},
              {"expected_attention", 0},
              {"attention", 0},
              {"activation_bytes", 700},
              {"build_seconds", 0.1},
              {"drift", Json::object()},
              {"created", "2025-01-02T00:00:00Z"}};
    for (const gpu::Profile& profile : gpu::profiles(small_spec(), role, limits_)) {
      made["profiles"].push_back({{"name", profile.name}, {"sizes", profile.sizes}, {"shapes", profile.shapes}});
    }
    return made;
  }

  void write() {
    const Json record{{"record_version", 1},
                      {"flavor", "tensorrt"},
                      {"version", version_},
                      {"target", "9.0"},
                      {"limits", {{"max_objects", 3}, {"max_prompt_frames", 1}, {"keep_buckets", {0.25}}}},
                      {"engines", engines_}};
    std::ofstream(folder_ / "engines.json") << record;
  }

  std::unique_ptr<gpu::TensorRtEngines> open(const std::string& flavor = "tensorrt") {
    return std::make_unique<gpu::TensorRtEngines>(bundle_, manifest_, gpu_, std::make_unique<FakeLibrary>(library_),
                                                  flavor);
  }

  // What is wrong, with the command that puts it right.
  std::string refused() {
    try {
      open();
    } catch (const BundleError& error) {
      EXPECT_NE(std::string(error.what()).find("fastsam2 build"), std::string::npos) << error.what();
      return error.what();
    }
    return "accepted";
  }

  void run(gpu::TensorRtEngines& engines, GraphRole role, std::map<std::string, std::int64_t> sizes) {
    const GraphSpec& graph = graph_spec(role, ExportTarget::Tensorrt);
    const auto tensors = [&](std::span<const TensorSpec> specs) {
      std::vector<NamedTensor> all;
      for (const TensorSpec& spec : specs) {
        Dims shape;
        for (const std::string& axis : gpu::axes_of(spec)) {
          const auto fixed = static_size(small_spec(), axis);
          shape.push_back(fixed ? *fixed : sizes.at(axis));
        }
        all.push_back({spec.name, Tensor::empty(DType::Float32, Shape(std::span<const std::int64_t>(shape)))});
      }
      return all;
    };
    engines.enqueue(role, tensors(graph.inputs), tensors(graph.outputs));
  }

  void attend(gpu::TensorRtEngines& engines, std::int64_t objects, std::int64_t rows) {
    run(engines, GraphRole::MemoryAttention, {{"B", objects}, {"M", rows}, {"P", 2}, {"R", rows + 4}});
  }

  // A number of its own for every process: tests run side by side.
  fs::path bundle_ = fs::temp_directory_path() / ("fastsam2-engines-" + std::to_string(std::random_device{}()));
  fs::path folder_ = bundle_ / "engines" / "tensorrt-10.9-9.0";
  std::string version_ = "10.9";
  gpu::Limits limits_;
  Manifest manifest_;
  std::vector<Json> engines_;
  Library library_;
  std::shared_ptr<FakeGpu> gpu_ = std::make_shared<FakeGpu>();
};

TEST_F(EnginesTest, RunsWithShapesSetOnlyWhereTheyChange) {
  const auto engines = open();
  EXPECT_EQ(engines->name(), "tensorrt");
  EXPECT_EQ(engines->max_objects(GraphRole::MaskDecoder), 3);
  EXPECT_EQ(engines->max_objects(GraphRole::ImageEncoder), std::nullopt);
  EXPECT_EQ(engines->max_prompt_frames(), 1);
  EXPECT_TRUE(engines->has(GraphRole::MaskPrompt));
  EXPECT_FALSE(engines->has(GraphRole::Router));
  attend(*engines, 1, 112);
  attend(*engines, 1, 112);
  EXPECT_EQ(library_.count("infer"), 1);
  EXPECT_EQ(library_.count("run memory_attention"), 2);
  attend(*engines, 2, 112);
  EXPECT_EQ(library_.count("infer"), 2);
  EXPECT_EQ(library_.count("profile"), 0);
}

TEST_F(EnginesTest, TheSmallestProfileWithRoom) {
  const auto engines = open();
  attend(*engines, 1, 52);  // 2 * 16 dense rows and 5 * 4 of a quarter
  EXPECT_EQ(library_.count("profile 1"), 1);
  attend(*engines, 3, 52);
  EXPECT_EQ(library_.count("profile"), 1);
  attend(*engines, 1, 53);
  EXPECT_EQ(library_.count("profile 0"), 1);
}

TEST_F(EnginesTest, SizesWithoutRoomSayWhatGivesIt) {
  const auto engines = open();
  const auto said = [&](std::int64_t objects, std::int64_t rows) -> std::string {
    try {
      attend(*engines, objects, rows);
    } catch (const BackendError& error) {
      return error.what();
    }
    return "ran";
  };
  EXPECT_NE(said(4, 52).find("B = 4. Build the engines with a larger --max-objects."), std::string::npos);
  EXPECT_NE(said(1, 113).find("M = 113. Build the engines with a larger --max-prompt-frames."), std::string::npos);
  EXPECT_EQ(said(1, 112), "ran");
}

TEST_F(EnginesTest, EnginesShareOneBlockOfActivations) {
  engines_[1]["activation_bytes"] = 5000;
  write();
  library_.activations[GraphRole::MaskPrompt] = 9000;
  {
    const auto engines = open();
    attend(*engines, 1, 52);
    EXPECT_EQ(engines->activation_bytes(), 5000U);
    run(*engines, GraphRole::ImageEncoder, {});
    EXPECT_EQ(gpu_->count("allocate"), 1);
    gpu_->calls.clear();
    run(*engines, GraphRole::MaskPrompt, {{"B", 1}});
    EXPECT_EQ(engines->activation_bytes(), 9000U);
    EXPECT_EQ(gpu_->calls, (std::vector<std::string>{"allocate", "synchronize", "release"}));
    EXPECT_EQ(library_.count("memory 9000"), 3);  // the two that were there, and the new one
    EXPECT_EQ(library_.alive, 3);
  }
  EXPECT_EQ(library_.alive, 0);
  EXPECT_TRUE(gpu_->held.empty());
}

TEST_F(EnginesTest, WhatFailsQuotesTheLibrary) {
  for (const char* call : {"deserialize", "context", "set_shape", "infer_shapes", "set_address", "enqueue"}) {
    library_.fails = call;
    const auto engines = open();
    try {
      attend(*engines, 1, 112);
      ADD_FAILURE() << call;
    } catch (const BackendError& error) {
      EXPECT_NE(std::string(error.what()).find(std::string(call) + " refused"), std::string::npos) << error.what();
    }
    library_.fails.clear();
    EXPECT_NO_THROW(attend(*engines, 1, 112)) << call;
  }
  library_.refuses = "another compute capability";
  EXPECT_THROW(attend(*open(), 1, 52), BackendError);
}

TEST_F(EnginesTest, TensorsThatAreNotThoseOfTheContractAreRefused) {
  library_.dtypes["memory"] = "float16";
  const auto engines = open();
  try {
    attend(*engines, 1, 52);
    ADD_FAILURE();
  } catch (const BackendError& error) {
    EXPECT_NE(std::string(error.what()).find("memory: input -1x-1x8 float16"), std::string::npos) << error.what();
  }
}

TEST_F(EnginesTest, WhatIsAccepted) {
  EXPECT_EQ(refused(), "accepted");
  const std::vector<Json> whole = engines_;
  const auto with = [&](const std::string& field, const Json& value) {
    engines_ = whole;
    engines_[1][field] = value;
    write();
    return refused();
  };
  EXPECT_NE(with("precision", "fp32").find("engines of one precision"), std::string::npos);
  EXPECT_NE(with("source_sha256", std::string(64, 'b')).find("another ONNX file"), std::string::npos);
  EXPECT_NE(with("profiles", Json::array()).find("another profile"), std::string::npos);
  EXPECT_NE(with("more", 1).find("no field more"), std::string::npos);
  EXPECT_NE(with("graph", "image_encoder").find("image_encoder twice"), std::string::npos);
  EXPECT_NE(with("file", {{"path", "../x"}, {"bytes", 1}, {"sha256", ""}}).find("inside the folder"),
            std::string::npos);
  engines_ = whole;
  engines_.pop_back();
  write();
  EXPECT_NE(refused().find("an engine of memory_encoder"), std::string::npos);
  engines_ = whole;
  write();
  const fs::path engine = folder_ / "mask_decoder.engine";
  std::ofstream(engine) << "mask_decodex";
  EXPECT_NE(refused().find("mask_decoder.engine was altered"), std::string::npos);
  std::ofstream(engine) << "mask";
  EXPECT_NE(refused().find("has 4 bytes instead of 12"), std::string::npos);
  fs::remove(engine);
  EXPECT_NE(refused().find("mask_decoder.engine is missing"), std::string::npos);
  std::ofstream(folder_ / "engines.json") << R"({"record_version": 2})";
  EXPECT_NE(refused().find("record_version 1"), std::string::npos);
  std::ofstream(folder_ / "engines.json") << "no JSON";
  EXPECT_NE(refused().find("a legal"), std::string::npos);
}

TEST_F(EnginesTest, EnginesOfAnotherTargetVersionOrFlavorAreNotTaken) {
  fs::rename(folder_, bundle_ / "engines" / "tensorrt-10.8-9.0");
  EXPECT_NE(refused().find("engines tensorrt-10.9-9.0 in"), std::string::npos);
  EXPECT_NE(refused().find("got tensorrt-10.8-9.0"), std::string::npos);
  fs::rename(bundle_ / "engines" / "tensorrt-10.8-9.0", bundle_ / "engines" / "tensorrt-10.9-portable");
  EXPECT_NE(refused().find("engines of tensorrt-10.9-portable in"), std::string::npos);
  EXPECT_EQ(gpu::default_target("tensorrt-rtx", "9.0"), "portable");
  EXPECT_EQ(gpu::default_target("tensorrt-rtx", "7.5"), "7.5");
  EXPECT_EQ(gpu::default_target("tensorrt", "12.0"), "12.0");
  EXPECT_THROW(open("tensorrt-rtx"), BundleError);
}

TEST_F(EnginesTest, VersionsOfThePythonPackageAreThoseOfTheLibrary) {
  const auto moved = [&](const std::string& package) {
    const fs::path folder = bundle_ / "engines" / ("tensorrt-" + package + "-9.0");
    fs::rename(folder_, folder);
    folder_ = folder;
    version_ = package;
    write();
  };
  const auto opened = [&](const std::string& package, const std::string& library) {
    moved(package);
    library_.version = library;
    return refused();
  };
  EXPECT_EQ(opened("10.3.0", "10.3.0.26"), "accepted");
  EXPECT_EQ(opened("10.3.0.post1", "10.3.0.26"), "accepted");
  EXPECT_EQ(opened("10.8.0.43", "10.8.0.43"), "accepted");
  EXPECT_EQ(opened("10.13.3.9.post1", "10.13.3.9"), "accepted");
  EXPECT_NE(opened("10.3.0", "10.3.1.26").find("engines tensorrt-10.3.1.26-9.0 in"), std::string::npos);
  EXPECT_NE(opened("10.3.0.2", "10.3.0.26").find("got tensorrt-10.3.0.2-9.0"), std::string::npos);
  EXPECT_NE(opened("10.3", "10.3.0.26"), "accepted");
  EXPECT_NE(opened("10.3.0", "10.3"), "accepted");
  const auto taken = [&] { return gpu::load_engines(bundle_, manifest_, "tensorrt", "10.3.0.26", "9.0").version; };
  for (const char* better : {"10.3.0", "10.3.0.26.post1", "10.3.0.26"}) {  // beside those before
    const fs::path folder = bundle_ / "engines" / ("tensorrt-" + std::string(better) + "-9.0");
    if (folder != folder_) {
      fs::copy(folder_, folder);
    }
    folder_ = folder;
    version_ = better;
    write();
    EXPECT_EQ(taken(), better);
  }
}

}  // namespace
}  // namespace fastsam2::testing
