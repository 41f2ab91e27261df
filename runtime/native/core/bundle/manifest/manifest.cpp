#include "core/bundle/manifest/manifest.hpp"

#include <utility>

#include "core/bundle/manifest/checks.hpp"
#include "core/bundle/manifest/json_reader.hpp"
#include "core/bundle/manifest/schema.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"
#include "core/text/quote.hpp"

namespace arcflow::core {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ARCFLOW_BUNDLE_REJECTED, "manifest.json " + message);
}

ManifestHeader header_of(std::string_view data) {
  try {
    return read_header(data);
  } catch (const JsonError& error) {
    refuse(std::string("is damaged or is not a bundle's manifest: ") + error.what());
  }
}

ReadManifest fields_of(std::string_view data) {
  try {
    return read_manifest_fields(data);
  } catch (const JsonError& error) {
    refuse(std::string("does not follow the schema: ") + error.what());
  }
}

// Every `"digest": "<64 hexadecimal digits>"` in the bytes: the digits.
std::vector<std::string_view> stated_digests(std::string_view data) {
  constexpr std::string_view kField = "\"digest\": \"";
  constexpr std::size_t kDigits = 64;
  std::vector<std::string_view> found;
  std::size_t next = 0;
  for (auto at = data.find(kField); at != data.npos; at = data.find(kField, next)) {
    const std::size_t start = at + kField.size(), end = start + kDigits;
    const std::string_view digits = data.substr(start, kDigits);
    const bool whole =
        digits.find_first_not_of("0123456789abcdef") == digits.npos && end < data.size() && data[end] == '"';
    if (whole) found.push_back(digits);
    next = whole ? end + 1 : at + 1;
  }
  return found;
}

// The digest is of the bytes as they are, less its own digits (where these digits stand first).
void check_digest(std::string_view data, const std::string& digest) {
  const auto found = stated_digests(data);
  if (found.size() != 1 || found[0] != digest) {
    refuse("was altered: it must hold one digest of itself, found " + std::to_string(found.size()));
  }
  const auto first = data.find(found[0]);
  Sha256 hash;
  hash.update(data.data(), first);
  hash.update(data.data() + first + digest.size(), data.size() - first - digest.size());
  const std::string actual = hash.hex();
  if (actual != digest) refuse("was altered: its digest is " + actual + ", it states " + digest);
}

}  // namespace

Manifest parse_manifest(std::string_view data) {
  const ManifestHeader header = header_of(data);
  if (header.kind != "arcflow-bundle") {
    refuse("is of kind " + python_repr(header.kind) + "; a bundle's is 'arcflow-bundle'");
  }
  if (header.schema_version != "3") {
    refuse("has schema version " + header.schema_version +
           ", this ArcFlow reads version 3: use the ArcFlow that made the bundle, or build the bundle again");
  }
  ReadManifest read = fields_of(data);
  check_digest(data, read.manifest.digest);
  check_manifest(read.manifest, read.quantised);
  return std::move(read.manifest);
}

}  // namespace arcflow::core
