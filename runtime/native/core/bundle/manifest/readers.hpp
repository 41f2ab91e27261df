// Readers of values, put together as engines/schema.py puts its types together: schema.cpp is made of them. Each is
// called with a reader that stands before the value and with the value's place, and throws JsonError.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/bundle/manifest/fields.hpp"

namespace arcflow::core::readers {

using At = const Place*;

inline std::string text(FieldReader& in, At at) { return in.text(at); }
inline std::string any_integer(FieldReader& in, At at) { return in.any_integer(at); }
inline double real(FieldReader& in, At at) { return in.real(at); }
inline double positive(FieldReader& in, At at) { return in.positive(at); }
inline bool boolean(FieldReader& in, At at) { return in.boolean(at); }

inline auto integer(std::int64_t least, std::int64_t most) {
  return [least, most](FieldReader& in, At at) { return in.integer(at, least, most); };
}
// A number, or the name of a symbolic one.
inline auto dimension(std::int64_t least, std::int64_t most) {
  return [least, most](FieldReader& in, At at) { return in.integer_or_text(at, least, most); };
}
inline auto matching(const Pattern& pattern) {
  return [&pattern](FieldReader& in, At at) { return in.matching(at, pattern); };
}
inline auto one_of(std::vector<const char*> allowed) {
  return [allowed = std::move(allowed)](FieldReader& in, At at) { return in.literal(at, allowed); };
}

template <class Item>
auto list_of(Item item) {
  return [item](FieldReader& in, At at) {
    std::vector<decltype(item(in, at))> out;
    in.array(at, [&](At place) { out.push_back(item(in, place)); });
    return out;
  };
}
template <class Item>
auto map_of(Item item) {
  return [item](FieldReader& in, At at) {
    std::map<std::string, decltype(item(in, at))> out;
    in.map(at, [&](std::string key, At place) { out.insert_or_assign(std::move(key), item(in, place)); });
    return out;
  };
}
template <class Item>
auto nullable(Item item) {
  return [item](FieldReader& in, At at) { return in.object_or_null(at) ? std::optional(item(in, at)) : std::nullopt; };
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
T object(FieldReader& in, At at, const Member<T, Values, Reads>&... members) {
  T out;
  in.object(
      at, FieldReader::Unknown::refuse,
      {Field{members.name, members.required, [&](At place) { out.*members.place = members.read(in, place); }}...});
  return out;
}

}  // namespace arcflow::core::readers
