// Images as server-sent events: frames from noise to image as they are made, then the image.
#include <ctime>
#include <nlohmann/json.hpp>

#include "server/requests/base64.hpp"
#include "server/service.hpp"
#include "server/visit.hpp"

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;
using Outcome = Scheduler::Outcome;

constexpr const char* kPartial = "image_generation.partial_image";
constexpr const char* kCompleted = "image_generation.completed";

// An event's name is also its data's type. JSON has no line breaks, which would end the data.
std::string event_of(const Json& data) {
  return "event: " + data["type"].get_ref<const std::string&>() + "\ndata: " + data.dump() + "\n\n";
}

std::string event_of(const ApiError& error) {
  Json data = {{"type", "error"}};
  data.update(Json::parse(to_json(error)));
  return event_of(data);
}

// What both events have. Quality is not a choice here, and no image has an alpha channel.
Json image_event(const char* type, const Ticket& ticket, FileFormat format, const std::string& file) {
  return {{"type", type},
          {"b64_json", base64(file)},
          {"created_at", std::time(nullptr)},
          {"size", size_of(ticket.shape)},
          {"quality", "auto"},
          {"background", "opaque"},
          {"output_format", name_of(format)},
          {"seed", ticket.seeds.front()}};
}

const char* end_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::kDone:
      return "completed";
    case Outcome::kGone:
      return "client_gone";
    case Outcome::kDeadline:
      return "deadline";
    case Outcome::kDropped:
      return "shutdown";
    default:
      return "failed";
  }
}

}  // namespace

void Service::stream(const Request& request, Accepted& accepted, const GenerationRequest& wanted, Response& response) {
  const auto& ticket = accepted.ticket;
  Scheduler& scheduler = *accepted.model.scheduler;
  response.set_header("Content-Type", "text/event-stream; charset=utf-8");
  response.set_header("Cache-Control", "no-store");
  response.set_header("X-Accel-Buffering", "no");  // nginx would keep events until it has many
  double encode = 0;
  const auto show = [&](const char* type, const Image& image) {
    const auto began = Clock::now();
    Json event = image_event(type, *ticket, wanted.format, file_of(accepted, image, wanted.format, wanted.quality));
    encode += std::chrono::duration<double>(Clock::now() - began).count();
    return event;
  };
  Partial partial;
  std::int64_t partials = 0;
  Outcome outcome = Outcome::kPartial;
  try {
    response.write("");  // the head, at once
    for (;;) {
      outcome = scheduler.wait(ticket, request.is_connection_closed, kPoll, &partial);
      if (outcome != Outcome::kPartial) break;
      Json event = show(kPartial, partial.image);
      event["partial_image_index"] = partial.index;
      event["sigma"] = partial.sigma;
      response.write(event_of(event));
      accepted.model.metrics->count_partial();
      ++partials;
    }
    accepted.place.reset();
    if (outcome == Outcome::kDone) {
      Json event = show(kCompleted, ticket->images.front());
      event["nfe"] = ticket->shape.nfe;
      event["model"] = accepted.model.id;
      // OpenAI's type asks for it. Nothing is counted in tokens here.
      event["usage"] = {{"input_tokens", 0},
                        {"input_tokens_details", {{"image_tokens", 0}, {"text_tokens", 0}}},
                        {"output_tokens", 0},
                        {"total_tokens", 0}};
      event["timings"] = account(accepted, encode, response);
      response.write(event_of(event));
    } else {
      const ApiError error = failure_of(outcome, *ticket, response);
      visit_of(response).outcome = error.status;
      response.cut = outcome == Outcome::kGone;
      if (!response.cut) response.write(event_of(error));
    }
  } catch (const std::exception& error) {  // of memory, or of an encoder
    scheduler.wait(ticket, [] { return true; }, Clock::duration::zero());
    accepted.place.reset();
    outcome = Outcome::kFailed;
    visit_of(response).outcome = 500;
    visit_of(response).fields.emplace_back("failure", error.what());
    response.write(event_of(plain_error(500)));
  }
  metrics_.count_stream(end_of(outcome));
  visit_of(response).fields.emplace_back("partials", partials);
  visit_of(response).fields.emplace_back("ended", end_of(outcome));
}

}  // namespace arcflow::serve
