// Images: from a request's body through the queue to its answer.
#include <ctime>
#include <nlohmann/json.hpp>

#include "server/requests/base64.hpp"
#include "server/service.hpp"
#include "server/visit.hpp"

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kClientGone = 499;                                // as nginx has it: nobody reads this answer
constexpr std::uint64_t kExact = (std::uint64_t{1} << 53) - 1;  // seeds that every JSON reader keeps exactly

}  // namespace

void Service::generate(const Request& request, Response& response) {
  const State state = state_;
  if (state == State::kLoading || state == State::kDraining) {
    metrics_.count_rejected(state == State::kLoading ? "not_ready" : "draining");
    return set_error(response, unavailable());
  }
  GenerationRequest wanted;
  try {
    wanted = parse_generation(request.body, fleet_->catalogue(), rules_for(visit_of(response).key));
    fleet_->models()[wanted.model].engine().check(wanted.shape, wanted.prompt);
  } catch (const ApiError& error) {
    metrics_.count_rejected("invalid");
    return set_error(response, error);
  } catch (const EngineError& error) {
    metrics_.count_rejected("invalid");
    return set_error(response, bad_request(error.what(), "prompt"));
  }
  auto accepted = accept(wanted, response);
  if (!accepted) return;
  if (wanted.stream) return stream(request, *accepted, wanted, response);
  const auto outcome = accepted->model.scheduler->wait(accepted->ticket, request.is_connection_closed, kPoll);
  if (outcome != Scheduler::Outcome::kDone)
    return set_error(response, failure_of(outcome, *accepted->ticket, response));
  answer(*accepted, wanted.format, wanted.quality, response);
}

std::optional<Service::Accepted> Service::accept(GenerationRequest& wanted, Response& response) {
  Visit& visit = visit_of(response);
  const auto ticket = std::make_shared<Ticket>();
  ticket->shape = wanted.shape;
  ticket->prompt = std::move(wanted.prompt);
  const std::uint64_t first = wanted.seed ? *wanted.seed : random() & kExact;
  for (std::uint32_t j = 0; j < wanted.n; ++j) {
    ticket->seeds.push_back(first + j);  // modulo 2^64, as everywhere in ArcFlow
  }
  ticket->caller = visit.caller;
  ticket->arrived = Clock::now();
  ticket->deadline =
      ticket->arrived + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(wanted.timeout));
  const Fleet::Model& model = fleet_->models()[wanted.model];
  const auto refuse = [&](const char* reason, ApiError error) {
    metrics_.count_rejected(reason);
    if (error.status == 429) error.retry_after = model.scheduler->retry_after();
    set_error(response, error);
    return std::nullopt;
  };
  std::size_t most = rules_.open_per_caller;
  if (visit.key != nullptr && visit.key->limits.requests > 0) most = visit.key->limits.requests;
  auto place = callers_.enter(visit.caller, most);
  if (place == nullptr) {
    return refuse("caller_full",
                  {429, "rate_limit_error", "too_many_requests",
                   "this caller has " + std::to_string(most) + " requests open, which is the most", "", 0});
  }
  switch (model.scheduler->submit(ticket)) {
    case Scheduler::Admission::kAccepted:
      break;
    case Scheduler::Admission::kFull:
      return refuse("queue_full", {429, "rate_limit_error", "queue_full", "the queue is full; try again later", "", 0});
    case Scheduler::Admission::kTooLate:
      return refuse(
          "too_late",
          {429, "rate_limit_error", "too_late",
           "with what waits before it, this request would not be done within its timeout; try again later", "", 0});
    case Scheduler::Admission::kDraining:
      return refuse("draining", unavailable());
  }
  visit.fields = {{"model", model.id}};
  return Accepted{model, ticket, std::move(place)};
}

ApiError Service::failure_of(Scheduler::Outcome outcome, const Ticket& ticket, Response& response) {
  switch (outcome) {
    case Scheduler::Outcome::kInvalid:
      return bad_request(ticket.failure);
    case Scheduler::Outcome::kGone:
      metrics_.count_cancelled("client_gone");
      return server_error(kClientGone, "client_gone", "the caller closed the connection");
    case Scheduler::Outcome::kDeadline:
      metrics_.count_cancelled("deadline");
      return server_error(504, "deadline_exceeded", "the request was not done within its timeout");
    case Scheduler::Outcome::kDropped:
      metrics_.count_cancelled("shutdown");
      return unavailable();
    case Scheduler::Outcome::kFailed:
    case Scheduler::Outcome::kPartial:
    case Scheduler::Outcome::kDone:
      break;
  }
  visit_of(response).fields.emplace_back("failure", ticket.failure);
  return server_error(500, "generation_failed", "the image could not be made: " + ticket.failure);
}

std::string Service::file_of(const Accepted& accepted, const Image& image, FileFormat format, int quality) {
  const Shape& shape = accepted.ticket->shape;
  switch (format) {
    case FileFormat::kJpeg:
      return encode_jpeg(shape, image, quality);
    case FileFormat::kWebp:
      return encode_webp(shape, image, quality);
    case FileFormat::kPng:
      break;
  }
  return accepted.model.engine().encode(shape, image);
}

Json Service::account(const Accepted& accepted, double encode, Response& response) {
  const Fleet::Model& model = accepted.model;
  const Ticket& ticket = *accepted.ticket;
  const double queue = std::chrono::duration<double>(ticket.started - ticket.arrived).count();
  const double total = std::chrono::duration<double>(Clock::now() - ticket.arrived).count();
  model.metrics->observe_stage("encode", encode);
  model.metrics->observe_stage("total", total);
  model.metrics->count_images(ticket.seeds.size());
  LogFields& fields = visit_of(response).fields;
  fields.insert(fields.end(), {{"images", static_cast<std::int64_t>(ticket.seeds.size())},
                               {"size", size_of(ticket.shape)},
                               {"nfe", std::int64_t{ticket.shape.nfe}},
                               {"batch", static_cast<std::int64_t>(ticket.batch)},
                               {"queue_ms", in_milliseconds(queue)},
                               {"generate_ms", in_milliseconds(ticket.generate_seconds)},
                               {"encode_ms", in_milliseconds(encode)}});
  return {{"queue", rounded(queue)},
          {"generate", rounded(ticket.generate_seconds)},
          {"encode", rounded(encode)},
          {"total", rounded(total)}};
}

void Service::answer(const Accepted& accepted, FileFormat format, int quality, Response& response) {
  const Ticket& ticket = *accepted.ticket;
  const auto made = Clock::now();
  Json body;
  body["created"] = std::time(nullptr);
  body["data"] = Json::array();
  for (std::size_t j = 0; j < ticket.seeds.size(); ++j) {
    Json one;
    one["b64_json"] = base64(file_of(accepted, ticket.images[j], format, quality));
    one["seed"] = ticket.seeds[j];
    body["data"].push_back(std::move(one));
  }
  const Json timings = account(accepted, std::chrono::duration<double>(Clock::now() - made).count(), response);
  body["model"] = accepted.model.id;
  body["size"] = size_of(ticket.shape);
  body["nfe"] = ticket.shape.nfe;
  body["output_format"] = name_of(format);
  body["timings"] = timings;
  response.status = 200;
  response.set_content(body.dump(), "application/json");
}

}  // namespace arcflow::serve
