// Numbers as Rust's serde_json reads them.
#include "core/text/model/score.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace arcflow::core::tokenizer {

double as_serde_reads(double exact) {
  if (exact == std::trunc(exact) && std::abs(exact) < 1e15) return exact;  // short enough to be exact either way
  std::array<char, 40> buffer{};
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::abs(exact), std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end.ptr - buffer.data()));
  const std::size_t e = text.find('e');
  std::uint64_t digits = 0;
  int exponent = 0;
  for (std::size_t i = 0; i < e; ++i) {
    if (text[i] == '.') {
      exponent = -static_cast<int>(e - i - 1);
    } else {
      digits = digits * 10 + static_cast<std::uint64_t>(text[i] - '0');
    }
  }
  int shown = 0;
  const std::size_t sign = text[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(text.data() + sign, text.data() + text.size(), shown);
  exponent += shown;
  // Beyond 10^308 serde_json divides in two steps; no score is there.
  if (exponent < -300 || exponent > 300) return exact;
  const double scale = std::pow(10.0, std::abs(exponent));
  const double size = exponent < 0 ? static_cast<double>(digits) / scale : static_cast<double>(digits) * scale;
  return std::signbit(exact) ? -size : size;
}

}  // namespace arcflow::core::tokenizer
