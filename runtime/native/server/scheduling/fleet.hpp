// All models of a server: each opened on every device, with one queue in front of them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/engine.hpp"
#include "server/requests/catalogue.hpp"
#include "server/scheduling/scheduler.hpp"
#include "server/telemetry/metrics.hpp"

namespace arcflow::serve {

class Fleet {
 public:
  // bundle: a name or a folder. device: the ordinal of a GPU.
  using Open = std::function<std::unique_ptr<Engine>(const std::string& bundle, std::uint32_t device)>;

  struct Model {
    std::string id;                                // as the catalogue has it
    std::vector<std::unique_ptr<Engine>> engines;  // one a device, all of the same description
    ModelMetrics* metrics = nullptr;
    std::unique_ptr<Scheduler> scheduler;

    const Engine& engine() const { return *engines.front(); }
  };

  // Opens one after another: every bundle on the first device, then on the others. aliases: see Catalogue. Throws what
  // `open` throws, and std::invalid_argument with a sentence for what does not go together.
  Fleet(const std::vector<std::string>& bundles, const std::vector<std::uint32_t>& devices,
        const std::vector<std::string>& aliases, const Open& open);

  const Catalogue& catalogue() const { return catalogue_; }
  // In the catalogue's order.
  const std::vector<Model>& models() const { return models_; }

  // Starts the workers, a model after the other, and blocks until all are warm. options: one a model; workers are of a
  // device. The metrics must outlive the fleet. Throws what a worker's session or warm-up threw.
  void start(Metrics& metrics, const std::vector<SchedulerOptions>& options);

  // As of Scheduler, for all of them.
  void drain();
  bool wait_idle(Clock::time_point until);
  void abort();

 private:
  std::vector<Model> models_;
  Catalogue catalogue_;
};

}  // namespace arcflow::serve
