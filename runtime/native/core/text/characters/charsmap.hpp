// SentencePiece's precompiled character map: the normaliser "Precompiled" of T5's tokenizer.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/characters/text.hpp"

namespace arcflow::core::tokenizer {

// The bytes of base64 as RFC 4648 has it: padded, without white space or bits left over. Nothing where `text` is not
// that.
std::optional<std::string> from_base64(const std::string& text);

// Immutable. The map is a double array (of the library Darts-clone) over UTF-8, whose values are offsets into a block
// of NUL-terminated replacements.
class Charsmap {
 public:
  // base64: the field "precompiled_charsmap". Throws Error where it is not such a map.
  explicit Charsmap(const std::string& base64);

  // Rewrites `text` as the tokenizers package does: a grapheme of less than six bytes is replaced by what the map has
  // for the shortest part it begins with, and other graphemes character by character.
  void apply(Text& text) const;

 private:
  std::optional<std::u32string_view> find(std::string_view utf8) const;

  std::vector<std::uint32_t> units_;
  std::u32string replacements_;              // all of them, NULs included
  std::vector<std::uint32_t> character_at_;  // by byte: the index in replacements_, or kInside
};

}  // namespace arcflow::core::tokenizer
