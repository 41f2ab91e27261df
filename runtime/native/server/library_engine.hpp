// The engine of the service: ArcFlow's library through its public C interface.
#pragma once

#include <arcflow/arcflow.hpp>
#include <memory>

#include "server/engine.hpp"
#include "server/telemetry/log.hpp"

namespace arcflow::serve {

// Verifies and loads the bundle. What the library logs goes to `log`, which must outlive the engine. Throws
// EngineError.
std::unique_ptr<Engine> open_library(const ModelOptions& options, Log& log);

}  // namespace arcflow::serve
