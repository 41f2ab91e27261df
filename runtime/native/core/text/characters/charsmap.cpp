// SentencePiece's precompiled character map. Every index into the double array is checked: the map comes from a file.
#include "core/text/characters/charsmap.hpp"

#include <openssl/evp.h>
#include <utf8proc.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/text/document/document.hpp"

namespace arcflow::core::tokenizer {
namespace {

constexpr std::uint32_t kInside = 0xFFFFFFFF;  // a byte at which no character begins
constexpr std::size_t kGraphemeBytes = 6;      // graphemes of this length and more go character by character

std::uint32_t word_at(std::string_view bytes, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<std::uint8_t>(bytes[at + i])); };
  return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
}

// The fields of a unit of the double array.
bool has_leaf(std::uint32_t unit) noexcept { return (unit >> 8 & 1) != 0; }
std::uint32_t value_of(std::uint32_t unit) noexcept { return unit & 0x7FFFFFFF; }
std::uint32_t label_of(std::uint32_t unit) noexcept { return unit & 0x800000FF; }
std::size_t offset_of(std::uint32_t unit) noexcept {
  return static_cast<std::size_t>(unit >> 10) << ((unit & 1u << 9) >> 6);
}

// The change that puts `after` in the place of `before` characters.
void replace(std::vector<Change>& changes, std::size_t before, std::u32string_view after) {
  const std::size_t kept = std::min(before, after.size());
  for (std::size_t i = 0; i < after.size(); ++i) changes.emplace_back(after[i], i < kept ? 0 : 1);
  if (before > after.size() && !changes.empty()) changes.back().second -= static_cast<int>(before - after.size());
}

}  // namespace

std::optional<std::string> from_base64(const std::string& text) {
  if (text.size() % 4 != 0 || text.size() > INT32_MAX) return std::nullopt;
  const auto* in = reinterpret_cast<const unsigned char*>(text.data());
  std::string bytes(text.size() / 4 * 3 + 1, '\0');
  auto* out = reinterpret_cast<unsigned char*>(bytes.data());
  const int length = EVP_DecodeBlock(out, in, static_cast<int>(text.size()));  // padding counts as zeros
  if (length < 0) return std::nullopt;
  bytes.resize(static_cast<std::size_t>(length) -
               std::min<std::size_t>(text.size() - text.find_last_not_of('=') - 1, 2));
  // OpenSSL passes over white space at both ends and over bits left over: only what it would write is taken.
  std::string again(text.size() + 1, '\0');
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(again.data()), reinterpret_cast<unsigned char*>(bytes.data()),
                  static_cast<int>(bytes.size()));
  again.resize(text.size());
  return again == text ? std::optional(std::move(bytes)) : std::nullopt;
}

Charsmap::Charsmap(const std::string& base64) {
  const auto bytes = from_base64(base64);
  if (!bytes || bytes->size() < 4) fail("its precompiled_charsmap is not base64 of a character map");
  const std::size_t count = word_at(*bytes, 0) / 4;
  if (count == 0 || count > (bytes->size() - 4) / 4) fail("its precompiled_charsmap is cut short");
  units_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) units_.push_back(word_at(*bytes, 4 + 4 * i));

  const std::string_view block = std::string_view(*bytes).substr(4 + 4 * count);
  try {
    replacements_ = decode(block);
  } catch (const Error&) {
    fail("its precompiled_charsmap has replacements that are not UTF-8");
  }
  character_at_.assign(block.size(), kInside);
  std::size_t byte = 0;
  for (std::size_t i = 0; i < replacements_.size(); ++i) {
    character_at_[byte] = static_cast<std::uint32_t>(i);
    byte += utf8_length(replacements_[i]);
  }
}

std::optional<std::u32string_view> Charsmap::find(std::string_view utf8) const {
  std::size_t node = offset_of(units_[0]);
  for (const char c : utf8) {
    const auto byte = static_cast<std::uint8_t>(c);
    node ^= byte;
    if (byte == 0 || node >= units_.size() || label_of(units_[node]) != byte) return std::nullopt;
    const std::uint32_t unit = units_[node];
    node ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    if (node >= units_.size()) return std::nullopt;
    const std::size_t at = value_of(units_[node]);
    if (at == character_at_.size()) return std::u32string_view();
    if (at > character_at_.size() || character_at_[at] == kInside) return std::nullopt;
    const std::u32string_view rest = std::u32string_view(replacements_).substr(character_at_[at]);
    return rest.substr(0, rest.find(U'\0'));
  }
  return std::nullopt;
}

void Charsmap::apply(Text& text) const {
  std::vector<Change> changes;
  changes.reserve(text.chars.size());
  const std::u32string_view chars = text.chars;
  std::string utf8;
  bool changed = false;
  const auto put = [&](std::u32string_view part, const std::u32string_view* found) {
    if (found == nullptr) return changes.emplace_back(part[0], 0), void();
    replace(changes, part.size(), *found);
    changed = true;
  };
  utf8proc_int32_t state = 0;
  for (std::size_t begin = 0, end = 0; begin < chars.size(); begin = end) {
    do {
      ++end;
    } while (end < chars.size() &&
             !utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(chars[end - 1]),
                                               static_cast<utf8proc_int32_t>(chars[end]), &state));
    const std::u32string_view grapheme = chars.substr(begin, end - begin);
    if (grapheme.size() < kGraphemeBytes) {
      utf8 = encode(grapheme);
      const auto found = utf8.size() < kGraphemeBytes ? find(utf8) : std::nullopt;
      if (found) {
        put(grapheme, &*found);
        continue;
      }
    }
    for (std::size_t i = 0; i < grapheme.size(); ++i) {
      utf8 = encode(grapheme.substr(i, 1));
      const auto found = find(utf8);
      put(grapheme.substr(i, 1), found ? &*found : nullptr);
    }
  }
  if (changed) rewrite(text, changes);
}

}  // namespace arcflow::core::tokenizer
