// ONNX Runtime as a library that is opened while the program runs, and its C interface made safe to use from C++.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>

#include "core/error.hpp"

namespace arcflow::ort {

// The oldest interface that is enough. Since 1.21 ONNX Runtime can be told where a model's external data lies, and we
// tell it "nowhere": an older one would look for it in the current folder.
constexpr std::uint32_t kLeastApi = 21;

// An object of ONNX Runtime's with the function that releases it.
template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

// The opened library. It stays mapped until the process ends: its threads and thread-local objects may outlive us.
struct Library {
  const OrtApi* api;
  std::string version;  // "1.32.0"
};

// Opens `path`; where it is null or empty what $ARCFLOW_ONNXRUNTIME names, and without that what the loader finds.
// Throws Error(ARCFLOW_BACKEND_UNAVAILABLE): what was tried, why it was no good, and how to name a library.
Library open_library(const char* path);

// ONNX Runtime, opened and started. It has one environment a process and counts how often it was asked for.
struct Environment {
  explicit Environment(const char* path);  // as open_library; throws core::Error

  Library library;
  Handle<OrtEnv> handle;
};

// Throws what a status says and releases it; null passes. `context` comes before ONNX Runtime's own words.
// ARCFLOW_OUT_OF_MEMORY where memory was the reason, else ARCFLOW_BACKEND_UNAVAILABLE.
void check(const OrtApi& api, OrtStatus* status, const std::string& context);

}  // namespace arcflow::ort
