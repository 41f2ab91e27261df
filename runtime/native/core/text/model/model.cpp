// Which model a tokenizer.json has.
#include "core/text/model/model.hpp"

#include "core/text/model/bpe.hpp"
#include "core/text/model/unigram.hpp"

namespace arcflow::core::tokenizer {

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

}  // namespace arcflow::core::tokenizer
