// Handlers. Each leaves what the log shall say about its request in the response's user data.
#include "server/service.hpp"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>

#include "server/requests/base64.hpp"

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kGenerations = "/v1/images/generations";
constexpr int kClientGone = 499;  // as nginx has it: nobody reads this answer
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr std::uint64_t kExact = (std::uint64_t{1} << 53) - 1;  // seeds that every JSON reader keeps exactly

const std::map<std::string, std::string> kMethods = {{kGenerations, "POST"},
                                                     {"/v1/models", "GET, HEAD"},
                                                     {"/health", "GET, HEAD"},
                                                     {"/ready", "GET, HEAD"},
                                                     {"/metrics", "GET, HEAD"}};

// What is known of a request while it is served.
struct Visit {
  std::string id;
  std::string route = "other";
  LogFields fields;
};

Visit& visit_of(Response& response) {
  if (!response.user_data.has_value()) response.user_data = Visit{};
  return *std::any_cast<Visit>(&response.user_data);
}

void set_error(Response& response, const ApiError& error) {
  response.status = error.status;
  if (error.retry_after > 0) response.set_header("Retry-After", std::to_string(error.retry_after));
  response.set_content(to_json(error), "application/json");
}

// Both to a microsecond.
double in_milliseconds(double seconds) { return std::round(seconds * 1e6) / 1e3; }
double rounded(double seconds) { return std::round(seconds * 1e6) / 1e6; }

ApiError server_error(int status, const char* code, std::string message) {
  return {status, "server_error", code, std::move(message), "", 0};
}

}  // namespace

Service::Service(HttpServer& server, Metrics& metrics, Log& log, double timeout)
    : metrics_(metrics), log_(log), timeout_(timeout), started_(std::time(nullptr)) {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device(), device(), device(), device(), device()};
  random_.seed(seed);
  route(server);
}

void Service::open(Engine& engine, Scheduler& scheduler) {
  engine_ = &engine;
  scheduler_ = &scheduler;
  metrics_.set_model(engine.model());
  metrics_.set_ready(true);
  state_ = State::kOpen;
}

void Service::drain() {
  state_ = State::kDraining;
  metrics_.set_ready(false);
}

void Service::route(HttpServer& server) {
  server.set_pre_routing_handler([this](const Request& in, Response& out) { return before(in, out); });
  server.set_post_routing_handler([this](const Request& in, Response& out) { after(in, out); });
  server.set_error_handler([](const Request&, Response& out) {
    if (out.body.empty()) set_error(out, plain_error(out.status));
  });
  server.set_exception_handler([this](const Request&, Response& out, std::exception_ptr failure) {
    try {
      std::rethrow_exception(std::move(failure));
    } catch (const std::exception& error) {
      log_.write("error", "handler failed", {{"request_id", visit_of(out).id}, {"message", error.what()}});
    } catch (...) {
      log_.write("error", "handler failed", {{"request_id", visit_of(out).id}});
    }
    set_error(out, plain_error(500));
  });
  server.Post(kGenerations, [this](const Request& in, Response& out) { generate(in, out); });
  server.Get("/v1/models", [this](const Request&, Response& out) { list_models(out); });
  server.Get("/health", [this](const Request&, Response& out) { health(out); });
  server.Get("/ready", [this](const Request&, Response& out) { ready(out); });
  server.set_connection_hook([this](const std::string& remote, const std::string& reason, double seconds) {
    log_.write("info", "connection", {{"remote", remote}, {"reason", reason}, {"total_ms", in_milliseconds(seconds)}});
  });
  server.Get("/metrics", [this, &server](const Request&, Response& out) {
    out.set_content(metrics_.render() + server.render_connections(), "text/plain; version=0.0.4; charset=utf-8");
  });
}

// Decides what needs no body: unknown paths, other methods, other kinds of content.
HandlerResponse Service::before(const Request& request, Response& response) {
  Visit& visit = visit_of(response);
  visit.id = id_of(request);
  const auto known = kMethods.find(request.path);
  if (known == kMethods.end()) {
    response.status = 404;
    return HandlerResponse::Handled;
  }
  visit.route = known->first;
  if (known->second.find(request.method) == std::string::npos) {
    response.status = 405;
    response.set_header("Allow", known->second);
    return HandlerResponse::Handled;
  }
  if (request.method == "POST" && !is_json_type(request.get_header_value("Content-Type"))) {
    response.status = 415;
    return HandlerResponse::Handled;
  }
  return HandlerResponse::Unhandled;
}

// For every answer there is, also those that HTTP itself gives.
void Service::after(const Request& request, Response& response) {
  Visit& visit = visit_of(response);
  if (visit.id.empty()) visit.id = id_of(request);
  response.set_header("x-request-id", visit.id);
  metrics_.count_request(visit.route, response.status);
  const auto began = request.began;
  LogFields fields = {{"request_id", visit.id},
                      {"remote", request.remote_addr},
                      {"method", request.method.substr(0, 16)},
                      {"path", request.path.substr(0, 128)},
                      {"status", std::int64_t{response.status}},
                      {"total_ms", in_milliseconds(std::chrono::duration<double>(Clock::now() - began).count())}};
  fields.insert(fields.end(), visit.fields.begin(), visit.fields.end());
  log_.write(response.status >= 500 ? "error" : "info", "request", fields);
}

// The caller's own, or a new one.
std::string Service::id_of(const Request& request) {
  const std::string given = request.get_header_value("x-request-id");
  if (is_request_id(given)) return given;
  char id[33];
  std::snprintf(id, sizeof id, "%016" PRIx64 "%016" PRIx64, random(), random());
  return id;
}

void Service::generate(const Request& request, Response& response) {
  const State state = state_;
  if (state != State::kOpen) {
    metrics_.count_rejected(state == State::kLoading ? "not_ready" : "draining");
    return set_error(response, unavailable());
  }
  GenerationRequest wanted;
  try {
    wanted = parse_generation(request.body, engine_->model(), timeout_);
    engine_->check(wanted.shape, wanted.prompt);
  } catch (const ApiError& error) {
    metrics_.count_rejected("invalid");
    return set_error(response, error);
  } catch (const EngineError& error) {
    metrics_.count_rejected("invalid");
    return set_error(response, bad_request(error.what(), "prompt"));
  }
  const auto ticket = std::make_shared<Ticket>();
  ticket->shape = wanted.shape;
  ticket->prompt = std::move(wanted.prompt);
  const std::uint64_t first = wanted.seed ? *wanted.seed : random() & kExact;
  for (std::uint32_t j = 0; j < wanted.n; ++j) {
    ticket->seeds.push_back(first + j);  // modulo 2^64, as everywhere in ArcFlow
  }
  ticket->arrived = Clock::now();
  ticket->deadline =
      ticket->arrived + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(wanted.timeout));
  switch (scheduler_->submit(ticket)) {
    case Scheduler::Admission::kFull: {
      metrics_.count_rejected("queue_full");
      ApiError error{429, "rate_limit_error", "queue_full", "the queue is full; try again later", "", 0};
      error.retry_after = scheduler_->retry_after();
      return set_error(response, error);
    }
    case Scheduler::Admission::kDraining:
      metrics_.count_rejected("draining");
      return set_error(response, unavailable());
    case Scheduler::Admission::kAccepted:
      break;
  }
  switch (scheduler_->wait(ticket, request.is_connection_closed, kPoll)) {
    case Scheduler::Outcome::kDone:
      return answer(*ticket, response);
    case Scheduler::Outcome::kInvalid:
      return set_error(response, bad_request(ticket->failure));
    case Scheduler::Outcome::kFailed:
      visit_of(response).fields.emplace_back("failure", ticket->failure);
      return set_error(response,
                       server_error(500, "generation_failed", "the image could not be made: " + ticket->failure));
    case Scheduler::Outcome::kGone:
      metrics_.count_cancelled("client_gone");
      return set_error(response, server_error(kClientGone, "client_gone", "the caller closed the connection"));
    case Scheduler::Outcome::kDeadline:
      metrics_.count_cancelled("deadline");
      return set_error(response, server_error(504, "deadline_exceeded", "the request was not done within its timeout"));
    case Scheduler::Outcome::kDropped:
      metrics_.count_cancelled("shutdown");
      return set_error(response, unavailable());
  }
}

void Service::answer(const Ticket& ticket, Response& response) {
  const auto made = Clock::now();
  Json body;
  body["created"] = std::time(nullptr);
  body["data"] = Json::array();
  for (std::size_t j = 0; j < ticket.seeds.size(); ++j) {
    Json one;
    one["b64_json"] = base64(engine_->encode(ticket.shape, ticket.images[j]));
    one["seed"] = ticket.seeds[j];
    body["data"].push_back(std::move(one));
  }
  const auto encoded = Clock::now();
  const double queue = std::chrono::duration<double>(ticket.started - ticket.arrived).count();
  const double encode = std::chrono::duration<double>(encoded - made).count();
  const double total = std::chrono::duration<double>(encoded - ticket.arrived).count();
  body["model"] = engine_->model().name;
  body["size"] = std::to_string(ticket.shape.width) + "x" + std::to_string(ticket.shape.height);
  body["nfe"] = ticket.shape.nfe;
  body["output_format"] = "png";
  body["timings"] = {{"queue", rounded(queue)},
                     {"generate", rounded(ticket.generate_seconds)},
                     {"encode", rounded(encode)},
                     {"total", rounded(total)}};
  response.status = 200;
  response.set_content(body.dump(), "application/json");
  metrics_.observe_stage("encode", encode);
  metrics_.observe_stage("total", total);
  metrics_.count_images(ticket.seeds.size());
  visit_of(response).fields = {{"images", static_cast<std::int64_t>(ticket.seeds.size())},
                               {"size", body["size"].get<std::string>()},
                               {"nfe", std::int64_t{ticket.shape.nfe}},
                               {"batch", static_cast<std::int64_t>(ticket.batch)},
                               {"queue_ms", in_milliseconds(queue)},
                               {"generate_ms", in_milliseconds(ticket.generate_seconds)},
                               {"encode_ms", in_milliseconds(encode)}};
}

void Service::list_models(Response& response) {
  if (state_ == State::kLoading) return set_error(response, unavailable());
  const ModelDescription& model = engine_->model();
  Json one;
  one["id"] = model.name;
  one["object"] = "model";
  one["created"] = started_;
  one["owned_by"] = "arcflow";
  one["bundle"] = model.bundle;
  one["digest"] = model.digest;
  one["backend"] = model.backend;
  const auto limits = [](const Limits& range) {
    return Json{{"min", range.min}, {"usual", range.usual}, {"max", range.max}};
  };
  one["width"] = limits(model.width);
  one["height"] = limits(model.height);
  one["multiple"] = model.multiple;
  one["nfe"] = limits({1, model.nfe, model.max_nfe});
  response.set_content(Json{{"object", "list"}, {"data", Json::array({one})}}.dump(), "application/json");
}

void Service::health(Response& response) const { response.set_content("{\"status\":\"ok\"}", "application/json"); }

void Service::ready(Response& response) const {
  if (state_ != State::kOpen) return set_error(response, unavailable());
  response.set_content("{\"status\":\"ready\"}", "application/json");
}

ApiError Service::unavailable() const {
  const bool loading = state_ == State::kLoading;
  ApiError error = loading ? server_error(503, "not_ready", "the model is being loaded; try again soon")
                           : server_error(503, "draining", "the server is shutting down; try another one");
  error.retry_after = loading ? 1 : 5;
  return error;
}

std::uint64_t Service::random() {
  const std::lock_guard lock(random_mutex_);
  return random_();
}

}  // namespace arcflow::serve
