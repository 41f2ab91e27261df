// Finding and opening host modules.
#include "core/pipeline/host_loader.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.hpp"

namespace arcflow::core {
namespace fs = std::filesystem;
namespace {

constexpr const char* kHostFolder = "arcflow";
constexpr const char* kOnnxHost = "ort";
constexpr const char* kPlanHost = "tensorrt";
constexpr const char* kCpuTarget = "cpu";

#if defined(__APPLE__)
constexpr const char* kSuffix = ".dylib";
#else
constexpr const char* kSuffix = ".so";
#endif

[[noreturn]] void unavailable(const std::string& message) { throw Error(ARCFLOW_BACKEND_UNAVAILABLE, message); }

// A name becomes part of a file's name.
bool is_word(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

}  // namespace

fs::path library_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&library_folder), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code ignored;
  fs::path file = fs::canonical(info.dli_fname, ignored);
  return (file.empty() ? fs::path(info.dli_fname) : file).parent_path();
}

fs::path built_in_bundles() {
  const fs::path here = library_folder();
  // From <prefix>/lib and from <prefix>/lib/<machine>; the build tree is laid out as a prefix.
  for (const char* way : {"../share/arcflow/bundles", "../../share/arcflow/bundles"}) {
    std::error_code ignored;
    const fs::path folder = here / way;
    if (fs::is_directory(folder, ignored)) return folder.lexically_normal();
  }
  return {};
}

std::string host_for(const Manifest& manifest, const fs::path& root, const std::string& asked) {
  if (manifest.target == kSourceTarget) {
    unavailable(root.string() + " is for target '" + manifest.target +
                "' (ONNX files for building plans): build plans for your GPU with python -m export.engine " +
                root.string() + " --target TARGET, or build a bundle for the CPU: python -m export.build --model " +
                manifest.model + " --precision fp16 --target " + kCpuTarget +
                " (4 bytes of main memory a weight, half of that on disk)");
  }
  const bool plans = manifest.engine.has_value();
  const std::string fitting = plans ? kPlanHost : kOnnxHost;
  if (asked.empty()) return fitting;
  if (!is_word(asked)) {
    throw Error(ARCFLOW_INVALID_ARGUMENT,
                "host is '" + asked + "'; it is 'ort', 'tensorrt', or NULL for what the bundle calls for");
  }
  if (asked == (plans ? kOnnxHost : kPlanHost)) {
    unavailable(root.string() + " holds " + (plans ? "TensorRT plans" : "ONNX files") + "; the host '" + asked +
                "' does not run them, '" + fitting + "' does");
  }
  return asked;
}

const ArcflowHostApi& load_host(const std::string& name, const fs::path& folder) {
  const fs::path where = folder.empty() ? library_folder() / kHostFolder : folder;
  const fs::path file = fs::absolute(where) / ("libarcflow_host_" + name + kSuffix);
  const std::string whom = "the engine host '" + name + "'";
  std::error_code ignored;
  if (!fs::exists(file, ignored)) {
    std::string found;
    for (const auto& entry : fs::directory_iterator(where, ignored)) {
      const std::string other = entry.path().filename().string();
      if (other.rfind("libarcflow_host_", 0) == 0) found += (found.empty() ? "" : ", ") + other;
    }
    unavailable(whom + " is not installed: there is no " + file.string() + " (there: " +
                (found.empty() ? "no host" : found) + "); install it there, or name its folder in host_directory");
  }
  // Never closed: an engine's threads and thread-local objects may outlive the last model.
  void* module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (module == nullptr) {
    const char* reason = dlerror();
    unavailable(whom + " cannot be loaded: " + (reason != nullptr ? reason : file.string()));
  }
  ArcflowHostGetApi get = nullptr;
  void* symbol = dlsym(module, ARCFLOW_HOST_SYMBOL);
  static_assert(sizeof get == sizeof symbol);
  std::memcpy(&get, &symbol, sizeof get);
  const ArcflowHostApi* api = get != nullptr ? get(kArcflowHostVersion) : nullptr;
  if (api == nullptr || api->version != kArcflowHostVersion) {
    unavailable(whom + " in " + file.string() + " is not of this library's version: install the one that came with it");
  }
  return *api;
}

void throw_host_error(std::int32_t code, const ArcflowHostError& error) {
  const std::size_t size = strnlen(error.message, sizeof error.message);
  const std::string message(error.message, size);
  const bool known = code > ARCFLOW_OK && code <= ARCFLOW_INTERNAL;
  if (!known) throw Error(ARCFLOW_INTERNAL, "an engine host failed with code " + std::to_string(code) + ": " + message);
  throw Error(static_cast<ArcflowCode>(code), message.empty() ? "an engine host failed without saying why" : message);
}

}  // namespace arcflow::core
