#include "core/bundle/manifest/fields.hpp"

#include <algorithm>
#include <vector>

#include "core/text/python_text.hpp"

namespace arcflow::core {
namespace {

// Digits of an integer, its sign included, that Python still makes a number of.
constexpr std::size_t kMostDigits = 4300;

std::string suffix(const Place* at) {
  if (at == nullptr) return "";
  std::vector<const Place*> parts;
  for (; at != nullptr; at = at->parent) parts.push_back(at);
  std::string out = " - at `$";
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if ((*part)->index == Place::kField) {
      (out += '.') += (*part)->field;
    } else {
      out += (*part)->index == Place::kValue ? "[...]" : '[' + std::to_string((*part)->index) + ']';
    }
  }
  return out += '`';
}

std::string expected_got(const char* expected, const char* got) {
  return std::string("Expected `") + expected + "`, got `" + got + '`';
}

bool is_number(char c) { return std::string_view("ntf[{\"").find(c) == std::string_view::npos; }

}  // namespace

bool Pattern::accepts(std::string_view found) const {
  if (or_empty && found.empty()) return true;
  for (const Run& run : runs) {
    if (run.characters == nullptr) break;
    const std::size_t length = std::min({found.find_first_not_of(run.characters), found.size(), run.most});
    if (length < run.least) return false;
    found.remove_prefix(length);
  }
  return found.empty();
}

void FieldReader::fail(const std::string& what, const Place* at) { throw JsonError(what + suffix(at)); }

std::string FieldReader::checked(std::string text) {
  if (const auto fault = utf8_fault(text)) throw JsonError(*fault);
  return text;
}

double FieldReader::finite(const JsonNumber& number, const Place* at) {
  const auto value = number.real();
  if (!value) fail("Number out of range", at);
  return *value;
}

void FieldReader::mismatch(const char* expected, const Place* at) {
  const char* got = nullptr;
  switch (in_.peek()) {
    case 'n':
      in_.word("null");
      got = "null";
      break;
    case 't':
      in_.word("true");
      got = "bool";
      break;
    case 'f':
      in_.word("false");
      got = "bool";
      break;
    case '[':
      got = "array";
      break;
    case '{':
      got = "object";
      break;
    case '"':
      in_.string();
      got = "str";
      break;
    default: {
      const JsonNumber number = in_.number();
      if (!number.fits) finite(number, at);
      got = number.fits ? "int" : "float";  // msgspec calls an integer beyond 64 bits a float
    }
  }
  fail(expected_got(expected, got), at);
}

void FieldReader::open(char bracket, const char* expected, const Place* at) {
  if (in_.peek() != bracket) mismatch(expected, at);
  in_.pass();
}

std::string FieldReader::text(const Place* at, const char* expected) {
  if (in_.peek() != '"') mismatch(expected, at);
  return checked(in_.string());
}

std::string FieldReader::matching(const Place* at, const Pattern& pattern) {
  std::string found = text(at);
  if (!pattern.accepts(found)) fail("Expected `str` matching regex " + python_repr(pattern.text), at);
  return found;
}

std::string FieldReader::literal(const Place* at, const std::vector<const char*>& allowed) {
  std::string found = text(at);
  if (std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    fail("Invalid enum value " + python_repr(found), at);
  }
  return found;
}

JsonNumber FieldReader::integer_number(const Place* at, const char* expected) {
  if (!is_number(in_.peek())) mismatch(expected, at);
  const JsonNumber number = in_.number();
  if (number.is_float) {
    finite(number, at);
    fail(expected_got(expected, "float"), at);
  }
  if (!number.fits && number.text.size() > kMostDigits) fail("Integer value out of range", at);
  return number;
}

std::int64_t FieldReader::integer(const Place* at, std::int64_t least, std::int64_t most, const char* expected) {
  const JsonNumber number = integer_number(at, expected);
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  const bool in_range = number.fits && (number.magnitude < kSign || number.negative);
  const std::int64_t value =
      static_cast<std::int64_t>(number.negative ? ~number.magnitude + 1 : number.magnitude);  // two's complement
  if (in_range ? value < least : number.negative) fail("Expected `int` >= " + std::to_string(least), at);
  if (!in_range || value > most) fail("Expected `int` <= " + std::to_string(most), at);
  return value;
}

std::string FieldReader::any_integer(const Place* at) {
  const JsonNumber number = integer_number(at, "int");
  return number.text == "-0" ? "0" : std::string(number.text);
}

double FieldReader::real(const Place* at) {
  if (!is_number(in_.peek())) mismatch("float", at);
  return finite(in_.number(), at);
}

double FieldReader::positive(const Place* at) {
  const double value = real(at);
  if (!(value > 0)) fail("Expected `float` > 0.0", at);
  return value;
}

bool FieldReader::boolean(const Place* at) {
  const char c = in_.peek();
  if (c != 't' && c != 'f') mismatch("bool", at);
  in_.word(c == 't' ? "true" : "false");
  return c == 't';
}

std::variant<std::int64_t, std::string> FieldReader::integer_or_text(const Place* at, std::int64_t least,
                                                                     std::int64_t most) {
  constexpr const char* kExpected = "int | str";
  if (in_.peek() == '"') return text(at, kExpected);
  return integer(at, least, most, kExpected);
}

bool FieldReader::object_or_null(const Place* at) {
  const char c = in_.peek();
  if (c == '{') return true;
  if (c != 'n') mismatch("object | null", at);
  in_.word("null");
  return false;
}

void FieldReader::object(const Place* at, Unknown unknown, std::initializer_list<Field> fields) {
  open('{', "object", at);
  std::vector<bool> met(fields.size(), false);
  bool first = true;
  while (const auto key = in_.key(first)) {
    in_.colon();
    const auto field = std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return *key == f.name; });
    if (field != fields.end()) {
      const Place place{at, Place::kField, field->name};
      field->read(&place);
      met[static_cast<std::size_t>(field - fields.begin())] = true;
    } else if (unknown == Unknown::skip) {
      in_.skip();
    } else {
      fail("Object contains unknown field `" + checked(*key) + '`', at);
    }
  }
  std::size_t index = 0;
  for (const Field& field : fields) {
    if (field.required && !met[index]) fail(std::string("Object missing required field `") + field.name + '`', at);
    ++index;
  }
}

}  // namespace arcflow::core
