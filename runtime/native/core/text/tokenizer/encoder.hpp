// A whole tokenizer.json but for the tokens around a prompt: text to tokens.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/text/model/model.hpp"
#include "core/text/tokenizer/added_tokens.hpp"
#include "core/text/tokenizer/normalizer.hpp"
#include "core/text/tokenizer/pre_tokenizer.hpp"

namespace arcflow::core::tokenizer {

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
