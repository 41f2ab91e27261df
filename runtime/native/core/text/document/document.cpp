// A tokenizer.json, read event by event: vocabulary and merges go straight into their tables.
#include "core/text/document/document.hpp"

#include <utility>
#include <vector>

namespace arcflow::core::tokenizer {
namespace {

constexpr std::size_t kDepth = 32;  // a real file needs six or so; components are read by recursion

class Reader : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(Document& document) : document_(document) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool truth) override { return value(truth); }
  bool number_integer(number_integer_t number) override { return value(number); }
  bool number_float(number_float_t number, const string_t&) override { return value(number); }
  bool binary(binary_t&) override { return false; }

  bool number_unsigned(number_unsigned_t number) override {
    if (part_ != Part::kVocabulary) return value(number);
    if (number > 0xFFFFFFFF) damaged_vocabulary();
    document_.vocabulary->add(key_, static_cast<std::uint32_t>(number));
    return true;
  }

  bool string(string_t& text) override {
    if (part_ == Part::kMerges) return merge_of_line(text), true;
    if (part_ != Part::kMerge) return value(std::move(text));
    document_.merges->add(text);
    ++pieces_;
    return true;
  }

  bool key(string_t& name) override {
    key_.swap(name);
    if (part_ == Part::kRest && open_.size() == 1 && key_ == "model") document_.vocabulary = {}, document_.merges = {};
    return true;
  }

  bool start_object(std::size_t) override {
    if (in_model() && key_ == "vocab") {
      part_ = Part::kVocabulary;
      document_.vocabulary.emplace();
      return true;
    }
    return open(Json::object());
  }

  bool start_array(std::size_t) override {
    if (part_ == Part::kMerges) {
      part_ = Part::kMerge;
      pieces_ = 0;
      return true;
    }
    if (in_model() && key_ == "merges") {
      part_ = Part::kMerges;
      document_.merges.emplace();
      return true;
    }
    return open(Json::array());
  }

  bool end_object() override {
    if (part_ == Part::kVocabulary) {
      part_ = Part::kRest;
    } else {
      open_.pop_back();
    }
    return true;
  }

  bool end_array() override {
    if (part_ == Part::kMerge) {
      if (pieces_ != 2) damaged_merge();
      part_ = Part::kMerges;
    } else if (part_ == Part::kMerges) {
      part_ = Part::kRest;
    } else {
      open_.pop_back();
    }
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    fail("it is not JSON: " + shown_bare(error.what()));
  }

 private:
  enum class Part { kRest, kVocabulary, kMerges, kMerge };  // which table values go to; kMerge: inside one of a list

  [[noreturn]] static void damaged_vocabulary() {
    fail("its model's vocabulary has an id that is not a whole number from 0 to 4294967295");
  }
  [[noreturn]] static void damaged_merge() { fail("its model has a merge that is not two pieces"); }

  // Whether the value that comes is a field of the model.
  bool in_model() const {
    return part_ == Part::kRest && open_.size() == 2 && open_[1]->is_object() && open_[1] == model();
  }
  const Json* model() const {
    const auto found = document_.fields.find("model");
    return found == document_.fields.end() ? nullptr : &*found;
  }

  // "a b"
  void merge_of_line(std::string_view line) {
    if (line.substr(0, 8) == "#version") return;
    const std::size_t space = line.find(' ');
    if (space == line.npos || line.find(' ', space + 1) != line.npos) damaged_merge();
    document_.merges->add(line.substr(0, space));
    document_.merges->add(line.substr(space + 1));
  }

  Json* put(Json&& json) {
    if (part_ == Part::kVocabulary) damaged_vocabulary();
    if (part_ != Part::kRest) damaged_merge();
    if (open_.empty()) {
      document_.fields = std::move(json);
      return &document_.fields;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(json));
      return &parent.back();
    }
    return &(parent[key_] = std::move(json));
  }

  template <typename Value>
  bool value(Value&& from) {
    put(Json(std::forward<Value>(from)));
    return true;
  }

  bool open(Json&& json) {
    if (open_.size() >= kDepth) fail("its JSON is nested more than " + std::to_string(kDepth) + " deep");
    open_.push_back(put(std::move(json)));
    return true;
  }

  Document& document_;
  std::vector<Json*> open_;  // the values that have begun, the outermost first
  std::string key_;
  Part part_ = Part::kRest;
  std::size_t pieces_ = 0;
};

}  // namespace

Document parse(std::string_view bytes) {
  Document document;
  Reader reader(document);
  try {
    Json::sax_parse(bytes.begin(), bytes.end(), &reader);
  } catch (const Json::exception& error) {
    fail("it is not JSON: " + shown_bare(error.what()));
  }
  if (!document.fields.is_object()) fail("it holds no JSON object");
  return document;
}

}  // namespace arcflow::core::tokenizer
