// Prompts to token ids from the bundle's own tokenizer.json: the C++ twin of runtime/text.py, id for id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/bundle/manifest/manifest.hpp"

namespace arcflow::core {

struct TokenIds {
  std::size_t prompts = 0, length = 0;
  std::vector<std::int64_t> ids;      // [prompts, length], padded on the right
  std::vector<std::int64_t> mask;     // the same shape, 1 for a token, 0 for padding
  std::vector<std::string> warnings;  // a sentence for each prompt that did not fit: runtime/text.py, Truncation
};

// One encoder's tokenizer. Immutable after construction; safe to call from several threads.
class PromptTokenizer {
 public:
  // name: for messages, "clip", "t5" or "text". json: the verified bytes of its tokenizer.json.
  // Throws Error(ARCFLOW_BACKEND_UNAVAILABLE) where they are not a tokenizer of a kind that is known here.
  PromptTokenizer(std::string name, std::string_view json, const TokenizerSpec& spec);
  ~PromptTokenizer();
  PromptTokenizer(PromptTokenizer&&) noexcept;
  PromptTokenizer& operator=(PromptTokenizer&&) noexcept;

  const std::string& name() const noexcept;
  // prompts: valid UTF-8 without NUL (the request was checked).
  TokenIds operator()(const std::vector<std::string>& prompts) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace arcflow::core
