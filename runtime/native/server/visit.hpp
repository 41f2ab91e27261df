// What the service's handlers share: a request while it is served, and its errors.
#pragma once

#include <cmath>
#include <string>

#include "server/access/keys.hpp"
#include "server/http/http_server.hpp"
#include "server/requests/api_error.hpp"
#include "server/scheduling/batching.hpp"
#include "server/telemetry/log.hpp"

namespace arcflow::serve {

// What is known of a request while it is served. fields: what the log says about it beside what it says about all.
struct Visit {
  std::string id;
  std::string route = "other";
  Clock::time_point began;
  std::string caller;  // the key's name, or the address
  const ApiKey* key = nullptr;
  LogFields fields;
  int outcome = 0;  // of a stream that failed: the status that it would have had
};

inline Visit& visit_of(Response& response) {
  if (!response.user_data.has_value()) response.user_data = Visit{"", "other", Clock::now(), "", nullptr, {}, 0};
  return *std::any_cast<Visit>(&response.user_data);
}

inline void set_error(Response& response, const ApiError& error) {
  response.status = error.status;
  if (error.retry_after > 0) response.set_header("Retry-After", std::to_string(error.retry_after));
  response.set_content(to_json(error), "application/json");
}

inline ApiError server_error(int status, const char* code, std::string message) {
  return {status, "server_error", code, std::move(message), "", 0};
}

// How often it is asked whether a caller who waits is still there.
constexpr auto kPoll = std::chrono::milliseconds(20);

inline std::string size_of(const Shape& shape) {
  return std::to_string(shape.width) + "x" + std::to_string(shape.height);
}

// Both to a microsecond.
inline double in_milliseconds(double seconds) { return std::round(seconds * 1e6) / 1e3; }
inline double rounded(double seconds) { return std::round(seconds * 1e6) / 1e6; }

}  // namespace arcflow::serve
