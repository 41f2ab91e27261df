// Typed values out of JSON, put together as engines/schema.py puts its types together: schema.cpp is made of these.
// What is of another type is rejected in msgspec's words: "Expected `int`, got `str` - at `$.files[0].size`".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace arcflow::core::readers {

// Keeps the order of fields: of several faults the first is told.
using Json = nlohmann::ordered_json;

// What is wrong with a text, without the file's name.
struct JsonError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Any bytes as JSON. Throws JsonError where they are none, or nested more deeply than any manifest.
Json parse(std::string_view data);

// Where in a document a value stands. The document itself is null.
struct Place {
  static constexpr std::int64_t kField = -1, kValue = -2;

  const Place* parent;
  std::int64_t index;      // of an array's element; kField; kValue, for any value of a map
  std::string_view field;  // with kField
};
using At = const Place*;

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
};

// One field of an object. read is called each time that it is met.
struct Field {
  const char* name;
  bool required;
  std::function<void(const Json&, At)> read;
};

// Each is called with a value and its place, and throws JsonError.
std::string text(const Json& value, At at);
std::string text_like(const Json& value, At at, const Pattern& pattern);
std::string text_among(const Json& value, At at, const std::vector<const char*>& allowed);
std::int64_t integer_within(const Json& value, At at, std::int64_t least, std::int64_t most,
                            const char* expected = "int");
double real(const Json& value, At at);
double positive(const Json& value, At at);
bool boolean(const Json& value, At at);
void check_array(const Json& value, At at);
void check_object(const Json& value, At at, const char* expected = "object");
// others: whether fields that are not named here may stand there.
void read_object(const Json& value, At at, bool others, std::initializer_list<Field> fields);

inline std::int64_t any_integer(const Json& value, At at) { return integer_within(value, at, INT64_MIN, INT64_MAX); }

inline auto integer(std::int64_t least, std::int64_t most) {
  return [least, most](const Json& value, At at) { return integer_within(value, at, least, most); };
}
// A number, or the name of a symbolic one.
inline auto dimension(std::int64_t least, std::int64_t most) {
  return [least, most](const Json& value, At at) -> std::variant<std::int64_t, std::string> {
    if (value.is_string()) return value.get<std::string>();
    return integer_within(value, at, least, most, "int | str");
  };
}
inline auto matching(const Pattern& pattern) {
  return [&pattern](const Json& value, At at) { return text_like(value, at, pattern); };
}
inline auto one_of(std::vector<const char*> allowed) {
  return [allowed = std::move(allowed)](const Json& value, At at) { return text_among(value, at, allowed); };
}

template <class Item>
auto list_of(Item item) {
  return [item](const Json& value, At at) {
    check_array(value, at);
    std::vector<decltype(item(value, at))> out;
    Place place{at, 0, {}};
    for (const Json& one : value) {
      out.push_back(item(one, &place));
      ++place.index;
    }
    return out;
  };
}
template <class Item>
auto map_of(Item item) {
  return [item](const Json& value, At at) {
    check_object(value, at);
    std::map<std::string, decltype(item(value, at))> out;
    const Place place{at, Place::kValue, {}};
    for (const auto& [key, one] : value.items()) out.insert_or_assign(key, item(one, &place));
    return out;
  };
}
template <class Item>
auto nullable(Item item) {
  return [item](const Json& value, At at) -> std::optional<decltype(item(value, at))> {
    if (value.is_null()) return std::nullopt;
    check_object(value, at, "object | null");
    return item(value, at);
  };
}

// A field of T: where it is kept and how it is read.
template <class T, class Value, class Read>
struct Member {
  const char* name;
  bool required;
  Value T::* place;
  Read read;
};
template <class T, class Value, class Read>
Member<T, Value, Read> needed(const char* name, Value T::* place, Read read) {
  return {name, true, place, std::move(read)};
}
template <class T, class Value, class Read>
Member<T, Value, Read> defaulted(const char* name, Value T::* place, Read read) {
  return {name, false, place, std::move(read)};
}

// An object of these fields and no others.
template <class T, class... Values, class... Reads>
T object(const Json& value, At at, const Member<T, Values, Reads>&... members) {
  T out;
  read_object(value, at, false, {Field{members.name, members.required, [&](const Json& one, At place) {
                                         out.*members.place = members.read(one, place);
                                       }}...});
  return out;
}

}  // namespace arcflow::core::readers
