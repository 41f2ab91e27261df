// The engine of the service: ArcFlow's library through its public C interface.
#pragma once

#include <arcflow/arcflow.hpp>
#include <memory>
#include <string>

#include "server/engine.hpp"
#include "server/telemetry/log.hpp"

namespace arcflow::serve {

// Verifies and loads the bundle. What the library logs goes to `log`, which must outlive the engine. hosts: the folder
// of the engine hosts; "": beside the library. Throws EngineError.
std::unique_ptr<Engine> open_library(const ModelOptions& options, Log& log, const std::string& hosts = "");

}  // namespace arcflow::serve
