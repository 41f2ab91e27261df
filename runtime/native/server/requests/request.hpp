// From the bytes of a request to what shall be generated, or to the error that says why not. Pure: no clock, no
// network.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "server/engine.hpp"
#include "server/images/encode.hpp"
#include "server/requests/api_error.hpp"
#include "server/requests/catalogue.hpp"

namespace arcflow::serve {

constexpr std::uint32_t kMaxImages = 10;              // images of one request, as OpenAI has it
constexpr std::uint32_t kMaxPartials = 8;             // frames of one image
constexpr std::size_t kMaxPromptCharacters = 10'000;  // as everywhere in ArcFlow
constexpr std::size_t kMaxRequestId = 128;

// A request whose every value is within the model's limits. seed: absent where the caller leaves it to the server.
struct GenerationRequest {
  std::size_t model = 0;  // its place in the catalogue
  std::string prompt;
  std::uint32_t n = 1;  // 1 where it streams
  Shape shape;          // has partials only where it streams
  bool stream = false;
  std::optional<std::uint64_t> seed;
  FileFormat format = FileFormat::kPng;
  int quality = 100;   // 0 to 100; not for PNG
  double timeout = 0;  // seconds; more than 0 and at most the server's
};

// What a server allows a caller, within what the model can do.
struct RequestRules {
  double seconds = 60;                // also where a request does not say
  std::uint32_t images = kMaxImages;  // of one request
  std::uint32_t nfe = 0;              // evaluations; 0: as many as the model takes
};

// Reads the JSON body of POST /v1/images/generations, by the limits of the model that it names, or of the first one. A
// field that is null counts as absent. Throws ApiError.
GenerationRequest parse_generation(std::string_view body, const Catalogue& catalogue, const RequestRules& rules);

// Evaluations that a caller may ask for, and gets without asking.
std::uint32_t most_nfe(const ModelDescription& model, const RequestRules& rules);
std::uint32_t usual_nfe(const ModelDescription& model, const RequestRules& rules);

// "WIDTHxHEIGHT" within the model's limits, with its usual number of evaluations. Throws ApiError.
Shape parse_size(const std::string& size, const ModelDescription& model);

// Whether a Content-Type header's value names JSON, parameters aside.
bool is_json_type(std::string_view content_type);

// Whether a caller's x-request-id may be used: 1 to kMaxRequestId printable ASCII characters without blanks.
bool is_request_id(std::string_view id);

}  // namespace arcflow::serve
