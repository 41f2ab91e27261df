// How a bundle's folder is called: <model>-<precision>-<target> (engines/locate.py), and paths as Python writes them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/bundle/manifest/schema.hpp"

namespace arcflow::core {

struct BundleName {
  std::string model, precision, target;

  // "tiny-fp16-cpu"
  std::string str() const { return model + "-" + precision + "-" + target; }
};

inline BundleName name_of(const Manifest& manifest) { return {manifest.model, manifest.precision, manifest.target}; }

bool operator<(const BundleName& a, const BundleName& b);

// The parts of a bundle folder's name; nothing where it is not one. The model alone may hold dashes.
std::optional<BundleName> parse_name(std::string_view folder);

// Whether the bundle of that name is one for `target`: the same, or a GPU among those of its plans.
bool serves(const BundleName& name, const std::string& target);

// The command that makes the bundle in the folder `root` anew, as the end of an error message.
std::string hint(std::string_view root);

// A path without doubled slashes, "." in its middle or a slash at its end, as str(Path(path)).
std::string plain_path(std::string_view path);

// "a, b, c"
std::string joined(const std::vector<std::string>& parts);

}  // namespace arcflow::core
