// A whole tokenizer.json but for the tokens around a prompt: its stages in their order, text to tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/text/characters/text.hpp"
#include "core/text/document/document.hpp"
#include "core/text/model/model.hpp"

namespace arcflow::core::tokenizer {

// The "normalizer" of a tokenizer.json: what is done to a text before it is split.
// Known: NFC, Lowercase, Strip, Prepend, Replace (of a plain string, \s+ or " {2,}"), Precompiled, and a Sequence of
// them. Immutable; safe to call from several threads.
class Normalizer {
 public:
  // description: the value of "normalizer"; null does nothing. Throws Error at anything else than the above.
  explicit Normalizer(const Json& description);

  void operator()(Text& text) const;

 private:
  using Step = std::function<void(Text&)>;
  void add(const Json& description);

  std::vector<Step> steps_;
};

// The "pre_tokenizer" of a tokenizer.json: a normalised text to the words that the model takes one by one.
// Known: Split (by the expressions of splits.hpp), ByteLevel, WhitespaceSplit, Metaspace, and a Sequence of them.
// Immutable; safe to call from several threads.
class PreTokenizer {
 public:
  // description: the value of "pre_tokenizer"; with null a text is one word. Throws Error at anything else.
  explicit PreTokenizer(const Json& description);

  // The words of `text` in order, none of them empty.
  std::vector<Text> operator()(Text text) const;

 private:
  using Step = std::function<void(Text, std::vector<Text>&)>;
  void add(const Json& description);

  std::vector<Step> steps_;
};

// The ids of the special tokens by their text. Throws Error where the list is damaged.
std::map<std::string, std::uint32_t> special_tokens(const Json& document);

// A stretch of a prompt: text, or one added token.
struct Stretch {
  Text text;
  std::optional<std::uint32_t> token;
};

// The added tokens that are not special, as <tool_call> is not in Qwen2's file: they are found in a text before the
// model sees it, the longest where several begin at one place. Immutable.
class AddedTokens {
 public:
  // Throws Error where the list is damaged, and at single_word, lstrip and rstrip, which are not known here.
  AddedTokens(const Json& document, const Model& model, const Normalizer& normalizer);

  // Cuts `text` at the tokens that are to be found before normalising (normalized false) or after it.
  void cut(Text text, bool normalized, std::vector<Stretch>& out) const;

 private:
  struct Token {
    std::u32string text;
    std::uint32_t id;
  };
  static const Token* find(const std::vector<Token>& tokens, std::u32string_view rest);

  std::vector<Token> raw_, normalized_;  // the longest first
};

// The "post_processor" of a tokenizer.json: the tokens that go before and after a prompt's own.
struct PostProcessor {
  std::vector<std::uint32_t> before, after;

  std::size_t size() const noexcept { return before.size() + after.size(); }
};

// Immutable; safe to call from several threads.
class Encoder {
 public:
  // Takes the tables of `document`. Throws Error where it is no tokenizer or has a component that is not known here.
  explicit Encoder(Document document);

  // The tokens of `text` without those that the post-processor adds: all of them, or the first `wanted` and some more.
  std::vector<Token> operator()(Text text, std::size_t wanted) const;

  const std::map<std::string, std::uint32_t>& special() const noexcept { return special_; }
  const PostProcessor& around() const noexcept { return around_; }

 private:
  std::map<std::string, std::uint32_t> special_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  std::unique_ptr<const Model> model_;
  AddedTokens added_;
  PostProcessor around_;
};

}  // namespace arcflow::core::tokenizer
