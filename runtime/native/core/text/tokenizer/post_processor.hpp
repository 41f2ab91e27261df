// The "post_processor" of a tokenizer.json: the tokens that go before and after a prompt's own.
#pragma once

#include <cstdint>
#include <vector>

#include "core/text/document/reader.hpp"

namespace arcflow::core::tokenizer {

struct PostProcessor {
  std::vector<std::uint32_t> before, after;

  std::size_t size() const noexcept { return before.size() + after.size(); }
};

// description: the value of "post_processor" or null. Known: RobertaProcessing, BertProcessing, TemplateProcessing with
// the prompt once in it, ByteLevel (which adds nothing), and a Sequence of which one adds tokens. Throws Error at
// anything else.
PostProcessor read_post_processor(const Json& description);

}  // namespace arcflow::core::tokenizer
