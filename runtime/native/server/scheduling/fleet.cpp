// Loading, starting and ending, a model after the other.
#include "server/scheduling/fleet.hpp"

#include <stdexcept>

namespace arcflow::serve {
namespace {

void check_devices(const ModelDescription& model, const std::vector<std::uint32_t>& devices) {
  if (model.target != "cpu" || devices == std::vector<std::uint32_t>{0}) return;
  std::string names;
  for (const std::uint32_t device : devices) names += (names.empty() ? "" : ",") + std::to_string(device);
  throw std::invalid_argument(
      "--device " + names + ": " + model.bundle +
      " runs on the CPU, which is device 0 alone; leave --device out, or serve it in a process of its own");
}

}  // namespace

Fleet::Fleet(const std::vector<std::string>& bundles, const std::vector<std::uint32_t>& devices,
             const std::vector<std::string>& aliases, const Open& open) {
  std::vector<ModelDescription> descriptions;
  for (const std::string& bundle : bundles) {
    Model& model = models_.emplace_back();
    model.engines.push_back(open(bundle, devices.front()));
    descriptions.push_back(model.engine().model());
    check_devices(descriptions.back(), devices);
  }
  catalogue_ = Catalogue(descriptions, aliases);
  for (std::size_t i = 0; i < models_.size(); ++i) {
    models_[i].id = catalogue_.all()[i].id;
    for (std::size_t j = 1; j < devices.size(); ++j) models_[i].engines.push_back(open(bundles[i], devices[j]));
  }
}

void Fleet::start(Metrics& metrics, const std::vector<SchedulerOptions>& options) {
  for (std::size_t i = 0; i < models_.size(); ++i) {
    Model& model = models_[i];
    std::vector<Engine*> engines;
    for (const auto& engine : model.engines) engines.push_back(engine.get());
    model.metrics = &metrics.add_model(model.id, model.engine().model());
    model.scheduler = std::make_unique<Scheduler>(std::move(engines), *model.metrics, options[i]);
    model.scheduler->wait_ready();
  }
}

void Fleet::drain() {
  for (const Model& model : models_) model.scheduler->drain();
}

bool Fleet::wait_idle(Clock::time_point until) {
  bool idle = true;
  for (const Model& model : models_) idle = model.scheduler->wait_idle(until) && idle;
  return idle;
}

void Fleet::abort() {
  for (const Model& model : models_) model.scheduler->abort();
}

}  // namespace arcflow::serve
