// Base64 as RFC 4648 has it: the standard alphabet, padded.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace arcflow::core::tokenizer {

// Nothing where `text` is not strict base64.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace arcflow::core::tokenizer
