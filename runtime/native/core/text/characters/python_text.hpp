// Text as Python shows and trims it: warnings read the same from both runtimes.
#pragma once

#include <string>
#include <string_view>

namespace arcflow::core::tokenizer {

// str.strip().
std::u32string_view python_strip(std::u32string_view text) noexcept;

// repr() of a str, as UTF-8. What Python prints as it is depends on its Unicode version, so a character that is newer
// than one of the two may be escaped by one of them only.
std::string python_repr(std::u32string_view text);

}  // namespace arcflow::core::tokenizer
