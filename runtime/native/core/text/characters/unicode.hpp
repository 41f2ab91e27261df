// What tokenizers ask of a character: letter, number or white space, and its lower case.
#pragma once

#include <cstddef>
#include <cstdint>

namespace arcflow::core::tokenizer {

enum class Kind : std::uint8_t { kLetter, kNumber, kSpace, kOther };

// \p{L}, \p{N} and \s, as the tokenizers package's regular expressions have them (Unicode 16).
Kind kind(char32_t c) noexcept;

// Unicode's White_Space: \s there, and Rust's char::is_whitespace.
bool is_white_space(char32_t c) noexcept;

// Writes the full lower case of one character, without regard to its neighbours, and returns its length, 1 or 2.
std::size_t lower(char32_t c, char32_t (&out)[2]) noexcept;

}  // namespace arcflow::core::tokenizer
