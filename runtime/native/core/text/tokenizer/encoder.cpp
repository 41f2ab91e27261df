// The stages of a tokenizer.json in their order.
#include "core/text/tokenizer/encoder.hpp"

#include <utility>

#include "core/text/model/bpe.hpp"
#include "core/text/model/unigram.hpp"

namespace arcflow::core::tokenizer {
namespace {

const Json& part(const Json& document, const char* key) {
  static const Json kNull;
  const auto found = document.find(key);
  return found == document.end() ? kNull : *found;
}

const Json& checked(const Json& document) {
  if (const std::string version = string_field(document, "version", "document", "1.0"); version != "1.0") {
    fail("its version is " + shown(version) + "; known is \"1.0\"");
  }
  return document;
}

Special names(const std::map<std::string, std::uint32_t>& special) {
  Special result;
  for (const auto& [text, id] : special) result.insert(text);
  return result;
}

std::unique_ptr<const Model> read_model(Document& document, const Special& special) {
  const Json& description = field(document.fields, "model", "document");
  if (!description.is_object()) fail("its model is not an object");
  std::string type = string_field(description, "type", "model", "");
  // Files of before 2021 (CLIP's own is one) do not name it.
  if (type.empty() && document.merges) type = "BPE";
  if (type.empty() && description.contains("unk_id")) type = "Unigram";
  if (type == "BPE") return std::make_unique<Bpe>(document, special);
  if (type == "Unigram") return std::make_unique<Unigram>(description, special);
  fail(type.empty() ? "its model has no type"
                    : "its model " + shown_bare(type) + " is not known here; known are BPE and Unigram");
}

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

// Known: RobertaProcessing, BertProcessing, TemplateProcessing with the prompt once in it, ByteLevel (which adds
// nothing), and a Sequence of which one adds tokens.
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

}  // namespace

Encoder::Encoder(Document document)
    : special_(special_tokens(checked(document.fields))),
      normalizer_(part(document.fields, "normalizer")),
      pre_tokenizer_(part(document.fields, "pre_tokenizer")),
      model_(read_model(document, names(special_))),
      added_(document.fields, *model_, normalizer_),
      around_(read_post_processor(part(document.fields, "post_processor"))) {}

std::vector<Token> Encoder::operator()(Text text, std::size_t wanted) const {
  std::vector<Stretch> raw, normalized;
  added_.cut(std::move(text), false, raw);
  for (Stretch& stretch : raw) {
    if (stretch.token) {
      normalized.push_back(std::move(stretch));
      continue;
    }
    normalizer_(stretch.text);
    added_.cut(std::move(stretch.text), true, normalized);
  }
  std::vector<Token> tokens;
  for (Stretch& stretch : normalized) {
    if (stretch.token) {
      tokens.push_back({*stretch.token, stretch.text.origins.front()});
      continue;
    }
    for (const Text& word : pre_tokenizer_(std::move(stretch.text))) {
      model_->tokenize(word, tokens);
      if (tokens.size() >= wanted) return tokens;
    }
  }
  return tokens;
}

}  // namespace arcflow::core::tokenizer
