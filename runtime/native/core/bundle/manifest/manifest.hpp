// The manifest of a bundle: what engines/manifest.py reads, read as strictly and rejected in the same words.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/bundle/manifest/schema.hpp"

namespace arcflow::core {

// Decodes and checks the bytes of a manifest.json, its own digest included (engines/manifest.py, parse_manifest).
// Throws Error(ARCFLOW_BUNDLE_REJECTED) with the text that Python gives; of bytes that are no JSON the parser's own
// words differ.
Manifest parse_manifest(std::string_view data);

// Throws Error(ARCFLOW_BUNDLE_REJECTED) where the parts of a manifest contradict each other (engines/checks.py).
void check_manifest(const Manifest& manifest);

// Why `path` may not name a file of a bundle; nothing where it may (relative, posix, inside, normal form).
std::optional<std::string> unsafe_path(std::string_view path);

}  // namespace arcflow::core
