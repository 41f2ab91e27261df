// The TensorRT library: found and opened when a model is made, never linked. Either flavour serves, TensorRT or
// TensorRT for RTX, of the major version whose headers this module was compiled with.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace arcflow::tensorrt {

struct Library {
  std::string name;     // "TensorRT" or "TensorRT for RTX"
  std::string version;  // "10.14.1", the library's own
  void* (*create_runtime)(void* logger, std::int32_t version) noexcept;
};

// path: of the library, or null or "": $ARCFLOW_TENSORRT, then the loader's search for its usual names. It stays
// loaded. Throws Error(ARCFLOW_BACKEND_UNAVAILABLE) where there is none, or one that this module does not fit.
Library open_library(const char* path);

}  // namespace arcflow::tensorrt
