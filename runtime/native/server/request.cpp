// The rules of a request body: which fields there are, which are taken for compatibility and ignored, and what each may
// be.
#include "server/request.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "server/json_fields.hpp"

namespace arcflow::serve {

namespace {

// Fields of OpenAI's that change nothing here. Whoever sends them gets an image all the same.
constexpr std::array<std::string_view, 6> kIgnored = {"user",    "quality", "style", "moderation", "output_compression",
                                                      "metadata"};
constexpr std::array<std::string_view, 12> kKnown = {
    "prompt", "n",       "size",          "response_format", "model",          "seed",
    "nfe",    "timeout", "output_format", "stream",          "partial_images", "background"};
constexpr std::size_t kShown = 64;  // characters of a value that a message repeats

std::string shown(std::string_view text) {
  return text.size() <= kShown ? std::string(text) : std::string(text.substr(0, kShown)) + "...";
}

std::string describe(const FieldValue& value) {
  struct {
    std::string operator()(std::nullptr_t) const { return "null"; }
    std::string operator()(bool flag) const { return flag ? "true" : "false"; }
    std::string operator()(std::int64_t number) const { return std::to_string(number); }
    std::string operator()(std::uint64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const { return std::to_string(number); }
    std::string operator()(const std::string& text) const { return "'" + shown(text) + "'"; }
    std::string operator()(Nested) const { return "an array or an object"; }
  } visitor;
  return std::visit(visitor, value);
}

std::uint64_t whole(const Fields& fields, const std::string& name, std::uint64_t fallback, std::uint64_t low,
                    std::uint64_t high) {
  const auto found = fields.find(name);
  if (found == fields.end()) {
    return fallback;
  }
  // Positive numbers are unsigned in what the parser gives; a negative one is out of every range here.
  const auto* number = std::get_if<std::uint64_t>(&found->second);
  if (number == nullptr || *number < low || *number > high) {
    throw bad_request(name + " is " + describe(found->second) + "; a whole number from " + std::to_string(low) +
                          " to " + std::to_string(high) + " is needed",
                      name);
  }
  return *number;
}

// The text of a field, or null where it is absent.
const std::string* text_of(const Fields& fields, const std::string& name) {
  const auto found = fields.find(name);
  if (found == fields.end()) {
    return nullptr;
  }
  const auto* text = std::get_if<std::string>(&found->second);
  if (text == nullptr) {
    throw bad_request(name + " is " + describe(found->second) + "; a string is needed", name);
  }
  return text;
}

std::string prompt_of(const Fields& fields) {
  const std::string* prompt = text_of(fields, "prompt");
  if (prompt == nullptr) {
    throw bad_request("there is no prompt: say in a few words what the image should show", "prompt", "missing_field");
  }
  const bool blank =
      std::all_of(prompt->begin(), prompt->end(), [](unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); });
  if (blank) {
    throw bad_request("the prompt is empty: say in a few words what the image should show", "prompt");
  }
  if (prompt->find('\0') != std::string::npos) {
    throw bad_request("the prompt is not plain text: it holds a NUL", "prompt");
  }
  const auto characters = static_cast<std::size_t>(std::count_if(
      prompt->begin(), prompt->end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; }));
  if (characters > kMaxPromptCharacters) {
    throw bad_request("the prompt has " + std::to_string(characters) + " characters; at most " +
                          std::to_string(kMaxPromptCharacters) + " are allowed",
                      "prompt");
  }
  return *prompt;
}

// Up to five digits, or no number.
std::optional<std::uint32_t> digits(std::string_view text) {
  if (text.empty() || text.size() > 5) {
    return std::nullopt;
  }
  std::uint32_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') {
      return std::nullopt;
    }
    number = number * 10 + static_cast<std::uint32_t>(c - '0');
  }
  return number;
}

void check_side(const std::string& name, std::uint32_t value, const Limits& limits, std::uint32_t multiple) {
  if (value < limits.min || value > limits.max || value % multiple != 0) {
    throw bad_request("the " + name + " of size is " + std::to_string(value) + " px; it must be a multiple of " +
                          std::to_string(multiple) + " from " + std::to_string(limits.min) + " to " +
                          std::to_string(limits.max),
                      "size");
  }
}

Shape size_of(const std::string& size, const ModelDescription& model) {
  const std::size_t cross = size.find('x');
  const std::string_view text = size;
  const auto width = cross == std::string::npos ? std::nullopt : digits(text.substr(0, cross));
  const auto height = cross == std::string::npos ? std::nullopt : digits(text.substr(cross + 1));
  if (!width || !height) {
    throw bad_request("size is '" + shown(size) + "'; it must be WIDTHxHEIGHT in pixels, like \"" +
                          std::to_string(model.width.usual) + "x" + std::to_string(model.height.usual) +
                          "\", or \"auto\"",
                      "size");
  }
  check_side("width", *width, model.width, model.multiple);
  check_side("height", *height, model.height, model.multiple);
  return {*width, *height, model.nfe};
}

double timeout_of(const Fields& fields, double most) {
  const auto found = fields.find("timeout");
  if (found == fields.end()) {
    return most;
  }
  double seconds = 0;
  if (const auto* real = std::get_if<double>(&found->second)) {
    seconds = *real;
  } else if (const auto* number = std::get_if<std::uint64_t>(&found->second)) {
    seconds = static_cast<double>(*number);
  }
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > most) {
    throw bad_request("timeout is " + describe(found->second) +
                          "; seconds are needed, more than 0 and at most this server's " + std::to_string(most),
                      "timeout");
  }
  return seconds;
}

// One of the values that this server can do.
void only(const Fields& fields, const std::string& name, std::initializer_list<std::string_view> allowed) {
  const std::string* text = text_of(fields, name);
  if (text != nullptr && std::find(allowed.begin(), allowed.end(), *text) == allowed.end()) {
    std::string names;
    for (const std::string_view one : allowed) {
      names += (names.empty() ? "\"" : " or \"") + std::string(one) + "\"";
    }
    throw bad_request(name + " is '" + shown(*text) + "'; this server gives " + names, name);
  }
}

void check_fields(const Fields& fields) {
  for (const auto& [name, value] : fields) {
    const auto is = [&name = name](std::string_view known) { return known == name; };
    if (std::none_of(kKnown.begin(), kKnown.end(), is) && std::none_of(kIgnored.begin(), kIgnored.end(), is)) {
      throw bad_request("there is no field '" + shown(name) +
                            "'; there are prompt, n, size, response_format, model, seed, nfe, timeout",
                        shown(name), "unknown_field");
    }
  }
}

void check_model(const Fields& fields, const ModelDescription& model) {
  const std::string* name = text_of(fields, "model");
  if (name != nullptr && *name != model.name && *name != model.bundle) {
    throw ApiError{404,
                   "invalid_request_error",
                   "model_not_found",
                   "the model '" + shown(*name) + "' is not served here; this server has " + model.name,
                   "model",
                   0};
  }
}

GenerationRequest read_request(const Fields& fields, const ModelDescription& model, double most_seconds) {
  check_fields(fields);
  check_model(fields, model);
  GenerationRequest request;
  request.prompt = prompt_of(fields);
  request.n = static_cast<std::uint32_t>(whole(fields, "n", 1, 1, kMaxImages));
  const std::string* size = text_of(fields, "size");
  request.shape = size == nullptr || *size == "auto" ? Shape{model.width.usual, model.height.usual, model.nfe}
                                                     : size_of(*size, model);
  request.shape.nfe = static_cast<std::uint32_t>(whole(fields, "nfe", model.nfe, 1, model.max_nfe));
  only(fields, "response_format", {"b64_json"});
  only(fields, "output_format", {"png"});
  only(fields, "background", {"auto", "opaque"});
  whole(fields, "partial_images", 0, 0, 0);
  const auto stream = fields.find("stream");
  if (stream != fields.end()) {
    const bool* flag = std::get_if<bool>(&stream->second);
    if (flag == nullptr || *flag) {
      throw bad_request("stream is " + describe(stream->second) + "; this server does not stream", "stream");
    }
  }
  if (fields.count("seed") != 0) {
    request.seed = whole(fields, "seed", 0, 0, UINT64_MAX);
  }
  request.timeout = timeout_of(fields, most_seconds);
  return request;
}

}  // namespace

std::variant<GenerationRequest, ApiError> parse_generation(std::string_view body, const ModelDescription& model,
                                                           double most_seconds) {
  FieldsResult read = read_fields(body);
  if (!read.error.empty()) {
    return bad_request(read.error, "", "invalid_json");
  }
  for (auto field = read.fields.begin(); field != read.fields.end();) {
    field = std::holds_alternative<std::nullptr_t>(field->second) ? read.fields.erase(field) : std::next(field);
  }
  try {
    return read_request(read.fields, model, most_seconds);
  } catch (const ApiError& error) {
    return error;
  }
}

std::variant<Shape, ApiError> parse_size(const std::string& size, const ModelDescription& model) {
  try {
    return size_of(size, model);
  } catch (const ApiError& error) {
    return error;
  }
}

bool is_json_type(std::string_view content_type) {
  std::string_view type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) {
    type.remove_suffix(1);
  }
  constexpr std::string_view wanted = "application/json";
  return type.size() == wanted.size() && std::equal(type.begin(), type.end(), wanted.begin(), [](char a, char b) {
           return std::tolower(static_cast<unsigned char>(a)) == b;
         });
}

bool is_request_id(std::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestId &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

}  // namespace arcflow::serve
