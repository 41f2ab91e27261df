// Prompts to token ids, equal prompts once.
#pragma once

#include <string>
#include <vector>

#include "core/pipeline/architecture/architecture.hpp"
#include "core/pipeline/request/request.hpp"
#include "core/text/tokenizer/tokenizer.hpp"

namespace arcflow::core {

struct EncodedPrompts {
  TokensByEncoder tokens;           // a row for each prompt that differs from those before it
  std::vector<std::size_t> row_of;  // by prompt of the request
  std::vector<std::string> warnings;
};

// The token ids of a request: those it came with, or what the tokenizers make of its prompts.
EncodedPrompts tokenize(const CheckedRequest& request, const std::vector<PromptTokenizer>& tokenizers);

}  // namespace arcflow::core
