// A SAX reader over nlohmann's parser: no tree is built, so nesting costs nothing and cannot exhaust the stack.
#include "server/json_fields.hpp"

#include <nlohmann/json.hpp>
#include <utility>

namespace arcflow::serve {

namespace {

using Json = nlohmann::json;

class Reader final : public Json::json_sax_t {
 public:
  FieldsResult result;

  bool null() override { return value(nullptr); }
  bool boolean(bool content) override { return value(content); }
  bool number_integer(Json::number_integer_t content) override { return value(content); }
  bool number_unsigned(Json::number_unsigned_t content) override { return value(content); }
  bool number_float(Json::number_float_t content, const std::string&) override { return value(content); }
  bool string(std::string& content) override { return value(std::move(content)); }
  bool binary(Json::binary_t&) override { return fail("the body holds binary data"); }

  bool start_object(std::size_t) override {
    if (depth_ == 1 && !store(Nested{})) {
      return false;
    }
    return deeper();
  }
  bool start_array(std::size_t) override {
    if (depth_ == 0) {
      return fail("the body must be a JSON object, not an array");
    }
    if (depth_ == 1 && !store(Nested{})) {
      return false;
    }
    return deeper();
  }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }

  bool key(std::string& name) override {
    if (depth_ != 1) {
      return true;
    }
    if (result.fields.count(name) != 0) {
      return fail("the body names a field twice: " + name);
    }
    if (result.fields.size() >= static_cast<std::size_t>(kMaxFields)) {
      return fail("the body has more than " + std::to_string(kMaxFields) + " fields");
    }
    name_ = name;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return fail("the body is not JSON in UTF-8: it goes wrong at byte " + std::to_string(position));
  }

 private:
  bool value(FieldValue content) {
    if (depth_ == 0) {
      return fail("the body must be a JSON object");
    }
    return depth_ > 1 || store(std::move(content));
  }
  bool store(FieldValue content) {
    result.fields.insert_or_assign(name_, std::move(content));
    return true;
  }
  bool deeper() {
    ++depth_;
    return depth_ <= kMaxDepth || fail("the body nests deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  bool fail(std::string message) {
    result.error = std::move(message);
    return false;
  }

  std::string name_;
  int depth_ = 0;
};

}  // namespace

FieldsResult read_fields(std::string_view body) {
  Reader reader;
  const bool whole = Json::sax_parse(body.begin(), body.end(), &reader);
  if (!whole && reader.result.error.empty()) {
    reader.result.error = "the body is not JSON";
  }
  return std::move(reader.result);
}

}  // namespace arcflow::serve
