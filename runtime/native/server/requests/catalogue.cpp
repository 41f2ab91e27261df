// From names to models, and what is said about a name that is none.
#include "server/requests/catalogue.hpp"

#include <stdexcept>

#include "server/requests/api_error.hpp"

namespace arcflow::serve {

Catalogue::Catalogue(const std::vector<ModelDescription>& models, const std::vector<std::string>& aliases) {
  for (const ModelDescription& model : models) {
    if (!names_.emplace(model.bundle, entries_.size()).second) {
      throw std::invalid_argument("--model: two of the models are the bundle " + model.bundle +
                                  "; a server has a bundle once (--workers N makes more images at the same time)");
    }
    entries_.push_back({model, model.bundle, {}});
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const std::string& name = entries_[i].model.name;
    if (names_.emplace(name, i).second) entries_[i].id = name;
  }
  for (const std::string& alias : aliases) add_alias(alias);
}

void Catalogue::add_alias(const std::string& alias) {
  const std::size_t sign = alias.find('=');
  const std::string name = alias.substr(0, sign), target = alias.substr(sign + 1);
  const auto found = names_.find(target);
  if (found == names_.end()) {
    throw std::invalid_argument("--alias " + alias + ": this server has " + ids(false) + ", not " + target);
  }
  const std::size_t place = found->second;
  if (!names_.emplace(name, place).second) {
    throw std::invalid_argument("--alias " + alias + ": the name " + name + " is taken; choose another one");
  }
  entries_[place].aliases.push_back(name);
}

std::string Catalogue::ids(bool with_aliases) const {
  std::string out;
  for (const Entry& entry : entries_) {
    out += (out.empty() ? "" : ", ") + entry.id;
    if (!with_aliases) continue;
    for (const std::string& alias : entry.aliases) out += ", " + alias;
  }
  return out;
}

std::size_t Catalogue::find(const std::string& name) const {
  const auto found = names_.find(name);
  if (found != names_.end()) return found->second;
  throw ApiError{404,
                 "invalid_request_error",
                 "model_not_found",
                 "the model '" + shown(name) + "' is not served here; this server has " + ids(true),
                 "model",
                 0};
}

}  // namespace arcflow::serve
