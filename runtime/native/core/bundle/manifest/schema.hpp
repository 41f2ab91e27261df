// The structs of engines/schema.py, field by field: their types, ranges, patterns and defaults.
#pragma once

#include <string>
#include <string_view>

#include "core/bundle/manifest/manifest.hpp"

namespace arcflow::core {

// The greatest count, dimension or number of tokens that a manifest may state (engines/schema.py, COUNT_MAX): products
// of three of them fit in 64 bits.
constexpr std::int64_t kCountMax = std::int64_t{1} << 20;

struct ManifestHeader {
  std::string schema_version;  // in decimal
  std::string kind;
};

struct ReadManifest {
  Manifest manifest;
  bool quantised = false;  // the file describes a quantisation
};

// Both throw JsonError where the bytes do not follow the schema. The header may be followed by fields of any version.
ManifestHeader read_header(std::string_view data);
ReadManifest read_manifest_fields(std::string_view data);

}  // namespace arcflow::core
