#include "core/bundle/manifest/readers.hpp"

#include <algorithm>

#include "core/text/python_text.hpp"

namespace arcflow::core::readers {
namespace {

// Arrays and objects inside one another; no manifest has a tenth of it.
constexpr int kMostNested = 900;

std::string path_of(At at) {
  if (at == nullptr) return "$";
  const std::string before = path_of(at->parent);
  if (at->index == Place::kField) return before + "." + std::string(at->field);
  return before + (at->index == Place::kValue ? "[...]" : "[" + std::to_string(at->index) + "]");
}

[[noreturn]] void fail(const std::string& what, At at) {
  throw JsonError(what + (at == nullptr ? "" : " - at `" + path_of(at) + "`"));
}

[[noreturn]] void mismatch(const char* expected, const Json& found, At at) {
  const char* got = found.is_null()             ? "null"
                    : found.is_boolean()        ? "bool"
                    : found.is_string()         ? "str"
                    : found.is_array()          ? "array"
                    : found.is_object()         ? "object"
                    : found.is_number_integer() ? "int"
                                                : "float";  // also an integer of more than 64 bits
  fail(std::string("Expected `") + expected + "`, got `" + got + "`", at);
}

bool accepts(const Pattern& pattern, std::string_view found) {
  if (pattern.or_empty && found.empty()) return true;
  for (const Run& run : pattern.runs) {
    if (run.characters == nullptr) break;
    const std::size_t length = std::min({found.find_first_not_of(run.characters), found.size(), run.most});
    if (length < run.least) return false;
    found.remove_prefix(length);
  }
  return found.empty();
}

}  // namespace

Json parse(std::string_view data) {
  const auto shallow = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMostNested) throw JsonError("it is nested too deeply");
    return true;
  };
  // The library passes over a byte order mark and takes a NUL for the end.
  const std::size_t stray = data.substr(0, 3) == "\xEF\xBB\xBF" ? 0 : data.find('\0');
  std::size_t fault = stray;
  try {
    if (stray == data.npos) return Json::parse(data.begin(), data.end(), shallow);
  } catch (const Json::parse_error& error) {
    fault = error.byte == 0 ? 0 : error.byte - 1;  // it counts from 1
  } catch (const Json::out_of_range&) {
    throw JsonError("Number out of range");
  }
  throw JsonError("JSON is malformed (byte " + std::to_string(fault) + ")");
}

std::string text(const Json& value, At at) {
  if (!value.is_string()) mismatch("str", value, at);
  return value.get<std::string>();
}

std::string text_like(const Json& value, At at, const Pattern& pattern) {
  std::string found = text(value, at);
  if (!accepts(pattern, found)) fail("Expected `str` matching regex " + python_repr(pattern.text), at);
  return found;
}

std::string text_among(const Json& value, At at, const std::vector<const char*>& allowed) {
  std::string found = text(value, at);
  if (std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    fail("Invalid enum value " + python_repr(found), at);
  }
  return found;
}

std::int64_t integer_within(const Json& value, At at, std::int64_t least, std::int64_t most, const char* expected) {
  if (!value.is_number_integer()) mismatch(expected, value, at);
  const bool beyond = value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
  const std::int64_t number = beyond ? INT64_MAX : value.get<std::int64_t>();
  if (number < least) fail("Expected `int` >= " + std::to_string(least), at);
  if (beyond || number > most) fail("Expected `int` <= " + std::to_string(most), at);
  return number;
}

double real(const Json& value, At at) {
  if (!value.is_number()) mismatch("float", value, at);
  return value.get<double>();
}

double positive(const Json& value, At at) {
  const double number = real(value, at);
  if (!(number > 0)) fail("Expected `float` > 0.0", at);
  return number;
}

bool boolean(const Json& value, At at) {
  if (!value.is_boolean()) mismatch("bool", value, at);
  return value.get<bool>();
}

void check_array(const Json& value, At at) {
  if (!value.is_array()) mismatch("array", value, at);
}

void check_object(const Json& value, At at, const char* expected) {
  if (!value.is_object()) mismatch(expected, value, at);
}

void read_object(const Json& value, At at, bool others, std::initializer_list<Field> fields) {
  check_object(value, at);
  for (const auto& [key, one] : value.items()) {
    const auto field =
        std::find_if(fields.begin(), fields.end(), [&name = key](const Field& f) { return name == f.name; });
    if (field != fields.end()) {
      const Place place{at, Place::kField, field->name};
      field->read(one, &place);
    } else if (!others) {
      fail("Object contains unknown field `" + key + '`', at);
    }
  }
  for (const Field& field : fields) {
    if (field.required && !value.contains(field.name)) {
      fail(std::string("Object missing required field `") + field.name + '`', at);
    }
  }
}

}  // namespace arcflow::core::readers
