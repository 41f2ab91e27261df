// Pieces of the tokenizers, each by itself. Whole files are held to the tokenizers package by pytest.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/text/characters/charsmap.hpp"
#include "core/text/characters/unicode.hpp"
#include "core/text/document/document.hpp"
#include "core/text/model/bpe.hpp"
#include "core/text/model/unigram.hpp"
#include "core/text/python_text.hpp"
#include "core/text/tokenizer/encoder.hpp"
#include "core/text/tokenizer/splits.hpp"
#include "core/text/tokenizer/tokenizer.hpp"

using namespace arcflow::core::tokenizer;
using arcflow::core::Error;
using arcflow::core::PromptTokenizer;
using arcflow::core::python_strip;
using arcflow::core::TokenizerSpec;

namespace {

using Words = std::vector<std::string>;
using Origins = std::vector<std::uint32_t>;
using Ids = std::vector<std::uint32_t>;

Words split_by(Splitter match, const std::string& text) {
  const std::u32string chars = decode(text);
  Words words;
  for (std::size_t at = 0; at < chars.size();) {
    const std::size_t end = match(chars, at);
    if (end > at) words.push_back(encode(std::u32string_view(chars).substr(at, end - at)));
    at = end > at ? end : at + 1;
  }
  return words;
}

Words words_of(const char* description, const std::string& text) {
  Words words;
  for (const Text& word : PreTokenizer(Json::parse(description))(with_origins(decode(text))))
    words.push_back(encode(word.chars));
  return words;
}

Ids ids_of(const Model& model, const std::string& word) {
  std::vector<Token> tokens;
  model.tokenize(with_origins(decode(word)), tokens);
  Ids ids;
  for (const Token& token : tokens) ids.push_back(token.id);
  return ids;
}

const Splitter kQwen2 = splitter(
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
const Splitter kClip = splitter(R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)");

}  // namespace

TEST_CASE("NFC composes, orders marks, and keeps where each character came from") {
  Text text = with_origins(decode("a\u030A q\u0307\u0323 \u212B \u1100\u1161\u11A8"));
  nfc(text);
  CHECK(encode(text.chars) == "\u00E5 q\u0323\u0307 \u00C5 \uAC01");
  CHECK(text.origins == Origins{0, 2, 3, 4, 5, 6, 7, 8, 9});
  text = with_origins(decode("\u0958x"));  // excluded from composition: two characters
  nfc(text);
  CHECK(encode(text.chars) == "\u0915\u093Cx");
  CHECK(text.origins == Origins{0, 0, 1});
}

TEST_CASE("NFC leaves alone what came after Unicode 9, as the tokenizers package does") {
  Text text = with_origins(decode("\U00011935\U00011930 \U0001E130\u0323\U00011938"));
  nfc(text);
  CHECK(encode(text.chars) == "\U00011935\U00011930 \U0001E130\u0323\U00011938");
}

TEST_CASE("lower case is by character") {
  char32_t out[2];
  CHECK(lower(0x130, out) == 2);
  CHECK(out[0] == 'i');
  CHECK(out[1] == 0x307);
  CHECK(lower(0x3A3, out) == 1);
  CHECK(out[0] == 0x3C3);  // never the final sigma
  CHECK(lower(0x1E9E, out) == 1);
  CHECK(out[0] == 0xDF);
  CHECK(lower(0x10D50, out) == 1);
  CHECK(out[0] == 0x10D70);
}

TEST_CASE("CLIP's split") {
  CHECK(split_by(kClip, "it's 42 don't!!") == Words{"it", "'s", "4", "2", "don", "'t", "!!"});
  CHECK(split_by(kClip, "''s") == Words{"''", "s"});
  CHECK(split_by(kClip, "'S") == Words{"'", "S"});
}

TEST_CASE("Qwen2's split") {
  CHECK(split_by(kQwen2, "It'S a b2!\n\n  x") == Words{"It", "'S", " a", " b", "2", "!\n\n", " ", " x"});
  CHECK(split_by(kQwen2, "a   \n \n  b") == Words{"a", "   \n \n", " ", " b"});
  CHECK(split_by(kQwen2, "\tword  ") == Words{"\tword", "  "});
  CHECK(split_by(kQwen2, "'\u017F \u0663\u0664") == Words{"'\u017F", " ", "\u0663", "\u0664"});
  CHECK(split_by(kQwen2, " ?!x") == Words{" ?!", "x"});
}

TEST_CASE("GPT-2's split keeps a space with what follows") {
  CHECK(split_by(gpt2_split, "a  b 12 !?") == Words{"a", " ", " b", " 12", " !?"});
  CHECK(split_by(gpt2_split, "x\n\n") == Words{"x", "\n\n"});
}

TEST_CASE("Metaspace: a mark goes with what follows it") {
  const char* always = R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})";
  CHECK(words_of(always, "a  b ") == Words{"▁a", "▁", "▁b", "▁"});
  CHECK(words_of(always, "▁a") == Words{"▁a"});
  CHECK(words_of(always, "").empty());
  CHECK(words_of(R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"})", "a b") == Words{"a", "▁b"});
}

TEST_CASE("merges go by rank, and of equals the leftmost first") {
  Document document =
      parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "aa": 2, "ab": 3, "aab": 4, "aaa": 5},
    "merges": ["#version: 0.2", "a a", ["a", "b"], "aa b", "aa a"]}})");
  const Bpe bpe(document, {});
  CHECK(ids_of(bpe, "aaa") == Ids{5});
  CHECK(ids_of(bpe, "aaaa") == Ids{2, 2});
  CHECK(ids_of(bpe, "aab") == Ids{4});
  CHECK(ids_of(bpe, "abz") == Ids{3});  // no token for the unknown: it is left out
}

TEST_CASE("a later piece or merge of the same text counts") {
  Document document = parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "bb": 3, "ab": 7},
    "merges": ["a b", "b b", "a b"]}})");
  const Bpe bpe(document, {});
  CHECK(bpe.size() == 4);
  CHECK(bpe.id("ab") == 7);
  CHECK_FALSE(bpe.id("abb"));
  CHECK(ids_of(bpe, "abb") == Ids{0, 3});
}

TEST_CASE("Viterbi: of equal paths the one found first, whose last piece is the longest") {
  const Json equal = Json::parse(R"({"unk_id": 0, "vocab": [["?", 0], ["a", -1], ["aa", -2], ["b", -1], ["ab", -2]]})");
  CHECK(ids_of(Unigram(equal, {}), "aa") == Ids{2});
  CHECK(ids_of(Unigram(equal, {}), "aab") == Ids{1, 4});  // and not 2 3: "ab" reached the end first
}

TEST_CASE("what is unknown in a row is one token, or bytes") {
  const Json plain = Json::parse(R"({"unk_id": 0, "vocab": [["?", -3], ["a", -1]]})");
  CHECK(ids_of(Unigram(plain, {}), "xéa\u4E00") == Ids{0, 1, 0});
  const Json bytes = Json::parse(
      R"({"unk_id": 0, "byte_fallback": true, "vocab": [["?", -3], ["a", -1], ["<0xC3>", -5], ["<0xA9>", -5]]})");
  CHECK(ids_of(Unigram(bytes, {}), "éa") == Ids{2, 3, 1});
  CHECK(ids_of(Unigram(bytes, {}), "xa") == Ids{0, 1});  // not all of its bytes are there
  CHECK(ids_of(Unigram(plain, {"a"}), "a") == Ids{0});   // a special piece cannot be typed
}

TEST_CASE("scores have the last bit that serde_json gives them") {
  CHECK(as_serde_reads(-10.0) == -10.0);
  CHECK(as_serde_reads(-1e-5) == -1e-5);
  CHECK(as_serde_reads(-13.713527811216915) == -(13713527811216915.0 / 1e15));
}

TEST_CASE("white space as Python has it") {
  CHECK(encode(python_strip(decode("\x1C\u3000 x\u200B y \u0085"))) == "x\u200B y");
  CHECK(python_strip(decode(" \n")).empty());
}

TEST_CASE("base64 is strict") {
  CHECK(from_base64("aGk=") == "hi");
  CHECK(from_base64("") == "");
  for (const char* bad : {"aGk", "aGl=", "a===", "aG k", "aGk=aGk="}) CHECK_FALSE(from_base64(bad));
}

TEST_CASE("a tokenizer is shared by threads") {
  TokenizerSpec spec;
  spec.file = "x.json";
  spec.max_tokens = 4;
  const PromptTokenizer tokenizer(
      "t5", R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["?", 0], ["a", -1], ["b", -1]]}})", spec);
  std::vector<std::vector<std::int64_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) result = tokenizer({"abxyab", "b"}).ids;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result == std::vector<std::int64_t>{1, 2, 0, 1, 2, 0, 0, 0});
  CHECK(tokenizer({"abxyab"}).warnings ==
        std::vector<std::string>{"the t5 encoder takes 4 tokens; this end of the prompt is unused: 'b'"});
}

TEST_CASE("a file that is no tokenizer is a clear error") {
  TokenizerSpec spec;
  spec.file = "tokenizers/clip.json";
  for (const char* json : {"", "[]", "{}", R"({"model": 3})", R"({"model": {"type": "BPE"}})"}) {
    CHECK_THROWS_WITH_AS(PromptTokenizer("clip", json, spec),
                         doctest::Contains("the clip tokenizer 'tokenizers/clip.json' cannot be read: it"), Error);
  }
}
