// Text as Python's str shows, trims and counts it: messages and limits are the same in both languages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace arcflow::core {

// What repr() makes of a str: in quotes, with escapes for what cannot be printed. Bytes that are not UTF-8 are shown as
// Python shows those of a file's name ('\udcff'). What Python prints as it is depends on its version of Unicode, so a
// character that is newer than one of the two may be escaped by one of them only.
std::string python_repr(std::string_view text);

// str.strip().
std::u32string_view python_strip(std::u32string_view text) noexcept;

struct TextFacts {
  std::size_t characters = 0;  // code points; a byte that is not UTF-8 counts as one
  bool valid = true;           // UTF-8 throughout: no stray byte, no overlong form, no surrogate
  bool blank = true;           // nothing but white space: str.strip() would leave ""
};
TextFacts inspect_utf8(std::string_view text) noexcept;

}  // namespace arcflow::core
