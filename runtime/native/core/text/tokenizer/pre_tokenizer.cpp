// The pre-tokenizers of CLIP, T5 and Qwen2.
#include <array>
#include <utility>

#include "core/text/characters/unicode.hpp"
#include "core/text/tokenizer/encoder.hpp"
#include "core/text/tokenizer/splits.hpp"

namespace arcflow::core::tokenizer {
namespace {

// GPT-2's alphabet: every byte as a character that can be seen. Bytes that cannot are shifted above 255, in order.
constexpr std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool seen = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = seen ? byte : next++;
  }
  return alphabet;
}
constexpr std::array<char32_t, 256> kAlphabet = byte_alphabet();

void add_word(const Text& text, std::size_t begin, std::size_t end, std::vector<Text>& words) {
  if (end > begin) words.push_back(text.slice(begin, end));
}

// keep_rest: what lies between the matches are words too.
void split(const Text& text, Splitter match, bool keep_rest, std::vector<Text>& words) {
  std::size_t rest = 0;
  for (std::size_t at = 0; at < text.chars.size();) {
    const std::size_t end = match(text.chars, at);
    if (end == at) {
      ++at;
      continue;
    }
    if (keep_rest) add_word(text, rest, at, words);
    add_word(text, at, end, words);
    rest = at = end;
  }
  if (keep_rest) add_word(text, rest, text.chars.size(), words);
}

void prepend(Text& text, char32_t c) {
  text.chars.insert(text.chars.begin(), c);
  text.origins.insert(text.origins.begin(), text.origins.front());
}

Text bytes_of(const Text& text) {
  Text out;
  std::string utf8;
  for (std::size_t i = 0; i < text.chars.size(); ++i) {
    utf8.clear();
    append_utf8(utf8, text.chars[i]);
    for (const char byte : utf8) out.push(kAlphabet[static_cast<std::uint8_t>(byte)], text.origins[i]);
  }
  return out;
}

void byte_level(Text text, bool prefix_space, bool by_regex, std::vector<Text>& words) {
  if (text.chars.empty()) return;
  if (prefix_space && text.chars.front() != ' ') prepend(text, ' ');
  std::vector<Text> parts;
  if (by_regex) {
    split(text, gpt2_split, true, parts);
  } else {
    parts.push_back(std::move(text));
  }
  for (const Text& part : parts) words.push_back(bytes_of(part));
}

void whitespace_split(const Text& text, std::vector<Text>& words) {
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.chars.size(); ++at) {
    if (!is_white_space(text.chars[at])) continue;
    add_word(text, begin, at, words);
    begin = at + 1;
  }
  add_word(text, begin, text.chars.size(), words);
}

enum class Prepend { kAlways, kFirst, kNever };

void metaspace(Text text, char32_t mark, Prepend scheme, bool by_mark, std::vector<Text>& words) {
  if (text.chars.empty()) return;
  for (char32_t& c : text.chars) {
    if (c == ' ') c = mark;
  }
  const bool wanted = scheme == Prepend::kAlways || (scheme == Prepend::kFirst && text.origins.front() == 0);
  if (wanted && text.chars.front() != mark) prepend(text, mark);
  if (!by_mark) {
    words.push_back(std::move(text));
    return;
  }
  // A mark goes with what follows it; of several in a row each but the last is a word.
  std::size_t begin = 0;
  for (std::size_t at = 1; at < text.chars.size(); ++at) {
    if (text.chars[at] != mark) continue;
    add_word(text, begin, at, words);
    begin = at;
  }
  add_word(text, begin, text.chars.size(), words);
}

Prepend prepend_scheme(const Json& description) {
  const std::string scheme = string_field(description, "prepend_scheme", "pre_tokenizer Metaspace", "always");
  const bool prefix_space = flag(description, "add_prefix_space", "pre_tokenizer Metaspace", true);
  if (scheme == "never") return Prepend::kNever;
  if (!prefix_space)
    fail("its pre_tokenizer Metaspace says both add_prefix_space false and prepend_scheme " + shown_bare(scheme));
  if (scheme == "always") return Prepend::kAlways;
  if (scheme == "first") return Prepend::kFirst;
  fail("its pre_tokenizer Metaspace has the prepend_scheme " + shown_bare(scheme) +
       "; known are always, first and never");
}

}  // namespace

PreTokenizer::PreTokenizer(const Json& description) {
  if (!description.is_null()) add(description);
}

void PreTokenizer::add(const Json& description) {
  const std::string type = type_of(description, "pre_tokenizer");
  if (type == "Sequence") {
    for (const Json& part : array(description, "pretokenizers", "pre_tokenizer Sequence")) add(part);
  } else if (type == "Split") {
    const Json& pattern = field(description, "pattern", "pre_tokenizer Split");
    const bool regex = pattern.is_object() && pattern.contains("Regex");
    const Splitter match = regex ? splitter(string_field(pattern, "Regex", "pre_tokenizer Split")) : nullptr;
    if (match == nullptr) {
      fail("its pre_tokenizer Split has the pattern " + shown(pattern) +
           "; known are the regular expressions of CLIP, Qwen2 and GPT-2");
    }
    const std::string behavior = string_field(description, "behavior", "pre_tokenizer Split");
    const bool inverted = flag(description, "invert", "pre_tokenizer Split", false);
    const bool isolated = behavior == "Isolated";
    if (!isolated && !(behavior == "Removed" && inverted)) {
      fail("its pre_tokenizer Split has the behavior " + shown_bare(behavior) +
           "; known are Isolated, and Removed with invert");
    }
    steps_.emplace_back(
        [match, isolated](const Text& text, std::vector<Text>& words) { split(text, match, isolated, words); });
  } else if (type == "ByteLevel") {
    const bool prefix_space = flag(description, "add_prefix_space", "pre_tokenizer ByteLevel", true);
    const bool by_regex = flag(description, "use_regex", "pre_tokenizer ByteLevel", true);
    steps_.emplace_back([prefix_space, by_regex](Text text, std::vector<Text>& words) {
      byte_level(std::move(text), prefix_space, by_regex, words);
    });
  } else if (type == "WhitespaceSplit") {
    steps_.emplace_back(whitespace_split);
  } else if (type == "Metaspace") {
    const std::u32string mark = decode(string_field(description, "replacement", "pre_tokenizer Metaspace"));
    if (mark.size() != 1) fail("its pre_tokenizer Metaspace has a replacement that is not one character");
    const Prepend scheme = prepend_scheme(description);
    const bool by_mark = flag(description, "split", "pre_tokenizer Metaspace", true);
    steps_.emplace_back([c = mark[0], scheme, by_mark](Text text, std::vector<Text>& words) {
      metaspace(std::move(text), c, scheme, by_mark, words);
    });
  } else {
    fail("its pre_tokenizer " + shown_bare(type) +
         " is not known here; known are Split, ByteLevel, WhitespaceSplit, Metaspace and Sequence");
  }
}

std::vector<Text> PreTokenizer::operator()(Text text) const {
  std::vector<Text> words;
  if (text.chars.empty()) return words;
  words.push_back(std::move(text));
  for (const Step& step : steps_) {
    std::vector<Text> next;
    next.reserve(words.size());
    for (Text& word : words) step(std::move(word), next);
    words = std::move(next);
  }
  return words;
}

}  // namespace arcflow::core::tokenizer
