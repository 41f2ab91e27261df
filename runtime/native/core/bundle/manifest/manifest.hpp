// The manifest of a bundle: what engines/manifest.py reads, read as strictly and rejected in the same words.
#pragma once

#include <string_view>

#include "core/bundle/manifest/schema.hpp"

namespace arcflow::core {

// Decodes and checks the bytes of a manifest.json, its own digest included (engines/manifest.py, parse_manifest).
// Throws Error(ARCFLOW_BUNDLE_REJECTED) with the text that Python gives.
Manifest parse_manifest(std::string_view data);

}  // namespace arcflow::core
