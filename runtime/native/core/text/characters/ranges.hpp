// Sorted ranges of characters, and whether one lies in them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>

namespace arcflow::core::tokenizer {

struct Range {
  char32_t first, last;
};

template <std::size_t N>
bool in_ranges(const Range (&ranges)[N], char32_t c) noexcept {
  const Range* after = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                        [](char32_t value, const Range& range) { return value < range.first; });
  return after != std::begin(ranges) && c <= std::prev(after)->last;
}

}  // namespace arcflow::core::tokenizer
