// The unigram language model of SentencePiece: T5's.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/model/model.hpp"

namespace arcflow::core::tokenizer {

// The tokenizers package gets its scores through serde_json, which reads "-1.3713527811216915" as the whole number
// divided by a power of ten: two roundings where a correct reader makes one. The last bit decides between paths of
// nearly equal score, so it is reproduced: the value that serde_json has for the shortest text of `exact`.
double as_serde_reads(double exact);

// The pieces as a tree over their bytes.
class Trie {
 public:
  static constexpr std::uint32_t kNoPiece = 0xFFFFFFFF;

  // pieces: sorted by text, no text twice.
  explicit Trie(const std::vector<std::pair<std::string_view, std::uint32_t>>& pieces);
  Trie() = default;

  // Calls found(length, piece) for each piece that `text` begins with, the shortest first.
  template <typename Found>
  void prefixes(std::string_view text, Found&& found) const {
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<std::uint8_t>(text[i]));
      if (node == 0) return;
      if (nodes_[node].piece != kNoPiece) found(i + 1, nodes_[node].piece);
    }
  }

  // The piece that is `text`, or kNoPiece.
  std::uint32_t exact(std::string_view text) const;

 private:
  struct Node {
    std::uint32_t first = 0, count = 0;  // its children: a run of nodes_
    std::uint32_t piece = kNoPiece;
    std::uint8_t label = 0;
  };
  std::uint32_t child(std::uint32_t node, std::uint8_t label) const;  // 0: none

  std::vector<Node> nodes_ = {Node{}};
};

class Unigram final : public Model {
 public:
  // Throws Error where the vocabulary is damaged or unk_id is not a piece of it.
  Unigram(const Json& description, const Special& special);

  void tokenize(const Text& word, std::vector<Token>& tokens) const override;
  std::optional<std::uint32_t> id(std::string_view piece) const override;
  std::size_t size() const override { return scores_.size(); }

 private:
  struct Step {  // of the best path
    std::size_t begin, end;
    std::uint32_t piece;
  };
  std::vector<Step> best_path(std::string_view text) const;

  std::vector<double> scores_;
  Trie trie_, special_;
  std::uint32_t unknown_ = 0;
  double unknown_score_ = 0.0;
  bool byte_fallback_ = false;              // and all 256 bytes need not be there:
  std::array<std::uint32_t, 256> bytes_{};  // Trie::kNoPiece where one is not
};

}  // namespace arcflow::core::tokenizer
