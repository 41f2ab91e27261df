// The rules of a request body: which fields there are, which are taken for compatibility and ignored, and what each may
// be.
#include "server/requests/request.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

namespace arcflow::serve {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 16;           // of arrays and objects within each other
constexpr std::size_t kMaxFields = 64;  // of the object

// Fields of OpenAI's that change nothing here. Whoever sends them gets an image all the same.
constexpr std::array<std::string_view, 5> kIgnored = {"user", "quality", "style", "moderation", "metadata"};
constexpr std::array<std::string_view, 13> kKnown = {
    "prompt",    "n",       "size",          "response_format",    "model",  "seed",
    "nfe",       "timeout", "output_format", "output_compression", "stream", "partial_images",
    "background"};
constexpr std::size_t kNamed = 4;  // fields that a message names

// The fields of the body, which must be one JSON object in UTF-8, from hostile bytes: what nests in them is checked to
// be JSON and dropped, so memory is bounded. Throws ApiError.
Json read_fields(std::string_view body) {
  const auto invalid = [](const std::string& message) { return bad_request(message, "", "invalid_json"); };
  std::set<std::string> names;
  std::string last;  // the name that was read last
  const auto keep = [&](int depth, Json::parse_event_t event, const Json& value) {
    using Event = Json::parse_event_t;
    const bool opens = event == Event::object_start || event == Event::array_start;
    if (depth == 0 && event == Event::array_start) throw invalid("the body must be a JSON object, not an array");
    if (depth == 0 && event == Event::value) throw invalid("the body must be a JSON object");
    if (opens && depth >= kMaxDepth) {
      throw invalid("the body nests deeper than " + std::to_string(kMaxDepth) + " levels");
    }
    if (depth == 1 && event == Event::key) {
      last = value.get<std::string>();
      if (!names.insert(last).second) throw invalid("the body names a field twice: " + shown(last));
      if (names.size() > kMaxFields) throw invalid("the body has more than " + std::to_string(kMaxFields) + " fields");
    }
    return depth <= 1 || (event != Event::key && event != Event::value);
  };
  try {
    return Json::parse(body.begin(), body.end(), keep);
  } catch (const Json::parse_error& error) {
    throw invalid("the body is not JSON in UTF-8: it goes wrong at byte " + std::to_string(error.byte));
  } catch (const Json::exception&) {
    throw bad_request(
        "a number in " + (last.empty() ? "the body" : shown(last)) + " is too large: at most 1.8e308 fits",
        shown(last));
  }
}

std::string describe(const Json& value) {
  if (value.is_string()) return "'" + shown(value.get_ref<const std::string&>()) + "'";
  if (value.is_structured()) return "an array or an object";
  return value.dump();
}

// A number of seconds in a sentence, without zeros that say nothing.
std::string brief(double value) { return Json(value).dump(); }

// A field's value; null where it is absent, or null itself.
const Json* find(const Json& fields, const char* name) {
  const auto found = fields.find(name);
  return found == fields.end() || found->is_null() ? nullptr : &*found;
}

std::uint64_t whole(const Json& fields, const char* name, std::uint64_t fallback, std::uint64_t low,
                    std::uint64_t high) {
  const Json* value = find(fields, name);
  if (value == nullptr) return fallback;
  // Positive numbers are unsigned in what the parser gives; a negative one is out of every range here, but for -0.
  const bool good = value->is_number_unsigned() || (value->is_number_integer() && *value == 0);
  const std::uint64_t number = good ? value->get<std::uint64_t>() : 0;
  if (!good || number < low || number > high) {
    const char* how = value->is_number_float() ? ", written without a point or an exponent" : "";
    throw bad_request(std::string(name) + " is " + describe(*value) + "; a whole number from " + std::to_string(low) +
                          " to " + std::to_string(high) + " is needed" + how,
                      name);
  }
  return number;
}

// The text of a field, or null where it is absent.
const std::string* text_of(const Json& fields, const char* name) {
  const Json* value = find(fields, name);
  if (value == nullptr) return nullptr;
  if (!value->is_string()) {
    throw bad_request(std::string(name) + " is " + describe(*value) + "; a string is needed", name);
  }
  return value->get_ptr<const std::string*>();
}

std::string prompt_of(const Json& fields) {
  const std::string* prompt = text_of(fields, "prompt");
  if (prompt == nullptr) {
    throw bad_request("there is no prompt: say in a few words what the image should show", "prompt", "missing_field");
  }
  const bool blank =
      std::all_of(prompt->begin(), prompt->end(), [](unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); });
  if (blank) throw bad_request("the prompt is empty: say in a few words what the image should show", "prompt");
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
  if (text.empty() || text.size() > 5) return std::nullopt;
  std::uint32_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
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

double timeout_of(const Json& fields, double most) {
  const Json* value = find(fields, "timeout");
  if (value == nullptr) return most;
  const double seconds = value->is_number() ? value->get<double>() : 0;
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > most) {
    throw bad_request(
        "timeout is " + describe(*value) + "; seconds are needed, more than 0 and at most this server's " + brief(most),
        "timeout");
  }
  return seconds;
}

// One of the values that this server can do.
void only(const Json& fields, const char* name, std::initializer_list<std::string_view> allowed) {
  const std::string* text = text_of(fields, name);
  if (text != nullptr && std::find(allowed.begin(), allowed.end(), *text) == allowed.end()) {
    std::string names;
    for (const std::string_view one : allowed) names += (names.empty() ? "\"" : " or \"") + std::string(one) + "\"";
    throw bad_request(std::string(name) + " is '" + shown(*text) + "'; this server gives " + names, name);
  }
}

void check_response_format(const Json& fields) {
  const std::string* text = text_of(fields, "response_format");
  if (text == nullptr || *text != "url") return only(fields, "response_format", {"b64_json"});
  throw bad_request(
      "response_format is 'url'; this server keeps no files that a link could lead to: ask for \"b64_json\", or leave "
      "the field out",
      "response_format");
}

// Whether it streams, and how many partial images.
void read_stream(const Json& fields, GenerationRequest& request) {
  const Json* stream = find(fields, "stream");
  if (stream != nullptr && !stream->is_boolean()) {
    throw bad_request("stream is " + describe(*stream) + "; true or false is needed", "stream");
  }
  request.stream = stream != nullptr && stream->get<bool>();
  request.shape.partials = static_cast<std::uint32_t>(whole(fields, "partial_images", 0, 0, kMaxPartials));
  if (!request.stream && request.shape.partials > 0) {
    throw bad_request("partial_images is " + std::to_string(request.shape.partials) +
                          ", but the answer is not a stream: add \"stream\": true",
                      "partial_images");
  }
  if (request.stream && request.n > 1) {
    throw bad_request("n is " + std::to_string(request.n) + "; a stream has one image: ask for each with its own", "n");
  }
}

bool is_known(std::string_view name) {
  const auto has = [name](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
  return has(kKnown) || has(kIgnored);
}

void check_fields(const Json& fields) {
  std::string strange;
  std::size_t count = 0;
  std::string first;
  for (const auto& [name, value] : fields.items()) {
    if (value.is_null() || is_known(name)) continue;
    if (++count > kNamed) continue;
    if (first.empty()) first = shown(name);
    strange += (strange.empty() ? "'" : ", '") + shown(name) + "'";
  }
  if (count == 0) return;
  if (count > kNamed) strange += " and " + std::to_string(count - kNamed) + " more";
  std::string known;
  for (const std::string_view name : kKnown) known += (known.empty() ? "" : ", ") + std::string(name);
  throw bad_request((count == 1 ? "there is no field " : "there are no fields ") + strange + "; there are " + known,
                    first, "unknown_field");
}

}  // namespace

std::uint32_t most_nfe(const ModelDescription& model, const RequestRules& rules) {
  return rules.nfe == 0 ? model.max_nfe : std::min(model.max_nfe, rules.nfe);
}

std::uint32_t usual_nfe(const ModelDescription& model, const RequestRules& rules) {
  return std::min(model.nfe, most_nfe(model, rules));
}

GenerationRequest parse_generation(std::string_view body, const Catalogue& catalogue, const RequestRules& rules) {
  const Json fields = read_fields(body);
  check_fields(fields);
  const std::string* name = text_of(fields, "model");
  GenerationRequest request;
  if (name != nullptr) request.model = catalogue.find(*name);
  const ModelDescription& model = catalogue.all()[request.model].model;
  request.prompt = prompt_of(fields);
  request.n = static_cast<std::uint32_t>(whole(fields, "n", 1, 1, rules.images));
  const std::string* size = text_of(fields, "size");
  request.shape = size == nullptr || *size == "auto" ? Shape{model.width.usual, model.height.usual, model.nfe}
                                                     : parse_size(*size, model);
  request.shape.nfe =
      static_cast<std::uint32_t>(whole(fields, "nfe", usual_nfe(model, rules), 1, most_nfe(model, rules)));
  read_stream(fields, request);
  check_response_format(fields);
  only(fields, "output_format", {"png", "jpeg", "webp"});
  const std::string* format = text_of(fields, "output_format");
  for (const FileFormat one : {FileFormat::kJpeg, FileFormat::kWebp}) {
    if (format != nullptr && *format == name_of(one)) request.format = one;
  }
  request.quality = static_cast<int>(whole(fields, "output_compression", 100, 0, 100));
  only(fields, "background", {"auto", "opaque"});
  if (find(fields, "seed") != nullptr) request.seed = whole(fields, "seed", 0, 0, UINT64_MAX);
  request.timeout = timeout_of(fields, rules.seconds);
  return request;
}

Shape parse_size(const std::string& size, const ModelDescription& model) {
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

bool is_json_type(std::string_view content_type) {
  std::string_view type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
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
