// Reading UTF-8 strictly, as the Unicode standard's table of well-formed sequences has it.
#include "core/text/utf8.hpp"

#include <cstdint>

namespace arcflow::core {
namespace {

constexpr char32_t kInvalid = 0xFFFFFFFF;

// What str.isspace() accepts.
bool is_space(char32_t c) noexcept {
  if (c < 0x80) return c == 0x20 || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

// The character that begins at `at`, which moves past it; past one byte where there is none.
char32_t next(std::string_view text, std::size_t& at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(at++);
  if (lead < 0x80) return lead;
  const std::size_t more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  if (lead < 0xC2 || lead > 0xF4 || text.size() - at < more) return kInvalid;
  const char32_t top = more == 3 ? lead & 0x07u : more == 2 ? lead & 0x0Fu : lead & 0x1Fu;
  char32_t value = top;
  for (std::size_t i = 0; i < more; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return kInvalid;
    value = (value << 6) | (byte(at + i) & 0x3Fu);
  }
  const bool overlong = (more == 2 && value < 0x800) || (more == 3 && value < 0x10000);
  if (overlong || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return kInvalid;
  at += more;
  return value;
}

}  // namespace

TextFacts inspect_utf8(std::string_view text) noexcept {
  TextFacts facts;
  for (std::size_t at = 0; at < text.size(); ++facts.characters) {
    const char32_t c = next(text, at);
    facts.valid = facts.valid && c != kInvalid;
    facts.blank = facts.blank && is_space(c);
  }
  return facts;
}

}  // namespace arcflow::core
