// Bodies of errors, and the words for those that HTTP itself decides.
#include "server/requests/api_error.hpp"

#include <nlohmann/json.hpp>
#include <utility>

namespace arcflow::serve {
namespace {

constexpr const char* kInvalid = "invalid_request_error";

constexpr struct {
  int status;
  const char* code;
  const char* message;
} kPlain[] = {
    {400, "malformed", "the request is not valid HTTP, or its body did not arrive whole"},
    {404, "not_found",
     "there is nothing at this path; there are /v1/images/generations, /v1/models, /v1/models/{id}, /openapi.json, "
     "/health, /ready, /metrics"},
    {405, "method_not_allowed", "this path does not take this method; see the Allow header"},
    {408, "too_slow", "the request did not arrive whole in time"},
    {411, "length_required", "a POST must say how long its body is: Content-Length, or Transfer-Encoding: chunked"},
    {413, "too_large", "the body is larger than this server takes (--max-body)"},
    {414, "uri_too_long", "the request's path is too long"},
    {415, "unsupported_media_type",
     "the body must be JSON, not compressed, with the header Content-Type: application/json"},
    {417, "expectation_failed", "the header Expect may only hold 100-continue"},
    {431, "headers_too_large", "the request has more than 100 headers, or more than 16 KiB of them"}};

}  // namespace

std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 64;
  return text.size() <= kMost ? std::string(text) : std::string(text.substr(0, kMost)) + "...";
}

ApiError bad_request(std::string message, std::string param, std::string code) {
  return {400, kInvalid, std::move(code), std::move(message), std::move(param), 0};
}

ApiError plain_error(int status) {
  for (const auto& plain : kPlain) {
    if (plain.status == status) return {status, kInvalid, plain.code, plain.message, "", 0};
  }
  if (status < 500) return {status, kInvalid, "refused", "the request was rejected by the HTTP layer", "", 0};
  if (status == 503) return {status, "server_error", "busy", "too many requests at once; try again soon", "", 1};
  return {status, "server_error", "internal", "the server failed; its log says more under this request's id", "", 0};
}

std::string to_json(const ApiError& error) {
  nlohmann::ordered_json body;
  body["error"]["message"] = error.message;
  body["error"]["type"] = error.type;
  body["error"]["param"] = error.param.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(error.param);
  body["error"]["code"] = error.code;
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace arcflow::serve
