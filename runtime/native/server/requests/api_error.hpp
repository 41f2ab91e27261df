// What the service answers in place of images: a status and a body in the shape that OpenAI's clients read.
#pragma once

#include <string>
#include <string_view>

namespace arcflow::serve {

// Thrown where a request is read. status: of HTTP. type, code: for programs ("invalid_request_error", "queue_full").
// param: the field at fault, or "". retry_after: seconds for the Retry-After header; 0 for none.
struct ApiError {
  int status = 500;
  std::string type;
  std::string code;
  std::string message;
  std::string param;
  int retry_after = 0;
};

// A request that breaks a rule, 400. param: the field at fault, or "".
ApiError bad_request(std::string message, std::string param = "", std::string code = "invalid_value");

// The error of a status that was decided before a handler ran: 404, 405, 413, 414, 415, ...
ApiError plain_error(int status);

// A caller's text as a message repeats it: its first 64 characters.
std::string shown(std::string_view text);

// {"error": {"message", "type", "param", "code"}}; bytes that are not UTF-8 are replaced.
std::string to_json(const ApiError& error);

}  // namespace arcflow::serve
