// JSON as Python writes it. The numbers are written with to_chars: nothing here depends on a locale.
#include "core/pipeline/request/settings.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "core/error.hpp"

namespace arcflow::core {
namespace {

constexpr int kMaxDepth = 32;

[[noreturn]] void refuse(const std::string& reason) {
  throw Error(ARCFLOW_INVALID_ARGUMENT, "the settings are not a JSON object: " + reason);
}

// Looks for what the parser would let pass: it recurses where values are destroyed, and rounds large whole numbers.
class Check : public nlohmann::json_sax<Settings> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == string_t::npos) refuse("the whole number " + text + " has more than 64 bits");
    if (!std::isfinite(value)) refuse("the number " + text + " is too large");
    return true;
  }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return enter(); }
  bool key(string_t&) override { return true; }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    refuse(error.what());
  }

 private:
  bool enter() {
    if (++depth_ > kMaxDepth) refuse("it is nested more than " + std::to_string(kMaxDepth) + " deep");
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }
  int depth_ = 0;
};

// repr() of a Python float: the shortest digits, plain from 1e-4 up to 1e16.
std::string float_text(double value) {
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string text(buffer, end);
  const std::size_t mark = text.find('e');
  const int exponent = std::atoi(text.c_str() + mark + 1);
  if (value != 0.0 && (exponent < -4 || exponent >= 16)) return text;  // to_chars gives e+16 and e-05, as Python does.
  std::string digits = text.substr(0, mark);
  const std::string sign = digits.front() == '-' ? "-" : "";
  digits.erase(std::remove_if(digits.begin(), digits.end(), [](char c) { return c == '.' || c == '-'; }), digits.end());
  if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

// format(value, ".6g")
std::string short_float(double value) {
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::general, 6).ptr;
  return {buffer, end};
}

std::string short_text(const Settings& value) {
  if (value.is_number_float()) return short_float(value.get<double>());
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return to_json(value, KeyOrder::kSorted);
  std::string text;
  for (std::size_t i = 0; i < value.size(); ++i) text += (i == 0 ? "" : " ") + short_text(value[i]);
  return text;
}

void write(const Settings& value, KeyOrder order, std::string& out) {
  if (value.is_object()) {
    std::vector<Settings::const_iterator> entries;
    for (auto entry = value.begin(); entry != value.end(); ++entry) entries.push_back(entry);
    if (order == KeyOrder::kSorted) {
      // UTF-8's bytes sort as its characters do, which is how Python sorts.
      std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.key() < b.key(); });
    }
    const char* separator = "{";
    for (const auto& entry : entries) {
      out += separator;
      write(entry.key(), order, out);
      out += ": ";
      write(*entry, order, out);
      separator = ", ";
    }
    out += entries.empty() ? "{}" : "}";
  } else if (value.is_array()) {
    const char* separator = "[";
    for (const Settings& item : value) {
      out += separator;
      write(item, order, out);
      separator = ", ";
    }
    out += value.empty() ? "[]" : "]";
  } else if (value.is_number_float()) {
    out += float_text(value.get<double>());
  } else {
    out += value.dump(-1, ' ', true);
  }
}

}  // namespace

std::string describe(const Manifest& manifest, const ImageSettings& image) {
  const Settings settings = {
      {"prompt", image.prompt},
      {"seed", image.seed},
      {"model", manifest.model},
      {"precision", manifest.precision},
      {"target", manifest.target},
      {"bundle", manifest.digest},
      {"nfe", image.nfe},
      {"sigmas", image.sigmas},
      {"guidance", manifest.schedule.guidance},
      {"width", image.width},
      {"height", image.height},
  };
  return to_json(settings, KeyOrder::kGiven);
}

Settings parse_settings(std::string_view text) {
  Check check;
  Settings::sax_parse(text, &check);
  Settings settings = Settings::parse(text);
  if (!settings.is_object()) refuse("it is of the type " + std::string(settings.type_name()));
  return settings;
}

std::string to_json(const Settings& value, KeyOrder order) {
  std::string text;
  write(value, order, text);
  return text;
}

std::string summary(const Settings& settings) {
  std::string prompt, rest;
  for (const auto& [name, value] : settings.items()) {
    if (name == "prompt") {
      prompt = short_text(value);
    } else {
      rest += (rest.empty() ? "" : ", ") + name + ": " + short_text(value);
    }
  }
  return prompt + "\n" + rest;
}

}  // namespace arcflow::core
