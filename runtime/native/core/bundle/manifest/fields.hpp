// Typed values out of JSON text, rejected in msgspec's words: "Expected `int`, got `str` - at `$.files[0].size`".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/bundle/manifest/json_reader.hpp"

namespace arcflow::core {

// Where in a document a value stands. The document itself is null.
struct Place {
  static constexpr std::int64_t kField = -1, kValue = -2;

  const Place* parent;
  std::int64_t index;      // of an array's element; kField; kValue, for any value of a map
  std::string_view field;  // with kField
};

// One field of an object. read is called each time that it is met: of equal keys the last counts.
struct Field {
  const char* name;
  bool required;
  std::function<void(const Place*)> read;
};

// Some of these characters, one after the other.
struct Run {
  const char* characters;
  std::size_t least, most;
};
constexpr std::size_t kAny = SIZE_MAX;

// A regular expression: runs, of which the last alone may be of more than one length. text: what errors show of it.
struct Pattern {
  const char* text;
  bool or_empty;
  std::array<Run, 4> runs;  // those that are not needed have no characters

  bool accepts(std::string_view found) const;
};

// Every function throws JsonError.
class FieldReader {
 public:
  enum class Unknown { refuse, skip };

  explicit FieldReader(std::string_view data) : in_(data) {}

  std::string text(const Place* at) { return text(at, "str"); }
  std::string matching(const Place* at, const Pattern& pattern);
  std::string literal(const Place* at, const std::vector<const char*>& allowed);
  std::int64_t integer(const Place* at, std::int64_t least, std::int64_t most, const char* expected = "int");
  // An integer of any size, in decimal.
  std::string any_integer(const Place* at);
  double real(const Place* at);
  double positive(const Place* at);
  bool boolean(const Place* at);
  // A string, or an integer in that range.
  std::variant<std::int64_t, std::string> integer_or_text(const Place* at, std::int64_t least, std::int64_t most);

  // Whether there is an object here; false, and it is passed, for null.
  bool object_or_null(const Place* at);
  void object(const Place* at, Unknown unknown, std::initializer_list<Field> fields);
  // item(place) reads an element.
  template <class Item>
  void array(const Place* at, Item item);
  // item(key, place) reads a value.
  template <class Item>
  void map(const Place* at, Item item);
  void finish() { in_.finish(); }

 private:
  [[noreturn]] static void fail(const std::string& what, const Place* at);
  // Rejects the value that stands here, after reading as much of it as msgspec does.
  [[noreturn]] void mismatch(const char* expected, const Place* at);
  void open(char bracket, const char* expected, const Place* at);
  std::string text(const Place* at, const char* expected);
  JsonNumber integer_number(const Place* at, const char* expected);
  static double finite(const JsonNumber& number, const Place* at);
  static std::string checked(std::string text);

  JsonReader in_;
};

template <class Item>
void FieldReader::array(const Place* at, Item item) {
  open('[', "array", at);
  Place place{at, 0, {}};
  for (bool first = true; in_.element(first); ++place.index) item(&place);
}

template <class Item>
void FieldReader::map(const Place* at, Item item) {
  open('{', "object", at);
  const Place place{at, Place::kValue, {}};
  bool first = true;
  while (auto key = in_.key(first)) {
    std::string name = checked(std::move(*key));
    in_.colon();
    item(std::move(name), &place);
  }
}

}  // namespace arcflow::core
