#include "core/text/python_text.hpp"

#include <utf8proc.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "core/text/characters/unicode.hpp"

namespace arcflow::core {
namespace {

// What stands at the start of some bytes: a character of `size` bytes, or a fault of `size` bytes.
struct Step {
  std::size_t size;
  std::int32_t point;  // -1 for a fault
  const char* fault;
};

constexpr Step fault(std::size_t size, const char* reason) { return {size, -1, reason}; }

// How many bytes a lead byte announces, 0 for a byte that starts nothing.
std::size_t announced(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// Whether a second byte may follow its lead: no overlong form, no surrogate, nothing beyond U+10FFFF.
bool may_follow(unsigned char lead, unsigned char second) {
  if ((second & 0xC0) != 0x80) return false;
  if (lead == 0xE0) return second >= 0xA0;
  if (lead == 0xED) return second < 0xA0;
  if (lead == 0xF0) return second >= 0x90;
  return lead != 0xF4 || second < 0x90;
}

Step step(std::string_view rest) noexcept {
  const auto byte = [rest](std::size_t i) { return static_cast<unsigned char>(rest[i]); };
  const unsigned char lead = byte(0);
  const std::size_t size = announced(lead);
  if (size == 0) return fault(1, "invalid start byte");
  std::int32_t point = size == 1 ? lead : lead & (0x7F >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if (i == rest.size()) return fault(i, "unexpected end of data");
    if (i == 1 ? !may_follow(lead, byte(1)) : (byte(i) & 0xC0) != 0x80) return fault(i, "invalid continuation byte");
    point = point << 6 | (byte(i) & 0x3F);
  }
  return {size, point, nullptr};
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
      for (char c : text.substr(0, next.size)) out += escape(0xDC00 + static_cast<unsigned char>(c));
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

std::optional<std::string> utf8_fault(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Step next = step(text.substr(at));
    if (next.fault != nullptr) {
      char where[64];
      if (next.size == 1) {
        std::snprintf(where, sizeof(where), "byte 0x%02x in position %zu", static_cast<unsigned char>(text[at]), at);
      } else {
        std::snprintf(where, sizeof(where), "bytes in position %zu-%zu", at, at + next.size - 1);
      }
      return std::string("'utf-8' codec can't decode ") + where + ": " + next.fault;
    }
    at += next.size;
  }
  return std::nullopt;
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
    facts.valid = facts.valid && next.fault == nullptr;
    facts.blank = facts.blank && next.fault == nullptr && is_space(static_cast<char32_t>(next.point));
    text.remove_prefix(next.fault == nullptr ? next.size : 1);
  }
  return facts;
}

}  // namespace arcflow::core
