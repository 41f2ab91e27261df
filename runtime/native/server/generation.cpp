// Images: from a request's body through the queue to its answer.
#include <ctime>
#include <nlohmann/json.hpp>

#include "server/requests/base64.hpp"
#include "server/service.hpp"
#include "server/visit.hpp"

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kClientGone = 499;  // as nginx has it: nobody reads this answer
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr std::uint64_t kExact = (std::uint64_t{1} << 53) - 1;  // seeds that every JSON reader keeps exactly

}  // namespace

void Service::generate(const Request& request, Response& response) {
  const State state = state_;
  if (state == State::kLoading || state == State::kDraining) {
    metrics_.count_rejected(state == State::kLoading ? "not_ready" : "draining");
    return set_error(response, unavailable());
  }
  const Visit& visit = visit_of(response);
  GenerationRequest wanted;
  try {
    wanted = parse_generation(request.body, engine_->model(), rules_for(visit.key));
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
  ticket->caller = visit.caller;
  ticket->most_open = rules_.open_per_caller;
  if (visit.key != nullptr && visit.key->limits.requests > 0) ticket->most_open = visit.key->limits.requests;
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
    case Scheduler::Admission::kCallerFull: {
      metrics_.count_rejected("caller_full");
      ApiError error{429,
                     "rate_limit_error",
                     "too_many_requests",
                     "this caller has " + std::to_string(ticket->most_open) + " requests open, which is the most",
                     "",
                     0};
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
      return answer(*ticket, wanted.format, wanted.quality, response);
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

std::string Service::file_of(const Ticket& ticket, const Image& image, FileFormat format, int quality) const {
  switch (format) {
    case FileFormat::kJpeg:
      return encode_jpeg(ticket.shape, image, quality);
    case FileFormat::kWebp:
      return encode_webp(ticket.shape, image, quality);
    case FileFormat::kPng:
      break;
  }
  return engine_->encode(ticket.shape, image);
}

void Service::answer(const Ticket& ticket, FileFormat format, int quality, Response& response) {
  const auto made = Clock::now();
  Json body;
  body["created"] = std::time(nullptr);
  body["data"] = Json::array();
  for (std::size_t j = 0; j < ticket.seeds.size(); ++j) {
    Json one;
    one["b64_json"] = base64(file_of(ticket, ticket.images[j], format, quality));
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
  body["output_format"] = name_of(format);
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

}  // namespace arcflow::serve
