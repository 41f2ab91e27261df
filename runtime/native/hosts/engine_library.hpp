// Finding and opening the library of an engine.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace arcflow::hosts {

struct EngineLibrary {
  void* module;  // never unloaded: engines leave threads and handlers behind that outlive their objects
  std::string file;
};

// The library of `engine` at `path`, where that is given, else where the environment's `variable` says, else the first
// of `names` that the loader finds. Throws core::Error(ARCFLOW_BACKEND_UNAVAILABLE) with what was tried and the advice.
inline EngineLibrary open_engine_library(const std::string& engine, const char* path, const char* variable,
                                         std::vector<std::string> names, const std::string& advice) {
  if (path == nullptr || *path == '\0') path = std::getenv(variable);
  if (path != nullptr && *path != '\0') names = {path};
  std::string tried;
  for (const std::string& name : names) {
    if (void* module = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return {module, name};
    const char* reason = dlerror();
    tried += (tried.empty() ? "" : "; ") + std::string(reason != nullptr ? reason : name + " cannot be opened");
  }
  throw core::Error(ARCFLOW_BACKEND_UNAVAILABLE, engine + " was not found: " + tried + advice);
}

}  // namespace arcflow::hosts
