// The "normalizer" of a tokenizer.json: what is done to a text before it is split.
#pragma once

#include <functional>
#include <vector>

#include "core/text/characters/text.hpp"
#include "core/text/document/document.hpp"

namespace arcflow::core::tokenizer {

// Known: NFC, Lowercase, Strip, Prepend, Replace (of a plain string, \s+ or " {2,}"), Precompiled, and a Sequence of
// them. Immutable; safe to call from several threads.
class Normalizer {
 public:
  // description: the value of "normalizer"; null does nothing. Throws Error at anything else than the above.
  explicit Normalizer(const Json& description);

  void operator()(Text& text) const;

 private:
  using Step = std::function<void(Text&)>;
  void add(const Json& description);

  std::vector<Step> steps_;
};

}  // namespace arcflow::core::tokenizer
