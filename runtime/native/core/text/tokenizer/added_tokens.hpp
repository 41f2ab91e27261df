// The "added_tokens" of a tokenizer.json: special ones, which no text yields, and others, which text does.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/text/characters/text.hpp"
#include "core/text/document/document.hpp"
#include "core/text/model/model.hpp"
#include "core/text/tokenizer/normalizer.hpp"

namespace arcflow::core::tokenizer {

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

}  // namespace arcflow::core::tokenizer
