#include "core/text/python_text.hpp"

#include <utf8proc.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "core/text/characters/unicode.hpp"

namespace arcflow::core {
namespace {

// The character that some bytes start with, of `size` bytes; -1 for a byte that starts none.
struct Step {
  std::size_t size;
  std::int32_t point;
};

Step step(std::string_view rest) noexcept {
  std::int32_t point = -1;
  const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(rest.data()),
                                     static_cast<utf8proc_ssize_t>(rest.size()), &point);
  return size > 0 ? Step{static_cast<std::size_t>(size), point} : Step{1, -1};
}

bool printable(std::int32_t point) {
  if (point < 0x7F) return point >= 0x20;
  switch (utf8proc_category(point)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

// str.isspace().
bool is_space(char32_t c) noexcept { return tokenizer::is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

std::string escape(std::int32_t point) {
  if (point == '\n') return "\\n";
  if (point == '\r') return "\\r";
  if (point == '\t') return "\\t";
  char text[16];
  const auto value = static_cast<unsigned>(point);
  const char* form = value < 0x100 ? "\\x%02x" : value < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::snprintf(text, sizeof(text), form, value);
  return text;
}

}  // namespace

std::string python_repr(std::string_view text) {
  const bool doubled = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = doubled ? '"' : '\'';
  std::string out(1, quote);
  while (!text.empty()) {
    const Step next = step(text);
    if (next.point < 0) {
      out += escape(0xDC00 + static_cast<unsigned char>(text.front()));
    } else if (next.point == quote || next.point == '\\') {
      (out += '\\') += static_cast<char>(next.point);
    } else if (printable(next.point)) {
      out += text.substr(0, next.size);
    } else {
      out += escape(next.point);
    }
    text.remove_prefix(next.size);
  }
  return out += quote;
}

std::u32string_view python_strip(std::u32string_view text) noexcept {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

TextFacts inspect_utf8(std::string_view text) noexcept {
  TextFacts facts;
  for (; !text.empty(); ++facts.characters) {
    const Step next = step(text);
    facts.valid = facts.valid && next.point >= 0;
    facts.blank = facts.blank && next.point >= 0 && is_space(static_cast<char32_t>(next.point));
    text.remove_prefix(next.size);
  }
  return facts;
}

}  // namespace arcflow::core
