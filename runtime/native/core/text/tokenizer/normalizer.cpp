// The normalisers of CLIP, T5 and Qwen2.
#include <algorithm>
#include <memory>

#include "core/text/characters/charsmap.hpp"
#include "core/text/characters/unicode.hpp"
#include "core/text/tokenizer/encoder.hpp"

namespace arcflow::core::tokenizer {
namespace {

// How long the match at a place is; 0 where there is none.
using Match = std::function<std::size_t(std::u32string_view rest)>;

void lowercase(Text& text) {
  std::vector<Change> changes;
  changes.reserve(text.chars.size());
  for (const char32_t c : text.chars) {
    char32_t out[2];
    const std::size_t count = lower(c, out);
    for (std::size_t i = 0; i < count; ++i) changes.emplace_back(out[i], i > 0 ? 1 : 0);
  }
  rewrite(text, changes);
}

void strip(Text& text, bool left, bool right) {
  std::size_t begin = 0;
  std::size_t end = text.chars.size();
  while (left && begin < end && is_white_space(text.chars[begin])) ++begin;
  while (right && end > begin && is_white_space(text.chars[end - 1])) --end;
  if (begin > 0 || end < text.chars.size()) text = text.slice(begin, end);
}

// What is put in has the origin of the match's last character.
void replace(Text& text, const Match& match, const std::u32string& content) {
  Text out;
  const std::u32string_view chars = text.chars;
  for (std::size_t at = 0; at < chars.size();) {
    const std::size_t length = match(chars.substr(at));
    if (length == 0) {
      out.push(chars[at], text.origins[at]);
      ++at;
      continue;
    }
    at += length;
    for (const char32_t c : content) out.push(c, text.origins[at - 1]);
  }
  text = std::move(out);
}

void prepend(Text& text, const std::u32string& content) {
  if (text.chars.empty()) return;
  text.chars.insert(0, content);
  text.origins.insert(text.origins.begin(), content.size(), text.origins.front());
}

std::size_t run(std::u32string_view rest, const std::function<bool(char32_t)>& in) {
  return static_cast<std::size_t>(std::find_if_not(rest.begin(), rest.end(), in) - rest.begin());
}

Match pattern(const Json& replacement) {
  const Json& described = field(replacement, "pattern", "normalizer Replace");
  if (described.is_object() && described.size() == 1 && described.contains("String")) {
    const std::u32string text = decode(string_field(described, "String", "normalizer Replace"));
    if (text.empty()) fail("its normalizer Replace has an empty pattern");
    return [text](std::u32string_view rest) { return rest.substr(0, text.size()) == text ? text.size() : 0; };
  }
  if (described.is_object() && described.size() == 1 && described.contains("Regex")) {
    const std::string regex = string_field(described, "Regex", "normalizer Replace");
    if (regex == "\\s+") return [](std::u32string_view rest) { return run(rest, is_white_space); };
    if (regex == " {2,}") {
      return [](std::u32string_view rest) {
        const std::size_t spaces = run(rest, [](char32_t c) { return c == ' '; });
        return spaces >= 2 ? spaces : 0;
      };
    }
    fail("its normalizer Replace has the regular expression " + shown(regex) +
         "; known are plain strings, \"\\\\s+\" and \" {2,}\"");
  }
  fail("its normalizer Replace has no pattern that is a String or a Regex");
}

}  // namespace

Normalizer::Normalizer(const Json& description) {
  if (!description.is_null()) add(description);
}

void Normalizer::add(const Json& description) {
  const std::string type = type_of(description, "normalizer");
  if (type == "Sequence") {
    for (const Json& part : array(description, "normalizers", "normalizer Sequence")) add(part);
  } else if (type == "NFC") {
    steps_.emplace_back(nfc);
  } else if (type == "Lowercase") {
    steps_.emplace_back(lowercase);
  } else if (type == "Strip") {
    const bool left = flag(description, "strip_left", "normalizer Strip", true);
    const bool right = flag(description, "strip_right", "normalizer Strip", true);
    steps_.emplace_back([left, right](Text& text) { strip(text, left, right); });
  } else if (type == "Prepend") {
    const std::u32string content = decode(string_field(description, "prepend", "normalizer Prepend"));
    steps_.emplace_back([content](Text& text) { prepend(text, content); });
  } else if (type == "Replace") {
    const std::u32string content = decode(string_field(description, "content", "normalizer Replace"));
    steps_.emplace_back([match = pattern(description), content](Text& text) { replace(text, match, content); });
  } else if (type == "Precompiled") {
    const std::string map = string_field(description, "precompiled_charsmap", "normalizer Precompiled");
    steps_.emplace_back([charsmap = std::make_shared<const Charsmap>(map)](Text& text) { charsmap->apply(text); });
  } else {
    fail("its normalizer " + shown_bare(type) +
         " is not known here; known are NFC, Lowercase, Strip, Prepend, Replace, Precompiled and Sequence");
  }
}

void Normalizer::operator()(Text& text) const {
  for (const Step& step : steps_) step(text);
}

}  // namespace arcflow::core::tokenizer
