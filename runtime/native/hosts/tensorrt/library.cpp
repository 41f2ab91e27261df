// Finding TensorRT. Its interfaces are virtual tables, so a library of another major version must not even be asked for
// one.
#include "hosts/tensorrt/library.hpp"

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/error.hpp"
#include "hosts/engine_library.hpp"

namespace arcflow::tensorrt {
namespace {

using core::Error;
using LibraryVersion = std::int32_t (*)() noexcept;

constexpr const char* kVariable = "ARCFLOW_TENSORRT";
// TensorRT for RTX counts its own versions from 1; the headers are otherwise alike.
constexpr bool kRtx = NV_TENSORRT_MAJOR < 4;
constexpr std::int32_t kMajor = NV_TENSORRT_MAJOR, kMinor = NV_TENSORRT_MINOR;

std::string compiled_for() {
  return std::string(kRtx ? "TensorRT for RTX " : "TensorRT ") + std::to_string(kMajor) + "." + std::to_string(kMinor);
}

std::string advice() {
  const std::string file = kRtx ? "libtensorrt_rtx.so" : "libnvinfer.so";
  return "; install " + compiled_for() + " or a newer " + std::to_string(kMajor) + ".x, and name the file " + file +
         " in the option \"library\" or in $" + kVariable + " where the loader does not find it";
}

std::vector<std::string> names() {
  const std::string major = "." + std::to_string(kMajor);
  if (kRtx) return {"libtensorrt_rtx.so" + major, "libtensorrt_rtx.so"};
  return {"libnvinfer.so" + major, "libnvinfer.so", "libnvinfer_lean.so" + major, "libnvinfer_lean.so"};
}

Library checked(void* module, const std::string& file) {
  const auto version = reinterpret_cast<LibraryVersion>(dlsym(module, "getInferLibVersion"));
  Library library;
  library.create_runtime =
      reinterpret_cast<decltype(library.create_runtime)>(dlsym(module, "createInferRuntime_INTERNAL"));
  if (version == nullptr || library.create_runtime == nullptr) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                file + " is not TensorRT: it has no createInferRuntime_INTERNAL" + advice());
  }
  const std::int32_t number = version();  // 101401 is 10.14.1
  const std::int32_t major = number / 10000, minor = number / 100 % 100;
  library.name = major < 4 ? "TensorRT for RTX" : "TensorRT";
  library.version = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(number % 100);
  if (major != kMajor || minor < kMinor) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE, file + " is " + library.name + " " + library.version +
                                                 ", and this module was compiled for " + compiled_for() + advice());
  }
  return library;
}

}  // namespace

Library open_library(const char* path) {
  const auto [module, file] = hosts::open_engine_library("TensorRT", path, kVariable, names(), advice());
  return checked(module, file);
}

}  // namespace arcflow::tensorrt
