// The "pre_tokenizer" of a tokenizer.json: a normalised text to the words that the model takes one by one.
#pragma once

#include <functional>
#include <vector>

#include "core/text/characters/text.hpp"
#include "core/text/document/document.hpp"

namespace arcflow::core::tokenizer {

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

}  // namespace arcflow::core::tokenizer
