// What a prompt's bytes are as text, in the terms of Python's str: characters, and which of them are white space.
#pragma once

#include <cstddef>
#include <string_view>

namespace arcflow::core {

struct TextFacts {
  std::size_t characters = 0;  // code points; a byte that is not UTF-8 counts as one
  bool valid = true;           // UTF-8 throughout: no stray byte, no overlong form, no surrogate
  bool blank = true;           // nothing but white space: str.strip() would leave ""
};

TextFacts inspect_utf8(std::string_view text) noexcept;

}  // namespace arcflow::core
