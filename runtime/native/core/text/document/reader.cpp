// Reading the fields of a tokenizer.json.
#include "core/text/document/reader.hpp"

#include "core/error.hpp"

namespace arcflow::core::tokenizer {
namespace {

constexpr std::size_t kShown = 200;

}  // namespace

void fail(const std::string& reason) { throw Error(ARCFLOW_BACKEND_UNAVAILABLE, reason); }

std::string shown(const Json& value) {
  // Cut before it is written out, where it can be: a file may hold megabytes.
  if (value.is_string() && value.get_ref<const std::string&>().size() > kShown)
    return '"' + shown_bare(value.get_ref<const std::string&>()) + '"';
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > 6 * kShown) text = text.substr(0, 6 * kShown) + "...";
  return text;
}

std::string shown_bare(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kShown)) out += c >= ' ' && c <= '~' ? c : '?';
  return text.size() > kShown ? out + "..." : out;
}

std::string type_of(const Json& component, const std::string& where) {
  if (!component.is_object()) fail("its " + where + " is not an object");
  return string_field(component, "type", where);
}

const Json& field(const Json& object, const std::string& key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) fail("its " + where + " has no \"" + shown_bare(key) + "\"");
  return *found;
}

const Json& array(const Json& object, const char* key, const std::string& where) {
  const Json& value = field(object, key, where);
  if (!value.is_array()) fail("\"" + std::string(key) + "\" of its " + where + " is not a list");
  return value;
}

std::string string_field(const Json& object, const char* key, const std::string& where) {
  const Json& value = field(object, key, where);
  if (!value.is_string()) fail("\"" + std::string(key) + "\" of its " + where + " is not a string");
  return value.get<std::string>();
}

std::string string_field(const Json& object, const char* key, const std::string& where, const char* fallback) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : string_field(object, key, where);
}

bool flag(const Json& object, const char* key, const std::string& where, bool fallback) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_boolean()) fail("\"" + std::string(key) + "\" of its " + where + " is neither true nor false");
  return found->get<bool>();
}

std::uint32_t id_of(const Json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 0xFFFFFFFF) {
    fail("its " + where + " has an id that is not a whole number from 0 to 4294967295");
  }
  return static_cast<std::uint32_t>(value.get<std::uint64_t>());
}

}  // namespace arcflow::core::tokenizer
