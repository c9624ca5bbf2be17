#include "records.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "fastsam2/errors.hpp"
#include "sha256.hpp"

namespace fastsam2::gpu {

namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

// What is wrong with a record.
[[noreturn]] void refuse(const std::string& what, const std::string& got) {
  throw std::invalid_argument("expected " + what + ", got " + got);
}

// An object with these fields and no others; fields in brackets may be left out.
const Json& record(const Json& json, const std::string& where, std::set<std::string> fields,
                   const std::set<std::string>& optional = {}) {
  if (!json.is_object()) {
    refuse("an object as " + where, json.type_name());
  }
  for (const auto& [key, value] : json.items()) {
    if (fields.erase(key) == 0 && !optional.contains(key)) {
      refuse(std::string("no field ").append(key).append(" in ").append(where), "one");
    }
  }
  if (!fields.empty()) {
    refuse("a field " + *fields.begin() + " in " + where, "none");
  }
  return json;
}

std::string text(const Json& json, const std::string& key) {
  return json.at(key).get_ref<const std::string&>();
}

std::int64_t integer(const Json& value, std::int64_t least) {
  if (!value.is_number_integer() || value.get<std::int64_t>() < least) {
    refuse("an integer >= " + std::to_string(least), value.dump());
  }
  return value.get<std::int64_t>();
}

FileEntry file_entry(const Json& json, const std::string& where) {
  record(json, where, {"path", "bytes", "sha256"});
  FileEntry entry{text(json, "path"), static_cast<std::uint64_t>(integer(json.at("bytes"), 0)), text(json, "sha256")};
  const fs::path path(entry.path);
  if (path.is_absolute() || path.empty() || std::ranges::find(path, fs::path("..")) != path.end()) {
    refuse("a path inside the folder as " + where, entry.path);
  }
  return entry;
}

Profile::Dims dims(const Json& json) {
  Profile::Dims sizes;
  for (const Json& size : json.get_ref<const Json::array_t&>()) {
    sizes.push_back(integer(size, 0));
  }
  return sizes;
}

std::array<std::int64_t, 3> range(const Json& json) {
  const Profile::Dims sizes = dims(json);
  if (sizes.size() != 3) {
    refuse("three sizes", json.dump());
  }
  return {sizes[0], sizes[1], sizes[2]};
}

Profile profile(const Json& json) {
  record(json, "a profile", {"name", "sizes", "shapes"}, {"values"});
  Profile made{text(json, "name"), {}, {}, {}};
  for (const auto& [axis, sizes] : json.at("sizes").items()) {
    made.sizes[axis] = range(sizes);
  }
  for (const auto& [input, shapes] : json.at("shapes").items()) {
    if (shapes.size() != 3) {
      refuse("three shapes of " + input, shapes.dump());
    }
    made.shapes[input] = {dims(shapes.at(0)), dims(shapes.at(1)), dims(shapes.at(2))};
  }
  if (json.contains("values")) {
    for (const auto& [input, sizes] : json.at("values").items()) {
      made.values[input] = range(sizes);
    }
  }
  return made;
}

EngineEntry engine_entry(const Json& json) {
  record(
      json, "engines",
      {"graph", "precision", "file", "listing", "source_sha256", "recipe_sha256", "profiles", "options",
       "fused_attention", "expected_attention", "attention", "activation_bytes", "build_seconds", "drift", "created"});
  const auto* const role = std::ranges::find(kGraphRoleNames, text(json, "graph"));
  if (role == kGraphRoleNames.end()) {
    refuse("a known graph", text(json, "graph"));
  }
  EngineEntry entry{static_cast<GraphRole>(role - kGraphRoleNames.begin()),
                    text(json, "precision"),
                    file_entry(json.at("file"), "file"),
                    file_entry(json.at("listing"), "listing"),
                    text(json, "source_sha256"),
                    {},
                    static_cast<std::size_t>(integer(json.at("activation_bytes"), 0))};
  for (const Json& one : json.at("profiles").get_ref<const Json::array_t&>()) {
    entry.profiles.push_back(profile(one));
  }
  return entry;
}

EngineSet engine_set(const Json& json) {
  record(json, "the record", {"record_version", "flavor", "version", "target", "limits", "engines"});
  const Json& limits = record(json.at("limits"), "limits", {"max_objects", "max_prompt_frames", "keep_buckets"});
  EngineSet set{text(json, "flavor"), text(json, "version"), text(json, "target"), {}, {}, {}};
  set.limits.max_objects = integer(limits.at("max_objects"), 1);
  set.limits.max_prompt_frames = integer(limits.at("max_prompt_frames"), 1);
  for (const Json& keep : limits.at("keep_buckets").get_ref<const Json::array_t&>()) {
    set.limits.keep_buckets.push_back(keep.get<double>());
    if (!keep.is_number() || set.limits.keep_buckets.back() <= 0 || set.limits.keep_buckets.back() >= 1) {
      refuse("keep fractions between 0 and 1", keep.dump());
    }
  }
  for (const Json& one : json.at("engines").get_ref<const Json::array_t&>()) {
    EngineEntry entry = engine_entry(one);
    if (set.engine(entry.graph) != nullptr) {
      refuse("each graph once", std::string(name_of(entry.graph)) + " twice");
    }
    set.engines.push_back(std::move(entry));
  }
  return set;
}

fs::path folder_of(const fs::path& bundle, std::string_view flavor, std::string_view version, std::string_view target) {
  std::string name(flavor);
  name.append("-").append(version).append("-").append(target);
  return bundle / "engines" / name;
}

// Whether engines of a version, as the Python package of TensorRT names it, are those of a library, which tells four
// numbers. The package leaves the last one out before 10.8, and may add `.postN`.
bool is_release(std::string_view stored, std::string_view library) {
  if (stored == library) {
    return true;
  }
  stored = stored.substr(0, stored.find(".post"));
  const bool has_four = std::ranges::count(library, '.') == 3;
  return stored == library || (has_four && stored == library.substr(0, library.rfind('.')));
}

// The folder of engines for a library; where several fit, the one that names it best. One of the library's own version
// where there is none.
fs::path find_folder(const fs::path& bundle, std::string_view flavor, std::string_view version,
                     std::string_view target) {
  fs::path own = folder_of(bundle, flavor, version, target);
  std::error_code error;
  if (fs::is_regular_file(own / "engines.json", error)) {
    return own;
  }
  const std::string before = std::string(flavor) + "-";
  const std::string after = "-" + std::string(target);
  std::string best;
  for (const auto& folder : fs::directory_iterator(own.parent_path(), error)) {
    const std::string name = folder.path().filename().string();
    if (name.size() <= before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) {
      continue;
    }
    const std::string stored = name.substr(before.size(), name.size() - before.size() - after.size());
    if (is_release(stored, version) && fs::is_regular_file(folder.path() / "engines.json", error)) {
      best = std::max(best, stored, [](const std::string& a, const std::string& b) {
        return std::pair(a.size(), a) < std::pair(b.size(), b);
      });
    }
  }
  return best.empty() ? own : folder_of(bundle, flavor, best, target);
}

// The engines.json of one folder; its files are not looked at.
EngineSet read_set(const fs::path& folder) {
  const fs::path file = folder / "engines.json";
  const std::string todo = "Delete " + folder.string() + " and build again with `fastsam2 build`";
  EngineSet set;
  try {
    std::ifstream stream(file, std::ios::binary);
    const Json json = Json::parse(stream);
    const auto version = json.is_object() ? json.find("record_version") : json.end();
    if (version == json.end() || *version != kRecordVersion) {
      refuse("record_version " + std::to_string(kRecordVersion), version == json.end() ? "none" : version->dump());
    }
    set = engine_set(json);
  } catch (const Json::exception& error) {
    throw BundleError(expected("a legal " + file.string(), error.what(), todo));
  } catch (const std::invalid_argument& error) {
    throw BundleError(expected("a legal " + file.string(), error.what(), todo));
  }
  if (folder_of("", set.flavor, set.version, set.target).filename() != folder.filename()) {
    throw BundleError(expected("engines of " + folder.filename().string() + " in " + file.string(),
                               set.flavor + "-" + set.version + "-" + set.target, todo));
  }
  set.folder = folder;
  return set;
}

// What is wrong with the files of one engine; empty if nothing is.
std::string damage(const fs::path& folder, const EngineEntry& entry) {
  for (const FileEntry* file : {&entry.file, &entry.listing}) {
    const fs::path path = folder / file->path;
    std::error_code error;
    if (!fs::is_regular_file(path, error)) {
      return file->path + " is missing";
    }
    if (const auto size = fs::file_size(path, error); error || size != file->bytes) {
      return file->path + " has " + std::to_string(size) + " bytes instead of " + std::to_string(file->bytes);
    }
    try {
      if (sha256_of(path) != file->sha256) {
        return file->path + " was altered since it was built";
      }
    } catch (const std::ios_base::failure& failure) {
      return file->path + " cannot be read (" + failure.what() + ")";
    }
  }
  return {};
}

std::string folders_there(const fs::path& bundle) {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& folder : fs::directory_iterator(bundle / "engines", error)) {
    if (fs::is_regular_file(folder.path() / "engines.json", error)) {
      names.insert(folder.path().filename().string());
    }
  }
  std::string all;
  for (const std::string& name : names) {
    all += (all.empty() ? "" : ", ") + name;
  }
  return all.empty() ? "none" : all;
}

}  // namespace

const EngineEntry* EngineSet::engine(GraphRole graph) const {
  const auto found = std::ranges::find(engines, graph, &EngineEntry::graph);
  return found == engines.end() ? nullptr : &*found;
}

std::string build_command(const fs::path& bundle, std::string_view flavor, std::string_view target,
                          std::string_view precision, const Limits* limits) {
  std::string command = "fastsam2 build " + bundle.string() + " --flavor " + std::string(flavor) +
                        " --compute-capability " + std::string(target);
  if (!precision.empty()) {
    command += " --precision " + std::string(precision);
  }
  if (limits != nullptr) {
    command += " --max-objects " + std::to_string(limits->max_objects);
    if (limits->max_prompt_frames != Limits().max_prompt_frames) {
      command += " --max-prompt-frames " + std::to_string(limits->max_prompt_frames);
    }
    for (const double keep : limits->keep_buckets) {
      command += " --keep-buckets " + short_text(keep);
    }
  }
  return command;
}

namespace {

bool runs_portable(const std::string& capability) {
  return std::stoi(capability) >= 8;
}

}  // namespace

std::vector<std::string> targets_for(const fs::path& bundle, std::string_view flavor, std::string_view version,
                                     const std::string& capability) {
  std::vector<std::string> there;
  std::error_code error;
  for (const std::string& target : {capability, std::string(kPortable)}) {
    if ((target != kPortable || runs_portable(capability)) &&
        fs::is_regular_file(find_folder(bundle, flavor, version, target) / "engines.json", error)) {
      there.push_back(target);
    }
  }
  return there;
}

std::string default_target(std::string_view flavor, const std::string& capability) {
  return flavor == "tensorrt-rtx" && runs_portable(capability) ? std::string(kPortable) : capability;
}

EngineSet load_engines(const fs::path& bundle, const Manifest& manifest, std::string_view flavor,
                       std::string_view version, std::string_view target) {
  const fs::path folder = find_folder(bundle, flavor, version, target);
  std::error_code error;
  if (!fs::is_regular_file(folder / "engines.json", error)) {
    throw BundleError(expected("engines " + folder.filename().string() + " in " + bundle.string(),
                               folders_there(bundle), "Build them: " + build_command(bundle, flavor, target)));
  }
  EngineSet set = read_set(folder);
  std::set<std::string> precisions;
  for (const EngineEntry& entry : set.engines) {
    precisions.insert(entry.precision);
  }
  const std::string precision = precisions.size() == 1 ? *precisions.begin() : "";
  const std::string todo = "Build again: " + build_command(bundle, flavor, target, precision, &set.limits);
  if (precisions.size() > 1) {
    throw BundleError(
        expected("engines of one precision in " + folder.string(),
                 *precisions.begin() + " and " + *precisions.rbegin() + ", as an interrupted build leaves them", todo));
  }
  for (const GraphEntry& graph : manifest.graphs) {
    if (graph.target != ExportTarget::Tensorrt) {
      continue;
    }
    const std::string role(name_of(graph.role));
    const EngineEntry* entry = set.engine(graph.role);
    if (entry == nullptr) {
      throw BundleError(expected("an engine of " + role + " in " + folder.string(), "none", todo));
    }
    if (entry->source_sha256 != graph.file.sha256) {
      throw BundleError(
          expected("an engine of this bundle's " + role, "one of another ONNX file in " + folder.string(), todo));
    }
    if (entry->profiles != profiles(manifest.model, graph.role, set.limits)) {
      throw BundleError(expected(role + " in " + folder.string() + " with the profiles of its limits",
                                 "another profile, as an interrupted build leaves it", todo));
    }
    if (const std::string wrong = damage(folder, *entry); !wrong.empty()) {
      throw BundleError(expected("whole engine files in " + folder.string(), wrong, todo));
    }
  }
  return set;
}

}  // namespace fastsam2::gpu
