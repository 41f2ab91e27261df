// The fields of one flat JSON object, read from hostile bytes in bounded memory and without recursion.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>

namespace arcflow::serve {

// An array or an object. What is in it is checked to be JSON and dropped.
struct Nested {};

using FieldValue = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Nested>;
using Fields = std::map<std::string, FieldValue>;

constexpr int kMaxDepth = 16;   // of arrays and objects within each other
constexpr int kMaxFields = 64;  // of the object

struct FieldsResult {
  Fields fields;
  std::string error;  // "" where fields is complete; else a sentence
};

// Reads `body`, which must be one JSON object in UTF-8. A name that stands twice, more than kMaxFields names and
// nesting beyond kMaxDepth are errors. Throws nothing but std::bad_alloc.
FieldsResult read_fields(std::string_view body);

}  // namespace arcflow::serve
