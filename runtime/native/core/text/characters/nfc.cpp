// Normalisation form C, with the origin of each character kept.
//
// The tables are utf8proc's; the algorithm (decompose, order the marks, compose) is written out because a library's
// own function does not tell where a character of its result came from. The tokenizers package's tables are those of
// Unicode 9: a mark or composed character that came later is left alone, here as there, so that ids are the same.
#include <utf8proc.h>

#include <algorithm>

#include "core/text/characters/text.hpp"
#include "core/text/characters/unicode.hpp"

namespace arcflow::core::tokenizer {
namespace {

// Marks, and characters with a canonical decomposition, of Unicode 10 to 17.
constexpr Range kLater[] = {
    {0x5C8, 0x5C9},     {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1AF0},
    {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x105C9, 0x105C9}, {0x105E4, 0x105E4}, {0x10D24, 0x10D27},
    {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10ECB, 0x10ECF}, {0x10EF0, 0x10EFB}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11383, 0x11383},
    {0x11385, 0x11385}, {0x1138E, 0x1138E}, {0x11391, 0x11391}, {0x113C5, 0x113C5}, {0x113C7, 0x113C8},
    {0x113CE, 0x113D0}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11938, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16121, 0x16128},
    {0x1612F, 0x1612F}, {0x16D68, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1D127, 0x1D128}, {0x1D250, 0x1D252},
    {0x1D25B, 0x1D25C}, {0x1D25F, 0x1D25F}, {0x1D280, 0x1D281}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}, {0x1E6E3, 0x1E6E3},
    {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5}};

bool later(char32_t c) noexcept { return c >= kLater[0].first && in_ranges(kLater, c); }

struct Unit {
  char32_t c;
  int change;
  std::uint8_t mark;  // the canonical combining class: 0 for what starts a sequence
};

std::uint8_t mark_of(char32_t c) noexcept {
  if (c < 0x300 || later(c)) return 0;
  return static_cast<std::uint8_t>(utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class);
}

void decompose(char32_t c, std::vector<Unit>& out) {
  utf8proc_int32_t parts[8];
  utf8proc_ssize_t count = 0;
  if (c >= 0xC0 && !later(c)) {
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 8, options, nullptr);
  }
  if (count < 1 || count > 8) {
    out.push_back({c, 0, mark_of(c)});
    return;
  }
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    const auto part = static_cast<char32_t>(parts[i]);
    out.push_back({part, i > 0 ? 1 : 0, mark_of(part)});
  }
}

// The one character that the two make, or 0.
char32_t compose(char32_t first, char32_t second) noexcept {
  if (second < 0x300 || later(first) || later(second)) return 0;
  utf8proc_int32_t pair[2] = {static_cast<utf8proc_int32_t>(first), static_cast<utf8proc_int32_t>(second)};
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  if (utf8proc_normalize_utf32(pair, 2, options) != 1) return 0;
  const auto one = static_cast<char32_t>(pair[0]);
  return later(one) ? 0 : one;
}

void order_marks(std::vector<Unit>& units) {
  for (auto at = units.begin(); at != units.end();) {
    if (at->mark == 0) {
      ++at;
      continue;
    }
    const auto end = std::find_if(at, units.end(), [](const Unit& unit) { return unit.mark == 0; });
    std::stable_sort(at, end, [](const Unit& a, const Unit& b) { return a.mark < b.mark; });
    at = end;
  }
}

}  // namespace

void nfc(Text& text) {
  if (std::all_of(text.chars.begin(), text.chars.end(), [](char32_t c) { return c < 0x300; })) return;
  std::vector<Unit> units;
  units.reserve(text.chars.size() + 8);
  for (const char32_t c : text.chars) decompose(c, units);
  order_marks(units);

  std::vector<Change> out;
  out.reserve(units.size());
  bool started = false;        // there is a character that marks may join
  std::size_t starter = 0;     // its place in `out`
  std::uint8_t last_mark = 0;  // the mark that stands last between it and here; 0: nothing does
  for (const Unit& unit : units) {
    const bool reaches = started && (out.size() == starter + 1 || last_mark < unit.mark);
    if (const char32_t one = reaches ? compose(out[starter].first, unit.c) : 0) {
      out[starter] = {one, out[starter].second + unit.change - 1};
      continue;
    }
    if (unit.mark == 0) {
      started = true;
      starter = out.size();
      last_mark = 0;
    } else {
      last_mark = unit.mark;
    }
    out.emplace_back(unit.c, unit.change);
  }
  rewrite(text, out);
}

}  // namespace arcflow::core::tokenizer
