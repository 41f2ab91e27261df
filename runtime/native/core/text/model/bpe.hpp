// Byte-pair encoding: CLIP's and Qwen2's model.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/text/model/model.hpp"

namespace arcflow::core::tokenizer {

class Bpe final : public Model {
 public:
  // Takes the tables of `document`. Throws Error where vocabulary and merges are missing or do not fit together, or
  // with an option that neither CLIP nor Qwen2 has (dropout, byte_fallback, fuse_unk, continuing_subword_prefix).
  Bpe(Document& document, const Special& special);

  // Time n log n in the word's length n.
  void tokenize(const Text& word, std::vector<Token>& tokens) const override;
  std::optional<std::uint32_t> id(std::string_view piece) const override;
  std::size_t size() const override { return vocabulary_.size(); }

 private:
  struct Merge {
    std::uint32_t rank, id;  // what the two become
  };
  struct Symbol {
    std::uint32_t id;
    std::size_t length;  // in bytes of UTF-8; 0: merged into the one before
    std::size_t before, after;
  };

  void read_merges(const std::vector<std::pair<std::string, std::string>>& merges);
  void read_characters(const std::string& suffix);
  std::vector<Symbol> symbols(const Text& word) const;
  void merge(std::vector<Symbol>& symbols) const;

  Special special_;
  std::unordered_map<std::string, std::uint32_t> vocabulary_;
  std::unordered_map<std::uint64_t, Merge> merges_;           // by the ids of the two
  std::unordered_map<char32_t, std::uint32_t> inner_, last_;  // a word's characters, and the one that ends it
  std::string unknown_;  // the name of the token for a character that is not in the vocabulary; "": it is left out
  std::optional<std::uint32_t> unknown_id_;
  bool whole_words_ = false;  // "ignore_merges": a word of the vocabulary is one token
};

}  // namespace arcflow::core::tokenizer
