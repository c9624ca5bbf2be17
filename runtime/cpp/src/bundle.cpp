#include "fastsam2/bundle.hpp"

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "fastsam2/errors.hpp"
#include "sha256.hpp"

namespace fastsam2 {

namespace {

using Json = nlohmann::json;

constexpr std::string_view kExportAgain = "Export the bundle again with `fastsam2 export`, or copy it again in full";

[[noreturn]] void refuse(const std::string& what, const std::string& got) {
  throw BundleError(expected(what, got, kExportAgain));
}

// A value in an error message. What is nested comes as its kind: writing it out recurses as deep as it is nested.
std::string shown(const Json& value) {
  return value.is_structured() ? value.type_name() : value.dump();
}

// One object of the manifest. Every key has to be asked for; `finish` complains of the others.
class Record {
 public:
  Record(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) {
      refuse("an object as " + where_, json.type_name());
    }
  }

  const Json& at(const std::string& key) {
    known_.insert(key);
    const auto found = json_.find(key);
    if (found == json_.end()) {
      refuse("a " + name(key) + " in the manifest", "none");
    }
    return *found;
  }

  // Null where the key is left out or null.
  const Json* find(const std::string& key) {
    known_.insert(key);
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  void ignore(std::initializer_list<const char*> keys) { known_.insert(keys.begin(), keys.end()); }

  std::string text(const std::string& key) {
    const Json& value = at(key);
    if (!value.is_string()) {
      refuse("text as " + name(key), value.type_name());
    }
    return value.get<std::string>();
  }

  bool flag(const std::string& key) {
    const Json& value = at(key);
    if (!value.is_boolean()) {
      refuse("true or false as " + name(key), value.type_name());
    }
    return value.get<bool>();
  }

  std::int64_t integer(const std::string& key, std::int64_t least) {
    constexpr std::int64_t kMost = std::int64_t{1} << 53;  // what every JSON reader agrees on
    const Json& value = at(key);
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > kMost) ||
        value.get<std::int64_t>() < least || value.get<std::int64_t>() > kMost) {
      refuse("an integer >= " + std::to_string(least) + " as " + name(key), shown(value));
    }
    return value.get<std::int64_t>();
  }

  const Json& list(const std::string& key) {
    const Json& value = at(key);
    if (!value.is_array()) {
      refuse("a list as " + name(key), value.type_name());
    }
    return value;
  }

  void finish() const {
    for (const auto& [key, value] : json_.items()) {
      if (!known_.contains(key)) {
        refuse("no field " + name(key), "one");
      }
    }
  }

  [[nodiscard]] std::string name(const std::string& key) const { return where_.empty() ? key : where_ + "." + key; }

 private:
  const Json& json_;
  std::string where_;
  std::set<std::string> known_;
};

template <typename Choice, std::size_t N>
Choice choice(const std::string& text, const std::array<std::string_view, N>& names, const std::string& what) {
  const auto found = std::ranges::find(names, text);
  if (found == names.end()) {
    refuse("a known " + what, text);
  }
  return static_cast<Choice>(found - names.begin());
}

bool stays_inside(const std::string& path) {
  if (path.empty() || path.find_first_of(std::string("\\:\0", 3)) != std::string::npos) {
    return false;
  }
  std::istringstream parts("/" + path + "/");
  std::string part;
  std::getline(parts, part, '/');
  while (std::getline(parts, part, '/')) {
    if (part.empty() || part == "." || part == "..") {
      return false;
    }
  }
  return true;
}

FileEntry file_entry(const Json& json, const std::string& where) {
  Record record(json, where);
  FileEntry entry{record.text("path"), static_cast<std::uint64_t>(record.integer("bytes", 0)), record.text("sha256")};
  record.finish();
  if (!stays_inside(entry.path)) {
    refuse("a plain relative path inside the bundle as " + record.name("path"), entry.path);
  }
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (entry.sha256.size() != 64 || !std::ranges::all_of(entry.sha256, is_hex)) {
    refuse("64 lower-case hex digits as " + record.name("sha256"), entry.sha256);
  }
  return entry;
}

ModelSpec model_spec(const Json& json) {
  Record record(json, "model");
  ModelSpec spec;
  constexpr std::int64_t kAny = -(std::int64_t{1} << 31);
  spec.name = record.text("name");
  spec.image_size = record.integer("image_size", 1);
  spec.hidden_dim = record.integer("hidden_dim", 1);
  spec.memory_dim = record.integer("memory_dim", 1);
  spec.num_maskmem = record.integer("num_maskmem", 2);
  spec.max_object_pointers = record.integer("max_object_pointers", 2);
  spec.multimask_min_points = record.integer("multimask_min_points", kAny);
  spec.multimask_max_points = record.integer("multimask_max_points", kAny);
  spec.multimask_for_tracking = record.flag("multimask_for_tracking");
  spec.pointer_offsets = record.flag("pointer_offsets");
  spec.signed_pointer_offsets = record.flag("signed_pointer_offsets");
  spec.text_dim = record.find("text_dim") == nullptr ? spec.text_dim : record.integer("text_dim", 1);
  spec.crop_size = record.find("crop_size") == nullptr ? spec.crop_size : record.integer("crop_size", 1);
  record.finish();
  constexpr std::int64_t kMost = 1 << 16;  // keeps every product of sizes below 2^63
  if (spec.image_size % kImageSizeMultiple != 0 || spec.image_size > kMost || spec.hidden_dim > kMost ||
      spec.memory_dim > kMost || spec.num_maskmem > kMost || spec.max_object_pointers > kMost ||
      spec.text_dim > kMost || spec.crop_size > kMost) {
    refuse("an image_size that is a multiple of 32, and sizes of at most 65536", "others");
  }
  return spec;
}

std::string axes_of(const Json& json, const std::string& where) {
  std::string axes;
  for (const Json& axis : json) {
    if (!axis.is_string()) {
      refuse("symbols as " + where, axis.type_name());
    }
    axes.append(axes.empty() ? "" : " ").append(axis.get_ref<const std::string&>());
  }
  return axes;
}

void check_tensors(const Json& listed, std::span<const TensorSpec> wanted, const std::string& where) {
  constexpr std::string_view kTodo = "Another release wrote this bundle: export again with this one";
  if (listed.size() != wanted.size()) {
    throw BundleError(
        expected(std::to_string(wanted.size()) + " tensors as " + where, std::to_string(listed.size()), kTodo));
  }
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    Record record(listed[i], where);
    const std::string name = record.text("name");
    const std::string dtype = record.text("dtype");
    const std::string axes = axes_of(record.list("axes"), record.name("axes"));
    record.finish();
    const TensorSpec& want = wanted[i];
    if (name != want.name || dtype != want.dtype || axes != want.axes) {
      const auto text = [](std::string_view of, std::string_view type, std::string_view sizes) {
        return std::string(of).append(" ").append(type).append(" [").append(sizes).append("]");
      };
      throw BundleError(
          expected(where + " to hold " + text(want.name, want.dtype, want.axes), text(name, dtype, axes), kTodo));
    }
  }
}

GraphEntry graph_entry(const Json& json) {
  Record record(json, "graphs");
  GraphEntry entry;
  entry.role = choice<GraphRole>(record.text("role"), kGraphRoleNames, "graphs.role");
  entry.target = choice<ExportTarget>(record.text("target"), kExportTargetNames, "graphs.target");
  entry.file = file_entry(record.at("file"), record.name("file"));
  record.integer("opset", 1);
  const GraphSpec& spec = graph_spec(entry.role, entry.target);
  const std::string where = std::string(name_of(entry.role)) + " for " + std::string(name_of(entry.target));
  check_tensors(record.list("inputs"), spec.inputs, "inputs of " + where);
  check_tensors(record.list("outputs"), spec.outputs, "outputs of " + where);
  const Json& checks = record.at("checks");
  if (!checks.is_object() || !std::ranges::all_of(checks, [](const Json& value) { return value.is_number(); })) {
    refuse("numbers by output as graphs.checks", checks.type_name());
  }
  record.finish();
  return entry;
}

// Files of the text encoder; what else is said of it concerns only those who make descriptions.
void add_text_files(const Json& json, Manifest& manifest, bool& has_vocabulary) {
  Record record(json, "text");
  record.text("source");
  manifest.companions.push_back(file_entry(record.at("tokenizer"), record.name("tokenizer")));
  if (const Json* projection = record.find("projection")) {
    Record own(*projection, "text.projection");
    manifest.companions.push_back(file_entry(own.at("file"), own.name("file")));
    own.ignore({"image_encoder", "text_encoder", "samples", "ridge", "condition"});
    own.finish();
  }
  if (const Json* vocabulary = record.find("vocabulary")) {
    Record own(*vocabulary, "text.vocabulary");
    manifest.companions.push_back(file_entry(own.at("file"), own.name("file")));
    own.ignore({"phrases", "templates"});
    own.finish();
    has_vocabulary = true;
  }
  record.finish();
}

void check_router(const Json& json, const Manifest& manifest) {
  Record record(json, "router");
  const auto made_for = [&](GraphRole role, const std::string& digest) {
    return std::ranges::any_of(manifest.graphs,
                               [&](const GraphEntry& g) { return g.role == role && g.file.sha256 == digest; });
  };
  const Json* text = record.find("text_encoder");
  if (!made_for(GraphRole::ImageEncoder, record.text("image_encoder")) ||
      (text != nullptr && !made_for(GraphRole::TextEncoder, record.text("text_encoder")))) {
    throw BundleError(expected("a router for the encoders of this bundle", "one of another model",
                               "Make it again with `fastsam2 train-router`"));
  }
  record.text("data");
  record.integer("steps", 1);
  record.ignore({"dropout_samples"});
  record.finish();
}

Manifest manifest_of(const Json& json) {
  Record record(json, "");
  Manifest manifest;
  record.integer("manifest_version", kManifestVersion);
  record.text("fastsam2_version");
  if (const Json* precision = record.find("precision"); precision != nullptr && *precision != "fp32") {
    refuse("precision fp32", shown(*precision));
  }
  manifest.model = model_spec(record.at("model"));
  std::set<std::pair<GraphRole, ExportTarget>> keys;
  std::set<GraphRole> roles;
  for (const Json& graph : record.list("graphs")) {
    manifest.graphs.push_back(graph_entry(graph));
    const GraphEntry& entry = manifest.graphs.back();
    roles.insert(entry.role);
    if (!keys.emplace(entry.role, entry.target).second) {
      refuse("each graph once",
             std::string(name_of(entry.role)) + " for " + std::string(name_of(entry.target)) + " twice");
    }
  }
  if (manifest.graphs.empty()) {
    refuse("a graph in the manifest", "none");
  }
  if (!record.at("origin").is_object()) {
    refuse("an object as origin", record.at("origin").type_name());
  }
  bool has_vocabulary = false;
  const Json* text = record.find("text");
  const Json* router = record.find("router");
  if (text != nullptr) {
    add_text_files(*text, manifest, has_vocabulary);
  }
  if (router != nullptr) {
    check_router(*router, manifest);
  }
  for (const auto& [role, has_entry] :
       {std::pair{GraphRole::TextEncoder, text != nullptr}, std::pair{GraphRole::CropEncoder, has_vocabulary},
        std::pair{GraphRole::Router, router != nullptr}}) {
    if (roles.contains(role) != has_entry) {
      refuse("a " + std::string(name_of(role)) + " graph and its entry together", "only one of them");
    }
  }
  record.finish();
  return manifest;
}

void check_file(const std::filesystem::path& folder, const FileEntry& entry, bool verify) {
  const std::filesystem::path file = folder / entry.path;
  constexpr std::string_view kTodo = "Copy the bundle again in full, or export it again with `fastsam2 export`";
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) {
    throw BundleError(expected("file " + entry.path + " in " + folder.string(), "none", kTodo));
  }
  const std::uintmax_t size = std::filesystem::file_size(file, error);
  if (error || size != entry.bytes) {
    const std::string got = error ? error.message() : std::to_string(size) + " bytes (truncated or replaced)";
    throw BundleError(expected(std::to_string(entry.bytes) + " bytes in " + file.string(), got, kTodo));
  }
  if (verify) {
    if (const std::string digest = sha256_of(file); digest != entry.sha256) {
      throw BundleError(
          expected("SHA-256 " + entry.sha256 + " of " + file.string(), digest + " (altered since export)", kTodo));
    }
  }
}

}  // namespace

const GraphEntry* Manifest::find(GraphRole role, ExportTarget target) const {
  const auto found =
      std::ranges::find_if(graphs, [&](const GraphEntry& g) { return g.role == role && g.target == target; });
  return found == graphs.end() ? nullptr : &*found;
}

const GraphEntry& Manifest::graph(GraphRole role, ExportTarget target) const {
  const GraphEntry* entry = find(role, target);
  if (entry == nullptr) {
    const std::string what = "a graph " + std::string(name_of(role)) + " for target " + std::string(name_of(target));
    throw BundleError(expected(what, "a bundle without", "Export the bundle again with that target, or add the graph"));
  }
  return *entry;
}

void Manifest::check_tracked(ExportTarget target) const {
  for (const GraphRole role : {GraphRole::ImageEncoder, GraphRole::MemoryAttention, GraphRole::MaskDecoder,
                               GraphRole::MaskPrompt, GraphRole::MemoryEncoder}) {
    graph(role, target);
  }
}

Manifest parse_manifest(std::string_view json) {
  Json tree;
  try {
    tree = Json::parse(json);
  } catch (const Json::exception& error) {
    refuse("readable JSON as manifest", error.what());
  }
  const auto version = tree.is_object() ? tree.find("manifest_version") : tree.end();
  if (!tree.is_object() || version == tree.end() || !version->is_number_integer()) {
    refuse("an integer manifest_version", tree.is_object() ? "none" : tree.type_name());
  }
  if (*version != kManifestVersion) {
    const char* todo =
        *version > kManifestVersion ? "Upgrade fastsam2: a newer release wrote it" : "Export again with this release";
    throw BundleError(expected("manifest_version " + std::to_string(kManifestVersion), version->dump(), todo));
  }
  try {
    return manifest_of(tree);
  } catch (const Json::exception& error) {
    refuse("a legal manifest", error.what());
  }
}

Manifest read_manifest(const std::filesystem::path& folder, bool verify) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw BundleError(
        expected("a bundle folder", folder.string() + ", which is no folder", "Make one with `fastsam2 export`"));
  }
  std::ifstream stream(folder / "manifest.json", std::ios::binary);
  if (!stream) {
    const std::string what = "manifest.json in " + folder.string();
    throw BundleError(expected(what, "none that can be read", "Name the folder that `fastsam2 export` wrote"));
  }
  std::ostringstream text;
  text << stream.rdbuf();
  Manifest manifest = parse_manifest(text.view());
  try {
    for (const GraphEntry& graph : manifest.graphs) {
      check_file(folder, graph.file, verify);
    }
    for (const FileEntry& file : manifest.companions) {
      check_file(folder, file, verify);
    }
  } catch (const std::ios_base::failure& failure) {
    throw BundleError(expected("readable files in " + folder.string(), failure.what(), "Check their permissions"));
  }
  return manifest;
}

}  // namespace fastsam2
