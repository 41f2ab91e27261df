// A tokenizer.json and its fields. It is not trusted: its depth is bounded, and every type is asked for.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace arcflow::core::tokenizer {

using Json = nlohmann::json;

// Throws Error(ARCFLOW_BACKEND_UNAVAILABLE, reason); PromptTokenizer puts before it which file is meant.
[[noreturn]] void fail(const std::string& reason);

// fields: the JSON object without the two large parts of a BPE model, which would take most of a second as JSON values:
// its vocabulary ("vocab", where that is an object) and its merges, the left and the right piece of each.
struct Document {
  Json fields;
  std::optional<std::unordered_map<std::string, std::uint32_t>> vocabulary;
  std::optional<std::vector<std::pair<std::string, std::string>>> merges;
};

// Throws Error where `bytes` are no JSON object, are nested more deeply than any tokenizer is, or have a vocabulary or
// merges that are damaged.
Document parse(std::string_view bytes);

// What a file says, fit for a message: as JSON in ASCII, or (type names and a library's words) without the quotes, and
// never long. A hostile file must not make a message that is.
std::string shown(const Json& value);
std::string shown_bare(std::string_view text);

// A component's "type". where: for messages, as "pre_tokenizer".
std::string type_of(const Json& component, const std::string& where);

// A field that must be there, and of that type; fields that may be missing (or null) have a fallback.
const Json& field(const Json& object, const std::string& key, const std::string& where);
const Json& array(const Json& object, const char* key, const std::string& where);
std::string string_field(const Json& object, const char* key, const std::string& where);
std::string string_field(const Json& object, const char* key, const std::string& where, const char* fallback);
bool flag(const Json& object, const char* key, const std::string& where, bool fallback);

// A token's id: 0 to 2^32 - 1.
std::uint32_t id_of(const Json& value, const std::string& where);

}  // namespace arcflow::core::tokenizer
