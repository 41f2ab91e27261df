#include "core/text/document/document.hpp"

#include "core/error.hpp"

namespace arcflow::core::tokenizer {
namespace {

constexpr std::size_t kShown = 200;
constexpr int kDepth = 32;  // a real file needs six or so; components are read by recursion

using Event = Json::parse_event_t;

// Takes a model's vocabulary and merges out of what the parser has read, value by value.
class Tables {
 public:
  explicit Tables(Document& document) : document_(document) {}

  // Whether the parser is to keep what it tells. depth: of the containers around it.
  bool keep(int depth, Event event, Json& value) {
    if (depth > kDepth) fail("its JSON is nested more than " + std::to_string(kDepth) + " deep");
    if (event == Event::key && depth <= 2) {
      (depth == 1 ? part_ : table_) = value.get<std::string>();
      if (depth == 1 && part_ == "model") document_.vocabulary.reset(), document_.merges.reset();
      return true;
    }
    if (part_ != "model" || depth < 2) return true;
    if (table_ == "vocab") return vocabulary(depth, event, value);
    return table_ != "merges" || merges(depth, event, value);
  }

 private:
  // {"a</w>": 320, ...}
  bool vocabulary(int depth, Event event, Json& value) {
    if (depth == 2) {
      if (event == Event::object_start) document_.vocabulary.emplace();
      return event != Event::object_end;
    }
    if (!document_.vocabulary) return true;
    if (depth > 3 || (event != Event::key && event != Event::value)) id_of(nullptr, "model's vocabulary");
    if (event == Event::value) document_.vocabulary->insert_or_assign(piece_, id_of(value, "model's vocabulary"));
    if (event == Event::key) piece_ = std::move(value.get_ref<std::string&>());
    return event != Event::key;
  }

  // ["a b", ...] or [["a", "b"], ...]
  bool merges(int depth, Event event, Json& value) {
    if (depth == 2) {
      if (event == Event::array_start) document_.merges.emplace();
      return true;
    }
    if (!document_.merges) return true;
    const bool text = event == Event::value && value.is_string();
    if (depth == 3 && event == Event::array_start) {
      pieces_.clear();
      return true;
    }
    if (depth == 3 && event == Event::array_end) {
      if (pieces_.size() != 2) damaged_merge();
      document_.merges->emplace_back(std::move(pieces_[0]), std::move(pieces_[1]));
      return false;
    }
    if (depth > 4 || !text) damaged_merge();
    std::string line = std::move(value.get_ref<std::string&>());
    if (depth == 4) {
      pieces_.push_back(std::move(line));
    } else if (line.compare(0, 8, "#version") != 0) {
      const std::size_t space = line.find(' ');
      if (space == line.npos || line.find(' ', space + 1) != line.npos) damaged_merge();
      document_.merges->emplace_back(line.substr(0, space), line.substr(space + 1));
    }
    return false;
  }

  [[noreturn]] static void damaged_merge() { fail("its model has a merge that is not two pieces"); }

  Document& document_;
  std::string part_, table_, piece_;
  std::vector<std::string> pieces_;
};

}  // namespace

void fail(const std::string& reason) { throw Error(ARCFLOW_BACKEND_UNAVAILABLE, reason); }

Document parse(std::string_view bytes) {
  Document document;
  Tables tables(document);
  try {
    document.fields = Json::parse(bytes.begin(), bytes.end(), [&tables](int depth, Event event, Json& value) {
      return tables.keep(depth, event, value);
    });
  } catch (const Json::exception& error) {
    fail("it is not JSON: " + shown_bare(error.what()));
  }
  if (!document.fields.is_object()) fail("it holds no JSON object");
  return document;
}

std::string shown(const Json& value) {
  // Cut before it is written out, where it can be: a file may hold megabytes.
  if (value.is_string() && value.get_ref<const std::string&>().size() > kShown)
    return '"' + shown_bare(value.get_ref<const std::string&>()) + '"';
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > 6 * kShown) text = text.substr(0, 6 * kShown) + "...";
  return text;
}

std::string shown_bare(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kShown)) out += c >= ' ' && c <= '~' ? c : '?';
  return text.size() > kShown ? out + "..." : out;
}

std::string type_of(const Json& component, const std::string& where) {
  if (!component.is_object()) fail("its " + where + " is not an object");
  return string_field(component, "type", where);
}

const Json& field(const Json& object, const std::string& key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) fail("its " + where + " has no \"" + shown_bare(key) + "\"");
  return *found;
}

const Json& array(const Json& object, const char* key, const std::string& where) {
  const Json& value = field(object, key, where);
  if (!value.is_array()) fail("\"" + std::string(key) + "\" of its " + where + " is not a list");
  return value;
}

std::string string_field(const Json& object, const char* key, const std::string& where) {
  const Json& value = field(object, key, where);
  if (!value.is_string()) fail("\"" + std::string(key) + "\" of its " + where + " is not a string");
  return value.get<std::string>();
}

std::string string_field(const Json& object, const char* key, const std::string& where, const char* fallback) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : string_field(object, key, where);
}

bool flag(const Json& object, const char* key, const std::string& where, bool fallback) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_boolean()) fail("\"" + std::string(key) + "\" of its " + where + " is neither true nor false");
  return found->get<bool>();
}

std::uint32_t id_of(const Json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 0xFFFFFFFF) {
    fail("its " + where + " has an id that is not a whole number from 0 to 4294967295");
  }
  return static_cast<std::uint32_t>(value.get<std::uint64_t>());
}

}  // namespace arcflow::core::tokenizer
