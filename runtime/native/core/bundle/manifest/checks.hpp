// What the parts of a well-typed manifest must agree on (engines/checks.py).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/bundle/manifest/manifest.hpp"

namespace arcflow::core {

// Throws Error(ARCFLOW_BUNDLE_REJECTED) where the parts of a manifest contradict each other.
void check_manifest(const Manifest& manifest);

// Why `path` may not name a file of a bundle; nothing where it may (relative, posix, inside, normal form).
std::optional<std::string> unsafe_path(std::string_view path);

}  // namespace arcflow::core
