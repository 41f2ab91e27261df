// From a path to its handler, and what is counted and logged about every answer.
#include "server/service.hpp"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>

#include "server/access/headers.hpp"
#include "server/page/page.hpp"
#include "server/visit.hpp"

namespace arcflow::serve {
namespace {

constexpr const char* kGenerations = "/v1/images/generations";

constexpr const char* kModel = "/v1/models/";
constexpr const char* kModelRoute = "/v1/models/{id}";

const std::map<std::string, std::string> kMethods = {
    {kGenerations, "POST"},  {"/v1/models", "GET, HEAD"}, {kModelRoute, "GET, HEAD"}, {"/health", "GET, HEAD"},
    {"/ready", "GET, HEAD"}, {"/metrics", "GET, HEAD"},   {"/", "GET, HEAD"},         {"/openapi.json", "GET, HEAD"}};

// The path, but for the models' names in it.
std::string route_of(const std::string& path) {
  const std::size_t size = std::strlen(kModel);
  return path.size() > size && path.compare(0, size, kModel) == 0 ? kModelRoute : path;
}

// A server that says it is not ready does what it should.
const char* level_of(const std::string& route, int status) {
  if (status < 500 || (status == 503 && route == "/ready")) return "info";
  return status == 503 ? "warning" : "error";
}

}  // namespace

Service::Service(HttpServer& server, Metrics& metrics, Log& log, ServiceRules rules)
    : metrics_(metrics), log_(log), rules_(std::move(rules)), started_(std::time(nullptr)) {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device(), device(), device(), device(), device()};
  random_.seed(seed);
  route(server);
}

void Service::open(const Fleet& fleet) {
  fleet_ = &fleet;
  metrics_.set_ready(true);
  state_ = State::kOpen;
}

void Service::withdraw() {
  state_ = State::kLeaving;
  metrics_.set_ready(false);
}

void Service::drain() {
  state_ = State::kDraining;
  metrics_.set_ready(false);
}

void Service::route(HttpServer& server) {
  server.set_pre_routing_handler([this](const Request& in, Response& out) { return before(in, out); });
  server.set_head_handler([this](const Request& in, Response& out) { add_headers(in, out); });
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
  server.Get(kModel + std::string("*"),
             [this](const Request& in, Response& out) { tell_model(in.path.substr(std::strlen(kModel)), out); });
  if (rules_.page) server.Get("/", give_page);
  server.Get("/openapi.json", give_openapi);
  server.Get("/health", [this](const Request&, Response& out) { health(out); });
  server.Get("/ready", [this](const Request&, Response& out) { ready(out); });
  server.set_connection_hook([this](const std::string& remote, const std::string& reason, double seconds) {
    log_.write("info", "connection", {{"remote", remote}, {"reason", reason}, {"total_ms", in_milliseconds(seconds)}});
  });
  server.Get("/metrics", [this, &server](const Request&, Response& out) {
    metrics_.set_dropped_lines(log_.dropped());
    out.set_content(metrics_.render() + server.render_connections(), "text/plain; version=0.0.4; charset=utf-8");
  });
}

// Decides what needs no body: unknown paths, other methods, unknown callers, other kinds of content.
HandlerResponse Service::before(const Request& request, Response& response) {
  Visit& visit = visit_of(response);
  visit.id = id_of(request);
  const std::string route = route_of(request.path);
  const auto known = kMethods.find(route);
  if (known == kMethods.end() || (route == "/" && !rules_.page)) {
    response.status = 404;
    return HandlerResponse::Handled;
  }
  visit.route = route;
  if (request.method == "OPTIONS" && is_allowed_origin(request.get_header_value("Origin"), rules_.cors)) {
    response.status = 204;
    response.set_header("Access-Control-Allow-Methods", known->second);
    response.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id, Traceparent");
    response.set_header("Access-Control-Max-Age", "600");
    return HandlerResponse::Handled;
  }
  if (known->second.find(request.method) == std::string::npos) {
    response.status = 405;
    response.set_header("Allow", known->second);
    return HandlerResponse::Handled;
  }
  if (!admit(request, response)) return HandlerResponse::Handled;
  if (request.method == "POST" && !is_json_type(request.get_header_value("Content-Type"))) {
    response.status = 415;
    return HandlerResponse::Handled;
  }
  return HandlerResponse::Unhandled;
}

// Probes and metrics are for whoever runs the server: hosts are asked for where clients go, keys where there is
// something to have.
bool Service::admit(const Request& request, Response& response) {
  Visit& visit = visit_of(response);
  visit.caller = request.remote_addr;
  const bool is_probe = request.path == "/health" || request.path == "/ready" || request.path == "/metrics";
  if (is_probe) return true;
  if (!is_allowed_host(request.get_header_value("Host"), rules_.hosts)) {
    set_error(response, bad_request("this server does not answer to the name in the Host header (--allowed-host)", "",
                                    "invalid_host"));
    return false;
  }
  if (rules_.keys.empty() || request.path.rfind("/v1/", 0) != 0) return true;
  const std::string given = request.get_header_value("Authorization");
  const std::string_view key = bearer_of(given);
  visit.key = key.empty() ? nullptr : rules_.keys.find(key);
  if (visit.key == nullptr) {
    const char* message = key.empty() ? "an API key is needed, in the header Authorization: Bearer KEY"
                                      : "this API key is not one that the server knows";
    set_error(response, {401, "invalid_request_error", "invalid_api_key", message, "", 0});
    response.set_header("WWW-Authenticate", "Bearer realm=\"arcflow\"");
    metrics_.count_rejected("unauthorized");
    return false;
  }
  visit.caller = visit.key->name;
  return true;
}

void Service::share_with_pages(const Request& request, Response& response) const {
  if (rules_.cors.empty()) return;
  if (rules_.cors != "*") response.set_header("Vary", "Origin");
  if (!is_allowed_origin(request.get_header_value("Origin"), rules_.cors)) return;
  response.set_header("Access-Control-Allow-Origin", rules_.cors);
  response.set_header("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
}

// For every answer there is, also those that HTTP itself gives.
void Service::add_headers(const Request& request, Response& response) {
  Visit& visit = visit_of(response);
  if (visit.id.empty()) visit.id = id_of(request);
  response.set_header("x-request-id", visit.id);
  share_with_pages(request, response);
}

void Service::after(const Request& request, Response& response) {
  const Visit& visit = visit_of(response);
  metrics_.count_request(visit.route, response.status);
  const auto began = request.began;
  LogFields fields = {{"request_id", visit.id},
                      {"remote", request.remote_addr},
                      {"method", request.method.substr(0, 16)},
                      {"path", request.path.substr(0, 128)},
                      {"status", std::int64_t{response.status}},
                      {"total_ms", in_milliseconds(std::chrono::duration<double>(Clock::now() - began).count())}};
  if (visit.key != nullptr) fields.emplace_back("key", visit.key->name);
  const std::string trace = request.get_header_value("traceparent");
  if (is_traceparent(trace)) {
    fields.emplace_back("trace_id", trace.substr(3, 32));
    fields.emplace_back("parent_id", trace.substr(36, 16));
  }
  fields.insert(fields.end(), visit.fields.begin(), visit.fields.end());
  log_.write(level_of(visit.route, visit.outcome == 0 ? response.status : visit.outcome), "request", fields);
}

// The caller's own, or a new one.
std::string Service::id_of(const Request& request) {
  const std::string given = request.get_header_value("x-request-id");
  if (is_request_id(given)) return given;
  char id[33];
  std::snprintf(id, sizeof id, "%016" PRIx64 "%016" PRIx64, random(), random());
  return id;
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
