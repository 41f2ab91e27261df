// The post-processors of CLIP, T5 and Qwen2.
#include "core/text/tokenizer/post_processor.hpp"

namespace arcflow::core::tokenizer {
namespace {

// ["</s>", 1]
std::uint32_t named_id(const Json& description, const char* key) {
  const std::string where = "post_processor";
  const Json& pair = array(description, key, where);
  if (pair.size() != 2) fail("\"" + std::string(key) + "\" of its post_processor is not a name and an id");
  return id_of(pair[1], where);
}

PostProcessor read_template(const Json& description) {
  const std::string where = "post_processor TemplateProcessing";
  const Json& tokens = field(description, "special_tokens", where);
  PostProcessor result;
  bool prompt_seen = false;
  for (const Json& part : array(description, "single", where)) {
    if (part.is_object() && part.contains("Sequence")) {
      if (prompt_seen || string_field(part["Sequence"], "id", where) != "A") {
        fail("its " + where + " does not have the prompt once, as Sequence A");
      }
      prompt_seen = true;
    } else if (part.is_object() && part.contains("SpecialToken")) {
      const std::string name = string_field(part["SpecialToken"], "id", where);
      const Json& token = field(tokens, name, where);
      for (const Json& id : array(token, "ids", where)) {
        (prompt_seen ? result.after : result.before).push_back(id_of(id, where));
      }
    } else {
      fail("its " + where + " has a part that is neither Sequence nor SpecialToken");
    }
  }
  if (!prompt_seen) fail("its " + where + " does not have the prompt once, as Sequence A");
  return result;
}

}  // namespace

PostProcessor read_post_processor(const Json& description) {
  if (description.is_null()) return {};
  const std::string type = type_of(description, "post_processor");
  if (type == "ByteLevel") return {};
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    return {{named_id(description, "cls")}, {named_id(description, "sep")}};
  }
  if (type == "TemplateProcessing") return read_template(description);
  if (type == "Sequence") {
    PostProcessor result;
    for (const Json& part : array(description, "processors", "post_processor Sequence")) {
      PostProcessor one = read_post_processor(part);
      if (one.size() == 0) continue;
      if (result.size() > 0) fail("its post_processor Sequence adds tokens twice; once is known here");
      result = std::move(one);
    }
    return result;
  }
  fail("its post_processor " + shown_bare(type) +
       " is not known here; known are RobertaProcessing, BertProcessing, TemplateProcessing, ByteLevel and Sequence");
}

}  // namespace arcflow::core::tokenizer
