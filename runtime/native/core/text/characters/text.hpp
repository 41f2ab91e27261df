// A prompt on its way to ids: its characters as they are now, and where in the prompt each came from.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace arcflow::core::tokenizer {

// chars and origins have one length; origins are indices of the prompt's characters and never decrease. The tokenizers
// package keeps them by byte, which comes to the same: all bytes of a character share theirs.
struct Text {
  std::u32string chars;
  std::vector<std::uint32_t> origins;

  void push(char32_t c, std::uint32_t origin) {
    chars.push_back(c);
    origins.push_back(origin);
  }
  Text slice(std::size_t begin, std::size_t end) const;
};

// A token and the character of the prompt at which it begins.
struct Token {
  std::uint32_t id = 0;
  std::uint32_t start = 0;
};

// One character of a rewritten text and how the character count changed there: 0 replaces a character of the old text,
// 1 is put in after it, -n replaces one and removes the n that follow.
using Change = std::pair<char32_t, int>;

// Rewrites `text`. A character that was put in has the origin of what stands before it in the old text.
void rewrite(Text& text, const std::vector<Change>& changes);

// Unicode's normalisation form C, as the tokenizers package does it.
void nfc(Text& text);

// The characters of UTF-8. Throws Error(ARCFLOW_INVALID_ARGUMENT) where the bytes are not UTF-8.
std::u32string decode(std::string_view utf8);
// Each character is its own origin.
Text with_origins(std::u32string chars);
void append_utf8(std::string& utf8, char32_t c);
std::string encode(std::u32string_view chars);

std::size_t utf8_length(char32_t c) noexcept;
// The origins of the bytes of encode(text.chars).
std::vector<std::uint32_t> origins_by_byte(const Text& text);

}  // namespace arcflow::core::tokenizer
