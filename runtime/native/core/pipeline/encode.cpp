// Equal prompts are encoded once: text by its text, tokens by their ids and masks for every encoder.
#include <map>

#include "core/pipeline/job.hpp"

namespace arcflow::core {
namespace {

void append(std::string& key, const std::vector<std::int64_t>& values, std::size_t row, std::size_t length) {
  key.append(reinterpret_cast<const char*>(values.data() + row * length), length * sizeof(std::int64_t));
}

// What makes prompt `row` of a request what it is.
std::string key_of(const CheckedRequest& request, std::size_t row) {
  if (request.tokens.empty()) return request.prompts[row];
  std::string key;
  for (const auto& [name, tokens] : request.tokens) {
    append(key, tokens.ids, row, tokens.length);
    append(key, tokens.mask, row, tokens.length);
  }
  return key;
}

TokenIds rows_of(const TokenIds& tokens, const std::vector<std::size_t>& rows) {
  TokenIds chosen;
  chosen.prompts = rows.size();
  chosen.length = tokens.length;
  for (const std::size_t row : rows) {
    const auto begin = static_cast<std::ptrdiff_t>(row * tokens.length);
    const auto end = static_cast<std::ptrdiff_t>((row + 1) * tokens.length);
    chosen.ids.insert(chosen.ids.end(), tokens.ids.begin() + begin, tokens.ids.begin() + end);
    chosen.mask.insert(chosen.mask.end(), tokens.mask.begin() + begin, tokens.mask.begin() + end);
  }
  return chosen;
}

}  // namespace

EncodedPrompts tokenize(const CheckedRequest& request, const std::vector<PromptTokenizer>& tokenizers) {
  EncodedPrompts encoded;
  std::vector<std::size_t> first;  // prompts that differ from those before them
  std::map<std::string, std::size_t> seen;
  for (std::size_t row = 0; row < request.prompts.size(); ++row) {
    const auto [place, fresh] = seen.try_emplace(key_of(request, row), first.size());
    if (fresh) first.push_back(row);
    encoded.row_of.push_back(place->second);
  }
  for (const auto& [name, tokens] : request.tokens) encoded.tokens.emplace(name, rows_of(tokens, first));
  if (!request.tokens.empty()) return encoded;
  std::vector<std::string> prompts;
  for (const std::size_t row : first) prompts.push_back(request.prompts[row]);
  for (const PromptTokenizer& tokenizer : tokenizers) {
    TokenIds ids = tokenizer(prompts);
    encoded.warnings.insert(encoded.warnings.end(), ids.warnings.begin(), ids.warnings.end());
    encoded.tokens.emplace(tokenizer.name(), std::move(ids));
  }
  return encoded;
}

}  // namespace arcflow::core
