// The routes of the service: what each path answers, and what is counted and logged about it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "server/access/keys.hpp"
#include "server/engine.hpp"
#include "server/http/http_server.hpp"
#include "server/requests/request.hpp"
#include "server/scheduling/callers.hpp"
#include "server/scheduling/fleet.hpp"
#include "server/telemetry/log.hpp"
#include "server/telemetry/metrics.hpp"

namespace arcflow::serve {

// Whom the service answers, and what they may ask for.
struct ServiceRules {
  RequestRules requests;
  std::size_t open_per_caller = 0;  // requests that wait or run, over all models; 0: any number
  ApiKeys keys;                     // empty: anybody may ask
  std::vector<std::string> hosts;   // that the Host header may name; empty: any
  std::string cors;                 // the origin whose pages may ask; "*": any, "": none
  bool page = true;                 // whether there is a page at /
};

class Service {
 public:
  // The three must outlive the service.
  Service(HttpServer& server, Metrics& metrics, Log& log, ServiceRules rules);

  // From now on requests are accepted. The fleet has started, and must outlive the server's run.
  void open(const Fleet& fleet);
  // From now on /ready says no, and requests are still accepted: so callers hear of it before they are rejected.
  void withdraw();
  // From now on none are: new requests get 503.
  void drain();

 private:
  enum class State { kLoading, kOpen, kLeaving, kDraining };

  // A request that waits for its images, or has them.
  struct Accepted {
    const Fleet::Model& model;
    std::shared_ptr<Ticket> ticket;
    std::unique_ptr<Callers::Place> place;  // to be given up before its caller can know that the request is over
  };

  void route(HttpServer& server);
  HandlerResponse before(const Request& request, Response& response);
  void add_headers(const Request& request, Response& response);
  void after(const Request& request, Response& response);

  // Whether the request may go on; if not, the response says why.
  bool admit(const Request& request, Response& response);
  void share_with_pages(const Request& request, Response& response) const;
  RequestRules rules_for(const ApiKey* key) const;

  void generate(const Request& request, Response& response);
  // Decides whether the request may wait for its turn; if not, gives nothing, and the response says why.
  std::optional<Accepted> accept(GenerationRequest& wanted, Response& response);
  void answer(const Accepted& accepted, FileFormat format, int quality, Response& response);
  // Answers with events.
  void stream(const Request& request, Accepted& accepted, const GenerationRequest& wanted, Response& response);
  // Counts and notes a request whose images are made and encoded, and gives its "timings".
  nlohmann::ordered_json account(const Accepted& accepted, double encode, Response& response);
  // Why there are no images. Counts it where it is a cancellation.
  ApiError failure_of(Scheduler::Outcome outcome, const Ticket& ticket, Response& response);
  static std::string file_of(const Accepted& accepted, const Image& image, FileFormat format, int quality);
  void list_models(Response& response) const;
  void tell_model(const std::string& name, Response& response) const;
  void health(Response& response) const;
  void ready(Response& response) const;
  // The error for a service that takes no requests now.
  ApiError unavailable() const;
  std::string id_of(const Request& request);
  std::uint64_t random();

  Metrics& metrics_;
  Log& log_;
  ServiceRules rules_;
  const std::int64_t started_;
  std::atomic<State> state_{State::kLoading};
  const Fleet* fleet_ = nullptr;  // set before state_ leaves kLoading, and constant from then on
  Callers callers_;
  std::mutex random_mutex_;
  std::mt19937_64 random_;
};

}  // namespace arcflow::serve
