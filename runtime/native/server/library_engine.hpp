// The engine of the service: ArcFlow's library through its public C interface.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "server/engine.hpp"
#include "server/log.hpp"

namespace arcflow::serve {

// Empty strings and zeros leave the choice to the library; see ArcflowModelOptions.
struct LibraryOptions {
  std::string bundle, precision, target, library;
  std::uint32_t threads = 0, device = 0;
};

// Verifies and loads the bundle. What the library logs goes to `log`, which must outlive the engine. Throws
// EngineError.
std::unique_ptr<Engine> open_library(const LibraryOptions& options, Log& log);

}  // namespace arcflow::serve
