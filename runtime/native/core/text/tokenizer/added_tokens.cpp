// The "added_tokens" of a tokenizer.json.
#include <algorithm>

#include "core/text/tokenizer/encoder.hpp"

namespace arcflow::core::tokenizer {
namespace {

const Json& list(const Json& document) {
  static const Json kEmpty = Json::array();
  return document.contains("added_tokens") ? array(document, "added_tokens", "document") : kEmpty;
}

constexpr const char* kWhere = "list of added_tokens";

std::string content(const Json& token) {
  if (!token.is_object()) fail(std::string("its ") + kWhere + " holds something that is not an object");
  return string_field(token, "content", kWhere);
}

}  // namespace

std::map<std::string, std::uint32_t> special_tokens(const Json& document) {
  std::map<std::string, std::uint32_t> special;
  for (const Json& token : list(document)) {
    const std::string text = content(token);
    const std::uint32_t id = id_of(field(token, "id", kWhere), kWhere);
    if (!flag(token, "special", kWhere, false)) continue;
    if (text.empty()) fail(std::string("its ") + kWhere + " has a special token without text");
    special[text] = id;
  }
  return special;
}

AddedTokens::AddedTokens(const Json& document, const Model& model, const Normalizer& normalizer) {
  // A token that is not in the vocabulary gets the next free id, as the tokenizers package has it; the id in the file
  // says the same in a file that the package wrote.
  std::map<std::string, std::uint32_t> known;
  auto next = static_cast<std::uint32_t>(model.size());
  for (const Json& token : list(document)) {
    const std::string text = content(token);
    if (text.empty() || known.count(text) != 0) continue;
    const auto in_vocabulary = model.id(text);
    const std::uint32_t id = known[text] = in_vocabulary ? *in_vocabulary : next++;
    if (flag(token, "special", kWhere, false)) continue;
    for (const char* option : {"single_word", "lstrip", "rstrip"}) {
      if (flag(token, option, kWhere, false)) {
        fail("its added token " + shown(text) + " has " + option +
             ", which is not known here for a token that is not special");
      }
    }
    Text form = with_origins(decode(text));
    const bool after = flag(token, "normalized", kWhere, true);
    if (after) normalizer(form);
    if (!form.chars.empty()) (after ? normalized_ : raw_).push_back({std::move(form.chars), id});
  }
  const auto longer = [](const Token& a, const Token& b) { return a.text.size() > b.text.size(); };
  std::stable_sort(raw_.begin(), raw_.end(), longer);
  std::stable_sort(normalized_.begin(), normalized_.end(), longer);
}

const AddedTokens::Token* AddedTokens::find(const std::vector<Token>& tokens, std::u32string_view rest) {
  for (const Token& token : tokens) {
    if (rest.substr(0, token.text.size()) == token.text) return &token;
  }
  return nullptr;
}

void AddedTokens::cut(Text text, bool normalized, std::vector<Stretch>& out) const {
  const std::vector<Token>& tokens = normalized ? normalized_ : raw_;
  const std::u32string_view chars = text.chars;
  std::size_t begin = 0;
  for (std::size_t at = 0; !tokens.empty() && at < chars.size();) {
    const Token* token = find(tokens, chars.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    if (at > begin) out.push_back({text.slice(begin, at), std::nullopt});
    const std::size_t end = at + token->text.size();
    out.push_back({text.slice(at, end), token->id});
    begin = at = end;
  }
  if (begin == 0) {
    if (!chars.empty()) out.push_back({std::move(text), std::nullopt});
  } else if (begin < chars.size()) {
    out.push_back({text.slice(begin, chars.size()), std::nullopt});
  }
}

}  // namespace arcflow::core::tokenizer
