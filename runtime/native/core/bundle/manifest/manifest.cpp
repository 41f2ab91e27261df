#include "core/bundle/manifest/manifest.hpp"

#include <string>
#include <utility>
#include <vector>

#include "core/bundle/manifest/readers.hpp"
#include "core/bundle/sha256.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

using readers::At;
using readers::Json;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ARCFLOW_BUNDLE_REJECTED, "manifest.json " + message);
}

// What is looked at before anything else; the rest may be of any version.
struct Header {
  std::int64_t schema_version = 0;
  std::string kind;
};

std::pair<Json, Header> header_of(std::string_view data) {
  try {
    Json document = readers::parse(data);
    Header out;
    readers::read_object(
        document, nullptr, true,
        {{"schema_version", true, [&](const Json& v, At at) { out.schema_version = readers::any_integer(v, at); }},
         {"kind", true, [&](const Json& v, At at) { out.kind = readers::text(v, at); }}});
    return {std::move(document), std::move(out)};
  } catch (const readers::JsonError& error) {
    refuse(std::string("is damaged or is not a bundle's manifest: ") + error.what());
  }
}

Manifest fields_of(const Json& document) {
  try {
    return read_manifest_fields(document);
  } catch (const readers::JsonError& error) {
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
  const auto [document, header] = header_of(data);
  if (header.kind != kBundleKind) {
    refuse("is of kind " + python_repr(header.kind) + "; a bundle's is " + python_repr(kBundleKind));
  }
  if (header.schema_version != kSchemaVersion) {
    refuse("has schema version " + std::to_string(header.schema_version) + ", this ArcFlow reads version " +
           std::to_string(kSchemaVersion) + ": use the ArcFlow that made the bundle, or build the bundle again");
  }
  Manifest manifest = fields_of(document);
  check_digest(data, manifest.digest);
  check_manifest(manifest);
  return manifest;
}

}  // namespace arcflow::core
