// Byte-pair encoding with the order of the tokenizers package: of all pairs that can merge, the one of least rank, and
// of those the leftmost.
#include "core/text/model/bpe.hpp"

#include <algorithm>
#include <queue>
#include <tuple>

#include "core/error.hpp"

namespace arcflow::core::tokenizer {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) noexcept {
  return static_cast<std::uint64_t>(left) << 32 | right;
}

void refuse_options(const Json& description) {
  const auto dropout = description.find("dropout");
  const bool drops = dropout != description.end() && !dropout->is_null() && *dropout != 0.0;
  const std::string prefix = string_field(description, "continuing_subword_prefix", "model", "");
  const char* option = drops                                                    ? "dropout"
                       : flag(description, "byte_fallback", "model BPE", false) ? "byte_fallback"
                       : flag(description, "fuse_unk", "model BPE", false)      ? "fuse_unk"
                       : !prefix.empty()                                        ? "continuing_subword_prefix"
                                                                                : nullptr;
  if (option != nullptr) fail(std::string("its model BPE has ") + option + ", which is not known here");
}

}  // namespace

Bpe::Bpe(Document& document, const Special& special) : special_(special) {
  const Json& description = document.fields["model"];
  refuse_options(description);
  whole_words_ = flag(description, "ignore_merges", "model BPE", false);
  if (!document.vocabulary) fail("its model BPE has no \"vocab\" that is an object");
  if (!document.merges) fail("its model BPE has no \"merges\" that is a list");
  vocabulary_ = *std::move(document.vocabulary);
  read_merges(*document.merges);
  read_characters(string_field(description, "end_of_word_suffix", "model", ""));
  unknown_ = string_field(description, "unk_token", "model", "");
  unknown_id_ = id(unknown_);
}

void Bpe::read_merges(const std::vector<std::pair<std::string, std::string>>& merges) {
  // A piece that no text may match takes part in no merge.
  const auto piece_id = [&](const std::string& piece) {
    const auto found = vocabulary_.find(piece);
    if (found == vocabulary_.end() || special_.count(piece) != 0) {
      fail("its model has a merge of or to " + shown(piece) + ", which its vocabulary lacks");
    }
    return found->second;
  };
  merges_.reserve(merges.size());
  std::uint32_t rank = 0;
  for (const auto& [left, right] : merges) {
    merges_[pair_of(piece_id(left), piece_id(right))] = {rank++, piece_id(left + right)};  // the last of a pair counts
  }
}

void Bpe::read_characters(const std::string& suffix) {
  const auto one = [](std::string_view piece) -> std::optional<char32_t> {
    if (piece.empty() || piece.size() > 4) return std::nullopt;
    const std::u32string chars = decode(piece);
    return chars.size() == 1 ? std::optional(chars[0]) : std::nullopt;
  };
  for (const auto& [name, id] : vocabulary_) {
    const std::string_view piece = name;
    const auto inner = one(piece);
    const bool ends = piece.size() > suffix.size() && piece.substr(piece.size() - suffix.size()) == suffix;
    const auto last = ends ? one(piece.substr(0, piece.size() - suffix.size())) : std::nullopt;
    if ((!inner && !last) || special_.find(piece) != special_.end()) continue;
    if (inner) inner_.emplace(*inner, id);
    if (last) last_.emplace(*last, id);
  }
}

std::optional<std::uint32_t> Bpe::id(std::string_view piece) const {
  const auto found = vocabulary_.find(std::string(piece));
  return found == vocabulary_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<Bpe::Symbol> Bpe::symbols(const Text& word) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.chars.size());
  for (std::size_t i = 0; i < word.chars.size(); ++i) {
    const auto& known = i + 1 == word.chars.size() ? last_ : inner_;
    const auto found = known.find(word.chars[i]);
    if (found == known.end() && unknown_.empty()) continue;
    if (found == known.end() && !unknown_id_) {
      throw Error(ARCFLOW_BACKEND_UNAVAILABLE, "the tokenizer's unk_token \"" + shown_bare(unknown_) +
                                                   "\" is not in its vocabulary, and the prompt has a character that "
                                                   "needs it; use the tokenizer that the model was published with");
    }
    const std::size_t place = symbols.size();
    symbols.push_back({found == known.end() ? *unknown_id_ : found->second, utf8_length(word.chars[i]),
                       place == 0 ? kNone : place - 1, place + 1});
  }
  if (!symbols.empty()) symbols.back().after = kNone;
  return symbols;
}

void Bpe::merge(std::vector<Symbol>& symbols) const {
  using Candidate = std::tuple<std::uint32_t, std::size_t, std::uint32_t>;  // rank, place of the left one, new id
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](std::size_t left) {
    const std::size_t right = symbols[left].after;
    if (right == kNone) return;
    const auto known = merges_.find(pair_of(symbols[left].id, symbols[right].id));
    if (known != merges_.end()) queue.emplace(known->second.rank, left, known->second.id);
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) propose(i);
  while (!queue.empty()) {
    const auto [rank, at, id] = queue.top();
    queue.pop();
    Symbol& left = symbols[at];
    if (left.length == 0 || left.after == kNone) continue;
    Symbol& right = symbols[left.after];
    const auto known = merges_.find(pair_of(left.id, right.id));
    if (known == merges_.end() || known->second.id != id) continue;  // one of the two has merged since
    left.id = id;
    left.length += right.length;
    right.length = 0;
    left.after = right.after;
    if (left.after != kNone) symbols[left.after].before = at;
    if (left.before != kNone) propose(left.before);
    propose(at);
  }
}

void Bpe::tokenize(const Text& word, std::vector<Token>& tokens) const {
  if (whole_words_) {
    const std::string piece = encode(word.chars);
    const auto whole = id(piece);
    if (whole && special_.find(piece) == special_.end()) {
      tokens.push_back({*whole, word.origins.front()});
      return;
    }
  }
  std::vector<Symbol> found = symbols(word);
  merge(found);
  // A token's place is what the tokens before it cover, as the package counts: characters left out do not shift it.
  const std::vector<std::uint32_t> origins = origins_by_byte(word);
  std::size_t at = 0;
  for (const Symbol& symbol : found) {
    if (symbol.length == 0) continue;
    tokens.push_back({symbol.id, origins[at]});
    at += symbol.length;
  }
}

}  // namespace arcflow::core::tokenizer
