// A prompt on its way to ids, and UTF-8 both ways by utf8proc.
#include "core/text/characters/text.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <numeric>

#include "core/error.hpp"

namespace arcflow::core::tokenizer {

Text Text::slice(std::size_t begin, std::size_t end) const {
  const auto offset = [](std::size_t i) { return static_cast<std::ptrdiff_t>(i); };
  return {chars.substr(begin, end - begin), {origins.begin() + offset(begin), origins.begin() + offset(end)}};
}

void rewrite(Text& text, const std::vector<Change>& changes) {
  if (text.chars.empty()) return;
  Text out;
  out.chars.reserve(changes.size());
  out.origins.reserve(changes.size());
  const std::size_t last = text.chars.size() - 1;
  std::size_t at = 0;
  for (const auto& [c, change] : changes) {
    const std::size_t from = change > 0 && at > 0 ? at - 1 : at;
    out.push(c, text.origins[std::min(from, last)]);
    if (change <= 0) at += 1 + static_cast<std::size_t>(-static_cast<std::int64_t>(change));
  }
  text = std::move(out);
}

std::u32string decode(std::string_view utf8) {
  std::u32string chars;
  chars.reserve(utf8.size());
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(utf8.data());
  for (std::size_t at = 0; at < utf8.size();) {
    utf8proc_int32_t c = bytes[at];
    utf8proc_ssize_t length = 1;
    if (c >= 0x80) length = utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(utf8.size() - at), &c);
    if (length <= 0 || c < 0) {
      throw Error(ARCFLOW_INVALID_ARGUMENT,
                  "the prompt is not UTF-8 (byte " + std::to_string(at) + "); encode it as UTF-8");
    }
    chars.push_back(static_cast<char32_t>(c));
    at += static_cast<std::size_t>(length);
  }
  return chars;
}

Text with_origins(std::u32string chars) {
  Text text{std::move(chars), {}};
  text.origins.resize(text.chars.size());
  std::iota(text.origins.begin(), text.origins.end(), 0u);
  return text;
}

void append_utf8(std::string& utf8, char32_t c) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  utf8.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
}

std::string encode(std::u32string_view chars) {
  std::string utf8;
  utf8.reserve(chars.size());
  for (const char32_t c : chars) append_utf8(utf8, c);
  return utf8;
}

std::size_t utf8_length(char32_t c) noexcept { return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4; }

std::vector<std::uint32_t> origins_by_byte(const Text& text) {
  std::vector<std::uint32_t> origins;
  origins.reserve(text.chars.size() * 2);
  for (std::size_t i = 0; i < text.chars.size(); ++i) {
    origins.insert(origins.end(), utf8_length(text.chars[i]), text.origins[i]);
  }
  return origins;
}

}  // namespace arcflow::core::tokenizer
