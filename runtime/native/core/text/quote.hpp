// Text as Python shows it. Errors quote what they found, and a fault has the same words in both languages.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace arcflow::core {

// What repr() makes of a str: in quotes, with escapes for what cannot be printed. Bytes that are not UTF-8 are shown as
// Python shows those of a file's name ('\udcff').
std::string python_repr(std::string_view text);

// What is wrong with text that should be UTF-8, in the words of Python's UnicodeDecodeError; nothing where it is valid.
std::optional<std::string> utf8_fault(std::string_view text);

}  // namespace arcflow::core
