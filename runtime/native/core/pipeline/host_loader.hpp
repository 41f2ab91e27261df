// Engine hosts: modules beside the library that are opened when a bundle calls for them (hosts/host.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "arcflow/arcflow.h"
#include "core/bundle/manifest/manifest.hpp"
#include "hosts/host.h"

namespace arcflow::core {

// The folder of the shared object that this code is in, absolute; "" where the system does not tell.
std::filesystem::path library_folder();

// The embedded bundles: those of the installed tree, of the build tree, or of the Python package; "" without any.
std::filesystem::path built_in_bundles();

// The host that runs a bundle: "ort" for ONNX files, "tensorrt" for plans, or what was asked for where it can ("":
// not). Throws Error(ARCFLOW_BACKEND_UNAVAILABLE or ARCFLOW_INVALID_ARGUMENT).
std::string host_for(const Manifest& manifest, const std::filesystem::path& root, const std::string& asked);

// The functions of libarcflow_host_<name>.so in `folder` ("": "arcflow" beside the library). The module stays loaded.
// Throws Error(ARCFLOW_BACKEND_UNAVAILABLE): which file was looked for, and why it would not do.
const ArcflowHostApi& load_host(const std::string& name, const std::filesystem::path& folder);

// Throws what a host's function said.
[[noreturn]] void throw_host_error(std::int32_t code, const ArcflowHostError& error);
// Calls a function of the table, whose last parameter is its error.
template <class... Parameters, class... Arguments>
void call_host(std::int32_t (*function)(Parameters...), Arguments... arguments) {
  ArcflowHostError error;
  error.message[0] = '\0';
  const std::int32_t code = function(arguments..., &error);
  if (code != 0) throw_host_error(code, error);
}

}  // namespace arcflow::core
