// A tokenizer.json in memory. It is not trusted: its depth is bounded, and what is wrong in it is a clear error.
#pragma once

#include <optional>
#include <string_view>

#include "core/text/document/reader.hpp"
#include "core/text/document/tables.hpp"

namespace arcflow::core::tokenizer {

// fields: the JSON object without the two large parts of a BPE model, which would take most of a second as JSON values:
// vocabulary ("vocab", where it is an object) and merges: the left and the right piece of each, in turn.
struct Document {
  Json fields;
  std::optional<Vocabulary> vocabulary;
  std::optional<Texts> merges;
};

// Throws Error where `bytes` are no JSON object, are nested more deeply than any tokenizer is, or have a vocabulary or
// merges that are damaged.
Document parse(std::string_view bytes);

}  // namespace arcflow::core::tokenizer
