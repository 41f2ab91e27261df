// What a caller may ask for, checked against what the bundle can do before any network runs: runtime/request.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "arcflow/arcflow.h"
#include "core/bundle/manifest/manifest.hpp"
#include "core/text/tokenizer/tokenizer.hpp"

namespace arcflow::core {

constexpr std::uint32_t kMaxImages = 1024;
constexpr std::uint32_t kMaxPreviews = 64;
constexpr std::size_t kMaxPromptCharacters = 10000;

// A checked request: every field filled in and within what the bundle takes. Copies all that it needs of the caller's.
struct CheckedRequest {
  std::vector<std::string> prompts;        // 1 or more; "" each where only tokens were given
  std::map<std::string, TokenIds> tokens;  // by encoder, a row a prompt; empty: the tokenizers make them
  std::vector<std::uint64_t> seeds;        // one for each image
  std::vector<double> sigmas;              // nfe + 1 noise levels
  std::uint32_t nfe = 1, num_images = 1, width = 1, height = 1, previews = 0;
  double timeout = 0.0;  // seconds; 0: none

  std::size_t total() const noexcept { return prompts.size() * num_images; }
  const std::string& prompt_of(std::size_t image) const { return prompts.at(image / num_images); }
};

// The request with the bundle's defaults filled in. request: whole, as this header has it (see abi/boundary.hpp).
// Throws Error(ARCFLOW_INVALID_ARGUMENT): what is wrong and what is allowed.
CheckedRequest check_request(const Manifest& manifest, const ArcflowRequest& request);

}  // namespace arcflow::core
