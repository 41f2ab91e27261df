// The models as documents of OpenAI's kind, with their limits.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/service.hpp"
#include "server/visit.hpp"

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;

Json limits(const Limits& range) { return {{"min", range.min}, {"usual", range.usual}, {"max", range.max}}; }

Json document(const std::string& id, const ModelDescription& model, const RequestRules& rules, std::int64_t created) {
  Json one;
  one["id"] = id;
  one["object"] = "model";
  one["created"] = created;
  one["owned_by"] = "arcflow";
  one["bundle"] = model.bundle;
  one["digest"] = model.digest;
  one["backend"] = model.backend;
  one["width"] = limits(model.width);
  one["height"] = limits(model.height);
  one["multiple"] = model.multiple;
  one["nfe"] = limits({1, usual_nfe(model, rules), most_nfe(model, rules)});
  one["partial_images"] = limits({0, 0, kMaxPartials});
  return one;
}

}  // namespace

void Service::list_models(Response& response) const {
  if (state_ == State::kLoading) return set_error(response, unavailable());
  const RequestRules rules = rules_for(visit_of(response).key);
  Json data = Json::array();
  for (const auto& [model, id, aliases] : fleet_->catalogue().all()) {
    data.push_back(document(id, model, rules, started_));
    for (const std::string& alias : aliases) data.push_back(document(alias, model, rules, started_));
  }
  response.set_content(Json{{"object", "list"}, {"data", std::move(data)}}.dump(), "application/json");
}

void Service::tell_model(const std::string& name, Response& response) const {
  if (state_ == State::kLoading) return set_error(response, unavailable());
  const RequestRules rules = rules_for(visit_of(response).key);
  const Catalogue& catalogue = fleet_->catalogue();
  try {
    const ModelDescription& model = catalogue.all()[catalogue.find(name)].model;
    response.set_content(document(name, model, rules, started_).dump(), "application/json");
  } catch (const ApiError& error) {
    set_error(response, error);
  }
}

// The server's rules, and the key's where they are narrower.
RequestRules Service::rules_for(const ApiKey* key) const {
  RequestRules rules = rules_.requests;
  if (key == nullptr) return rules;
  if (key->limits.images > 0) rules.images = std::min(rules.images, key->limits.images);
  if (key->limits.nfe > 0) rules.nfe = rules.nfe == 0 ? key->limits.nfe : std::min(rules.nfe, key->limits.nfe);
  return rules;
}

}  // namespace arcflow::serve
