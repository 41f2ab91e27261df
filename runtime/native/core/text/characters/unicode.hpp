// What tokenizers ask of a character: letter, number or white space, and its lower case.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace arcflow::core::tokenizer {

enum class Kind : std::uint8_t { kLetter, kNumber, kSpace, kOther };

// \p{L}, \p{N} and \s, as the tokenizers package's regular expressions have them (Unicode 16).
Kind kind(char32_t c) noexcept;

// Unicode's White_Space: \s there, and Rust's char::is_whitespace.
bool is_white_space(char32_t c) noexcept;

// Writes the full lower case of one character, without regard to its neighbours, and returns its length, 1 or 2.
std::size_t lower(char32_t c, char32_t (&out)[2]) noexcept;

// Sorted ranges of characters, and whether one lies in them.
struct Range {
  char32_t first, last;
};

template <std::size_t N>
bool in_ranges(const Range (&ranges)[N], char32_t c) noexcept {
  const Range* after = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                        [](char32_t value, const Range& range) { return value < range.first; });
  return after != std::begin(ranges) && c <= std::prev(after)->last;
}

}  // namespace arcflow::core::tokenizer
