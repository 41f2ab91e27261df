// Finding and opening libonnxruntime, and turning its statuses into errors.
#include "hosts/ort/library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "hosts/engine_library.hpp"

namespace arcflow::ort {
namespace {

using core::Error;
using GetApiBase = const OrtApiBase* (*)();

constexpr const char* kAdvice =
    "; name the file libonnxruntime.so of ONNX Runtime 1.21 or newer in the option \"library\" or in "
    "$ARCFLOW_ONNXRUNTIME (the Python package onnxruntime holds one in its folder capi)";

// The newest table that both this build and the library know.
const OrtApi* newest_api(const OrtApiBase& base) {
  // A library says on stderr that it does not have a version, so no more is asked for than its own number promises.
  const std::string version = base.GetVersionString();
  std::uint32_t most = ORT_API_VERSION;
  if (version.rfind("1.", 0) == 0) {
    const unsigned long minor = std::strtoul(version.c_str() + 2, nullptr, 10);
    most = static_cast<std::uint32_t>(std::min<unsigned long>(most, minor));
  }
  for (std::uint32_t number = most; number >= kLeastApi; --number) {
    if (const OrtApi* api = base.GetApi(number)) return api;
  }
  return nullptr;
}

}  // namespace

Library open_library(const char* path) {
  const auto [module, file] = hosts::open_engine_library("ONNX Runtime", path, "ARCFLOW_ONNXRUNTIME",
                                                         {"libonnxruntime.so", "libonnxruntime.so.1"}, kAdvice);
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(module, "OrtGetApiBase"));
  const OrtApiBase* base = get_base != nullptr ? get_base() : nullptr;
  if (base == nullptr) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE, file + " is not ONNX Runtime: it has no OrtGetApiBase" + kAdvice);
  }
  const OrtApi* api = newest_api(*base);
  if (api == nullptr) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                file + " is ONNX Runtime " + base->GetVersionString() + ", which is too old" + kAdvice);
  }
  return {api, base->GetVersionString()};
}

Environment::Environment(const char* path) : library(open_library(path)), handle(nullptr, library.api->ReleaseEnv) {
  // The environment's own log would go to stderr and outlive a model: sessions have a log of their own.
  OrtEnv* environment = nullptr;
  check(*library.api, library.api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "arcflow", &environment),
        "ONNX Runtime cannot start");
  handle.reset(environment);
  check(*library.api, library.api->DisableTelemetryEvents(environment), "ONNX Runtime cannot start");
}

void check(const OrtApi& api, OrtStatus* status, const std::string& context) {
  if (status == nullptr) return;
  const Handle<OrtStatus> owner(status, api.ReleaseStatus);
  const std::string message = api.GetErrorMessage(status);
  // Its codes do not tell memory from other failures; these are what its allocators say.
  constexpr std::string_view kMemory[] = {"bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory"};
  const bool memory = std::any_of(std::begin(kMemory), std::end(kMemory), [&message](std::string_view sign) {
    return message.find(sign) != std::string::npos;
  });
  throw Error(memory ? ARCFLOW_OUT_OF_MEMORY : ARCFLOW_BACKEND_UNAVAILABLE, context + ": " + message);
}

}  // namespace arcflow::ort
