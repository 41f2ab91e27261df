// The unigram model: of all ways to cut a word into pieces, the one of greatest score, with the tokenizers package's
// choice between equals: the path that was found first, which is the one whose last piece is the longest.
#include "core/text/model/unigram.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <deque>
#include <limits>

namespace arcflow::core::tokenizer {
namespace {

constexpr double kUnknownPenalty = 10.0;
using Pieces = std::vector<std::pair<std::string_view, std::uint32_t>>;

// Sorted by text; of several with one text the last stays.
Pieces sorted(Pieces pieces) {
  std::stable_sort(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  Pieces unique;
  for (const auto& piece : pieces) {
    if (!unique.empty() && unique.back().first == piece.first) unique.pop_back();
    unique.push_back(piece);
  }
  return unique;
}

std::size_t length_of(char lead) noexcept {
  const auto byte = static_cast<std::uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace

double as_serde_reads(double exact) {
  if (exact == std::trunc(exact) && std::abs(exact) < 1e15) return exact;  // short enough to be exact either way
  std::array<char, 40> buffer{};
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::abs(exact), std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end.ptr - buffer.data()));
  const std::size_t e = text.find('e');
  std::uint64_t digits = 0;
  int exponent = 0;
  for (std::size_t i = 0; i < e; ++i) {
    if (text[i] == '.') {
      exponent = -static_cast<int>(e - i - 1);
    } else {
      digits = digits * 10 + static_cast<std::uint64_t>(text[i] - '0');
    }
  }
  int shown = 0;
  const std::size_t sign = text[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(text.data() + sign, text.data() + text.size(), shown);
  exponent += shown;
  // Beyond 10^308 serde_json divides in two steps; no score is there.
  if (exponent < -300 || exponent > 300) return exact;
  const double scale = std::pow(10.0, std::abs(exponent));
  const double size = exponent < 0 ? static_cast<double>(digits) / scale : static_cast<double>(digits) * scale;
  return std::signbit(exact) ? -size : size;
}

Trie::Trie(const Pieces& pieces) {
  struct Open {  // a node whose pieces are [begin, end), all alike in their first `depth` bytes
    std::uint32_t node;
    std::size_t begin, end, depth;
  };
  std::deque<Open> open = {{0, 0, pieces.size(), 0}};
  for (; !open.empty(); open.pop_front()) {
    auto [node, begin, end, depth] = open.front();
    if (begin < end && pieces[begin].first.size() == depth) nodes_[node].piece = pieces[begin++].second;
    nodes_[node].first = static_cast<std::uint32_t>(nodes_.size());
    while (begin < end) {
      const char label = pieces[begin].first[depth];
      std::size_t next = begin;
      while (next < end && pieces[next].first[depth] == label) ++next;
      open.push_back({static_cast<std::uint32_t>(nodes_.size()), begin, next, depth + 1});
      nodes_.emplace_back().label = static_cast<std::uint8_t>(label);
      ++nodes_[node].count;
      begin = next;
    }
  }
}

std::uint32_t Trie::child(std::uint32_t node, std::uint8_t label) const {
  const auto begin = nodes_.begin() + nodes_[node].first;
  const auto end = begin + nodes_[node].count;
  const auto found = std::lower_bound(begin, end, label, [](const Node& a, std::uint8_t b) { return a.label < b; });
  return found == end || found->label != label ? 0 : static_cast<std::uint32_t>(found - nodes_.begin());
}

std::uint32_t Trie::exact(std::string_view text) const {
  std::uint32_t node = 0;
  for (const char c : text) {
    node = child(node, static_cast<std::uint8_t>(c));
    if (node == 0) return kNoPiece;
  }
  return nodes_[node].piece;
}

Unigram::Unigram(const Json& description, const Special& special) {
  const Json& vocabulary = array(description, "vocab", "model Unigram");
  const Json& unknown = field(description, "unk_id", "model Unigram");
  unknown_ = id_of(unknown, "model Unigram");
  if (unknown_ >= vocabulary.size()) fail("its model Unigram has an unk_id that is not in its vocabulary");
  if (vocabulary.size() >= Trie::kNoPiece) fail("its model Unigram has too many pieces");
  byte_fallback_ = flag(description, "byte_fallback", "model Unigram", false);

  Pieces typed, untyped;
  double least = std::numeric_limits<double>::infinity();
  for (const Json& piece : vocabulary) {
    if (!piece.is_array() || piece.size() != 2 || !piece[0].is_string() || !piece[1].is_number()) {
      fail("its model Unigram has a piece that is not a text and a score: " + shown(piece));
    }
    const auto& text = piece[0].get_ref<const std::string&>();
    (special.count(text) != 0 ? untyped : typed).emplace_back(text, static_cast<std::uint32_t>(scores_.size()));
    scores_.push_back(as_serde_reads(piece[1].get<double>()));
    least = std::min(least, scores_.back());
  }
  unknown_score_ = least - kUnknownPenalty;
  trie_ = Trie(sorted(std::move(typed)));
  special_ = Trie(sorted(std::move(untyped)));
  constexpr char kHex[] = "0123456789ABCDEF";
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const char name[] = {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
    bytes_[byte] = trie_.exact({name, sizeof name});
  }
}

std::optional<std::uint32_t> Unigram::id(std::string_view piece) const {
  const std::uint32_t typed = trie_.exact(piece);
  const std::uint32_t found = typed == Trie::kNoPiece ? special_.exact(piece) : typed;
  return found == Trie::kNoPiece ? std::nullopt : std::optional(found);
}

std::vector<Unigram::Step> Unigram::best_path(std::string_view text) const {
  struct Best {
    double score = 0.0;
    std::size_t begin = 0;
    std::uint32_t piece = 0;
    bool reached = false;
  };
  std::vector<Best> best(text.size() + 1);
  const auto offer = [&](std::size_t begin, std::size_t end, double score, std::uint32_t piece) {
    Best& target = best[end];
    if (!target.reached || score > target.score) target = {score, begin, piece, true};
  };
  for (std::size_t at = 0; at < text.size();) {
    const double before = best[at].score;
    const std::size_t one = length_of(text[at]);
    bool single = false;
    trie_.prefixes(text.substr(at), [&](std::size_t length, std::uint32_t piece) {
      offer(at, at + length, scores_[piece] + before, piece);
      single = single || length == one;
    });
    if (!single) offer(at, at + one, unknown_score_ + before, unknown_);
    at += one;
  }
  std::vector<Step> path;
  for (std::size_t end = text.size(); end > 0; end = best[end].begin) {
    // What is unknown in a row is one token.
    if (!path.empty() && path.back().piece == unknown_ && best[end].piece == unknown_) {
      path.back().begin = best[end].begin;
    } else {
      path.push_back({best[end].begin, end, best[end].piece});
    }
  }
  std::reverse(path.begin(), path.end());
  return path;
}

void Unigram::tokenize(const Text& word, std::vector<Token>& tokens) const {
  const std::string utf8 = encode(word.chars);
  const std::string_view text = utf8;
  const std::vector<std::uint32_t> origins = origins_by_byte(word);
  for (const Step& step : best_path(text)) {
    const std::string_view piece = text.substr(step.begin, step.end - step.begin);
    const std::uint32_t start = origins[step.begin];
    const std::uint32_t known = trie_.exact(piece);
    const bool by_bytes = known == Trie::kNoPiece && byte_fallback_ &&
                          std::all_of(piece.begin(), piece.end(),
                                      [&](char c) { return bytes_[static_cast<std::uint8_t>(c)] != Trie::kNoPiece; });
    if (by_bytes) {
      for (const char c : piece) tokens.push_back({bytes_[static_cast<std::uint8_t>(c)], start});
    } else {
      tokens.push_back({known == Trie::kNoPiece ? unknown_ : known, start});
    }
  }
}

}  // namespace arcflow::core::tokenizer
