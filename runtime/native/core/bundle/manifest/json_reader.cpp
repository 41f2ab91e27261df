#include "core/bundle/manifest/json_reader.hpp"

#include <algorithm>
#include <charconv>

namespace arcflow::core {
namespace {

// Arrays and objects inside one another that are passed over; no manifest has a tenth of it.
constexpr int kMostNested = 900;

void append_utf8(std::string& out, std::uint32_t point) {
  const auto tail = [point](unsigned shift) { return static_cast<char>(0x80 | (point >> shift & 0x3F)); };
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    (out += static_cast<char>(0xC0 | point >> 6)) += tail(0);
  } else if (point < 0x10000) {
    ((out += static_cast<char>(0xE0 | point >> 12)) += tail(6)) += tail(0);
  } else {
    (((out += static_cast<char>(0xF0 | point >> 18)) += tail(12)) += tail(6)) += tail(0);
  }
}

// Whether a number that has no finite, normal double is too large, rather than too near zero.
bool is_large(std::string_view text) {
  std::int64_t leading = 0;  // the decimal exponent of the first digit that is not zero
  bool fraction = false, found = false;
  std::size_t at = 0;
  for (; at < text.size() && text[at] != 'e' && text[at] != 'E'; ++at) {
    if (text[at] == '.') {
      fraction = true;
    } else if (text[at] != '-') {
      found = found || text[at] != '0';
      if (found ? !fraction : fraction) leading += fraction ? -1 : 1;
    }
  }
  if (at < text.size()) ++at;
  const bool down = at < text.size() && text[at] == '-';
  if (at < text.size() && (text[at] == '-' || text[at] == '+')) ++at;
  std::int64_t exponent = 0;
  const auto parsed = std::from_chars(text.data() + at, text.data() + text.size(), exponent);
  if (parsed.ec == std::errc::result_out_of_range) return !down;
  exponent = std::min(exponent, std::int64_t{1} << 40);  // no text is that long: the sum below cannot overflow
  return leading + (down ? -exponent : exponent) > 0;
}

}  // namespace

std::optional<double> JsonNumber::real() const {
  double value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc::result_out_of_range) return value;
  if (is_large(text)) return std::nullopt;
  return 0.0;
}

void JsonReader::malformed(const char* reason) const {
  throw JsonError("JSON is malformed: " + std::string(reason) + " (byte " + std::to_string(at_) + ")");
}

void JsonReader::truncated() { throw JsonError("Input data was truncated"); }

char JsonReader::peek() {
  for (;; ++at_) {
    if (done()) truncated();
    const char c = data_[at_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return c;
  }
}

void JsonReader::finish() {
  while (!done()) {
    const char c = data_[at_++];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') malformed("trailing characters");
  }
}

std::string JsonReader::string() {
  std::string out;
  text(&out);
  return out;
}

void JsonReader::text(std::string* out) {
  ++at_;
  for (;;) {
    const std::size_t start = at_;
    while (!done() && byte() >= 0x20 && byte() != '"' && byte() != '\\') ++at_;
    if (done()) truncated();
    if (out != nullptr) out->append(data_.substr(start, at_ - start));
    if (byte() == '"') {
      ++at_;
      return;
    }
    if (byte() != '\\') malformed("invalid character");
    escape(out);
  }
}

// out: null where the string is passed over. The places and words of the faults differ between the two, as msgspec's
// do.
void JsonReader::escape(std::string* out) {
  static constexpr std::string_view kNames = "\"\\/bfnrt", kBytes = "\"\\/\b\f\n\r\t";
  ++at_;
  if (done()) truncated();
  const char name = data_[at_];
  if (const auto place = kNames.find(name); place != kNames.npos) {
    ++at_;
    if (out != nullptr) *out += kBytes[place];
    return;
  }
  if (name != 'u') {
    if (out == nullptr) malformed("invalid escaped character");
    ++at_;
    malformed("invalid escape character in string");
  }
  ++at_;
  const std::uint32_t point = code_point(out == nullptr ? Use::skip : Use::read);
  if (out != nullptr) append_utf8(*out, point);
}

std::uint32_t JsonReader::hex4() {
  if (data_.size() - at_ < 4) truncated();
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = data_[at_++];
    const bool letter = (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    if (!letter && !(c >= '0' && c <= '9')) malformed("invalid character in unicode escape");
    value = value << 4 | static_cast<std::uint32_t>(letter ? (c & 0x0F) + 9 : c - '0');
  }
  return value;
}

std::uint32_t JsonReader::code_point(Use use) {
  const std::uint32_t first = hex4();
  if (first < 0xD800 || first > 0xDFFF) return first;
  if (first >= 0xDC00) malformed("invalid utf-16 surrogate pair");
  if (data_.size() - at_ < 6) truncated();
  if (data_.substr(at_, 2) != "\\u") {
    malformed(use == Use::skip ? "unexpected end of hex escape" : "unexpected end of escaped utf-16 surrogate pair");
  }
  at_ += 2;
  const std::uint32_t second = hex4();
  if (second < 0xDC00 || second > 0xDFFF) malformed("invalid utf-16 surrogate pair");
  return 0x10000 + ((first - 0xD800) << 10 | (second - 0xDC00));
}

std::size_t JsonReader::digits() {
  const std::size_t start = at_;
  while (digit()) ++at_;
  return at_ - start;
}

JsonNumber JsonReader::number() { return scan(Use::read); }

JsonNumber JsonReader::scan(Use use) {
  JsonNumber out;
  const std::size_t start = at_;
  if (byte() == '-') {
    out.negative = true;
    ++at_;
    if (done() && use == Use::read) malformed("invalid number");
  }
  const std::size_t integer = at_;
  if (!done() && byte() == '0') {
    ++at_;
    if (digit()) malformed("invalid number");
  } else if (digits() == 0) {
    malformed("invalid character");
  }
  if (!done() && byte() == '.') {
    out.is_float = true;
    ++at_;
    if (digits() == 0) malformed("invalid number");
  }
  if (!done() && (byte() == 'e' || byte() == 'E')) {
    out.is_float = true;
    ++at_;
    if (!done() && (byte() == '+' || byte() == '-')) ++at_;
    if (digits() == 0) malformed("invalid number");
  }
  out.text = data_.substr(start, at_ - start);
  if (!out.is_float) {
    const auto parsed = std::from_chars(data_.data() + integer, data_.data() + at_, out.magnitude);
    out.fits = parsed.ec == std::errc() && !(out.negative && out.magnitude > std::uint64_t{1} << 63);
  }
  return out;
}

void JsonReader::word(std::string_view whole) {
  if (data_.size() - at_ < whole.size()) truncated();
  const std::string_view found = data_.substr(at_, whole.size());
  at_ += whole.size();
  if (found != whole) malformed("invalid character");
}

bool JsonReader::next(char end, const char* expected, const char* trailing, bool& first) {
  char c = peek();
  if (c == end) {
    pass();
    return false;
  }
  if (!first) {
    if (c != ',') malformed(expected);
    pass();
    c = peek();
  }
  first = false;
  if (c == end) malformed(trailing);
  return true;
}

bool JsonReader::element(bool& first) { return next(']', "expected ',' or ']'", "trailing comma in array", first); }

std::optional<std::string> JsonReader::key(bool& first) {
  if (!next('}', "expected ',' or '}'", "trailing comma in object", first)) return std::nullopt;
  if (byte() != '"') malformed("object keys must be strings");
  return string();
}

void JsonReader::colon() {
  if (peek() != ':') malformed("expected ':'");
  pass();
}

void JsonReader::skip() { skip_value(0); }

void JsonReader::skip_value(int depth) {
  switch (peek()) {
    case 'n':
      return skip_word("null");
    case 't':
      return skip_word("true");
    case 'f':
      return skip_word("false");
    case '"':
      return text(nullptr);
    case '[':
    case '{':
      return skip_container(byte() == '{', depth + 1);
    default:
      scan(Use::skip);
  }
}

void JsonReader::skip_word(std::string_view whole) {
  ++at_;
  if (data_.size() - at_ < whole.size() - 1) truncated();
  if (data_.substr(at_, whole.size() - 1) != whole.substr(1)) malformed("invalid character");
  at_ += whole.size() - 1;
}

void JsonReader::skip_container(bool object, int depth) {
  if (depth > kMostNested) throw JsonError("it is nested too deeply");
  pass();
  bool first = true;
  while (object ? next('}', "expected ',' or '}'", "trailing comma in object", first) : element(first)) {
    if (object) {
      if (byte() != '"') malformed("expected '\"'");
      text(nullptr);
      colon();
    }
    skip_value(depth);
  }
}

}  // namespace arcflow::core
