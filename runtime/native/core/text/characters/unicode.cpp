// Character classes by utf8proc, and what the tokenizers package knows beyond Unicode 15, which Debian 12's utf8proc
// has.
#include "core/text/characters/unicode.hpp"

#include <utf8proc.h>

namespace arcflow::core::tokenizer {
namespace {

// Letters and numbers of Unicode 15.1 and 16.
constexpr Range kLetters[] = {{0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3},
                              {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x11380, 0x11389},
                              {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7},
                              {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x13460, 0x143FA},
                              {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED},
                              {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D}};
constexpr Range kNumbers[] = {{0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x16130, 0x16139},
                              {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA}};

// Pairs of upper and lower case of Unicode 16 and 17: from `first` to `last`, every one or every second character.
struct Lower {
  char32_t first, last, step, lower;
};
constexpr Lower kLower[] = {{0x1C89, 0x1C89, 1, 0x1C8A},    {0xA7CB, 0xA7CB, 1, 0x264},    {0xA7CC, 0xA7CE, 2, 0xA7CD},
                            {0xA7D2, 0xA7D4, 2, 0xA7D3},    {0xA7DA, 0xA7DA, 1, 0xA7DB},   {0xA7DC, 0xA7DC, 1, 0x19B},
                            {0x10D50, 0x10D65, 1, 0x10D70}, {0x16EA0, 0x16EB8, 1, 0x16EBB}};

}  // namespace

bool is_white_space(char32_t c) noexcept {
  if (c < 0x80) return c == 0x20 || (c >= 0x09 && c <= 0x0D);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

Kind kind(char32_t c) noexcept {
  if (is_white_space(c)) return Kind::kSpace;
  if (c < 0x80) {
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return Kind::kLetter;
    return c >= '0' && c <= '9' ? Kind::kNumber : Kind::kOther;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return Kind::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return Kind::kNumber;
    case UTF8PROC_CATEGORY_CN:
      return in_ranges(kLetters, c) ? Kind::kLetter : in_ranges(kNumbers, c) ? Kind::kNumber : Kind::kOther;
    default:
      return Kind::kOther;
  }
}

std::size_t lower(char32_t c, char32_t (&out)[2]) noexcept {
  if (c < 0x80) {
    out[0] = c >= 'A' && c <= 'Z' ? c + 32 : c;
    return 1;
  }
  if (c == 0x130) {  // Capital I with a dot: the only character whose lower case is two.
    out[0] = 'i';
    out[1] = 0x307;
    return 2;
  }
  for (const Lower& pairs : kLower) {
    if (c >= pairs.first && c <= pairs.last && (c - pairs.first) % pairs.step == 0) {
      out[0] = c - pairs.first + pairs.lower;
      return 1;
    }
  }
  out[0] = static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
  return 1;
}

}  // namespace arcflow::core::tokenizer
