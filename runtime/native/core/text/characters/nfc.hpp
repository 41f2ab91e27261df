// Unicode's normalisation form C, as the tokenizers package does it.
#pragma once

#include "core/text/characters/text.hpp"

namespace arcflow::core::tokenizer {

void nfc(Text& text);

}  // namespace arcflow::core::tokenizer
