// The stages of a tokenizer.json in their order.
#include "core/text/tokenizer/encoder.hpp"

#include <utility>

namespace arcflow::core::tokenizer {
namespace {

const Json& part(const Json& document, const char* key) {
  static const Json kNull;
  const auto found = document.find(key);
  return found == document.end() ? kNull : *found;
}

const Json& checked(const Json& document) {
  if (const std::string version = string_field(document, "version", "document", "1.0"); version != "1.0") {
    fail("its version is " + shown(version) + "; known is \"1.0\"");
  }
  return document;
}

Special names(const std::map<std::string, std::uint32_t>& special) {
  Special result;
  for (const auto& [text, id] : special) result.insert(text);
  return result;
}

}  // namespace

Encoder::Encoder(Document document)
    : special_(special_tokens(checked(document.fields))),
      normalizer_(part(document.fields, "normalizer")),
      pre_tokenizer_(part(document.fields, "pre_tokenizer")),
      model_(read_model(document, names(special_))),
      added_(document.fields, *model_, normalizer_),
      around_(read_post_processor(part(document.fields, "post_processor"))) {}

std::vector<Token> Encoder::operator()(Text text, std::size_t wanted) const {
  std::vector<Stretch> raw, normalized;
  added_.cut(std::move(text), false, raw);
  for (Stretch& stretch : raw) {
    if (stretch.token) {
      normalized.push_back(std::move(stretch));
      continue;
    }
    normalizer_(stretch.text);
    added_.cut(std::move(stretch.text), true, normalized);
  }
  std::vector<Token> tokens;
  for (Stretch& stretch : normalized) {
    if (stretch.token) {
      tokens.push_back({*stretch.token, stretch.text.origins.front()});
      continue;
    }
    for (const Text& word : pre_tokenizer_(std::move(stretch.text))) {
      model_->tokenize(word, tokens);
      if (tokens.size() >= wanted) return tokens;
    }
  }
  return tokens;
}

}  // namespace arcflow::core::tokenizer
