// The routes of the service: what each path answers, and what is counted and logged about it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>

#include "server/engine.hpp"
#include "server/http/http_server.hpp"
#include "server/requests/request.hpp"
#include "server/scheduling/scheduler.hpp"
#include "server/telemetry/log.hpp"
#include "server/telemetry/metrics.hpp"

namespace arcflow::serve {

class Service {
 public:
  // timeout: seconds that a request may take at most. The three must outlive the service.
  Service(HttpServer& server, Metrics& metrics, Log& log, double timeout);

  // From now on requests are accepted. Both must outlive the server's run.
  void open(Engine& engine, Scheduler& scheduler);
  // From now on none are: /ready and new requests get 503.
  void drain();

 private:
  enum class State { kLoading, kOpen, kDraining };

  void route(HttpServer& server);
  HandlerResponse before(const Request& request, Response& response);
  void after(const Request& request, Response& response);

  void generate(const Request& request, Response& response);
  void answer(const Ticket& ticket, Response& response);
  void list_models(Response& response);
  void health(Response& response) const;
  void ready(Response& response) const;
  // The error for a service that takes no requests now.
  ApiError unavailable() const;
  std::string id_of(const Request& request);
  std::uint64_t random();

  Metrics& metrics_;
  Log& log_;
  const double timeout_;
  const std::int64_t started_;
  std::atomic<State> state_{State::kLoading};
  // Set before state_ leaves kLoading, and constant from then on.
  Engine* engine_ = nullptr;
  Scheduler* scheduler_ = nullptr;
  std::mutex random_mutex_;
  std::mt19937_64 random_;
};

}  // namespace arcflow::serve
