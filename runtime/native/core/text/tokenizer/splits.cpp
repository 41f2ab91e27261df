// The splits of CLIP, Qwen2 and GPT-2. Alternatives are tried in the order of the regular expression, and each takes as
// much as it can, as a regular expression does; no text makes any of them read a character more than a few times.
#include "core/text/tokenizer/splits.hpp"

#include <array>
#include <utility>

#include "core/text/characters/unicode.hpp"

namespace arcflow::core::tokenizer {
namespace {

constexpr std::array<std::u32string_view, 7> kContractions = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};

bool is(std::u32string_view text, std::size_t at, Kind wanted) { return at < text.size() && kind(text[at]) == wanted; }

std::size_t skip(std::u32string_view text, std::size_t at, Kind wanted) {
  while (is(text, at, wanted)) ++at;
  return at;
}

bool is_line_end(char32_t c) noexcept { return c == '\r' || c == '\n'; }

// As the regular expression folds case: the long s is an s.
char32_t folded(char32_t c) noexcept { return c >= 'A' && c <= 'Z' ? c + 32 : c == 0x17F ? U's' : c; }

std::size_t contraction(std::u32string_view text, std::size_t at, bool any_case) {
  if (text[at] != '\'') return at;
  for (const std::u32string_view form : kContractions) {
    std::size_t i = 1;
    while (i < form.size() && at + i < text.size() && (any_case ? folded(text[at + i]) : text[at + i]) == form[i]) ++i;
    if (i == form.size()) return at + i;
  }
  return at;
}

// "\s+(?!\S)|\s+": white space, less its last character where text follows and more than one is there.
std::size_t space(std::u32string_view text, std::size_t at) {
  const std::size_t end = skip(text, at, Kind::kSpace);
  return end < text.size() && end - at > 1 ? end - 1 : end;
}

std::size_t clip_words(std::u32string_view text, std::size_t at) {
  if (const std::size_t end = contraction(text, at, false); end > at) return end;
  switch (kind(text[at])) {
    case Kind::kLetter:
      return skip(text, at, Kind::kLetter);
    case Kind::kNumber:
      return at + 1;
    case Kind::kOther:
      return skip(text, at, Kind::kOther);
    case Kind::kSpace:
      break;
  }
  return at;
}

std::size_t clip_split(std::u32string_view text, std::size_t at) {
  for (const std::u32string_view special :
       {std::u32string_view(U"<|startoftext|>"), std::u32string_view(U"<|endoftext|>")}) {
    if (text.substr(at, special.size()) == special) return at + special.size();
  }
  return clip_words(text, at);
}

std::size_t qwen2_split(std::u32string_view text, std::size_t at) {
  if (const std::size_t end = contraction(text, at, true); end > at) return end;
  const Kind here = kind(text[at]);
  if (here == Kind::kLetter) return skip(text, at, Kind::kLetter);
  if (here != Kind::kNumber && !is_line_end(text[at]) && is(text, at + 1, Kind::kLetter)) {
    return skip(text, at + 1, Kind::kLetter);
  }
  if (here == Kind::kNumber) return at + 1;
  const std::size_t symbols = text[at] == ' ' ? at + 1 : at;
  if (is(text, symbols, Kind::kOther)) {
    std::size_t end = skip(text, symbols, Kind::kOther);
    while (end < text.size() && is_line_end(text[end])) ++end;
    return end;
  }
  const std::size_t spaces = skip(text, at, Kind::kSpace);
  for (std::size_t end = spaces; end > at; --end) {
    if (is_line_end(text[end - 1])) return end;
  }
  return space(text, at);
}

constexpr std::string_view kWords = R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";
constexpr std::string_view kWordsAndSpecial =
    R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::pair<std::string_view, Splitter> kKnown[] = {
    {kWords, clip_words}, {kWordsAndSpecial, clip_split}, {kQwen2, qwen2_split}, {kGpt2, gpt2_split}};

}  // namespace

std::size_t gpt2_split(std::u32string_view text, std::size_t at) {
  if (const std::size_t end = contraction(text, at, false); end > at) return end;
  const std::size_t word = text[at] == ' ' ? at + 1 : at;
  if (word < text.size()) {
    if (const Kind here = kind(text[word]); here != Kind::kSpace) return skip(text, word, here);
  }
  return space(text, at);
}

Splitter splitter(std::string_view regex) noexcept {
  for (const auto& [known, split] : kKnown) {
    if (regex == known) return split;
  }
  return nullptr;
}

}  // namespace arcflow::core::tokenizer
