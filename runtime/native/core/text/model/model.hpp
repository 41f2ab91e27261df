// The "model" of a tokenizer.json: a word to tokens.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/characters/text.hpp"
#include "core/text/document/document.hpp"

namespace arcflow::core::tokenizer {

// Immutable; safe to call from several threads.
class Model {
 public:
  virtual ~Model() = default;

  // Appends the tokens of `word`, which is not empty.
  virtual void tokenize(const Text& word, std::vector<Token>& tokens) const = 0;

  // The id of a piece of the vocabulary, special ones included, and how many pieces there are.
  virtual std::optional<std::uint32_t> id(std::string_view piece) const = 0;
  virtual std::size_t size() const = 0;
};

// Names of special tokens: the pieces that no text may match.
using Special = std::set<std::string, std::less<>>;

}  // namespace arcflow::core::tokenizer
